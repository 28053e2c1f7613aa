"""How much power rounding alone could have: below it an ensemble does not fluctuate, and has no length.

Ten copies of one field, or a constant that no type holds exactly, leave a variance of rounding once their mean is taken
out. Any statistic that divides by it would be a number made of nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import is_tensor
from fastcrit._edge.placement import to_host

Floats = NDArray[np.float64]

# A fluctuation of so many roundings has lost a thousandth at most.
_FEW = 1e3
# Those of a transform and of the sums, together.
_ROUNDINGS_OF_SUMS = 8.0
# Samples whose squares are taken at a time.
_AT_A_TIME = 64


def resolution(x: Any, computed: Any) -> tuple[float, float]:
    """Relative and smallest absolute spacing of the numbers in ``x``, as the caller passed it, and as computed with.

    Half types are computed in float32, but what they left out is not there. Integers are exact.
    """
    while isinstance(x, Sequence) and not isinstance(x, str) and len(x):
        x = x[0]
    found = [_spacing(getattr(a, "dtype", None)) for a in (x, computed)]
    return max(eps for eps, _ in found), max(least for _, least in found)


def _spacing(dtype: Any) -> tuple[float, float]:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            return 0.0, 0.0
        info = torch.finfo(dtype)
        return float(info.eps), float(info.smallest_normal) * float(info.eps)
    if dtype is None or getattr(dtype, "kind", "") != "f":
        return 0.0, 0.0
    info = np.finfo(dtype)
    return float(info.eps), float(info.smallest_subnormal)


def rounding_power(array: Any, fields: int, center: str, spacing: tuple[float, float]) -> Floats:
    """(fields,): the power per mode that rounding can have in fields (samples, ..., lattice).

    A value x is off by at most half the distance to its neighbour, eps |x| / 2; white noise of variance v has power v.
    Unless each sample has lost its own mean, the first is as good as all: where nothing fluctuates, they are alike.
    """
    eps, least = spacing
    some = array if center == "sample" else array[:1]
    total: Any = 0.0
    with np.errstate(over="ignore", under="ignore"):  # what is too large is refused where its power is
        for begin in range(0, len(some), _AT_A_TIME):
            part = _double(some[begin : begin + _AT_A_TIME])
            part = part.reshape(len(part), fields, -1) * (0.5 * eps)
            total = total + (part * part).mean(-1).sum(0)
    mean = to_host(total) / len(some)
    return np.asarray(np.maximum(mean, (0.5 * least) ** 2))


def rounding_of_squares(mean_square: Floats, spacing: tuple[float, float]) -> Floats:
    """`rounding_power` (fields,) of fields of this mean square."""
    eps, least = spacing
    return np.asarray(np.maximum(mean_square * (0.5 * eps) ** 2, (0.5 * least) ** 2))


def rounding_of_sums(removed: Floats, mean_square: Floats, eps: float) -> Floats:
    """(fields,): power per mode that rounding can have where a mean field is taken out of sums.

    Of n |phi^|^2 the sums keep n |phi^|^2 eps at best, in the type in which it was transformed, and what that leaves
    is as random as white noise, whatever the number of samples. ``removed`` is the mean square of what is taken out,
    ``mean_square`` that of the data, whose own rounding comes on top.
    """
    computed = float(np.finfo(np.float32 if eps >= np.finfo(np.float32).eps else np.float64).eps)
    return np.asarray(removed * (_ROUNDINGS_OF_SUMS * computed) + mean_square * (0.5 * max(eps, computed)) ** 2)


def about_first(
    array: Any, variance: Floats, rounding: Floats, resolved: tuple[float, float], center: str, ndim: int
) -> Any:
    """Fields less the first sample (or each less its first site), where so little is left beside a mean.

    The mean itself must be exact then. None where there is more, or nothing is subtracted: a mean over n values is off
    by n eps at most, or by the rounding of their type.
    """
    if center == "none" or not is_little(variance, rounding, resolved, len(array), single(array[:0]).dtype):
        return None
    array = single(array)
    return array - (array[:1] if center == "ensemble" else array[(..., *[slice(0, 1)] * ndim)])


def is_little(variance: Floats, rounding: Floats, resolved: tuple[float, float], samples: int, computed: Any) -> bool:
    """Whether a variance (fields,) is so near to rounding that digits are missing; ``computed`` is the type used."""
    factor = max(_FEW, 10.0 * samples) * 2.0 * _spacing(computed)[0] / (resolved[0] or np.inf)
    return bool((variance < factor**2 * rounding).any())


def is_still(array: Any, center: str, resolved: tuple[float, float], ndim: int) -> NDArray[np.bool_]:
    """(fields,): whether what varies in finite fields (samples, ..., lattice) is no more than rounding."""
    n, fields = len(array), int(np.prod(array.shape[1 : array.ndim - ndim]))
    stack = array.reshape(n, fields, -1)
    rounding = rounding_power(array, fields, center, resolved)
    total: Any = 0.0
    squares: Any = 0.0
    first = _double(stack[:1])
    still = np.ones(fields, dtype=bool)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for begin in range(0, n, _AT_A_TIME):
            part = _double(stack[begin : begin + _AT_A_TIME])
            if center == "ensemble":
                part = part - first
            elif center == "sample":
                part = part - part[..., :1]
                part = part - part.mean(-1)[..., None]
            total, squares = total + part.sum(0), squares + (part * part).sum(0)
            # Samples that are still to come can only add to the scatter.
            scatter = squares - total * total / (begin + len(part)) if center == "ensemble" else squares
            still = to_host(scatter.mean(-1)) / n <= rounding
            if not still.any():
                break
    return still


def single(array: Any) -> Any:
    """Half types, which a tensor on a device may have, as float32."""
    return array.float() if is_tensor(array) and array.element_size() < 4 else array


def _double(array: Any) -> Any:
    return array.double() if is_tensor(array) else array.astype(np.float64)
