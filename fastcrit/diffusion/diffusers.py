"""Networks and schedulers of diffusers: what a scheduler says of time, levels and prediction.

The one place that knows how classes of diffusers are called.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastcrit import schedules
from fastcrit._edge.arrays import check_choice, check_integer
from fastcrit.diffusion.adapters import Convention, _check_callable, _name, _scheduled
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.network import built_plainly, dtype_of, unwrapped

Floats = NDArray[np.float64]

# Classes of diffusers that are called as model(x, t), and with class_labels= where they have classes.
_CALLED_WITH_X_AND_T = ("UNet2DModel", "UNet1DModel")
# Levels from float32 tables that are nearer than this are the same.
_SAME = 8 * float(np.finfo(np.float32).eps)
# Times of flow matching that are as good as 1, where UniPC stops at 1 - 1e-6.
_AT_NOISE = 1.0 - 1e-5
# What schedulers write for alpha-bar = 0, zero terminal SNR, so that its noise level is finite.
_NEARLY_ZERO = 2.0**-24


@dataclass(frozen=True)
class _QuarterLog:
    """The time t = log(s)/4 of EDM's networks, with the scale of a variance-preserving process."""

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s."""
        return 0.25 * np.log(np.asarray(s, dtype=np.float64))

    def alpha(self, s: Any) -> Any:
        """Scale of the signal at noise level s: alpha^2 + sigma^2 = 1."""
        return (1.0 + s * s) ** -0.5


def from_diffusers(
    model: Callable[..., Any],
    scheduler: Any,
    *,
    classes: int | None = None,
    null_label: int | None = None,
    time_map: ArrayLike | None = None,
    shape: Sequence[int] | None = None,
) -> Denoiser:
    """A network of diffusers, such as UNet2DModel, or any ``model(x, t).sample``, with its scheduler.

    The scheduler says what the network predicts (epsilon, sample, v_prediction, or the velocity of flow matching) and
    at which time a noise level lies, interpolated in log s and passed as a float tensor (batch,); as an integer to a
    network with a learned time embedding, which knows no others. Its ``step`` is never called, and its clipping and
    thresholding are not applied. Below the lowest level of its table the network is asked at that level. Channels of a
    learned variance are dropped. A table that ends on zero terminal SNR is capped at its last step with a finite level;
    where the scheduler puts a finite level there, it is that one's.

    Parameters
    ----------
    model : callable
    scheduler : diffusers scheduler
        With ``config`` and ``alphas_cumprod``, or a FlowMatch one.
    classes : int, optional
        Number of classes, "no label" among them, of a network that is called as ``model(x, t, class_labels=..)``.
        Default: what the model's config says.
    null_label : int, optional
        The class that stands for "no label", where the network was trained with one.
    time_map : sequence of float, optional
        The network's own time at each entry of the scheduler's table, where that is a respaced one.
    shape : (C, H, W), optional
        Default: what the model's config says.

    Raises
    ------
    TypeError
        ``model`` is not callable, or a class of diffusers that is called in another way (transformers, text-conditional
        U-Nets); the scheduler is of a kind that this adapter does not know.
    ValueError
        An unknown prediction type; a null label without classes or outside them; a time map that does not fit.
    """
    _check_callable(model, "model")
    convention = convention_of(scheduler, time_map)
    inner = unwrapped(model)
    config = getattr(inner, "config", None) or {}
    if not hasattr(config, "get"):
        config = {}
    if classes is None:
        classes = int(config.get("num_class_embeds") or 0)
        _check_called_with_x_and_t(inner, config, classes)
    else:
        classes = check_integer(classes, "classes", 0)
    if shape is None and config.get("sample_size") is not None and "in_channels" in config:
        side = config["sample_size"]
        shape = (config["in_channels"], *(side if isinstance(side, Sequence) else (side, side)))
    if config.get("time_embedding_type") == "learned":
        convention = Convention(convention.schedule, convention.kind, steps_only=True)

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Any:
        if not classes:
            return model(x, t)
        if labels is None:
            labels = torch.full((len(x),), -1 if null_label is None else null_label, device=x.device)
        return model(x, t, class_labels=labels)

    if null_label is not None and not classes:
        raise ValueError(
            f"null_label: the network takes no labels, as far as its config says, got {null_label!r}; pass classes= if "
            "it does"
        )
    if null_label is not None and not 0 <= null_label < classes:
        raise ValueError(f"null_label: expected a class from 0 to {classes - 1}, got {null_label!r}")
    D = Denoiser(
        _scheduled(predict, convention, dtype_of(model)),
        name=_name(model),
        shape=shape,
        classes=classes,
        unlabelled=classes == 0 or null_label is not None,
        highest=getattr(convention.schedule, "highest", float("inf")),
        network=model,
    )
    D.null_label = null_label
    D.flow = str(convention) if convention.kind == "velocity" else None
    return D


def scheduler_levels(scheduler: Any, n: int | None = None) -> Floats:
    """Noise levels that a scheduler of diffusers would take in ``n`` inference steps, for `sample`.

    Those of its own ``sigmas`` where it has them (Karras, exponential and beta spacing, shifts, continuous time), and
    otherwise of its time steps, with 0 at the end. What its loop takes twice is there once. Flow matching begins at
    t = 1, which no finite level belongs to: that is replaced by the highest finite one of the scheduler's table, t =
    0.999 without a shift. So is zero terminal SNR.

    Parameters
    ----------
    scheduler : diffusers scheduler
        As for `from_diffusers`, or one of EDM's; it is left as it is.
    n : int, optional
        Inference steps. Default: as its ``set_timesteps`` was called last, with whatever arguments of its own (``mu``
        of a shift that depends on the image's size, ``sigmas``, ``timesteps``).

    Returns
    -------
    array
        Strictly decreasing. It ends where the scheduler's last step does: on 0, or with
        ``final_sigmas_type="sigma_min"`` on its lowest level.

    Raises
    ------
    TypeError
        A scheduler whose levels are not known.
    ValueError
        It runs from data to noise, cannot take ``n`` steps, or was never told how many.

    Examples
    --------
    >>> import pytest, fastcrit as fc
    >>> diffusers = pytest.importorskip("diffusers")
    >>> [round(float(s), 2) for s in fc.diffusion.scheduler_levels(diffusers.DDIMScheduler(), 4)]
    [17.38, 3.44, 0.96, 0.01, 0.0]
    """
    name = _scheduler_name(scheduler)
    own = copy.deepcopy(scheduler)
    if n is not None:
        n = check_integer(n, "n", 1)
        try:
            with built_plainly(), warnings.catch_warnings():
                for kind in (DeprecationWarning, FutureWarning):  # of its own use of numpy and of its configuration
                    warnings.simplefilter("ignore", kind)
                own.set_timesteps(n)
        except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            raise ValueError(
                f"scheduler: {name} cannot take {n} steps by set_timesteps({n}) ({error}); call its set_timesteps with "
                "what it needs, and then scheduler_levels(scheduler)"
            ) from error
    elif getattr(own, "num_inference_steps", None) is None and not getattr(own, "custom_timesteps", False):
        raise ValueError(f"n: {name} was not told a number of steps; pass n, or call its set_timesteps first")
    loop = loop_levels(own)
    if loop[len(own.timesteps) - 1] > loop[0] * (1.0 + _SAME):
        raise ValueError(
            f"scheduler: {name} runs from the data to the noise; pass the one that samples, such as "
            "DDIMScheduler.from_config(scheduler.config)"
        )
    levels = [loop[0]]
    for s in loop[1:]:
        if s < levels[-1] * (1.0 - _SAME):
            levels.append(s)
    if not np.isfinite(levels[0]):
        highest = _highest(own)
        levels[:1] = [highest] if len(levels) < 2 or highest > levels[1] * (1.0 + _SAME) else []
    return np.array(levels)


def loop_levels(scheduler: Any) -> Floats:
    """The level of each of a scheduler's own ``sigmas``, or of its time steps with 0 at the end; t = 1 is inf."""
    check_levels_known(scheduler)
    name, config = _scheduler_name(scheduler), scheduler.config
    if not hasattr(scheduler, "sigmas"):
        schedule = convention_of(scheduler).schedule
        times = np.asarray(scheduler.timesteps.double().cpu().numpy())
        return np.append(schedule.s(times), 0.0)
    sigmas = np.asarray(torch.as_tensor(scheduler.sigmas, device="cpu").double().numpy())
    if not _is_flow(scheduler):
        return sigmas
    if config.get("invert_sigmas"):
        sigmas = 1.0 - sigmas
    if (sigmas > 1.0 + _SAME).any() or (sigmas < 0).any():
        raise ValueError(
            f"scheduler: {name} has sigmas up to {sigmas.max():.6g}, and those of flow matching end at 1; leave out "
            "use_karras_sigmas and the like beside use_flow_sigmas"
        )
    return np.where(sigmas > _AT_NOISE, np.inf, sigmas / np.maximum(1.0 - sigmas, 1.0 - _AT_NOISE))


def check_levels_known(scheduler: Any) -> None:
    """TypeError for a scheduler whose noise levels are not known, before it is told a number of steps."""
    name = _scheduler_name(scheduler)
    if not hasattr(scheduler, "sigmas"):
        convention_of(scheduler)
    elif not (_is_flow(scheduler) or hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "precondition_inputs")):
        raise TypeError(f"scheduler: how {name} spells noise levels is not known; pass levels of your own")


def step_level(scheduler: Any, step: int) -> float | None:
    """Noise level at which the network is asked in a step of a scheduler's loop; None past its end."""
    if not 0 <= step < len(scheduler.timesteps):
        return None
    between = getattr(scheduler, "sigmas_interpol", None)
    if between is not None and step % 2:  # the second half of a step of order 2: ``sigmas`` is where that ends
        level = float(between[step - ("Ancestral" in type(scheduler).__name__)])
        if np.isfinite(level):  # KDPM2's ancestral one has NaN at very high levels
            return level
    level = float(loop_levels(scheduler)[step])
    return level if np.isfinite(level) else _highest(scheduler)


def convention_of(scheduler: Any, time_map: ArrayLike | None = None) -> Convention:
    """What a scheduler of diffusers says of the network's time and of what it predicts."""
    name = _scheduler_name(scheduler)
    config = scheduler.config
    steps = float(config.get("num_train_timesteps") or 1.0)
    if _is_flow(scheduler):
        if time_map is not None:
            raise ValueError(f"time_map: {name} has no table that it could belong to")
        flow = schedules.FlowMatching()
        if name.startswith("FlowMatch"):
            # Mochi's networks count time from the noise, and their sigmas with it.
            inverted = bool(config.get("invert_sigmas"))
            return Convention(flow, "velocity", steps, inverted, -1 if inverted else 1)
        kinds = ("epsilon", "sample", "v_prediction", "flow_prediction")
        kind = check_choice(config.get("prediction_type"), kinds, "prediction_type")
        return Convention(flow, "velocity" if kind == "flow_prediction" else kind, steps)
    if hasattr(scheduler, "alphas_cumprod") and not hasattr(scheduler, "precondition_inputs"):
        if config.get("prediction_type") == "flow_prediction":
            raise ValueError(
                f"scheduler: {name} with prediction_type 'flow_prediction' needs use_flow_sigmas=True, without which "
                "its sigmas are not those of the network's times"
            )
        kind = check_choice(config.get("prediction_type"), ("epsilon", "sample", "v_prediction"), "prediction_type")
        if config.get("timestep_type") == "continuous" and kind == "v_prediction":
            if time_map is not None:
                raise ValueError(f"time_map: {name} has a continuous time, log(sigma)/4")
            return Convention(_QuarterLog(), kind)
        return Convention(_table(scheduler, time_map), kind)
    raise TypeError(
        f"scheduler: {name} has no table of alpha-bar that the network's output could be turned into a denoised image "
        "with; wrap such a network with from_denoiser or from_velocity"
    )


def _table(scheduler: Any, time_map: ArrayLike | None) -> schedules.VP:
    """A scheduler's table of alpha-bar, without what has no place in it because of zero terminal SNR."""
    table = scheduler.alphas_cumprod.double().cpu().numpy()
    times = np.arange(len(table)) if time_map is None else time_map
    kept = table > 0
    if table[-1] == _NEARLY_ZERO:
        # The last step stands in for an infinite level; the loops of those schedulers say this level at this step, and
        # where the steps before it have higher ones, these never come.
        kept &= (table > table[-1]) | (np.arange(len(table)) == len(table) - 1)
    whole = schedules.VP(np.geomspace(0.9, 0.1, len(table)), time_map=times)  # checks the map before it is cut
    return schedules.VP(table[kept], time_map=whole.times[kept])


def _highest(scheduler: Any) -> float:
    """The highest finite level of a flow-matching scheduler's table: one step below t = 1, times its shift."""
    config = scheduler.config
    shift = vars(scheduler).get("_shift") or config.get("shift") or config.get("flow_shift") or 1.0
    return max(float(config.get("num_train_timesteps") or 1000) - 1.0, 1.0) * float(shift)


def _is_flow(scheduler: Any) -> bool:
    """Whether a scheduler's sigmas are times of flow matching."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def _scheduler_name(scheduler: Any) -> str:
    """Its class; TypeError for what is no scheduler of diffusers."""
    name = type(scheduler).__name__
    if not hasattr(getattr(scheduler, "config", None), "get") or not hasattr(scheduler, "set_timesteps"):
        raise TypeError(f"scheduler: expected a scheduler of diffusers, got {name}")
    return name


def _check_called_with_x_and_t(model: Any, config: Any, classes: int) -> None:
    """TypeError for a class of diffusers that is not called as model(x, t), or whose labels go by another name."""
    owner: Any = next((c for c in type(model).__mro__ if "forward" in vars(c)), type(model))
    if not owner.__module__.startswith("diffusers.") or owner.__name__ in _CALLED_WITH_X_AND_T or classes:
        return
    known = config.get("num_embeds_ada_norm")
    if known and owner.__name__.startswith("DiT"):
        how = (
            f"lambda x, t, class_labels: model(x, t, class_labels=class_labels), scheduler, classes={known + 1}, "
            f"null_label={known}, shape=..); its labels are 0 to {known - 1}, and {known} is none"
        )
    elif "encoder_hidden_states" in inspect.signature(owner.forward).parameters:
        how = (
            "lambda x, t: model(x, timestep=t, encoder_hidden_states=prompt.expand(len(x), -1, -1)), scheduler, "
            "shape=..), with what else its pipeline passes, and its time as that scales it"
        )
    else:
        how = "lambda x, t: model(..), scheduler, shape=..), with what its pipeline passes"
    raise TypeError(
        f"model: {owner.__name__} is not called as model(x, t); say how: from_diffusers({how}. A network in half "
        "precision needs an nn.Module in place of the lambda, from which its type and device are read"
    )
