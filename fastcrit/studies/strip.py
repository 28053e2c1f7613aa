"""The first few trajectories, kept at a few levels, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

_LEVELS = 8
# Samples, as long as they have no more values a level than these: a strip is for looking at, not for storing.
_SAMPLES, _VALUES = 3, 3 * 64 * 64 * 4


def strip(D: Denoiser, labels: Any, levels: NDArray[np.float64], solver: str, seed: int, samples: int) -> xr.Dataset:
    """States and denoised states (strip_level, sample, channel, y, x) of a run's first samples, made again.

    A single channel has no dimension.
    """
    from fastcrit.diffusion import sample

    assert D.shape is not None
    n = max(1, min(_SAMPLES, samples, _VALUES // int(np.prod(D.shape))))
    kept = np.unique(np.linspace(0, len(levels) - 1, min(_LEVELS, len(levels))).round().astype(int))
    frames: dict[int, NDArray[np.float64]] = {}

    def keep(i: int, s: float, y: Any, D_y: Any) -> None:
        if i in kept:
            frames[i] = np.stack([y.cpu().numpy(), D_y.cpu().numpy()])

    given = None if labels is None else labels[:n]
    sample(D, given, n, levels, solver, seed, observers=[keep])
    both = np.stack([frames[i] for i in kept], axis=1)
    dims: tuple[str, ...] = ("strip_level", "sample", "channel", "y", "x")
    if D.shape[0] == 1:
        both, dims = both[:, :, :, 0], ("strip_level", "sample", "y", "x")
    return xr.Dataset(
        {
            "states": (dims, both[0], {"long_name": "state y"}),
            "denoised": (dims, both[1], {"long_name": "denoised state D(y; s)"}),
        },
        {"strip_level": ("strip_level", levels[kept], {"long_name": "noise level s of the strip"})},
    )
