"""Where over noise levels a curve has its most prominent interior maximum, and between which levels it is half as high.

Of curves that are near zero at much noise and at little: what a window loses, how fast the class becomes known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.averages import jackknife_error

Floats = NDArray[np.float64]

# A maximum stands out where its prominence is so many standard errors, of it and of where it rises from together: the
# range of 30 levels of noise alone is four of each by itself. An error that few blocks tell is itself uncertain: then
# more of them, as many as Student's t exceeds as rarely as a normal variable exceeds three.
_STANDS_OUT = 4.0
_RARELY = 3.0


@dataclass(frozen=True)
class LevelPeak:
    """A maximum over noise levels.

    Attributes
    ----------
    level : float
        NaN where none stands out by four standard errors, or more where few blocks tell them.
    level_low, level_high : float
        95 % interval of it, by the jackknife; as wide as the levels lie apart where that says less.
    low, high : float
        Levels at which the curve is half as high; the end of the levels where it stays above.
    value, stderr : float
        Of the maximum.
    """

    level: float
    level_low: float
    level_high: float
    low: float
    high: float
    value: float
    stderr: float

    @property
    def found(self) -> bool:
        """Whether there is one."""
        return self.level > 0

    def cut(self, lowest: float) -> LevelPeak:
        """The same, its stretch cut at a level; none where its maximum does not lie above that, as it is for NaN."""
        if self.level <= lowest:
            return _NONE
        return replace(self, low=max(self.low, lowest)) if lowest > 0 else self

    def overlaps(self, other: LevelPeak) -> bool:
        """Whether the stretches in which both are above half share levels."""
        return self.found and other.found and self.low <= other.high and other.low <= self.high

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: null for NaN."""
        return {name: value if np.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> LevelPeak:
        """What `to_dict` has made."""
        return cls(**{name: float("nan") if value is None else float(value) for name, value in stored.items()})


_NONE = LevelPeak(*(float("nan"),) * 7)


def peaks_of(ds: xr.Dataset) -> dict[str, LevelPeak]:
    """Where a window loses most ("gap") and the class is decided fastest ("class"); empty for other datasets."""
    stored = json.loads(ds.attrs.get("locality_peaks", "{}"))
    return {name: LevelPeak.from_dict(peak) for name, peak in stored.items()}


def level_peak(levels: Floats, values: Floats, replicates: Floats) -> LevelPeak:
    """Of values (levels,) at falling levels, with leave-one-out replicates (blocks, levels)."""
    error = jackknife_error(replicates)
    if len(levels) < 3 or not (np.isfinite(values).all() and np.isfinite(error).all()):
        return _NONE
    at, found = scipy.signal.find_peaks(values, prominence=0.0)
    if not at.size:
        return _NONE
    most = int(found["prominences"].argmax())
    sides = found["left_bases"][most], found["right_bases"][most]
    base = max(sides, key=lambda side: values[side])
    top = int(at[most])
    if found["prominences"][most] < stands_out(len(replicates)) * np.hypot(error[top], error[base]):
        return _NONE
    log_s = np.log(levels)
    places = np.array([_vertex(log_s, one, top) for one in replicates])
    place, apart = _vertex(log_s, values, top), 0.5 * float(log_s[top - 1] - log_s[top + 1])
    half = max(float(scipy.special.ndtri(0.975) * jackknife_error(places)), 0.5 * apart)
    above = values >= 0.5 * values[top]
    first, last = top, top
    while first > 0 and above[first - 1]:
        first -= 1
    while last < len(levels) - 1 and above[last + 1]:
        last += 1
    high = _half(log_s, values, first - 1, 0.5 * values[top]) if first > 0 else float(levels[0])
    low = _half(log_s, values, last, 0.5 * values[top]) if last < len(levels) - 1 else float(levels[-1])
    level, level_low, level_high = (float(np.exp(place + x)) for x in (0.0, -half, half))
    return LevelPeak(level, level_low, level_high, low, high, float(values[top]), float(error[top]))


def stands_out(blocks: int) -> float:
    """Standard errors by which a maximum stands out, where so many blocks tell them."""
    rarely = scipy.special.ndtr(-_RARELY)
    return max(_STANDS_OUT, float(-scipy.special.stdtrit(blocks - 1, rarely)))


def _vertex(log_s: Floats, values: Floats, near: int) -> float:
    """Of the parabola through the largest of three values about an index, and its neighbours."""
    i = near + int(np.argmax(values[near - 1 : near + 2])) - 1
    i = min(max(i, 1), len(values) - 2)
    a, b, _ = np.polyfit(log_s[i - 1 : i + 2] - log_s[i], values[i - 1 : i + 2], 2)
    if not a < 0:
        return float(log_s[i])
    return float(log_s[i] + np.clip(-b / (2 * a), log_s[i + 1] - log_s[i], log_s[i - 1] - log_s[i]))


def _half(log_s: Floats, values: Floats, i: int, half: float) -> float:
    """Level between i and i + 1 at which the curve is ``half``."""
    share = (half - values[i]) / (values[i + 1] - values[i])
    return float(np.exp(log_s[i] + share * (log_s[i + 1] - log_s[i])))
