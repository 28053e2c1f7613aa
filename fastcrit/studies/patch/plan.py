"""What a patch study is to do: its configuration, its noise levels and its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastcrit import data, schedules
from fastcrit._edge.arrays import check_integer, check_positive
from fastcrit.patch.dictionary import Dictionary
from fastcrit.studies.options import check_options, option

Floats = NDArray[np.float64]


def _noise_level(value: float, name: str) -> float:
    if not 1e-12 <= check_positive(value, name) <= 1e12:
        raise ValueError(f"{name}: expected a noise level from 1e-12 to 1e12, got {value!r}")
    return float(value)


@dataclass(frozen=True)
class PatchPlan:
    """The fields of a `PatchStudy`, which are described there, and what follows from them."""

    dictionary: str = field(
        default="binary", metadata=option("Patterns of the model.", choices=("binary", "fashion-mnist"))
    )
    patterns: int | None = field(default=None, metadata=option("Random patterns (8) or image patches (512).", lowest=0))
    size: int = field(default=5, metadata=option("Side of a patch, odd.", lowest=1))
    lattice: int = field(default=80, metadata=option("Side of the periodic lattice.", lowest=2))
    samples: int = field(default=64, metadata=option("Trajectories.", lowest=3))
    # Five: the fewest that an interior extremum can be told from.
    levels: int = field(default=48, metadata=option("Recorded noise levels.", lowest=5))
    high: float = field(default=50.0, metadata=option("Highest noise level.", check=_noise_level))
    low: float = field(default=0.05, metadata=option("Lowest noise level.", check=_noise_level))
    substeps: int = field(default=4, metadata=option("Solver steps between recorded levels.", lowest=1))
    solver: str = field(
        default="sde",
        metadata=option("Reverse SDE, or the ODE by Euler or Heun steps.", choices=("sde", "euler", "heun")),
    )
    seed: int = field(default=0, metadata=option("Of the trajectories.", lowest=0))
    dictionary_seed: int = field(
        default=0, metadata=option("Of the random patterns: another one is another model.", lowest=0)
    )
    blocks: int = field(default=32, metadata=option(lowest=2))

    def __post_init__(self) -> None:
        if self.dictionary == "fashion-mnist" and self.patterns is not None:
            check_integer(self.patterns, "patterns", 1)
        check_options(self)

    @property
    def grid(self) -> Floats:
        """All noise levels of the solver; every ``substeps``-th is recorded."""
        return schedules.log_levels((self.levels - 1) * self.substeps + 1, high=self.high, low=self.low)

    @cached_property
    def model(self) -> Dictionary:
        """The dictionary that is sampled."""
        if self.dictionary == "binary":
            return Dictionary.binary(
                self.size, 8 if self.patterns is None else self.patterns, seed=self.dictionary_seed
            )
        count = 512 if self.patterns is None else self.patterns
        cut = Dictionary.from_images(data.fashion_mnist().pixels(), self.size, count, seed=self.dictionary_seed)
        return Dictionary(cut.patterns - cut.patterns.mean(), cut.prior)
