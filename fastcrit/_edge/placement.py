"""Where a recorder's sums lie: on the host as numpy arrays, or on a device as tensors. torch is loaded for a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastcrit._edge.arrays import TENSOR_DEVICES, is_tensor
from fastcrit._edge.extras import need

if TYPE_CHECKING:
    import torch

_PURPOSE = "Recorder(device=...)"


def find_device(device: Any) -> torch.device | None:
    """The device meant, with its index; None for the host. ValueError, naming it, where there is no such device."""
    if device is None or (str(device) == "cpu" and "cpu" not in TENSOR_DEVICES):
        return None
    lib = need("torch", _PURPOSE)
    try:
        found: torch.device = lib.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a torch device, such as 'cuda', got {device!r}") from None
    if found.type == "cpu" and "cpu" not in TENSOR_DEVICES:
        return None
    if found.type not in TENSOR_DEVICES:
        raise ValueError(f"device: expected a CUDA device, or None for the host, got {str(found)!r}")
    if found.type != "cuda":
        return found
    devices = lib.cuda.device_count()
    if not devices:
        raise ValueError(f"device: torch sees no CUDA device here, got {str(found)!r}")
    index = lib.cuda.current_device() if found.index is None else found.index
    if index >= devices:
        raise ValueError(f"device: torch sees {devices} CUDA devices here, got {str(found)!r}")
    indexed: torch.device = lib.device("cuda", index)
    return indexed


def usable_device(device: Any) -> str:
    """The name of a device where networks can be; ValueError where torch has none of that name here."""
    lib = need("torch", "a network")
    try:
        lib.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise ValueError(f"device: {str(device)!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return str(device)


def zeros_on(device: torch.device | None) -> Callable[..., Any]:
    """A function (shape, dtype = float64) that makes arrays of zeros there."""
    if device is None:
        return np.zeros
    lib = need("torch", _PURPOSE)
    types = {np.float64: lib.float64, np.int64: lib.int64}
    return lambda shape, dtype=np.float64: lib.zeros(tuple(shape), dtype=types[dtype], device=device)


def to_host(values: Any) -> Any:
    """A numpy array, of a tensor too; that waits for the tensor's device."""
    return values.cpu().numpy() if is_tensor(values) else values


def placed_as(template: Any, values: Any) -> Any:
    """``values`` as the kind of array that ``template`` is, and where it is."""
    if not is_tensor(template):
        return to_host(values)
    return need("torch", _PURPOSE).as_tensor(values, device=template.device)
