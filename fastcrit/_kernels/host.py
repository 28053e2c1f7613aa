"""Sums over the samples of numpy arrays, by the compiled core.

Piece by piece, so that what it returns per field stays small beside the fields. device.py has the same for tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import Fields, check_finite
from fastcrit._kernels.contract import HEAVY, Averages, Squares, Trend
from fastcrit._kernels.lattice import CHUNK_BYTES, Lattice, selection

Floats = NDArray[np.float64]

# Amplitudes from this to its inverse have squares that float64 holds, and adds up, with all digits.
SMALLEST_ROOT = 2.0**-485


@dataclass(frozen=True)
class HostSums:
    """`Sums` of numpy arrays."""

    grid: Lattice

    def shell_power(
        self, fields: Fields, shells: int, trend: Trend | None, taper: Floats | None, lead: tuple[int, ...]
    ) -> Fields:
        power = np.empty((len(fields), shells), dtype=fields.dtype)
        for begin, piece in parts(fields) if trend is None and taper is None else pieces(fields):
            prepared = _prepare(piece, trend, taper)
            out = power[begin : begin + len(piece)]
            bad = self.grid.core.shell_power(prepared, out)
            if bad < len(out):
                check_finite(piece[bad : bad + 1], out[bad : bad + 1], begin + bad, lead, "field")
            if trend is None and taper is not None and fields.dtype == np.float32:
                self._tapered_in_double(piece, taper, out)
        return power

    def _tapered_in_double(self, piece: Fields, taper: Floats, out: Fields) -> None:
        """Powers of tapered fields about a large mean, whose own spectrum float32 would round to noise."""
        axes = tuple(range(1, piece.ndim))
        low, high = piece.min(axis=axes), piece.max(axis=axes)
        heavy = np.minimum(np.abs(low), np.abs(high)) > HEAVY * (high - low)
        if heavy.any():
            wide = np.empty((int(heavy.sum()), out.shape[1]))
            self.grid.core.shell_power(piece[heavy] * taper, wide)
            out[heavy] = wide

    def shell_power_unchecked(
        self, fields: Fields, shells: int, trend: Trend | None, taper: Floats | None, lead: tuple[int, ...]
    ) -> tuple[Fields, Callable[[], None]]:
        """See `contract.Sums`. There is no device to wait for."""
        return self.shell_power(fields, shells, trend, taper, lead), lambda: None

    def mode_sums(self, samples: Fields, center: str, blocks: int, name: str) -> tuple[Floats, Floats, Floats]:
        grid = self.grid
        power = np.zeros((blocks, len(grid.orbit_k)))
        first = np.zeros((blocks, grid.ndim))
        squares = Squares()
        modes, order = grid.axis_modes
        selected = selection(grid.shape, modes)
        less_mean = self._less_mean(samples, center, name)
        for begin, piece in pieces(samples):
            values, offset = less_mean(piece)
            sums, amplitudes = grid.core.power(values, "orbits", offset=offset, selected=selected)
            sums = _widened(sums, values, offset, lambda wide: grid.core.power(wide, "orbits")[0])
            _refuse(sums, piece, begin, len(samples), name)
            squares.add(grid.to_shells(sums) / grid.shell_modes)
            first_power = (amplitudes.astype(np.float64) ** 2).sum(axis=-1)[:, order] / grid.sites
            add_to_blocks(power, sums, begin)
            add_to_blocks(first, first_power, begin)
        return power, first, squares.array

    def averages(self, samples: Fields, center: str, blocks: int, shells: int) -> Averages | None:
        """See `contract.Sums`. There is no device."""
        return None

    def lag_sums(self, samples: Fields, center: str, padded: Lattice, pairs: Floats) -> tuple[Floats, Floats]:
        total = np.zeros(len(pairs))
        squares = Squares()
        less_mean = self._less_mean(samples, center, "field")
        for begin, piece in pieces(samples):
            values, offset = less_mean(piece)
            if padded is not self.grid:
                values, offset = pad(_less(values, offset), padded.shape), None
            measure = padded.core.autocorrelation
            sums = _widened(measure(values, offset=offset), values, offset, measure)
            _refuse(sums, piece, begin, len(samples), "field")
            C = sums.astype(np.float64)[:, : len(pairs)] / pairs
            total += C.sum(axis=0)
            squares.add(C)
        return total, squares.array

    def _ensemble_mean(self, samples: Fields, name: str) -> Floats:
        """Mean field over axis 0; NaN and Inf are named."""
        total = np.zeros(samples.shape[1:])
        for _, piece in parts(samples):
            self.grid.core.add_fields(piece, total)
        if not np.isfinite(total).all():  # once subtracted it would spoil every sample
            check_finite(samples, samples, 0, (len(samples),), name)
        return total / len(samples)

    def _less_mean(self, samples: Fields, center: str, name: str) -> Callable[[Fields], tuple[Fields, Fields | None]]:
        """What centres a piece of the samples, right to eps of what is left: values, and what is yet to come off."""
        if center == "none":
            return lambda piece: (piece, None)
        if center == "sample":
            axes = tuple(range(1, samples.ndim))

            def less_own(piece: Fields) -> tuple[Fields, None]:
                with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by its power
                    own = piece.mean(axis=axes, keepdims=True, dtype=np.float64)
                    return np.asarray((piece - own).astype(piece.dtype)), None

            return less_own
        mean = self._ensemble_mean(samples, name)
        near = mean.astype(samples.dtype)
        left = (mean - near).astype(samples.dtype)
        # What float32 drops of a mean is a pattern in all samples; below the rounding of a field's scatter it is none.
        eps = np.finfo(samples.dtype).eps
        if np.abs(left).max() <= eps * np.abs(samples[0] - near).max():
            return lambda piece: (piece, near)
        return lambda piece: (np.asarray(piece - near), left)

    def first_modes(self, samples: Fields, name: str) -> Floats:
        found = [self._first_modes(piece, begin, len(samples), name) for begin, piece in parts(samples)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def _first_modes(self, piece: Fields, begin: int, samples: int, name: str) -> Floats:
        modes = np.empty((1 + 2 * self.grid.ndim, len(piece)))
        bad = self.grid.core.first_modes(piece, modes)
        if bad < len(piece):
            check_finite(piece[bad : bad + 1], modes[None, :, bad], begin + bad, (samples,), name)
        return modes

    def signs(self, samples: Fields, name: str) -> NDArray[np.float32]:
        check_finite(samples, samples, 0, (len(samples),), name)
        return np.where(samples >= 0, np.float32(1), np.float32(-1))


def variance(squares: Floats, mean: Floats, samples: int) -> Floats:
    """(..., columns): variance over samples, from `Squares` (..., 2, columns) and the mean (..., columns)."""
    return np.maximum(squares[..., 1, :] / samples - (mean - squares[..., 0, :]) ** 2, 0.0)


def add_to_blocks(blocks: NDArray[Any], values: NDArray[Any], first: int) -> None:
    """Add row j of ``values`` to block (first + j) mod len(blocks), in the order of the rows.

    The order of additions within a block is that of the samples, so a stream gives the same bits however it is cut.
    """
    n = len(blocks)
    row = 0
    while row < len(values):
        block = (first + row) % n
        take = min(n - block, len(values) - row)
        blocks[block : block + take] += values[row : row + take]
        row += take


def block_squares(values: Floats, blocks: int) -> Floats:
    """(rows, blocks): sums of the squares of columns j, j + blocks, .. of ``values``, which are overwritten."""
    largest = np.abs(values).max()
    if largest > 0 and not SMALLEST_ROOT <= largest <= 1.0 / SMALLEST_ROOT:
        side = "is below" if largest < 1 else "exceeds"
        raise OverflowError(f"field_or_S: the summed power of the fields {side} the range of float64; rescale them")
    values *= values
    rows, n = values.shape
    whole = n // blocks * blocks
    sums: Floats = values[:, :whole].reshape(rows, -1, blocks).sum(axis=1)
    if whole < n:
        sums[:, : n - whole] += values[:, whole:]
    return sums


def parts(fields: Fields) -> Iterator[tuple[int, Fields]]:
    """All fields at once where they are contiguous, otherwise `pieces`."""
    return iter([(0, fields)]) if fields.flags.c_contiguous else pieces(fields)


def pieces(fields: Fields) -> Iterator[tuple[int, Fields]]:
    """Contiguous runs of fields of about CHUNK_BYTES, each with the index of its first field."""
    step = max(64, CHUNK_BYTES // max(1, fields[0].nbytes))
    for begin in range(0, len(fields), step):
        yield begin, np.ascontiguousarray(fields[begin : begin + step])


def pad(fields: Fields, shape: tuple[int, ...]) -> Fields:
    """Fields with zeros behind them on every axis, up to ``shape``."""
    padded = np.zeros((len(fields), *shape), dtype=fields.dtype)
    padded[(slice(None), *(slice(0, side) for side in fields.shape[1:]))] = fields
    return padded


def _less(fields: Fields, offset: Fields | None) -> Fields:
    return fields if offset is None else np.asarray(fields - offset)


def _widened(results: Fields, fields: Fields, offset: Fields | None, measure: Callable[[Fields], Fields]) -> Fields:
    """Results in float64 where float32 had none of a finite field less the offset: measured again in float64."""
    if fields.dtype != np.float32:
        return results
    none = ~np.isfinite(results[:, 0])  # rows of NaN
    if not none.any():
        return results
    left = _less(fields[none], offset)
    if not np.isfinite(left).all():
        return results
    wide = results.astype(np.float64)
    wide[none] = measure(left.astype(np.float64))
    return wide


def _refuse(results: Fields, piece: Fields, begin: int, samples: int, name: str) -> None:
    """Name the first of a piece's fields without a result."""
    check_finite(piece.astype(results.dtype, copy=False), results, begin, (samples,), name)


def _prepare(fields: Fields, trend: Trend | None, taper: Floats | None) -> Fields:
    """Each field less its trend, times the taper; a copy when anything changes."""
    if trend is not None:
        flat = fields.reshape(len(fields), -1).astype(np.float64)
        fields = (flat - (flat @ trend.solve.T) @ trend.design.T).astype(fields.dtype).reshape(fields.shape)
    return fields if taper is None else np.ascontiguousarray(fields * taper.astype(fields.dtype))
