"""The kernels of csrc/cuda on torch tensors: pointers, the current stream, and memory that they can take.

Loaded where the core was built with them, by device.py.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit import _core
from fastcrit._kernels.contract import Averages
from fastcrit._kernels.layout import Layout
from fastcrit._kernels.torch_kernels import TorchSpectrometer, less_uniform, single
from fastcrit._kernels.torch_record import NONE_BAD, signs_of
from fastcrit._kernels.torch_recording import TorchRecording


class CudaSpectrometer(TorchSpectrometer):
    """The same by the kernels of csrc/cuda; float64 by torch's operations.

    Fields of an even height whose sides have no prime factor above 7 are read once and transformed in shared memory, as
    far as they fit; other shapes go through torch.fft. Kernels run on torch's current stream, like the operations
    before and after them, so that memory which torch takes back goes only to work behind them.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__(shape, device)
        self.core = _core.CudaSpectrometer(shape, device.index or 0)
        self._chosen: dict[tuple[int, ...], _core.CudaSelection] = {}
        self._notes = threading.local()
        self._first: _core.CudaSelection | None = None
        self._products: dict[tuple[int, ...], _core.CudaChannelProducts] = {}

    def upload(self, selected: tuple[int, ...]) -> None:
        """As in `TorchSpectrometer`, for the kernels, too."""
        super().upload(selected)
        if selected not in self._chosen:
            self._chosen[selected] = _core.CudaSelection(self.core, selected)

    def selection(self, selected: tuple[int, ...]) -> _core.CudaSelection:
        """The core's table of selected modes."""
        self.upload(selected)
        return self._chosen[selected]

    def prepare(self, layout: Layout) -> None:
        super().prepare(layout)
        if layout.cross is not None and layout.selected not in self._products:
            table = layout.cross.table
            self._products[layout.selected] = _core.CudaChannelProducts(self.selection(layout.selected), *table)

    def products(self, layout: Layout) -> _core.CudaChannelProducts:
        """The core's table of the shells in which channels are seen together."""
        return self._products[layout.selected]

    def recording(self, layout: Layout, sums: dict[str, Tensor], bad: Tensor) -> TorchRecording:
        return CudaRecording(self, layout, sums, bad)

    def finite_means(self, fields: Tensor, shells: int) -> Tensor | None:
        if not self._in_shared_memory(fields):
            return super().finite_means(fields, shells)
        fields = ready(fields)
        note = self._note(0)
        means = self._means(fields, shells, note.address)
        self.wait()
        return means if note.none_bad() else None

    def means_and_bad(self, fields: Tensor, shells: int) -> tuple[Tensor, Tensor]:
        if not self._in_shared_memory(fields):
            return super().means_and_bad(fields, shells)
        bad = torch.full((), NONE_BAD, dtype=torch.int64, device=self.device)
        return self._means(ready(fields), shells, bad.data_ptr()), bad

    def _shell_sums(self, fields: Tensor) -> Tensor:
        if fields.dtype == torch.float64:
            return super()._shell_sums(fields)
        half = ready(self._half_spectrum(fields))
        sums = torch.empty((len(fields), len(self.grid.shell_k)), device=self.device)
        self.core.power_from_half_spectrum(
            half.data_ptr(), len(fields), "shells", sums.data_ptr(), None, 0, 0, self.stream()
        )
        return sums

    def _in_shared_memory(self, fields: Tensor) -> bool:
        return bool(self.core.fused) and fields.dtype != torch.float64

    def _means(self, fields: Tensor, shells: int, bad: int) -> Tensor:
        means = torch.empty((len(fields), shells), device=self.device)
        self.core.shell_means(
            fields.data_ptr(), _DTYPES[fields.dtype], len(fields), means.data_ptr(), shells, bad, self.stream()
        )
        return means

    def averages(self, samples: Tensor, center: str, blocks: int, shells: int) -> Averages | None:
        """See `contract.Sums`. At most three launches and three allocations; waits once."""
        if not self._in_shared_memory(samples):
            return None
        samples = ready(samples)
        grid, n, lead = self.grid, len(samples), samples.shape[1 : -self.grid.ndim]
        channels, orbits = math.prod(lead), len(grid.orbit_k)
        if self._first is None:
            self._first = self.selection(tuple(sorted({0, *grid.axis_modes[0]})))
        note = self._note(channels * (1 + len(grid.shell_k)))
        means = torch.empty((2, *lead, shells), dtype=torch.float64, device=self.device)
        sums = torch.empty(blocks * channels * (orbits + grid.ndim), dtype=torch.float64, device=self.device)
        scratch = self.bytes(self.core.average_scratch(n * channels, center, self._first))
        power, powers = sums.data_ptr(), blocks * channels * orbits
        self.core.average(
            samples.data_ptr(), _DTYPES[samples.dtype], n, channels, blocks, center, self._first, means.data_ptr(),
            shells, power, power + 8 * powers, note.address, scratch.data_ptr(), self.stream(),
        )  # fmt: skip
        self.wait()
        if not note.none_bad():
            return None
        noted = note.values.reshape(channels, -1)
        variance = noted[:, 1:].sum(axis=1) / (n * grid.sites)
        square = noted[:, 0] + (variance if center == "sample" else 0.0)

        def at_rest() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            host = sums.cpu().numpy()
            return host[:powers].reshape(blocks, channels, -1), host[powers:].reshape(blocks, channels, -1)

        return Averages(means, square, variance, at_rest, torch.float32)

    def _note(self, values: int) -> _Note:
        """The thread's own for so many values, whose call waits before another begins."""
        notes = vars(self._notes)
        note = notes.get(str(values))
        if note is None:
            note = notes[str(values)] = _Note(self.device, values)
        note.reset()
        return note

    def wait(self) -> None:
        """Wait for what has been launched on the current stream."""
        if self.device.type != "cpu":
            torch.cuda.current_stream(self.device).synchronize()

    def power(
        self, fields: Tensor, bins: str, offset: Tensor | None = None, selected: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        if fields.dtype == torch.float64:
            return super().power(fields, bins, offset, selected)
        return self._power(fields, bins, offset, selected, None)

    def autocorrelation(self, fields: Tensor, offset: Tensor | None = None) -> Tensor:
        if fields.dtype == torch.float64:
            return super().autocorrelation(fields, offset)
        correlation = ready(self._correlation(single(fields), offset))
        sums = correlation.new_empty((len(fields), len(self.grid.lag_r)))
        self.core.lag_sums(correlation.data_ptr(), len(fields), sums.data_ptr(), self.stream())
        return sums

    def first_modes(self, fields: Tensor) -> Tensor:
        if fields.dtype == torch.float64:
            return super().first_modes(fields)
        fields = ready(fields)
        count = len(fields)
        out = torch.empty((1 + 2 * self.grid.ndim, count), dtype=torch.float64, device=self.device)
        scratch = self.bytes(self.core.first_modes_scratch(count))
        self.core.first_modes(
            fields.data_ptr(), _DTYPES[fields.dtype], count, out.data_ptr(), scratch.data_ptr(), self.stream()
        )
        return out

    def bytes(self, n: int) -> Tensor:
        """Memory for kernels to work in."""
        return torch.empty(n, dtype=torch.uint8, device=self.device)

    def stream(self) -> int:
        """The current stream of torch there, by its address."""
        return 0 if self.device.type == "cpu" else int(torch.cuda.current_stream(self.device).cuda_stream)

    def _power(
        self,
        fields: Tensor,
        bins: str,
        offset: Tensor | None,
        selected: tuple[int, ...] | None,
        totals: Tensor | None,
        of_signs: bool = False,
    ) -> tuple[Tensor, Tensor]:
        count = len(fields)
        columns = len(self.grid.orbit_k) if bins == "orbits" else len(self.grid.shell_k)
        sums = torch.empty((count, columns), device=self.device)
        modes = torch.empty((count, len(selected or ()), 2), device=self.device)
        chosen = None
        if selected is not None:
            chosen = self.selection(selected)
        results = (sums.data_ptr(), chosen, modes.data_ptr() if chosen else 0, _pointer(totals))
        if self.core.fused:
            fields = ready(fields)
            less = None if offset is None else ready(offset.to(torch.float32))
            self.core.power(
                fields.data_ptr(), _DTYPES[fields.dtype], count, _pointer(less), bins,
                *results, self.stream(), of_signs,
            )  # fmt: skip
        else:
            values, uniform, largest = less_uniform(signs_of(fields) if of_signs else single(fields), offset)
            half = ready(self._half_spectrum(values))
            self.core.power_from_half_spectrum(half.data_ptr(), count, bins, *results, self.stream())
            self._put_back(uniform, torch.view_as_real(half[:, :1])[:, 0, 0].double(), sums, modes, selected)
            if totals is not None:
                square = sums.sum(dim=1, dtype=torch.float64) / self.grid.sites
                totals.masked_fill_(~self._has_result(square, largest), torch.nan)
        return sums, modes

    def measure(self, fields: Tensor, selected: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if fields.dtype == torch.float64:
            return super().measure(fields, selected)
        if self.core.fused:
            totals = torch.empty(len(fields), dtype=torch.float64, device=self.device)
        else:
            totals = self.first_modes(fields)[0]
        return *self._power(fields, "orbits", None, selected, totals), totals

    def measure_signs(self, fields: Tensor) -> Tensor:
        if fields.dtype == torch.float64:
            return super().measure_signs(fields)
        return self._power(fields, "orbits", None, None, None, of_signs=True)[0]


class _Note:
    """A number in the host's memory that kernels lower, and float64 values behind it that they write.

    What they find is there as soon as they are done.
    """

    def __init__(self, device: torch.device, values: int) -> None:
        place = torch.empty(1 + values, dtype=torch.int64, pin_memory=device.type != "cpu")
        self._memory = place.numpy()
        self.values = self._memory[1:].view(np.float64)
        self.address = place.data_ptr()

    def reset(self) -> None:
        self._memory[0] = NONE_BAD

    def none_bad(self) -> bool:
        return bool(self._memory[0] == NONE_BAD)


class CudaRecording(TorchRecording):
    """The same by the kernels: two launches a batch of a fused shape, one for the signs, one to add up pieces."""

    def __init__(self, spectrometer: CudaSpectrometer, layout: Layout, sums: dict[str, Tensor], bad: Tensor) -> None:
        super().__init__(spectrometer, layout, sums, bad)
        self.kernels = spectrometer
        selected = spectrometer.selection(layout.selected)
        products = None if self.cross is None else spectrometer.products(layout)
        state = {name: values.data_ptr() for name, values in sums.items()}
        self._core = _core.CudaRecording(
            spectrometer.core, selected, layout.channels, layout.blocks, state, products, bad.data_ptr()
        )
        self._fixed = False

    def add(self, batch: Tensor, first: int) -> None:
        """As in `TorchRecording`; the offset of a level is fixed by the first batch that comes here."""
        if batch.dtype == torch.float64:
            super().add(batch, first)
            return
        kind, stream, channels = _DTYPES[batch.dtype], self.kernels.stream(), self.layout.channels
        for fields, at in self.pieces(batch):
            fields = ready(fields)
            samples = len(fields) // channels
            if not self._fixed:
                self._core.fix_offset(fields.data_ptr(), kind, samples, stream)
                self._fixed = True
            workspace = self.kernels.bytes(self._core.workspace(kind, samples))
            if self.kernels.core.fused:
                self._core.add(fields.data_ptr(), kind, samples, first + at, workspace.data_ptr(), stream)
                continue
            sums, modes, totals = self.kernels.measure(fields, self.layout.selected)
            signs = self.kernels.measure_signs(fields) if "sign_power" in self.sums else None
            self._core.add_measured(
                fields.data_ptr(), kind, samples, first + at, sums.data_ptr(), modes.data_ptr(), totals.data_ptr(),
                _pointer(signs), workspace.data_ptr(), stream,
            )  # fmt: skip


def ready(x: Tensor) -> Tensor:
    """Contiguous and as aligned as what torch allocates, which a view of a longer tensor need not be."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
