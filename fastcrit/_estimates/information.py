"""Information in nats over noise levels, integrated from high noise down, and the windows of levels that it opens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._estimates.averages import neighbours_error

Floats = NDArray[np.float64]

_CONFIDENCE = 0.95
_BOOTSTRAP = 1000


@dataclass(frozen=True)
class InformationCurve:
    r"""Nats at each level, :math:`\int_s^\infty m(s')/s'^3 ds'`, of errors or changes m that images gave.

    The trapezoidal rule in log s from the highest level down. Above it m is taken as it is there, which it is in the
    limit of much noise: m/2s^2.

    Attributes
    ----------
    levels : (levels,)
        Decreasing.
    samples : (levels, n)
        m of every image, the state's units squared.
    excess : (levels, n) or None
        Of changes of denoised images, by how much they exceed the fall of the error that a posterior mean's would be:
        0 on average for a posterior mean.
    """

    levels: Floats
    samples: Floats = field(repr=False)
    excess: Floats | None = field(default=None, repr=False)

    @property
    def rate(self) -> Floats:
        """Nats per unit of log s that noise takes away, (levels,)."""
        return np.asarray(self.samples.mean(axis=1) / self.levels**2)

    @property
    def each(self) -> Floats:
        """What every image contributes to `value`, (levels, n)."""
        return integral_from_above(self.levels, self.samples)

    @property
    def lost(self) -> Floats:
        """What every image contributes to the nats lost since the lowest level, (levels, n), by the fall of the error.

        From below, where next to nothing is lost the sum is next to exact, and of a network's own errors those with
        and without the class cancel.
        """
        fall = integral_from_above(self.levels, self.samples if self.excess is None else self.samples - self.excess)
        return np.asarray(fall[-1] - fall)

    @property
    def value(self) -> Floats:
        """Nats, (levels,)."""
        return np.asarray(self.each.mean(axis=1))

    @property
    def stderr(self) -> Floats:
        """Standard error of `value` over images."""
        return neighbours_error(self.each)

    @property
    def bias(self) -> Floats:
        """How many of these nats the errors against the images do not bear out, (levels,); NaN of errors themselves.

        0 for a posterior mean. A network's own error e adds up to e^2/s^3 to the rate, without bound at low noise.
        """
        return np.full(len(self.levels), np.nan) if self.excess is None else self._excess.mean(axis=1)

    @property
    def bias_stderr(self) -> Floats:
        """Standard error of `bias`."""
        return np.full(len(self.levels), np.nan) if self.excess is None else neighbours_error(self._excess)

    @property
    def _excess(self) -> Floats:
        assert self.excess is not None
        return integral_from_above(self.levels, self.excess)

    def interval(self, confidence: float = _CONFIDENCE) -> tuple[Floats, Floats]:
        """Normal interval of `value`."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
        half = scipy.special.ndtri(0.5 + confidence / 2) * self.stderr
        return self.value - half, self.value + half

    @property
    def peak(self) -> float:
        """Level of the largest `value` within the levels; NaN where it is at an end of them."""
        at = int(self.value.argmax())
        return float(self.levels[at]) if 0 < at < len(self.levels) - 1 else float("nan")


@dataclass(frozen=True)
class LevelWindow:
    """Noise levels between which something holds, each with its interval over images by the bootstrap.

    Attributes
    ----------
    low, high : float
        NaN where it holds nowhere, or on to that end of the levels.
    low_interval, high_interval : (float, float)
        Of 95 %. NaN where more than 5 % of the resamplings have no such end.
    """

    low: float
    high: float
    low_interval: tuple[float, float]
    high_interval: tuple[float, float]

    @property
    def found(self) -> bool:
        """Whether both ends are known."""
        return bool(np.isfinite([self.low, self.high]).all())

    def contains(self, other: LevelWindow) -> bool:
        """Whether another window lies inside, both being known."""
        return self.found and other.found and self.low <= other.low and other.high <= self.high


def integral_from_above(levels: Floats, samples: Floats) -> Floats:
    r""":math:`\int_s^\infty m/s'^3 ds'` (levels, n) of m (levels, n), as `InformationCurve` has it."""
    rate = samples / levels[:, None] ** 2
    steps = 0.5 * (rate[1:] + rate[:-1]) * np.log(levels[:-1] / levels[1:])[:, None]
    return np.cumsum(np.concatenate([rate[:1] / 2, steps]), axis=0)


def level_window(each: list[Floats], ends: Callable[[list[Floats]], tuple[float, float]], seed: int) -> LevelWindow:
    """The window that ``ends`` finds in means of (levels, n) over the same n images, and its intervals."""
    n = each[0].shape[1]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1.0 / n), size=_BOOTSTRAP) / n
    again = [one @ weights.T for one in each]
    found = np.array([ends([one[:, b] for one in again]) for b in range(_BOOTSTRAP)])
    low, high = ends([one.mean(axis=1) for one in each])
    return LevelWindow(low, high, _interval(found[:, 0]), _interval(found[:, 1]))


def where_above(levels: Floats, value: Floats, threshold: float) -> tuple[float, float]:
    """Ends, low and high, of the stretch about the largest value in which it is above a threshold."""
    above = value > threshold
    if not above.any():
        return float("nan"), float("nan")
    top = int(value.argmax())
    outside = np.flatnonzero(~above)
    before, after = outside[outside < top], outside[outside > top]
    high = _crossing(levels, value, threshold, before[-1]) if before.size else float("nan")
    low = _crossing(levels, value, threshold, after[0] - 1) if after.size else float("nan")
    return low, high


def first_above(levels: Floats, value: Floats, threshold: float) -> float:
    """Where a value first exceeds a threshold, coming from high noise; NaN where it does from the start, or never."""
    above = value > threshold
    if above[0] or not above.any():
        return float("nan")
    return _crossing(levels, value, threshold, int(above.argmax()) - 1)


def _crossing(levels: Floats, value: Floats, threshold: float, i: int) -> float:
    """Between levels i and i + 1, linear in log s."""
    share = (threshold - value[i]) / (value[i + 1] - value[i])
    return float(levels[i] * (levels[i + 1] / levels[i]) ** share)


def _interval(found: Floats) -> tuple[float, float]:
    known = found[np.isfinite(found)]
    if len(known) < _CONFIDENCE * len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.5 - _CONFIDENCE / 2, 0.5 + _CONFIDENCE / 2])
    return float(low), float(high)
