"""How a caller's network is run while its derivatives are taken: as it was written, watched once, left as it was."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Survey:
    """What one plain evaluation showed."""

    bytes_a_row: int  # what operations on one state return, all together, and once more for their derivatives
    moved: bool  # modules went to another device or type on the way, and back

    @classmethod
    def of(cls, f: Callable[[Tensor], Tensor], y: Tensor) -> Survey:
        """Of f at one state, run under `as_written`."""
        import torch
        from torch.overrides import TorchFunctionMode
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        total, moved = 0, False
        set_data = torch.Tensor.data.__set__  # type: ignore[attr-defined]  # torch does not type its properties

        class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
            """Adds up what operations return."""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal total
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
                    f(y)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # of f, or of frozen TorchScript, whose constants dispatch modes cannot take
                f(y)
                total = sys.maxsize // 2  # unknown: one row at a time
        return cls(2 * max(total, 1), moved)


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
