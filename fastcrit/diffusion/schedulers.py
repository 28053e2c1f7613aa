"""Schedulers of diffusers: the noise levels of their loops, and what they say of a network's time and prediction."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fastcrit import schedules
from fastcrit._edge.arrays import check_choice, check_integer
from fastcrit.diffusion.adapters import Convention
from fastcrit.diffusion.network import built_plainly

Floats = NDArray[np.float64]

# Those of EDM and of consistency networks: c_in and c_out of Karras et al. (2206.00364) are outside of the network.
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
CONSISTENCY = "CMStochasticIterativeScheduler"
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


@dataclass(frozen=True)
class Preconditioning:
    """D = c_skip y + c_out F(c_in y, t) around a network F (Karras et al. 2206.00364, table 1).

    Attributes
    ----------
    data_std : float
        Of the data that the network was made for.
    sign : 1 or -1
        Of c_out: schedulers of diffusers mean -1 by "v_prediction".
    start : float
        Of consistency networks (Song et al. 2303.01469, appendix C): at this level, the lowest, D is the state itself.
    time_scale : float
        Of the time, a multiple of log s.
    """

    data_std: float
    sign: int = 1
    start: float = 0.0
    time_scale: float = 0.25

    def t(self, s: ArrayLike) -> Any:
        """Time at noise level s; 1e-44 as consistency networks have it is nothing beside any level."""
        return self.time_scale * np.log(np.asarray(s, dtype=np.float64) + 1e-44)

    def alpha(self, s: Any) -> Any:
        """c_in."""
        return (s * s + self.data_std**2) ** -0.5

    def skip(self, s: torch.Tensor) -> torch.Tensor:
        """c_skip."""
        return self.data_std**2 / ((s - self.start).clamp(min=0.0) ** 2 + self.data_std**2)

    def out(self, s: torch.Tensor) -> torch.Tensor:
        """c_out."""
        c_in: torch.Tensor = self.alpha(s)
        return self.sign * self.data_std * (s - self.start).clamp(min=0.0) * c_in


def scheduler_levels(scheduler: Any, n: int | None = None) -> Floats:
    """Noise levels that a scheduler of diffusers would take in ``n`` inference steps, for `sample`.

    Those of its own ``sigmas`` where it has them (Karras, exponential and beta spacing, shifts, continuous time), and
    otherwise of its time steps, with 0 at the end. What its loop takes twice is there once. Flow matching begins at
    t = 1, which no finite level belongs to: that is replaced by the highest finite one of the scheduler's table, t =
    0.999 without a shift. So is zero terminal SNR.

    Parameters
    ----------
    scheduler : diffusers scheduler
        As for `from_diffusers`; it is left as it is.
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
        It runs from data to noise, cannot take ``n`` steps (dynamic shifting needs its ``mu``), or was never told how
        many. Its levels are no numbers, or the times that its loop passes are not those of its sigmas.

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
                f"what it needs{_shifting(own, n)}, and then scheduler_levels(scheduler)"
            ) from error
    elif getattr(own, "num_inference_steps", None) is None and not getattr(own, "custom_timesteps", False):
        raise ValueError(f"n: {name} was not told a number of steps; pass n, or call its set_timesteps first")
    loop = loop_levels(own)
    if np.isnan(loop).any():
        raise ValueError(
            f"scheduler: {name} makes levels that are no numbers, {loop.tolist()}; shift_terminal does so of a single "
            "step, which it stretches by 0/0"
        )
    _check_times(own, loop)
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


def _shifting(scheduler: Any, n: int) -> str:
    """What dynamic shifting asks for, in words."""
    if not scheduler.config.get("use_dynamic_shifting"):
        return ""
    return (
        f": its shift depends on the image's size, by mu from base_shift {scheduler.config.get('base_shift')} to "
        f"max_shift {scheduler.config.get('max_shift')}, which the pipeline computes: set_timesteps({n}, mu=..)"
    )


def _check_times(scheduler: Any, loop: Floats) -> None:
    """ValueError where a loop of flow matching passes times to the network that are not those of its sigmas."""
    name, config = _scheduler_name(scheduler), scheduler.config
    if not name.startswith("FlowMatch") or len(scheduler.timesteps) != len(loop) - 1:
        return
    passed = np.asarray(scheduler.timesteps.double().cpu().numpy())
    own = np.asarray(torch.as_tensor(scheduler.sigmas).double().cpu().numpy())[:-1] * config["num_train_timesteps"]
    # Some round times to integers or cut them off.
    if (abs(passed - own) > 1.0 + 1e-3).any():
        i = int(np.argmax(abs(passed - own)))
        raise ValueError(
            f"scheduler: {name} was told times of its own, and passes t = {passed[i]:.6g} at sigma = "
            f"{own[i] / config['num_train_timesteps']:.6g}; tell it sigmas: set_timesteps(sigmas=..)"
        )


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
    elif not (
        _is_flow(scheduler)
        or hasattr(scheduler, "alphas_cumprod")
        or hasattr(scheduler, "precondition_inputs")
        or name == CONSISTENCY
    ):
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
    if name in _EDM or name == CONSISTENCY:
        if time_map is not None:
            raise ValueError(f"time_map: {name} has no table that it could belong to")
        data_std = float(config["sigma_data"])
        if name == CONSISTENCY:
            start = float(config["sigma_min"])
            return Convention(Preconditioning(data_std, start=start, time_scale=250.0), "preconditioned")
        kind = check_choice(config.get("prediction_type"), ("epsilon", "v_prediction"), "prediction_type")
        return Convention(Preconditioning(data_std, 1 if kind == "epsilon" else -1), "preconditioned")
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
    if config.get("use_dynamic_shifting"):  # which takes the place of the fixed one, and is not in the table
        shift = 1.0
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
