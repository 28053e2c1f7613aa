"""One curve over noise levels: its interior prominent maximum, or its first significant zero, with an interval.

The curve comes with its leave-one-out replicates; intervals are a linearised block bootstrap, the same draws for all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The reason when the dataset lacks a signature's curve: missing data, which are no answer about a transition.
NOT_RECORDED = "not recorded"
# The reason when an extremum is no more than noise makes of a curve without one.
WITHIN_NOISE = "prominence within noise"
# What the instability signature may be: a zero of the drift, or where it comes nearest to one.
INSTABILITY, WEAKENING = "instability", "weakening"
# Fewer levels than these show no extremum, and fewer blocks of trajectories no interval.
FEWEST_LEVELS = 5
_FEWEST_BLOCKS = 8
# Noise on a monotone curve passes for an extremum once in this many tries. Six signatures are looked at, so a study
# without a transition reports one in about one case of 170.
FALSE_ALARMS = 1e-3
# Whatever the noise, an extremum must stand out by three standard errors, and by a twentieth of its own value: lengths
# fitted to spectra of another form drift by a few per cent as the noise falls, without a transition.
LEAST_PROMINENCE = 3.0
_LEAST_RELATIVE_PROMINENCE = 0.05
# A zero between levels is a cubic's through four of them. Its error is far smaller than its distance to the line's
# zero, of which this share widens the interval. (The line's is a bias of 0.4 % where levels are 40 % apart.)
_BEND = 0.5
# Exact gains are known to 1e-16, their softening to 1e-16 data variances over s^2: 1e-9 covers every level of use.
_ROUNDING = 1e-9
# Bootstrap curves compared pair of levels by pair of levels at a time: 100 x 64 x 64 doubles are 3 MB.
_CURVES_AT_A_TIME = 100


@dataclass(frozen=True)
class Signature:
    """One signature: the noise level of its extremum with a bootstrap interval, or why there is none.

    Attributes
    ----------
    name : str
    level, low, high : float
        Noise level of the extremum, or of the drift's zero, and the ends of its confidence interval; NaN when there is
        none.
    prominence, noise : float
        How far the extremum stands out on both sides, in standard errors of the difference, and what noise makes of a
        curve without one. Of a zero: how far above 0 the rate rises behind it, likewise.
    reason : str
        Empty when there is a transition.
    kind : str
        Of ``instability``: "instability" (the largest drift rate crosses zero), "weakening" (it only comes near), or
        empty.
    shell : int or None
        Of ``instability`` and ``softening``: the shell whose curve it is.
    channel : int or None
        Of ``growth``, ``growth_denoised`` and ``susceptibility``: the only channel in which it shows, where their mean
        does not show it.
    depth, depth_low, depth_high : float
        Of a weakening: the largest drift rate, and its interval.
    gaussian, gaussian_low, gaussian_high : float
        Of ``instability``: the level at which Gaussian data of the same spectrum would cross zero, and its interval; 0
        where they would not, NaN where the spectrum is not known.
    clock : str
        Of growth: "log s" or "log t".
    """

    name: str
    level: float
    low: float
    high: float
    prominence: float
    noise: float
    reason: str = ""
    kind: str = ""
    shell: int | None = None
    depth: float = float("nan")
    depth_low: float = float("nan")
    depth_high: float = float("nan")
    gaussian: float = float("nan")
    gaussian_low: float = float("nan")
    gaussian_high: float = float("nan")
    clock: str = ""
    channel: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Signature:
        """What `dataclasses.asdict` gives, as JSON keeps it: null for NaN. An older version's has fewer fields."""
        known = {f.name: f.type for f in fields(cls)}
        given: dict[str, Any] = {
            name: float("nan") if value is None and known[name] == "float" else value
            for name, value in values.items() if name in known
        }  # fmt: skip
        unknown: dict[str, Any] = dict.fromkeys(("level", "low", "high", "prominence", "noise"), float("nan"))
        return cls(**{**unknown, **given})

    @property
    def found(self) -> bool:
        """Whether there is a transition. A zero of the drift that Gaussian data would have, too, is none."""
        return not self.reason

    @property
    def recorded(self) -> bool:
        """Whether there were data to tell."""
        return self.reason != NOT_RECORDED

    @property
    def interval(self) -> str:
        """The level with its interval."""
        return f"{self.level:8.3f}  [{self.low:.3f}, {self.high:.3f}]"

    @property
    def crossing(self) -> str:
        """Of a weakening: whether its largest rate is surely below 0."""
        if self.depth_high < 0:
            return "no instability"
        return "above 0, but no zero is told from noise" if self.depth_low > 0 else "an instability is not shown"

    @property
    def remark(self) -> str:
        """What there is to say of a level besides its interval; may be empty."""
        said = []
        if self.kind == WEAKENING:
            said.append(
                f"weakening, {self.crossing}: largest drift rate {self.depth:.3f} "
                f"[{self.depth_low:.3f}, {self.depth_high:.3f}]"
            )
        elif self.kind == INSTABILITY:
            said.append(f"instability of shell {self.shell}")
        if self.kind and self.gaussian > 0:
            low, high = self.gaussian_low, self.gaussian_high
            said.append(f"Gaussian data of this spectrum cross at {self.gaussian:.3f} [{low:.3f}, {high:.3f}]")
        elif self.kind and self.gaussian == 0:
            said.append("Gaussian data of this spectrum do not cross")
        if self.channel is not None:
            said.append(f"in channel {self.channel}")
        if self.clock:
            said.append(f"clock {self.clock}")
        return "; ".join(said)

    @property
    def verdict(self) -> str:
        """The level with its interval, "no transition" with the reason, or that the data to tell are missing."""
        if not self.recorded:
            return self.reason
        remark = f"  ({self.remark})" if self.remark else ""
        if self.found:
            return f"{self.interval}{remark}"
        level = f"; {self.interval.strip()}{remark}" if self.level > 0 else ""
        clock = f"; clock {self.clock}" if self.clock else ""
        return f"no transition ({self.reason}{clock}){level}"


@dataclass(frozen=True)
class Curve:
    """A curve whose maximum is the signature, and the same without each block; NaN where it has no value."""

    values: Floats  # (levels,)
    replicates: Floats  # (blocks, levels)
    shell: int | None = None
    scale: float | Floats = 0.0  # the least that its height is compared with, (levels,) or one


def no_signature(name: str, reason: str, prominence: float = np.nan, noise: float = np.nan) -> Signature:
    """No level, and why."""
    return Signature(name, np.nan, np.nan, np.nan, prominence, noise, reason)


def locate(
    name: str, curve: Curve | None, log_s: Floats, draws: Floats, confidence: float, looks: int = 1
) -> Signature:
    """The interior prominent maximum of a curve, one of so many ``looks`` that are taken for one answer."""

    def none(reason: str, prominence: float = np.nan, noise: float = np.nan) -> Signature:
        return no_signature(name, reason, prominence, noise)

    if curve is None:
        return none(NOT_RECORDED)
    use = _longest_run(np.isfinite(curve.values))
    if use.size < FEWEST_LEVELS:
        return none(
            f"the curve is measured at {use.size} neighbouring levels well enough, too few for an extremum: more "
            "samples or levels"
        )
    blocks = np.isfinite(curve.replicates[:, use]).all(axis=1)
    if blocks.sum() < _FEWEST_BLOCKS:
        return none(f"{int(blocks.sum())} blocks of trajectories with a value at these levels, too few for an interval")
    x, mean = log_s[use], curve.values[use]
    scale = np.broadcast_to(curve.scale, curve.values.shape)[use]
    replicates = curve.replicates[blocks][:, use]
    deviations = bootstrap_deviations(mean, replicates, draws[:, blocks])
    scatter = _scatter_of_differences(deviations, mean)
    where, prominence, share = (float(v[0]) for v in _extrema(x, mean[None], scatter, scale))
    if np.isnan(where):  # why none counts is told of the most prominent
        where, prominence, share = (float(v[0]) for v in _extrema(x, mean[None], scatter, scale, least=0.0))
    if np.isnan(where):
        return none("no interior extremum", 0.0)
    monotone = _nearest_monotone(mean, deviations)
    null = _extrema(x, monotone + deviations, scatter, scale, least=0.0)[1]
    normal = float(np.quantile(null, 1.0 - FALSE_ALARMS / looks))
    # The scatter is known from B blocks only, so what is normal in the bootstrap is Student's t in the data.
    noise = float(scipy.special.stdtrit(blocks.sum() - 1, scipy.special.ndtr(normal)))
    if not prominence > max(noise, LEAST_PROMINENCE):
        return none(WITHIN_NOISE, prominence, noise)
    if share < _LEAST_RELATIVE_PROMINENCE:
        return none(f"the extremum stands out by {share:.1%} only", prominence, noise)
    locations = _extrema(x, mean + deviations, scatter, scale)[0]
    tail = 50.0 * (1.0 - confidence)
    low, high = np.nanpercentile(locations, [tail, 100.0 - tail])
    # Between levels the place is that of a parabola's vertex, good to about a sixth of their distance at worst.
    distance = np.sort(np.abs(x - where))
    grid = (distance[0] + distance[1]) / 6.0
    begin, end = where - np.hypot(where - min(low, where), grid), where + np.hypot(max(high, where) - where, grid)
    level, low, high = (float(np.exp(v)) for v in (where, begin, end))
    return Signature(name, level, low, high, prominence, noise, shell=curve.shell)


def bootstrap_deviations(mean: Floats, replicates: Floats, draws: Floats) -> Floats:
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


def _extrema(
    x: Floats, curves: Floats, scatter: Floats, scale: Floats, least: float = _LEAST_RELATIVE_PROMINENCE
) -> tuple[Floats, Floats, Floats]:
    """Place, prominence and height of the most prominent interior maximum of every curve (rows); NaN, 0, 0 without one.

    Candidates are the peaks of `scipy.signal.find_peaks`. The prominence of a peak is the smaller, over its two sides,
    of the largest drop to any level there, each drop in standard errors of that difference; its height the same in
    units of its own value (of ``scale``, if that is more). Only peaks of the ``least`` height are candidates: where a
    curve is known to rounding, a wiggle of rounding may be the most prominent.
    """
    places = np.full(len(curves), np.nan)
    prominences, heights = np.zeros((2, len(curves)))
    n = x.size
    left = np.tri(n, k=-1, dtype=bool)
    for begin in range(0, len(curves), _CURVES_AT_A_TIME):
        part = curves[begin : begin + _CURVES_AT_A_TIME]
        drop = part[:, :, None] - part[:, None, :]
        prominence, height = (
            np.minimum(np.where(left, d, 0.0).max(axis=2), np.where(left.T, d, 0.0).max(axis=2))
            for d in (drop / scatter, drop)
        )
        height = height / np.maximum(np.maximum(np.abs(part), scale), np.finfo(float).tiny)
        for row, curve in enumerate(part):
            peaks, _ = scipy.signal.find_peaks(curve)
            peaks = peaks[height[row, peaks] >= least]
            if peaks.size:
                p = int(peaks[np.argmax(prominence[row, peaks])])
                places[begin + row] = _vertex(x[p - 1 : p + 2], curve[p - 1 : p + 2])
                prominences[begin + row], heights[begin + row] = prominence[row, p], height[row, p]
    return places, prominences, heights


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


def first_zero(
    name: str, curve: Curve, errors: Floats, log_s: Floats, draws: Floats, confidence: float, looks: int = 1
) -> Signature | None:
    """The first zero from high noise behind which the curve rises significantly above 0; None where there is none.

    A level of infinity where it is above 0 from the start. ``looks`` curves are looked at for one answer.
    """
    use = np.flatnonzero(np.isfinite(curve.values))
    blocks = np.isfinite(curve.replicates[:, use]).all(axis=1)
    if use.size < 2 or blocks.sum() < _FEWEST_BLOCKS:
        return None
    x, mean = log_s[use], curve.values[use]
    rounding = _ROUNDING * np.exp(-2.0 * x) + np.finfo(float).eps
    significance = mean / np.hypot(errors[use], rounding)
    # As for extrema: what passes once in FALSE_ALARMS tries, by Student's t of so many blocks.
    least = max(float(scipy.special.stdtrit(blocks.sum() - 1, 1.0 - FALSE_ALARMS / looks)), LEAST_PROMINENCE)
    above = mean > 0
    starts: list[int] = np.flatnonzero(above & ~np.append(False, above[:-1])).tolist()
    for start in starts:
        stop = start + int(np.argmin(np.append(above[start:], False)))
        peak = start + int(np.argmax(significance[start:stop]))
        if significance[peak] > least:
            break
    else:
        return None
    if start == 0:
        return Signature(name, np.inf, np.inf, np.inf, float(significance[peak]), least, kind=INSTABILITY)
    line, where = crossing(x, mean, start), _cubic_crossing(x, mean, start)
    curves = mean + bootstrap_deviations(mean, curve.replicates[blocks][:, use], draws[:, blocks])
    # In every bootstrap curve, the last place before the peak where it is below 0.
    curves = curves[(curves[:, peak] > 0) & (curves[:, :peak] <= 0).any(axis=1)]
    places = [crossing(x, c, int(np.flatnonzero(c[:peak] <= 0)[-1]) + 1) for c in curves]
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(places or [line], [tail, 100.0 - tail])
    bend = _BEND * abs(where - line)
    begin, end = where - np.hypot(line - min(low, line), bend), where + np.hypot(max(high, line) - line, bend)
    level, low, high = (float(np.exp(v)) for v in (where, begin, end))
    return Signature(name, level, low, high, float(significance[peak]), least, kind=INSTABILITY, shell=curve.shell)


def crossing(x: Floats, y: Floats, i: int) -> float:
    """Where the line between points i - 1 and i is 0."""
    return float(x[i - 1] - y[i - 1] * (x[i] - x[i - 1]) / (y[i] - y[i - 1]))


def _cubic_crossing(x: Floats, y: Floats, i: int) -> float:
    """Where the polynomial through up to four points around it is 0 between points i - 1 and i."""
    near = slice(max(0, i - 2), i + 2)
    # Not the barycentric form: scipy orders its points by numpy's global random numbers.
    polynomial = scipy.interpolate.KroghInterpolator(x[near], y[near])
    return float(scipy.optimize.brentq(lambda v: float(polynomial(v)), x[i], x[i - 1]))
