"""Correlation lengths of averaged power: the estimators behind `correlation_length` and a recorder's dataset."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastcrit._estimates.averages import ModeAverages
from fastcrit._estimates.crops import crop_form
from fastcrit._estimates.lags import FROM_CORRELATION, radial_correlation
from fastcrit._estimates.whittle import Form, TorusForm, fit_ornstein_zernike
from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]

METHODS = ("ornstein_zernike", "second_moment", "efold", "exponential", "integral", "binarized")
# xi / L above which periodic images meet and every estimator is biased.
FINITE_SIZE = 0.25


def estimate(
    modes: ModeAverages,
    method: str,
    background: float | None,
    *,
    k_max: float | None = None,
    include_zero: bool | None = None,
    periodic: bool = True,
    r: Floats | None = None,
) -> tuple[Floats, list[tuple[str, ...]]]:
    """Lengths in sites, rows (1 + blocks, fields): estimate, then replicates; flags of each field's estimate.

    With ``r`` what ``modes`` averages is C(r) at these lags, not power. Rows in which the power used is no more than
    rounding can have are NaN.
    """
    grid = modes.lattice
    fields = modes.power.shape[1]
    S = modes.mean_and_replicates(modes.power)
    if method == "ornstein_zernike":
        zero = modes.center == "ensemble" if include_zero is None else include_zero
        use = np.ones(len(grid.orbit_k), dtype=bool)
        use[0] = zero
        if k_max is not None:
            use &= grid.orbit_k <= k_max * modes.spacing * (1 + 1e-9)
        if use.sum() < 3:
            return np.full((1 + len(modes.counts), fields), np.nan), [("too_few_modes",)] * fields
        form: Form = TorusForm(grid.orbit_k2[use], grid.side) if periodic else crop_form(grid.shape).of(use)
        still = S[..., use] @ grid.orbit_modes[use] / grid.orbit_modes[use].sum() <= modes.rounding
        fitted = _ornstein_zernike(form, grid, S[..., use], use, background, modes.samples, still[0])
    elif method == "second_moment":
        first = modes.mean_and_replicates(modes.first)
        still = np.maximum(S[..., 0], first.max(axis=-1)) <= modes.rounding
        fitted = _second_moment(modes, S[..., 0], first, background or 0.0, periodic)
    else:
        if r is None:
            C, r = radial_correlation(grid, S), grid.lag_r[: grid.lags_inside]
        else:
            C = S
        still = C[..., 0] <= modes.rounding
        C[..., 0] -= background or 0.0
        one = FROM_CORRELATION[method]
        rows = np.array([[one(r, c) for c in row] for row in C])
        shell = float(r[1]) if len(r) > 1 else 0.0
        fitted = rows, [("no_crossing",) if np.isnan(x) else ("below_resolution",) * bool(x < shell) for x in rows[0]]
    rows, flags = fitted
    rows[still] = np.nan
    return rows, [("no_fluctuation",) if nothing else words for nothing, words in zip(still[0], flags, strict=True)]


def _ornstein_zernike(
    form: Form,
    grid: Lattice,
    S: Floats,
    use: NDArray[np.bool_],
    background: float | None,
    samples: int,
    still: NDArray[np.bool_],
) -> tuple[Floats, list[tuple[str, ...]]]:
    rows = np.full(S.shape[:2], np.nan)
    flags: list[tuple[str, ...]] = []
    for m in range(S.shape[1]):
        if still[m] or not (S[:, m] > 0).any():
            flags.append(("no_convergence",))
            continue
        fit = fit_ornstein_zernike(form, grid.orbit_modes[use], S[:, m], background, samples, grid.side)
        rows[:, m] = fit.xi
        flags.append(fit.flags)
    return rows, flags


def _second_moment(
    modes: ModeAverages, S0: Floats, first: Floats, background: float, periodic: bool
) -> tuple[Floats, list[tuple[str, ...]]]:
    """From S(0) (rows, fields) and S(k1) of each axis; infinite, and so unbounded, where S(k1) is rounding alone."""
    grid = modes.lattice
    long = [axis for axis, side in enumerate(grid.shape) if side > 1]  # an axis of one site has no k1
    rows = np.full(S0.shape, 0.0 if long else np.nan)
    for axis in long:
        S1 = np.where(first[..., axis] > modes.rounding, first[..., axis] - background, 0.0)
        if periodic:
            with np.errstate(divide="ignore", invalid="ignore"):  # the root of what is negative is NaN
                xi = 0.5 * np.sqrt(S0 - background - S1) / np.sqrt(S1) / math.sin(math.pi / grid.shape[axis])
        else:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = (S0 - background) / np.where(S1 >= 0, S1, np.nan)
            orbit = int(grid.orbit_of_mode[grid.mode_index(grid.axis_wavenumbers[axis])])
            xi = np.sqrt(crop_form(grid.shape).q_of_ratio(ratio, orbit))
        rows += xi / len(long)
    flags: list[tuple[str, ...]] = [
        ("unbounded",) if x == np.inf else ("negative_second_moment",) * bool(np.isnan(x)) for x in rows[0]
    ]
    rows[~np.isfinite(rows)] = np.nan
    return rows, flags
