"""Guidance: weights as functions of the noise level, and the guided denoiser D_w = D_0 + w(s) (D_y - D_0)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrit._edge.arrays import check_choice, check_finite_number, check_positive, to_numbers
from fastcrit.diffusion.denoiser import Denoiser, Level
from fastcrit.diffusion.schedulers import check_levels_known, step_level

# Edges compare to this: a level of 5.42 from a float32 table is 5.4200000763, and lies in an interval that ends there.
_EDGE = 8 * float(np.finfo(np.float32).eps)


class Weight:
    """A guidance weight w(s): 1 is no guidance. Weights add and multiply as functions of s."""

    def __call__(self, s: Any) -> Any:
        """Weight at noise level ``s``, a float for a float, an array for an array."""
        levels = to_numbers(s, "s")
        if (levels < 0).any():
            raise ValueError(f"s: expected noise levels >= 0, got {levels[levels < 0].ravel()[0]}")
        weight = self._weight(levels)
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

    def __post_init__(self) -> None:
        check_finite_number(self.weight, "weight")

    def _weight(self, s: Any) -> Any:
        return np.full(s.shape, float(self.weight))


@dataclass(frozen=True)
class Interval(Weight):
    """``weight`` at low < s <= high and 1 elsewhere (Kynkäänniemi et al. 2404.07724).

    A level that is an edge to within a few roundings of float32, in which schedulers keep their levels, is that edge.

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
        check_finite_number(self.weight, "weight")
        if not 0 <= self.low < self.high:
            raise ValueError(f"low, high: expected 0 <= low < high, got {self.low!r} and {self.high!r}")

    def _weight(self, s: Any) -> Any:
        return np.where(_between(s, self.low, self.high), float(self.weight), 1.0)


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
        check_finite_number(self.weight, "weight")
        check_choice(self.shape, ("box", "gaussian"), "shape")
        if not check_finite_number(self.width, "width") >= 0:
            raise ValueError(f"width: expected a number >= 0, got {self.width!r}")

    def _weight(self, s: Any) -> Any:
        if self.width == 0:
            return np.ones(s.shape)
        if self.shape == "box":
            # Of very wide ones the edges are 0 and infinity.
            with np.errstate(over="ignore", under="ignore"):
                low, high = self.center * np.exp(np.array([-self.width / 2, self.width / 2]))
            return np.where(_between(s, low, high), float(self.weight), 1.0)
        with np.errstate(divide="ignore"):
            x = np.log(s / self.center)
        return 1.0 + (self.weight - 1.0) * np.exp2(-((2 * x / self.width) ** 2))


@dataclass(frozen=True)
class _Combined(Weight):
    operation: Callable[[Any, Any], Any]
    first: Weight
    second: Weight

    def _weight(self, s: Any) -> Any:
        return self.operation(self.first._weight(s), self.second._weight(s))


def _between(s: Any, low: float, high: float) -> Any:
    """Low < s <= high, edges to within the rounding of the levels."""
    return (s > low * (1.0 + _EDGE)) & (s <= high * (1.0 + _EDGE))


def _as_weight(value: Weight | float) -> Weight:
    return value if isinstance(value, Weight) else Constant(value)


def _same_network(one: Denoiser, other: Denoiser) -> bool:
    """Whether two denoisers were made of one network, each by an adapter of its own."""
    return one._network is not None and one._network is other._network


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
        self.card, self.decode, self.null_label, self.flow = D.card, D.decode, D.null_label, D.flow
        self.weight = weight
        self._conditional, self._unguided = D, unguided
        self._count = [0]  # shared with what `held` makes

    @property
    def conditional(self) -> Denoiser:
        """The denoiser that is guided."""
        return self._conditional

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
        """As the conditional denoiser takes them; ValueError where guidance would do nothing.

        A network that is guided by itself without labels needs labels, and other ones than that of "no label".
        """
        prepared = self._conditional.prepare_labels(labels, batch, device)
        if self._unguided is self._conditional or _same_network(self._unguided, self._conditional):
            null = self._unguided.null_label
            if prepared is None:
                raise ValueError(
                    f"labels: {self._conditional.name} is guided by itself without labels, and got none: that does "
                    "nothing; pass labels, or another network as unguided="
                )
            if null is not None and prepared.device.type == "cpu" and bool((prepared == null).any()):
                where = int((prepared == null).nonzero()[0, 0])
                raise ValueError(
                    f'labels: {null} stands for "no label", and guiding from it to itself does nothing; state {where} '
                    "has it"
                )
        return prepared

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
        Default: ``D`` itself, if it was trained with label dropout; it then needs labels.
    weight : Weight
        `Constant`, `Interval`, `Pulse`, or sums and products of them. Where it is 1, ``unguided`` is not evaluated.

    Raises
    ------
    ValueError
        ``unguided`` needs labels and is ``D`` itself, or has other classes. ``D`` would be guided by itself and has no
        classes, so that guidance would cost twice the evaluations and change nothing; the guided denoiser says the same
        where it is called without labels, or with the one that stands for none.
    """
    other = D if unguided is None else unguided
    for name, value, kind in (("D", D, Denoiser), ("unguided", other, Denoiser), ("weight", weight, Weight)):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(value).__name__}")
    weaker = unguided is not None and unguided is not D and other.classes == D.classes
    if not other.unlabelled and not weaker:
        raise ValueError(f"unguided: {other.name} is conditional, and without labels it is not unconditional")
    if _same_network(other, D) and other is not D and not (D.classes and other.unlabelled):
        raise ValueError(
            f"unguided: {other.name} is the network of D, called alike, and leading away from it does nothing"
        )
    if other is D and not D.classes:
        raise ValueError(
            f"unguided: {D.name} takes no labels, so that guided by itself it stays as it is, at twice the cost; pass "
            "the network without its condition (or prompt) as unguided="
        )
    return Guided(D, other, weight)


def to_diffusers_callback(weight: Weight, scheduler: Any) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
    """A ``callback_on_step_end`` that sets a pipeline's guidance scale to the weight of the next step's noise level.

    Start the pipeline with ``guidance_scale=weight(s)`` of its first level, above 1: pipelines decide there whether to
    run the unconditional half at all, and go on doing so (a weight of 1 or less is passed as slightly more than 1).

    Pipelines of SD, SDXL and SD3 ask for their guidance scale at every step. Others call the callback but keep the
    scale that they began with (Sana, AuraFlow, FLUX, Lumina 2), or know no callback (PixArt, DiT): `sample` their
    networks.

    Parameters
    ----------
    weight : Weight
    scheduler : diffusers scheduler
        The pipeline's own, whose timesteps are set when the run begins.

    Raises
    ------
    TypeError
        No weight; a scheduler that is not known. From the callback, after the first step: a pipeline of diffusers that
        keeps the scale that it began with.

    Examples
    --------
    >>> import fastcrit as fc
    >>> pulse = fc.diffusion.Pulse(center=2.0, width=0.5, weight=4.0)
    >>> # pipe(prompt, guidance_scale=1.001, callback_on_step_end=to_diffusers_callback(pulse, pipe.scheduler))
    """
    if not isinstance(weight, Weight):
        raise TypeError(f"weight: expected a Weight, such as fc.diffusion.Constant(2.0), got {type(weight).__name__}")
    check_levels_known(scheduler)  # one that is not known is refused before the run

    def callback(pipeline: Any, step: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        _check_asks_again(type(pipeline))
        s = step_level(scheduler, _next_step(scheduler, step, timestep))
        if s is not None:
            pipeline._guidance_scale = max(weight(s), 1.0 + 1e-6)
        return arguments

    return callback


def _check_asks_again(kind: type) -> None:
    """TypeError for a pipeline of diffusers whose loop keeps its guidance scale in a variable of its own."""
    # The class's own: a type can be called, too.
    call = next((vars(c)["__call__"] for c in kind.__mro__ if "__call__" in vars(c)), None)
    if call is None or not call.__module__.startswith("diffusers."):
        return
    # Names of attributes, which its variables are not among: self.guidance_scale is one.
    if "guidance_scale" not in inspect.unwrap(call).__code__.co_names:
        raise TypeError(
            f"pipeline: {kind.__name__} keeps the guidance scale that it began with, and a callback cannot change it; "
            "sample its network instead: fc.diffusion.sample(fc.diffusion.from_pipeline(pipe, prompts), .., "
            "guidance=weight)"
        )


def _next_step(scheduler: Any, step: int, timestep: Any) -> int:
    """Which of a scheduler's steps comes after the pipeline's ``step``: it may have begun in the middle."""
    done = getattr(scheduler, "step_index", None)  # counted by its own step()
    if done is not None:
        return int(done)
    times = scheduler.timesteps
    if step < len(times) and times[step] == timestep:
        return step + 1
    where = (times == timestep).nonzero()
    return int(where[0, 0]) + 1 if len(where) else len(times)
