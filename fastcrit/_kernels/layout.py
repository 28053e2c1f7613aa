"""What a recorder keeps: its sums by name, their shapes and types, and which of them have jackknife blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import _core
from fastcrit._kernels.cross import CrossShells
from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]

DENOISED = "denoised_"  # before the names of the sums of denoised images

Sides = tuple[str | int, ...]
# Sums of states, which the kernels add up: sizes of their axes after that of the levels, by the table of
# csrc/include/fastcrit/record.hpp. Those of denoised images have the same names behind DENOISED.
_ROWS = [row for row in _core.record_rows() if row[-1] != "given"]
OF_FIELDS: dict[str, Sides] = {name: sides for name, sides, _, _ in _ROWS}
_SIGNS = tuple(name for name, _, _, kept in _ROWS if kept == "signs")
# What is made of a batch beside these.
CROSS: dict[str, Sides] = {"cross": ("blocks", "cross_shells", "channels", "channels")}
GAINS: dict[str, Sides] = {
    "gain": ("blocks", "gain_shells"),
    "gain_count": ("blocks",),
    "gain_matrix": ("blocks", "gain_shells", "channels", "channels"),
}
_TYPES = {name: kind for name, _, kind, _ in _ROWS} | {"gain_count": np.dtype(np.int64)}


@dataclass(frozen=True, eq=False)
class Layout:
    """Of what a recorder keeps sums.

    Attributes
    ----------
    levels : int
    grid : Lattice
    channels, blocks : int
    low_modes : int
        Modes with all ``|n_i|`` up to this are kept one by one.
    signs : bool
        Whether signs of states are kept; those of denoised images always are.
    gain_shells : tuple of int
    """

    levels: int
    grid: Lattice
    channels: int
    blocks: int
    low_modes: int
    signs: bool
    gain_shells: tuple[int, ...]

    @cached_property
    def low(self) -> list[tuple[int, ...]]:
        """Wavenumbers of the modes that are kept one by one, in the order of the half spectrum."""
        return sorted(_low_modes(self.grid.shape, self.low_modes), key=self.grid.mode_index)

    @cached_property
    def selected(self) -> tuple[int, ...]:
        """Their indices into the half spectrum."""
        return tuple(self.grid.mode_index(n) for n in self.low)

    @cached_property
    def cross(self) -> CrossShells | None:
        """The shells in which channels are seen together; None for one channel."""
        return CrossShells(self.grid, self.selected) if self.channels > 1 else None

    @property
    def states(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all sums but those of denoised images, by name."""
        rows = self._rows(OF_FIELDS, () if self.signs else _SIGNS)
        if self.cross is not None:
            rows |= self._rows(CROSS)
        if self.gain_shells:
            rows |= self._rows(GAINS, () if self.channels > 1 else ("gain_matrix",))
        return rows

    @property
    def images(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the sums of denoised images."""
        return {DENOISED + name: shape for name, shape in self._rows(OF_FIELDS).items()}

    @staticmethod
    def unknown(name: str, sums: Iterable[str]) -> float:
        """What stands for a sum that is not among these, of an older version: NaN where its samples are, else 0."""
        prefix = DENOISED if name.startswith(DENOISED) else ""
        made_of_fields = name.removeprefix(prefix) in OF_FIELDS | CROSS
        return np.nan if made_of_fields and f"{prefix}count" in sums else 0.0

    @cached_property
    def added(self) -> dict[str, tuple[str, ...]]:
        """Names of the sums that a batch of states ("") or of denoised images (DENOISED) is added to, without that."""
        images = len(DENOISED)
        return {
            "": tuple(name for name in self.states if name not in GAINS),
            DENOISED: tuple(name[images:] for name in self.images),
        }

    def _rows(self, table: dict[str, Sides], but: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
        sizes = {
            "blocks": self.blocks, "channels": self.channels, "orbits": len(self.grid.orbit_k),
            "selected": len(self.low), "ndim": self.grid.ndim, "sites": self.grid.sites,
            "gain_shells": len(self.gain_shells), "cross_shells": self.cross.count if self.cross else 0,
        }  # fmt: skip
        return {
            name: (self.levels, *(size if isinstance(size, int) else sizes[size] for size in axes))
            for name, axes in table.items() if name not in but
        }  # fmt: skip


def type_of(name: str) -> Any:
    """Numpy's type of a sum."""
    return _TYPES.get(name.removeprefix(DENOISED), np.dtype(np.float64)).type


def has_blocks(name: str) -> bool:
    """Whether a sum is kept for each jackknife block."""
    return "blocks" in (OF_FIELDS | CROSS | GAINS)[name.removeprefix(DENOISED)]


def _low_modes(shape: tuple[int, ...], low: int) -> list[tuple[int, ...]]:
    """Wavenumbers of the half spectrum with every |n_i| <= low, one entry for each mode."""
    axes = [sorted({n % side for n in range(-min(low, side // 2), min(low, side // 2) + 1)}) for side in shape[:-1]]
    axes.append(list(range(min(low, shape[-1] // 2) + 1)))
    return [tuple(point) for point in product(*axes)]
