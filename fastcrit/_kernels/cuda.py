"""The kernels of csrc/cuda on torch tensors: pointers, the current stream, and memory that they can take.

Loaded where the core was built with them, by device.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcrit import _core
from fastcrit._kernels.torch_kernels import TorchSpectrometer, less_uniform, signs, single


class CudaSpectrometer(TorchSpectrometer):
    """The same by the kernels of csrc/cuda; float64 by torch's operations.

    Squares of side 16, 32, 64 and 128 are read once and transformed in shared memory; other shapes go through
    torch.fft. Kernels run on torch's current stream, like the operations before and after them, so that memory which
    torch takes back goes only to work behind them.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        super().__init__(shape, device)
        self._core = _core.CudaSpectrometer(shape, device.index or 0)
        self._chosen: dict[tuple[int, ...], _core.CudaSelection] = {}

    def upload(self, selected: tuple[int, ...]) -> None:
        """As in `TorchSpectrometer`, for the kernels, too."""
        super().upload(selected)
        if selected not in self._chosen:
            self._chosen[selected] = _core.CudaSelection(self._core, selected)

    def power(
        self, fields: Tensor, bins: str, offset: Tensor | None = None, selected: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        if fields.dtype == torch.float64:
            return super().power(fields, bins, offset, selected)
        return self._power(fields, bins, offset, selected, None)

    def autocorrelation(self, fields: Tensor, offset: Tensor | None = None) -> Tensor:
        if fields.dtype == torch.float64:
            return super().autocorrelation(fields, offset)
        correlation = _ready(self._correlation(single(fields), offset))
        sums = correlation.new_empty((len(fields), len(self.grid.lag_r)))
        self._core.lag_sums(correlation.data_ptr(), len(fields), sums.data_ptr(), self._stream())
        return sums

    def first_modes(self, fields: Tensor) -> Tensor:
        if fields.dtype == torch.float64:
            return super().first_modes(fields)
        fields = _ready(fields)
        count = len(fields)
        out = torch.empty((1 + 2 * self.grid.ndim, count), dtype=torch.float64, device=self.device)
        scratch = torch.empty(self._core.first_modes_scratch(count), dtype=torch.uint8, device=self.device)
        self._core.first_modes(
            fields.data_ptr(), _DTYPES[fields.dtype], count, out.data_ptr(), scratch.data_ptr(), self._stream()
        )
        return out

    def _stream(self) -> int:
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
            self.upload(selected)
            chosen = self._chosen[selected]
        results = (sums.data_ptr(), chosen, modes.data_ptr() if chosen else 0, _pointer(totals))
        if self._core.fused:
            fields = _ready(fields)
            less = None if offset is None else _ready(offset.to(torch.float32))
            self._core.power(
                fields.data_ptr(), _DTYPES[fields.dtype], count, _pointer(less), bins,
                *results, self._stream(), of_signs,
            )  # fmt: skip
        else:
            values, uniform, largest = less_uniform(signs(fields) if of_signs else single(fields), offset)
            half = _ready(self._half_spectrum(values))
            self._core.power_from_half_spectrum(half.data_ptr(), count, bins, *results, self._stream())
            self._put_back(uniform, torch.view_as_real(half[:, :1])[:, 0, 0].double(), sums, modes, selected)
            if totals is not None:
                square = sums.sum(dim=1, dtype=torch.float64) / self.grid.sites
                totals.masked_fill_(~self._has_result(square, largest), torch.nan)
        return sums, modes

    def _measure(self, fields: Tensor, selected: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        if fields.dtype == torch.float64:
            return super()._measure(fields, selected)
        if self._core.fused:
            totals = torch.empty(len(fields), dtype=torch.float64, device=self.device)
        else:
            totals = self.first_modes(fields)[0]
        return *self._power(fields, "orbits", None, selected, totals), totals

    def _measure_signs(self, fields: Tensor) -> Tensor:
        if fields.dtype == torch.float64:
            return super()._measure_signs(fields)
        return self._power(fields, "orbits", None, None, None, of_signs=True)[0]

    def _add(
        self,
        fields: Tensor,
        sums: Tensor,
        modes: Tensor,
        totals: Tensor,
        sign_sums: Tensor | None,
        channels: int,
        first: int,
        selected: tuple[int, ...],
        blocks: int,
        state: dict[str, Tensor],
        bad: Tensor,
    ) -> None:
        if fields.dtype == torch.float64:
            super()._add(fields, sums, modes, totals, sign_sums, channels, first, selected, blocks, state, bad)
            return
        fields = _ready(fields)
        self._core.record(
            fields.data_ptr(), _DTYPES[fields.dtype], len(fields) // channels, channels, first,
            self._chosen[selected], blocks, sums.data_ptr(), modes.data_ptr(), totals.data_ptr(),
            _pointer(sign_sums),
            {name: values.data_ptr() for name, values in state.items()}, bad.data_ptr(), self._stream(),
        )  # fmt: skip


def _ready(x: Tensor) -> Tensor:
    """Contiguous and as aligned as what torch allocates, which a view of a longer tensor need not be."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


_DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
