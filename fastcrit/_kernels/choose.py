"""Where an array lies, there its sums are made: the one place that chooses. torch is loaded for a device alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastcrit._edge.arrays import on_device
from fastcrit._kernels.contract import Sums
from fastcrit._kernels.host import HostSums
from fastcrit._kernels.lattice import Lattice
from fastcrit._kernels.layout import Layout
from fastcrit._kernels.record import HostRecord, Record

if TYPE_CHECKING:
    import torch


def sums_for(array: Any, grid: Lattice) -> Sums:
    """The sums of arrays like ``array``."""
    if not on_device(array):
        return HostSums(grid)
    from fastcrit._kernels.device import DeviceSums

    return DeviceSums(grid, array.device)


def record_on(device: torch.device | None, layout: Layout) -> Record:
    """An empty record there; None is the host."""
    if device is None:
        return HostRecord(layout)
    from fastcrit._kernels.device_record import DeviceRecord

    return DeviceRecord(layout, device)
