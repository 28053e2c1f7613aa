"""Recorder: streaming, mergeable statistics of states along a trajectory, in memory that samples do not grow."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_finite, check_integer, check_levels, check_positive, is_tensor, to_numbers
from fastcrit._edge.placement import find_device, to_host
from fastcrit._edge.statefile import read_state, write_state
from fastcrit._estimates.averages import DEFAULT_BLOCKS
from fastcrit._estimates.dataset import Recorded, build_dataset
from fastcrit._estimates.rounding import resolution
from fastcrit._kernels.choose import record_on
from fastcrit._kernels.lattice import lattice
from fastcrit._kernels.layout import Layout

Floats = NDArray[np.float64]

FORMAT = "fastcrit.recorder"
# Version 1 had no denoised images and nothing of channels together, version 2 no offsets; they are still read.
FORMAT_VERSION = 3
_ARGUMENTS = (
    "levels", "shape", "ndim", "blocks", "spacing", "data_std", "low_modes", "binarized", "gain_shells", "denoised",
)  # fmt: skip


class Recorder:
    r"""Statistics of states y at noise levels s, per level, jackknife block and channel.

    Kept per level and block: the power of every class of equivalent modes (from which shells, correlations and
    likelihood fits all follow), the lowest modes themselves and how channels go together in them, moments of the order
    parameter and of the gains; per level the summed field, so that the ensemble mean can be removed at the end. Nothing
    grows with the number of samples. What samplers know besides, the denoised image D(y; s), is kept likewise.

    Sample j (counted from 0 in the order of recording, or from ``sample=`` of `update`) is in block j mod ``blocks``.
    States of float32 are transformed in float32 (k = 0 in float64), less their uniform mean where it is large, or in
    float64 where float32 cannot hold their squares. Where the mean field has structure a thousand times the scatter,
    pass float64, since it is only removed at the end. One recorder belongs to one thread; give each its own and merge.

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
        self.ndim = int(ndim)
        self.blocks = check_integer(blocks, "blocks", 2)
        self.spacing = check_positive(spacing, "spacing")
        self.data_std = check_positive(data_std, "data_std")
        self.low_modes = check_integer(low_modes, "low_modes", 1)
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
        self.device = find_device(device)
        layout = Layout(
            len(self.levels), self.grid, self.channels, self.blocks, self.low_modes, self.binarized, self.gain_shells
        )
        self._record = record_on(self.device, layout)
        self.low = layout.low

    @property
    def state(self) -> Mapping[str, Any]:
        """The sums by name, as arrays or tensors where they lie; to be read. `set_sums` replaces them."""
        return MappingProxyType(self._record.sums)

    @property
    def n_samples(self) -> NDArray[np.int64]:
        """(levels,): samples recorded at each level. Waits for a device."""
        return np.asarray(to_host(self.state["count"]).sum(axis=1))

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
        first = self._first_sample(sample, self._record.next[i])
        self._record.add(i, states, images, first)
        self._record.eps[i] = max(self._record.eps[i], resolution(y, states)[0])

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
        values = self._record.gains(gain)
        shells, C = len(self.gain_shells), self.channels
        matrices = values.ndim == 4
        if tuple(values.shape[1:]) != ((shells, C, C) if matrices else (shells,)) or len(values) == 0:
            also = f" or (batch, {shells}, {C}, {C})" if C > 1 else ""
            raise ValueError(f"gain: expected shape (batch, {shells}){also}, got {tuple(values.shape)}")
        first = self._first_sample(sample, self._record.next_gain[i])
        if not is_tensor(values):
            check_finite(values, values, 0, (len(values),), "gain")
        if C > 1:
            if self._record.matrices not in (None, matrices):
                kind = "numbers" if matrices else "matrices"
                raise ValueError(f"gain: this recorder has gains that are {kind}, got shape {tuple(values.shape)}")
            self._record.matrices = matrices
        elif matrices:
            values, matrices = values[..., 0, 0], False
        self._record.add_gains(i, "gain_matrix" if matrices else "gain", values, first)

    def check(self) -> None:
        """ValueError, naming level and sample, if a state recorded on a device was not finite; waits for the device."""
        self._record.check(self.levels)

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
        self._record.merge(other._record, place)

    def save(self, path: Any) -> None:
        """Write everything to one file (safetensors, with a format version and a checksum), atomically."""
        counters = {"next": self._record.next, "next_gain": self._record.next_gain}
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
        recorder.set_sums(arrays)
        recorder._record.next, recorder._record.next_gain = arrays["next"], arrays["next_gain"]
        return recorder

    def sums(self) -> dict[str, Any]:
        """Everything recorded, as arrays on the host by name; ValueError if a state on a device was not finite."""
        return self._record.on_host(self.levels).all_sums()

    def set_sums(self, sums: dict[str, Any], levels: slice = slice(None)) -> None:
        """Replace everything recorded by what `sums` of a recorder made alike has returned.

        With ``levels`` those of a run of levels, by what a recorder of these alone has.
        """
        self._record.replace(sums, levels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        most = int(self._record.given.max())  # the device is not waited for
        where = "" if self.device is None else f" on {self.device}"
        return f"<Recorder{where}: {len(self.levels)} levels of {shape} states, up to {most} samples a level>"

    def config(self) -> dict[str, Any]:
        """The arguments that make a recorder like this one, but for its device."""
        made = {name: getattr(self, name) for name in _ARGUMENTS}
        return dict(json.loads(json.dumps(made, default=lambda levels: levels.tolist())))

    def dataset(
        self, lengths: Sequence[str] | None = None, *, periodic: bool = True, k_max: float | None = None
    ) -> xr.Dataset:
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
        k_max : float, optional
            ``xi_ornstein_zernike`` is fitted up to this wavenumber; default: that of ``low_modes``. Infinite: all.

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
        fitted = self.k_max if k_max is None else min(k_max, float(self.grid.orbit_k[-1]) / self.spacing)
        record = self._record.on_host(self.levels)
        recorded = Recorded(self.levels, self.spacing, self.data_std, fitted, self.has_channels, record)
        return build_dataset(recorded, None if lengths is None else tuple(lengths), periodic)

    def _batch(self, y: Any, name: str) -> Any:
        """A batch of states as the sums take them; ValueError for another shape or device."""
        array = self._record.batch(y, name)
        if tuple(array.shape[1:]) != self.shape or array.ndim == 0:
            raise ValueError(f"{name}: expected states of shape (batch, *{self.shape}), got {tuple(array.shape)}")
        if len(array) == 0:
            raise ValueError(f"{name}: empty batch")
        return array

    def _check_level(self, i: int) -> int:
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < len(self.levels):
            raise ValueError(f"i: expected a level index from 0 to {len(self.levels) - 1}, got {i!r}")
        return int(i)

    def _first_sample(self, sample: int | None, default: Any) -> int:
        if sample is None:
            sample = int(default)
        if isinstance(sample, bool) or not isinstance(sample, (int, np.integer)) or not 0 <= sample < self._record.most:
            raise ValueError(f"sample: expected the number of the batch's first sample, >= 0, got {sample!r}")
        return int(sample)
