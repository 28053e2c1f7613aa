"""The critical noise level from data: four signatures, each an interior and prominent extremum, or none."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._arrays import check_choice, check_levels
from fastcrit._json import strict_json
from fastcrit.errors import NoTransitionError

Floats = NDArray[np.float64]

SIGNATURES = ("softening", "xi_eq", "growth", "susceptibility")
_OF_GAINS = ("softening", "xi_eq")
# The reason when the dataset lacks a signature's curve: missing data, which are no answer about a transition.
NOT_RECORDED = "not recorded"

# Levels over which the slope of xi is taken: a straight line through five levels in log s.
_SLOPE_LEVELS = 5
# A length counts at a level when its standard error is below this fraction of it; a softening always does.
_WORST_RELATIVE_ERROR = 0.2
# Noise on a monotone curve passes for an extremum once in this many tries. Four signatures are looked at, so a study
# without a transition reports one in about one case of 250.
_FALSE_ALARMS = 1e-3
# Whatever the noise, an extremum must stand out by three standard errors, and by a twentieth of its own value: lengths
# fitted to spectra of another form drift by a few per cent as the noise falls, without a transition.
_LEAST_PROMINENCE = 3.0
_LEAST_RELATIVE_PROMINENCE = 0.05
# Exact gains are known to 1e-16, their softening to 1e-16 data variances over s^2: 1e-9 covers every level of use.
_ROUNDING = 1e-9
# Bootstrap curves compared pair of levels by pair of levels at a time: 100 x 64 x 64 doubles are 3 MB.
_CURVES_AT_A_TIME = 100


@dataclass(frozen=True)
class Signature:
    """One signature: the noise level of its extremum with a bootstrap interval, or why there is none.

    Attributes
    ----------
    level, low, high : float
        Noise level of the extremum and the ends of its confidence interval; NaN when there is no transition.
    prominence, noise : float
        How far the extremum stands out on both sides, in standard errors of the difference, and what noise makes of a
        curve without one.
    reason : str
        Empty when there is a transition.
    """

    name: str
    level: float
    low: float
    high: float
    prominence: float
    noise: float
    reason: str = ""

    @property
    def found(self) -> bool:
        """Whether there is a transition."""
        return not self.reason

    @property
    def verdict(self) -> str:
        """The level with its interval, "no transition" with the reason, or that the data to tell are missing."""
        if self.found:
            return f"{self.level:8.3f}  [{self.low:.3f}, {self.high:.3f}]"
        return self.reason if self.reason == NOT_RECORDED else f"no transition ({self.reason})"


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

    def __str__(self) -> str:
        return "\n".join(f"{s.name:<15}{s.verdict}" for s in self.signatures.values())

    __repr__ = __str__


def critical_point(
    ds: xr.Dataset,
    *,
    signature: str | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> CriticalPoint:
    r"""Find the critical noise level in a recorder's dataset.

    Four signatures: the minimum of the softening :math:`|\lambda_k|` at the softest recorded shell (``softening``), the
    maximum of :math:`\xi_{eq}` (``xi_eq``), of :math:`d\xi/d(-\log s)` (``growth``, from ``xi_efold``) and
    of the susceptibility (``susceptibility``). Each counts only as an interior extremum of the mean curve in log s
    whose prominence, in standard errors, exceeds what the bootstrap makes of the monotone curve nearest to the mean.
    No such extremum is an answer. (In standard errors, because their size differs a hundredfold between the ends of a
    run.)

    Parameters
    ----------
    ds : xarray.Dataset
        From `Recorder.dataset`. Channels are averaged. Signatures whose curves were not recorded are listed as such:
        ``softening`` and ``xi_eq`` need the gains that `Recorder.update_gain` takes.
    signature : str, optional
        Look for this one only.
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
        Fewer than 5 levels with samples, an unknown signature, one that was asked for and not recorded.

    Notes
    -----
    Source: signatures of arXiv:2603.20092; linearised bootstrap: Efron, The Jackknife, the Bootstrap and Other
    Resampling Plans (1982), ch. 6.

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
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    if n_bootstrap < 100:
        raise ValueError(f"n_bootstrap: expected at least 100, got {n_bootstrap}")
    if not isinstance(ds, xr.Dataset) or "level" not in ds.coords or "block" not in ds.dims:
        raise ValueError("ds: expected the dataset of a Recorder, with coordinates level and block")
    levels = check_levels(ds["level"].values, allow_zero_end=True)
    ds = ds.transpose("block", "level", "shell", ..., missing_dims="ignore")
    log_s = np.log(levels[levels > 0])
    sampled = log_s.size
    if "n_samples" in ds.coords:
        sampled = int((ds["n_samples"].values[: log_s.size] > 0).sum())
    if sampled < _SLOPE_LEVELS:
        raise ValueError(f"ds: expected at least {_SLOPE_LEVELS} positive levels with samples, got {sampled}")
    if "channel" in ds.dims:
        ds = ds.mean("channel", skipna=False)
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
        found[name] = _locate(name, _CURVES[name](part, at), at, draws, confidence)
    if signature is not None and found[signature].reason == NOT_RECORDED:
        raise ValueError(f"signature: the curve of {signature!r} was not recorded (gains are, with gain_shells=...)")
    if signature is not None and not found[signature].found:
        raise NoTransitionError(f"{signature}: no transition ({found[signature].reason})")
    return CriticalPoint(found, confidence)


@dataclass(frozen=True)
class _Curve:
    """A curve whose maximum is the signature, and the same without each block; NaN where it has no value."""

    values: Floats  # (levels,)
    replicates: Floats  # (blocks, levels)


def _softening(ds: xr.Dataset, log_s: Floats) -> _Curve | None:
    if "softening" not in ds or not log_s.size:
        return None
    values = ds["softening"].values[: log_s.size]
    softest = int(np.argmin(np.nanmin(values, axis=0)))
    return _Curve(-values[:, softest], -ds["softening_jackknife"].values[:, : log_s.size, softest])


def _xi_eq(ds: xr.Dataset, log_s: Floats) -> _Curve | None:
    if "xi_eq" not in ds or not log_s.size:
        return None
    return _measured(ds["xi_eq"].values, ds["xi_eq_stderr"].values, ds["xi_eq_jackknife"].values, log_s.size)


def _growth(ds: xr.Dataset, log_s: Floats) -> _Curve | None:
    name = "xi_efold"
    if name not in ds:
        return None
    xi = _measured(ds[name].values, ds[f"{name}_stderr"].values, ds[f"{name}_jackknife"].values, log_s.size)
    return _Curve(_slope(xi.values, -log_s), _slope(xi.replicates, -log_s))


def _susceptibility(ds: xr.Dataset, log_s: Floats) -> _Curve | None:
    if "chi" not in ds:
        return None
    return _Curve(ds["chi"].values[: log_s.size], ds["chi_jackknife"].values[:, : log_s.size])


_CURVES = {"softening": _softening, "xi_eq": _xi_eq, "growth": _growth, "susceptibility": _susceptibility}


def _measured(values: Floats, errors: Floats, replicates: Floats, n: int) -> _Curve:
    """The levels at which a length is known to better than _WORST_RELATIVE_ERROR; others become NaN."""
    known = np.isfinite(values[:n]) & (errors[:n] <= _WORST_RELATIVE_ERROR * np.abs(values[:n]))
    return _Curve(np.where(known, values[:n], np.nan), np.where(known, replicates[:, :n], np.nan))


def _slope(xi: Floats, x: Floats) -> Floats:
    """Least-squares slope over _SLOPE_LEVELS neighbouring levels; NaN where a neighbour is missing."""
    out = np.full(xi.shape, np.nan)
    half = _SLOPE_LEVELS // 2
    for i in range(half, x.size - half):
        window = slice(i - half, i + half + 1)
        dx = x[window] - x[window].mean()
        out[..., i] = xi[..., window] @ dx / (dx @ dx)
    return out


def _locate(name: str, curve: _Curve | None, log_s: Floats, draws: Floats, confidence: float) -> Signature:
    def none(reason: str, prominence: float = np.nan, noise: float = np.nan) -> Signature:
        return Signature(name, np.nan, np.nan, np.nan, prominence, noise, reason)

    if curve is None:
        return none(NOT_RECORDED)
    use = _longest_run(np.isfinite(curve.values))
    if use.size < _SLOPE_LEVELS:
        return none(f"the curve is measured at {use.size} neighbouring levels, too few for an extremum")
    blocks = np.isfinite(curve.replicates[:, use]).all(axis=1)
    if blocks.sum() < 8:
        return none(f"{int(blocks.sum())} blocks of trajectories with a value at these levels, too few for an interval")
    x, mean = log_s[use], curve.values[use]
    replicates = curve.replicates[blocks][:, use]
    deviations = _bootstrap_deviations(mean, replicates, draws[:, blocks])
    scatter = _scatter_of_differences(deviations, mean)
    where, prominence = (float(v[0]) for v in _extrema(x, mean[None], scatter))
    if np.isnan(where):
        return none("no interior extremum", 0.0)
    monotone = _nearest_monotone(mean, deviations)
    normal = float(np.quantile(_extrema(x, monotone + deviations, scatter)[1], 1.0 - _FALSE_ALARMS))
    # The scatter is known from B blocks only, so what is normal in the bootstrap is Student's t in the data.
    noise = float(scipy.special.stdtrit(blocks.sum() - 1, scipy.special.ndtr(normal)))
    if not prominence > max(noise, _LEAST_PROMINENCE):
        return none("prominence within noise", prominence, noise)
    height = float(_extrema(x, mean[None], np.ones_like(scatter))[1][0])
    share = height / max(abs(float(np.interp(where, x[::-1], mean[::-1]))), np.finfo(float).tiny)
    if share < _LEAST_RELATIVE_PROMINENCE:
        return none(f"the extremum stands out by {share:.1%} only", prominence, noise)
    locations, _ = _extrema(x, mean + deviations, scatter)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.nanpercentile(locations, [tail, 100.0 - tail])
    # Between levels the place is that of a parabola's vertex, good to about a sixth of their distance at worst.
    distance = np.sort(np.abs(x - where))
    grid = (distance[0] + distance[1]) / 6.0
    begin, end = where - np.hypot(where - min(low, where), grid), where + np.hypot(max(high, where) - where, grid)
    level, low, high = (float(np.exp(v)) for v in (where, begin, end))
    return Signature(name, level, low, high, prominence, noise)


def _bootstrap_deviations(mean: Floats, replicates: Floats, draws: Floats) -> Floats:
    """Curves of the bootstrap less their mean: each drawn block counts with its jackknife influence."""
    B = len(replicates)
    influence = (B - 1) * (mean - replicates)
    influence = influence - influence.mean(axis=0)
    # sqrt(B/(B-1)): a bootstrap of B blocks underestimates the variance by (B-1)/B.
    return np.asarray((draws - draws.mean(axis=1, keepdims=True)) @ influence / B * np.sqrt(B / (B - 1)))


def _scatter_of_differences(deviations: Floats, mean: Floats) -> Floats:
    """Standard deviation of the bootstrap's curve[i] - curve[j], (levels, levels); positive off the diagonal."""
    covariance = np.atleast_2d(np.cov(deviations.T))
    variance = np.diag(covariance)
    square = variance[:, None] + variance[None, :] - 2.0 * covariance
    # A curve without any noise (an exact gain, say) differs from a constant by rounding only.
    rounding = _ROUNDING * np.abs(mean).max() + np.finfo(float).tiny
    return np.asarray(np.maximum(np.sqrt(np.maximum(square, 0.0)), rounding))


def _extrema(x: Floats, curves: Floats, scatter: Floats) -> tuple[Floats, Floats]:
    """Place and prominence of the most prominent interior maximum of every curve (rows); NaN and 0 where there is none.

    Candidates are the peaks of `scipy.signal.find_peaks`. The prominence of a peak is the smaller, over its two sides,
    of the largest drop to any level there, each drop in standard errors of that difference.
    """
    places = np.full(len(curves), np.nan)
    heights = np.zeros(len(curves))
    n = x.size
    left = np.tri(n, k=-1, dtype=bool)
    for begin in range(0, len(curves), _CURVES_AT_A_TIME):
        part = curves[begin : begin + _CURVES_AT_A_TIME]
        drop = (part[:, :, None] - part[:, None, :]) / scatter
        to_left = np.where(left, drop, 0.0).max(axis=2)
        to_right = np.where(left.T, drop, 0.0).max(axis=2)
        prominence = np.minimum(to_left, to_right)
        for row, curve in enumerate(part):
            peaks, _ = scipy.signal.find_peaks(curve)
            if peaks.size:
                p = int(peaks[np.argmax(prominence[row, peaks])])
                places[begin + row] = _vertex(x[p - 1 : p + 2], curve[p - 1 : p + 2])
                heights[begin + row] = prominence[row, p]
    return places, heights


def _vertex(x: Floats, y: Floats) -> float:
    """Maximum of the parabola through three points, the middle one the highest."""
    left, right = np.diff(y) / np.diff(x)
    curvature = (right - left) / (x[2] - x[0])
    vertex = 0.5 * (x[0] + x[1]) - left / (2.0 * curvature) if curvature != 0 else x[1]
    return float(np.clip(vertex, min(x[0], x[2]), max(x[0], x[2])))


def _nearest_monotone(mean: Floats, deviations: Floats) -> Floats:
    """The rising or falling curve that fits the mean best in standard errors."""
    spread = np.maximum(deviations.std(axis=0), 1e-12 * np.abs(mean).max() + np.finfo(float).tiny)
    fits = [scipy.optimize.isotonic_regression(mean, weights=spread**-2, increasing=up).x for up in (True, False)]
    return np.asarray(min(fits, key=lambda f: float((((mean - f) / spread) ** 2).sum())))


def _longest_run(good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    if edges.size == 0:
        return np.zeros(0, np.int64)
    begins, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - begins))
    return np.arange(begins[longest], ends[longest])
