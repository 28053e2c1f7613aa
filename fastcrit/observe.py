"""Recorder: streaming, mergeable statistics of states along a trajectory, in memory that samples do not grow."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._arrays import check_finite, check_integer, check_levels, check_positive, to_real
from fastcrit._dataset import build_dataset
from fastcrit._lattice import lattice, selection
from fastcrit._statefile import read_state, write_state
from fastcrit.spectra import DEFAULT_BLOCKS, add_to_blocks, parts

Floats = NDArray[np.float64]

FORMAT = "fastcrit.recorder"
FORMAT_VERSION = 1


class Recorder:
    r"""Statistics of states y at noise levels s, per level, jackknife block and channel.

    Kept per level and block: the power of every class of equivalent modes (from which shells, correlations and
    likelihood fits all follow), the lowest modes themselves, moments of the order parameter and of the gains; per level
    the summed field, so that the ensemble mean can be removed at the end. Nothing grows with the number of samples.

    Sample j (counted from 0 in the order of recording, or from ``sample=`` of `update`) is in block j mod ``blocks``.
    States of float32 are transformed in float32 (the mean, k = 0, in float64): where their mean field has structure a
    thousand times the scatter, pass float64, since the mean is only removed at the end. One recorder belongs to one
    thread; give each its own and merge.

    Merging adds, so recording in any split and any order gives the same dataset to rounding; the same batches give the
    same bits with any number of threads.

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

    Raises
    ------
    ValueError
        Bad levels, shape, blocks, spacing or shells.

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
        self._next = np.zeros(len(self.levels), np.int64)
        self._next_gain = np.zeros(len(self.levels), np.int64)
        self.state = self._empty_state()

    def update(self, i: int, y: Any, *, sample: int | None = None) -> None:
        """Add a batch of states at ``levels[i]``.

        Parameters
        ----------
        i : int
            Index of the level.
        y : array or tensor (batch, *shape)
        sample : int, optional
            Number of the batch's first sample in the whole run; default: as many as this level has seen.

        Raises
        ------
        ValueError
            A level that is not there, states of another shape, NaN or Inf (the message says in which sample). The
            recorder is then as it was.
        TypeError
            Complex values, strings.
        """
        i = self._check_level(i)
        array = to_real(y, "y")
        if array.shape[1:] != self.shape or array.ndim == 0:
            raise ValueError(f"y: expected states of shape (batch, *{self.shape}), got {array.shape}")
        if len(array) == 0:
            raise ValueError("y: empty batch")
        first = self._first_sample(sample, self._next[i])
        level = {name: values[i] for name, values in self.state.items()}
        # The core adds a whole piece or nothing. Where an array has to be copied piece by piece, whatever stops it
        # half-way, an interrupt included, leaves the level as it was.
        backup = {} if array.flags.c_contiguous else {name: values.copy() for name, values in level.items()}
        counted = level["count"].sum()
        try:
            for begin, piece in parts(array):
                self._add(level, piece, first + begin, begin)
        except BaseException:
            for name, before in backup.items():
                level[name][...] = before
            raise
        finally:
            if level["count"].sum() > counted:
                self._next[i] = first + len(array)

    def __call__(self, i: int, s: float, y: Any, D: Any) -> None:
        """Observe a sampler: `update` with the states of level ``i``; ValueError unless ``s`` is that level."""
        level = self.levels[self._check_level(i)]
        if not np.isclose(level, s, rtol=1e-6, atol=0):
            raise ValueError(f"levels: this recorder has {level:.6g} at index {i}, the sampler {float(s):.6g}")
        self.update(i, y)

    def positions_in(self, levels: Any) -> dict[int, int]:
        """Where this recorder's levels are among a sampler's: {index in ``levels``: index here}.

        Raises
        ------
        ValueError
            A level that is not among them.
        """
        among = np.asarray(levels, dtype=np.float64)
        found = {}
        for i, s in enumerate(self.levels):
            at = np.flatnonzero(np.isclose(among, s, rtol=1e-6, atol=0))
            if at.size != 1:
                raise ValueError(f"recorder: its level {s:.6g} is not among the sampling levels")
            found[int(at[0])] = i
        return found

    def update_gain(self, i: int, gain: Any, *, sample: int | None = None) -> None:
        """Add mode gains (batch, len(gain_shells)) of states at ``levels[i]``: the real part, averaged over a shell.

        Raises
        ------
        ValueError
            As for `update`; also when the recorder was made without ``gain_shells``.
        """
        i = self._check_level(i)
        if not self.gain_shells:
            raise ValueError("gain: this recorder was made without gain_shells")
        values = to_real(gain, "gain").astype(np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.gain_shells) or len(values) == 0:
            raise ValueError(f"gain: expected shape (batch, {len(self.gain_shells)}), got {values.shape}")
        check_finite(values, values, 0, (len(values),), "gain")
        first = self._first_sample(sample, self._next_gain[i])
        add_to_blocks(self.state["gain"][i], values, first)
        add_to_blocks(self.state["gain_count"][i], np.ones(len(values), np.int64), first)
        self._next_gain[i] = first + len(values)

    def merge(self, other: Recorder) -> None:
        """Add what ``other`` recorded; ValueError, naming what differs, unless both were made alike."""
        if not isinstance(other, Recorder):
            raise TypeError(f"merge: expected a Recorder, got {type(other).__name__}")
        if other is self:
            raise ValueError("merge: a recorder cannot be merged with itself; its samples would count twice")
        mine, theirs = self.config(), other.config()
        for key, value in mine.items():
            if theirs[key] != value:
                raise ValueError(f"merge: recorders differ in {key}: {value} here, {theirs[key]} there")
        for name, array in self.state.items():
            array += other.state[name]
        # Halves of the largest sample number: their sum is still one.
        self._next = np.minimum(self._next, 2**61) + np.minimum(other._next, 2**61 - 1)
        self._next_gain = np.minimum(self._next_gain, 2**61) + np.minimum(other._next_gain, 2**61 - 1)

    def save(self, path: Any) -> None:
        """Write everything to one file (safetensors, with a format version and a checksum), atomically."""
        counters = {"next": self._next, "next_gain": self._next_gain}
        write_state(path, FORMAT, FORMAT_VERSION, self.config(), {**self.state, **counters})

    @classmethod
    def load(cls, path: Any) -> Recorder:
        """Read a file written by `save`.

        Raises
        ------
        FileNotFoundError
            No such file.
        FileFormatError
            The file is damaged, or is not a fastcrit recorder; the message names it.
        """
        config, arrays = read_state(path, FORMAT, FORMAT_VERSION)
        recorder = cls(**config)
        recorder._next = arrays.pop("next")
        recorder._next_gain = arrays.pop("next_gain")
        recorder.state = arrays
        return recorder

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        most = int(self.state["count"].sum(axis=1).max())
        return f"<Recorder: {len(self.levels)} levels of {shape} states, up to {most} samples a level>"

    def config(self) -> dict[str, Any]:
        """The arguments that make a recorder like this one."""
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
        }
        return dict(json.loads(json.dumps(made)))

    def dataset(self, lengths: Sequence[str] = ("ornstein_zernike", "second_moment", "efold")) -> xr.Dataset:
        """Everything recorded as an `xarray.Dataset` with dims level, k, r, shell and (for (C, H, W) states) channel.

        ``S``, ``C``, ``xi_<method>``, ``m`` (mean), ``abs_m``, ``chi``, ``binder``, ``gain_on_trajectories``,
        ``softening`` and ``xi_eq`` with ``_stderr`` and (but for S and C) over dim block ``_jackknife``, the value
        without that block.
        Lengths have the state's own noise s^2 taken out as a known background; ``xi_<method>_flags`` says where they
        have no answer. Levels without samples are NaN.

        Raises
        ------
        ValueError
            A level with a single sample: the ensemble mean cannot be removed from it.
        """
        return build_dataset(self, tuple(lengths))

    def _check_level(self, i: int) -> int:
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < len(self.levels):
            raise ValueError(f"i: expected a level index from 0 to {len(self.levels) - 1}, got {i!r}")
        return int(i)

    @staticmethod
    def _first_sample(sample: int | None, default: Any) -> int:
        if sample is None:
            sample = int(default)
        if isinstance(sample, bool) or not isinstance(sample, (int, np.integer)) or not 0 <= sample < 2**62:
            raise ValueError(f"sample: expected the number of the batch's first sample, >= 0, got {sample!r}")
        return int(sample)

    def _add(self, level: dict[str, NDArray[Any]], piece: Any, first: int, begin: int) -> None:
        """Add samples ``first``, .. of the run to the arrays of a level; in their batch they begin at ``begin``."""
        flat = piece.reshape(-1, *self.grid.shape)
        modes = selection(self.grid.shape, self._low_indices)
        bad = self.grid.core.record(flat, self.channels, first, modes, self.blocks, level)
        if bad < len(flat):
            power, _ = self.grid.core.power(flat[bad : bad + 1], "orbits")
            check_finite(flat[bad : bad + 1], power, begin + bad // self.channels, (2**62,), "y")
            raise FloatingPointError(f"y: sample {begin + bad // self.channels} was not finite, and is no longer")

    def _empty_state(self) -> dict[str, NDArray[Any]]:
        levels, blocks, C = len(self.levels), self.blocks, self.channels
        state: dict[str, NDArray[Any]] = {
            "count": np.zeros((levels, blocks), np.int64),
            "power": np.zeros((levels, blocks, C, len(self.grid.orbit_k))),
            "low": np.zeros((levels, blocks, C, len(self.low), 2)),
            "first": np.zeros((levels, blocks, C, self.ndim)),
            "moments": np.zeros((levels, blocks, C, 4)),
            "field": np.zeros((levels, C, self.grid.sites)),
        }
        if self.binarized:
            state["sign_power"] = np.zeros_like(state["power"])
            state["sign_field"] = np.zeros_like(state["field"])
        if self.gain_shells:
            state["gain"] = np.zeros((levels, blocks, len(self.gain_shells)))
            state["gain_count"] = np.zeros((levels, blocks), np.int64)
        return state


def _low_modes(shape: tuple[int, ...], low: int) -> list[tuple[int, ...]]:
    """Wavenumbers of the half spectrum with every |n_i| <= low, one entry for each mode."""
    axes = [sorted({n % side for n in range(-min(low, side // 2), min(low, side // 2) + 1)}) for side in shape[:-1]]
    axes.append(list(range(min(low, shape[-1] // 2) + 1)))
    return [
        tuple(int(n) for n in point) for point in np.array(np.meshgrid(*axes, indexing="ij")).reshape(len(shape), -1).T
    ]
