"""Derivatives of a denoiser along tangents: forward mode, twice reverse mode, or central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

METHODS = ("jvp", "vjp", "central")


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

    def transposed(self, y: Tensor, cotangents: Tensor, labels: Tensor | None) -> Tensor:
        """The transposed of J at states (batch, ..) times cotangents (n, batch, ..), by reverse mode."""
        import torch

        with torch.inference_mode(False), torch.enable_grad():
            at = y.clone().requires_grad_(True)
            out = self.D(at, self.s, labels)
            products = [torch.autograd.grad(out, at, u, retain_graph=True)[0] for u in cotangents]
        return torch.stack(products).detach()

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
                largest = t.abs().amax(dim=tuple(range(1, t.ndim)), keepdim=True)
                h = self.step / torch.where(largest > 0, largest, 1.0)
                near = f(y + h * t) - f(y - h * t)
                far = f(y + 2 * h * t) - f(y - 2 * h * t)
                products.append((8 * near - far) / (12 * h))
        return torch.stack(products)
