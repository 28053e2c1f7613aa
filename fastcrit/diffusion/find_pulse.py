"""From a model to a guidance pulse in one call: a pilot run with gains, its critical level, and a pulse there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from fastcrit import schedules
from fastcrit._edge.arrays import check_choice, check_integer, check_positive
from fastcrit._estimates.averages import DEFAULT_BLOCKS
from fastcrit._kernels.lattice import lattice
from fastcrit.critical import INSTABILITY, SIGNATURES, Signature, critical_point
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.guidance import Pulse
from fastcrit.diffusion.sample import sample
from fastcrit.errors import NoTransitionError
from fastcrit.modes import mode_response
from fastcrit.observe import Recorder

__all__ = ["FoundPulse", "find_pulse"]

# Looked for in this order: where the modes are softest is where pulses were tried (docs/guidance.md); a drift that
# loses its stability may do so without a softest level behind it.
_IN_ORDER = ("softening", INSTABILITY)
# Of the guidance study's defaults: four of forty steps from 80 to 0.02.
_WIDTH, _WEIGHT = 0.85, 4.0
_HIGH, _LOW = 80.0, 0.02
# Blocks of trajectories that an interval takes; levels with gains in which an extremum can show.
_FEWEST = 8


@dataclass(frozen=True, repr=False, eq=False)
class FoundPulse:
    """What `find_pulse` found.

    Attributes
    ----------
    pulse : Pulse
        At ``level``; a weight for `sample`, `guided` and `to_diffusers_callback`.
    signature : str
        What stands out at the level: "softening", "instability", ..
    level, low, high : float
        Noise level, and the ends of its confidence interval.
    evaluations : int
        Evaluations of D by the pilot run, counted in states.
    products : int
        Products of its Jacobian with a tangent, which gains were made of: about two evaluations each in forward mode,
        four by central differences.
    dataset : xarray.Dataset
        Of the pilot run's recorder; all signatures are in its attribute ``critical_point``.
    """

    pulse: Pulse
    signature: str
    level: float
    low: float
    high: float
    evaluations: int
    products: int
    dataset: xr.Dataset = field(repr=False)

    @property
    def summary(self) -> str:
        """What was found and what it cost, in a line."""
        n = int(self.dataset["n_samples"].max())
        return (
            f"pulse at s = {self.level:.3f} [{self.low:.3f}, {self.high:.3f}] by {self.signature}, width "
            f"{self.pulse.width:g} in log s, weight {self.pulse.weight:g}; {n} samples, {self.evaluations} evaluations "
            f"and {self.products} derivatives"
        )

    def __repr__(self) -> str:
        return f"<FoundPulse: {self.summary}>"


def find_pulse(
    D: Denoiser,
    labels: Any = None,
    samples: int = 64,
    *,
    signature: str | None = None,
    width: float = _WIDTH,
    weight: float = _WEIGHT,
    pulse_shape: str = "box",
    levels: int = 49,
    high: float | None = None,
    low: float = _LOW,
    gain_every: int = 2,
    probes: int = 1,
    solver: str = "dpmpp-2m",
    shape: Sequence[int] | None = None,
    data_std: float | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> FoundPulse:
    """Find the noise level at which to guide a model, by a short run of the model itself, and make a pulse there.

    A pilot run samples from noise, records the states and measures the gains of all shells by tangents of random phase
    at every ``gain_every``-th level. The pulse is put where the modes are softest; where no such level stands out, at
    that at which the reverse drift is weakest or loses its stability. No image, no classifier and no guidance is
    needed. Where the drift crosses zero, the two may differ by a factor: all are in the dataset's ``critical_point``.

    Parameters
    ----------
    D : Denoiser
    labels : int, sequence of int or one-hot (samples, classes), optional
        Of the pilot run. Default: without labels, which D has to work without.
    samples : int
        Trajectories of the pilot run, 8 at least.
    signature : str, optional
        Put the pulse at the level of this one of `critical_point`, instead of the first two in that order.
    width, weight, pulse_shape
        Of the `Pulse`. Default: those of the guidance study.
    levels : int
        Noise levels of the pilot run, even in log s.
    high, low : float
        The first and the last of them. Default: from 80, or the highest that D was made for, to 0.02.
    gain_every : int
        Gains at every so many levels; 8 levels at least are to have them.
    probes : int
        Tangents of random phase a state and channel.
    solver, shape
        As in `sample`.
    data_std : float, optional
        Standard deviation of the data, to which softening and drift are scaled. Default: what D knows, or else that of
        the pilot run's samples.
    confidence : float
        Of the interval of the level.
    seed : int
        Of the pilot run and its tangents.
    batch_size : int
        As in `sample`.
    progress : bool

    Returns
    -------
    FoundPulse

    Raises
    ------
    NoTransitionError
        No level stands out; the message says why.
    ValueError
        Too few samples or levels; labels that D lacks, or needs; what `sample` refuses.

    Notes
    -----
    The claim that guidance is worth most there is of arXiv:2603.20092; docs/guidance.md has what was found. The drift:
    Biroli et al. 2402.18491 for where trajectories commit to a class, Sclocchi et al. 2402.16991 for how to check it
    (`forward_backward`).

    Examples
    --------
    >>> import fastcrit as fc
    >>> D = fc.diffusion.from_patch(fc.patch.Dictionary.binary(3, random=0), lattice=16)
    >>> found = fc.diffusion.find_pulse(D, samples=16, levels=17, high=20, low=0.3, gain_every=1)
    >>> found.signature, bool(found.low < found.level < found.high), found.pulse.center == found.level
    ('softening', True, True)
    >>> from fastcrit.critical import stored_critical_point
    >>> drift = stored_critical_point(found.dataset)["instability"]  # at s = 2.84 in the self-consistent theory
    >>> bool(drift.low < 2.84 < drift.high)
    True
    """
    if not isinstance(D, Denoiser):
        raise TypeError(f"D: expected a Denoiser, such as fc.diffusion.from_edm(net), got {type(D).__name__}")
    wanted = _IN_ORDER if signature is None else (check_choice(signature, SIGNATURES, "signature"),)
    pulse = Pulse(1.0, width, weight, pulse_shape)  # what is wrong with it is said before the run
    check_integer(samples, "samples", _FEWEST)
    grid = _grid(D, levels, high, low, check_integer(gain_every, "gain_every", 1))
    sides = D.shape if shape is None else tuple(shape)
    if sides is None or len(sides) != 3:
        raise ValueError(f"shape: expected (C, H, W) of the states of {D.name}, got {sides}")
    std = D.data_std if data_std is None else check_positive(data_std, "data_std")
    prepared = D.prepare_labels(labels, samples, D.device or "cpu")

    recorder = _recorder(D, grid, sides, samples, std)
    gains = _Gains(D, prepared, recorder, gain_every, check_integer(probes, "probes", 1), seed)
    ends = sample(
        D, prepared, samples, grid, solver, seed, recorder, observers=[gains], shape=sides, batch_size=batch_size,
        progress=progress,
    )  # fmt: skip
    if std is None:
        measured = _recorder(D, grid, sides, samples, float(ends.double().std()))
        measured.set_sums(recorder.sums())
        recorder = measured
    ds = recorder.dataset()
    critical = critical_point(ds, confidence=confidence, seed=seed)
    ds = ds.assign_attrs(title=f"pilot run of {D.name}", critical_point=critical.to_json())
    found = _first(tuple(critical[name] for name in wanted), D)
    evaluations = samples * ((2 * len(grid) - 1) if solver == "heun" else len(grid))
    return FoundPulse(
        pulse=Pulse(found.level, pulse.width, pulse.weight, pulse.shape),
        signature=found.kind or found.name,
        level=found.level,
        low=found.low,
        high=found.high,
        evaluations=evaluations,
        products=gains.products,
        dataset=ds,
    )


class _Gains:
    """An observer of the pilot run that measures gains at some of its levels."""

    def __init__(
        self, D: Denoiser, labels: Tensor | None, recorder: Recorder, every: int, probes: int, seed: int
    ) -> None:
        self.products = 0
        self._D, self._labels, self._recorder, self._every = D, labels, recorder, every
        self._probes, self._seed = probes, seed
        self._done = np.zeros(len(recorder.levels), np.int64)
        self._method = self._choose(float(recorder.levels[len(recorder.levels) // 2]))

    def __call__(self, i: int, s: float, y: Tensor, D: Tensor) -> None:
        """Measure the gains at these states, the next ones of level ``i``."""
        if i % self._every:
            return
        first = int(self._done[i])
        self._done[i] += len(y)
        response = mode_response(
            self._D, y, s, self._recorder.gain_shells,
            None if self._labels is None else self._labels[first : first + len(y)],
            probe="random_phase", probes=self._probes, method=self._method,
            seed=self._seed * len(self._done) + i, first_sample=first,
        )  # fmt: skip
        channels = self._recorder.channels
        self._recorder.update_gain(i, response.samples if channels == 1 else response.matrix_samples)
        self.products += len(y) * channels * (1 + self._probes)

    def _choose(self, level: float) -> str:
        """How derivatives are taken, for all levels, since to try out takes long."""
        few, shape = None if self._labels is None else self._labels[:1], self._recorder.shape
        y = sample(self._D, few, 1, [level], "euler", self._seed, shape=(1, *shape)[-3:])
        return mode_response(self._D, y, level, labels=few, probe="random_phase").method


def _grid(D: Denoiser, levels: int, high: float | None, low: float, gain_every: int) -> Any:
    """Levels of the pilot run."""
    begin = min(_HIGH, D.highest) if high is None else D.check_level(high)
    grid = schedules.log_levels(check_integer(levels, "levels", _FEWEST), high=begin, low=low)
    if len(grid[::gain_every]) < _FEWEST:
        raise ValueError(
            f"levels, gain_every: expected gains at {_FEWEST} levels or more, got {len(grid[::gain_every])} "
            f"(every {gain_every} of {levels})"
        )
    return grid


def _recorder(D: Denoiser, grid: Any, shape: tuple[int, ...], samples: int, std: float | None) -> Recorder:
    """Of states and gains; a single channel has no axis."""
    return Recorder(
        grid, shape=shape if shape[0] > 1 else shape[1:], blocks=min(DEFAULT_BLOCKS, samples), data_std=std or 1.0,
        gain_shells=range(lattice(tuple(shape[1:])).shells_below_nyquist),
        device=D.device if D.device is not None and D.device.type == "cuda" else None,
    )  # fmt: skip


def _first(signatures: tuple[Signature, ...], D: Denoiser) -> Signature:
    """The first that has a level."""
    for each in signatures:
        if each.found:
            return each
    reasons = "; ".join(f"{each.name}: {each.verdict.strip()}" for each in signatures)
    raise NoTransitionError(f"{D.name}: no level stands out, and no pulse is better placed than others ({reasons})")
