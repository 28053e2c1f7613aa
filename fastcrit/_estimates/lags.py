"""Averages over shells of lags, and lengths read off C(r): where it falls to 1/e, its integral, an exponential fit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]


def radial_correlation(grid: Lattice, S: Floats, background: float = 0.0) -> Floats:
    """C(r) (..., lags inside half the smallest side) from S per orbit (..., orbits)."""
    axes = tuple(range(-grid.ndim, 0))
    C = scipy.fft.irfftn(grid.to_full(S), s=grid.shape, axes=axes)
    radial = shell_means(grid, C)[..., : grid.lags_inside]
    radial[..., 0] -= background
    return np.asarray(radial)


def shell_means(grid: Lattice, values: Floats) -> Floats:
    """Means over all shells of lags (..., shells) of values (..., N1 .. Nd) at every lag of the torus."""
    flat = values.reshape(*values.shape[: values.ndim - grid.ndim], grid.sites)
    order, starts = grid.lag_order
    return np.asarray(np.add.reduceat(flat[..., order], starts, axis=-1) / grid.lag_pairs)


def lag_squares(grid: Lattice) -> Floats:
    """Squared length (N1 .. Nd) of every lag of the torus, to the nearest image; in sites."""
    axes = [np.minimum(np.arange(side), side - np.arange(side)) ** 2.0 for side in grid.shape]
    return np.asarray(sum(np.meshgrid(*axes, indexing="ij")))


def _crossing(r: Floats, c: Floats, level: float) -> float:
    """First r at which c falls to ``level``, by linear interpolation; NaN if it never does."""
    below = np.flatnonzero(c <= level)
    if below.size == 0 or below[0] == 0 or not np.isfinite(c).all():
        return float("nan")
    j = int(below[0])
    return float(r[j - 1] + (c[j - 1] - level) / (c[j - 1] - c[j]) * (r[j] - r[j - 1]))


def _normalised(C: Floats) -> Floats:
    return C / C[0] if C[0] > 0 else np.full_like(C, np.nan)


def _efold(r: Floats, C: Floats) -> float:
    return _crossing(r, _normalised(C), np.exp(-1.0))


def _integral(r: Floats, C: Floats) -> float:
    c = _normalised(C)
    if not np.isfinite(c).all():
        return float("nan")
    zero = _crossing(r, c, 0.0)
    if np.isnan(zero):
        return float(np.trapezoid(c, r))
    inside = r < zero
    return float(np.trapezoid(np.append(c[inside], 0.0), np.append(r[inside], zero)))


def _exponential(r: Floats, C: Floats) -> float:
    c = _normalised(C)
    zero = _crossing(r, c, 0.0)
    inside = (r > 0) & (r < (np.inf if np.isnan(zero) else zero))
    if not np.isfinite(c).all() or inside.sum() < 2:
        return float("nan")
    x, y = r[inside], c[inside]

    def misfit(log_xi: float) -> float:
        e = np.exp(-x / np.exp(log_xi))
        return float(((y - (y @ e) / (e @ e) * e) ** 2).sum())

    # A grid first: the misfit is smooth but may have a flat tail towards long lengths.
    grid = np.linspace(np.log(0.1), np.log(20.0 * r[-1]), 64)
    best = int(np.argmin([misfit(g) for g in grid]))
    if best in (0, len(grid) - 1):
        return float("nan")
    result = scipy.optimize.minimize_scalar(
        misfit, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-10}
    )
    return float(np.exp(result.x))


FROM_CORRELATION: dict[str, Callable[[Floats, Floats], float]] = {
    "efold": _efold,
    "exponential": _exponential,
    "integral": _integral,
    "binarized": _efold,  # of the sign of the field
}
