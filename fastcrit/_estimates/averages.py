"""Sums of power over samples, per jackknife block: averages, leave-one-out averages, and the error they imply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_integer
from fastcrit._estimates.rounding import about_first, rounding_power
from fastcrit._kernels.choose import sums_for
from fastcrit._kernels.host import variance
from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]

# Leave-one-out groups kept by structure_factor; the jackknife leaves out one at a time.
DEFAULT_BLOCKS = 32


@dataclass(frozen=True)
class ModeAverages:
    """Sums of centred power over samples, per jackknife block and class of equivalent modes. What the fits read."""

    lattice: Lattice
    spacing: float
    center: str
    counts: NDArray[np.int64]  # (blocks,) samples
    power: NDArray[np.float64]  # (blocks, fields, orbits): sum over samples of the orbit's mean |phi^|^2 / N
    first: NDArray[np.float64]  # (blocks, fields, ndim): the same for k = 2 pi / L along each axis alone
    rounding: Any = 0.0  # (fields,): power per mode that may be rounding alone

    @cached_property
    def samples(self) -> int:
        """Number of samples in all blocks."""
        return int(self.counts.sum())

    @property
    def _unbiased(self) -> float:
        return check_center(self.center, self.samples)

    def mean(self, sums: Floats) -> Floats:
        """The estimate from block sums (blocks, ...)."""
        return np.asarray(sums.sum(axis=0) / self.samples * self._unbiased)

    def mean_and_replicates(self, sums: Floats) -> Floats:
        """(1 + blocks, ...): the estimate from block sums, then the estimate without each block in turn."""
        n = self.samples
        total = sums.sum(axis=0)
        left = (n - self.counts).reshape(-1, *[1] * (sums.ndim - 1))
        with np.errstate(invalid="ignore", divide="ignore"):  # without the only block there is no estimate
            return np.asarray(np.concatenate([total[None] / n, (total - sums) / left]) * self._unbiased)


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is refused by name
def mode_averages(
    array: Any,
    grid: Lattice,
    spacing: float,
    center: str,
    blocks: int,
    name: str = "field",
    resolved: tuple[float, float] = (0.0, 0.0),
) -> tuple[ModeAverages, NDArray[np.float64]]:
    """Per-block mode averages of (samples, ..., lattice), and `Squares` of shell means (fields, 2, shells).

    ``resolved`` is the `resolution` of what the caller passed.
    """
    n = len(array)
    check_center(center, n, name)
    used = blocks_in_use(blocks, n)
    stack = array.reshape(n, -1, *grid.shape)
    sums = sums_for(array, grid)
    columns = [sums.mode_sums(stack[:, m], center, used, name) for m in range(stack.shape[1])]
    power, first, squares = (np.stack(values) for values in zip(*columns, strict=True))
    counts = np.bincount(np.arange(n) % used, minlength=used)
    power, first = (np.ascontiguousarray(values.swapaxes(0, 1)) for values in (power / grid.orbit_modes, first))
    rounding = rounding_power(array, stack.shape[1], center, resolved)
    modes = ModeAverages(grid, spacing, center, counts, power, first, rounding)
    scatter = (modes.power.sum(axis=0) @ grid.orbit_modes) / (n * grid.sites)
    shifted = about_first(array, scatter, modes.rounding, resolved, center, grid.ndim)
    if shifted is not None:
        again, squares = mode_averages(shifted, grid, spacing, center, blocks, name)
        modes = replace(again, rounding=modes.rounding)
    return modes, squares


def blocks_in_use(blocks: int, samples: int) -> int:
    """Jackknife blocks that hold samples; ValueError unless ``blocks`` is an integer of at least 2."""
    return min(check_integer(blocks, "blocks", 2), samples)


def check_center(center: str, samples: int, name: str = "field") -> float:
    """The factor that makes a second moment unbiased once the mean has been taken out."""
    check_choice(center, ("ensemble", "sample", "none"), "center")
    if center != "ensemble":
        return 1.0
    if samples < 2:
        raise ValueError(f"{name}: center='ensemble' needs at least 2 samples on axis 0, got {samples}")
    return samples / (samples - 1)


def fewest_for_errors(center: str) -> int:
    """Samples from which scatter can be told: two samples less their mean are equal but for the sign."""
    return 3 if center == "ensemble" else 2


def error_over_samples(
    squares: Floats, mean: Floats, samples: int, center: str, again: Callable[[float], Floats]
) -> Floats:
    """Standard error of the unbiased mean of a power over samples; NaN where there are too few to tell.

    Where squares of powers overflow, ``again`` gives the error of fields divided by a unit.
    """
    if samples < fewest_for_errors(center):
        return np.full_like(mean, np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        stderr: Floats = np.sqrt(variance(squares, mean, samples) / (samples - 1)) * check_center(center, samples)
    if np.isfinite(stderr).all():
        return stderr
    unit = float(2.0 ** (np.frexp(np.sqrt(np.abs(mean).max()))[1] - 1))
    return unit**2 * again(unit)


def errors_over_blocks(replicates: Floats, known: NDArray[np.bool_]) -> Floats:
    """Jackknife errors of replicates (blocks, ...) over the blocks that are ``known``, (blocks, ...) of fewer axes."""
    out = np.full(replicates.shape[1:], np.nan)
    for at in np.ndindex(known.shape[1:]):
        out[at] = jackknife_error(replicates[(known[(slice(None), *at)], *at)])
    return out


def jackknife_error(replicates: Floats) -> Floats:
    """Standard error from leave-one-out values on axis 0: sqrt((B - 1)/B sum (x_b - mean)^2)."""
    B = len(replicates)
    if B < 2:
        return np.full(replicates.shape[1:], np.nan)
    with np.errstate(invalid="ignore", over="ignore"):  # of infinite replicates there is none
        return np.asarray(np.sqrt((B - 1) / B * ((replicates - replicates.mean(axis=0)) ** 2).sum(axis=0)))


def neighbours_error(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over the last axis, two that follow each other on its circle sharing a draw.

    Their covariance counts where it is positive.
    """
    apart = samples - samples.mean(axis=-1, keepdims=True)
    own = (apart**2).mean(axis=-1)
    shared = 2.0 * (apart * np.roll(apart, 1, axis=-1)).mean(axis=-1) if samples.shape[-1] > 2 else 0.0
    return np.asarray(np.sqrt((own + np.maximum(shared, 0.0)) / (samples.shape[-1] - 1)))
