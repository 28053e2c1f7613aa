"""Sampling of the patch model: noise in, patterns out, with the recorder and observers attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastcrit import _core
from fastcrit._edge.arrays import check_choice, check_keys, check_levels, check_positive, same_kind, to_numbers, to_real
from fastcrit._kernels.lattice import lattice as lattice_tables
from fastcrit.patch import kernels
from fastcrit.patch.dictionary import Dictionary, lattice_shape

if TYPE_CHECKING:
    from fastcrit.observe import Recorder

Observer = Callable[[int, float, Any, Any], None]

_SOLVERS = {"euler": kernels.EULER, "heun": kernels.HEUN, "sde": kernels.SDE}
# The squares of levels and of their inverses stay inside the range of float32.
_HIGHEST_LEVEL = 1e12
# Of the root of the largest number: room for the sum of a thousand squares and more, and for those of levels.
_LARGEST_STATE = 1e-3
# Steps between two looks at the progress bar, when no level in between is observed.
_STEPS_AT_A_TIME = 16


@dataclass(frozen=True)
class Response:
    """Mean response kernel of each sample, from the posterior covariance: J averaged over sites, (samples, n, n)."""

    kernel: NDArray[np.float64]

    def gain(self, k: Any) -> Any:
        """<e_k, J e_k>, complex, (samples, ...) for wavevectors ``k`` (..., 2) in rad per site."""
        n = self.kernel.shape[-1]
        offset = np.arange(n) - n // 2
        k = to_numbers(k, "k")
        phase = np.exp(1j * (k[..., 0, None, None] * offset[:, None] + k[..., 1, None, None] * offset[None, :]))
        return np.tensordot(self.kernel, phase, axes=([1, 2], [-2, -1]))


def sample(
    dictionary: Dictionary,
    lattice: int | tuple[int, int] | None = None,
    n_samples: int = 64,
    levels: Any = None,
    solver: str = "sde",
    seed: int = 0,
    recorder: Recorder | None = None,
    *,
    boundary: str | None = None,
    observers: Sequence[Observer] = (),
    first_sample: int = 0,
    initial: Any = None,
    dtype: Any = np.float32,
    progress: bool = False,
) -> Any:
    """Run the reverse process of the patch model.

    Parameters
    ----------
    dictionary : Dictionary
    lattice : int or (int, int)
        Sides in sites; may be left out for a position-specific dictionary.
    n_samples : int
    levels : sequence of float
        Noise levels s, strictly decreasing, one solver step from each to the next; 0 may follow at the end, for the
        denoised image. Few levels are coarse steps: record a subset of many instead.
    solver : "sde", "euler" or "heun"
        Reverse SDE (ancestral steps), or the probability-flow ODE by Euler (= DDIM) or Heun (= EDM) steps.
    seed : int
        0 <= seed < 2^64. Sample j is a function of the dictionary, the levels, the solver, the seed and j alone.
    recorder : Recorder, optional
        Records the states and their denoised images at those of its levels that are among ``levels`` (they must all
        be), the first and the last included, and the gains of its ``gain_shells`` from the model's own posterior
        covariance.
    boundary : "periodic" or "zero"
        What lies outside the lattice. Default: periodic, and zero for a position-specific dictionary, as theory has it.
    observers : sequence of callables
        Each is called at every level as ``observer(i, s, y, D)`` with y and D of shape (n_samples, H, W). The arrays
        are reused: copy what you keep.
    first_sample : int
        Number of the first sample: sampling 0..63 and then 64..127 with ``first_sample=64`` equals sampling 128.
    initial : array (n_samples, H, W), optional
        States at levels[0] instead of levels[0] times normal noise.
    dtype : float32 or float64
        Precision of the states and the arithmetic.
    progress : bool
        Show a progress bar (only on a terminal).

    Returns
    -------
    array (n_samples, H, W)
        States at levels[-1]; a tensor if ``initial`` is one.

    Raises
    ------
    ValueError
        Patterns larger than the lattice, levels that are not positive and decreasing, an unknown solver or boundary,
        initial states of the wrong shape or with NaN or Inf, a recorder of another shape or with other levels.

    Notes
    -----
    Source: theory of local score machines (Kamb & Ganguli 2412.20292), patterns and lattice of arXiv:2603.20092.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> pair = fc.patch.Dictionary.binary(size=3, random=0)
    >>> y = fc.patch.sample(pair, lattice=16, n_samples=4, levels=np.geomspace(30, 0.1, 50), seed=1)
    >>> y.shape, bool(np.abs(np.abs(y) - 1).mean() < 0.2)  # nearly all sites have decided
    ((4, 16, 16), True)
    """
    if levels is None:
        raise ValueError(
            "levels: expected decreasing noise levels, for example fc.schedules.log_levels(64, high=50, low=0.05)"
        )
    s = check_levels(levels, allow_zero_end=True)
    if s[0] > _HIGHEST_LEVEL or s[s > 0][-1] < 1.0 / _HIGHEST_LEVEL:
        raise ValueError(f"levels: expected noise levels from 1e-12 to 1e12, got {s[0]:g} to {s[s > 0][-1]:g}")
    shape, periodic = _check_model(dictionary, lattice, boundary)
    check_choice(solver, tuple(_SOLVERS), "solver")
    check_keys(n_samples, first_sample, seed)
    first = int(np.uint64(first_sample).astype(np.int64))  # kernels count in int64, which has the same 64 bits
    model = _Model(dictionary, periodic, _check_dtype(dtype))
    recorded = _recorded_levels(recorder, s, shape, dictionary)
    stops = sorted(set(range(len(s))) if observers else {*recorded, 0, len(s) - 1})

    if initial is None:
        states = np.empty((n_samples, *shape), dtype=model.dtype)
        _share(n_samples, lambda a, b: kernels.start(states, a, b, np.uint64(seed), first, model.dtype.type(s[0])))
    else:
        with np.errstate(over="ignore"):  # what does not fit in the dtype becomes infinite, and is named
            states = _check_states(initial, shape, "initial").astype(model.dtype, copy=True, order="C")
        _check_states(states, shape, "initial")
        if len(states) != n_samples:
            raise ValueError(f"initial: expected {n_samples} states, got {len(states)}")

    with tqdm(total=len(s) - 1, disable=None if progress else True, unit="level", desc="sampling") as bar:
        here = 0
        for stop in stops:
            while here < stop:
                there = min(stop, here + _STEPS_AT_A_TIME)
                model.advance(states, s[here : there + 1], here, _SOLVERS[solver], seed, first)
                bar.update(there - here)
                here = there
            if stop in recorded:
                _record(model, recorder, recorded[stop], states, float(s[stop]), first_sample)
            if observers:
                D = model.denoise(states, float(s[stop])) if s[stop] > 0 else states
                for observer in observers:
                    observer(stop, float(s[stop]), states, D)
    return same_kind(initial)(states)


def denoise(dictionary: Dictionary, y: Any, s: float, *, boundary: str | None = None) -> Any:
    """D(y; s): the posterior mean of the centre pixel of every patch.

    Parameters
    ----------
    dictionary : Dictionary
    y : array or tensor (samples, H, W)
        States, computed in float32 or float64 as they come.
    s : float
        Noise level.
    boundary : "periodic" or "zero"

    Returns
    -------
    array or tensor (samples, H, W)

    Raises
    ------
    ValueError
        Wrong shape, NaN or Inf, a level that is not positive, patterns larger than the lattice.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> pair = fc.patch.Dictionary.binary(size=3, random=0)
    >>> y = np.full((1, 8, 8), 0.5)
    >>> bool(np.allclose(fc.patch.denoise(pair, y, 2.0), np.tanh(9 * 0.5 / 4)))
    True
    """
    array = _check_states(y, None, "y")
    _, periodic = _check_model(dictionary, tuple(array.shape[1:]), boundary)
    model = _Model(dictionary, periodic, array.dtype)
    return same_kind(y)(model.denoise(np.ascontiguousarray(array), check_positive(s, "s")))


def response(dictionary: Dictionary, y: Any, s: float, *, boundary: str | None = None) -> Response:
    """Response of D to plane waves at states ``y``, from the posterior covariance and without finite differences.

    J_(i,j) = Cov[x_i, x_j | patch i]/s^2 under the weights at site i, so <e_k, J e_k> needs only the average of each
    site's kernel over the lattice. Arguments and errors as for `denoise`; equivariant dictionaries only (plane waves
    are no modes of a position-specific one).

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> pair = fc.patch.Dictionary.binary(size=5, random=0)
    >>> r = fc.patch.response(pair, np.zeros((1, 16, 16)), 10.0)
    >>> round(float(r.gain([0.0, 0.0])[0].real), 9)  # n^2/s^2 at the symmetric point
    0.25
    """
    array = _check_states(y, None, "y")
    _, periodic = _check_model(dictionary, tuple(array.shape[1:]), boundary)
    if dictionary.position_specific:
        raise ValueError("dictionary: the response to plane waves is defined for equivariant dictionaries only")
    model = _Model(dictionary, periodic, array.dtype)
    return Response(model.response(np.ascontiguousarray(array), check_positive(s, "s")))


class _Model:
    """A dictionary laid out for the kernels in one precision."""

    def __init__(self, dictionary: Dictionary, periodic: bool, dtype: np.dtype[Any]) -> None:
        self.dictionary = dictionary
        self.periodic = periodic
        self.dtype = dtype
        self.half = dictionary.size // 2
        self.log_prior = np.log(dictionary.prior)
        self.patterns = dictionary.patterns.astype(dtype)
        n = dictionary.size
        if dictionary.position_specific:
            self.center = np.zeros(1, dtype)
            self.rows = np.zeros((len(dictionary), 0, 0))
        else:
            self.center = np.ascontiguousarray(self.patterns[:, n // 2, n // 2])
            self.rows = np.pad(dictionary.patterns, ((0, 0), (0, 0), (0, -n % kernels.TAPS)))

    def advance(
        self, states: Any, levels: NDArray[np.float64], first_step: int, solver: int, seed: int, first_sample: int
    ) -> None:
        tables = [self._tables(float(s)) for s in levels]
        taps, bias, inverse = (np.stack([t[i] for t in tables]) for i in range(3))

        def work(begin: int, end: int) -> None:
            kernels.advance(
                states, begin, end, levels, first_step, solver, np.uint64(seed), first_sample,
                self.dictionary.position_specific, self.patterns, taps, bias, self.center, self.half,
                self.periodic, inverse,
            )  # fmt: skip

        _share(len(states), work)

    def denoise(self, states: Any, s: float) -> Any:
        taps, bias, inverse = self._tables(s)
        out = np.empty_like(states)

        def work(begin: int, end: int) -> None:
            kernels.denoise_samples(
                states, begin, end, self.dictionary.position_specific, self.patterns, taps, bias, self.center,
                self.half, self.periodic, inverse, out,
            )  # fmt: skip

        _share(len(states), work)
        return out

    def response(self, states: Any, s: float) -> NDArray[np.float64]:
        """Mean kernel of every sample, (samples, n, n)."""
        taps, bias, _ = self._tables(s)
        n, P = self.dictionary.size, len(self.dictionary)
        W = np.empty((len(states), n, n, P))
        V = np.empty_like(W)

        def work(begin: int, end: int) -> None:
            kernels.respond_samples(
                states, begin, end, self.patterns, taps, bias, self.center, self.half, self.periodic, W, V
            )

        _share(len(states), work)
        # C_j summed over sites = sum_mu xi_j (xi_c W - V), over the sites from which j lies inside the lattice.
        center = self.dictionary.patterns[:, n // 2, n // 2]
        by_class = center * W - V
        kernel = np.empty((len(states), n, n))
        for a in range(n):
            for b in range(n):
                rows, columns = _classes_that_reach(a, n), _classes_that_reach(b, n)
                weights = by_class[:, rows][:, :, columns].sum(axis=(1, 2))
                kernel[:, a, b] = weights @ self.dictionary.patterns[:, a, b]
        return np.asarray(kernel / (states[0].size * s**2))

    def _tables(self, s: float) -> tuple[Any, Any, Any]:
        """Taps xi/s^2, bias log pi - |xi|^2/2s^2 (shifted to a maximum of 0), and 1/s^2, at one level."""
        if s == 0:  # the end of the last step, where nothing is evaluated
            return np.zeros(self.rows.shape, self.dtype), np.zeros(len(self.dictionary), self.dtype), self.dtype.type(0)
        taps = (self.rows / s**2).astype(self.dtype)
        bias = self.log_prior - (self.rows**2).sum(axis=(1, 2)) / (2.0 * s**2)
        return taps, (bias - bias.max()).astype(self.dtype), self.dtype.type(1.0 / s**2)


def _classes_that_reach(j: int, n: int) -> NDArray[np.int64]:
    """Border classes whose sites have their neighbour at pixel j of the patch inside the lattice."""
    half = n // 2
    classes = np.arange(n)
    # Class c < half is c sites from the lower border, class c > half is 2 half - c from the upper one.
    return classes[(classes >= half - j) & (2 * half - classes >= j - half)]


def _record(model: _Model, recorder: Any, index: int, states: Any, s: float, first_sample: int) -> None:
    denoised = None
    if recorder.denoised:
        denoised = model.denoise(states, s) if s > 0 else states
    recorder.update(index, states, denoised=denoised, sample=first_sample)
    if not recorder.gain_shells or s == 0:  # D is the state there, and has no gain
        return
    kernel = model.response(states, s)
    gain = np.tensordot(kernel, _shell_waves(states.shape[1:], model.dictionary.size, recorder.gain_shells), 2)
    recorder.update_gain(index, gain, sample=first_sample)


def _shell_waves(shape: tuple[int, ...], n: int, shells: Sequence[int]) -> NDArray[np.float64]:
    """cos(k (j - c)) averaged over the wavevectors of each shell, (n, n, shells)."""
    grid = lattice_tables(tuple(shape))
    offset = np.arange(n) - n // 2
    waves = np.empty((n, n, len(shells)))
    for column, number in enumerate(shells):
        m = grid.shell_of_mode == number
        # k and -k are both in the shell, so the odd part of the wave cancels.
        k = grid.half_wavevectors[m, :, None, None]
        phase = k[:, 0] * offset[:, None] + k[:, 1] * offset[None, :]
        waves[..., column] = np.average(np.cos(phase), axis=0, weights=grid.half_weights[m])
    return waves


def _recorded_levels(
    recorder: Any, levels: NDArray[np.float64], shape: tuple[int, int], dictionary: Dictionary
) -> dict[int, int]:
    """Which step each of the recorder's levels is: {index in levels: index in the recorder}."""
    if recorder is None:
        return {}
    if recorder.grid.shape != shape or recorder.channels != 1:
        raise ValueError(f"recorder: made for states of shape {recorder.shape}, sampling states of shape {shape}")
    if recorder.gain_shells and dictionary.position_specific:
        raise ValueError("recorder: gain_shells needs an equivariant dictionary (plane waves are its modes)")
    positions: dict[int, int] = recorder.positions_in(levels)
    return positions


def _check_model(
    dictionary: Dictionary, lattice: int | tuple[int, int] | None, boundary: str | None
) -> tuple[tuple[int, int], bool]:
    """Sides of the lattice, and whether it is periodic."""
    if not isinstance(dictionary, Dictionary):
        raise TypeError(f"dictionary: expected a fastcrit.patch.Dictionary, got {type(dictionary).__name__}")
    if boundary is None:
        boundary = "zero" if dictionary.position_specific else "periodic"
    check_choice(boundary, ("periodic", "zero"), "boundary")
    shape = lattice_shape(dictionary, lattice)
    if boundary == "periodic" and dictionary.size > min(shape):
        raise ValueError(
            f"size: patches of side {dictionary.size} wrap onto themselves on the periodic lattice {shape}"
        )
    return shape, boundary == "periodic"


def _check_states(y: Any, shape: tuple[int, int] | None, name: str) -> Any:
    array = to_real(y, name)
    if array.ndim != 3 or array.size == 0 or (shape is not None and array.shape[1:] != shape):
        raise ValueError(f"{name}: expected states (samples, {'H, W' if shape is None else shape}), got {array.shape}")
    finite = np.isfinite(array).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"{name}: NaN or infinite value in sample {int(np.argmin(finite))}")
    # Squared distances are summed over a patch, in the type of the states.
    largest = np.abs(array).max(axis=(1, 2))
    if largest.max() > _LARGEST_STATE * np.sqrt(np.finfo(array.dtype).max):
        raise OverflowError(
            f"{name}: squares of sample {int(largest.argmax())} exceed the range of {array.dtype}; rescale it"
        )
    return array


def _check_dtype(dtype: Any) -> np.dtype[Any]:
    checked: np.dtype[Any] = np.dtype(dtype)
    if checked not in (np.float32, np.float64):
        raise ValueError(f"dtype: expected float32 or float64, got {checked}")
    return checked


def _share(tasks: int, work: Callable[[int, int], None]) -> None:
    """Run work(begin, end) on contiguous shares of the samples, one thread each."""
    threads = min(_core.num_threads(), tasks)
    edges = np.linspace(0, tasks, threads + 1).astype(int)
    if threads == 1:
        work(0, tasks)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, edges[:-1].tolist(), edges[1:].tolist()))
