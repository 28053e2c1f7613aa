"""Whether the gains behind an extremum or a zero are those of states that commit: not of a linear denoiser, say."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.channels import averaged
from fastcrit._estimates.extrema import Signature
from fastcrit._estimates.gaussian_level import highest_gains

# Signatures whose curves are of gains.
GAIN_SIGNATURES = ("instability", "softening", "xi_eq")
# A gain is a mean over the sites of a state: its spread over states, times the root of their number, is that of the
# response of a site. Where states commit it is 1 and more (patch models 1 to 5, trained networks 10 to 35); a denoiser
# whose response differs between sites and states by less than this share of it is linear.
_LEAST_SPREAD = 0.01
# Below this share the response is nearly linear, which is what random networks have.
_HARDLY = 0.1
# A gain that takes more power than the samples have, by this share and by so many standard errors, is above every
# posterior's. (Trained networks and patch models stay below the bound wherever they have an extremum.) Looked at in
# shells whose gain is within this share of the largest: k = 0 is a single mode, whose spectrum is known least.
_BEYOND, _SURELY, _AS_SOFT = 0.25, 4.0, 0.9


def no_commitment(ds: xr.Dataset, found: Signature) -> str:
    """Why an extremum or a zero is no sign of states that commit, as far as the recorded gains tell; empty if it is."""
    if "gain_on_trajectories_stderr" not in ds or "n_gains" not in ds.coords:
        return ""
    taken = np.flatnonzero(ds["n_gains"].values > 0)
    if not taken.size:
        return ""
    at = int(taken[np.argmin(np.abs(np.log(ds["level"].values[taken]) - np.log(found.level)))])
    gain, error = (ds[f"gain_on_trajectories{end}"].values[at] for end in ("", "_stderr"))
    columns = range(len(gain)) if found.shell is None else [list(ds["shell"].values).index(found.shell)]
    sites = float(np.prod(ds.attrs["lattice"])) * ds.sizes.get("channel", 1)
    spread = error * np.sqrt(float(ds["n_gains"].values[at]) * sites)
    if np.all((spread <= _LEAST_SPREAD * np.abs(gain))[list(columns)]):
        return "linear response: the gain is the same in every state"
    if found.name in GAIN_SIGNATURES:
        bound, bound_error = (of[at] for of in highest_gains(ds))
        soft = gain >= _AS_SOFT * np.nanmax(gain[list(columns)])
        lifted = (1 + _BEYOND) * bound / (1 + _BEYOND * bound)  # P/(P + s^2) of so much more power
        beyond = soft & (gain > lifted) & (gain - bound > _SURELY * np.hypot(error, bound_error))
        if np.any(beyond & (_changes(ds, at) | (spread <= _HARDLY * np.abs(gain)))):
            return "not the denoiser of its samples: the gain is above that of every posterior with their spectrum"
    return ""


def _changes(ds: xr.Dataset, at: int) -> NDArray[np.bool_]:
    """In which of the gains' shells the states at a level are no sum of noise and what they end with.

    A denoiser that is one leads y = x0 + s noise along: S - s^2 is the same at all levels.
    """
    one, s = averaged(ds[["S", "S_stderr"]]), ds["level"].values
    last = int(np.flatnonzero((s > 0) & (ds["n_samples"].values > 0))[-1])
    S, error = (one[name].transpose("level", "k").values[[at, last]] for name in ("S", "S_stderr"))
    power = np.diff(S - s[[at, last], None] ** 2, axis=0)[0]
    least = np.maximum(_BEYOND * np.abs(S[1] - s[last] ** 2), _SURELY * np.hypot(*error))
    out = np.zeros(ds.sizes["shell"], dtype=bool)
    shells = ds["shell"].values
    below = shells < ds.sizes["k"]
    out[below] = (np.abs(power) > least)[shells[below]]
    return out
