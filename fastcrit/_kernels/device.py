"""Sums over the samples of tensors on a device, and what computes there: torch's operations or the core's kernels.

Loaded when the first tensor on a device arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit import _core
from fastcrit._edge.arrays import check_finite
from fastcrit._kernels.contract import Averages, Squares, Trend
from fastcrit._kernels.lattice import Lattice
from fastcrit._kernels.torch_kernels import TorchSpectrometer, has_all_digits, less_uniform, single
from fastcrit._kernels.torch_record import NONE_BAD, add_to_blocks, pieces_of, signs_of

__all__ = ["DeviceSums", "TorchSpectrometer", "cuda_kernels_for", "spectrometer"]

Floats = NDArray[np.float64]


@lru_cache(maxsize=32)
def spectrometer(shape: tuple[int, ...], device: torch.device) -> TorchSpectrometer:
    """The best there is for fields of one shape on a device: CUDA kernels where the core has them for it."""
    if cuda_kernels_for(device):
        from fastcrit._kernels.cuda import CudaSpectrometer

        return CudaSpectrometer(shape, device)
    return TorchSpectrometer(shape, device)


def cuda_kernels_for(device: torch.device) -> bool:
    """Whether the core's CUDA kernels run there. Compiled for the processor (a test build), they take CPU tensors."""
    if not getattr(_core, "cuda_compiled", False):
        return False
    return device.type == ("cpu" if _core.cuda_host else "cuda")


class DeviceSums:
    """`contract.Sums` of tensors on a device. What is returned on the host is small, and waits for the device."""

    def __init__(self, grid: Lattice, device: torch.device) -> None:
        self.grid = grid
        self.spectrometer = spectrometer(grid.shape, device)

    def shell_power(
        self, fields: Tensor, shells: int, trend: Trend | None, taper: Floats | None, lead: tuple[int, ...]
    ) -> Tensor:
        """See `contract.Sums`. Waits for the device once, or once a piece, to know that all is finite."""
        if trend is None and taper is None:
            means = self.spectrometer.finite_means(fields, shells)
            if means is not None:
                return means
        counts = torch.from_numpy(self.grid.shell_modes[:shells]).to(fields.device)
        found = []
        for piece in pieces_of(fields):
            values = _prepare(piece, trend, taper)
            power = self.spectrometer.shell_power(values, shells)
            square = (power * counts).sum(dim=1, dtype=torch.float64) / self.grid.sites
            wide = _widened(power, square, values, lambda x: self.spectrometer.shell_power(x, shells))
            if wide is not power:  # what float32 has no number for is no result
                square = (wide * counts).sum(dim=1) / self.grid.sites
                small = (square > 0) & (square < torch.finfo(power.dtype).tiny)
                power = wide.to(power.dtype).masked_fill(small[:, None], torch.nan)
            if trend is None and taper is not None and power.dtype == torch.float32:
                # The mean's own spectrum is rounded to noise by float32.
                rows = torch.nonzero(less_uniform(single(piece), None)[1])[:, 0]
                if len(rows):
                    tapered = piece[rows].double() * torch.from_numpy(taper).to(piece.device)
                    power[rows] = self.spectrometer.shell_power(tapered, shells).to(power.dtype)
            found.append(power)
        power = torch.cat(found)
        _refuse(power.sum(dim=1, dtype=torch.float64).isfinite(), fields, lead, "field")
        return power

    def shell_power_unchecked(
        self, fields: Tensor, shells: int, trend: Trend | None, taper: Floats | None, lead: tuple[int, ...]
    ) -> tuple[Tensor, Callable[[], None]]:
        """See `contract.Sums`."""
        found = [self.spectrometer.means_and_bad(_prepare(piece, trend, taper), shells) for piece in pieces_of(fields)]
        power = torch.cat([means for means, _ in found]) if len(found) > 1 else found[0][0]

        def check() -> None:
            begin = 0
            for means, first_bad in found:
                row = int(first_bad)
                if row != NONE_BAD:
                    _refuse_row(fields, begin + row, lead, "field")
                begin += len(means)

        return power, check

    def mode_sums(self, samples: Tensor, center: str, blocks: int, name: str) -> tuple[Floats, Floats, Floats]:
        """See `contract.Sums`."""
        grid = self.grid
        power, first = (
            torch.zeros(shape, dtype=torch.float64, device=samples.device)
            for shape in ((blocks, len(grid.orbit_k)), (blocks, grid.ndim))
        )
        squares = Squares()
        modes, order = grid.axis_modes
        centered, offset = _centering(samples, center)
        finite = None
        begin = 0
        for piece in pieces_of(samples):
            values = centered(piece)
            measured, amplitudes = self.spectrometer.power(values, "orbits", offset, modes)
            square = measured.sum(dim=1, dtype=torch.float64) / grid.sites
            less = values if offset is None else (lambda rows, x=values: x[rows] - offset)
            sums = _widened(measured, square, less, lambda x: self.spectrometer.power(x, "orbits")[0])
            if sums is not measured:  # otherwise they have all digits
                finite = _finite(sums, begin, finite, samples)
            squares.add(self.spectrometer.shell_means(sums))
            axis_power = amplitudes.double().square().sum(dim=-1) / grid.sites
            add_to_blocks(power, sums, begin)
            add_to_blocks(first, torch.stack([axis_power[:, i] for i in order], dim=1), begin)
            begin += len(piece)
        if finite is not None:
            _refuse(finite, samples, (len(samples),), name)
        return _to_host(power), _to_host(first), _to_host(squares.array)

    def averages(self, samples: Tensor, center: str, blocks: int, shells: int) -> Averages | None:
        """See `contract.Sums`."""
        return self.spectrometer.averages(samples, center, blocks, shells)

    def lag_sums(self, samples: Tensor, center: str, padded: Lattice, pairs: Floats) -> tuple[Floats, Floats]:
        """See `contract.Sums`."""
        each = spectrometer(padded.shape, samples.device)
        centered, offset = _centering(samples, center)
        divisor = torch.from_numpy(pairs).to(samples.device)
        total = torch.zeros_like(divisor)
        squares = Squares()
        finite = None
        begin = 0
        for piece in pieces_of(samples):
            values = centered(piece)
            values = values if offset is None else values - offset
            if padded is not self.grid:
                values = _pad(values, padded.shape)
            measured = each.autocorrelation(values)
            sums = _widened(measured, measured[:, 0].double(), values, each.autocorrelation)
            if sums is not measured:
                finite = _finite(sums, begin, finite, samples)
            begin += len(piece)
            C = sums[:, : len(pairs)] / divisor
            total += C.sum(dim=0)
            squares.add(C)
        if finite is not None:
            _refuse(finite, samples, (len(samples),), "field")
        return _to_host(total), _to_host(squares.array)

    def first_modes(self, samples: Tensor, name: str) -> Floats:
        """See `contract.Sums`."""
        modes = torch.cat([self.spectrometer.first_modes(piece) for piece in pieces_of(samples)], dim=1)
        _refuse(modes.isfinite().all(dim=0), samples, (len(samples),), name)
        return _to_host(modes)

    def signs(self, samples: Tensor, name: str) -> Tensor:
        """See `contract.Sums`."""
        _refuse(samples.isfinite().flatten(1).all(dim=1), samples, (len(samples),), name)
        return signs_of(samples)


def _centering(samples: Tensor, center: str) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
    """What centres a piece of the samples, right to eps of what is left, and what is then to be subtracted or None.

    Waits for the device.
    """
    if center == "none":
        return lambda piece: piece, None
    if center == "sample":
        return lambda piece: _minus(
            single(piece), piece.mean(dim=tuple(range(1, piece.ndim)), keepdim=True, dtype=torch.float64)
        ), None
    mean = samples.mean(dim=0, dtype=torch.float64)
    near = mean.to(single(samples[:0]).dtype)
    # What float32 drops of a mean is a pattern in all samples; below the rounding of one field's scatter it is none.
    dropped, scatter = (mean - near).abs().max(), (samples[0] - near).abs().max()
    if bool(dropped > torch.finfo(near.dtype).eps * scatter):
        return lambda piece: _minus(single(piece), mean), None
    return lambda piece: piece, near


def _minus(fields: Tensor, mean: Tensor) -> Tensor:
    near = mean.to(fields.dtype)
    return fields - near - (mean - near).to(fields.dtype)


def _widened(
    results: Tensor, squares: Tensor, fields: Tensor | Callable[[Tensor], Tensor], measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Results in float64 where those of some fields are beyond the range of float32, and NaN where it is of no use.

    ``squares`` (count,) are mean squares of the fields; ``fields`` may be a function of the rows asked for. Waits for
    the device.
    """
    good = has_all_digits(results.sum(dim=1, dtype=torch.float64), squares, results.dtype)
    if bool(good.all()):
        return results
    rows = torch.nonzero(~good)[:, 0]
    again = (fields(rows) if callable(fields) else fields[rows]).double()
    wide = results.to(torch.float64, copy=True)
    wide[rows] = measure(again)
    lost = (squares[rows] < torch.finfo(results.dtype).tiny) & (again.flatten(1).abs().amax(dim=1) > 0)
    if results.dtype == torch.float64:
        wide[rows] = wide[rows].masked_fill(lost[:, None], torch.nan)
    return wide


def _finite(sums: Tensor, begin: int, finite: Tensor | None, samples: Tensor) -> Tensor:
    """Which samples have finite sums, of which those from ``begin`` on are here."""
    if finite is None:
        finite = torch.ones(len(samples), dtype=torch.bool, device=samples.device)
    finite[begin : begin + len(sums)] = sums.sum(dim=1, dtype=torch.float64).isfinite()
    return finite


def _prepare(fields: Tensor, trend: Trend | None, taper: Floats | None) -> Tensor:
    """Each field less its trend, times the taper."""
    if trend is not None:
        design, solve = (torch.from_numpy(a).to(fields.device) for a in (trend.design, trend.solve))
        flat = fields.reshape(len(fields), -1).double()
        fields = (flat - (flat @ solve.T) @ design.T).to(single(fields[:0]).dtype).reshape(fields.shape)
    if taper is not None:
        fields = single(fields)
        fields = fields * torch.from_numpy(taper).to(fields.device, fields.dtype)
    return fields


def _pad(fields: Tensor, shape: tuple[int, ...]) -> Tensor:
    padded = single(fields).new_zeros((len(fields), *shape))
    padded[(slice(None), *(slice(0, side) for side in fields.shape[1:]))] = fields
    return padded


def _to_host(values: Tensor) -> NDArray[Any]:
    return np.asarray(values.cpu().numpy())


def _refuse(finite: Tensor, fields: Tensor, lead: tuple[int, ...], name: str) -> None:
    """Name the first field whose results are not finite; waits for the device."""
    if bool(finite.all()):
        return
    given = fields.isfinite().flatten(1).all(dim=1)
    # A mean over samples spreads what is wrong with one of them: the fields themselves come first.
    bad = int((finite if bool(given.all()) else given).to(torch.int8).argmin())
    _refuse_row(fields, bad, lead, name)


def _refuse_row(fields: Tensor, row: int, lead: tuple[int, ...], name: str) -> None:
    """Say what is wrong with a field whose results are not finite."""
    check_finite(_to_host(single(fields[row : row + 1])), np.full((1, 1), np.nan), row, lead, name)
