"""Training of a denoiser on images in memory: EDM's loss, an average of the weights, checkpoints from which it goes on.

Everything random is a function of the seed and the step, so a run that was stopped and resumed takes the same steps.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from fastcrit import store
from fastcrit._edge import statefile as _statefile
from fastcrit._edge.arrays import check_choice, check_integer, check_positive
from fastcrit._edge.placement import usable_device
from fastcrit.diffusion.net import Net, NetConfig
from fastcrit.diffusion.network import built_plainly
from fastcrit.errors import FileFormatError

NET_FORMAT = "fastcrit.net"
TRAINING_FORMAT = "fastcrit.training"
FORMAT_VERSION = 1

# Losses are averaged over this many steps before they are kept and shown.
_STEPS_A_LOSS = 100


@dataclass(frozen=True)
class Training:
    """Configuration of a training run.

    Parameters
    ----------
    net : NetConfig
    steps, batch : int
    learning_rate : float
        Adam's, after a linear rise over 2 % of the steps; it falls to zero along a cosine.
    log_level_mean, log_level_std : float
        Noise levels are log-normal, one from each of ``batch`` equally likely intervals.
    label_dropout : float
        Share of images shown without their label: the same net is then conditional and unconditional.
    average : float
        Decay a step of the running average of the weights, which is what is kept (shorter at the beginning).
    precision : "float32" or "bfloat16"
        Of the convolutions (autocast); bfloat16 is twice as fast or more where the processor has AMX.
    seed : int
    """

    net: NetConfig = field(default_factory=NetConfig)
    steps: int = 4000
    batch: int = 128
    learning_rate: float = 2e-3
    log_level_mean: float = -0.4
    log_level_std: float = 1.6
    label_dropout: float = 0.2
    average: float = 0.999
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 1), ("batch", 1), ("seed", 0)):
            object.__setattr__(self, name, check_integer(getattr(self, name), name, lowest))
        if self.seed >= 2**63:
            raise ValueError(f"seed: expected an integer below 2^63, got {self.seed}")
        for name in ("learning_rate", "log_level_std"):
            object.__setattr__(self, name, check_positive(getattr(self, name), name))
        if not np.isfinite(self.log_level_mean):
            raise ValueError(f"log_level_mean: expected a finite number, got {self.log_level_mean!r}")
        for name in ("log_level_mean", "label_dropout", "average"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("label_dropout", "average"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)!r}")
        check_choice(self.precision, ("float32", "bfloat16"), "precision")

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {**asdict(self), "net": self.net.to_dict()}

    def run(
        self,
        images: NDArray[np.float32],
        labels: NDArray[np.int64],
        out: str | os.PathLike[str] | None = None,
        *,
        resume: bool = False,
        device: str = "cpu",
        progress: bool = False,
        save_every: float = 60.0,
    ) -> tuple[Net, dict[str, Any]]:
        """Train; with ``out``, write RUN/net.safetensors at the end and RUN/training.safetensors on the way.

        Parameters
        ----------
        images : (n, C, H, W) float32
        labels : (n,) int64
            Classes from 0 to ``net.classes`` - 1.
        out : path, optional
        resume : bool
            Go on with the run in ``out``; begin one where there is none.
        device : str
            Where the net is trained, as torch names it. Order, levels and noise are the same on every device.
        progress : bool
        save_every : float
            Seconds between two checkpoints.

        Returns
        -------
        net : Net
            With the averaged weights, in evaluation mode, on the CPU.
        history : dict
            ``loss`` (means of 100 steps), ``seconds``, and where: ``device``, ``machine``, ``torch``.

        Raises
        ------
        ValueError
            Images of another shape, labels outside the classes, a device that is not there, another configuration than
            the run's in ``out``.
        FileExistsError
            ``out`` exists and ``resume`` is False, or it holds a finished net, or something that is no run.
        FileFormatError
            The checkpoint is damaged.
        """
        self._check(images, labels)
        where = torch.device(usable_device(device))
        labels = labels.astype(np.int64)
        config = {"training": "denoiser", **self.to_dict(), "data": _digest(images, labels)}
        folder = None if out is None else store.begin_run(out, config, finished="net.safetensors", resume=resume)
        state = _State(self, where)
        if folder is not None and (folder / "training.safetensors").exists():
            state.load(folder / "training.safetensors")
        begun = saved = time.monotonic()
        spent = state.seconds
        with tqdm(total=self.steps, initial=state.step, disable=None if progress else True, unit="step") as bar:
            for picture, label, s, noise in _batches(self, images, labels, state.step):
                state.advance(picture, label, s, noise)
                bar.update()
                if state.step % _STEPS_A_LOSS == 0:
                    bar.set_postfix(loss=f"{state.keep_loss():.4f}")
                now = time.monotonic()
                state.seconds = spent + now - begun
                if folder is not None and now - saved > save_every:
                    state.save(folder / "training.safetensors")
                    saved = now
        history = {"loss": [round(x, 6) for x in state.losses], "seconds": round(state.seconds, 1)}
        history |= {"device": device, "machine": _machine(where), "torch": str(torch.__version__)}
        net = state.average.cpu()
        if folder is not None:
            save_net(folder / "net.safetensors", net, {"training": self.to_dict(), **history})
            (folder / "training.safetensors").unlink(missing_ok=True)
        return net, history

    def _check(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        if images.ndim != 4 or images.shape[1:] != self.net.shape or images.dtype != np.float32 or not len(images):
            raise ValueError(f"images: expected float32 (n, *{self.net.shape}), got {images.dtype} {images.shape}")
        if not np.isfinite(images).all():
            raise ValueError("images: NaN or infinite values")
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels: expected {len(images)} integers, got {labels.dtype} {labels.shape}")
        if self.net.classes and not (labels.min() >= 0 and labels.max() < self.net.classes):
            raise ValueError(
                f"labels: expected classes from 0 to {self.net.classes - 1}, got {labels.min()} to {labels.max()}"
            )


def _digest(images: NDArray[np.float32], labels: NDArray[np.int64]) -> str:
    """Of the data, so that a run goes on with those it began with."""
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()


def save_net(path: Any, net: Net, card: dict[str, Any]) -> None:
    """Write a net with its card (a dictionary that JSON holds) to one safetensors file with a checksum, in float32."""
    if not isinstance(net, Net):
        raise TypeError(f"net: expected a fastcrit.diffusion.Net, got {type(net).__name__}")
    arrays = {name: value.detach().float().cpu().numpy() for name, value in net.state_dict().items()}
    _statefile.write_state(path, NET_FORMAT, FORMAT_VERSION, {"net": net.config.to_dict(), "card": card}, arrays)


def load_net(path: Any) -> tuple[Net, dict[str, Any]]:
    """Read a file of `save_net`: the net in evaluation mode, and its card.

    Raises
    ------
    FileNotFoundError
        No such file.
    FileFormatError
        The file is damaged or is no net.
    """
    config, arrays = _statefile.read_state(path, NET_FORMAT, FORMAT_VERSION)
    try:
        with built_plainly():
            net = Net(NetConfig(**config["net"]))
        net.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
        card = dict(config["card"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path}: not the weights of a net of this version ({error})") from error
    return net.eval().requires_grad_(False), card


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


class _State:
    """What a step changes: weights, their average, Adam's moments, the losses."""

    def __init__(self, training: Training, device: torch.device) -> None:
        self.training, self.device = training, device
        with torch.random.fork_rng(devices=[]), built_plainly():
            torch.manual_seed(training.seed)
            self.net = Net(training.net).to(device)
        self.average = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=training.learning_rate, betas=(0.9, 0.99))
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self._sum = torch.zeros((), device=device)  # of the losses since the last that was kept; stays on the device

    def advance(self, images: Tensor, labels: Tensor | None, s: Tensor, noise: Tensor) -> None:
        """One step of Adam on EDM's loss."""
        images, s, noise = (x.to(self.device, non_blocking=True) for x in (images, s, noise))
        labels = None if labels is None else labels.to(self.device, non_blocking=True)
        t, d = self.training, self.training.net.data_std
        rise = max(1, t.steps // 50)
        rate = min(1.0, (self.step + 1) / rise) * 0.5 * (1.0 + math.cos(math.pi * self.step / t.steps))
        self.optimizer.param_groups[0]["lr"] = t.learning_rate * rate
        level = s[:, None, None, None]
        noisy = images + level * noise
        with torch.autocast(self.device.type, torch.bfloat16, enabled=t.precision == "bfloat16"):
            D = self.net(noisy, s, labels)
        weight = (level**2 + d**2) / (level * d) ** 2
        loss = (weight * (D.float() - images) ** 2).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        decay = min(t.average, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
        self._sum += loss.detach()

    def keep_loss(self) -> float:
        """The mean loss since this was last asked for, which is kept."""
        mean = self._sum.item() / _STEPS_A_LOSS
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} before step {self.step}; try a smaller learning_rate")
        self.losses.append(mean)
        self._sum.zero_()
        return mean

    def save(self, path: Path) -> None:
        arrays = {f"net.{k}": v.cpu().numpy() for k, v in self.net.state_dict().items()}
        arrays |= {f"average.{k}": v.cpu().numpy() for k, v in self.average.state_dict().items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            arrays |= {f"adam.{i}.{k}": v.cpu().numpy() for k, v in values.items()}
        arrays["losses"] = np.array([*self.losses, self._sum.item()])
        config = {**self.training.to_dict(), "step": self.step, "seconds": self.seconds}
        _statefile.write_state(path, TRAINING_FORMAT, FORMAT_VERSION, config, arrays)

    def load(self, path: Path) -> None:
        config, arrays = _statefile.read_state(path, TRAINING_FORMAT, FORMAT_VERSION)
        tensors = {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
        self.step, self.seconds = config.pop("step"), config.pop("seconds")
        if config != json.loads(json.dumps(self.training.to_dict())):
            raise FileFormatError(f"{path}: the checkpoint of another run")
        for name, net in (("net", self.net), ("average", self.average)):
            net.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
        adam = self.optimizer.state_dict()
        adam["state"] = {
            i: {k: tensors[f"adam.{i}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
            for i in range(len(list(self.net.parameters())))
        }
        self.optimizer.load_state_dict(adam)
        *self.losses, last = arrays["losses"].tolist()
        self._sum.fill_(last)


def _batches(
    training: Training, images: NDArray[np.float32], labels: NDArray[np.int64], first: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor, Tensor]]:
    """Images, one-hot labels, noise levels and noise of every step from ``first`` on; each epoch has its own order."""
    B, n, classes = training.batch, len(images), training.net.classes
    epoch, order = -1, np.zeros(0, np.int64)
    for step in range(first, training.steps):
        rng = np.random.default_rng([training.seed, step, 0])
        position = np.arange(step * B, (step + 1) * B)
        chosen = np.empty(B, np.int64)
        for e in np.unique(position // n):
            if e != epoch:
                epoch, order = e, np.random.default_rng([training.seed, e, 1]).permutation(n)
            here = position // n == e
            chosen[here] = order[position[here] % n]
        quantile = torch.from_numpy((rng.permutation(B) + rng.random(B)) / B)
        s = torch.exp(training.log_level_mean + training.log_level_std * torch.special.ndtri(quantile)).float()
        noise = torch.from_numpy(rng.standard_normal((B, *images.shape[1:]), dtype=np.float32))
        one_hot = None
        if classes:
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels[chosen]), classes).float()
            one_hot[torch.from_numpy(rng.random(B) < training.label_dropout)] = 0.0
        yield torch.from_numpy(images[chosen]), one_hot, s, noise
