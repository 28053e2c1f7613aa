"""Derivatives of a denoiser along tangents: forward mode, twice reverse mode, or central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

METHODS = ("jvp", "vjp", "central")

# The derivative of a network in half precision is right to a few per cent; one that is cut off is wrong by its size.
_PROBE_TOLERANCE = 0.1


class Derivative:
    """J times tangents, row by row, by one of the methods."""

    def __init__(self, D: Denoiser, s: float, method: str, step: float) -> None:
        self.D = D
        self.s = s
        self.method = method
        self.step = step
        self.vectorised = True

    def __call__(self, y: Tensor, tangents: Tensor, labels: Tensor | None) -> Tensor:
        """J at states (batch, ..) times tangents (n, batch, ..)."""
        out: Tensor = getattr(self, f"_{self.method}")(lambda y: self.D(y, self.s, labels), y, tangents)
        return out

    def choose(self, y: Tensor, labels: Tensor | None, method: str, fixed: bool) -> None:
        """The step of central differences, unless it is fixed, and the first method that is right on one probe."""
        import torch

        y, labels = y[:1], None if labels is None else labels[:1]
        side = y.shape[-1]
        wave = torch.cos(2 * torch.pi * torch.arange(side, device=y.device, dtype=y.dtype) / side + 0.5)
        # A long wave and noise: low and high modes alike.
        rough = torch.randn(y.shape[-2:], generator=torch.Generator().manual_seed(0), dtype=y.dtype).to(y.device)
        tangent = (wave.expand(y.shape) + 0.5 * rough)[None]
        self.method = "central"
        # From steps too long for the curvature of D to steps so short that rounding shows: least change between them.
        steps = [self.step / 4**n for n in range(2 if fixed else 8)]
        results = []
        for self.step in steps:
            results.append(self(y, tangent, labels))
        changes = [float((a - b).norm()) for a, b in pairwise(results)]
        best = int(np.argmin([c if np.isfinite(c) else np.inf for c in changes]))
        self.step = steps[0] if fixed else steps[best + 1]
        expected = results[best + 1]
        allowed = _PROBE_TOLERANCE * expected.norm() + changes[best]
        for self.method in METHODS[:2] if method == "auto" else ():
            try:
                found = self(y, tangent, labels)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                continue  # an operation without that derivative
            if bool((found - expected).norm() <= allowed):
                return
        self.method = "central"

    def bytes_a_row(self, y: Tensor, labels: Tensor | None) -> int:
        """What one state's intermediate results take, all together, and once more for their derivatives."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        total = 0

        class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
            """Adds up what operations return."""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal total
                out = func(*args, **(kwargs or {}))
                total += sum(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
                return out

        with torch.no_grad(), Count():  # type: ignore[no-untyped-call]  # likewise
            self.D(y, self.s, labels)
        return 2 * max(total, 1)

    def _jvp(self, f: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> Tensor:
        import torch

        def product(tangent: Tensor) -> Tensor:
            out: Tensor = torch.func.jvp(f, (y,), (tangent,))[1]
            return out

        with torch.no_grad():
            if self.vectorised:
                # All tangents of a state share one evaluation of the network itself.
                try:
                    return torch.func.vmap(product)(tangents)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError, ValueError):
                    self.vectorised = False
            return torch.stack([product(t) for t in tangents])

    @staticmethod
    def _vjp(f: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> Tensor:
        import torch

        # u -> J^T u is linear, and its transposed product with a tangent is J times it.
        with torch.inference_mode(False), torch.enable_grad():
            at = y.clone().requires_grad_(True)
            out = f(at)
            u = torch.zeros_like(out, requires_grad=True)
            (transposed,) = torch.autograd.grad(out, at, u, create_graph=True)
            products = [torch.autograd.grad(transposed, u, t, retain_graph=True)[0] for t in tangents]
        return torch.stack(products).detach()

    def _central(self, f: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> Tensor:
        import torch

        products = []
        with torch.no_grad():
            for t in tangents:
                largest = t.abs().amax(dim=(1, 2, 3), keepdim=True)
                h = self.step / torch.where(largest > 0, largest, 1.0)
                near = f(y + h * t) - f(y - h * t)
                far = f(y + 2 * h * t) - f(y - 2 * h * t)
                products.append((8 * near - far) / (12 * h))
        return torch.stack(products)


@contextmanager
def forward_derivatives() -> Iterator[None]:
    """Two operations that torch has forward derivatives for, but not along every path."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.overrides import TorchFunctionMode

    class Contiguous(TorchFunctionMode):
        """group_norm's rule takes views of the tangent, which attention leaves transposed: a copy puts it in order."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.group_norm, torch.nn.functional.group_norm):
                args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
            return func(*args, **(kwargs or {}))

    with sdpa_kernel(SDPBackend.MATH), Contiguous():
        yield
