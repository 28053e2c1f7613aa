"""A recorder's sums on a device: updating launches work there and never waits for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit._edge.arrays import is_tensor, on_device, to_fields, to_real
from fastcrit._edge.placement import to_host, zeros_on
from fastcrit._kernels import device as kernels
from fastcrit._kernels.layout import DENOISED, Layout
from fastcrit._kernels.record import HostRecord, Record
from fastcrit._kernels.torch_record import NONE_BAD, add_gains
from fastcrit._kernels.torch_recording import TorchRecording

Floats = NDArray[np.float64]


class DeviceRecord(Record):
    """Sums of tensors. A sample that is not finite is left out of them, and named by `check`, which waits."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.device = device
        super().__init__(layout)
        self.most //= layout.channels  # fields are numbered, not samples
        self._place_tables()
        # The first field, gain and denoised field of each level that were not finite.
        self._bad = self.zeros((3, layout.levels), np.int64).fill_(NONE_BAD)

    def __getstate__(self) -> dict[str, Any]:
        # Tables on a device are made anew where the record comes to life.
        return {name: value for name, value in vars(self).items() if name not in ("_spectrometer", "_recordings")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._place_tables()

    def _place_tables(self) -> None:
        self._spectrometer = kernels.spectrometer(self.layout.grid.shape, self.device)
        self._spectrometer.prepare(self.layout)
        # What adds to the sums of each level, made when the first batch comes.
        self._recordings: dict[tuple[int, str], TorchRecording] = {}

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Tensor:
        """See `Record`."""
        made: Tensor = zeros_on(self.device)(shape, dtype)
        return made

    def batch(self, y: Any, name: str) -> Tensor:
        """See `Record`."""
        place = y.device if is_tensor(y) else None
        if place != self.device:
            got = "an array on the host" if place is None else f"a tensor on {place}"
            raise ValueError(f"{name}: this recorder is on {self.device}, expected a tensor there, got {got}")
        fields: Tensor = to_fields(y, name)
        return fields

    def gains(self, gain: Any) -> Any:
        """See `Record`. Arrays may come from the host: they are small."""
        if on_device(gain):
            return self.batch(gain, "gain").double()
        return to_real(gain, "gain").astype(np.float64)

    def add(self, i: int, states: Tensor, images: Tensor | None, first: int) -> None:
        """See `Record`."""
        if images is not None:
            self.make_room()
        self._add(i, "", states, first, self._bad[0, i])
        if images is not None:
            self._add(i, DENOISED, images, first, self._bad[2, i])
        self.next[i] = first + len(states)
        self.given[i] += len(states)

    def add_gains(self, i: int, name: str, values: Any, first: int) -> None:
        """See `Record`."""
        placed = torch.as_tensor(values, device=self.device)
        add_gains(placed, first, self.sums[name][i], self.sums["gain_count"][i], self._bad[1, i])
        self.next_gain[i] = first + len(values)

    def replace(self, sums: dict[str, Any], levels: slice) -> None:
        """See `Record`."""
        super().replace(sums, levels)
        self._recordings.clear()  # whose levels may have no samples now

    def check(self, levels: Floats) -> None:
        """See `Record`; waits for the device."""
        fields, gains, images = to_host(self._bad)
        channels = self.layout.channels
        for name, per_level, columns in (("y", fields, channels), ("gain", gains, 1), ("denoised", images, channels)):
            if (per_level < NONE_BAD).any():
                i = int(np.argmax(per_level < NONE_BAD))
                raise ValueError(
                    f"{name}: NaN, an infinite value or one whose square is too large or too small for its type in "
                    f"sample {per_level[i] // columns} at level {i} (s = {levels[i]:.6g})"
                )

    def on_host(self, levels: Floats) -> HostRecord:
        """See `Record`."""
        self.check(levels)
        twin = HostRecord.__new__(HostRecord)
        twin.layout, twin.matrices = self.layout, self.matrices
        twin.next, twin.next_gain, twin.given, twin.eps = self.next, self.next_gain, self.given, self.eps
        twin.sums = {name: to_host(values) for name, values in self.sums.items()}
        twin.offsets = {prefix: to_host(values) for prefix, values in self.offsets.items()}
        return twin

    def _add(self, i: int, prefix: str, batch: Tensor, first: int, bad: Tensor) -> None:
        recording = self._recordings.get((i, prefix))
        if recording is None:
            recording = self._spectrometer.recording(self.layout, self._level(i, prefix), bad)
            self._recordings[i, prefix] = recording
        recording.add(batch, first)
