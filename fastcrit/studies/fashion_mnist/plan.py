"""What a study of a network for Fashion-MNIST is to do: its configuration and its noise levels."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import schedules
from fastcrit._edge.arrays import check_positive
from fastcrit.studies.options import check_falling, check_options, option, without_what_is_new

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]


def _network(value: Any, name: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a name or a path, got {value!r}")
    return os.fspath(value)


@dataclass(frozen=True)
class FashionMnistPlan:
    """The fields of a `FashionMnistStudy`, which are described there, and what follows from them."""

    net: str = field(
        default="circular-0",
        metadata=option(
            "A shipped network or a net.safetensors; several make a run in a folder each, compared.",
            check=_network, several=True,
        ),
    )  # fmt: skip
    samples: int = field(default=512, metadata=option("Trajectories, reverse and forward each.", lowest=3))
    levels: int = field(default=49, metadata=option("Noise levels: steps of the solver, all recorded.", lowest=5))
    high: float = field(default=80.0, metadata=option("Highest noise level.", check=check_positive))
    low: float = field(default=0.02, metadata=option("Lowest noise level.", check=check_positive))
    solver: str = field(
        default="dpmpp-2m", metadata=option("Of the reverse process.", choices=("dpmpp-2m", "heun", "euler", "sde"))
    )
    gain_samples: int = field(default=64, metadata=option("States whose gains are measured, each way.", lowest=2))
    gain_every: int = field(default=2, metadata=option("Gains at every so many levels.", lowest=1))
    probes: int = field(
        default=1, metadata=option("Tangents of random phases for each of these states: all shells.", lowest=1)
    )
    waves: int | None = field(default=None, metadata=option("Instead, so many wavevectors of each shell.", lowest=1))
    seed: int = field(default=0, metadata=option("Of the trajectories.", lowest=0))
    blocks: int = field(default=32, metadata=option(lowest=2))
    locality: bool = field(
        default=False,
        metadata=option("Also measure, on as many images, how far the network looks and when it matters."),
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.gain_samples > self.samples:
            raise ValueError(f"gain_samples: expected at most {self.samples} (samples), got {self.gain_samples}")
        check_falling(self.high, self.low)

    @property
    def grid(self) -> Floats:
        """The noise levels."""
        return schedules.log_levels(self.levels, high=self.high, low=self.low)

    def config(self, D: Denoiser) -> dict[str, Any]:
        """What the result follows from: the fields, and the network's file by its checksum."""
        return {"study": "fashion-mnist", **without_what_is_new(asdict(self)), "weights": D.card["sha256"]}
