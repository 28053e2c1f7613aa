r"""Spectra of torch tensors where they lie: what the compiled core computes of numpy arrays, on a device.

`TorchSpectrometer` computes with torch's own operations and serves
every device; cuda.py launches the kernels of csrc/cuda instead, where the core was built with them. Definitions and
tables are the core's (see lattice.py); float16, bfloat16 and float32 are computed in float32, float64 in float64, and
what is summed over samples in float64.

Nothing here waits for the device but what says so, and nothing depends on the order in which threads finish: sums over
the modes of a bin are gathers through a table padded to the largest bin, then a sum over its rows. (Scattered additions
would use atomics and differ from run to run; cumulative sums lose digits; a product with a 0/1 matrix may be rounded to
TF32.) Modes are gathered in two steps, first into the orbits of the lattice's symmetry, of 4 modes of the half spectrum
in two dimensions and 24 in three, then into shells: the padding is small and the sums stay short.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit._kernels.contract import HEAVY, Averages
from fastcrit._kernels.lattice import lattice
from fastcrit._kernels.layout import Layout
from fastcrit._kernels.torch_record import NONE_BAD, pieces_of, signs_of
from fastcrit._kernels.torch_recording import TorchRecording

Floats = NDArray[np.float64]

# k = 0 has less than this share of the power of a field whose mean is less than ten standard deviations.
LIGHT = 0.99


class TorchSpectrometer:
    """Lattice tables on a device and sums of fields of one shape, by torch's operations.

    Methods are those of `_core.Spectrometer`, for tensors (count, N1, .., Nd) on ``device``. Results that are not
    finite stay in them: telling would mean waiting for the device.

    Parameters
    ----------
    shape : tuple of int
        Sides N1, .., Nd of the lattice.
    device : torch.device

    Examples
    --------
    >>> import torch
    >>> from fastcrit._kernels.device import TorchSpectrometer
    >>> spectrometer = TorchSpectrometer((16, 16), torch.device("cpu"))
    >>> power, _ = spectrometer.power(torch.ones(3, 16, 16), "shells")
    >>> power[:, :3].tolist()  # a constant has the power N c^2 at k = 0
    [[256.0, 0.0, 0.0], [256.0, 0.0, 0.0], [256.0, 0.0, 0.0]]
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self.grid = lattice(shape)
        self.device = device
        grid = self.grid
        # Core and torch order the half spectrum differently: [kx][..] and [..][kx].
        lead = shape[:-1]
        core = np.moveaxis(np.arange(len(grid.orbit_of_mode)).reshape(shape[-1] // 2 + 1, *lead), 0, -1).ravel()
        self._place = np.argsort(core)  # in torch's half spectrum, of each mode of the core's
        orbit = grid.orbit_of_mode[core]
        self._orbits = _Bins(orbit, grid.half_weights[core] / grid.sites, device)
        shell = np.repeat(np.arange(len(grid.shell_k)), np.diff(grid.shell_starts, append=len(grid.orbit_k)))
        self._shells = _Bins(shell, np.ones(len(shell)), device)
        self._shell_modes = torch.from_numpy(grid.shell_modes).to(device)
        self._selected: dict[tuple[int, ...], Tensor] = {}
        angles = [2.0 * np.pi * np.arange(side) / side for side in shape]
        self._waves = [
            torch.from_numpy(np.stack([np.cos(x), -np.sin(x)]) if len(x) > 1 else np.array([[1.0], [0.0]])).to(device)
            for x in angles
        ]
        self._lags: _Bins | None = None

    def upload(self, selected: tuple[int, ...]) -> None:
        """Put the table of selected modes on the device, which their first use does otherwise (and waits for it)."""
        if selected not in self._selected:
            self._selected[selected] = torch.from_numpy(self._place[list(selected)]).to(self.device)

    def power(
        self, fields: Tensor, bins: str, offset: Tensor | None = None, selected: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sums over bins of |phi^|^2 / N and selected modes.

        Parameters
        ----------
        fields : tensor (count, N1, .., Nd)
        bins : "shells" or "orbits"
        offset : tensor (N1, .., Nd), optional
            Subtracted from every field.
        selected : tuple of int, optional
            Modes whose phi^ is wanted: ascending indices into the core's half spectrum (`Lattice.mode_index`).

        Returns
        -------
        sums (count, bins) and modes (count, selected, 2), re and im
        """
        values, uniform, _ = less_uniform(single(fields), offset)
        return self._power_of(values, uniform, bins, selected)

    def _power_of(
        self, values: Tensor, uniform: Tensor, bins: str, selected: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """`power` of fields that `less_uniform` has prepared."""
        half = self._half_spectrum(values)
        sums = self._orbits.sum(_square(half))
        if bins == "shells":
            sums = self._shells.sum(sums)
        if selected is None:
            modes = sums.new_empty((len(values), 0, 2))
        else:
            self.upload(selected)
            modes = torch.view_as_real(half.index_select(1, self._selected[selected]))
        zero = torch.view_as_real(half[:, :1])[:, 0, 0].double()
        self._put_back(uniform, zero, sums, modes, selected)
        return sums, modes

    def _put_back(
        self, uniform: Tensor, zero: Tensor, sums: Tensor, modes: Tensor, selected: tuple[int, ...] | None
    ) -> None:
        """Give k = 0 what `less_uniform` has taken; ``zero`` (count,) is phi^ there, without it, in float64."""
        taken = uniform != 0
        total = zero + uniform.double() * self.grid.sites
        sums[:, 0] = torch.where(taken, (total * (total / self.grid.sites)).to(sums.dtype), sums[:, 0])
        if selected and selected[0] == 0:
            modes[:, 0, 0] = torch.where(taken, total.to(modes.dtype), modes[:, 0, 0])

    def shell_power(self, fields: Tensor, shells: int) -> Tensor:
        """(count, shells): mean of |phi^|^2 / N over the modes of each of the first shells."""
        return self.power(fields, "shells")[0][:, :shells] / self._shell_modes[:shells]

    def finite_means(self, fields: Tensor, shells: int) -> Tensor | None:
        """`shell_power` with little beside the transform, where every field has all its digits so; otherwise None.

        Waits for the device, once.
        """
        found, good = [], []
        for piece in pieces_of(fields):
            sums = self._shell_sums(single(piece))
            power = sums.sum(dim=1, dtype=torch.float64)
            known = has_all_digits(power, power / self.grid.sites, sums.dtype)
            good.append((known & (sums[:, 0] < LIGHT * power)).all())  # nor is it nearly uniform: see `less_uniform`
            found.append(sums[:, :shells] / self._shell_modes[:shells])
        means = torch.cat(found) if len(found) > 1 else found[0]
        return means if bool(torch.stack(good).all()) else None

    def _shell_sums(self, fields: Tensor) -> Tensor:
        """Sums over shells of fields as they are, float32 or float64."""
        return self._shells.sum(self._orbits.sum(_square(self._half_spectrum(fields))))

    def means_and_bad(self, fields: Tensor, shells: int) -> tuple[Tensor, Tensor]:
        """`shell_power`, and the number of the first field of which its type does not hold all digits, or NONE_BAD.

        Only launches work: a result that is not finite stays, and so does one whose square is too small.
        """
        sums = self.power(fields, "shells")[0]
        means = sums[:, :shells] / self._shell_modes[:shells]
        power = sums.sum(dim=1, dtype=torch.float64)
        some = fields.flatten(1).abs().amax(dim=1) != 0  # also where it is NaN
        good = has_all_digits(power, power / self.grid.sites, sums.dtype) | ~some
        number = torch.arange(len(fields), device=fields.device)
        return means, number.masked_fill(good, NONE_BAD).min()

    def averages(self, samples: Tensor, center: str, blocks: int, shells: int) -> Averages | None:
        """See `contract.Sums`; no operation of torch's does that."""
        return None

    def shell_means(self, orbit_sums: Tensor) -> Tensor:
        """(count, shells), float64: means over the modes of every shell from sums over orbits."""
        return self._shells.sum(orbit_sums, torch.float64) / self._shell_modes

    def autocorrelation(self, fields: Tensor, offset: Tensor | None = None) -> Tensor:
        """(count, lag shells): sum over the lags of each shell of C(r) = 1/N sum_x phi(x) phi(x + r), periodic."""
        return self._sum_lags(self._correlation(single(fields), offset))

    def first_modes(self, fields: Tensor) -> Tensor:
        """(1 + 2 ndim, count), float64: sum over sites, then re and im of phi^ at 2 pi / L of each axis."""
        rows = []
        axes = range(1, fields.ndim)
        for axis, waves in zip(axes, self._waves, strict=True):
            others = [a for a in axes if a != axis]
            profile = fields.sum(dim=others, dtype=torch.float64) if others else fields.double()
            if axis == 1:
                rows.append(profile.sum(dim=1))
            rows += [(profile * wave).sum(dim=1) for wave in waves]
        return torch.stack(rows)

    def prepare(self, layout: Layout) -> None:
        """Put what recording needs on the device, which waits for it."""
        self.upload(layout.selected)
        if layout.cross is not None:
            layout.cross.upload(self.device)

    def recording(self, layout: Layout, sums: dict[str, Tensor], bad: Tensor) -> TorchRecording:
        """What adds batches to the sums of one level; `prepare` comes before."""
        return TorchRecording(self, layout, sums, bad)

    def _half_spectrum(self, fields: Tensor) -> Tensor:
        axes = tuple(range(1, fields.ndim))
        half: Tensor = torch.fft.rfftn(fields, dim=axes)
        return half.reshape(len(fields), -1)

    def _correlation(self, fields: Tensor, offset: Tensor | None) -> Tensor:
        """C(r) on the full lattice of lags, (count, N1, .., Nd)."""
        if offset is not None:
            fields = fields - offset
        axes = tuple(range(1, fields.ndim))
        power = _square(torch.fft.rfftn(fields, dim=axes)).div_(self.grid.sites)
        correlation: Tensor = torch.fft.irfftn(power, s=self.grid.shape, dim=axes)
        return correlation

    def _sum_lags(self, correlation: Tensor) -> Tensor:
        if self._lags is None:
            order, starts = self.grid.lag_order
            shell = np.empty(len(order), np.int64)
            shell[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
            self._lags = _Bins(shell, np.ones(len(order)), self.device)
        return self._lags.sum(correlation.reshape(len(correlation), -1))

    def measure(self, fields: Tensor, selected: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Orbit sums, selected modes and float64 sums over sites: NaN for a field with a result that is not finite."""
        values, uniform, largest = less_uniform(single(fields), None)
        sums, modes = self._power_of(values, uniform, "orbits", selected)
        totals = fields.sum(dim=tuple(range(1, fields.ndim)), dtype=torch.float64)
        square = sums.sum(dim=1, dtype=torch.float64) / self.grid.sites
        return sums, modes, totals.masked_fill_(~self._has_result(square, largest, fourth=True), torch.nan)

    @staticmethod
    def _has_result(square: Tensor, largest: Tensor, fourth: bool = False) -> Tensor:
        """Whether fields of this mean square and largest value are in the range of its type; fourth powers, of float64.

        As the core has it: what is not 0 and has a square below the smallest normal number counts as not finite.
        """
        lowest, highest = torch.finfo(largest.dtype).tiny, torch.finfo(largest.dtype).max
        if fourth and largest.dtype == torch.float64:
            lowest, highest = 2.0**-511, 2.0**511
        return ((square >= lowest) & (square <= highest)) | (largest == 0)

    def measure_signs(self, fields: Tensor) -> Tensor:
        return self.power(signs_of(fields), "orbits")[0]


def _square(half: Tensor) -> Tensor:
    """Squared modulus; abs() would take a root first."""
    return half.real.square().addcmul_(half.imag, half.imag)


class _Bins:
    """Sums of columns by bin, in a fixed order: a table (longest bin, bins) of columns, and what each counts."""

    def __init__(self, bin_of_column: NDArray[np.int64], weights: Floats, device: torch.device) -> None:
        order = np.argsort(bin_of_column, kind="stable")
        lengths = np.bincount(bin_of_column)
        starts = np.cumsum(lengths) - lengths
        row = np.arange(lengths.max())[:, None]
        there = row < lengths
        # Padding repeats the bin's own first column with weight 0: an infinite column spoils no other bin.
        columns = order[starts + np.where(there, row, 0)]
        self._rows = len(columns)
        self._columns = torch.from_numpy(columns.ravel()).to(device)
        self._weights = {
            dtype: torch.from_numpy(np.where(there, weights[columns], 0.0)).to(device, dtype)
            for dtype in (torch.float32, torch.float64)
        }

    def sum(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """(count, bins): sums of values (count, columns), in ``dtype`` or their own."""
        gathered = values.index_select(1, self._columns).view(len(values), self._rows, -1)
        return (gathered.mul_(self._weights[values.dtype])).sum(dim=1, dtype=dtype)


def single(fields: Tensor) -> Tensor:
    """Half types as float32, others as they are."""
    return fields if fields.dtype == torch.float64 else fields.to(torch.float32)


def has_all_digits(total: Tensor, square: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether results of fields, by their total (count,), are finite and not so small that the type loses digits.

    ``square`` (count,) is the fields' mean square.
    """
    limits = torch.finfo(dtype)
    return total.isfinite() & (square >= 2.0 * limits.tiny / limits.eps)


def less_uniform(fields: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Fields less an offset and less what is nearly all of them, which would drown the rest in a transform's rounding.

    Returns the fields, what was taken from each (count,), 0 unless it is HEAVY times the range of its values, and the
    largest size of what each was.
    """
    if offset is not None:
        fields = fields - offset
    low, high = torch.aminmax(fields.flatten(1), dim=1)
    spread = high - low
    middle = low + 0.5 * spread
    uniform = middle.masked_fill(~(middle.abs() > HEAVY * spread), 0.0)
    shape = (-1, *[1] * (fields.ndim - 1))
    return fields - uniform.view(shape), uniform, torch.maximum(low.abs(), high.abs())
