"""Radially averaged power spectra, structure factors and autocorrelations: array in, array out.

Conventions (all functions): phi^(k) = sum_x phi(x) exp(-i k x) over N sites, power |phi^|^2 / N, k in rad per unit
length, shells of width 2 pi / (smallest side of more than one site), k = 0 alone in the first, each with the mean |k|
of its modes. White noise of variance v has power v in every shell; the k = 0 shell of a constant c holds N c^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import Any

import numpy as np
import scipy  # its submodules load when they are first used, which keeps `import fastcrit` fast
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_grid, on_device, same_kind, to_fields
from fastcrit._edge.dims import arrange
from fastcrit._edge.placement import to_host
from fastcrit._estimates.averages import (
    DEFAULT_BLOCKS,
    ModeAverages,
    blocks_in_use,
    check_center,
    error_over_samples,
    mode_averages,
)
from fastcrit._estimates.crops import lag_sums, padding
from fastcrit._estimates.rounding import about_first, is_little, resolution, rounding_of_squares, rounding_power
from fastcrit._kernels.choose import sums_for
from fastcrit._kernels.contract import Trend
from fastcrit._kernels.lattice import lattice

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RadialSpectrum:
    """Power per shell of each field. ``power`` has shape (..., n_shells); ``k`` is in rad per unit length."""

    k: Any
    power: Any
    counts: Any

    def check(self) -> None:
        """ValueError or OverflowError, naming the field, unless all powers are numbers; waits for a device.

        Of a spectrum with ``check="deferred"``; all others have been checked.
        """


class _AxisOnDevice:
    """The axis of a result on a device, which takes longer than the result: it comes there when it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("k", "counts"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        k, counts = self._axis()
        vars(self).update(k=k, counts=counts)
        return vars(self)[name]


class _OnDevice(_AxisOnDevice, RadialSpectrum):
    """A spectrum on a device."""

    def __init__(self, power: Any, axis: Callable[[], tuple[Any, Any]], check: Callable[[], None]) -> None:
        vars(self).update(power=power, _axis=axis, _check=check)

    def __reduce__(self) -> tuple[Any, ...]:
        return RadialSpectrum, (self.k, self.power, self.counts)

    def check(self) -> None:
        self._check()


@dataclass(frozen=True)
class StructureFactor:
    """S(k) with its standard error over samples; arrays (..., n_shells), ``k`` in rad per unit length."""

    k: Any
    S: Any
    stderr: Any
    counts: Any
    n_samples: int
    modes: ModeAverages | None = dataclass_field(default=None, repr=False)


class _FactorOnDevice(_AxisOnDevice, StructureFactor):
    """A structure factor on a device: sums over samples come to the host when ``modes`` is read, which waits."""

    def __init__(
        self, means: Any, n: int, axis: Callable[[], tuple[Any, Any]], modes: Callable[[], ModeAverages]
    ) -> None:
        S, stderr = means.unbind()
        vars(self).update(S=S, stderr=stderr, n_samples=n, _axis=axis, _modes=modes)

    @cached_property
    def modes(self) -> ModeAverages:
        made: ModeAverages = self._modes()
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return StructureFactor, (self.k, self.S, self.stderr, self.counts, self.n_samples, self.modes)


@dataclass(frozen=True)
class RadialCorrelation:
    """C(r) with its standard error over samples; arrays (..., n_r), ``r`` in units of length."""

    r: Any
    C: Any
    stderr: Any
    counts: Any


def power_spectrum(
    field: Any,
    *,
    ndim: int = 2,
    spacing: float | None = None,
    detrend: str | None = None,
    window: str | tuple[Any, ...] | None = None,
    corners: bool = False,
    check: str = "now",
) -> RadialSpectrum:
    r"""Radially averaged power spectrum of every field.

    Parameters
    ----------
    field : array or tensor, shape (..., N1, .., Nd)
        Real fields on a periodic lattice. float32 is computed in float32; float16, bfloat16, bool and integers of up to
        16 bits are converted to float32, everything else to float64. Tensors on a CUDA device are computed there, by
        the kernels of the core or, where it was built without them, by torch; this waits for the device. Where axes
        have names (an `xarray.DataArray`), all but "sample", "level" and "channel" are the lattice, in any place.
    ndim : int
        Number of lattice axes d, 1 to 3.
    spacing : float, optional
        Distance between sites, the same on every axis. Default: that of the coordinates of an `xarray.DataArray`,
        otherwise 1.
    detrend : None, "constant" or "linear"
        What is subtracted from each field first: nothing, its mean, or its least-squares plane.
    window : None or a window of `scipy.signal.get_window`
        Applied along every axis and divided by its root mean square, so that white noise keeps its level.
    corners : bool
        Keep shells beyond the Nyquist wavenumber of the axes. With them, sum(power * counts) = sum(field**2).
    check : "now" or "deferred"
        When NaN and Inf are named. "deferred" only launches work on a device, can be captured in a CUDA graph, and
        leaves it to the result's ``check()``; fields whose squares leave the range of float32 are then refused there,
        not measured again in float64. Elsewhere both are the same.

    Returns
    -------
    RadialSpectrum
        ``power[..., j]`` is the mean of :math:`|\hat\phi(k)|^2 / N` over the ``counts[j]`` modes of shell j, ``k[j]``
        their mean \|k\| in rad per unit length. Tensors on the same device if ``field`` is one.

    Raises
    ------
    TypeError
        Complex values, strings, objects.
    ValueError
        Too few axes, an empty array, NaN or Inf (the message says in which field), a tensor that is neither on the CPU
        nor on a CUDA device, names of axes that do not say which is which, uneven coordinates, images whose channels
        are the last axis.
    OverflowError
        Power, summed over modes before it is averaged, beyond the range of the dtype.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> noise = np.random.default_rng(0).normal(scale=2.0, size=(1000, 32, 32))
    >>> spectrum = fc.power_spectrum(noise)
    >>> bool(np.allclose(spectrum.power.mean(0), 4.0, rtol=0.2))  # white noise of variance 4 is flat
    True
    """
    field, spacing = arrange(field, ndim, "field", spacing, ensemble=False)
    array = to_fields(field, "field")
    check_grid(array, ndim, 0, "field", "shape (..., N1 .. Nd)")
    if detrend is not None:
        check_choice(detrend, ("constant", "linear"), "detrend")
    check_choice(check, ("now", "deferred"), "check")
    grid = lattice(tuple(array.shape[-ndim:]))
    lead = tuple(array.shape[: array.ndim - ndim])
    keep = grid.kept_shells(corners)
    fields = array.reshape(-1, *grid.shape)
    trend = None if detrend is None else Trend.of(detrend, grid.shape)
    taper = None if window is None else _taper(window, grid.shape)
    kind = same_kind(field)
    sums = sums_for(array, grid)
    confirm = _nothing
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by name
        if check == "deferred":
            power, confirm = sums.shell_power_unchecked(fields, keep, trend, taper, lead)
        else:
            power = sums.shell_power(fields, keep, trend, taper, lead)
    power = kind(power.reshape(*lead, keep))

    def axis() -> tuple[Any, Any]:
        return kind(grid.shell_k[:keep] / spacing), kind(grid.shell_modes[:keep])

    if on_device(array):
        return _OnDevice(power, axis, confirm)
    k, counts = axis()
    return RadialSpectrum(k=k, power=power, counts=counts)


def _nothing() -> None:
    """Nothing is left to be checked."""


def structure_factor(
    field: Any,
    *,
    ndim: int = 2,
    center: str = "ensemble",
    spacing: float | None = None,
    corners: bool = False,
    blocks: int = DEFAULT_BLOCKS,
) -> StructureFactor:
    r"""Structure factor of an ensemble, :math:`S(k) = \langle|\hat\phi - \langle\hat\phi\rangle|^2\rangle / N`.

    Parameters
    ----------
    field : array or tensor, shape (samples, ..., N1, .., Nd)
        Axis 0 is the ensemble; axes between it and the lattice (channels) give a structure factor each. Of an
        `xarray.DataArray` with names "sample" is the ensemble, wherever it is. Dtypes and devices as in
        `power_spectrum`; only sums over samples leave a device.
    ndim : int
        As in `power_spectrum`.
    center : "ensemble", "sample" or "none"
        Subtract the mean field over samples (unbiased: divided by n - 1), each sample's own mean (then S(0) = 0 and no
        length can use it), or nothing (S(0) of a constant c is N c^2).
    spacing, corners
        As in `power_spectrum`.
    blocks : int
        Groups of samples (sample j in group j mod blocks) kept apart for the jackknife of `correlation_length`.

    Returns
    -------
    StructureFactor
        ``S`` (..., n_shells) with the standard error of the mean over samples: NaN where there are too few to tell, too
        small where they are few, since all share the mean that is taken out (of 10, two errors hold 88 %). ``k`` in
        rad per unit length. With ``corners=True``, sum(S * counts) = N times the variance. ``modes`` holds the averages
        that lengths are fitted to.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As in `power_spectrum`; also ValueError for fewer than two samples with ``center="ensemble"``.

    Notes
    -----
    Source: arXiv:2603.20092; normalisation as in the theory of fluctuations, white noise of variance v gives S = v.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> noise = np.random.default_rng(0).normal(size=(500, 16, 16)) + 7.0
    >>> s = fc.structure_factor(noise)
    >>> bool(abs(s.S[0] - 1.0) < 5 * s.stderr[0])  # the mean of 7 is no fluctuation
    True
    """
    field, spacing = arrange(field, ndim, "field", spacing)
    array = to_fields(field, "field")
    check_grid(array, ndim, 1, "field", "shape (samples, ..., N1 .. Nd)")
    grid = lattice(tuple(array.shape[-ndim:]))
    n, keep = len(array), grid.kept_shells(corners)
    resolved, kind = resolution(field, array), same_kind(field)
    check_center(center, n)
    used = blocks_in_use(blocks, n)

    def axis() -> tuple[Any, Any]:
        return kind(grid.shell_k[:keep] / spacing), kind(grid.shell_modes[:keep])

    found = sums_for(array, grid).averages(array, center, used, keep)
    if found is not None:
        rounding = rounding_of_squares(found.square, resolved)
        if center == "none" or not is_little(found.variance, rounding, resolved, n, found.computed):

            def at_rest() -> ModeAverages:
                power, first = found.sums()
                counts = np.bincount(np.arange(n) % used, minlength=used)
                return ModeAverages(grid, spacing, center, counts, power / grid.orbit_modes, first, rounding)

            return _FactorOnDevice(found.means, n, axis, at_rest)
    modes, shell_squares = mode_averages(array, grid, spacing, center, blocks, resolved=resolved)
    power = grid.to_shells(modes.mean(modes.power * grid.orbit_modes))[:, :keep]
    S = power / grid.shell_modes[:keep]
    raw = grid.to_shells(modes.power.sum(axis=0) * grid.orbit_modes)[:, :keep] / grid.shell_modes[:keep] / n

    def again(unit: float) -> Floats:
        options: dict[str, Any] = {"ndim": ndim, "center": center, "corners": corners, "blocks": blocks}
        return np.asarray(to_host(structure_factor(array / unit, **options).stderr).reshape(S.shape))

    stderr = error_over_samples(shell_squares[..., :keep], raw, n, center, again)
    lead = tuple(array.shape[1 : array.ndim - ndim])
    k, shell_modes = axis()
    return StructureFactor(
        k=k,
        S=kind(S.reshape(*lead, keep)),
        stderr=kind(stderr.reshape(*lead, keep)),
        counts=shell_modes,
        n_samples=n,
        modes=modes,
    )


def autocorrelation(
    field: Any,
    *,
    ndim: int = 2,
    center: str = "ensemble",
    periodic: bool = True,
    spacing: float | None = None,
    normalize: bool = False,
) -> RadialCorrelation:
    r"""Radially averaged autocorrelation :math:`C(r) = \langle\phi(x)\phi(x+r)\rangle`.

    Parameters
    ----------
    field, ndim, center
        As in `structure_factor`.
    periodic : bool
        True: all N pairs at every lag, around the boundary. False: only pairs inside the field, each with the same
        weight (unbiased; by zero padding).
    spacing : float, optional
        As in `structure_factor`.
    normalize : bool
        Divide by C(0); ``stderr`` is divided likewise, without an error of C(0) itself.

    Returns
    -------
    RadialCorrelation
        ``C`` (..., n_r) averaged over lags whose length rounds to the same number of sites, up to half the smallest
        side; ``r`` is the mean length; ``counts`` the lattice vectors in the shell; ``stderr`` over samples.

    Raises
    ------
    TypeError, ValueError, OverflowError
        As in `structure_factor`.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> wave = np.cos(2 * np.pi * np.arange(64) / 16)  # one sample of a plane wave
    >>> c = fc.autocorrelation(wave[None], ndim=1, center="none")
    >>> bool(np.allclose(c.C, 0.5 * np.cos(2 * np.pi * c.r / 16)))
    True
    """
    field, spacing = arrange(field, ndim, "field", spacing)
    array = to_fields(field, "field")
    check_grid(array, ndim, 1, "field", "shape (samples, ..., N1 .. Nd)")
    grid = lattice(tuple(array.shape[-ndim:]))
    n = len(array)
    lead = tuple(array.shape[1 : array.ndim - ndim])
    unbiased = check_center(center, n)
    keep = grid.lags_inside
    if periodic:
        padded = grid
        pairs = grid.lag_pairs[:keep].astype(np.float64)
    else:
        padded, pairs = padding(grid)
    total, squares = lag_sums(array, grid, center, padded, pairs)
    resolved = resolution(field, array)
    rounding = rounding_power(array, len(total), center, resolved)
    shifted = about_first(array, total[:, 0] / n, rounding, resolved, center, ndim)
    if shifted is not None:
        total, squares = lag_sums(shifted, grid, center, padded, pairs)
    mean = total / n

    def again(unit: float) -> Floats:
        options: dict[str, Any] = {"ndim": ndim, "center": center, "periodic": periodic}
        return np.asarray(to_host(autocorrelation(array / unit, **options).stderr).reshape(mean.shape))

    C, stderr = mean * unbiased, error_over_samples(squares, mean, n, center, again)
    if normalize:  # what is no more than rounding has no shape
        whole = np.where(mean[:, :1] > rounding[:, None], C[:, :1], np.nan)
        C, stderr = C / whole, stderr / np.abs(whole)
    kind = same_kind(field)
    return RadialCorrelation(
        r=kind(padded.lag_r[:keep] * spacing),
        C=kind(C.reshape(*lead, keep)),
        stderr=kind(stderr.reshape(*lead, keep)),
        counts=kind(padded.lag_pairs[:keep]),
    )


def _taper(window: str | tuple[Any, ...], shape: tuple[int, ...]) -> Floats:
    taper = np.ones(shape)
    for axis, side in enumerate(shape):
        # sym=False: the periodic form, as for any spectrum.
        values = scipy.signal.get_window(window, side, fftbins=True)
        taper = taper * values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.asarray(taper / np.sqrt(np.mean(taper**2)))
