"""Shells and symmetry classes of lattice modes as arrays, one cached object per lattice shape.

The tables are made by the compiled core (csrc/common/lattice.cpp), the one place where a shell is defined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import _core

# Fields are handed to the core in pieces of this size, so that what it returns per field stays small beside them.
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Lattice:
    """Mode tables of a periodic lattice with sides ``shape``; wavenumbers in rad per site.

    An *orbit* is a class of modes that reflections and exchanges of equal axes make equivalent: it has one |k| and one
    lattice momentum, so orbit averages lose nothing that a shell or a likelihood in k^2 could use. Orbits ascend in |k|
    and every shell is a run of consecutive orbits.
    """

    core: _core.Spectrometer
    shape: tuple[int, ...]
    orbit_k: NDArray[np.float64]
    orbit_k2: NDArray[np.float64]  # sum_i 4 sin^2(k_i / 2)
    orbit_modes: NDArray[np.int64]
    orbit_of_mode: NDArray[np.int64]  # half spectrum [kx][...]: last axis first
    shell_starts: NDArray[np.int64]
    shell_k: NDArray[np.float64]  # mean |k| of the shell's modes
    shell_k2: NDArray[np.float64]  # mean lattice momentum
    shell_modes: NDArray[np.int64]
    shells_below_nyquist: int
    lag_r: NDArray[np.float64]
    lag_pairs: NDArray[np.int64]  # lattice vectors in each shell of lags
    lags_inside: int

    def __reduce__(self) -> Any:
        return lattice, (self.shape,)

    @property
    def ndim(self) -> int:
        """Number of lattice axes."""
        return len(self.shape)

    @property
    def side(self) -> int:
        """Smallest side of more than one site: what lengths are compared with."""
        return min([side for side in self.shape if side > 1], default=1)

    @property
    def sites(self) -> int:
        """Number of lattice sites."""
        return math.prod(self.shape)

    @cached_property
    def lag_order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sites of the full lattice of lags sorted by shell, and where each shell begins."""
        half = (self.shape[-1] // 2 + 1, *self.shape[:-1])
        shells = np.moveaxis(self.core.lag_shell_of_site.reshape(half), 0, -1)
        last = np.arange(self.shape[-1])
        full = shells[..., np.minimum(last, self.shape[-1] - last)].ravel()
        order = np.argsort(full, kind="stable")
        return order, np.flatnonzero(np.diff(full[order], prepend=-1))

    @property
    def axis_wavenumbers(self) -> list[tuple[int, ...]]:
        """Integer wavenumbers of the mode at 2 pi / L along each axis alone (k = 0 on an axis of one site)."""
        return [tuple(int(a == b and side > 1) for b in range(self.ndim)) for a, side in enumerate(self.shape)]

    @cached_property
    def axis_modes(self) -> tuple[tuple[int, ...], list[int]]:
        """Indices into the half spectrum of the modes at 2 pi / L, each once and ascending; which is whose axis."""
        axes = [self.mode_index(n) for n in self.axis_wavenumbers]
        modes = tuple(sorted(set(axes)))
        return modes, [modes.index(i) for i in axes]

    @cached_property
    def shell_of_mode(self) -> NDArray[np.int64]:
        """Shell of each mode of the half spectrum [kx][...]."""
        return np.searchsorted(self.shell_starts, self.orbit_of_mode, side="right") - 1

    @cached_property
    def half_weights(self) -> NDArray[np.float64]:
        """How many modes of the full lattice each mode of the half spectrum [kx][...] stands for: 1 or 2."""
        last = self.shape[-1]
        kx = np.arange(last // 2 + 1)
        return np.repeat(np.where((kx == 0) | (2 * kx == last), 1.0, 2.0), self.sites // last)

    @cached_property
    def half_wavevectors(self) -> NDArray[np.float64]:
        """Wavevectors (modes, ndim) of the half spectrum [kx][...], rad per site."""
        axes = [2 * np.pi * np.fft.fftfreq(side) for side in self.shape[:-1]]
        last = 2 * np.pi * np.arange(self.shape[-1] // 2 + 1) / self.shape[-1]
        points = np.stack(np.meshgrid(last, *axes, indexing="ij"), axis=-1).reshape(-1, self.ndim)
        return np.roll(points, -1, axis=1)

    def kept_shells(self, corners: bool) -> int:
        """Number of shells: all, or those whose centre does not exceed the smallest Nyquist wavenumber."""
        return len(self.shell_k) if corners else self.shells_below_nyquist

    def to_shells(self, orbit_sums: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over orbits (last axis) gathered into sums over shells, in float64."""
        return np.add.reduceat(orbit_sums, self.shell_starts, axis=-1, dtype=np.float64)

    def mode_index(self, wavenumber: tuple[int, ...]) -> int:
        """Index into the half spectrum of the mode with integer wavenumbers n (k_i = 2 pi n_i / L_i), n_last >= 0."""
        *lead, last = wavenumber
        index = last
        for n, side in zip(lead, self.shape[:-1], strict=True):
            index = index * side + n % side
        return index

    def to_full(self, orbit_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values per orbit (last axis) as half spectra in numpy's rfftn layout (..., N1 .. N_d/2+1)."""
        half = (self.shape[-1] // 2 + 1, *self.shape[:-1])
        return np.moveaxis(
            orbit_values[..., self.orbit_of_mode].reshape(*orbit_values.shape[:-1], *half), -self.ndim, -1
        )


@lru_cache(maxsize=32)
def lattice(shape: tuple[int, ...]) -> Lattice:
    """Tables for a lattice of 1 to 3 axes."""
    core = _core.Spectrometer(shape)
    modes = core.orbit_multiplicity
    # Shells without modes do not appear: a shell begins where the shell number of the sorted orbits changes.
    starts = np.flatnonzero(np.diff(core.orbit_shell, prepend=-1))
    shell_modes = np.add.reduceat(modes, starts)
    below = int(np.searchsorted(core.orbit_shell[starts], core.shells_below_nyquist))
    return Lattice(
        core=core,
        shape=shape,
        orbit_k=core.orbit_k,
        orbit_k2=core.orbit_k2_lattice,
        orbit_modes=modes,
        orbit_of_mode=core.orbit_of_mode,
        shell_starts=starts,
        shell_k=np.add.reduceat(modes * core.orbit_k, starts) / shell_modes,
        shell_k2=np.add.reduceat(modes * core.orbit_k2_lattice, starts) / shell_modes,
        shell_modes=shell_modes,
        shells_below_nyquist=below,
        lag_r=core.lag_r,
        lag_pairs=core.lag_multiplicity,
        lags_inside=core.lag_shells_inside,
    )


@lru_cache(maxsize=64)
def selection(shape: tuple[int, ...], modes: tuple[int, ...]) -> _core.Selection:
    """Modes of the half spectrum, in ascending order, whose amplitudes are wanted."""
    return _core.Selection(lattice(shape).core, modes)
