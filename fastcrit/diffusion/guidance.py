"""Guidance: weights as functions of the noise level, and the guided denoiser D_w = D_0 + w(s) (D_y - D_0)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrit._arrays import check_choice, check_positive
from fastcrit.diffusion.denoiser import Denoiser, Level, schedule_of


class Weight:
    """A guidance weight w(s): 1 is no guidance. Weights add and multiply as functions of s."""

    def __call__(self, s: Any) -> Any:
        """Weight at noise level ``s``, a float for a float, an array for an array."""
        weight = self._weight(np.asarray(s, dtype=np.float64))
        return weight if np.ndim(s) else float(weight)

    def _weight(self, s: Any) -> Any:
        raise NotImplementedError

    def __add__(self, other: Weight | float) -> Weight:
        return _Combined(np.add, self, _as_weight(other))

    def __mul__(self, other: Weight | float) -> Weight:
        return _Combined(np.multiply, self, _as_weight(other))

    __radd__ = __add__
    __rmul__ = __mul__


@dataclass(frozen=True)
class Constant(Weight):
    """The same weight at every level: classifier-free guidance (Ho and Salimans 2207.12598).

    Examples
    --------
    >>> import fastcrit as fc
    >>> fc.diffusion.Constant(3.0)(0.7)
    3.0
    """

    weight: float

    def _weight(self, s: Any) -> Any:
        return np.full(s.shape, float(self.weight))


@dataclass(frozen=True)
class Interval(Weight):
    """``weight`` at low < s <= high and 1 elsewhere (Kynkäänniemi et al. 2404.07724).

    Examples
    --------
    >>> import fastcrit as fc
    >>> fc.diffusion.Interval(0.3, 5.0, 2.0)([0.3, 0.31, 5.0, 5.1]).tolist()
    [1.0, 2.0, 2.0, 1.0]
    """

    low: float
    high: float
    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"low, high: expected 0 <= low < high, got {self.low!r} and {self.high!r}")

    def _weight(self, s: Any) -> Any:
        return np.where((s > self.low) & (s <= self.high), float(self.weight), 1.0)


@dataclass(frozen=True)
class Pulse(Weight):
    """A pulse in log s around ``center``, 1 elsewhere.

    Parameters
    ----------
    center : float
        Noise level.
    width : float
        In log s. A box has ``weight`` at center exp(-width/2) < s <= center exp(width/2); a Gaussian has its peak at
        the center and the width as its full width at half maximum. 0: no guidance.
    weight : float
        At the peak.
    shape : "box" or "gaussian"

    Examples
    --------
    >>> import fastcrit as fc
    >>> pulse = fc.diffusion.Pulse(center=2.0, width=0.5, weight=4.0)
    >>> pulse([1.0, 2.0, 4.0]).tolist()
    [1.0, 4.0, 1.0]
    """

    center: float
    width: float
    weight: float
    shape: str = "box"

    def __post_init__(self) -> None:
        check_positive(self.center, "center")
        check_choice(self.shape, ("box", "gaussian"), "shape")
        if not self.width >= 0:
            raise ValueError(f"width: expected a number >= 0, got {self.width!r}")

    def _weight(self, s: Any) -> Any:
        with np.errstate(divide="ignore"):
            x = np.log(s / self.center)
        if self.width == 0:
            return np.ones(s.shape)
        if self.shape == "box":
            inside = (x > -self.width / 2) & (x <= self.width / 2)
            return np.where(inside, float(self.weight), 1.0)
        return 1.0 + (self.weight - 1.0) * np.exp2(-((2 * x / self.width) ** 2))


@dataclass(frozen=True)
class _Combined(Weight):
    operation: Callable[[Any, Any], Any]
    first: Weight
    second: Weight

    def _weight(self, s: Any) -> Any:
        return self.operation(self.first._weight(s), self.second._weight(s))


def _as_weight(value: Weight | float) -> Weight:
    return value if isinstance(value, Weight) else Constant(value)


class Guided(Denoiser):
    """A guided denoiser; see `guided`.

    Attributes
    ----------
    weight : Weight
    evaluations : int
        Evaluations of a network so far, counted in states: a guided state costs two, one where w = 1 costs one.
    """

    def __init__(self, D: Denoiser, unguided: Denoiser, weight: Weight) -> None:
        super().__init__(
            self._guide,
            name=f"guided {D.name}",
            shape=D.shape or unguided.shape,
            classes=D.classes,
            unlabelled=D.unlabelled,
            highest=min(D.highest, unguided.highest),
        )
        self.device, self.dtype, self.data_std, self.shift = D.device, D.dtype, D.data_std, D.shift
        self.card, self.decode = D.card, D.decode
        self.weight = weight
        self._conditional, self._unguided = D, unguided
        self._count = [0]  # shared with what `held` makes

    @property
    def evaluations(self) -> int:
        """Evaluations of a network so far, per batch; those of `held` copies included."""
        return self._count[0]

    def held(self, s: float) -> Guided:
        """The same with the weight of level ``s`` at every level; evaluations are counted here."""
        held = copy.copy(self)
        held.weight = Constant(self.weight(s))
        held._function = held._guide
        return held

    def prepare_labels(self, labels: Any, batch: int, device: torch.device | str = "cpu") -> Tensor | None:
        """As the conditional denoiser takes them."""
        return self._conditional.prepare_labels(labels, batch, device)

    def _guide(self, y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        w = self.weight(s.detach().cpu().numpy() if isinstance(s, Tensor) else s)
        D = self._conditional(y, s, labels)
        self._count[0] += len(y)
        if np.all(w == 1.0):
            return D
        # A weaker network that knows the same classes, and was never trained without them, is given them.
        other = self._unguided(y, s, None if self._unguided.unlabelled else labels)
        self._count[0] += len(y)
        weight = torch.as_tensor(w, dtype=y.dtype, device=y.device).reshape(-1, *(1,) * (y.ndim - 1))
        return torch.lerp(other, D, weight)


def guided(D: Denoiser, unguided: Denoiser | None, weight: Weight) -> Guided:
    """Denoiser D_w = D_0 + w(s) (D_y - D_0), called as (y, s, labels).

    Parameters
    ----------
    D : Denoiser
        Given the labels.
    unguided : Denoiser, optional
        The unconditional network, or a weaker one (autoguidance, Karras et al. 2406.02507). Called without labels; with
        the same labels, if it has the same classes and needs them.
        Default: ``D`` itself, if it was trained with label dropout.
    weight : Weight
        `Constant`, `Interval`, `Pulse`, or sums and products of them. Where it is 1, ``unguided`` is not evaluated.

    Raises
    ------
    ValueError
        ``unguided`` needs labels and is ``D`` itself, or has other classes.
    """
    other = D if unguided is None else unguided
    for name, value, kind in (("D", D, Denoiser), ("unguided", other, Denoiser), ("weight", weight, Weight)):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    weaker = unguided is not None and unguided is not D and other.classes == D.classes
    if not other.unlabelled and not weaker:
        raise ValueError(f"unguided: {other.name} is conditional, and without labels it is not unconditional")
    return Guided(D, other, weight)


def to_diffusers_callback(weight: Weight, scheduler: Any) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
    """A ``callback_on_step_end`` that sets a pipeline's guidance scale to the weight of the next step's noise level.

    Start the pipeline with ``guidance_scale=weight(s)`` of its first level, above 1: pipelines decide there whether to
    run the unconditional half at all, and go on doing so (a weight of 1 or less is passed as slightly more than 1).

    Parameters
    ----------
    weight : Weight
    scheduler : diffusers scheduler
        The pipeline's own, whose timesteps are set when the run begins.

    Examples
    --------
    >>> import fastcrit as fc
    >>> pulse = fc.diffusion.Pulse(center=2.0, width=0.5, weight=4.0)
    >>> # pipe(prompt, guidance_scale=1.001, callback_on_step_end=to_diffusers_callback(pulse, pipe.scheduler))
    """
    schedule, _, scale = schedule_of(scheduler)

    def callback(pipeline: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        times = scheduler.timesteps
        if step + 1 < len(times):
            s = float(schedule.s(float(times[step + 1]) / scale))
            pipeline._guidance_scale = max(weight(s), 1.0 + 1e-6)
        return arguments

    return callback
