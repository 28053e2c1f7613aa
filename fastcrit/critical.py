"""The critical noise level from data: where the reverse drift loses its stability, and interior prominent extrema."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._arrays import check_choice, check_levels
from fastcrit._dataset import with_drift
from fastcrit._dispersion import drift_rate
from fastcrit._extrema import (
    FALSE_ALARMS,
    FEWEST_LEVELS,
    INSTABILITY,
    LEAST_PROMINENCE,
    NOT_RECORDED,
    WEAKENING,
    Curve,
    Signature,
    bootstrap_deviations,
    crossing,
    first_zero,
    locate,
    no_signature,
)
from fastcrit._json import strict_json
from fastcrit.errors import NoTransitionError

__all__ = [
    "CLOCKS",
    "GROWTHS",
    "INSTABILITY",
    "NOT_RECORDED",
    "SIGNATURES",
    "UNSTABLE_FROM_START",
    "WEAKENING",
    "CriticalPoint",
    "Signature",
    "critical_point",
    "gaussian_rates",
    "stored_critical_point",
]

Floats = NDArray[np.float64]

SIGNATURES = ("instability", "softening", "xi_eq", "growth", "growth_denoised", "susceptibility")
_OF_GAINS = ("instability", "softening", "xi_eq")
# Which length of the states, and of the denoised images, is taken for growth.
_GROWING = {"growth": "xi_efold", "growth_denoised": "xi_binarized_denoised"}
GROWTHS = tuple(_GROWING)
# Clocks of growth: the log of the noise level, or of the Ornstein-Uhlenbeck time t = log(1 + s^2).
CLOCKS = ("log s", "log t")
# The reason when there is nothing above the first recorded level to cross from.
UNSTABLE_FROM_START = "the drift is unstable at the highest recorded level"
# Levels over which the slope of xi is taken: a straight line through five levels in log s.
_SLOPE_LEVELS = FEWEST_LEVELS
# A length counts at a level when its standard error is below this fraction of it; a softening always does.
_WORST_RELATIVE_ERROR = 0.2
# Gains of networks in float32 are rounded to some 1e-6 of themselves; those of states that differ scatter by 1e-3.
_ROUNDING_OF_GAINS = 1e-5
# Rates of the drift are compared with that of noise alone, which is -1/2.
_RATE_OF_NOISE = 0.5


@dataclass(frozen=True, repr=False)
class CriticalPoint:
    """What `critical_point` found, one `Signature` each under ``signatures`` and by ``cp["name"]``."""

    signatures: dict[str, Signature]
    confidence: float

    def __getitem__(self, name: str) -> Signature:
        return self.signatures[check_choice(name, tuple(self.signatures), "signature")]

    @property
    def found(self) -> dict[str, Signature]:
        """The signatures that have a transition."""
        return {name: s for name, s in self.signatures.items() if s.found}

    @property
    def spread(self) -> float:
        """Largest over smallest of the levels found; NaN with fewer than two."""
        levels = [s.level for s in self.found.values()]
        return max(levels) / min(levels) if len(levels) > 1 else float("nan")

    def to_json(self) -> str:
        """The signatures as JSON, in which what has no value is null."""
        return strict_json({name: asdict(s) for name, s in self.signatures.items()})

    @classmethod
    def from_json(cls, text: str, confidence: float = 0.95) -> CriticalPoint:
        """What `to_json` has written, by an older version too."""
        known = {f.name: f for f in fields(Signature)}
        made = {}
        for name, found in json.loads(text).items():
            values: dict[str, Any] = {
                key: float("nan") if value is None and known[key].type == "float" else value
                for key, value in found.items() if key in known
            }  # fmt: skip
            unknown = dict.fromkeys(("level", "low", "high", "prominence", "noise"), float("nan"))
            made[name] = Signature(**{"name": name, **unknown, **values})
        return cls(made, confidence)

    def __str__(self) -> str:
        return "\n".join(f"{s.name:<16}{s.verdict}" for s in self.signatures.values())

    __repr__ = __str__


def stored_critical_point(ds: xr.Dataset) -> CriticalPoint | None:
    """What a study has found and written into its dataset; of an older version's found anew. None for other datasets.

    Examples
    --------
    >>> import xarray as xr
    >>> from fastcrit.critical import stored_critical_point
    >>> stored_critical_point(xr.Dataset()) is None
    True
    """
    if "critical_point" not in ds.attrs:
        return None
    found = CriticalPoint.from_json(ds.attrs["critical_point"])
    if "instability" in found.signatures or "drift_rate" not in ds:
        return found
    return critical_point(ds, seed=int(json.loads(ds.attrs.get("config", "{}")).get("seed", 0)))


def critical_point(
    ds: xr.Dataset,
    *,
    signature: str | None = None,
    clock: str = "log s",
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> CriticalPoint:
    r"""Find the critical noise level in a recorder's dataset.

    Six signatures: where the largest rate of the reverse drift crosses zero, coming from high noise (``instability``);
    the minimum of the softening :math:`|\lambda_k|` at the softest recorded shell (``softening``), the maximum of
    :math:`\xi_{eq}` (``xi_eq``), of :math:`d\xi/d(-\log s)` of the states (``growth``, from ``xi_efold``) and of their
    denoised images (``growth_denoised``, from ``xi_binarized_denoised``), and of the susceptibility
    (``susceptibility``). Each extremum counts only as an interior one of the mean curve in log s whose prominence, in
    standard errors, exceeds what the bootstrap makes of the monotone curve nearest to the mean. No such extremum is an
    answer. (In standard errors, because their size differs a hundredfold between the ends of a run.)

    A drift that never crosses zero may have an interior prominent maximum: then ``instability`` is of kind "weakening".
    A zero is no evidence of a transition by itself, since Gaussian data cross, too: where the level at which Gaussian
    data of the same spectrum would cross agrees within the errors, and the rate does not fall again below it, the level
    is given and there is no transition. Neither is there one in a linear denoiser, whose gain is the same in every
    state, whatever extremum it has.

    Parameters
    ----------
    ds : xarray.Dataset
        From `Recorder.dataset`. Channels are averaged. Signatures whose curves were not recorded are listed as such:
        the first three need the gains that `Recorder.update_gain` takes.
    signature : str, optional
        Look for this one only.
    clock : "log s" or "log t"
        Of growth: where its maximum lies depends on it. t = log(1 + s^2) is Ornstein-Uhlenbeck time,
        of the data as they are: ``data_std`` does not enter.
    confidence : float
        Of the intervals, which come from a block bootstrap over trajectories (linearised: jackknife blocks are drawn
        with replacement and act through their influence on the curve).
    n_bootstrap, seed : int
        Draws and their seed; the same seed gives the same result.

    Returns
    -------
    CriticalPoint

    Raises
    ------
    NoTransitionError
        ``signature`` was named and is not there.
    ValueError
        Fewer than 5 levels with samples, an unknown signature or clock, one that was asked for and not recorded.

    Notes
    -----
    Source: signatures of arXiv:2603.20092, the comparison with Gaussian data is ours; linearised bootstrap: Efron, The
    Jackknife, the Bootstrap and Other Resampling Plans (1982), ch. 6.

    Examples
    --------
    >>> import fastcrit as fc
    >>> null = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16)
    >>> rec = fc.Recorder(fc.schedules.log_levels(12, high=20, low=0.2), shape=(16, 16))
    >>> _ = null.sample(rec.levels, 64, recorder=rec)
    >>> fc.critical_point(rec.dataset()).found  # Gaussian data have no transition
    {}
    """
    names = SIGNATURES if signature is None else (check_choice(signature, SIGNATURES, "signature"),)
    check_choice(clock, CLOCKS, "clock")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    if n_bootstrap < 100:
        raise ValueError(f"n_bootstrap: expected at least 100, got {n_bootstrap}")
    if not isinstance(ds, xr.Dataset) or "level" not in ds.coords or "block" not in ds.dims:
        raise ValueError("ds: expected the dataset of a Recorder, with coordinates level and block")
    levels = check_levels(ds["level"].values, allow_zero_end=True)
    ds = with_drift(ds).transpose("block", "level", "shell", ..., missing_dims="ignore")
    log_s = np.log(levels[levels > 0])
    sampled = log_s.size
    if "n_samples" in ds.coords:
        sampled = int((ds["n_samples"].values[: log_s.size] > 0).sum())
    if sampled < _SLOPE_LEVELS:
        raise ValueError(f"ds: expected at least {_SLOPE_LEVELS} positive levels with samples, got {sampled}")
    whole = ds
    if "channel" in ds.dims:
        ds = ds.drop_dims("channel_in", errors="ignore").mean("channel", skipna=False)
    rng = np.random.default_rng(seed)
    blocks = ds.sizes["block"]
    counts = rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=n_bootstrap)
    draws = np.asarray(counts - 1.0, dtype=np.float64)

    found = {}
    for name in names:
        part, at = ds, log_s
        if name in _OF_GAINS and "n_gains" in ds.coords:
            # Gains cost more than states and are often taken at some of the levels.
            part = ds.isel(level=np.flatnonzero(ds["n_gains"].values[: log_s.size] > 0))
            at = np.log(part["level"].values)
        if name == "instability":
            found[name] = _instability(part, at, draws, confidence, _gaussian_zero(whole, at))
        elif name in _GROWING:
            found[name] = replace(locate(name, _growth(part, name, at, clock), at, draws, confidence), clock=clock)
        else:
            found[name] = locate(name, _CURVES[name](part, at), at, draws, confidence)
        if name in _OF_GAINS and found[name].found and _is_linear(part, found[name]):
            found[name] = replace(found[name], reason="linear response: the gain is the same in every state")
    if signature is not None and found[signature].reason == NOT_RECORDED:
        how = "gain_shells=..." if signature in _OF_GAINS else "update(.., denoised=D), which samplers do"
        raise ValueError(f"signature: the curve of {signature!r} was not recorded (it takes {how})")
    if signature is not None and not found[signature].found:
        raise NoTransitionError(f"{signature}: no transition ({found[signature].reason})")
    return CriticalPoint(found, confidence)


def _softening(ds: xr.Dataset, log_s: Floats) -> Curve | None:
    if "softening" not in ds or not log_s.size:
        return None
    values = ds["softening"].values[: log_s.size]
    # Noise of a gain counts for more the lower the level, so the softest is told by what is surely below.
    sure = values + LEAST_PROMINENCE * ds["softening_stderr"].values[: log_s.size]
    softest = int(np.argmin(np.where(np.isfinite(sure), sure, np.inf).min(axis=0)))
    replicates = -ds["softening_jackknife"].values[:, : log_s.size, softest]
    return Curve(-values[:, softest], replicates, _shell(ds, softest))


def _xi_eq(ds: xr.Dataset, log_s: Floats) -> Curve | None:
    if "xi_eq" not in ds or not log_s.size:
        return None
    return _measured(ds["xi_eq"].values, ds["xi_eq_stderr"].values, ds["xi_eq_jackknife"].values, log_s.size)


def _growth(ds: xr.Dataset, signature: str, log_s: Floats, clock: str) -> Curve | None:
    name = _GROWING[signature]
    if name not in ds:
        return None
    xi = _measured(ds[name].values, ds[f"{name}_stderr"].values, ds[f"{name}_jackknife"].values, log_s.size)
    # d log t/d log s of t = log(1 + s^2). (A slope over levels uneven in log t would lean to one side.)
    square = np.exp(2.0 * log_s)
    pace = 1.0 if clock == "log s" else 2.0 * square / ((1.0 + square) * np.log1p(square))
    return Curve(_slope(xi.values, -log_s) / pace, _slope(xi.replicates, -log_s) / pace)


def _susceptibility(ds: xr.Dataset, log_s: Floats) -> Curve | None:
    if "chi" not in ds:
        return None
    return Curve(ds["chi"].values[: log_s.size], ds["chi_jackknife"].values[:, : log_s.size])


_CURVES = {"softening": _softening, "xi_eq": _xi_eq, "susceptibility": _susceptibility}


def _is_linear(ds: xr.Dataset, found: Signature) -> bool:
    """Whether the gain at a level does not depend on the state, to rounding: a linear denoiser commits to nothing."""
    if "gain_on_trajectories_stderr" not in ds or "n_gains" not in ds.coords:
        return False
    at = int(np.argmin(np.abs(np.log(ds["level"].values) - np.log(found.level))))
    columns = slice(None) if found.shell is None else list(ds["shell"].values).index(found.shell)
    gain, error = (ds[f"gain_on_trajectories{end}"].values[at, columns] for end in ("", "_stderr"))
    spread = error * np.sqrt(float(ds["n_gains"].values[at]))
    return bool(np.all(spread <= _ROUNDING_OF_GAINS * np.abs(gain)))


def _shell(ds: xr.Dataset, column: int) -> int:
    return int(ds["shell"].values[column]) if "shell" in ds.coords else column


def _instability(
    ds: xr.Dataset, log_s: Floats, draws: Floats, confidence: float, gaussian: Callable[[float], float] | None
) -> Signature:
    """The zero of the largest drift rate that comes first from high noise, or where the rate weakens."""
    name = "instability"
    beside: dict[str, Any] = {}
    if gaussian:
        z = float(scipy.special.ndtri(0.5 + 0.5 * confidence))
        beside = {"gaussian": gaussian(0.0), "gaussian_low": gaussian(-z), "gaussian_high": gaussian(z)}
    if "drift_rate" not in ds or not log_s.size:
        return no_signature(name, NOT_RECORDED)
    rates, errors = ds["drift_rate"].values[: log_s.size], ds["drift_rate_stderr"].values[: log_s.size]
    replicates = ds["drift_rate_jackknife"].values[:, : log_s.size]
    crossing: tuple[float, int, Signature] | None = None
    for column in range(rates.shape[1]):
        curve = Curve(rates[:, column], replicates[..., column], _shell(ds, column))
        zero = first_zero(name, curve, errors[:, column], log_s, draws, confidence, looks=rates.shape[1])
        if zero is not None and (crossing is None or zero.level > crossing[0]):
            crossing = zero.level, column, zero
    if crossing is not None:
        found = replace(crossing[2], **beside)
        if np.isinf(found.level):
            return replace(no_signature(name, UNSTABLE_FROM_START), **beside)
        # Gaussian data pass for others once in FALSE_ALARMS tries; the spectrum's error is from so many blocks. Their
        # rate never falls again, so that one which does is another's.
        z = float(scipy.special.stdtrit(ds.sizes["block"] - 1, 1.0 - 0.5 * FALSE_ALARMS))
        alike = gaussian is None or (gaussian(z) >= found.low and gaussian(-z) <= found.high)
        column = crossing[1]
        curve = Curve(rates[:, column], replicates[..., column])
        if alike and not locate(name, curve, log_s, draws, confidence, scale=_RATE_OF_NOISE).found:
            about = "Gaussian data of this spectrum cross there, too, and the rate does not fall again"
            return replace(
                found, reason=about if gaussian else "the spectrum is not known, and Gaussian data cross, too"
            )
        return found
    # As in _softening: told by what is surely above.
    sure = np.where(np.isfinite(errors), rates - LEAST_PROMINENCE * errors, -np.inf)
    softest = int(np.argmax(sure.max(axis=0, initial=-np.inf)))
    curve = Curve(rates[:, softest], replicates[..., softest], _shell(ds, softest))
    weak = locate(name, curve, log_s, draws, confidence, scale=_RATE_OF_NOISE)
    if not weak.found:
        return replace(weak, **beside)
    at = int(np.argmin(np.where(np.isfinite(curve.values), np.abs(log_s - np.log(weak.level)), np.inf)))
    use = np.isfinite(curve.replicates[:, at])
    deviations = bootstrap_deviations(curve.values[[at]], curve.replicates[use][:, [at]], draws[:, use])
    values = curve.values[at] + deviations[:, 0]
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    depth: dict[str, Any] = {"depth": float(curve.values[at]), "depth_low": float(low), "depth_high": float(high)}
    return replace(weak, kind=WEAKENING, **depth, **beside)


def _gaussian_zero(ds: xr.Dataset, log_s: Floats) -> Callable[[float], float] | None:
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
    if "gaussian_bound" in ds:
        bound = ds["gaussian_bound"].transpose("level", "shell").values
    else:
        found = _last_spectrum(ds)
        bound = np.full((len(s), ds.sizes["shell"]), np.nan)
        if found is not None:
            known = min(len(found[0]), ds.sizes["shell"])
            power = np.maximum(found[0][:known] - found[2], 0.0)
            bound[:, :known] = power / (power + s**2)
    return xr.DataArray(drift_rate(bound, s, float(ds.attrs["data_std"])), dims=("level", "shell"), attrs=about)


def _last_spectrum(ds: xr.Dataset) -> tuple[Floats, Floats, float] | None:
    """Power of the last states by shell, its error, and the noise in it; of channels that of the largest direction."""
    s = ds["level"].values
    counted = ds["n_samples"].values if "n_samples" in ds.coords else np.ones(len(s))
    ends_at = np.flatnonzero((s > 0) & (counted > 0))
    if not ends_at.size:
        return None
    last, noise = int(ends_at[-1]), float(s[ends_at[-1]]) ** 2
    if "gain_matrix" in ds and "cross_spectrum" in ds:
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
    if "S" in ds and "shell" in ds.coords:
        # Gains that are numbers are of channels apart, as the rest is: averaged over them.
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


def _measured(values: Floats, errors: Floats, replicates: Floats, n: int) -> Curve:
    """The levels at which a length is known to better than _WORST_RELATIVE_ERROR; others become NaN."""
    known = np.isfinite(values[:n]) & (errors[:n] <= _WORST_RELATIVE_ERROR * np.abs(values[:n]))
    return Curve(np.where(known, values[:n], np.nan), np.where(known, replicates[:, :n], np.nan))


def _slope(xi: Floats, x: Floats) -> Floats:
    """Least-squares slope over _SLOPE_LEVELS neighbouring levels; NaN where a neighbour is missing."""
    out = np.full(xi.shape, np.nan)
    half = _SLOPE_LEVELS // 2
    for i in range(half, x.size - half):
        window = slice(i - half, i + half + 1)
        dx = x[window] - x[window].mean()
        out[..., i] = xi[..., window] @ dx / (dx @ dx)
    return out
