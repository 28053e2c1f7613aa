"""What gains say: dispersions and their lengths, rates of the reverse drift, the Gaussian bound, collective modes.

Numbers in, numbers out: no torch, no network, no recorder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_positive, to_array, to_numbers

Floats = NDArray[np.float64]

PROCESSES = ("sde", "ode")
_DISPERSIONS = ("score", "drift")

# Errors below this are rounding: weights made of them would be noise, and all shells count alike.
_EXACT = 1e-9
# Directions in which the bound is below this share of its largest eigenvalue carry no power: no gain is defined there.
_NO_POWER = 1e-6
_NEVER_LARGEST = 1e9


def drift_rate(gain: Any, s: Any, data_std: float = 1.0, process: str = "sde") -> Any:
    r"""Growth rate of a mode under the reverse drift: above 0 a disturbance grows, 0 is the drift's critical point.

    In the Ornstein-Uhlenbeck coordinate of data scaled to unit variance, :math:`\sigma^2 = s^2/(s^2 + \mathrm{std}^2)`,
    the reverse SDE drifts by :math:`b = x/2 + \nabla\log p` and the probability-flow ODE by
    :math:`b = x/2 + \nabla\log p/2`, so that

    .. math:: \mu_k = \tfrac12 - \frac{1 - g_k}{\sigma^2} \text{ (sde)}, \qquad
              \mu_k = \tfrac12 - \frac{1 - g_k}{2\sigma^2} \text{ (ode)}

    Every variance-preserving process has the same zeros. A zero alone is no evidence of a transition: Gaussian data
    cross, too, at :math:`s^2 = P_0 - 2\,\mathrm{std}^2` (sde).

    Parameters
    ----------
    gain : array or xarray.DataArray
        Mode gains, of a single channel or of a collective mode.
    s : float or array that broadcasts against ``gain``
        Noise level.
    data_std : float
        Standard deviation of the data.
    process : "sde" or "ode"

    Returns
    -------
    array or xarray.DataArray
        Rates a unit of Ornstein-Uhlenbeck time, negative where the drift pulls back; NaN at s = 0.

    Raises
    ------
    ValueError
        Another process; noise levels that are negative or do not broadcast against ``gain``.

    Notes
    -----
    Source: instabilities of the denoising dynamics, arXiv:2603.20092 (known to us by its summary); the formula in this
    coordinate is ours.

    Examples
    --------
    >>> import fastcrit as fc
    >>> float(fc.modes.drift_rate(0.0, 1e6))  # noise alone
    -0.5000000000010001
    >>> abs(float(fc.modes.drift_rate(4 / (4 + 2), 2**0.5))) < 1e-12  # Gaussian data of P = 4: zero at s^2 = 4 - 2
    True
    """
    check_choice(process, PROCESSES, "process")
    variance = _variance_of_noise(s, data_std)
    if not hasattr(gain, "dims"):
        gain = to_array(getattr(gain, "gain", gain), "gain")  # a ModeResponse has them
        if gain.dtype.kind not in "fiu":
            raise TypeError(f"gain: expected real numbers, got dtype {gain.dtype}")
        gain = gain.astype(np.float64)
        try:
            np.broadcast_shapes(gain.shape, np.shape(variance))
        except ValueError:
            raise ValueError(
                f"s: expected a noise level, or as many as broadcast against gain {gain.shape} (s[:, None] for a level "
                f"in each row), got shape {np.shape(variance)}"
            ) from None
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # without end where s is next to nothing
        return 0.5 - (1.0 - gain) / (variance * (1.0 if process == "sde" else 2.0))


def softening_scale(s: Any, data_std: float = 1.0) -> Any:
    """1/sigma^2 = (s^2 + std^2)/s^2, which makes a stiffness of 1 - g; NaN at s = 0.

    Examples
    --------
    >>> from fastcrit._estimates.dispersion import softening_scale
    >>> float(softening_scale(1.0))
    2.0
    """
    with np.errstate(divide="ignore"):
        return 1.0 / _variance_of_noise(s, data_std)


def _variance_of_noise(s: Any, data_std: float) -> Any:
    """sigma^2 = s^2/(s^2 + std^2) of data scaled to unit variance; NaN at s = 0."""
    if not hasattr(s, "dims"):
        s = to_numbers(s, "s")
    if not bool(((s >= 0) & (s < np.inf)).all()):
        raise ValueError("s: expected noise levels >= 0, got a negative one, NaN or infinity")
    # By the ratio, whose square neither overflows nor vanishes where the levels' own would.
    with np.errstate(over="ignore"):
        ratio = np.minimum(check_positive(data_std, "data_std") / (s + (s == 0)), 1e150)
    return 1.0 / (1.0 + ratio**2) * np.where(s > 0, 1.0, np.nan)


def dispersion_length(
    k2: Any,
    gain: Any = None,
    stderr: Any = None,
    *,
    points: int = 4,
    of: str = "score",
    s: Any = None,
    data_std: float = 1.0,
    process: str = "sde",
) -> Any:
    r"""Equilibrium correlation length from the low-k dispersion of the gain.

    Weighted least squares of :math:`(1 - g_k)/(1 - g_0) = 1 + \xi_{eq}^2 \hat k^2` through the lowest shells; of the
    reverse drift instead, :math:`\mu_k/\mu_0 = 1 + \xi_{drift}^2 \hat k^2` with `drift_rate`'s :math:`\mu`.

    Parameters
    ----------
    k2 : ModeResponse, or (shells,)
        A response, which brings gain and stderr with it; or the lattice momentum
        :math:`\hat k^2 = \sum_i 4\sin^2(k_i/2)` of each shell (mean over its modes),
        ascending from k = 0. Lengths come out in the unit of 1/k, normally sites.
    gain, stderr : (..., shells)
        Mode gains, and their standard errors as weights (equal weights when left out or as small as rounding).
    points : int
        Shells used, k = 0 among them.
    of : "score" or "drift"
        Whose dispersion: how stiff a mode is, or how fast the reverse drift pulls it back.
    s, data_std, process
        For the drift, as in `drift_rate`: ``s`` is a number, one for each row of ``gain``, or the response's own.

    Returns
    -------
    float or array (...)
        :math:`\xi_{eq}`; NaN where the slope is negative (the softest mode is then at k != 0) or g_0 >= 1 (the
        homogeneous state is unstable and there is no equilibrium length). Likewise :math:`\xi_{drift}`, which diverges
        where :math:`\mu_0` reaches 0 and is NaN above.

    Raises
    ------
    ValueError
        Fewer than two shells, shapes that do not match, a first shell that is not k = 0, or of="drift" without s.

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
    check_choice(of, _DISPERSIONS, "of")
    check_choice(process, PROCESSES, "process")
    if hasattr(k2, "gain"):  # a ModeResponse
        if s is not None and s != k2.s:
            raise ValueError(f"s: this response was measured at s = {k2.s:.6g}, got {s!r}")
        k2, gain, stderr, s = k2.k2, k2.gain, k2.stderr, k2.s
    k2 = to_numbers(k2, "k2")
    gain = to_numbers(gain, "gain")
    if k2.ndim != 1 or gain.ndim < 1 or gain.shape[-1] != k2.size:
        raise ValueError(f"gain: expected shape (..., {k2.size}) to match k2, got {gain.shape}")
    if points < 2 or k2.size < 2:
        raise ValueError(f"k2: a dispersion needs at least two shells, got {min(points, k2.size)}")
    if stderr is not None:
        stderr = to_numbers(stderr, "stderr")
        try:
            stderr = np.broadcast_to(stderr, gain.shape)
        except ValueError:
            raise ValueError(f"stderr: expected shape {gain.shape}, as gain's, got {stderr.shape}") from None
    if k2[0] != 0:
        raise ValueError(f"k2: the first shell must be k = 0, got {k2[0]}")
    use = slice(1, min(points, k2.size))
    gap = 1.0 - gain
    if of == "drift":
        if s is None:
            raise ValueError('s: needed for of="drift", got None')
        # -mu sigma^2 (sde), or twice that (ode): the common factor drops out of the ratio.
        gap = gap - (_variance_of_noise(s, data_std) * (0.5 if process == "sde" else 1.0))[..., None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rise = gap[..., use] / gap[..., :1] - 1.0
        weight = np.ones_like(rise)
        if stderr is not None:
            error = stderr[..., use] / gap[..., :1]
            known = (error > _EXACT).all(axis=-1, keepdims=True)
            weight = np.where(known, 1.0 / np.where(error > 0, error, 1.0) ** 2, 1.0)
        x = k2[use]
        # Through the origin: at k = 0 the ratio is 1 by definition.
        square = (weight * x * rise).sum(axis=-1) / (weight * x * x).sum(axis=-1)
        xi = np.where((square >= 0) & (gap[..., 0] > 0), np.sqrt(np.maximum(square, 0.0)), np.nan)
    return xi if gain.ndim > 1 else float(xi)


def gaussian_bound(power: Any, s: Any, *, channels: bool = False) -> Any:
    r"""Gain that Gaussian data of this spectrum would have, P/(P + s^2): above every exact denoiser's on trajectories.

    The linear estimator's error bounds the posterior's: E g_k = mmse_k/s^2 <= P_k/(P_k + s^2), for the average over
    states y = x0 + s noise. It holds mode by mode; average over a shell's modes after this, not before. Of several
    channels it is a bound of matrices, :math:`G \preceq P(P + s^2)^{-1}`.

    Parameters
    ----------
    power : array
        Structure factor P_k of the data; with ``channels`` the cross-spectra P_ab(k), (..., C, C).
    s : float or array that broadcasts against ``power``, with ``channels`` against its leading axes
        Noise level.
    channels : bool
        Whether the last two axes are channels, and the bound a matrix.

    Raises
    ------
    ValueError
        ``channels`` for an array whose last two axes differ.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> float(fc.modes.gaussian_bound(4.0, 2.0))
    0.5
    >>> grey = np.full((3, 3), 4.0)  # one field three times over: P = 12 along (1, 1, 1)
    >>> round(float(fc.modes.gaussian_bound(grey, 2.0, channels=True).trace()), 9)  # 12/(12 + 4)
    0.75
    """
    with np.errstate(over="ignore"):  # the bound is 0 then
        s2 = np.square(to_numbers(s, "s"))
    if not channels:
        power = to_numbers(power, "power")
        with np.errstate(invalid="ignore", divide="ignore"):  # without power the bound is 0, at s = 0 too
            return np.where(power == 0, 0.0, power / np.where(power == 0, 1.0, power + s2))[()]
    power = _matrices(power, "power")
    _channels(power, "power")
    values, vectors = _eigen(power)
    # P and P + s^2 share their eigenvectors. Where P has no power the bound is 0, at s = 0 too.
    values = np.where(values <= _NO_POWER * values[..., -1:], 0.0, values)
    total = values + s2[..., None]
    share = values / np.where(total == 0, 1.0, total)
    return (vectors * share[..., None, :]) @ np.conj(np.swapaxes(vectors, -1, -2))


def response_deficit(gain: Any, bound: Any, *, channels: bool = False) -> Any:
    r"""Distance of a gain on trajectories to the Gaussian bound, 1 - g/bound: 0 for Gaussian response, 1 for none.

    It rises where states commit. Below 0 by more than its error, the denoiser is not the posterior's mean. The standard
    error is that of the gain over the bound. Of several channels it is the smallest eigenvalue of
    :math:`1 - B^{-1/2} G B^{-1/2}`, the direction that comes closest to the bound B or exceeds it most; directions
    without power are left out. NaN where a matrix has NaN or the bound no power at all.

    Parameters
    ----------
    gain : array
        Mode gains, averaged over trajectories; with ``channels`` matrices (..., C, C), of which the Hermitian part
        counts.
    bound : array that broadcasts against ``gain``
        `gaussian_bound`, averaged over the same modes.
    channels : bool
        Whether the last two axes are channels.

    Raises
    ------
    ValueError
        ``channels`` for arrays whose last two axes are not C x C.

    Examples
    --------
    >>> import fastcrit as fc
    >>> float(fc.modes.response_deficit(0.25, fc.modes.gaussian_bound(4.0, 2.0)))
    0.5
    """
    if not channels:
        gain, bound = to_numbers(gain, "gain"), to_numbers(bound, "bound")
        with np.errstate(over="ignore", invalid="ignore"):
            return 1.0 - gain / np.where(bound == 0, np.nan, bound)
    gain, bound = _matrices(gain, "gain"), _matrices(bound, "bound")
    if _channels(gain, "gain") != _channels(bound, "bound"):
        raise ValueError(f"bound: expected {gain.shape[-1]} channels, as gain has, got {bound.shape[-1]}")
    values, vectors = _eigen(bound)
    carried = values > _NO_POWER * values[..., -1:]
    root = vectors * np.where(carried, np.where(carried, values, 1.0) ** -0.5, 0.0)[..., None, :]
    with np.errstate(invalid="ignore", over="ignore"):  # entries that are not finite make it NaN
        whitened = np.conj(np.swapaxes(root, -1, -2)) @ _hermitian(gain) @ root
    # A direction without power has rows of 0, which must not pass for the largest of gains that are all negative.
    whitened = whitened - _NEVER_LARGEST * (~carried)[..., None] * np.eye(gain.shape[-1])
    return np.where(carried.any(axis=-1), 1.0 - _eigen(whitened)[0][..., -1], np.nan)[()]


def collective_modes(gain: Any, error: Any = None) -> tuple[Floats, Floats]:
    r"""Softest collective mode of gain matrices: its gain and its unit vector in channel space, level by level.

    The leading eigenvalue of the Hermitian part. Where others come so close that errors could have put them in front,
    the mode stays itself: from the level where the leading one is best told from the next, to both ends, the
    eigenvector that overlaps most with its neighbour's is kept as long as no other is ahead of it by more than errors.

    Parameters
    ----------
    gain : array (levels, ..., C, C)
        Real or complex; NaN where nothing was measured.
    error : array (levels, ..., C, C), optional
        Standard errors of the entries; default: none, and the mode is the leading one everywhere.

    Returns
    -------
    gain : array (levels, ...)
    vector : array (levels, ..., C)
        Its largest component is positive.

    Raises
    ------
    ValueError
        Last two axes that differ.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit._estimates.dispersion import collective_modes
    >>> value, vector = collective_modes(np.full((1, 3, 3), 0.3))
    >>> value.round(9).tolist(), (vector * 3**0.5).round(9).tolist()
    ([0.9], [[1.0, 1.0, 1.0]])
    """
    matrix = _matrices(gain, "gain")
    C = _channels(matrix, "gain")
    flat = _hermitian(matrix).reshape(len(matrix), -1, C, C)
    known = np.isfinite(flat).all(axis=(-1, -2))
    values, vectors = np.linalg.eigh(np.where(known[..., None, None], flat, np.eye(C)))
    noise = np.zeros(known.shape)
    if error is not None:
        # Eigenvalues of a symmetric matrix of independent errors e reach 2 e sqrt(C).
        square = np.square(to_numbers(error, "error")).reshape(flat.shape)
        noise = 2.0 * np.sqrt(C * np.nan_to_num(square.mean(axis=(-1, -2))))
    out = np.full(flat.shape[:2], np.nan)
    modes = np.full(flat.shape[:3], np.nan, dtype=vectors.dtype)
    for m in range(flat.shape[1]):
        levels = np.flatnonzero(known[:, m])
        if not levels.size:
            continue
        gap = (values[levels, m, -1] - values[levels, m, -min(2, C)]) / np.maximum(noise[levels, m], _EXACT)
        clearest = levels[int(np.argmax(gap))]
        for way in (levels[levels >= clearest], levels[levels <= clearest][::-1]):
            before = None
            for i in way:
                j = C - 1 if before is None else int(np.argmax(np.abs(before.conj() @ vectors[i, m])))
                if values[i, m, -1] - values[i, m, j] > noise[i, m]:
                    j = C - 1
                before = vectors[i, m, :, j]
                out[i, m], modes[i, m] = values[i, m, j], before
    largest = np.take_along_axis(modes, np.argmax(np.abs(modes), axis=-1)[..., None], axis=-1)
    with np.errstate(invalid="ignore"):
        modes = modes * np.conj(largest) / np.abs(largest)
    return out.reshape(matrix.shape[:-2]), modes.reshape(matrix.shape[:-1])


def _hermitian(matrix: Any) -> Any:
    with np.errstate(invalid="ignore"):  # inf - inf in entries that are not finite
        return 0.5 * matrix + 0.5 * np.conj(np.swapaxes(matrix, -1, -2))


def _eigen(matrix: Any) -> tuple[Any, Any]:
    """Eigenvalues, ascending, and eigenvectors of the Hermitian part; NaN for values where an entry is not finite."""
    known = np.isfinite(matrix).all(axis=(-1, -2))
    hermitian = np.where(known[..., None, None], _hermitian(matrix), 0.0)
    # In a unit, a power of two, in which LAPACK's sums of squares do not overflow.
    largest = float(np.abs(hermitian).max(initial=0.0))
    unit = 2.0 ** (np.frexp(largest)[1] - 1) if largest > 1e100 else 1.0
    values, vectors = np.linalg.eigh(hermitian / unit)
    with np.errstate(over="ignore"):
        return np.where(known[..., None], values * unit, np.nan), vectors


def _matrices(matrix: Any, name: str) -> Any:
    """As float64 or complex128: LAPACK has no half type."""
    array = to_array(matrix, name)
    if array.dtype.kind not in "fiubc":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _channels(matrix: Any, name: str) -> int:
    """Their number; ValueError unless the last two axes are channels."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"{name}: expected matrices (..., C, C), got shape {matrix.shape}")
    return int(matrix.shape[-1])
