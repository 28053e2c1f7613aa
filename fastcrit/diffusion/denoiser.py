"""Adapters: whatever people train becomes one call, D(y, s, labels) -> E[x0 | y], in the scaled state y = x0 + s noise.

An adapter translates noise level into the network's own time, scales the state into the network's own x, and turns what
the network predicts into the denoised image. Nothing here samples.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit import schedules
from fastcrit._arrays import check_choice
from fastcrit.gaussian import GaussianTheory
from fastcrit.mixture import GaussianMixture
from fastcrit.patch.dictionary import Dictionary, lattice_shape

Level = float | Tensor


class Denoiser:
    """A denoiser D(y, s, labels): callable, with what is known of the network it wraps.

    Made by `from_edm`, `from_diffusers`, `from_epsilon`, `from_velocity`, `from_denoiser`, `from_patch`,
    `from_gaussian` and `from_mixture`.

    Attributes
    ----------
    shape : tuple of int or None
        (C, H, W) of a state, where the network says so.
    classes : int
        Number of classes that labels can name; 0: the network takes no labels.
    unlabelled : bool
        Whether ``labels=None`` is meaningful: a network without labels, or one trained with label dropout.
    highest : float
        Highest noise level the network was made for.
    device, dtype : torch.device or None, torch.dtype or None
        Of the network's parameters.
    data_std : float or None
        Standard deviation of the data, where known.
    shift : int or None
        Where known: D commutes with periodic shifts by multiples of this many sites, and its samples lie anywhere.
    decode : callable or None
        Where states are latents: from those without noise (batch, C, H, W) to images (batch, 3, H, W) in [-1, 1].
    card : dict
        How the network came about, where it was read with its card.

    Examples
    --------
    >>> import torch, fastcrit as fc
    >>> D = fc.diffusion.from_denoiser(lambda y, sigma: y / (1 + sigma[:, None, None, None] ** 2), shape=(1, 4, 4))
    >>> float(D(torch.ones(2, 1, 4, 4), 1.0)[0, 0, 0, 0])
    0.5
    """

    def __init__(
        self,
        function: Callable[[Tensor, Level, Tensor | None], Tensor],
        *,
        name: str,
        shape: Sequence[int] | None = None,
        classes: int = 0,
        one_hot: bool = False,
        unlabelled: bool | None = None,
        highest: float = float("inf"),
        network: Any = None,
    ) -> None:
        self.name = name
        if shape is not None and (isinstance(shape, str) or not isinstance(shape, Sequence)):
            raise TypeError(f"shape: expected (C, H, W), got {shape!r}")
        self.shape = None if shape is None else tuple(operator.index(n) for n in shape)
        if self.shape is not None and (len(self.shape) < 2 or min(self.shape) < 1):
            raise ValueError(f"shape: expected positive numbers (C, H, W), got {shape!r}")
        self.classes = operator.index(classes)
        if self.classes < 0:
            raise ValueError(f"classes: expected 0 or more, got {classes!r}")
        self.unlabelled = self.classes == 0 if unlabelled is None else bool(unlabelled)
        self.highest = float(highest)
        self.data_std: float | None = None
        self.shift: int | None = None
        self.decode: Callable[[Tensor], Tensor] | None = None
        self.card: dict[str, Any] = {}
        network = _unwrapped(network)
        if isinstance(network, torch.nn.Module) and network.training:
            warnings.warn(f"{name} is in training mode, where dropout makes D random; call .eval()", stacklevel=3)
        weight = _first_parameter(network)
        self.device: torch.device | None = None if weight is None else weight.device
        self.dtype = _dtype_of(network)
        self._function = function
        self._one_hot = one_hot

    def __repr__(self) -> str:
        shape = "any shape" if self.shape is None else " x ".join(map(str, self.shape))
        return f"<Denoiser: {self.name}, {shape}, {self.classes or 'no'} classes>"

    def __call__(self, y: Tensor, s: Level, labels: Any = None) -> Tensor:
        """D(y; s), of the shape, type and device of ``y``.

        Parameters
        ----------
        y : tensor (batch, C, H, W)
            States y = x0 + s noise.
        s : float or tensor (batch,)
            Noise level. A float costs no look at the device; a tensor may, where a schedule has to be inverted. Values
            are checked unless they lie on an accelerator.
        labels : int, sequence or tensor of int (batch,), or one-hot (batch, classes), optional

        Raises
        ------
        ValueError
            A state of another shape, a level that is not positive or above `highest`, labels where there are no
            classes, outside them or missing.
        TypeError
            No floating-point tensor.
        """
        self._check_state(y)
        batch = len(y)
        if isinstance(s, np.ndarray) and s.ndim:
            s = torch.from_numpy(s)
        if isinstance(s, Tensor):
            if s.shape not in ((), (batch,)):
                raise ValueError(f"s: expected a float or shape ({batch},), got {tuple(s.shape)}")
            if s.device.type == "cpu" and batch:
                self.check_level(s.min())
                self.check_level(s.max())
        else:
            s = self.check_level(s)
        prepared = self.prepare_labels(labels, batch, y.device)
        if not batch:
            return y.clone()
        D = self._function(y, s, prepared)
        return D.to(y.dtype)

    def check_level(self, s: Any) -> float:
        """``s`` as a float, if this denoiser covers it; ValueError otherwise."""
        try:
            level = float(s)
        except (TypeError, ValueError):
            raise TypeError(f"s: expected a noise level, got {s!r}") from None
        if not 0.0 < level < float("inf"):
            raise ValueError(f"s: expected a positive noise level, got {s!r}")
        if level > self.highest * (1 + 1e-6):
            raise ValueError(f"s: {level:.6g} is above {self.highest:.6g}, the highest noise level of {self.name}")
        return level

    def prepare_labels(self, labels: Any, batch: int, device: torch.device | str = "cpu") -> Tensor | None:
        """Labels as the network takes them, on ``device``: class numbers, or one-hot rows; None stays None.

        Values are checked unless they already lie on an accelerator.
        """
        if labels is None:
            if not self.unlabelled:
                raise ValueError(
                    f"labels: {self.name} is conditional, and without labels it is not unconditional; pass labels "
                    "(or tell the adapter, unlabelled=True or null_label=.., if it was trained with label dropout)"
                )
            return None
        if self.classes == 0:
            raise ValueError(f"labels: {self.name} takes no labels")
        if isinstance(labels, Tensor):
            given = labels
        else:
            array = np.asarray(labels)
            if array.dtype.kind not in "iuf":
                raise ValueError(f"labels: expected class numbers or one-hot rows, got {array.dtype} {array.shape}")
            given = torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))
        if given.ndim == 2 and given.shape == (batch, self.classes) and given.dtype != torch.bool:
            rows = given.float()
            if self._one_hot:
                if rows.device.type == "cpu" and not torch.allclose(rows.sum(dim=1), torch.ones(batch)):
                    raise ValueError("labels: expected one-hot rows, or probabilities: every row has to sum to 1")
                return rows.to(device)
            if not bool(((rows == 1).sum(dim=1) == 1).all() and ((rows == 0).sum(dim=1) == self.classes - 1).all()):
                raise ValueError(f"labels: {self.name} takes class numbers; expected rows with a single 1 each")
            return rows.argmax(dim=1).to(device)
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(
                f"labels: expected class numbers, or one-hot rows ({batch}, {self.classes}), "
                f"got {given.dtype} {tuple(given.shape)}"
            )
        if given.ndim == 0:
            given = given.expand(batch)
        if given.shape != (batch,):
            raise ValueError(f"labels: expected one for each of {batch} states, got shape {tuple(given.shape)}")
        if given.device.type == "cpu" and batch and not 0 <= int(given.min()) <= int(given.max()) < self.classes:
            raise ValueError(
                f"labels: expected classes from 0 to {self.classes - 1}, got {int(given.min())} to {int(given.max())}"
            )
        numbers = given.to(device=device, dtype=torch.int64)
        return torch.nn.functional.one_hot(numbers, self.classes).float() if self._one_hot else numbers

    def _check_state(self, y: Tensor) -> None:
        if not isinstance(y, Tensor) or not y.is_floating_point():
            kind = f"{y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise TypeError(f"y: expected a floating-point tensor (batch, C, H, W), got {kind}")
        if self.shape is not None and tuple(y.shape[1:]) != self.shape:
            raise ValueError(f"y: {self.name} takes states of shape (batch, *{self.shape}), got {tuple(y.shape)}")
        if y.ndim != 4 and self.shape is None:
            raise ValueError(f"y: expected states (batch, C, H, W), got shape {tuple(y.shape)}")
        if self.device is not None and y.device != self.device:
            raise ValueError(f"y: {self.name} is on {self.device}, the states are on {y.device}")


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
    inner = _unwrapped(net)
    classes = int(getattr(inner, "label_dim", 0) or 0)
    if shape is None and hasattr(inner, "img_channels") and hasattr(inner, "img_resolution"):
        side = inner.img_resolution
        shape = (inner.img_channels, *(side if isinstance(side, Sequence) else (side, side)))
    takes = inspect.signature(inner.forward if isinstance(inner, torch.nn.Module) else inner).parameters
    extra = {"force_fp32": True} if force_fp32 and "force_fp32" in takes else {}
    denoise = _direct(partial(net, **extra), bool(classes), _dtype_of(net))
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
        More than 0: ``fn`` is given class numbers (batch,) as its third argument (None where there are none).
    unlabelled : bool, optional
        Whether ``labels=None`` is meaningful though there are classes.
    """
    _check_callable(fn, "fn")
    denoise = _direct(fn, bool(classes), _dtype_of(fn))
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
        Default: variance exploding, x = y and t = s (as smalldiffusion's models).
    shape, classes, unlabelled
        As for `from_denoiser`.
    """
    _check_callable(fn, "fn")
    scheme: Any = schedules.EDM() if schedule is None else schedule
    if isinstance(scheme, type) or not (hasattr(scheme, "alpha") and hasattr(scheme, "t")):
        raise TypeError(f"schedule: expected one of fc.schedules, such as fc.schedules.Cosine(), got {schedule!r}")
    denoise = _scheduled(fn, scheme, "epsilon", bool(classes))
    highest = getattr(scheme, "highest", float("inf"))
    return Denoiser(
        denoise, name=_name(fn), shape=shape, classes=classes, unlabelled=unlabelled, highest=highest, network=fn
    )


def from_velocity(
    fn: Callable[..., Any],
    *,
    time_scale: float = 1.0,
    shape: Sequence[int] | None = None,
    classes: int = 0,
    unlabelled: bool | None = None,
) -> Denoiser:
    """A flow-matching network: ``fn(x, t)`` returns v = noise - x0 at x = (1 - t) x0 + t noise.

    Parameters
    ----------
    fn : callable
    time_scale : float
        What t is multiplied by before it is handed over (1000 for networks of diffusers).
    shape, classes, unlabelled
        As for `from_denoiser`.
    """
    _check_callable(fn, "fn")
    denoise = _scheduled(fn, schedules.FlowMatching(), "velocity", bool(classes), time_scale)
    return Denoiser(denoise, name=_name(fn), shape=shape, classes=classes, unlabelled=unlabelled, network=fn)


def from_diffusers(
    model: Callable[..., Any], scheduler: Any, *, null_label: int | None = None, shape: Sequence[int] | None = None
) -> Denoiser:
    """A network of diffusers, such as UNet2DModel, or any ``model(x, t).sample``, with its scheduler.

    The scheduler says what the network predicts (epsilon, sample, v_prediction, or the velocity of the flow-matching
    schedulers) and at which time a noise level lies, interpolated in log s and passed as a float tensor (batch,). Its
    ``step`` is never called, and its clipping and thresholding are not applied. Below the lowest level of its table the
    network is asked at that level. Channels of a learned variance are dropped. A table that ends on zero terminal SNR
    is capped at its last step with a finite level.

    Parameters
    ----------
    model : callable
    scheduler : diffusers scheduler
        With ``config`` and ``alphas_cumprod``, or a FlowMatch one.
    null_label : int, optional
        The class that stands for "no label", where the network was trained with one.
    shape : (C, H, W), optional
        Default: what the model's config says.

    Raises
    ------
    TypeError
        ``model`` is not callable, or the scheduler is of a kind that this adapter does not know.
    ValueError
        An unknown prediction type.
    """
    _check_callable(model, "model")
    schedule, kind, scale = schedule_of(scheduler)
    config = getattr(_unwrapped(model), "config", None) or {}
    if shape is None and config.get("sample_size") is not None and "in_channels" in config:
        side = config["sample_size"]
        shape = (config["in_channels"], *(side if isinstance(side, Sequence) else (side, side)))
    classes = int(config.get("num_class_embeds") or 0)

    def predict(x: Tensor, t: Tensor, labels: Tensor | None = None) -> Any:
        if not classes:
            return model(x, t)
        if labels is None:
            labels = torch.full((len(x),), -1 if null_label is None else null_label, device=x.device)
        return model(x, t, class_labels=labels)

    if null_label is not None and not classes:
        raise ValueError(f"null_label: the network takes no labels, got {null_label!r}")
    if null_label is not None and not 0 <= null_label < classes:
        raise ValueError(f"null_label: expected a class from 0 to {classes - 1}, got {null_label!r}")
    denoise = _scheduled(predict, schedule, kind, bool(classes), scale, _dtype_of(model))
    return Denoiser(
        denoise,
        name=_name(model),
        shape=shape,
        classes=classes,
        unlabelled=classes == 0 or null_label is not None,
        highest=getattr(schedule, "highest", float("inf")),
        network=model,
    )


def scheduler_levels(scheduler: Any, n: int) -> NDArray[np.float64]:
    """Noise levels of the ``n`` inference steps that a scheduler of diffusers would take, and 0 at the end.

    Parameters
    ----------
    scheduler : diffusers scheduler
        As for `from_diffusers`; it is left as it is.
    n : int
        Inference steps.

    Returns
    -------
    array (n + 1,)

    Examples
    --------
    >>> import pytest, fastcrit as fc
    >>> diffusers = pytest.importorskip("diffusers")
    >>> [round(float(s), 2) for s in fc.diffusion.scheduler_levels(diffusers.DDIMScheduler(), 4)]
    [17.38, 3.44, 0.96, 0.01, 0.0]
    """
    schedule, _, scale = schedule_of(scheduler)
    own = copy.deepcopy(scheduler)
    own.set_timesteps(n)
    times = np.asarray(own.timesteps.double().cpu().numpy()) / scale
    return np.append(schedule.s(times), 0.0)


def from_patch(
    dictionary: Dictionary, lattice: int | tuple[int, int] | None = None, *, boundary: str = "periodic"
) -> Denoiser:
    """The patch model in torch, differentiable: D_i = sum over patterns of w(i) times their centre pixel.

    For sampling, `fastcrit.patch.sample` is faster by far; this one has derivatives and any device.

    Parameters
    ----------
    dictionary : Dictionary
        Equivariant.
    lattice : int or (int, int), optional
        Default: any that the states bring.
    boundary : "periodic" or "zero"

    Raises
    ------
    ValueError
        A position-specific dictionary.
    """
    check_choice(boundary, ("periodic", "zero"), "boundary")
    if not isinstance(dictionary, Dictionary):
        raise TypeError(f"dictionary: expected a fastcrit.patch.Dictionary, got {type(dictionary).__name__}")
    if dictionary.position_specific:
        raise ValueError("dictionary: expected an equivariant one; fastcrit.patch.sample runs the position-specific")
    half = dictionary.size // 2
    patterns = torch.from_numpy(np.array(dictionary.patterns, dtype=np.float64))
    log_prior = torch.from_numpy(np.log(dictionary.prior))
    mode = "circular" if boundary == "periodic" else "constant"

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        if y.shape[1] != 1 or (mode == "circular" and min(y.shape[2:]) < dictionary.size):
            raise ValueError(
                f"y: expected one channel and sides of at least {dictionary.size}, the patch's, got {tuple(y.shape)}"
            )
        taps = patterns.to(y)
        column = _column(s, y)
        padded = torch.nn.functional.pad(y, (half,) * 4, mode=mode)
        overlap = torch.nn.functional.conv2d(padded, taps[:, None])
        bias = log_prior.to(y)[:, None, None]
        weights = torch.softmax((overlap - taps.square().sum((1, 2))[:, None, None] / 2) / column**2 + bias, dim=1)
        out: Tensor = torch.einsum("bphw,p->bhw", weights, taps[:, half, half])
        return out[:, None]

    shape = None if lattice is None else (1, *lattice_shape(dictionary, lattice))
    return Denoiser(denoise, name="patch model", shape=shape)


def from_gaussian(theory: GaussianTheory) -> Denoiser:
    """The Wiener filter P/(P + s^2) of Gaussian data: exact, the null case of every statistic."""
    if not isinstance(theory, GaussianTheory):
        raise TypeError(f"theory: expected a fastcrit.theory.GaussianTheory, got {type(theory).__name__}")
    side = theory.spectrum.shape
    axes = tuple(range(-len(side), 0))
    half = torch.from_numpy(np.ascontiguousarray(theory.spectrum[..., : side[-1] // 2 + 1]))

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        y = y if y.dtype == torch.float64 else y.float()  # transforms know no half precision
        P = half.to(y)
        response = P / (P + _column(s, y, len(side) + 2) ** 2)
        out: Tensor = torch.fft.irfftn(response * torch.fft.rfftn(y, dim=axes), s=side, dim=axes)
        return out

    return Denoiser(denoise, name="Wiener filter", shape=(1, *side))


def from_mixture(model: GaussianMixture) -> Denoiser:
    """The exact denoiser of a mixture of Gaussians, with class labels and without: the null case of guidance."""
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"model: expected a fastcrit.theory.GaussianMixture, got {type(model).__name__}")
    means, log_weights = torch.from_numpy(model.means), torch.from_numpy(np.log(model.weights))

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        y64 = y.double()
        mean = means.to(y.device)
        total = model.std**2 + _column(s, y64, 4) ** 2
        if labels is None:
            # |y - mu|^2 without |y|^2, which all classes share.
            energy = y64.flatten(1) @ mean.flatten(1).T - 0.5 * mean.flatten(1).square().sum(dim=1)
            posterior = torch.softmax(energy / total.reshape(-1, 1) + log_weights.to(y.device), dim=1)
            center = torch.einsum("nc,cijk->nijk", posterior, mean)
        else:
            center = mean[labels]
        return center + model.std**2 / total * (y64 - center)

    return Denoiser(
        denoise, name="mixture of Gaussians", shape=model.means.shape[1:], classes=len(model.means), unlabelled=True
    )


def schedule_of(scheduler: Any) -> tuple[Any, str, float]:
    """What a scheduler of diffusers says: its schedule, what the network predicts, and the unit of its time."""
    settings = getattr(scheduler, "config", None)
    if settings is None:
        raise TypeError(f"scheduler: expected a scheduler of diffusers, got {type(scheduler).__name__}")
    if type(scheduler).__name__.startswith("FlowMatch"):
        return schedules.FlowMatching(), "velocity", float(settings["num_train_timesteps"])
    if hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "precondition_inputs"):
        table = scheduler.alphas_cumprod.double().cpu().numpy()
        kind = check_choice(settings.get("prediction_type"), ("epsilon", "sample", "v_prediction"), "prediction_type")
        return schedules.VP(table[table > 0]), kind, 1.0  # zero terminal SNR has no finite level
    raise TypeError(
        f"scheduler: {type(scheduler).__name__} has no table of alpha-bar that the network's output could be turned "
        "into a denoised image with; wrap such a network with from_denoiser or from_velocity"
    )


def _direct(
    fn: Callable[..., Any], labelled: bool, dtype: torch.dtype | None
) -> Callable[[Tensor, Level, Tensor | None], Tensor]:
    """D from ``fn(x, sigma)`` that returns it."""

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        x = y.to(dtype or y.dtype, copy=True)  # networks may work in place
        return _prediction(fn(x, _batch(s, x), *((labels,) if labelled else ())), y)

    return denoise


def _scheduled(
    fn: Callable[..., Any],
    schedule: Any,
    kind: str,
    labelled: bool,
    time_scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Callable[[Tensor, Level, Tensor | None], Tensor]:
    """D from what ``fn(x, t)`` predicts, with x = alpha y.

    epsilon: D = y - s eps. sample: D itself. v = alpha eps - sigma x0 (Salimans and Ho 2202.00512): D = alpha x -
    sigma v. velocity v = eps - x0: D = x - t v.
    """
    dtype = dtype or _dtype_of(fn)

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        level = _column(s, y)
        alpha: Tensor = schedule.alpha(level)
        x = alpha * y
        given = x.to(dtype or x.dtype, copy=True)  # networks may work in place
        t = _time(schedule, s, given, time_scale)
        out = _prediction(fn(given, t, *((labels,) if labelled else ())), y).to(y.dtype)
        if kind == "epsilon":
            return y - level * out
        if kind == "sample":
            return out
        if kind == "velocity":
            return x - (1 - alpha) * out
        return alpha * x - alpha * level * out

    return denoise


def _prediction(out: Any, y: Tensor) -> Tensor:
    """The tensor of y's shape in what a network returned: itself, ``.sample``, or the first of a tuple."""
    tensor = out if isinstance(out, Tensor) else getattr(out, "sample", None)
    if tensor is None and isinstance(out, tuple) and out:
        tensor = out[0]
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the network returned {type(out).__name__}, expected a tensor or an object with .sample")
    if tensor.ndim == y.ndim and tensor.shape[1] == 2 * y.shape[1]:
        tensor = tensor[:, : y.shape[1]]  # the other half is a learned variance
    if tensor.shape != y.shape:
        raise ValueError(
            f"the network returned shape {tuple(tensor.shape)}, expected a result of shape {tuple(y.shape)}"
        )
    return tensor


def _time(schedule: Any, s: Level, x: Tensor, scale: float) -> Tensor:
    """The schedule's time at level s, (batch,), as a float tensor: times are rounded by half precision."""
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    if isinstance(s, Tensor):
        t: Tensor = torch.from_numpy(np.asarray(schedule.t(s.detach().double().cpu().numpy()) * scale))
        t = t.to(device=x.device, dtype=dtype)
        return torch.broadcast_to(t, (len(x),))
    return torch.full((len(x),), float(schedule.t(s)) * scale, device=x.device, dtype=dtype)


def _batch(s: Level, x: Tensor) -> Tensor:
    """Noise levels (batch,)."""
    if isinstance(s, Tensor):
        return torch.broadcast_to(s.to(device=x.device, dtype=x.dtype), (len(x),))
    return torch.full((len(x),), s, device=x.device, dtype=x.dtype)


def _column(s: Level, y: Tensor, ndim: int | None = None) -> Tensor:
    """Noise levels that broadcast against states."""
    if isinstance(s, Tensor):
        return s.to(y).reshape(-1, *(1,) * ((ndim or y.ndim) - 1))
    return torch.full((1,) * (ndim or y.ndim), s, device=y.device, dtype=y.dtype)


def _dtype_of(net: Any) -> torch.dtype | None:
    """Type of a module's parameters, which its input has to have."""
    weight = _first_parameter(net)
    return None if weight is None else weight.dtype


def _first_parameter(net: Any) -> Tensor | None:
    return next(iter(net.parameters()), None) if isinstance(net, torch.nn.Module) else None


def _unwrapped(net: Any) -> Any:
    """The network itself inside torch.compile, DataParallel and DistributedDataParallel."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while hasattr(net, "_orig_mod") or isinstance(net, parallel):
        net = net.module if isinstance(net, parallel) else net._orig_mod
    return net


def _name(fn: Any) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def _check_callable(fn: Any, name: str) -> None:
    if not callable(fn):
        raise TypeError(f"{name}: expected a network or another callable, got {type(fn).__name__}")
