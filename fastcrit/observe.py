"""Recorder: streaming, mergeable statistics of states along a trajectory, in memory that samples do not grow."""

from __future__ import annotations

import copy
import json
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.arrays import (
    check_finite,
    check_integer,
    check_levels,
    check_positive,
    is_tensor,
    on_device,
    to_fields,
    to_numbers,
    to_real,
)
from fastcrit._edge.placement import find_device, placed_as, to_host, zeros_on
from fastcrit._edge.statefile import read_state, write_state
from fastcrit._estimates.averages import DEFAULT_BLOCKS
from fastcrit._estimates.dataset import DENOISED, build_dataset
from fastcrit._estimates.rounding import resolution
from fastcrit._kernels.cross import CrossShells
from fastcrit._kernels.host import add_to_blocks, parts
from fastcrit._kernels.lattice import lattice, selection
from fastcrit._kernels.offset import about, common, offset_of

if TYPE_CHECKING:
    from fastcrit._kernels.torch_kernels import TorchSpectrometer

Floats = NDArray[np.float64]

FORMAT = "fastcrit.recorder"
# Version 1 had no denoised images and nothing of channels together, version 2 no offsets; they are still read.
FORMAT_VERSION = 3

# Sums of states; those of denoised images have the same names behind DENOISED.
_OF_STATES = ("count", "power", "low", "first", "moments", "field", "sign_power", "sign_field")


class Recorder:
    r"""Statistics of states y at noise levels s, per level, jackknife block and channel.

    Kept per level and block: the power of every class of equivalent modes (from which shells, correlations and
    likelihood fits all follow), the lowest modes themselves and how channels go together in them, moments of the order
    parameter and of the gains; per level the summed field, so that the ensemble mean can be removed at the end. Nothing
    grows with the number of samples. What samplers know besides, the denoised image D(y; s), is kept likewise.

    Sample j (counted from 0 in the order of recording, or from ``sample=`` of `update`) is in block j mod ``blocks``.
    States of float32 are transformed in float32 (k = 0 in float64), less their uniform mean where it is large: where
    the mean field has structure a thousand times the scatter, pass float64, since it is only removed at the end. Sums
    of k = 0 are about an offset near the mean of a level's first sample, 0 for states about zero. Fields of float32
    whose squares it cannot hold are measured in float64. One recorder belongs to one thread; give each its own and
    merge.

    Merging adds, so recording in any split and any order gives the same dataset to rounding; the same batches give the
    same bits with any number of threads.

    On a CUDA device (``device="cuda"``) states, sums and transforms stay there, and updating launches work without
    waiting for it; so a state that is not finite, or whose squares leave the range of its type, cannot be refused at
    once. It is left out of all sums, and `dataset`, `save`, `merge` and `check` raise the ValueError that names it.
    They wait for the device.

    Parameters
    ----------
    levels : sequence of float
        Noise levels, strictly decreasing and positive (a last 0 is allowed).
    shape : (C, H, W) or (H, W)
        Shape of one state: the last ``ndim`` axes are the lattice, one axis before them are channels.
    ndim : int
        Number of lattice axes.
    blocks : int
        Jackknife blocks.
    spacing : float
        Distance between sites.
    data_std : float
        Standard deviation of the data, to which the softening is scaled.
    low_modes : int
        Modes with all \|n_i\| up to this are kept one by one, and leave-one-out errors remove the ensemble mean exactly
        there. ``xi_ornstein_zernike`` is fitted to wavenumbers up to ``k_max`` = low_modes * 2 pi / (smallest side):
        patterns follow the Ornstein-Zernike form at low k only. (`correlation_length` fits all modes unless told.)
    binarized : bool
        Also record the sign of the field (the length ``xi_binarized``); costs as much again.
    gain_shells : sequence of int
        Shells whose mode gains will be given to `update_gain`, in ascending order.
    denoised : bool
        Also keep what a sampler, or ``update(.., denoised=D)``, gives of the denoised images, with their signs: as much
        memory as a second recorder, once the first arrive.
    device : torch.device or str, optional
        Where the sums live and where states must be: a CUDA device, or None (or "cpu") for the host, by the compiled
        core. States are never copied from one to the other.

    Raises
    ------
    ValueError
        Bad levels, shape, blocks, spacing or shells; a device that torch does not have here.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> rec = fc.Recorder([10.0, 1.0], shape=(16, 16))
    >>> rng = np.random.default_rng(0)
    >>> for i, s in enumerate(rec.levels):
    ...     rec.update(i, s * rng.normal(size=(100, 16, 16)))
    >>> ds = rec.dataset()
    >>> bool(abs(ds.S.sel(level=10.0)[3] / 100 - 1) < 0.1)
    True
    """

    def __init__(
        self,
        levels: Any,
        shape: Sequence[int],
        *,
        ndim: int = 2,
        blocks: int = DEFAULT_BLOCKS,
        spacing: float = 1.0,
        data_std: float = 1.0,
        low_modes: int = 8,
        binarized: bool = False,
        gain_shells: Sequence[int] = (),
        denoised: bool = True,
        device: Any = None,
    ) -> None:
        self.levels = check_levels(levels, allow_zero_end=True)
        try:
            self.shape = tuple(operator.index(n) for n in shape)
        except TypeError:
            raise TypeError(f"shape: expected the shape of one state, such as (C, H, W), got {shape!r}") from None
        if ndim not in (1, 2, 3) or len(self.shape) not in (ndim, ndim + 1) or min(self.shape, default=0) < 1:
            raise ValueError(f"shape: expected ndim={ndim} positive sides, with or without channels, got {shape!r}")
        for name, value, lowest in (("blocks", blocks, 2), ("low_modes", low_modes, 1)):
            check_integer(value, name, lowest)
        self.ndim = int(ndim)
        self.blocks = int(blocks)
        self.spacing = check_positive(spacing, "spacing")
        self.data_std = check_positive(data_std, "data_std")
        self.low_modes = int(low_modes)
        self.binarized = bool(binarized)
        self.denoised = bool(denoised)
        self.grid = lattice(self.shape[-ndim:])
        self.k_max = self.low_modes * 2.0 * np.pi / (self.grid.side * self.spacing)
        self.has_channels = len(self.shape) == ndim + 1
        self.channels = self.shape[0] if self.has_channels else 1
        self.gain_shells = tuple(int(k) for k in gain_shells)
        if any(b <= a for a, b in zip(self.gain_shells, self.gain_shells[1:], strict=False)) or any(
            not 0 <= k < self.grid.shells_below_nyquist for k in self.gain_shells
        ):
            raise ValueError(
                f"gain_shells: expected ascending shells below {self.grid.shells_below_nyquist}, "
                f"got {list(gain_shells)}"
            )
        self.low = sorted(_low_modes(self.grid.shape, self.low_modes), key=self.grid.mode_index)
        self._low_indices = tuple(self.grid.mode_index(n) for n in self.low)
        self.cross = CrossShells(self.grid, self._low_indices) if self.channels > 1 else None
        self.device = find_device(device)
        self._next = np.zeros(len(self.levels), np.int64)
        self._next_gain = np.zeros(len(self.levels), np.int64)
        self._gains_are_matrices: bool | None = None
        # Spacing of the numbers that were recorded, relative: the coarsest type of each level.
        self._eps = np.zeros(len(self.levels))
        self.state = self._empty_state()
        # (levels, C): what k = 0 is summed about, of states and of denoised images; and whether a level has it.
        self._offsets = {prefix: zeros_on(self.device)((len(self.levels), self.channels)) for prefix in ("", DENOISED)}
        # (3, levels) on a device: the first field, gain and denoised field that were not finite.
        self._bad: Any = None
        if self.device is not None:
            self._bad = zeros_on(self.device)((3, len(self.levels)), np.int64).fill_(2**63 - 1)
            self._spectrometer().upload(self._low_indices)
            if self.cross:
                self.cross.upload(self.device)

    def update(self, i: int, y: Any, *, denoised: Any = None, sample: int | None = None) -> None:
        """Add a batch of states at ``levels[i]``, and their denoised images.

        Parameters
        ----------
        i : int
            Index of the level.
        y : array or tensor (batch, *shape)
        denoised : array or tensor (batch, *shape), optional
            D(y; s); passed over by a recorder made with ``denoised=False``.
        sample : int, optional
            Number of the batch's first sample in the whole run; default: as many as this level has seen.

        Raises
        ------
        ValueError
            A level that is not there, states of another shape or on another device, NaN or Inf (the message says in
            which sample). The recorder is then as it was. (On a CUDA device NaN and Inf are named later: see above.)
        TypeError
            Complex values, strings.
        OverflowError
            Fields of float64 whose squares (of the mean, fourth powers) are beyond its range.

        Notes
        -----
        On a CUDA device this can be captured in a CUDA graph after one call outside. Every replay adds the states that
        it finds in ``y``, under the sample numbers of the captured call: to the same jackknife blocks.
        """
        i = self._check_level(i)
        states = self._batch(y, "y")
        images = None if denoised is None or not self.denoised else self._batch(denoised, "denoised")
        if images is not None and len(images) != len(states):
            raise ValueError(f"denoised: expected as many images as states, {len(states)}, got {len(images)}")
        first = self._first_sample(sample, self._next[i])
        self._eps[i] = max(self._eps[i], resolution(y, states)[0])
        if images is not None:
            self._make_room()
        sums = self._sums(i, "", states)
        if self.device is not None:
            self._record(sums, states, first, self._bad[0, i])
            if images is not None:
                self._record(self._sums(i, DENOISED, images), images, first, self._bad[2, i])
            self._next[i] = first + len(states)
            return
        # The core adds a whole piece or nothing. Where there are several, whatever stops it half-way, an interrupt
        # included, leaves the level as it was.
        whole = images is None and states.flags.c_contiguous
        backup = {} if whole else {name: values.copy() for name, values in sums.items()}
        counted = sums["count"].sum()
        try:
            for begin, piece in parts(states):
                self._add(sums, piece, first + begin, begin, "y")
            if images is not None:
                self._add_images(i, images, first)
        except BaseException:
            for name, before in backup.items():
                sums[name][...] = before
            raise
        finally:
            if sums["count"].sum() > counted:
                self._next[i] = first + len(states)

    def __call__(self, i: int, s: float, y: Any, D: Any) -> None:
        """Observe a sampler: `update` with what it has at level ``i``; ValueError unless ``s`` is that level."""
        level = self.levels[self._check_level(i)]
        if not np.isclose(level, s, rtol=1e-6, atol=0):
            raise ValueError(f"levels: this recorder has {level:.6g} at index {i}, the sampler {float(s):.6g}")
        self.update(i, y, denoised=D)

    def positions_in(self, levels: Any) -> dict[int, int]:
        """Where this recorder's levels are among a sampler's: {index in ``levels``: index here}.

        Raises
        ------
        ValueError
            A level that is not among them.
        """
        among = to_numbers(levels, "levels")
        found = {}
        for i, s in enumerate(self.levels):
            at = np.flatnonzero(np.isclose(among, s, rtol=1e-6, atol=0))
            if at.size != 1:
                raise ValueError(f"recorder: its level {s:.6g} is not among the sampling levels")
            found[int(at[0])] = i
        return found

    def update_gain(self, i: int, gain: Any, *, sample: int | None = None) -> None:
        """Add mode gains of states at ``levels[i]``: the real part, averaged over a shell.

        Numbers (batch, len(gain_shells)), or of several channels matrices (batch, len(gain_shells), C, C) as
        `ModeResponse.matrix_samples` has them; from these the softest collective mode is found when all are there. One
        recorder takes one kind. Arrays, or a tensor on the recorder's device. (`mode_response` returns arrays: they are
        small.)

        Raises
        ------
        ValueError
            As for `update`; also when the recorder was made without ``gain_shells``, or has gains of the other kind.
        """
        i = self._check_level(i)
        if not self.gain_shells:
            raise ValueError("gain: this recorder was made without gain_shells")
        if self.device is not None and on_device(gain):
            self._check_device(gain, "gain")
            values = to_fields(gain, "gain").double()
        else:
            values = to_real(gain, "gain").astype(np.float64)
        shells, C = len(self.gain_shells), self.channels
        matrices = values.ndim == 4
        if tuple(values.shape[1:]) != ((shells, C, C) if matrices else (shells,)) or len(values) == 0:
            also = f" or (batch, {shells}, {C}, {C})" if C > 1 else ""
            raise ValueError(f"gain: expected shape (batch, {shells}){also}, got {tuple(values.shape)}")
        first = self._first_sample(sample, self._next_gain[i])
        if not is_tensor(values):
            check_finite(values, values, 0, (len(values),), "gain")
        if C > 1:
            if self._gains_are_matrices not in (None, matrices):
                kind = "numbers" if matrices else "matrices"
                raise ValueError(f"gain: this recorder has gains that are {kind}, got shape {tuple(values.shape)}")
            self._gains_are_matrices = matrices
        elif matrices:
            values, matrices = values[..., 0, 0], False
        name = "gain_matrix" if matrices else "gain"
        sums, count = self.state[name][i], self.state["gain_count"][i]
        if self.device is None:
            add_to_blocks(sums, values, first)
            add_to_blocks(count, np.ones(len(values), np.int64), first)
        else:
            from fastcrit._kernels.torch_record import add_gains

            add_gains(placed_as(sums, values), first, sums, count, self._bad[1, i])
        self._next_gain[i] = first + len(values)

    def check(self) -> None:
        """ValueError, naming level and sample, if a state recorded on a device was not finite; waits for the device."""
        if self.device is None:
            return
        fields, gains, images = to_host(self._bad)
        for name, per_level, columns in (
            ("y", fields, self.channels), ("gain", gains, 1), ("denoised", images, self.channels)
        ):  # fmt: skip
            for i in np.flatnonzero(per_level < 2**63 - 1):
                raise ValueError(
                    f"{name}: NaN, an infinite value or one whose square is too large or too small for its type in "
                    f"sample {per_level[i] // columns} at level {i} (s = {self.levels[i]:.6g})"
                )

    def merge(self, other: Recorder, *, first_block: int | None = None) -> None:
        """Add what ``other`` recorded; ValueError, naming what differs, unless both were made alike.

        The two may be on different devices: only sums are copied. With ``first_block`` the number of blocks may differ:
        block b of ``other`` is added to block (first_block + b) mod ``blocks`` of this one. So can a few trajectories,
        recorded apart in few blocks, be kept small and become blocks of many.
        """
        if not isinstance(other, Recorder):
            raise TypeError(f"merge: expected a Recorder, got {type(other).__name__}")
        if other is self:
            raise ValueError("merge: a recorder cannot be merged with itself; its samples would count twice")
        mine, theirs = self.config(), other.config()
        for key, value in mine.items():
            if theirs[key] != value and not (key == "blocks" and first_block is not None):
                raise ValueError(f"merge: recorders differ in {key}: {value} here, {theirs[key]} there")
        self.check()
        other.check()
        place: Any = slice(None)
        if first_block is not None:
            first = check_integer(first_block, "first_block", 0)
            if other.blocks > self.blocks:
                raise ValueError(f"merge: expected at most {self.blocks} blocks, as there are here, got {other.blocks}")
            place = [(first + b) % self.blocks for b in range(other.blocks)]
        kinds = {self._gains_are_matrices, other._gains_are_matrices} - {None}
        if len(kinds) > 1:
            raise ValueError("merge: recorders differ in their gains: numbers in one, matrices in the other")
        if DENOISED + "count" in other.state:
            self._make_room()
        for name, theirs_there in {**other.state, **self._meet(other)}.items():
            array = self.state[name]
            if name.endswith("field"):  # has no blocks
                array += placed_as(array, theirs_there)
            else:
                array[:, place] += placed_as(array, theirs_there)
        self._gains_are_matrices = next(iter(kinds), None)
        self._eps = np.maximum(self._eps, other._eps)
        # Halves of the largest sample number: their sum is still one.
        self._next = np.minimum(self._next, 2**61) + np.minimum(other._next, 2**61 - 1)
        self._next_gain = np.minimum(self._next_gain, 2**61) + np.minimum(other._next_gain, 2**61 - 1)

    def save(self, path: Any) -> None:
        """Write everything to one file (safetensors, with a format version and a checksum), atomically."""
        counters = {"next": self._next, "next_gain": self._next_gain, "eps": self._eps}
        write_state(path, FORMAT, FORMAT_VERSION, self.config(), {**self.sums(), **counters})

    @classmethod
    def load(cls, path: Any, *, device: Any = None) -> Recorder:
        """Read a file written by `save`, onto the host or a CUDA device, wherever it was recorded.

        Raises
        ------
        FileNotFoundError
            No such file.
        FileFormatError
            The file is damaged, or is not a fastcrit recorder; the message names it.
        """
        config, arrays = read_state(path, FORMAT, (1, 2, FORMAT_VERSION))
        recorder = cls(**config, device=device)
        recorder._next = arrays.pop("next")
        recorder._next_gain = arrays.pop("next_gain")
        recorder._eps = arrays.pop("eps", recorder._eps)  # older files do not say
        recorder.set_sums(arrays)
        return recorder

    def sums(self) -> dict[str, Any]:
        """Everything recorded, as arrays on the host by name; ValueError if a state on a device was not finite."""
        here = self._on_host()
        offsets = {f"{prefix}offset": values for prefix, values in here._offsets.items() if values.any()}
        return {**here.state, **offsets} if offsets else here.state

    def set_sums(self, sums: dict[str, Any], levels: slice = slice(None)) -> None:
        """Replace everything recorded by what `sums` of a recorder made alike has returned.

        With ``levels`` those of a run of levels, by what a recorder of these alone has.
        """
        if DENOISED + "count" in sums:
            self._make_room()
        for name, array in self.state.items():
            if name in sums:
                array[levels] = placed_as(array, sums[name])
            else:  # of an older version: unknown where there are samples, not 0
                array[levels] = np.nan if name == "cross" else 0
        for prefix, offsets in self._offsets.items():
            offsets[levels] = placed_as(offsets, sums[f"{prefix}offset"]) if f"{prefix}offset" in sums else 0.0
        if self.channels > 1 and self.gain_shells and bool((self.state["gain_count"] > 0).any()):
            self._gains_are_matrices = bool((self.state["gain_matrix"] != 0).any())

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        most = int(self.state["count"].sum(axis=1).max())
        where = "" if self.device is None else f" on {self.device}"
        return f"<Recorder{where}: {len(self.levels)} levels of {shape} states, up to {most} samples a level>"

    def config(self) -> dict[str, Any]:
        """The arguments that make a recorder like this one, but for its device."""
        made = {
            "levels": self.levels.tolist(),
            "shape": list(self.shape),
            "ndim": self.ndim,
            "blocks": self.blocks,
            "spacing": self.spacing,
            "data_std": self.data_std,
            "low_modes": self.low_modes,
            "binarized": self.binarized,
            "gain_shells": list(self.gain_shells),
            "denoised": self.denoised,
        }
        return dict(json.loads(json.dumps(made)))

    def dataset(self, lengths: Sequence[str] | None = None, *, periodic: bool = True) -> xr.Dataset:
        """Everything recorded as an `xarray.Dataset` with dims level, k, r, shell and (for (C, H, W) states) channel.

        ``S``, ``C``, ``xi_<method>``, ``m`` (mean), ``abs_m``, ``chi``, ``binder``, ``gain_on_trajectories``,
        ``softening``, ``drift_rate``, ``xi_eq`` and ``xi_drift`` with ``_stderr`` and (but for S and C) over dim block
        ``_jackknife``, the value without that block. Of denoised images ``S_denoised``, ``C_denoised`` and
        ``xi_<method>_denoised``, ``binarized`` among them. Of several channels ``cross_spectrum`` of the lowest shells;
        gains that are matrices become ``gain_matrix``, and the gain is that of the softest collective mode, whose
        direction is ``gain_eigenvector``.
        Lengths have the state's own noise s^2 taken out as a known background; ``xi_<method>_flags`` says where they
        have no answer. Levels without samples are NaN.

        Parameters
        ----------
        lengths : sequence of str, optional
            Methods of `correlation_length`. Default: ornstein_zernike and second_moment, and for fields on a torus
            efold.
        periodic : bool
            False for states cut from larger fields: lengths as `correlation_length` has them of crops. Those two only:
            the others need pairs of sites inside the field, which sums of power do not have. S and C stay those of the
            torus.

        Raises
        ------
        ValueError
            A level with a single sample: the ensemble mean cannot be removed from it. A state on a device that was not
            finite. A length that cannot be had of crops.

        Examples
        --------
        Variables that share their dims are a table for pandas, a row for each level:

        >>> import numpy as np, fastcrit as fc
        >>> rec = fc.Recorder([10.0, 1.0], shape=(16, 16))
        >>> rng = np.random.default_rng(0)
        >>> for i, s in enumerate(rec.levels):
        ...     rec.update(i, s * rng.normal(size=(100, 16, 16)))
        >>> table = rec.dataset()[["chi", "chi_stderr"]].to_dataframe()
        >>> sorted(table.columns)
        ['chi', 'chi_stderr', 'n_samples']
        >>> table.index.to_list()
        [10.0, 1.0]
        """
        return build_dataset(self._on_host(), None if lengths is None else tuple(lengths), periodic)

    def _batch(self, y: Any, name: str) -> Any:
        """A batch of states as the sums take them; ValueError for another shape or device."""
        self._check_device(y, name)
        array: Any = to_fields(y, name) if self.device else to_real(y, name)
        if tuple(array.shape[1:]) != self.shape or array.ndim == 0:
            raise ValueError(f"{name}: expected states of shape (batch, *{self.shape}), got {tuple(array.shape)}")
        if len(array) == 0:
            raise ValueError(f"{name}: empty batch")
        return array

    def _sums(self, i: int, prefix: str, batch: Any) -> dict[str, Any]:
        """Of states or of denoised images at a level; its first batch fixes what they are about."""
        names = _OF_STATES if prefix else (*_OF_STATES, "cross")
        sums = {name: self.state[prefix + name][i] for name in names if prefix + name in self.state}
        offset = self._offsets[prefix][i]
        sample = batch[0].reshape(self.channels, -1)
        if self.device is not None:
            from fastcrit._kernels.torch_record import fix_offset

            fix_offset(offset, sums["count"], sample)
        elif not sums["count"].any():
            offset[...] = offset_of(sample)
        return sums | {"offset": offset}

    def _meet(self, other: Recorder) -> dict[str, Any]:
        """Those sums of another recorder that change where they are taken about the offsets of this one.

        A level without samples takes the other's offset.
        """
        changed: dict[str, Any] = {}
        for prefix, offsets in self._offsets.items():
            if prefix + "count" not in other.state:
                continue
            mine, theirs = to_host(offsets), to_host(other._offsets[prefix])
            new = common(to_host(self.state[prefix + "count"]), mine, theirs)
            offsets[...] = placed_as(offsets, new)
            if (theirs != new).any():
                names = _OF_STATES if prefix else (*_OF_STATES, "cross")
                sums = {name: to_host(other.state[prefix + name]) for name in names if prefix + name in other.state}
                changed |= {prefix + name: x for name, x in about(sums, theirs, new, self.grid.shape).items()}
        return changed

    def _make_room(self) -> None:
        """Sums of denoised images, with their signs."""
        if DENOISED + "count" not in self.state:
            self.state |= {DENOISED + name: values for name, values in self._empty_sums(signs=True).items()}

    def _check_level(self, i: int) -> int:
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < len(self.levels):
            raise ValueError(f"i: expected a level index from 0 to {len(self.levels) - 1}, got {i!r}")
        return int(i)

    def _check_device(self, x: Any, name: str) -> None:
        place = x.device if is_tensor(x) else None
        if self.device is None and place is not None and place.type != "cpu":
            raise ValueError(
                f"{name}: this recorder is on the host, got a tensor on {place}; make the recorder with "
                f"device={str(place)!r}, or call .cpu()"
            )
        if self.device is not None and place != self.device:
            got = "an array on the host" if place is None else f"a tensor on {place}"
            raise ValueError(f"{name}: this recorder is on {self.device}, expected a tensor there, got {got}")

    def _spectrometer(self) -> TorchSpectrometer:
        from fastcrit._kernels.device import spectrometer

        assert self.device is not None
        return spectrometer(self.grid.shape, self.device)

    def _on_host(self) -> Recorder:
        """Itself, or a copy of one on a device; ValueError if a state was not finite."""
        if self.device is None:
            return self
        self.check()
        twin = copy.copy(self)
        twin.device = None
        twin.state = {name: to_host(values) for name, values in self.state.items()}
        twin._offsets = {prefix: to_host(values) for prefix, values in self._offsets.items()}
        return twin

    def _first_sample(self, sample: int | None, default: Any) -> int:
        if sample is None:
            sample = int(default)
        # On a device fields are numbered, not samples.
        most = 2**62 // (1 if self.device is None else self.channels)
        if isinstance(sample, bool) or not isinstance(sample, (int, np.integer)) or not 0 <= sample < most:
            raise ValueError(f"sample: expected the number of the batch's first sample, >= 0, got {sample!r}")
        return int(sample)

    def _add(self, sums: dict[str, NDArray[Any]], piece: Any, first: int, begin: int, name: str) -> None:
        """Add samples ``first``, .. of the run to the sums of a level; in their batch they begin at ``begin``."""
        flat = piece.reshape(-1, *self.grid.shape)
        modes = selection(self.grid.shape, self._low_indices)
        products = None
        if self.cross is not None and "cross" in sums:
            amplitudes = self.grid.core.power(flat, "orbits", selected=modes)[1].astype(np.float64)
            first_modes = np.empty((1 + 2 * self.ndim, len(flat)))
            self.grid.core.first_modes(flat, first_modes)
            # k = 0 as float64 has it, about the offset
            amplitudes[:, 0, 0] = first_modes[0] - self.grid.sites * np.tile(sums["offset"], len(piece))
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite, the core refuses
                products = self.cross.products(amplitudes.reshape(len(piece), self.channels, -1, 2))
        bad = self.grid.core.record(flat, self.channels, first, modes, self.blocks, sums)
        if bad < len(flat):
            if flat.dtype == np.float32 and np.isfinite(flat[bad]).all():  # its squares leave the range of float32
                self._add(sums, piece.astype(np.float64), first, begin, name)
                return
            refused = np.full((1, 1), np.nan)
            check_finite(flat[bad : bad + 1], refused, begin + bad // self.channels, (2**62,), name)
        if products is not None:
            add_to_blocks(sums["cross"], products, first)

    def _add_images(self, i: int, images: Any, first: int) -> None:
        """Add denoised images, all or none."""
        sums = self._sums(i, DENOISED, images)
        backup = {} if images.flags.c_contiguous else {name: values.copy() for name, values in sums.items()}
        try:
            for begin, piece in parts(images):
                self._add(sums, piece, first + begin, begin, "denoised")
        except BaseException:
            for name, before in backup.items():
                sums[name][...] = before
            raise

    def _record(self, sums: dict[str, Any], batch: Any, first: int, bad: Any) -> None:
        """Add a batch on a device, without waiting for it."""
        flat = batch.reshape(-1, *self.grid.shape)
        spectrometer = self._spectrometer()
        of_states = {name: values for name, values in sums.items() if name != "cross"}
        spectrometer.record(flat, self.channels, first, self._low_indices, self.blocks, of_states, bad)
        if self.cross is not None and "cross" in sums:
            from fastcrit._kernels.torch_kernels import add_cross

            add_cross(spectrometer, self.cross, flat, self.channels, first, self._low_indices, sums)

    def _empty_state(self) -> dict[str, Any]:
        levels, blocks, C = len(self.levels), self.blocks, self.channels
        zeros = zeros_on(self.device)
        state = self._empty_sums(self.binarized)
        if self.cross is not None:
            state["cross"] = zeros((levels, blocks, self.cross.count, C, C))
        if self.gain_shells:
            shells = len(self.gain_shells)
            state["gain"] = zeros((levels, blocks, shells))
            state["gain_count"] = zeros((levels, blocks), np.int64)
            if C > 1:
                state["gain_matrix"] = zeros((levels, blocks, shells, C, C))
        return state

    def _empty_sums(self, signs: bool) -> dict[str, Any]:
        levels, blocks, C = len(self.levels), self.blocks, self.channels
        zeros = zeros_on(self.device)
        sums = {
            "count": zeros((levels, blocks), np.int64),
            "power": zeros((levels, blocks, C, len(self.grid.orbit_k))),
            "low": zeros((levels, blocks, C, len(self.low), 2)),
            "first": zeros((levels, blocks, C, self.ndim)),
            "moments": zeros((levels, blocks, C, 4)),
            "field": zeros((levels, C, self.grid.sites)),
        }
        if signs:
            sums["sign_power"] = zeros(sums["power"].shape)
            sums["sign_field"] = zeros(sums["field"].shape)
        return sums


def _low_modes(shape: tuple[int, ...], low: int) -> list[tuple[int, ...]]:
    """Wavenumbers of the half spectrum with every |n_i| <= low, one entry for each mode."""
    axes = [sorted({n % side for n in range(-min(low, side // 2), min(low, side // 2) + 1)}) for side in shape[:-1]]
    axes.append(list(range(min(low, shape[-1] // 2) + 1)))
    return [
        tuple(int(n) for n in point) for point in np.array(np.meshgrid(*axes, indexing="ij")).reshape(len(shape), -1).T
    ]
