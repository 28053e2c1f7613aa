"""The first few trajectories, kept at a few levels, to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.placement import to_host

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

# Samples shown, and levels.
STRIP_SAMPLES, _LEVELS = 3, 8
# Fewer samples where they would have more values a level than these: a strip is for looking at, not for storing.
_VALUES = 3 * 64 * 64 * 4


class Strip:
    """An observer of a sampler that keeps states and denoised states at a few of its steps.

    Parameters
    ----------
    grid : (steps,)
        Noise levels of the sampler's steps.
    every : int
        Only every so many steps is a level to choose from.
    ndim : int
        Axes of a state's lattice.
    """

    def __init__(self, grid: NDArray[np.float64], every: int = 1, ndim: int = 2) -> None:
        n = (len(grid) - 1) // every + 1
        self.steps = every * np.unique(np.linspace(0, n - 1, min(_LEVELS, n)).round().astype(int))
        self._levels, self._ndim = grid[self.steps], ndim
        self._frames: dict[int, Any] = {}

    def __call__(self, i: int, s: float, y: Any, D: Any) -> None:
        """Called by the sampler at every step, with arrays or tensors (sample, ..)."""
        if i in self.steps:
            self._frames[i] = np.stack([to_host(y), to_host(D)])

    def dataset(self) -> xr.Dataset:
        """``states`` and ``denoised`` (strip_level, sample, channel, y, x), of lines (.., x); one channel: no dim."""
        both = np.stack([self._frames[i] for i in self.steps], axis=1)
        if both.ndim == 4 + self._ndim and both.shape[3] == 1:
            both = both[:, :, :, 0]
        channel = ("channel",) if both.ndim == 4 + self._ndim else ()
        dims = ("strip_level", "sample", *channel, *("z", "y", "x")[-self._ndim :])
        return xr.Dataset(
            {
                "states": (dims, both[0], {"long_name": "state y"}),
                "denoised": (dims, both[1], {"long_name": "denoised state D(y; s)"}),
            },
            {"strip_level": ("strip_level", self._levels, {"long_name": "noise level s of the strip"})},
        )


def strip(D: Denoiser, labels: Any, levels: NDArray[np.float64], solver: str, seed: int, samples: int) -> xr.Dataset:
    """The strip of a run's first samples, made again; ``labels`` of all samples, or None."""
    from fastcrit.diffusion import sample

    assert D.shape is not None
    n = max(1, min(STRIP_SAMPLES, samples, _VALUES // int(np.prod(D.shape))))
    kept = Strip(levels, ndim=len(D.shape) - 1)
    sample(D, None if labels is None else labels[:n], n, levels, solver, seed, observers=[kept])
    return kept.dataset()
