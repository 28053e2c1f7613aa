"""The public edge for arrays: what comes in (numpy, torch, array-likes) is checked and converted once, here.

It touches torch and never imports it: a tensor can only arrive when the caller already has.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

Fields = NDArray[np.floating[Any]]  # float32 or float64: see to_real

# Types that float32 represents exactly; other integers go to float64.
_SINGLE = (np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.float32)


# Types of device whose tensors are computed where they lie (device.py). Tensors on the CPU are numpy arrays to
# us; the tests name "cpu" here to run what a GPU would.
TENSOR_DEVICES = ["cuda"]


def is_tensor(x: object) -> bool:
    """Whether ``x`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def on_device(x: object) -> TypeGuard[Any]:
    """Whether ``x`` is a tensor that is computed where it lies."""
    return is_tensor(x) and x.device.type in TENSOR_DEVICES  # type: ignore[attr-defined]  # is_tensor imports no torch


def _tensor_to_numpy(x: Any, name: str) -> NDArray[Any]:
    x = _dense(x, name)
    if x.device.type != "cpu":
        raise ValueError(
            f"{name}: expected a CPU tensor or a numpy array, got a tensor on {x.device}; call .cpu() first"
        )
    torch = sys.modules["torch"]
    x = x.detach()
    return np.asarray((x.to(torch.float32) if x.dtype == torch.bfloat16 else x).resolve_conj().resolve_neg().numpy())


def _dense(x: Any, name: str) -> Any:
    """A tensor with a value on every site; TypeError for others (masked, nested, sparse)."""
    if type(x).__name__ == "MaskedTensor":  # torch.masked is a prototype, and warns when it is touched
        if not bool(x.get_mask().all()):
            _refuse_mask(name)
        return x.get_data()
    if x.is_nested or x.layout is not sys.modules["torch"].strided:
        kind, way = ("nested", "torch.nested.to_padded_tensor(..)") if x.is_nested else ("sparse", ".to_dense()")
        raise TypeError(f"{name}: expected a dense tensor, got a {kind} one; call {way} first")
    return x


def _refuse_mask(name: str) -> None:
    raise TypeError(
        f"{name}: expected an array without a mask, since every value counts, got masked ones; call .filled(), or "
        "leave them out"
    )


def to_array(x: Any, name: str) -> NDArray[Any]:
    """``x`` as a numpy array of its own dtype: an array, a tensor on the CPU, or sequences of them, however nested.

    TypeError where a value is masked, at any depth: numpy drops the masks of what stands in a list, and xarray those
    of Dask's arrays. A mask that hides nothing is taken.
    """
    if is_tensor(x):
        return _tensor_to_numpy(x, name)
    if isinstance(x, Sequence) and not isinstance(x, (str, bytes, range)):
        # By the types first: a list of a million plain numbers is not walked through in Python.
        if not all(issubclass(kind, (numbers.Number, np.generic, str)) for kind in set(map(type, x))):
            x = [to_array(item, name) for item in x]
        try:
            return np.asarray(x)
        except ValueError as error:
            raise ValueError(f"{name}: expected an array, got a sequence whose items differ in shape") from error
    if hasattr(x, "dims") and hasattr(x, "data"):  # xarray's
        x = x.data
    array = np.asanyarray(x.compute() if hasattr(x, "__dask_graph__") else x)
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        _refuse_mask(name)
    return np.asarray(array)


def to_numbers(x: Any, name: str, what: str = "real numbers") -> NDArray[np.float64]:
    """A new float64 array of real numbers; TypeError for what is none, and for masked values."""
    array = to_array(x, name)
    try:
        if array.dtype.kind not in "fiubO":
            raise TypeError(f"dtype {array.dtype}")
        with np.errstate(over="ignore"):  # as in to_real
            return np.array(array, dtype=np.float64)
    except (TypeError, ValueError):
        kind = f"dtype {array.dtype}" if hasattr(x, "dtype") else type(x).__name__
        raise TypeError(f"{name}: expected {what}, got {kind}") from None


def to_real(x: Any, name: str) -> Fields:
    """A float32 or float64 array with the values of ``x``, copied only where the dtype changes.

    float32 stays; float16, bfloat16, bool and integers of up to 16 bits become float32; everything else real becomes
    float64. TypeError for complex numbers, strings, objects and masked values.
    """
    array = to_array(x, name)
    if array.dtype.kind == "c":
        raise TypeError(f"{name}: expected real values, got complex ({array.dtype}); pass .real and .imag separately")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    wanted: type[np.floating[Any]] = np.float32 if array.dtype.type in _SINGLE else np.float64
    with np.errstate(over="ignore"):  # a longdouble beyond float64 is infinite, which is refused by name
        return array.astype(wanted, copy=False)


def to_tensor(x: Any, name: str) -> Any:
    """A torch tensor as it is, everything else by `to_array`; only for callers that have imported torch."""
    if is_tensor(x):
        return _dense(x, name)
    array = to_array(x, name)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
    return sys.modules["torch"].from_numpy(np.require(array, requirements=["C", "W"]))  # a copy of what is read-only


def to_fields(x: Any, name: str) -> Any:
    """`to_real`, but a tensor on a device stays there: bulk data is never copied to the host.

    Types as in `to_real`, but for float16 and bfloat16, which stay: what computes in float32 reads them as they are.
    ValueError for tensors on devices that nothing here computes on ("meta").
    """
    if not is_tensor(x) or (x.device.type == "cpu" and not on_device(x)):
        return to_real(x, name)
    if not on_device(x):
        raise ValueError(
            f"{name}: expected a numpy array or a tensor on the CPU or a CUDA device, got a tensor on {x.device}"
        )
    if x.is_complex():
        raise TypeError(f"{name}: expected real values, got complex ({x.dtype}); pass .real and .imag separately")
    torch = sys.modules["torch"]
    x = _dense(x, name).detach()
    if x.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return x
    single = x.dtype in (torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16)
    return x.to(torch.float32 if single else torch.float64)


def same_kind(template: object) -> Callable[[Any], Any]:
    """A function that turns numpy results into what the caller passed: tensors on its device for a tensor."""
    if is_tensor(template):
        torch = sys.modules["torch"]
        device = template.device  # type: ignore[attr-defined]  # is_tensor imports no torch
        return lambda a: a if is_tensor(a) else torch.from_numpy(np.ascontiguousarray(a)).to(device)
    return lambda a: a


def check_grid(array: Any, ndim: int, lead: int, name: str, what: str) -> None:
    """Refuse arrays that do not have ``lead`` or more leading axes before ``ndim`` non-empty lattice axes."""
    check_integer(ndim, "ndim", 1, 4, expected="1, 2 or 3")
    if array.ndim < ndim + lead:
        raise ValueError(f"{name}: expected {what} with ndim={ndim}, got shape {tuple(array.shape)}")
    if 0 in array.shape:
        raise ValueError(f"{name}: empty array of shape {tuple(array.shape)}")


def check_positive(value: float, name: str) -> float:
    """``value`` as a float; ValueError unless it is a positive finite number."""
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return float(value)


def check_finite_number(value: float, name: str) -> float:
    """``value`` as a float; ValueError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return float(value)


# Seeds, and numbers of samples, are below this: each is half of Philox's key.
SEEDS = 2**64


def is_integer(value: object) -> TypeGuard[int | np.integer[Any]]:
    """Whether ``value`` is an integer, Python's or numpy's; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_integer(value: Any, name: str, lowest: int, below: int | None = None, expected: str = "") -> int:
    """``value`` as a plain int (numpy's are not JSON); ValueError unless it is an integer from ``lowest`` on.

    It is less than ``below``, where that is given. ``expected`` says what is, where there is more to say than that.
    """
    if is_integer(value) and value >= lowest and (below is None or value < below):
        return int(value)
    if below is None:
        usual = f"an integer of at least {lowest}"
    else:
        usual = f"an integer from {lowest} to {'2^64 - 1' if below == SEEDS else below - 1}"
    raise ValueError(f"{name}: expected {expected or usual}, got {value!r}")


def check_keys(n_samples: int, first_sample: int, seed: int) -> None:
    """ValueError unless seed and numbers of samples, ``n_samples`` from ``first_sample`` on, fit into Philox's key."""
    for name, value, lowest in (("n_samples", n_samples, 1), ("first_sample", first_sample, 0), ("seed", seed, 0)):
        check_integer(value, name, lowest, SEEDS)
    if int(first_sample) + int(n_samples) > SEEDS:
        raise ValueError(f"first_sample: expected sample numbers below 2^64, got {first_sample}")


def check_seed(value: int) -> None:
    """ValueError for a seed that Philox's key does not hold."""
    if not 0 <= value < SEEDS:
        raise ValueError(f"seed: expected 0 <= seed < 2^64, got {value}")


# No machine has more; torch would try to start them.
_MOST_THREADS = 1024


def check_threads(value: int) -> None:
    """ValueError for more threads than a machine has."""
    if value > _MOST_THREADS:
        raise ValueError(f"threads: expected at most {_MOST_THREADS}, got {value}")


def check_choice(value: object, choices: tuple[str, ...], name: str) -> str:
    """``value`` if it is one of ``choices``, otherwise a ValueError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_levels(levels: Any, *, allow_zero_end: bool = False) -> NDArray[np.float64]:
    """Noise levels as a float64 array; ValueError unless they decrease strictly and are positive and finite."""
    array = to_numbers(levels, "levels", "a sequence of numbers")  # a copy: the caller may go on with theirs
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"levels: expected a non-empty sequence of numbers, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"levels: expected finite numbers, got {array[~np.isfinite(array)][0]} among them")
    inner = array[:-1] if allow_zero_end and array[-1] == 0 else array
    if (inner <= 0).any():
        raise ValueError(f"levels: expected positive noise levels, got {inner[inner <= 0][0]}")
    if (np.diff(array) >= 0).any():
        i = int(np.argmax(np.diff(array) >= 0))
        raise ValueError(f"levels: expected strictly decreasing noise levels, got {array[i]} then {array[i + 1]}")
    return array


def check_finite(fields: Fields, results: NDArray[Any], first: int, lead_shape: tuple[int, ...], name: str) -> None:
    """Name the first field, ``first`` plus its row, whose row of ``results`` is not finite; return if all are."""
    finite = np.isfinite(results).reshape(len(results), -1).all(axis=1)
    if finite.all():
        return
    bad = int(np.argmin(finite))
    where = tuple(int(i) for i in np.unravel_index(first + bad, lead_shape)) if lead_shape else ()
    place = f" at index {where[0] if len(where) == 1 else where}" if where else ""
    if np.isnan(fields[bad]).any():
        raise ValueError(f"{name}: NaN in the field{place}")
    if np.isinf(fields[bad]).any():
        raise ValueError(f"{name}: infinite value in the field{place}")
    side = "is below" if 0 < np.abs(fields[bad]).max() < 1 else "exceeds"
    raise OverflowError(f"{name}: the summed power of the field{place} {side} the range of {fields.dtype}; rescale it")
