"""Fields cut from larger ones: what their statistics are expected to be, and correlations of pairs inside them alone.

A crop has no partners beyond its edge, and its transform takes the opposite edge for them. The expected power of its
modes is known nevertheless: the transform of (share of lag vectors that fit) times C(r). Fitted to that, instead of to
S(k), a length is that of the larger field (the debiased Whittle likelihood: Sykulski et al. 1605.06718, Guillaumin et
al. 1909.04733).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import is_tensor
from fastcrit._estimates.rounding import single
from fastcrit._kernels.choose import sums_for
from fastcrit._kernels.host import pad
from fastcrit._kernels.lattice import Lattice, lattice

Floats = NDArray[np.float64]

# Shortest length, in sites, and steps of log xi^2 between which log power is a cubic spline, right to 4e-5.
_SHORTEST = 1e-3
_STEP = 0.5
# The correlation of the form itself is that of a torus of this many times the sides, or of twice where that is large.
_SIDES = 4
_MOST_SITES = 1 << 21


@dataclass(frozen=True)
class CropForm:
    """Expected power of 1 / (1 + q k^2) in the orbits of a crop, as a function of log q."""

    log_power: Any  # a spline (log q) -> (.., orbits)
    k2: Floats
    low: float
    high: float

    def __call__(self, log_q: Floats) -> tuple[Floats, Floats, Floats]:
        """The form (rows, orbits) and its first two derivatives by log q, for log q (rows, 1)."""
        x = log_q[:, 0]
        slope = self.log_power(x, 1)
        power = np.exp(self.log_power(x))
        return power, power * slope, power * (slope**2 + self.log_power(x, 2))

    def of(self, use: NDArray[np.bool_]) -> CropForm:
        """Of these orbits alone."""
        spline = scipy.interpolate.PPoly(self.log_power.c[..., use], self.log_power.x)
        return CropForm(spline, self.k2[use], self.low, self.high)

    def q_of_ratio(self, ratio: Floats, orbit: int) -> Floats:
        """The q at which power at k = 0 is ``ratio`` times that of ``orbit``; NaN below 1, infinite beyond the last."""
        log_q = np.linspace(self.low, self.high, 1 << 14)
        power = self.log_power(log_q)
        grows = power[:, 0] - power[:, orbit]
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.log(ratio)
        return np.exp(np.where(wanted > 0, np.interp(wanted, grows, log_q, left=-np.inf, right=np.inf), np.nan))


@lru_cache(maxsize=4)  # 60 values and more for each orbit
def crop_form(shape: tuple[int, ...]) -> CropForm:
    """Tables for crops of one shape, of which the longest length is the smallest side."""
    grid = lattice(shape)
    long = [side for side in shape if side > 1]
    times = _SIDES if np.prod([_SIDES * side / 2 + 1 for side in long]) <= _MOST_SITES else 2
    k2 = _outer_sum([4.0 * np.sin(np.pi * np.arange(times * side // 2 + 1) / (times * side)) ** 2 for side in long])
    inside = tuple(slice(0, side + 1) for side in long)
    share = np.ones(())
    for side in long:
        share = np.multiply.outer(share, 1.0 - np.arange(side + 1) / side)
    low, high = 2.0 * np.log(_SHORTEST), 2.0 * np.log(max(grid.side, 2))
    nodes = np.linspace(low, high, int(np.ceil((high - low) / _STEP)) + 1)
    orbits = _one_mode_of_each_orbit(grid)
    rows = []
    for log_q in nodes:
        correlation = _cosines(1.0 / (1.0 + np.exp(log_q) * k2))[inside] / np.prod([times * side for side in long])
        # Every second wavenumber of the doubled crop is one of the crop's.
        rows.append(np.log(_cosines(share * correlation)[(slice(None, None, 2),) * len(long)][orbits]))
    return CropForm(scipy.interpolate.CubicSpline(nodes, np.stack(rows)), grid.orbit_k2, low, high)


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is refused by name
def pair_sums(array: Any, grid: Lattice, center: str, blocks: int, name: str) -> tuple[Floats, Floats]:
    """Sums over samples, by block, of C(r) (blocks, fields, lags) over pairs inside the field; and the lags' r.

    Fields (samples, ..., lattice) are centred as in `structure_factor` and padded with zeros, block by block.
    """
    padded, pairs = padding(grid)
    stack = array.reshape(len(array), -1, *grid.shape)
    for m in range(stack.shape[1]):  # the cheapest look at every site: NaN and infinity are named
        sums_for(array, grid).first_modes(stack[:, m], name)
    array = single(array)
    if center == "sample":  # what little there is beside a large mean stays exact, here and below
        array = array - array[(..., *[slice(0, 1)] * grid.ndim)]
    if center == "ensemble":
        array = array - array[:1]
        array, center = array - _mean(array), "none"
    rows = [lag_sums(array[b::blocks], grid, center, padded, pairs)[0] for b in range(blocks)]
    return np.stack(rows), padded.lag_r[: len(pairs)]


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is refused by name
def lag_sums(array: Any, grid: Lattice, center: str, padded: Lattice, pairs: Floats) -> tuple[Floats, Floats]:
    """(fields, lags) each, of fields (samples, ..., lattice): see `_sums.Sums.lag_sums`."""
    stack = array.reshape(len(array), -1, *grid.shape)
    sums = sums_for(array, grid)
    columns = [sums.lag_sums(stack[:, m], center, padded, pairs) for m in range(stack.shape[1])]
    total, squares = (np.stack(values) for values in zip(*columns, strict=True))
    return total, squares


def padding(grid: Lattice) -> tuple[Lattice, Floats]:
    """The lattice on which no pair at lags up to half a side wraps around, and how many pairs each shell of lags has.

    Both are divided by the sites of the padded lattice, as sums over pairs on it are.
    """
    padded = lattice(tuple(scipy.fft.next_fast_len(side + side // 2, real=True) for side in grid.shape))
    mask = pad(np.ones((1, *grid.shape)), padded.shape)
    return padded, np.asarray(padded.core.autocorrelation(mask)[0, : grid.lags_inside], np.float64)


def _mean(array: Any) -> Any:
    """Over samples, in double precision."""
    if is_tensor(array):
        import torch

        return array.mean(dim=0, dtype=torch.float64).to(array.dtype)
    return array.mean(axis=0, dtype=np.float64).astype(array.dtype)


def _outer_sum(axes: list[Floats]) -> Floats:
    total = np.zeros(())
    for axis in axes:
        total = np.add.outer(total, axis)
    return total


def _cosines(values: Floats) -> Floats:
    """Sums over a whole period of what is even along every axis, from the half that is given, endpoints included."""
    return np.asarray(scipy.fft.dctn(values, type=1)) if values.ndim else values


def _one_mode_of_each_orbit(grid: Lattice) -> tuple[NDArray[np.int64], ...]:
    """Its |n_i| along the axes of more than one site."""
    _, first = np.unique(grid.orbit_of_mode, return_index=True)
    last, *lead = np.unravel_index(first, (grid.shape[-1] // 2 + 1, *grid.shape[:-1]))
    wavenumbers = [np.minimum(n, side - n) for n, side in zip(lead, grid.shape[:-1], strict=True)] + [last]
    return tuple(n for n, side in zip(wavenumbers, grid.shape, strict=True) if side > 1)
