"""Sampling of any denoiser: levels and a solver, with recorder and observers attached."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastcrit._edge.arrays import SEEDS, check_choice, check_integer, check_keys, check_levels
from fastcrit.diffusion._beginning import wrong_convention
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.guidance import Guided, Weight, guided
from fastcrit.errors import ConventionWarning
from fastcrit.observe import Recorder

Observer = Callable[[int, float, Tensor, Tensor], None]

SOLVERS = ("euler", "heun", "sde", "dpmpp-2m")


def sample(
    D: Denoiser,
    labels: Any = None,
    n_samples: int = 64,
    levels: Any = None,
    solver: str = "heun",
    seed: int = 0,
    recorder: Recorder | None = None,
    guidance: Weight | None = None,
    *,
    unguided: Denoiser | None = None,
    observers: Sequence[Observer | Recorder] = (),
    shape: Sequence[int] | None = None,
    first_sample: int = 0,
    initial: Tensor | None = None,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    """Run the reverse process of a denoiser.

    Parameters
    ----------
    D : Denoiser
    labels : int or sequence of int (n_samples,) or one-hot (n_samples, classes), optional
    n_samples : int
    levels : sequence of float
        Noise levels s, strictly decreasing, one solver step from each to the next; 0 may follow at the end, for the
        denoised image. ``fc.schedules.EDM().levels(n)``, ``fc.schedules.log_levels``, ``VP(...).s(timesteps)``.
    solver : "euler", "heun", "sde" or "dpmpp-2m"
        Probability-flow ODE by Euler steps in s (= DDIM), or by Heun's (= EDM: two evaluations a step, one where it
        ends on 0); reverse SDE by ancestral steps; DPM-Solver++(2M) (2211.01095), as k-diffusion has it.
    seed : int
        0 <= seed < 2^64. The noise of sample j at a level is a function of seed, j and the level alone, on every
        device; its result then differs with the batch by the network's rounding only, and a run that goes on from
        another's states (``initial``) has noise of its own.
    recorder : Recorder, optional
        Records the states and their denoised images at those of its levels that are among ``levels`` (they must all
        be), the first and the last included. Every call adds to it; a call with the same samples counts them twice.
        From a GPU, states are copied to a recorder on the host at each of its levels, which waits for the device; one
        made with ``device="cuda"`` reads them where they are.
    guidance : Weight, optional
        Guidance as a function of the noise level: `Constant`, `Interval`, `Pulse`, or sums and products of them. The
        weight of a step's first level is held over both evaluations of a Heun step. See `guided`.
    unguided : Denoiser, optional
        What guidance leads away from; default: ``D`` without labels.
    observers : sequence of callables or Recorders
        Each is called for every batch at every level as ``observer(i, s, y, D)`` with y and D = D(y; s) of shape
        (batch, *shape), without waiting for the device. Tensors belong to the solver: copy what you change or keep.
        At the last level D costs one evaluation more, for a recorder of denoised images too; at s = 0 it is the state.
    shape : (C, H, W), optional
        Of a state, where ``D.shape`` is None. (Of a line, (C, L), and of volumes and videos, (C, T, H, W), the adapter
        has to know it: see `Denoiser`. A recorder of theirs is made with ``ndim=1`` or ``ndim=3``.)
    first_sample : int
        Number of the first sample: 0..63 and then 64..127 with ``first_sample=64`` equals 128 samples.
    initial : tensor (n_samples, *shape), optional
        States at levels[0] instead of levels[0] times normal noise.
    batch_size : int
        States that are evaluated together.
    dtype : torch.dtype
        Of the states: float32 or float64. The network sees its own.
    device : torch.device, optional
        Default: the network's.
    autocast : torch.dtype, optional
        Run the network under torch.autocast with this type. States stay in ``dtype``. (A network that is told
        ``force_fp32`` by `from_edm` does not listen.)
    progress : bool
        Show a progress bar (only on a terminal).

    Returns
    -------
    tensor (n_samples, *shape)
        States at levels[-1].

    Raises
    ------
    ValueError
        Levels that are not positive and decreasing or above the denoiser's highest; an unknown solver; labels that do
        not fit; initial states of another shape; a recorder of another shape or with other levels.
    FloatingPointError
        A state became NaN or infinite; the message says which.

    Warns
    -----
    fastcrit.errors.ConventionWarning
        The denoised image of a flow network follows the noise where sampling begins: time or sign are the opposite, or
        it has learned nothing.

    Notes
    -----
    Source: Karras et al. 2206.00364 (algorithm 1), Song et al. 2010.02502 (DDIM), ancestral steps of 2006.11239 in s.

    Examples
    --------
    >>> import fastcrit as fc
    >>> theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16)
    >>> D = fc.diffusion.from_gaussian(theory)
    >>> y = fc.diffusion.sample(D, n_samples=200, levels=fc.schedules.log_levels(40, high=50, low=0.01), seed=1)
    >>> y.shape, bool(abs(fc.structure_factor(y[:, 0]).S[1] * (2**-2 + 0.2) - 1) < 0.2)
    (torch.Size([200, 1, 16, 16]), True)
    """
    if not isinstance(D, Denoiser):
        raise TypeError(
            f"D: expected a Denoiser, got {type(D).__name__}; wrap the network with fc.diffusion.from_edm, "
            "from_diffusers, from_epsilon, from_velocity or from_denoiser"
        )
    if guidance is not None:
        D = guided(D, unguided, guidance)
    elif unguided is not None:
        raise ValueError("unguided: given without guidance")
    if levels is None:
        raise ValueError("levels: expected decreasing noise levels, for example fc.schedules.EDM().levels(32)")
    s = check_levels(levels, allow_zero_end=True)
    D.check_level(s[0])
    check_choice(solver, SOLVERS, "solver")
    check_keys(n_samples, first_sample, seed)
    check_integer(batch_size, "batch_size", 1, SEEDS)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    state_shape = _state_shape(D, shape, initial, n_samples)
    if recorder is not None and not isinstance(recorder, Recorder):
        raise TypeError(f"recorder: expected a Recorder, got {type(recorder).__name__}")
    if not isinstance(observers, Sequence):
        raise TypeError(f"observers: expected a sequence of observers, got {type(observers).__name__}")
    if len({id(o) for o in (recorder, *observers)}) < 1 + len(observers):
        raise ValueError("observers: the same one twice would count every sample twice")
    watchers = [_Watcher(o, s, state_shape) for o in ([] if recorder is None else [recorder]) + list(observers)]
    place = torch.device(device if device is not None else D.device or "cpu")
    prepared = D.prepare_labels(labels, n_samples, place)
    for used in (D._conditional, D._unguided) if isinstance(D, Guided) else (D,):
        used.check_mode()

    states = torch.empty((n_samples, *state_shape), dtype=dtype, device=place)
    steps = -(-n_samples // batch_size) * (len(s) - 1)
    with torch.no_grad(), tqdm(total=steps, disable=None if progress else True, unit="step") as bar:
        for begin in range(0, n_samples, batch_size):
            batch = slice(begin, min(begin + batch_size, n_samples))
            noise = PhiloxNoise(seed, range(first_sample + batch.start, first_sample + batch.stop), state_shape, states)
            if initial is None:
                y = noise(s[0]) * s[0]
            else:
                y = initial[batch].detach().to(device=place, dtype=dtype, copy=True)
            denoise = _Denoise(D, None if prepared is None else prepared[batch], place.type, autocast)
            trajectory = _trajectory(denoise, y, s.tolist(), solver, noise)
            from_noise = initial is None and begin == 0
            states[batch] = _run_batch(trajectory, denoise, watchers, first_sample + begin, from_noise, bar)
    finite = torch.isfinite(states).flatten(1).all(dim=1)
    if not bool(finite.all()):
        bad = first_sample + int(torch.argmin(finite.int()))
        raise FloatingPointError(f"the state of sample {bad} became NaN or infinite; check the network at its levels")
    return states


@dataclass(frozen=True)
class _Denoise:
    """A denoiser with the labels of a batch; guidance has the weight of the step that an evaluation belongs to."""

    D: Denoiser
    labels: Tensor | None
    device: str
    autocast: torch.dtype | None

    def __call__(self, y: Tensor, level: float, step: float | None = None) -> Tensor:
        D = self.D.held(level if step is None else step) if isinstance(self.D, Guided) else self.D
        with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
            return D(y, level, self.labels)


def _run_batch(
    trajectory: Iterator[tuple[float, Tensor, Tensor | None]],
    denoise: _Denoise,
    watchers: Sequence[_Watcher],
    first: int,
    from_noise: bool,
    bar: Any,
) -> Tensor:
    """Follow a batch, whose first sample has the number ``first``, to its last state; observers see every level.

    A batch that begins ``from_noise`` tells whether the denoiser has the convention that it was taken for.
    """
    for i, (level, state, denoised) in enumerate(trajectory):
        if i:
            bar.update()
        elif from_noise and denoised is not None:
            wrong = wrong_convention(denoise.D, state, denoised, level)
            if wrong is not None:
                warnings.warn(wrong, ConventionWarning, stacklevel=3)
        for watch in watchers:
            if watch.wants(i):
                if denoised is None and watch.needs_denoised:
                    denoised = denoise(state, level) if level > 0 else state
                watch(i, level, state, denoised, first)
    return state


def _trajectory(
    D: Callable[..., Tensor], y: Tensor, levels: list[float], solver: str, noise: Callable[[float], Tensor]
) -> Iterator[tuple[float, Tensor, Tensor | None]]:
    """Level, state and denoised state at every level; None for what was not computed at the last.

    ``D(y, s, step)`` is also told the level of the step it belongs to.
    """
    before: Tensor | None = None  # of the last step, for dpmpp-2m
    for i, (s, t) in enumerate(pairwise(levels)):
        x0 = D(y, s)
        yield s, y, x0
        if solver == "sde":
            y = x0 + (t / s) ** 2 * (y - x0)
            if t > 0:
                y = y + t * (1.0 - (t / s) ** 2) ** 0.5 * noise(t)
        elif solver == "dpmpp-2m":
            ahead = x0
            if before is not None and t > 0:
                # Linear extrapolation in log s to the middle of the step.
                r = np.log(levels[i - 1] / s) / np.log(s / t)
                ahead = x0 + (x0 - before) / (2.0 * r)
            y = ahead + (t / s) * (y - ahead)
            before = x0
        else:
            slope = (y - x0) / s
            end = y + (t - s) * slope
            if solver == "heun" and t > 0:
                end = y + (t - s) * 0.5 * (slope + (end - D(end, t, s)) / t)
            y = end
    yield levels[-1], y, None


class PhiloxNoise:
    """Standard normal noise of a batch: Philox keyed by seed and number of the sample, counting from the level."""

    def __init__(self, seed: int, samples: Iterable[int], shape: tuple[int, ...], like: Tensor) -> None:
        self._keys = [int(seed) + (j << 64) for j in samples]
        self._shape = shape
        self._like = like

    def __call__(self, level: float) -> Tensor:
        """Noise (batch, *shape) of a level; a sampler draws none at 0."""
        # The level in the upper half of the counter: streams of 2^128 numbers do not meet.
        counter = int(np.float64(level).view(np.uint64)) << 128
        streams = [np.random.Generator(np.random.Philox(counter=counter, key=key)) for key in self._keys]
        rows = np.stack([g.standard_normal(self._shape, dtype=np.float32) for g in streams])
        return torch.from_numpy(rows).to(device=self._like.device, dtype=self._like.dtype, non_blocking=True)


class _Watcher:
    """An observer, and for a recorder at which steps its levels are."""

    def __init__(self, observer: Any, levels: Any, shape: tuple[int, ...]) -> None:
        self.observer = observer
        self.needs_denoised = not isinstance(observer, Recorder) or observer.denoised
        self.steps: dict[int, int] | None = None
        if isinstance(observer, Recorder):
            if observer.shape != shape and (1, *observer.shape) != shape:
                raise ValueError(
                    f"recorder: made for states of shape {observer.shape}, sampling those of shape {shape}"
                )
            if observer.ndim != len(shape) - 1:
                raise ValueError(
                    f"recorder: made with ndim={observer.ndim}, sampling states of shape {shape}, channels first; make "
                    f"it with ndim={len(shape) - 1}"
                )
            self.steps = observer.positions_in(levels)
        elif not callable(observer):
            raise TypeError(f"observers: expected a Recorder or a callable, got {type(observer).__name__}")

    def wants(self, i: int) -> bool:
        return self.steps is None or i in self.steps

    def __call__(self, i: int, s: float, y: Tensor, D: Tensor | None, first: int) -> None:
        if self.steps is None:
            self.observer(i, s, y, D)
        else:
            both = (x if x is None else x.reshape(len(y), *self.observer.shape) for x in (y, D))
            states, denoised = (x if x is None or self.observer.device else x.cpu() for x in both)
            self.observer.update(self.steps[i], states, denoised=denoised, sample=first)


def _state_shape(D: Denoiser, shape: Sequence[int] | None, initial: Tensor | None, n_samples: int) -> tuple[int, ...]:
    if initial is not None:
        fits = isinstance(initial, Tensor) and initial.is_floating_point() and initial.shape[:1] == (n_samples,)
        if not fits:
            got = tuple(initial.shape) if isinstance(initial, Tensor) else type(initial).__name__
            raise ValueError(f"initial: expected a floating-point tensor of {n_samples} states, got {got}")
        if not bool(torch.isfinite(initial).all()):
            raise ValueError("initial: NaN or infinite values")
        shape = shape or tuple(initial.shape[1:])
        if tuple(initial.shape[1:]) != tuple(shape):
            raise ValueError(f"initial: expected states of shape {tuple(shape)}, got {tuple(initial.shape[1:])}")
    if shape is None:
        shape = D.shape
    if shape is None:
        raise ValueError(f"shape: {D.name} takes any shape; say which, as (C, H, W)")
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape: expected (C, H, W), got {shape!r}")
    if D.shape is not None and tuple(shape) != D.shape:
        raise ValueError(f"shape: {D.name} takes states of shape {D.shape}, got {tuple(shape)}")
    return tuple(int(n) for n in shape)
