"""Adapters: whatever people train becomes one call, D(y, s, labels) -> E[x0 | y], in the scaled state y = x0 + s noise.

An adapter translates noise level into the network's own time, scales the state into the network's own x, and turns what
the network predicts into the denoised image. Nothing here samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrit import schedules
from fastcrit._edge.arrays import check_positive
from fastcrit.diffusion.denoiser import Denoiser, Level, _column
from fastcrit.diffusion.network import dtype_of, parameters_of_call, unwrapped

# What fastcrit.diffusion has of this file.
__all__ = ["from_denoiser", "from_edm", "from_epsilon", "from_velocity"]

# What keyword-only labels are called in k-diffusion and its kin.
_LABEL_NAMES = ("class_labels", "class_cond", "class_label", "labels", "label", "classes", "y")


@dataclass(frozen=True)
class Convention:
    """How a network is called, and what it returns, with x = alpha y.

    Attributes
    ----------
    schedule : Schedule
        Which time belongs to a noise level.
    kind : "epsilon", "sample", "v_prediction", "velocity" or "preconditioned"
        epsilon: D = y - s eps. sample: D itself. v = alpha eps - sigma x0 (Salimans and Ho 2202.00512): D = alpha x -
        sigma v. velocity v = eps - x0: D = x - t v. preconditioned: D = c_skip y + c_out F, which the schedule has.
    time_scale : float
        What the time is multiplied by before it is handed over.
    reverse : bool
        The network is given 1 - t.
    sign : 1 or -1
        Of a velocity.
    steps_only : bool
        The network knows integer times alone: it is asked at the nearest.
    """

    schedule: Any
    kind: str
    time_scale: float = 1.0
    reverse: bool = False
    sign: int = 1
    steps_only: bool = False

    def __str__(self) -> str:
        returned = "noise - x0" if self.sign > 0 else "x0 - noise"
        begin, end = ("noise", "data") if self.reverse else ("data", "noise")
        return f"v = {returned}, time 0 at the {begin} and {self.time_scale:g} at the {end}"


def from_edm(
    net: Any, *, force_fp32: bool = True, unlabelled: bool | None = None, shape: Sequence[int] | None = None
) -> Denoiser:
    """A network of EDM or EDM2, or `fastcrit.diffusion.net.Net`: ``net(x, sigma, class_labels)`` returns D.

    Parameters
    ----------
    net : callable
        With ``label_dim``, ``img_channels`` and ``img_resolution``, as those networks have (without: unconditional,
        of any shape).
    force_fp32 : bool
        Passed on where the network has such an argument: half precision is too coarse for gains and for spectra.
    unlabelled : bool, optional
        Whether ``labels=None`` is meaningful. Default: only for a network without labels, or one that says so in an
        attribute ``unlabelled``. EDM's conditional networks accept no labels but were never trained so.
    shape : (C, H, W), optional

    Raises
    ------
    TypeError
        ``net`` is not callable.
    """
    _check_callable(net, "net")
    inner = unwrapped(net)
    classes = int(getattr(inner, "label_dim", 0) or 0)
    if shape is None and hasattr(inner, "img_channels") and hasattr(inner, "img_resolution"):
        side = inner.img_resolution
        shape = (inner.img_channels, *(side if isinstance(side, Sequence) else (side, side)))
    takes = [p.name for p in parameters_of_call(inner) or ()]
    extra = {"force_fp32": True} if force_fp32 and "force_fp32" in takes else {}
    denoise = _direct(_labelled(net, classes, "net", **extra), dtype_of(net))
    if unlabelled is None:
        unlabelled = classes == 0 or bool(getattr(inner, "unlabelled", False))
    return Denoiser(
        denoise, name=_name(inner), shape=shape, classes=classes, one_hot=True, unlabelled=unlabelled, network=net
    )


def from_denoiser(
    fn: Callable[..., Tensor], *, shape: Sequence[int] | None = None, classes: int = 0, unlabelled: bool | None = None
) -> Denoiser:
    """Anything in the style of k-diffusion: ``fn(x, sigma)`` or ``fn(x, sigma, labels)`` returns D, sigma (batch,).

    Parameters
    ----------
    fn : callable
    shape : (C, H, W), optional
    classes : int
        More than 0: ``fn`` is given class numbers (batch,) as its third argument (None where there are none), or by
        keyword where it takes them so, under one of the usual names (class_labels, class_cond, labels, y).
    unlabelled : bool, optional
        Whether ``labels=None`` is meaningful though there are classes.

    Raises
    ------
    TypeError
        ``fn`` is not callable, or there are classes and it is not clear how it takes labels.
    """
    _check_callable(fn, "fn")
    denoise = _direct(_labelled(fn, classes, "fn"), dtype_of(fn))
    return Denoiser(denoise, name=_name(fn), shape=shape, classes=classes, unlabelled=unlabelled, network=fn)


def from_epsilon(
    fn: Callable[..., Any],
    schedule: schedules.Schedule | None = None,
    *,
    shape: Sequence[int] | None = None,
    classes: int = 0,
    unlabelled: bool | None = None,
) -> Denoiser:
    """A network that predicts the noise: ``fn(x, t)`` or ``fn(x, t, labels)`` with x = alpha y and t of its schedule.

    Parameters
    ----------
    fn : callable
    schedule : Schedule, optional
        Default: variance exploding, x = y and t = s (as smalldiffusion's models). A respaced table with a network that
        wants the original times: ``schedules.VP(.., time_map=..)``.
    shape, classes, unlabelled
        As for `from_denoiser`.

    Examples
    --------
    ADM's networks, ``model(x, timesteps, y)`` with half of their channels a variance, and the table they were trained
    with; ``time_map`` of the schedule where the table is a respaced one:

    >>> import numpy as np, torch, fastcrit as fc
    >>> table = fc.schedules.VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    >>> def adm(x, timesteps, y):
    ...     return torch.cat([0.1 * x, x], dim=1)
    >>> D = fc.diffusion.from_epsilon(adm, table, classes=1000, shape=(3, 8, 8))
    >>> D(torch.ones(2, 3, 8, 8), 1.0, [3, 7]).shape
    torch.Size([2, 3, 8, 8])

    U-ViT's take a label more, 1000, for none:

    >>> def uvit(x, timesteps, y):
    ...     return 0.1 * x * (y == 1000)[:, None, None, None]
    >>> def call(x, t, labels):
    ...     return uvit(x, t, labels if labels is not None else torch.full((len(x),), 1000))
    >>> D = fc.diffusion.from_epsilon(call, table, classes=1001, unlabelled=True, shape=(4, 8, 8))
    >>> round(float(D(torch.ones(1, 4, 8, 8), 1.0).mean()), 4)  # 1 - 0.1 / sqrt(2)
    0.9293
    """
    _check_callable(fn, "fn")
    scheme: Any = schedules.EDM() if schedule is None else schedule
    if isinstance(scheme, type) or not (hasattr(scheme, "alpha") and hasattr(scheme, "t")):
        raise TypeError(f"schedule: expected one of fc.schedules, such as fc.schedules.Cosine(), got {schedule!r}")
    denoise = _scheduled(_labelled(fn, classes, "fn"), Convention(scheme, "epsilon"), dtype_of(fn))
    highest = getattr(scheme, "highest", float("inf"))
    return Denoiser(
        denoise, name=_name(fn), shape=shape, classes=classes, unlabelled=unlabelled, highest=highest, network=fn
    )


def from_velocity(
    fn: Callable[..., Any],
    *,
    time_scale: float = 1.0,
    reverse: bool = False,
    sign: int = 1,
    shape: Sequence[int] | None = None,
    classes: int = 0,
    unlabelled: bool | None = None,
) -> Denoiser:
    """A flow-matching network: ``fn(x, t)`` returns v = noise - x0 at x = (1 - t) x0 + t noise.

    Networks differ in time and sign: SiT's, and whatever else counts time from the noise, are
    ``from_velocity(fn, reverse=True, sign=-1)``. Nothing in the network says so; `sample` warns where it can be seen.

    Parameters
    ----------
    fn : callable
    time_scale : float
        What the time is multiplied by before it is handed over (1000 for networks of diffusers).
    reverse : bool
        The network's time runs from 0 at the noise to 1 at the data: it is given 1 - t.
    sign : 1 or -1
        -1: it returns x0 - noise.
    shape, classes, unlabelled
        As for `from_denoiser`.

    Raises
    ------
    TypeError
        As for `from_denoiser`.
    ValueError
        Another sign, or a time scale that is not positive.

    Examples
    --------
    A SiT that is exact for normal data of variance 1/4: v = x0 - noise at x = tau x0 + (1 - tau) noise.

    >>> import torch, fastcrit as fc
    >>> def sit(x, tau):
    ...     tau = tau[:, None, None, None]
    ...     return (tau / 4 - (1 - tau)) / (tau**2 / 4 + (1 - tau) ** 2) * x
    >>> D = fc.diffusion.from_velocity(sit, reverse=True, sign=-1, shape=(1, 4, 4))
    >>> round(float(D(torch.ones(1, 1, 4, 4), 1.0)[0, 0, 0, 0]), 6)  # P/(P + s^2)
    0.2
    """
    _check_callable(fn, "fn")
    if not isinstance(reverse, (bool, np.bool_)):
        raise TypeError(f"reverse: expected True or False, got {reverse!r}")
    if isinstance(sign, bool) or sign not in (1, -1):
        raise ValueError(f"sign: expected 1 (v = noise - x0) or -1 (v = x0 - noise), got {sign!r}")
    time_scale = check_positive(time_scale, "time_scale")
    convention = Convention(schedules.FlowMatching(), "velocity", time_scale, bool(reverse), int(sign))
    denoise = _scheduled(_labelled(fn, classes, "fn"), convention, dtype_of(fn))
    D = Denoiser(denoise, name=_name(fn), shape=shape, classes=classes, unlabelled=unlabelled, network=fn)
    D.flow = str(convention)
    return D


def _labelled(
    fn: Callable[..., Any], classes: int, name: str, **extra: Any
) -> Callable[[Tensor, Tensor, Tensor | None], Any]:
    """``fn`` called with x, time and labels as it takes them: by their name, third, or not at all without classes.

    TypeError where there are classes and its signature does not say how.
    """
    if not classes:
        return lambda x, t, labels: fn(x, t, **extra)
    inner = unwrapped(fn)
    known = parameters_of_call(inner)
    if known is None:
        return lambda x, t, labels: fn(x, t, labels, **extra)
    places = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p.name for p in [*places[2:], *(p for p in known if p.kind is p.KEYWORD_ONLY)]]
    labels_by = [key for key in keywords if key in _LABEL_NAMES]
    third = places[2].name if len(places) > 2 else None
    if third in labels_by or (third is not None and not labels_by) or any(p.kind is p.VAR_POSITIONAL for p in known):
        return lambda x, t, labels: fn(x, t, labels, **extra)
    if len(labels_by) != 1:
        takes = f"the keywords {', '.join(keywords)}" if keywords else "no third argument"
        raise TypeError(
            f"{name}: {_name(inner)} has {classes} classes and takes {takes}, which does not say how it is given "
            "labels; wrap it: "
            f"lambda x, t, labels: {name}(x, t, class_labels=labels), with its own word for class_labels"
        )
    return lambda x, t, labels: fn(x, t, **{labels_by[0]: labels}, **extra)


def _direct(
    fn: Callable[[Tensor, Tensor, Tensor | None], Any], dtype: torch.dtype | None
) -> Callable[[Tensor, Level, Tensor | None], Tensor]:
    """D from ``fn(x, sigma, labels)`` that returns it."""

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        x = y.to(dtype or y.dtype, copy=True)  # networks may work in place
        with _explained(dtype):
            returned = fn(x, _batch(s, x), labels)
        return _prediction(returned, y)

    return denoise


def _scheduled(
    fn: Callable[[Tensor, Tensor, Tensor | None], Any], convention: Convention, dtype: torch.dtype | None
) -> Callable[[Tensor, Level, Tensor | None], Tensor]:
    """D from what ``fn(x, t, labels)`` predicts, with x = alpha y: see `Convention`."""
    kind, sign = convention.kind, convention.sign

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        level = _column(s, y)
        alpha: Tensor = convention.schedule.alpha(level)
        x = alpha * y
        given = x.to(dtype or x.dtype, copy=True)  # networks may work in place
        t = _time(convention, s, given)
        with _explained(dtype):
            returned = fn(given, t, labels)
        out = _prediction(returned, y).to(y.dtype)
        if kind == "epsilon":
            return y - level * out
        if kind == "sample":
            return out
        if kind == "velocity":
            return x - sign * (1 - alpha) * out
        if kind == "preconditioned":
            denoised: Tensor = convention.schedule.skip(level) * y + convention.schedule.out(level) * out
            return denoised
        return alpha * x - alpha * level * out

    return denoise


@contextmanager
def _explained(dtype: torch.dtype | None) -> Iterator[None]:
    """What torch says deep inside a network, as what its caller can mend."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if "indices" in said and "scalar type" in said:  # of torch.embedding
            raise TypeError(
                "the network looks its times up in a table, and takes integers alone; wrap it: "
                "lambda x, t: net(x, t.round().long()), which asks it at the nearest step"
            ) from error
        if dtype is None and ("Half" in said or "BFloat16" in said):
            raise TypeError(
                f"the network computes in half precision, which a function around it does not tell ({said}); wrap it in"
                " an nn.Module, from whose parameters it is read, or make it .float(), which gains and spectra need"
            ) from error
        raise


def _prediction(out: Any, y: Tensor) -> Tensor:
    """The tensor of y's shape in what a network returned."""
    tensor = tensor_of(out)
    if tensor.ndim == y.ndim and tensor.shape[1] == 2 * y.shape[1]:
        tensor = tensor[:, : y.shape[1]]  # the other half is a learned variance
    if tensor.shape != y.shape:
        raise ValueError(
            f"the network returned shape {tuple(tensor.shape)}, expected a result of shape {tuple(y.shape)}"
        )
    return tensor


def tensor_of(out: Any) -> Tensor:
    """The tensor in what a network returned: itself, ``.sample``, or the first of a tuple."""
    tensor = out if isinstance(out, Tensor) else getattr(out, "sample", None)
    if tensor is None and isinstance(out, tuple) and out:
        tensor = out[0]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the network returned {type(out).__name__}, expected a tensor or an object with .sample")
    return tensor


def _time(convention: Convention, s: Level, x: Tensor) -> Tensor:
    """The network's time at level s, (batch,): a float tensor, since half precision would round it, or steps."""
    level = s.detach().double().cpu().numpy() if isinstance(s, Tensor) else s
    time = np.asarray(convention.schedule.t(level))
    time = (1.0 - time if convention.reverse else time) * convention.time_scale
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    if convention.steps_only:
        time, dtype = np.rint(time), torch.int64
    if not time.ndim:
        return torch.full((len(x),), time.item(), device=x.device, dtype=dtype)
    return torch.broadcast_to(torch.from_numpy(time).to(device=x.device, dtype=dtype), (len(x),))


def _batch(s: Level, x: Tensor) -> Tensor:
    """Noise levels (batch,)."""
    if isinstance(s, Tensor):
        return torch.broadcast_to(s.to(device=x.device, dtype=x.dtype), (len(x),))
    return torch.full((len(x),), s, device=x.device, dtype=x.dtype)


def _name(fn: Any) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def _check_callable(fn: Any, name: str) -> None:
    if not callable(fn):
        raise TypeError(f"{name}: expected a network or another callable, got {type(fn).__name__}")
