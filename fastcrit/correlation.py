"""Correlation lengths: one function, six estimators that are not interchangeable, jackknife errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_grid, check_positive, to_fields
from fastcrit._edge.dims import arrange
from fastcrit._estimates.averages import (
    DEFAULT_BLOCKS,
    ModeAverages,
    blocks_in_use,
    fewest_for_errors,
    jackknife_error,
    mode_averages,
)
from fastcrit._estimates.crops import pair_sums
from fastcrit._estimates.lags import FROM_CORRELATION
from fastcrit._estimates.lengths import FINITE_SIZE, METHODS, estimate
from fastcrit._estimates.rounding import about_first, is_still, resolution, rounding_power
from fastcrit._kernels.choose import sums_for
from fastcrit._kernels.host import block_squares
from fastcrit._kernels.lattice import Lattice, lattice
from fastcrit.spectra import StructureFactor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CorrelationLength:
    """A length with its jackknife standard error; arrays when the ensemble has channels.

    ``flags`` names what to know before quoting the value: ``no_fluctuation`` (what varies is no more than the rounding
    of the data, as in copies of one field), ``finite_size`` (xi/L > 1/4), ``background_dominates``,
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
    spacing: float | None = None,
    k_max: float | None = None,
    include_zero: bool | None = None,
    periodic: bool = True,
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
    periodic : bool
        False for fields cut from larger ones, which have no torus: taken for one, crops of 32 sites with xi = 4 have
        3.8. ``ornstein_zernike`` and ``second_moment`` then compare with the power that the form is expected to have in
        a crop (the debiased Whittle likelihood), from the same sums and as fast after the first call for a shape. The
        others read C(r) of pairs inside the field, each with the same weight; they need the fields, padded with zeros
        to 3/2 of each side, which takes two to four times as long. Lengths beyond a side are ``unbounded``.

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

    pairs_inside = not periodic and method in FROM_CORRELATION
    r = None
    if isinstance(field_or_S, StructureFactor):
        needs_fields = pairs_inside or method == "binarized"
        if field_or_S.modes is None or needs_fields:
            missing = "the fields themselves" if needs_fields else "a StructureFactor made by structure_factor()"
            missing += " with periodic=False" if pairs_inside and method != "binarized" else ""
            raise ValueError(f"field_or_S: method={method!r} needs {missing}")
        modes = field_or_S.modes
        lead = np.shape(field_or_S.S)[:-1]
    else:
        field_or_S, spacing = arrange(field_or_S, ndim, "field_or_S", spacing)
        array = to_fields(field_or_S, "field_or_S")
        check_grid(array, ndim, 1, "field_or_S", "shape (samples, ..., N1 .. Nd)")
        grid = lattice(tuple(array.shape[-ndim:]))
        lead = tuple(array.shape[1 : array.ndim - ndim])
        resolved = resolution(field_or_S, array)
        still = None
        if method == "binarized":
            signs = sums_for(array, grid).signs(array, "field_or_S")
            still = is_still(array, center, resolved, ndim)
            array = signs
        if method == "second_moment":
            modes = _first_mode_averages(array, grid, spacing, center, blocks, resolved)
        elif pairs_inside:
            modes, r = _pair_averages(array, grid, spacing, center, blocks, resolved)
        else:
            modes, _ = mode_averages(array, grid, spacing, center, blocks, "field_or_S", resolved)
        if still is not None:  # their signs may still change, where they are 0 but for rounding
            modes = replace(modes, rounding=np.where(still, np.inf, modes.rounding))
    if modes.samples < 2:
        raise ValueError("field_or_S: a correlation length of an ensemble needs at least 2 samples, got 1")
    if modes.center == "sample" and method == "second_moment":
        raise ValueError("center: 'sample' removes S(0), which method='second_moment' needs")

    rows, flags = estimate(modes, method, B, k_max=k_max, include_zero=include_zero, periodic=periodic, r=r)
    if k_max is not None and any("too_few_modes" in words for words in flags):
        raise ValueError(f"k_max: fewer than 3 distinct wavenumbers up to {k_max} are left to fit")
    if modes.samples < fewest_for_errors(modes.center):
        rows[1:] = np.nan
    return summarise(rows * modes.spacing, flags, method, modes.lattice, modes.spacing, lead, errors)


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


@np.errstate(invalid="ignore", over="ignore")  # what is not finite is refused by name
def _first_mode_averages(
    array: Any, grid: Lattice, spacing: float, center: str, blocks: int, resolved: tuple[float, float]
) -> ModeAverages:
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
        largest = int(np.abs(amplitudes).max(axis=0).argmax())
        squares[:, m] = block_squares(amplitudes, used).T
        if not np.isfinite(squares[:, m]).all():
            raise OverflowError(
                f"field_or_S: the power of the field at index {largest} exceeds the range of float64; rescale it"
            )
    squares /= grid.sites
    counts = np.full(used, n // used)
    counts[: n % used] += 1
    power, first = squares[..., :1], squares[..., 1::2] + squares[..., 2::2]
    if center == "sample":
        power[...] = 0.0
    rounding = rounding_power(array, stack.shape[1], center, resolved)
    if center == "ensemble":
        # Sums over N sites of a mean are off by as much as N sites of white noise, or more.
        least = np.concatenate([power, first], axis=-1).sum(axis=0).min(axis=-1) / (n * grid.sites)
        shifted = about_first(array, least, rounding, resolved, center, grid.ndim)
        if shifted is not None:
            modes = _first_mode_averages(shifted, grid, spacing, center, blocks, (0.0, 0.0))
            return replace(modes, rounding=rounding)
    return ModeAverages(grid, spacing, center, counts, power, first, rounding)


def _pair_averages(
    array: Any, grid: Lattice, spacing: float, center: str, blocks: int, resolved: tuple[float, float]
) -> tuple[ModeAverages, Floats]:
    """C(r) of pairs inside the field in the place of power, and its lags r in sites."""
    n = len(array)
    used = blocks_in_use(blocks, n)
    sums, r = pair_sums(array, grid, center, used, "field_or_S")
    counts = np.bincount(np.arange(n) % used, minlength=used)
    rounding = rounding_power(array, sums.shape[1], center, resolved)
    return ModeAverages(grid, spacing, center, counts, sums, sums[..., :0], rounding), r
