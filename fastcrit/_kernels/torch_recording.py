"""What adds batches of states to the sums of one level of a recorder on a device, by torch's operations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from fastcrit._kernels.layout import Layout
from fastcrit._kernels.torch_record import NONE_BAD, PIECE_BYTES, add_to_blocks, fix_offset, signs_of


class Measures(Protocol):
    """What a recording asks of a spectrometer, for fields (count, N1, .., Nd)."""

    def measure(self, fields: Tensor, selected: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Orbit sums, selected modes and float64 sums over sites: NaN for a field with a result that is not finite."""

    def measure_signs(self, fields: Tensor) -> Tensor:
        """Orbit sums of the signs."""


class TorchRecording:
    """The sums of one level; only launches work, and never waits.

    As `_core.Spectrometer.record` does it, to rounding, except that samples with a result that is not finite, or that
    is too small for its type, are left out. The number (sample * channels + channel) of the first such field lowers
    ``bad``, one int64.

    Parameters
    ----------
    spectrometer : Measures
    layout : Layout
    sums : dict of tensor
        Sums of a level by name, with their offset; "cross" where products of channels are kept.
    bad : tensor
    """

    def __init__(self, spectrometer: Measures, layout: Layout, sums: dict[str, Tensor], bad: Tensor) -> None:
        self.spectrometer = spectrometer
        self.layout = layout
        self.sums = sums
        self.bad = bad
        self.cross = layout.cross if "cross" in sums else None

    def add(self, batch: Tensor, first: int) -> None:
        """Add samples ``first``, .., (samples, ..) of ``channels`` fields each."""
        fix_offset(self.sums["offset"], self.sums["count"], batch[0].reshape(self.layout.channels, -1))
        for fields, at in self.pieces(batch):
            sums, modes, totals = self.spectrometer.measure(fields, self.layout.selected)
            if "cross" in self.sums:
                self._add_products(modes, totals, first + at)
            signs = self.spectrometer.measure_signs(fields) if "sign_power" in self.sums else None
            self._add(fields, sums, modes, totals, signs, first + at)

    def pieces(self, batch: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Fields (samples times channels, N1, .., Nd) of some samples at a time, and where these begin."""
        grid, channels = self.layout.grid, self.layout.channels
        step = max(1, PIECE_BYTES // (4 * channels * grid.sites))
        for begin in range(0, len(batch), step):
            yield batch[begin : begin + step].reshape(-1, *grid.shape), begin

    def _add_products(self, modes: Tensor, totals: Tensor, first: int) -> None:
        """Add products of channels (see cross.py), of the samples that are finite in all."""
        assert self.cross is not None
        channels = self.layout.channels
        n = len(totals) // channels
        amplitudes = modes.double().view(n, channels, -1, 2)
        totals = totals.view(n, channels)
        # k = 0 as float64 has it, about the offset
        amplitudes[:, :, 0, 0] = totals - self.layout.grid.sites * self.sums["offset"]
        amplitudes[:, :, 0, 1] = 0.0
        finite = totals.isfinite().all(dim=1)
        products = self.cross.products(amplitudes).masked_fill(~finite[:, None, None, None], 0.0)
        add_to_blocks(self.sums["cross"], products, first)

    def _add(
        self, fields: Tensor, sums: Tensor, modes: Tensor, totals: Tensor, sign_sums: Tensor | None, first: int
    ) -> None:
        """Add what was measured of a batch."""
        state, grid, channels = self.sums, self.layout.grid, self.layout.channels
        n, N = len(fields) // channels, grid.sites
        totals = totals.view(n, channels)
        finite = totals.isfinite()
        number = torch.arange(first * channels, (first + n) * channels, device=fields.device)
        self.bad.copy_(torch.minimum(self.bad, number.masked_fill_(finite.view(-1), NONE_BAD).min()))
        good = finite.all(dim=1)
        left_out = ~good[:, None]
        totals = totals.masked_fill(left_out, 0.0)
        sums = sums.view(n, channels, -1).masked_fill_(left_out[..., None], 0.0)
        modes = modes.view(n, channels, -1, 2).masked_fill_(left_out[..., None, None], 0.0)

        def add(name: str, values: Tensor) -> None:
            add_to_blocks(state[name], values, first)

        add("count", good.long())
        # k = 0, the first orbit and the first selected mode, as float64 has it, about the offset.
        m = totals / N
        offset = state["offset"]
        totals = (totals - N * offset).masked_fill(left_out, 0.0)
        u = totals / N
        sums[..., 0] = 0.0
        modes[..., 0, :] = 0.0
        add("power", sums)
        add_to_blocks(state["power"][..., 0], totals * u, first)
        add("low", modes)
        add_to_blocks(state["low"][..., 0, 0], totals, first)
        below = offset < 0
        v = torch.where((m < 0) == below, torch.where(below, -u, u), m.abs() - offset.abs()).masked_fill(left_out, 0.0)
        add("moments", torch.stack([u, v, v.square(), m.square().square()], dim=-1))
        along = [self.layout.selected.index(grid.mode_index(n)) for n in grid.axis_wavenumbers]
        squares = [modes[..., at, :].double().square().sum(dim=-1) if at else totals.square() for at in along]
        add("first", torch.stack(squares, dim=-1) / N)

        def field_sum(values: Tensor) -> Tensor:
            samples = values.reshape(n, channels, N).masked_fill(left_out[..., None], 0.0)
            return samples.sum(dim=0, dtype=torch.float64)

        state["field"] += field_sum(fields)
        if sign_sums is not None:
            add("sign_power", sign_sums.view(n, channels, -1).masked_fill_(left_out[..., None], 0.0))
            state["sign_field"] += field_sum(signs_of(fields))
