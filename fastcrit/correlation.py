"""Correlation lengths: one function, six estimators that are not interchangeable, jackknife errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._arrays import check_choice, check_grid, check_positive, to_fields
from fastcrit._lattice import Lattice, lattice
from fastcrit._sums import sums_for
from fastcrit._whittle import fit_ornstein_zernike
from fastcrit.spectra import (
    DEFAULT_BLOCKS,
    ModeAverages,
    StructureFactor,
    block_squares,
    blocks_in_use,
    fewest_for_errors,
    mode_averages,
)

Floats = NDArray[np.float64]

METHODS = ("ornstein_zernike", "second_moment", "efold", "exponential", "integral", "binarized")
# xi / L above which periodic images meet and every estimator is biased.
FINITE_SIZE = 0.25


@dataclass(frozen=True)
class CorrelationLength:
    """A length with its jackknife standard error; arrays when the ensemble has channels.

    ``flags`` names what to know before quoting the value: ``finite_size`` (xi/L > 1/4), ``background_dominates``,
    ``too_few_modes`` (fewer than 3 wavenumbers to fit), ``unbounded``, ``no_convergence``, ``uncorrelated`` (the fit
    wants xi = 0), ``negative_second_moment``, ``no_crossing`` (C never falls to 1/e, or to a form that can be fitted),
    ``below_resolution`` (shorter than the first shell of lags, so interpolated from C(0) alone), ``unstable_error`` (a
    leave-one-out estimate failed, or there are fewer than 3 samples). For arrays it holds the flags of any element.
    """

    value: Any
    stderr: Any
    method: str
    flags: tuple[str, ...]
    relative: Any  # xi / L, with L the smallest side
    blocks: int
    replicates: NDArray[np.float64] = dataclass_field(repr=False)  # (blocks, ...): without each block in turn

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """Two-sided confidence interval: Student's t with blocks - 1 degrees of freedom."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
        t = scipy.special.stdtrit(self.blocks - 1, 0.5 + confidence / 2) if self.blocks > 1 else np.nan
        return self.value - t * self.stderr, self.value + t * self.stderr


def correlation_length(
    field_or_S: Any,
    *,
    method: str = "ornstein_zernike",
    background: float | str = 0.0,
    errors: str | None = "jackknife",
    blocks: int = DEFAULT_BLOCKS,
    ndim: int = 2,
    center: str = "ensemble",
    spacing: float = 1.0,
    k_max: float | None = None,
    include_zero: bool | None = None,
) -> CorrelationLength:
    r"""Correlation length of an ensemble of fields.

    Parameters
    ----------
    field_or_S : array, tensor (samples, ..., N1, .., Nd) or StructureFactor
        An ensemble, or what `structure_factor` made of one (then ``ndim``, ``center``, ``spacing`` and ``blocks`` are
        those it was made with; ``binarized`` needs the fields). Fields on a CUDA device are summed there, and the
        length is fitted on the host.
    method : str
        ``ornstein_zernike``: :math:`S = A / (1 + \xi^2 \hat k^2) + B`, :math:`\hat k^2 = \sum_i 4\sin^2(k_i/2)`, by
        maximum likelihood on unbinned modes (Whittle).
        ``second_moment``: :math:`\sqrt{(S(0)-B)/(S(k_1)-B) - 1} / (2 \sin(k_1/2))`, :math:`k_1 = 2\pi/L`, averaged over
        axes; from d + 1 modes, without a transform.
        ``efold``: where :math:`C(r)/C(0)` falls to 1/e, linearly interpolated.
        ``exponential``: least-squares fit of :math:`c\,e^{-r/\xi}` to C(r), r >= 1 site up to the first zero.
        ``integral``: :math:`\int C(r)/C(0)\,dr` up to the first zero.
        ``binarized``: ``efold`` of the sign of the field.
    background : float or "free"
        White background B of S (a state at noise level s carries s^2), or "free" to fit it (``ornstein_zernike`` only).
    errors : "jackknife" or None
        Leave-one-out over blocks of samples, the estimator re-run on each.
    blocks : int
        Number of jackknife blocks; at most the number of samples. Sample j is in block j mod blocks.
    ndim, center, spacing
        As in `structure_factor`. ``center="sample"`` makes S(0) = 0 and is refused for ``second_moment``.
    k_max : float, optional
        Fit only modes up to this wavenumber, in rad per unit length (``ornstein_zernike``). Default: all modes, right
        for data that follow the form throughout. Patterns follow it at low k only, where a limit of a few 1/xi is
        needed.
    include_zero : bool, optional
        Use k = 0 in the fit. Default: yes exactly when the ensemble mean was removed.

    Returns
    -------
    CorrelationLength
        ``value`` and ``stderr`` in units of length (floats, or arrays for channels), NaN where the estimator has no
        answer; ``flags`` says why.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As in `structure_factor`; ValueError for fewer than two samples.

    Notes
    -----
    Source: Whittle (1953) for the likelihood; definitions of arXiv:2603.20092. A least-squares line through shell
    averages of 1/S, the usual shortcut, is biased by 30 % at xi = L/4.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> model = fc.theory.GaussianTheory.ornstein_zernike(xi=3.0, lattice=32)
    >>> xi = fc.correlation_length(model.sample_data(2000, seed=1))
    >>> bool(abs(xi.value - 3.0) < 4 * xi.stderr), xi.flags
    (True, ())
    """
    check_choice(method, METHODS, "method")
    free = isinstance(background, str)
    if free and (background != "free" or method != "ornstein_zernike"):
        raise ValueError(
            f"background: expected a number, or 'free' with method='ornstein_zernike', got {background!r} with "
            f"{method!r}"
        )
    if not isinstance(background, str) and not (math.isfinite(background) and background >= 0):
        raise ValueError(f"background: expected a finite number >= 0, got {background!r}")
    if errors is not None:
        check_choice(errors, ("jackknife",), "errors")
    if k_max is not None:
        check_positive(k_max, "k_max")
    B = None if free else float(background)

    if isinstance(field_or_S, StructureFactor):
        if field_or_S.modes is None or method == "binarized":
            missing = (
                "the fields themselves" if method == "binarized" else "a StructureFactor made by structure_factor()"
            )
            raise ValueError(f"field_or_S: method={method!r} needs {missing}")
        modes = field_or_S.modes
        lead = np.shape(field_or_S.S)[:-1]
    else:
        array = to_fields(field_or_S, "field_or_S")
        check_grid(array, ndim, 1, "field_or_S", "shape (samples, ..., N1 .. Nd)")
        check_positive(spacing, "spacing")
        grid = lattice(tuple(array.shape[-ndim:]))
        lead = tuple(array.shape[1 : array.ndim - ndim])
        if method == "binarized":
            array = sums_for(array, grid).signs(array, "field_or_S")
        if method == "second_moment":
            modes = _first_mode_averages(array, grid, spacing, center, blocks)
        else:
            modes, _ = mode_averages(array, grid, spacing, center, blocks, "field_or_S")
    if modes.samples < 2:
        raise ValueError("field_or_S: a correlation length of an ensemble needs at least 2 samples, got 1")
    if modes.center == "sample" and method == "second_moment":
        raise ValueError("center: 'sample' removes S(0), which method='second_moment' needs")

    rows, flags = estimate(modes, method, B, k_max=k_max, include_zero=include_zero)
    if k_max is not None and any("too_few_modes" in words for words in flags):
        raise ValueError(f"k_max: fewer than 3 distinct wavenumbers up to {k_max} are left to fit")
    if modes.samples < fewest_for_errors(modes.center):
        rows[1:] = np.nan
    return summarise(rows * modes.spacing, flags, method, modes.lattice, modes.spacing, lead, errors)


def estimate(
    modes: ModeAverages,
    method: str,
    background: float | None,
    *,
    k_max: float | None = None,
    include_zero: bool | None = None,
) -> tuple[Floats, list[tuple[str, ...]]]:
    """Lengths in sites, rows (1 + blocks, fields): estimate, then replicates; flags of each field's estimate."""
    grid = modes.lattice
    fields = modes.power.shape[1]
    rows = np.empty((1 + len(modes.counts), fields))
    flags: list[tuple[str, ...]] = []
    if method == "second_moment":
        rows, negative = _second_moment(modes, background or 0.0)
        return rows, [("negative_second_moment",) if bad else () for bad in negative]
    S = modes.mean_and_replicates(modes.power)
    if method == "ornstein_zernike":
        zero = modes.center == "ensemble" if include_zero is None else include_zero
        use = np.ones(len(grid.orbit_k), dtype=bool)
        use[0] = zero
        if k_max is not None:
            use &= grid.orbit_k <= k_max * modes.spacing * (1 + 1e-9)
        if use.sum() < 3:
            return np.full((1 + len(modes.counts), fields), np.nan), [("too_few_modes",)] * fields
        for m in range(fields):
            if not (S[:, m, use] > 0).any():
                rows[:, m] = np.nan
                flags.append(("no_convergence",))
                continue
            fit = fit_ornstein_zernike(
                grid.orbit_k2[use],
                grid.orbit_modes[use],
                S[:, m, use],
                background,
                modes.samples,
                grid.side,
            )
            rows[:, m] = fit.xi
            flags.append(fit.flags)
        return rows, flags
    C = radial_correlation(grid, S, background or 0.0)
    one = _FROM_CORRELATION["efold" if method == "binarized" else method]
    for m in range(fields):
        rows[:, m] = [one(grid.lag_r[: grid.lags_inside], c) for c in C[:, m]]
        if not np.isfinite(rows[0, m]):
            flags.append(("no_crossing",))
        else:
            flags.append(("below_resolution",) if rows[0, m] < grid.lag_r[1] else ())
    return rows, flags


def summarise(
    rows: Floats,
    flags: list[tuple[str, ...]],
    method: str,
    grid: Lattice,
    spacing: float,
    lead: tuple[int, ...],
    errors: str | None,
) -> CorrelationLength:
    """Estimate and jackknife error from rows (1 + blocks, fields) in units of length."""
    value, replicates = rows[0], rows[1:]
    relative = value / (grid.side * spacing)
    stderr = jackknife_error(replicates) if errors else np.full_like(value, np.nan)
    stderr[value == 0] = np.nan  # a bound: the fit wants no length at all, and has no scatter
    found = {flag for per_field in flags for flag in per_field}
    if (relative > FINITE_SIZE).any():
        found.add("finite_size")
    if errors and ((value > 0) & ~np.isfinite(stderr)).any():
        found.add("unstable_error")

    def shaped(x: Floats) -> Any:
        return float(x[0]) if lead == () else x.reshape(lead)

    return CorrelationLength(
        value=shaped(value),
        stderr=shaped(stderr),
        method=method,
        flags=tuple(sorted(found)),
        relative=shaped(relative),
        blocks=len(replicates),
        replicates=replicates.reshape(-1, *lead),
    )


def jackknife_error(replicates: Floats) -> Floats:
    """Standard error from leave-one-out values on axis 0: sqrt((B - 1)/B sum (x_b - mean)^2)."""
    B = len(replicates)
    if B < 2:
        return np.full(replicates.shape[1:], np.nan)
    return np.asarray(np.sqrt((B - 1) / B * ((replicates - replicates.mean(axis=0)) ** 2).sum(axis=0)))


def radial_correlation(grid: Lattice, S: Floats, background: float = 0.0) -> Floats:
    """C(r) (..., lags inside half the smallest side) from S per orbit (..., orbits)."""
    axes = tuple(range(-grid.ndim, 0))
    C = scipy.fft.irfftn(grid.to_full(S), s=grid.shape, axes=axes)
    flat = C.reshape(*C.shape[: -grid.ndim], grid.sites)
    order, starts = grid.lag_order
    sums = np.add.reduceat(flat[..., order], starts, axis=-1)[..., : grid.lags_inside]
    radial = sums / grid.lag_pairs[: grid.lags_inside]
    radial[..., 0] -= background
    return np.asarray(radial)


def _first_mode_averages(array: Any, grid: Lattice, spacing: float, center: str, blocks: int) -> ModeAverages:
    """S(0), the one orbit of ``power``, and S(k1), from the kernel that needs no transform."""
    n = len(array)
    check_choice(center, ("ensemble", "sample", "none"), "center")
    used = blocks_in_use(blocks, n)
    stack = array.reshape(n, -1, *grid.shape)
    sums = sums_for(array, grid)
    squares = np.empty((used, stack.shape[1], 1 + 2 * grid.ndim))
    for m in range(stack.shape[1]):
        # k = 0, then real and imaginary part of the first mode of each axis; a column per sample.
        amplitudes = sums.first_modes(stack[:, m], "field_or_S")
        if center == "ensemble":
            amplitudes -= amplitudes.mean(axis=1, keepdims=True)
        squares[:, m] = block_squares(amplitudes, used).T
    squares /= grid.sites
    counts = np.full(used, n // used)
    counts[: n % used] += 1
    return ModeAverages(grid, spacing, center, counts, squares[..., :1], squares[..., 1::2] + squares[..., 2::2])


def _second_moment(modes: ModeAverages, background: float) -> tuple[Floats, NDArray[np.bool_]]:
    long = [axis for axis, side in enumerate(modes.lattice.shape) if side > 1]  # an axis of one site has no k1
    first = modes.first if len(long) == modes.lattice.ndim else modes.first[..., long]
    S = modes.mean_and_replicates(np.concatenate([modes.power[..., :1], first], axis=-1)) - background
    S0, S1 = S[..., :1], S[..., 1:]
    with np.errstate(divide="ignore", invalid="ignore"):  # the root of what is negative is NaN
        xi = np.sqrt(S0 - S1) / np.sqrt(S1)
    rows = xi @ [0.5 / (len(long) * math.sin(math.pi / modes.lattice.shape[axis])) for axis in long]
    rows[~np.isfinite(rows) | (not long)] = np.nan
    return rows, np.isnan(rows[0])


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


_FROM_CORRELATION: dict[str, Callable[[Floats, Floats], float]] = {
    "efold": _efold,
    "exponential": _exponential,
    "integral": _integral,
}
