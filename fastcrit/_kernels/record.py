"""A recorder's sums at all its levels: what is alike wherever they lie, and those on the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_finite, is_tensor, to_real
from fastcrit._edge.placement import placed_as, to_host
from fastcrit._kernels.host import add_to_blocks, parts
from fastcrit._kernels.lattice import selection
from fastcrit._kernels.layout import DENOISED, Layout, has_blocks, type_of
from fastcrit._kernels.offset import about, common, offset_of

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]

# Sample numbers are below this.
_MOST = 2**62


class Record(ABC):
    """Sums over samples, by name, with what k = 0 is summed about and how far the samples are numbered.

    Attributes
    ----------
    layout : Layout
    sums : dict of array or tensor
        Those of denoised images are there once the first have come (`make_room`).
    offsets : dict of (levels, C)
        What k = 0 is summed about, of states ("") and of denoised images.
    next, next_gain : (levels,)
        Number of the next sample.
    given : (levels,)
        States that were added.
    eps : (levels,)
        Spacing of the numbers that were recorded, relative: the coarsest type of each level. 0: not known.
    matrices : bool or None
        Whether gains are matrices; None before the first.
    """

    device: torch.device | None = None
    most = _MOST

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.sums: dict[str, Any] = {name: self.zeros(shape, type_of(name)) for name, shape in layout.states.items()}
        self.offsets = {p: self.zeros((layout.levels, layout.channels), np.float64) for p in ("", DENOISED)}
        self.next, self.next_gain, self.given = np.zeros((3, layout.levels), np.int64)
        self.eps = np.zeros(layout.levels)
        self.matrices: bool | None = None

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array where the sums lie."""

    @abstractmethod
    def batch(self, y: Any, name: str) -> Any:
        """What a caller hands over as fields to be added; ValueError where they lie elsewhere."""

    @abstractmethod
    def gains(self, gain: Any) -> Any:
        """Likewise of gains, in float64."""

    @abstractmethod
    def add(self, i: int, states: Any, images: Any, first: int) -> None:
        """Add samples ``first``, .. at level i, and their denoised images or None: all or, by an error, nothing."""

    @abstractmethod
    def add_gains(self, i: int, name: str, values: Any, first: int) -> None:
        """Add gains of samples ``first``, .. to the sums of this name."""

    @abstractmethod
    def check(self, levels: Floats) -> None:
        """ValueError, naming level and sample, if a sample that has been added was not finite."""

    @abstractmethod
    def on_host(self, levels: Floats) -> HostRecord:
        """Itself, or a copy on the host; ValueError as for `check`."""

    def make_room(self) -> None:
        """Sums of denoised images, with their signs."""
        if DENOISED + "count" not in self.sums:
            self.sums |= {name: self.zeros(shape, type_of(name)) for name, shape in self.layout.images.items()}

    def merge(self, other: Record, place: Any) -> None:
        """Add another's sums; ``place`` is where its blocks are among these. ValueError for gains of another kind."""
        kinds = {self.matrices, other.matrices} - {None}
        if len(kinds) > 1:
            raise ValueError("merge: recorders differ in their gains: numbers in one, matrices in the other")
        if DENOISED + "count" in other.sums:
            self.make_room()
        for name, theirs in {**other.sums, **self._meet(other)}.items():
            array = self.sums[name]
            if has_blocks(name):
                array[:, place] += placed_as(array, theirs)
            else:
                array += placed_as(array, theirs)
        self.matrices = next(iter(kinds), None)
        self.eps = np.maximum(self.eps, other.eps)
        # Halves of the largest sample number: their sum is still one.
        self.next = np.minimum(self.next, 2**61) + np.minimum(other.next, 2**61 - 1)
        self.next_gain = np.minimum(self.next_gain, 2**61) + np.minimum(other.next_gain, 2**61 - 1)
        self.given = self.given + other.given

    def replace(self, sums: dict[str, Any], levels: slice) -> None:
        """Replace the sums of these levels by those of a record like it, as `HostRecord.all_sums` has them."""
        if DENOISED + "count" in sums:
            self.make_room()
        for name, array in self.sums.items():
            if name in sums:
                array[levels] = placed_as(array, sums[name])
            else:
                array[levels] = self.layout.unknown(name, sums)
        for prefix, offsets in self.offsets.items():
            offsets[levels] = placed_as(offsets, sums[f"{prefix}offset"]) if f"{prefix}offset" in sums else 0.0
        self.eps[levels] = sums.get("eps", 0.0)  # older files do not say
        self.given[levels] = to_host(sums["count"]).sum(axis=-1)
        if self.layout.channels > 1 and self.layout.gain_shells and bool((self.sums["gain_count"] > 0).any()):
            self.matrices = bool((self.sums["gain_matrix"] != 0).any())

    def _meet(self, other: Record) -> dict[str, Any]:
        """Those sums of another record that change where they are taken about the offsets of this one.

        A level without samples takes the other's offset.
        """
        changed: dict[str, Any] = {}
        for prefix, offsets in self.offsets.items():
            if prefix + "count" not in other.sums:
                continue
            mine, theirs = to_host(offsets), to_host(other.offsets[prefix])
            new = common(to_host(self.sums[prefix + "count"]), mine, theirs)
            offsets[...] = placed_as(offsets, new)
            if (theirs != new).any():
                names = self.layout.added[prefix]
                sums = {name: to_host(other.sums[prefix + name]) for name in names}
                changed |= {prefix + name: x for name, x in about(sums, theirs, new, self.layout.grid.shape).items()}
        return changed

    def _level(self, i: int, prefix: str) -> dict[str, Any]:
        """Sums of states or of denoised images at a level, with their offset."""
        level = {name: self.sums[prefix + name][i] for name in self.layout.added[prefix]}
        level["offset"] = self.offsets[prefix][i]
        return level


class HostRecord(Record):
    """Sums of numpy arrays, by the compiled core."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """See `Record`."""
        return np.zeros(shape, dtype)

    def batch(self, y: Any, name: str) -> NDArray[Any]:
        """See `Record`."""
        if is_tensor(y) and y.device.type != "cpu":
            raise ValueError(
                f"{name}: this recorder is on the host, got a tensor on {y.device}; make the recorder with "
                f"device={str(y.device)!r}, or call .cpu()"
            )
        return to_real(y, name)

    def gains(self, gain: Any) -> NDArray[Any]:
        """See `Record`."""
        return to_real(gain, "gain").astype(np.float64)

    def check(self, levels: Floats) -> None:
        """Nothing: what is not finite was refused."""

    def on_host(self, levels: Floats) -> HostRecord:
        """See `Record`."""
        return self

    def all_sums(self) -> dict[str, NDArray[Any]]:
        """All sums by name, with offsets where there are any and ``eps``: for files and `replace`."""
        offsets = {f"{prefix}offset": values for prefix, values in self.offsets.items() if values.any()}
        return {**self.sums, **offsets, "eps": self.eps}

    def add(self, i: int, states: NDArray[Any], images: NDArray[Any] | None, first: int) -> None:
        """See `Record`."""
        if images is not None:
            self.make_room()
        sums = self._about(i, "", states)
        # The core adds a whole piece or nothing. Where there are several, whatever stops it half-way, an interrupt
        # included, leaves the level as it was.
        whole = images is None and states.flags.c_contiguous
        backup = {} if whole else {name: values.copy() for name, values in sums.items()}
        counted = sums["count"].sum()
        try:
            self._add_pieces(sums, states, first, "y")
            if images is not None:
                self._add_images(i, images, first)
        except BaseException:
            _restore(sums, backup)
            raise
        finally:
            if sums["count"].sum() > counted:
                self.next[i] = first + len(states)
                self.given[i] += len(states)

    def add_gains(self, i: int, name: str, values: NDArray[Any], first: int) -> None:
        """See `Record`."""
        add_to_blocks(self.sums[name][i], values, first)
        add_to_blocks(self.sums["gain_count"][i], np.ones(len(values), np.int64), first)
        self.next_gain[i] = first + len(values)

    def _about(self, i: int, prefix: str, batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The sums of a level, whose first batch fixes what they are about."""
        sums = self._level(i, prefix)
        if not sums["count"].any():
            sums["offset"][...] = offset_of(batch[0].reshape(self.layout.channels, -1))
        return sums

    def _add_images(self, i: int, images: NDArray[Any], first: int) -> None:
        sums = self._about(i, DENOISED, images)
        backup = {} if images.flags.c_contiguous else {name: values.copy() for name, values in sums.items()}
        try:
            self._add_pieces(sums, images, first, "denoised")
        except BaseException:
            _restore(sums, backup)
            raise

    def _add_pieces(self, sums: dict[str, NDArray[Any]], batch: NDArray[Any], first: int, name: str) -> None:
        for begin, piece in parts(batch):
            self._add(sums, piece, first + begin, begin, name)

    def _add(self, sums: dict[str, NDArray[Any]], piece: Any, first: int, begin: int, name: str) -> None:
        """Add samples ``first``, .. of the run to the sums of a level; in their batch they begin at ``begin``."""
        grid, channels, cross = self.layout.grid, self.layout.channels, self.layout.cross
        flat = piece.reshape(-1, *grid.shape)
        modes = selection(grid.shape, self.layout.selected)
        products = None
        if cross is not None and "cross" in sums:
            amplitudes = grid.core.power(flat, "orbits", selected=modes)[1].astype(np.float64)
            first_modes = np.empty((1 + 2 * grid.ndim, len(flat)))
            grid.core.first_modes(flat, first_modes)
            # k = 0 as float64 has it, about the offset
            amplitudes[:, 0, 0] = first_modes[0] - grid.sites * np.tile(sums["offset"], len(piece))
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite, the core refuses
                products = cross.products(amplitudes.reshape(len(piece), channels, -1, 2))
        bad = grid.core.record(flat, channels, first, modes, self.layout.blocks, sums)
        if bad < len(flat):
            if flat.dtype == np.float32 and np.isfinite(flat[bad]).all():  # its squares leave the range of float32
                self._add(sums, piece.astype(np.float64), first, begin, name)
                return
            refused = np.full((1, 1), np.nan)
            check_finite(flat[bad : bad + 1], refused, begin + bad // channels, (_MOST,), name)
        if products is not None:
            add_to_blocks(sums["cross"], products, first)


def _restore(sums: dict[str, NDArray[Any]], backup: dict[str, NDArray[Any]]) -> None:
    for name, before in backup.items():
        sums[name][...] = before
