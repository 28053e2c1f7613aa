"""Images with noise, y = x0 + s n, whose noise follows from a seed, the image's number and the level; their checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit._edge.arrays import check_levels, to_tensor
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.sample import PhiloxNoise

Floats = NDArray[np.float64]


class ForwardStates:
    """Forward states of some images, level by level, on a device.

    Parameters
    ----------
    images : tensor (n, C, ..)
    numbers : (m,) of int
        Which of them.
    seed, first_sample : int
        Noise of image j follows from ``seed``, first_sample + j and the level.
    device : torch.device, optional
    """

    def __init__(
        self, images: Tensor, numbers: NDArray[np.int64], seed: int, first_sample: int, device: torch.device | None
    ) -> None:
        self.clean = images[numbers].to(device or "cpu")
        shape = tuple(self.clean.shape[1:])
        self._noise = PhiloxNoise(seed, (first_sample + numbers).tolist(), shape, self.clean)

    def __call__(self, level: float) -> Tensor:
        """Forward states of a level."""
        return self.clean + level * self._noise(level)


def checked_images(D: Denoiser, x0: Any, levels: Any) -> tuple[Tensor, Floats]:
    """Two images or more that D takes, in float32 or float64, and falling positive levels that it covers.

    TypeError, ValueError for others, or NaN in images.
    """
    if not isinstance(D, Denoiser):
        raise TypeError(f"D: expected a Denoiser, got {type(D).__name__}")
    given = to_tensor(x0, "x0")
    images = given if given.dtype == torch.float64 else given.float()
    if images.ndim != D.ndim + 2 or len(images) < 2 or (D.shape is not None and tuple(images.shape[1:]) != D.shape):
        raise ValueError(f"x0: expected two images or more of shape {D.shape or '(C, H, W)'}, got {tuple(given.shape)}")
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(f"x0: NaN or infinite values in image {int((~finite).int().argmax())}")
    s = check_levels(levels)
    D.check_level(s[0])
    return images, s


def check_denoised(images: Tensor, s: float, first: int) -> None:
    """FloatingPointError for denoised images that are not finite; the first is of the image with number ``first``."""
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        at = first + int((~finite).int().argmax())
        raise FloatingPointError(f"x0: the denoised image of image {at} at s = {s:.6g} is NaN or infinite")


def check_returned(images: Any, y: Tensor, name: str) -> None:
    """TypeError and ValueError unless a function of the caller's gave denoised images of the states' shape.

    Another one may broadcast, to numbers that mean nothing.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: expected a function that returns a tensor, got {type(images).__name__}")
    if images.shape != y.shape:
        raise ValueError(
            f"{name}: expected denoised images of the states' shape {tuple(y.shape)}, got {tuple(images.shape)}"
        )
