"""Models of one order parameter: the pitchfork of n sites that agree, and the level at which classes speciate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_positive, to_numbers, to_real

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pitchfork:
    """Exact score of {all +1, all -1} on ``n_sites`` sites: one collective mode, no locality (see `pitchfork`)."""

    n_sites: int

    def critical_level(self) -> float:
        """s_c = sqrt(N)."""
        return float(np.sqrt(self.n_sites))

    def gain(self, s: Any) -> Any:
        """Gain N/s^2 of the uniform mode at y = 0; every other mode has gain 0."""
        return self.n_sites / np.square(to_numbers(s, "s"))

    def denoise(self, y: Any, s: float) -> Any:
        """D(y; s) = tanh(sum(y)/s^2) on every site, for states (samples, ...) of ``n_sites`` sites each."""
        y = to_real(y, "y")
        s = check_positive(s, "s")
        if y.ndim < 2 or int(np.prod(y.shape[1:])) != self.n_sites:
            raise ValueError(f"y: expected (samples, ...) with {self.n_sites} sites each, got shape {y.shape}")
        if not np.isfinite(y).all():
            bad = int(np.argmin(np.isfinite(y.reshape(len(y), -1)).all(axis=1)))
            raise ValueError(f"y: NaN or infinite value in sample {bad}")
        exponent = int(np.frexp(np.abs(y).max(initial=0.0))[1])  # a power of two, so that no sum overflows
        total = np.ldexp(y.astype(np.float64), -exponent).sum(axis=tuple(range(1, y.ndim)), keepdims=True)
        with np.errstate(over="ignore"):  # the tanh of what is too large is 1 all the same
            return np.broadcast_to(np.tanh(np.ldexp(total, exponent) / s / s), y.shape).astype(y.dtype)

    def magnetisation(self, s: float) -> float:
        """The stable fixed point m >= 0 of m = tanh(N m/s^2): 0 above the critical level."""
        a = float(self.gain(check_positive(s, "s")))
        if a <= 1.0:
            return 0.0
        # m lies above the root of the cubic expansion's lower bound and below 1.
        return float(
            scipy.optimize.brentq(lambda m: m - np.tanh(a * m), np.sqrt(3.0 * (a - 1.0) / a**3) * 0.5, 1.0, xtol=1e-15)
        )


def pitchfork(n_sites: int) -> Pitchfork:
    """The non-local model: the data are two configurations of ``n_sites`` sites, all +1 and all -1.

    The same bifurcation as a patch model's, in one mode instead of a band: memorisation instead of pattern formation.

    Raises
    ------
    ValueError
        ``n_sites`` below 1.

    Examples
    --------
    >>> import fastcrit as fc
    >>> fc.theory.pitchfork(100).critical_level()
    10.0
    """
    if n_sites < 1:
        raise ValueError(f"n_sites: expected at least 1, got {n_sites}")
    return Pitchfork(int(n_sites))


def speciation_level(data: Any) -> float:
    r"""Level at which the data's classes separate: s_S = sqrt of the largest eigenvalue of Cov(x0).

    Source: Biroli et al. (2402.18491). Their criterion, :math:`\bar\alpha\Lambda = 1`, gives
    :math:`\sqrt{\Lambda - 1}`, the same for :math:`\Lambda \gg 1`.

    Parameters
    ----------
    data : (samples, ...)

    Raises
    ------
    ValueError
        Fewer than two samples, NaN or Inf.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> two = np.array([[3.0, 3.0, 3.0, 3.0], [-3.0, -3.0, -3.0, -3.0]])
    >>> round(fc.theory.speciation_level(two), 6)  # Lambda = 9 per site, 4 sites
    6.0
    """
    x = to_real(data, "data").astype(np.float64)
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"data: expected (samples, ...) with at least 2 samples, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    if not np.isfinite(x).all():
        raise ValueError(f"data: NaN or infinite value in sample {int(np.argmin(np.isfinite(x).all(axis=1)))}")
    # In a unit, a power of two, in which squares neither overflow nor vanish.
    exponent = int(np.frexp(np.abs(x).max(initial=0.0))[1])
    x = np.ldexp(x, -exponent)
    x = x - x.mean(axis=0)
    # The nonzero eigenvalues of X'X and XX' agree: take the smaller matrix.
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    with np.errstate(over="ignore"):
        found = float(np.ldexp(np.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0) / len(x)), exponent))
    if not np.isfinite(found):
        raise OverflowError("data: the level exceeds the range of float64; rescale them")
    return found
