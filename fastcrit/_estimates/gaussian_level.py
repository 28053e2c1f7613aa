"""What Gaussian data of the same spectrum would do: gains at the bound, drift rates, the level at which they cross."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.dispersion import drift_rate
from fastcrit._estimates.extrema import crossing

Floats = NDArray[np.float64]


def gaussian_zero(ds: xr.Dataset, log_s: Floats) -> Callable[[float], float] | None:
    """Level at which the drift of Gaussian data of the same spectrum crosses zero, for a spectrum z errors higher.

    From the data's own bound where a study has it, else from the spectrum that the trajectories end with; 0 where it
    does not cross. None where the spectrum is not known.
    """
    if "data_std" not in ds.attrs or "drift_rate" not in ds:
        return None
    std, s = float(ds.attrs["data_std"]), ds["level"].values
    if "gaussian_bound" in ds:
        bound, error = (ds[f"gaussian_bound{end}"].transpose("level", "shell").values for end in ("", "_stderr"))
        # At the levels of the gains, so that both are interpolated alike.
        use = np.isclose(s[:, None], np.exp(log_s), rtol=1e-12, atol=0).any(axis=1)
        return lambda z: _zero_of_exact(np.log(s[use]), drift_rate(bound + z * error, s[:, None], std)[use])
    found = _last_spectrum(ds)
    if found is None or not (np.isfinite(found[1]) & (found[0] > 0)).any():
        return None
    S, error, noise = found
    known = np.isfinite(S) & np.isfinite(error) & (S > 0)
    S, error = S[known], error[known]
    # A power is a mean of squares, and its error in proportion to it. The largest of all shells after the shift: k = 0
    # has few modes, and may lie below others by chance.
    return lambda z: float(np.sqrt(max(0.0, (S * np.exp(z * error / S)).max() - noise - 2.0 * std**2)))


def gaussian_rates(ds: xr.Dataset) -> xr.DataArray:
    """Drift rates that Gaussian data of the same spectrum would have at a dataset's levels and shells.

    Of the data's own bound where a study has it, else of the spectrum that the trajectories end with; NaN where that is
    not known.

    Examples
    --------
    >>> import fastcrit as fc
    >>> from fastcrit.critical import gaussian_rates
    >>> rec = fc.Recorder([8.0, 2.0, 0.05], shape=(16, 16), gain_shells=range(3))
    >>> _ = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16).sample(rec.levels, 512, recorder=rec)
    >>> ds = rec.dataset()
    >>> bool(abs(gaussian_rates(ds) - ds.drift_rate).max() < 0.1)
    True
    """
    s = ds["level"].values[:, None]
    about = {"long_name": "drift rate of Gaussian data of this spectrum", "units": "1/time"}
    rates = drift_rate(highest_gains(ds)[0], s, float(ds.attrs["data_std"]))
    return xr.DataArray(rates, dims=("level", "shell"), attrs=about)


def highest_gains(ds: xr.Dataset) -> tuple[Floats, Floats]:
    """Gains of Gaussian data of the same spectrum, which no posterior exceeds, and their errors: (level, shell) each.

    Of the data's own bound where a study has it, else of the spectrum that the trajectories end with; NaN where that is
    not known.
    """
    if "gaussian_bound" in ds:
        bound, error = (ds[f"gaussian_bound{end}"].transpose("level", "shell").values for end in ("", "_stderr"))
        return bound, error
    s = ds["level"].values[:, None]
    bound, error = np.full((2, len(s), ds.sizes["shell"]), np.nan)
    found = _last_spectrum(ds)
    if found is not None:
        S, S_error, noise = found
        power = np.maximum(S - noise, 0.0)
        bound[:, : len(S)] = power / (power + s**2)
        error[:, : len(S)] = S_error * s**2 / (power + s**2) ** 2
    return bound, error


def _last_spectrum(ds: xr.Dataset) -> tuple[Floats, Floats, float] | None:
    """Power of the last states in the shells of the gains, its error, and the noise in it.

    The lowest shells only, where others have none. Of channels that of the largest direction, as gains are.
    """
    s = ds["level"].values
    counted = ds["n_samples"].values if "n_samples" in ds.coords else np.ones(len(s))
    ends_at = np.flatnonzero((s > 0) & (counted > 0))
    if not ends_at.size or "shell" not in ds.coords:
        return None
    last, noise = int(ends_at[-1]), float(s[ends_at[-1]]) ** 2
    if "cross_spectrum" in ds:
        dims = ("level", "cross_shell", "channel", "channel_in")
        matrix, error = (ds[f"cross_spectrum{end}"].transpose(*dims).values[last] for end in ("", "_stderr"))
        if not np.isfinite(matrix).all():
            return None
        values, vectors = np.linalg.eigh(matrix)
        at = [int(k) for k in ds["shell"].values if k < len(values)]
        values, vectors, error = values[at], vectors[at], error[at]
        share = np.abs(vectors[..., -1])
        # As if the errors of all entries went together, which they do where the channels do; elsewhere they are less.
        return values[:, -1], np.einsum("sa,sab,sb->s", share, error, share), noise
    if "S" in ds:
        # A recorder of an older version, whose gains are of channels apart: averaged over them, as those are.
        one = ds[["S", "S_stderr"]].mean("channel") if "channel" in ds["S"].dims else ds
        shells = ds["shell"].values[ds["shell"].values < ds.sizes["k"]]
        S, error = (one[name].transpose("level", "k").values[last][shells] for name in ("S", "S_stderr"))
        return S, error, noise
    return None


def _zero_of_exact(x: Floats, rates: Floats) -> float:
    """Level of the first zero of the largest of exact rates (levels, shells); 0 where there is none."""
    largest = rates.max(axis=1)
    above = np.flatnonzero(largest > 0)
    if not above.size:
        return 0.0
    return float(np.exp(crossing(x, largest, above[0]) if above[0] else x[0]))
