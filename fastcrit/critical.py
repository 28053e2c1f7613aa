"""The critical noise level from data: where the reverse drift loses its stability, and interior prominent extrema."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_levels
from fastcrit._edge.plain import strict_json
from fastcrit._estimates.attributes import config_of
from fastcrit._estimates.channels import averaged, each_channel
from fastcrit._estimates.commitment import GAIN_SIGNATURES, no_commitment
from fastcrit._estimates.curves import GROWING, SLOPE_LEVELS, growth, shell_of, softening, susceptibility, xi_eq
from fastcrit._estimates.drift import with_drift
from fastcrit._estimates.extrema import (
    FALSE_ALARMS,
    INSTABILITY,
    LEAST_PROMINENCE,
    NOT_RECORDED,
    WEAKENING,
    Curve,
    Signature,
    bootstrap_deviations,
    first_zero,
    locate,
    no_signature,
)
from fastcrit._estimates.gaussian_level import gaussian_rates, gaussian_zero
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
GROWTHS = tuple(GROWING)
# Clocks of growth: the log of the noise level, or of the Ornstein-Uhlenbeck time t = log(1 + s^2).
CLOCKS = ("log s", "log t")
# The reason when there is nothing above the first recorded level to cross from.
UNSTABLE_FROM_START = "the drift is unstable at the highest recorded level"
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
        found = json.loads(text)
        return cls({name: Signature.from_dict({"name": name, **of}) for name, of in found.items()}, confidence)

    def __str__(self) -> str:
        return "\n".join(f"{s.name:<16}{s.verdict}" for s in self.signatures.values())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A table in notebooks."""
        rows = (f"<tr><th>{name}</th><td>{escape(s.verdict.strip())}</td></tr>" for name, s in self.signatures.items())
        return f"<table>{''.join(rows)}</table>"


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
    return critical_point(ds, seed=int(config_of(ds).get("seed", 0)))


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
    state, whatever extremum it has, nor where the gain exceeds what the posterior of any data with the samples'
    spectrum has (an untrained network).

    Parameters
    ----------
    ds : xarray.Dataset
        From `Recorder.dataset`. Of channels: gains are those of their softest collective mode; lengths and the
        susceptibility are averaged, and looked at one by one where the mean shows nothing. Signatures whose curves were
        not recorded are listed as such: the first three need the gains that `Recorder.update_gain` takes.
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
    if sampled < SLOPE_LEVELS:
        raise ValueError(f"ds: expected at least {SLOPE_LEVELS} positive levels with samples, got {sampled}")
    seen = [averaged(ds), *each_channel(ds)]
    rng = np.random.default_rng(seed)
    blocks = ds.sizes["block"]
    counts = rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=n_bootstrap)
    draws = np.asarray(counts - 1.0, dtype=np.float64)

    found = {}
    for name in names:
        part, at = ds, log_s
        if name in GAIN_SIGNATURES and "n_gains" in ds.coords:
            # Gains cost more than states and are often taken at some of the levels.
            part = ds.isel(level=np.flatnonzero(ds["n_gains"].values[: log_s.size] > 0))
            at = np.log(part["level"].values)
        if name == "instability":
            found[name] = _instability(part, at, draws, confidence, gaussian_zero(ds, at))
        elif name in _CURVES:
            found[name] = locate(name, _CURVES[name](part, at), at, draws, confidence)
        else:
            curves = [growth(one, name, at, clock) if name in GROWTHS else susceptibility(one, at) for one in seen]
            found[name] = _of_channels(name, curves, at, draws, confidence)
            if name in GROWTHS:
                found[name] = replace(found[name], clock=clock)
        if found[name].found:
            found[name] = replace(found[name], reason=no_commitment(ds, found[name]))
    if signature is not None and found[signature].reason == NOT_RECORDED:
        how = "gain_shells=..." if signature in GAIN_SIGNATURES else "update(.., denoised=D), which samplers do"
        raise ValueError(f"signature: the curve of {signature!r} was not recorded (it takes {how})")
    if signature is not None and not found[signature].found:
        raise NoTransitionError(f"{signature}: no transition ({found[signature].reason})")
    return CriticalPoint(found, confidence)


_CURVES = {"softening": softening, "xi_eq": xi_eq}


def _of_channels(name: str, curves: list[Curve | None], log_s: Floats, draws: Floats, confidence: float) -> Signature:
    """The extremum of the channels' mean, which comes first, or else of the channel in which it stands out most."""
    looks = len(curves)
    mean, *apart = (locate(name, curve, log_s, draws, confidence, looks) for curve in curves)
    if mean.found or not apart:
        return mean
    each = [replace(s, channel=c) for c, s in enumerate(apart)]
    of_channel = max(each, key=lambda s: (s.found, np.nan_to_num(s.prominence, nan=-1.0)))
    return of_channel if of_channel.found or np.isnan(mean.prominence) else mean


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
        curve = Curve(rates[:, column], replicates[..., column], shell_of(ds, column))
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
        curve = Curve(rates[:, column], replicates[..., column], scale=_RATE_OF_NOISE)
        if alike and not locate(name, curve, log_s, draws, confidence).found:
            about = "Gaussian data of this spectrum cross there, too, and the rate does not fall again"
            return replace(
                found, reason=about if gaussian else "the spectrum is not known, and Gaussian data cross, too"
            )
        return found
    # As in _softening: told by what is surely above.
    sure = np.where(np.isfinite(errors), rates - LEAST_PROMINENCE * errors, -np.inf)
    softest = int(np.argmax(sure.max(axis=0, initial=-np.inf)))
    curve = Curve(rates[:, softest], replicates[..., softest], shell_of(ds, softest), _RATE_OF_NOISE)
    weak = locate(name, curve, log_s, draws, confidence)
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
