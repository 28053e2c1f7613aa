"""Mode gains and the equilibrium correlation length they imply."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


# Errors below this are rounding: weights made of them would be noise, and all shells count alike.
_EXACT = 1e-9


def dispersion_length(k2: Any, gain: Any, stderr: Any = None, *, points: int = 4) -> Any:
    r"""Equilibrium correlation length from the low-k dispersion of the gain.

    Weighted least squares of :math:`(1 - g_k)/(1 - g_0) = 1 + \xi_{eq}^2 \hat k^2` through the lowest shells.

    Parameters
    ----------
    k2 : (shells,)
        Lattice momentum :math:`\hat k^2 = \sum_i 4\sin^2(k_i/2)` of each shell (mean over its modes), ascending from
        k = 0. Lengths come out in the unit of 1/k, normally sites.
    gain, stderr : (..., shells)
        Mode gains, and their standard errors as weights (equal weights when left out or as small as rounding).
    points : int
        Shells used, k = 0 among them.

    Returns
    -------
    float or array (...)
        :math:`\xi_{eq}`; NaN where the slope is negative (the softest mode is then at k != 0) or g_0 >= 1 (the
        homogeneous state is unstable and there is no equilibrium length).

    Raises
    ------
    ValueError
        Fewer than two shells, shapes that do not match, or a first shell that is not k = 0.

    Notes
    -----
    Source: arXiv:2603.20092, equilibrium correlation length.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit.modes import dispersion_length
    >>> k2 = np.array([0.0, 0.1, 0.2, 0.4])
    >>> round(float(dispersion_length(k2, 1 - 0.3 * (1 + 4.0 * k2))), 9)
    2.0
    """
    k2 = np.asarray(k2, dtype=np.float64)
    gain = np.asarray(gain, dtype=np.float64)
    if k2.ndim != 1 or gain.ndim < 1 or gain.shape[-1] != k2.size:
        raise ValueError(f"gain: expected shape (..., {k2.size}) to match k2, got {gain.shape}")
    if points < 2 or k2.size < 2:
        raise ValueError(f"k2: a dispersion needs at least two shells, got {min(points, k2.size)}")
    if k2[0] != 0:
        raise ValueError(f"k2: the first shell must be k = 0, got {k2[0]}")
    use = slice(1, min(points, k2.size))
    gap = 1.0 - gain
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = gap[..., use] / gap[..., :1] - 1.0
        weight = np.ones_like(rise)
        if stderr is not None:
            error = np.broadcast_to(np.asarray(stderr, dtype=np.float64), gain.shape)[..., use] / gap[..., :1]
            known = (error > _EXACT).all(axis=-1, keepdims=True)
            weight = np.where(known, 1.0 / np.where(error > 0, error, 1.0) ** 2, 1.0)
        x = k2[use]
        # Through the origin: at k = 0 the ratio is 1 by definition.
        square = (weight * x * rise).sum(axis=-1) / (weight * x * x).sum(axis=-1)
        xi = np.where((square >= 0) & (gap[..., 0] > 0), np.sqrt(np.maximum(square, 0.0)), np.nan)
    return xi if gain.ndim > 1 else float(xi)
