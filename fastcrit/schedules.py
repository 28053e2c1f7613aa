"""Noise schedules: the noise level s = sigma / alpha as a function of each schedule's own time, and back.

All of fastcrit works in y = x / alpha = x0 + s * noise; a schedule only translates s into the time people quote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastcrit._edge.arrays import is_tensor, to_numbers

Floats = NDArray[np.float64]


class Schedule(Protocol):
    """What a schedule offers. ``s`` and ``t`` accept scalars and arrays, and are inverse to each other."""

    def s(self, t: ArrayLike) -> Any:
        """Noise level at time t."""

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s, of an array or a tensor: the process's own x is alpha y."""


def log_levels(n: int, *, high: float, low: float) -> Floats:
    """``n`` noise levels from ``high`` down to ``low``, even in log s.

    Raises
    ------
    ValueError
        Unless n >= 2 and high > low > 0.

    Examples
    --------
    >>> from fastcrit.schedules import log_levels
    >>> log_levels(3, high=100.0, low=1.0).round(6).tolist()
    [100.0, 10.0, 1.0]
    """
    _check_range(n, high, low, "high", "low")
    return np.geomspace(high, low, n)


@dataclass(frozen=True)
class OrnsteinUhlenbeck:
    """dx = -x/2 dt + dW: alpha = exp(-t/2), s = sqrt(exp(t) - 1), t = log(1 + s^2).

    Examples
    --------
    >>> import fastcrit as fc
    >>> round(float(fc.schedules.OrnsteinUhlenbeck().t(5.0)), 4)  # log 26
    3.2581
    """

    def s(self, t: ArrayLike) -> Any:
        """Noise level at time t >= 0."""
        with np.errstate(over="ignore"):  # infinite from t = 709.8 on
            return np.sqrt(np.expm1(_within(t, "t")))

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        level = _within(s, "s")
        # The square of what is large overflows, and 1 is nothing beside it.
        large = 2.0 * np.log(np.maximum(level, 1.0))
        return np.where(level > 1e100, large, np.log1p(np.square(np.minimum(level, 1e100))))[()]

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
        with np.errstate(over="ignore"):  # 0 where the square overflows
            return (1.0 + s * s) ** -0.5

    def levels(self, n: int, *, t_max: float = 50.0, t_min: float = 1e-3) -> Floats:
        """``n`` noise levels, even in t from ``t_max`` to ``t_min``; the defaults are the range of arXiv:2603.20092."""
        _check_range(n, t_max, t_min, "t_max", "t_min", most=700.0)
        return np.asarray(self.s(np.linspace(t_max, t_min, n)))


@dataclass(frozen=True)
class EDM:
    """Variance exploding, s = t, with the rho-grid of Karras et al. (2206.00364, eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rho) and self.rho > 0):
            raise ValueError(f"rho: expected a positive number, got {self.rho!r}")

    def s(self, t: ArrayLike) -> Any:
        """Noise level at time t: t itself."""
        return to_numbers(t, "t")

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s: s itself."""
        return to_numbers(s, "s")

    def alpha(self, s: Any) -> Any:
        """Scale of the signal: 1 at every level."""
        return s * 0.0 + 1.0 if is_tensor(s) else np.ones(np.shape(s))[()]

    def levels(self, n: int) -> Floats:
        """``n`` noise levels from sigma_max to sigma_min, even in s^(1/rho)."""
        _check_range(n, self.sigma_max, self.sigma_min, "sigma_max", "sigma_min")
        root = np.linspace(self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho), n)
        return root**self.rho


class VP:
    """Variance preserving, from a table of alpha-bar (DDPM): s = sqrt((1 - abar)/abar), interpolated in log s.

    Parameters
    ----------
    alphas_cumprod : sequence of float
        alpha-bar at t = 0, 1, .., T - 1, strictly decreasing, inside (0, 1).
    time_map : sequence of float (T,), optional
        The time that the network knows each entry by, strictly rising; default: 0, 1, .., T - 1. A respaced table (a
        table of 250 of a network's 1000 steps, such as guided-diffusion's and DiT's ``SpacedDiffusion``) with the bare
        network needs its ``timestep_map`` here; with the network that it wraps it needs none.

    Raises
    ------
    ValueError
        A table that does not decrease strictly inside (0, 1): leave out entries of zero terminal SNR, abar = 0, which
        have no finite s. A time map of another length, or one that does not rise.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> vp = fc.schedules.VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    >>> round(float(vp.t(vp.s(500.0))), 6)
    500.0

    Every fourth step of a network's thousand:

    >>> abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[::4]
    >>> respaced = fc.schedules.VP(abar, time_map=range(0, 1000, 4))
    >>> round(float(respaced.t(vp.s(500.0))), 6)
    500.0
    """

    def __init__(self, alphas_cumprod: ArrayLike, *, time_map: ArrayLike | None = None) -> None:
        abar = to_numbers(alphas_cumprod, "alphas_cumprod")
        if abar.ndim != 1 or abar.size < 2:
            raise ValueError(f"alphas_cumprod: expected a sequence of at least 2 values, got shape {abar.shape}")
        if not ((abar > 0).all() and (abar < 1).all() and (np.diff(abar) < 0).all()):
            raise ValueError(
                "alphas_cumprod: expected values inside (0, 1) that decrease strictly; leave out those of zero "
                "terminal SNR at the end, which have no finite noise level"
            )
        self._log_s = 0.5 * (np.log1p(-abar) - np.log(abar))
        self._t = np.arange(abar.size, dtype=np.float64)
        if time_map is not None:
            self._t = to_numbers(list(time_map) if isinstance(time_map, range) else time_map, "time_map")
            if self._t.shape != abar.shape or not np.isfinite(self._t).all() or (np.diff(self._t) <= 0).any():
                raise ValueError(
                    f"time_map: expected {abar.size} strictly rising times, one for each entry of alphas_cumprod, got "
                    f"shape {self._t.shape}"
                )

    @property
    def times(self) -> Floats:
        """The time of each entry of the table."""
        return self._t.copy()

    @property
    def highest(self) -> float:
        """Noise level at the table's end."""
        return float(np.exp(self._log_s[-1]))

    def s(self, t: ArrayLike) -> Any:
        """Noise level at (fractional) step t; clipped to the table's ends."""
        return np.exp(np.interp(to_numbers(t, "t"), self._t, self._log_s))

    def t(self, s: ArrayLike) -> Any:
        """Fractional step at noise level s; clipped to the table's ends."""
        return np.interp(np.log(np.maximum(_within(s, "s"), np.finfo(float).tiny)), self._log_s, self._t)

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
        with np.errstate(over="ignore"):  # 0 where the square overflows
            return (1.0 + s * s) ** -0.5

    def levels(self, n: int) -> Floats:
        """``n`` noise levels at steps even in t, from the last of the table to the first."""
        if n < 2:
            raise ValueError(f"n: expected at least 2 levels, got {n}")
        return np.asarray(self.s(np.linspace(self._t[-1], self._t[0], n)))


@dataclass(frozen=True)
class Cosine:
    """Nichol and Dhariwal (2102.09672): abar = f(t)/f(0), f = cos^2(pi/2 (t + offset)/(1 + offset)), 0 <= t < 1."""

    offset: float = 0.008

    def _angle(self, t: Any) -> Any:
        return 0.5 * np.pi * (_within(t, "t", 1.0) + self.offset) / (1.0 + self.offset)

    def s(self, t: ArrayLike) -> Any:
        """Noise level at time t."""
        abar = (np.cos(self._angle(t)) / np.cos(self._angle(0.0))) ** 2
        return np.sqrt((1.0 - abar) / abar)

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        root = np.cos(self._angle(0.0)) / np.sqrt(1.0 + np.square(np.minimum(_within(s, "s"), 1e100)))
        return np.arccos(root) * 2.0 / np.pi * (1.0 + self.offset) - self.offset

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
        with np.errstate(over="ignore"):  # 0 where the square overflows
            return (1.0 + s * s) ** -0.5

    def levels(self, n: int, *, t_max: float = 0.999, t_min: float = 1e-3) -> Floats:
        """``n`` noise levels, even in t."""
        _check_range(n, t_max, t_min, "t_max", "t_min", most=1.0 - 1e-9)
        return np.asarray(self.s(np.linspace(t_max, t_min, n)))


@dataclass(frozen=True)
class FlowMatching:
    """x = (1 - t) x0 + t noise: s = t/(1 - t), t = s/(1 + s)."""

    def s(self, t: ArrayLike) -> Any:
        """Noise level at time 0 <= t < 1."""
        time = _within(t, "t", 1.0)
        with np.errstate(divide="ignore"):  # infinite at t = 1
            return time / (1.0 - time)

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        level = _within(s, "s")
        return np.where(level == np.inf, 1.0, np.minimum(level, 1e300) / (1.0 + level))[()]

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: 1 - t."""
        return 1.0 / (1.0 + s)

    def levels(self, n: int, *, t_max: float = 0.999, t_min: float = 1e-3) -> Floats:
        """``n`` noise levels, even in t."""
        _check_range(n, t_max, t_min, "t_max", "t_min", most=1.0 - 1e-9)
        return np.asarray(self.s(np.linspace(t_max, t_min, n)))


def _within(x: ArrayLike, name: str, most: float = np.inf) -> Any:
    """Times or levels from 0 to ``most``, but for rounding; ValueError for others. NaN, which is no level, stays."""
    array = to_numbers(x, name)
    outside = (array < -1e-12) | (array > most + 1e-12)
    if outside.any():
        up_to = "" if most == np.inf else f" and <= {most:g}"
        wrong = array[outside].ravel()[0]
        raise ValueError(f"{name}: expected numbers >= 0{up_to}, got {wrong}")
    return np.clip(array, 0.0, most)


def _check_range(n: int, high: float, low: float, high_name: str, low_name: str, most: float = np.inf) -> None:
    if n < 2:
        raise ValueError(f"n: expected at least 2 levels, got {n}")
    if not high > low > 0 or not np.isfinite(high):
        raise ValueError(f"{high_name}, {low_name}: expected {high_name} > {low_name} > 0, got {high} and {low}")
    if high > most:
        raise ValueError(f"{high_name}: expected at most {most}, where s is still finite, got {high}")
