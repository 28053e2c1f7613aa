"""How a caller's network is run while its derivatives are taken: as it was written, watched once, left as it was."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

# Shares of the denoised image. What is more than this, and than rounding, is no accident of the order of sums ..
_REPEATED = 1e-4
# .. and what is more than this shows in gains.
_BATCHED = 0.01
# An image of less than this, in units of the noise, is as good as none.
_LEAST = 1e-3


@dataclass(frozen=True)
class Survey:
    """What one plain evaluation showed."""

    bytes_a_row: int  # what operations on one state return, all together, and once more for their derivatives
    moved: bool  # modules went to another device or type on the way, and back
    quantised: bool  # a part computes in integers: no derivative goes through it
    answer: Tensor  # what f returned

    @classmethod
    def of(cls, f: Callable[[Tensor], Tensor], y: Tensor) -> Survey:
        """Of f at one state, run under `as_written`."""
        import torch
        from torch.overrides import TorchFunctionMode
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        total, moved, quantised = 0, False, False
        set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]  # torch does not type its properties

        class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
            """Adds up what operations return."""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal total, quantised
                quantised = quantised or func.namespace == "quantized"
                out = func(*args, **(kwargs or {}))
                total += sum(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
                return out

        class Watch(TorchFunctionMode):
            """Sees weights that are replaced: what Module.to does, and the offloading and casting hooks that call it.

            Hooks that keep weights elsewhere leave their modules with parameters on the meta device between calls.
            """

            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal moved
                weight = args[0] if args and isinstance(args[0], torch.nn.Parameter) else None
                moved = moved or func == set_data or (weight is not None and weight.is_meta)
                return func(*args, **(kwargs or {}))

        with torch.no_grad():
            try:
                with Watch(), Count():  # type: ignore[no-untyped-call]  # likewise
                    answer = f(y)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # of f, or of frozen TorchScript, whose constants dispatch modes cannot take
                answer = f(y)
                total = sys.maxsize // 2  # unknown: one row at a time
        return cls(2 * max(total, 1), moved, quantised, answer)


def check_repeatable(D: Denoiser, s: float, y: Tensor, labels: Tensor | None, answer: Tensor, batched: bool) -> None:
    """ValueError where D answers one state ``y`` otherwise than before, and a warning where its batch changes that.

    ``answer`` is what it said at first; ``batched``: memory holds two states. The warning is of the line that called
    the public function, which called the caller.
    """
    import torch

    rounding = max(4 * eps_of(D, y), _REPEATED)
    # Where symmetry makes D vanish, of what the noise would make of it.
    scale: float = max(float(answer.double().norm()), _LEAST * s * answer.numel() ** 0.5)

    def differs(again: Tensor) -> float:
        apart: Tensor = (again - answer).double()
        return float(apart.norm()) / scale

    with torch.no_grad():
        # Another state of three times the size: any mean or largest value of the batch becomes another.
        pair = None if labels is None else torch.cat([labels, labels])
        beside = D(torch.cat([y, 3 * y]), s, pair)[:1] if batched else D(y, s, labels)
        if not differs(beside) > rounding:
            return
        random = differs(D(y, s, labels))
    if random > rounding:
        raise ValueError(
            f"D: {D.name} answers the same state otherwise each time (by {random:.2g} of the denoised image), so that "
            "differences of it say nothing: dropout or noise inside; call .eval() on the network"
        )
    if differs(beside) > rounding + _BATCHED:
        warnings.warn(
            f"D: the denoised image of a state depends on the others in its batch (by {differs(beside):.2g} of it "
            "beside one three times as large): batch normalisation in training mode, or rounding with one scale for a "
            "batch; call .eval() on the network, or evaluate states one by one",
            stacklevel=4,
        )


def eps_of(D: Denoiser, y: Tensor) -> float:
    """Relative rounding of the type that D computes in."""
    import torch

    autocast = torch.is_autocast_enabled(y.device.type)
    kinds = [y.dtype, D.dtype or y.dtype, torch.get_autocast_dtype(y.device.type) if autocast else y.dtype]
    return max(torch.finfo(kind).eps for kind in kinds)


@contextmanager
def as_written() -> Iterator[None]:
    """Networks run eagerly, with attention and group norm along paths that have forward derivatives.

    Compiled ones too: a compiler that meets a mode or a derivative under way would skip the network for good.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.overrides import TorchFunctionMode

    class Contiguous(TorchFunctionMode):
        """group_norm's rule takes views of the tangent, which attention leaves transposed: a copy puts it in order."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.group_norm, torch.nn.functional.group_norm):
                args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
            return func(*args, **(kwargs or {}))

    # Where the compiler is not loaded, which takes seconds, nothing is compiled. torch has stances since 2.6.
    compiler = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")
    eager: Any = torch.compiler.set_stance("force_eager") if compiler else nullcontext()
    with eager, sdpa_kernel(SDPBackend.MATH), Contiguous():
        yield
