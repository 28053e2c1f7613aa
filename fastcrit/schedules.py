"""Noise schedules: the noise level s = sigma / alpha as a function of each schedule's own time, and back.

All of fastcrit works in y = x / alpha = x0 + s * noise; a schedule only translates s into the time people quote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        return np.sqrt(np.expm1(np.asarray(t, dtype=np.float64)))

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        return np.log1p(np.square(np.asarray(s, dtype=np.float64)))

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
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
        return np.asarray(t, dtype=np.float64)

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s: s itself."""
        return np.asarray(s, dtype=np.float64)

    def alpha(self, s: Any) -> Any:
        """Scale of the signal: 1 at every level."""
        return s * 0.0 + 1.0

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

    Raises
    ------
    ValueError
        A table that does not decrease strictly inside (0, 1). (Zero terminal SNR, abar = 0, has no finite s.)

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> vp = fc.schedules.VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    >>> round(float(vp.t(vp.s(500.0))), 6)
    500.0
    """

    def __init__(self, alphas_cumprod: ArrayLike) -> None:
        abar = np.asarray(alphas_cumprod, dtype=np.float64)
        if abar.ndim != 1 or abar.size < 2:
            raise ValueError(f"alphas_cumprod: expected a sequence of at least 2 values, got shape {abar.shape}")
        if not ((abar > 0).all() and (abar < 1).all() and (np.diff(abar) < 0).all()):
            raise ValueError("alphas_cumprod: expected values inside (0, 1) that decrease strictly")
        self._log_s = 0.5 * (np.log1p(-abar) - np.log(abar))
        self._t = np.arange(abar.size, dtype=np.float64)

    @property
    def highest(self) -> float:
        """Noise level at the table's end."""
        return float(np.exp(self._log_s[-1]))

    def s(self, t: ArrayLike) -> Any:
        """Noise level at (fractional) step t; clipped to the table's ends."""
        return np.exp(np.interp(np.asarray(t, dtype=np.float64), self._t, self._log_s))

    def t(self, s: ArrayLike) -> Any:
        """Fractional step at noise level s; clipped to the table's ends."""
        return np.interp(np.log(np.asarray(s, dtype=np.float64)), self._log_s, self._t)

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
        return (1.0 + s * s) ** -0.5

    def levels(self, n: int) -> Floats:
        """``n`` noise levels at steps even in t, from the last of the table to the first."""
        if n < 2:
            raise ValueError(f"n: expected at least 2 levels, got {n}")
        return np.asarray(self.s(np.linspace(self._t[-1], 0.0, n)))


@dataclass(frozen=True)
class Cosine:
    """Nichol and Dhariwal (2102.09672): abar = f(t)/f(0), f = cos^2(pi/2 (t + offset)/(1 + offset)), 0 <= t < 1."""

    offset: float = 0.008

    def _angle(self, t: Any) -> Any:
        return 0.5 * np.pi * (np.asarray(t, dtype=np.float64) + self.offset) / (1.0 + self.offset)

    def s(self, t: ArrayLike) -> Any:
        """Noise level at time t."""
        abar = (np.cos(self._angle(t)) / np.cos(self._angle(0.0))) ** 2
        return np.sqrt((1.0 - abar) / abar)

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        root = np.cos(self._angle(0.0)) / np.sqrt(1.0 + np.square(np.asarray(s, dtype=np.float64)))
        return np.arccos(root) * 2.0 / np.pi * (1.0 + self.offset) - self.offset

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
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
        t = np.asarray(t, dtype=np.float64)
        return t / (1.0 - t)

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        s = np.asarray(s, dtype=np.float64)
        return s / (1.0 + s)

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: 1 - t."""
        return 1.0 / (1.0 + s)

    def levels(self, n: int, *, t_max: float = 0.999, t_min: float = 1e-3) -> Floats:
        """``n`` noise levels, even in t."""
        _check_range(n, t_max, t_min, "t_max", "t_min", most=1.0 - 1e-9)
        return np.asarray(self.s(np.linspace(t_max, t_min, n)))


def _check_range(n: int, high: float, low: float, high_name: str, low_name: str, most: float = np.inf) -> None:
    if n < 2:
        raise ValueError(f"n: expected at least 2 levels, got {n}")
    if not high > low > 0 or not np.isfinite(high):
        raise ValueError(f"{high_name}, {low_name}: expected {high_name} > {low_name} > 0, got {high} and {low}")
    if high > most:
        raise ValueError(f"{high_name}: expected at most {most}, where s is still finite, got {high}")
