"""The curves of a dataset whose extrema are signatures: of gains, of lengths, of the susceptibility."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.extrema import FEWEST_LEVELS, LEAST_PROMINENCE, Curve

Floats = NDArray[np.float64]

# Which length of the states, and of the denoised images, is taken for growth.
GROWING = {"growth": "xi_efold", "growth_denoised": "xi_binarized_denoised"}
# Levels over which the slope of xi is taken: a straight line through five levels in log s.
SLOPE_LEVELS = FEWEST_LEVELS
# A length counts at a level when its standard error is below this fraction of it; a softening always does.
_WORST_RELATIVE_ERROR = 0.2


def softening(ds: xr.Dataset, log_s: Floats) -> Curve | None:
    """The softest shell's, with the sign that makes its minimum a maximum. None: not recorded."""
    if "softening" not in ds or not log_s.size:
        return None
    values = ds["softening"].values[: log_s.size]
    # Noise of a gain counts for more the lower the level, so the softest is told by what is surely below.
    sure = values + LEAST_PROMINENCE * ds["softening_stderr"].values[: log_s.size]
    softest = int(np.argmin(np.where(np.isfinite(sure), sure, np.inf).min(axis=0)))
    replicates = -ds["softening_jackknife"].values[:, : log_s.size, softest]
    return Curve(-values[:, softest], replicates, shell_of(ds, softest))


def xi_eq(ds: xr.Dataset, log_s: Floats) -> Curve | None:
    """The equilibrium length. None: not recorded."""
    if "xi_eq" not in ds or not log_s.size:
        return None
    return _measured(ds["xi_eq"].values, ds["xi_eq_stderr"].values, ds["xi_eq_jackknife"].values, log_s.size)


def growth(ds: xr.Dataset, signature: str, log_s: Floats, clock: str) -> Curve | None:
    """How fast a length grows on a clock. None: not recorded."""
    name = GROWING[signature]
    if name not in ds:
        return None
    xi = _measured(ds[name].values, ds[f"{name}_stderr"].values, ds[f"{name}_jackknife"].values, log_s.size)
    # d log t/d log s of t = log(1 + s^2). (A slope over levels uneven in log t would lean to one side.)
    square = np.exp(2.0 * log_s)
    pace = 1.0 if clock == "log s" else 2.0 * square / ((1.0 + square) * np.log1p(square))
    # A length that stays the same within a few per cent an e-fold does not grow, however surely that is known.
    own = np.nan_to_num(np.abs(xi.values) / pace)
    return Curve(_slope(xi.values, -log_s) / pace, _slope(xi.replicates, -log_s) / pace, scale=own)


def susceptibility(ds: xr.Dataset, log_s: Floats) -> Curve | None:
    """The susceptibility. None: not recorded."""
    if "chi" not in ds:
        return None
    return Curve(ds["chi"].values[: log_s.size], ds["chi_jackknife"].values[:, : log_s.size])


def shell_of(ds: xr.Dataset, column: int) -> int:
    """The number of a column of the gains."""
    return int(ds["shell"].values[column]) if "shell" in ds.coords else column


def _measured(values: Floats, errors: Floats, replicates: Floats, n: int) -> Curve:
    """The levels at which a length is known to better than _WORST_RELATIVE_ERROR; others become NaN."""
    known = np.isfinite(values[:n]) & (errors[:n] <= _WORST_RELATIVE_ERROR * np.abs(values[:n]))
    return Curve(np.where(known, values[:n], np.nan), np.where(known, replicates[:, :n], np.nan))


def _slope(xi: Floats, x: Floats) -> Floats:
    """Least-squares slope over SLOPE_LEVELS neighbouring levels; NaN where a neighbour is missing."""
    out = np.full(xi.shape, np.nan)
    half = SLOPE_LEVELS // 2
    for i in range(half, x.size - half):
        window = slice(i - half, i + half + 1)
        dx = x[window] - x[window].mean()
        out[..., i] = xi[..., window] @ dx / (dx @ dx)
    return out
