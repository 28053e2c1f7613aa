"""What a guidance experiment is to do: its configuration, its arms and which samples lie in which chunk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastcrit import schedules
from fastcrit._edge.arrays import (
    check_choice,
    check_finite_number,
    check_integer,
    check_positive,
    check_seed,
    check_threads,
)
from fastcrit.studies import checks
from fastcrit.studies.guidance.verdict import CONSTANT, DOSE, INTERVAL, NONE, SHARED

if TYPE_CHECKING:
    from fastcrit.diffusion.guidance import Weight

Floats = NDArray[np.float64]

# Features of at least so many samples are kept: of all, they would not fit into memory.
_FEATURED = 2000


@dataclass(frozen=True)
class Arm:
    """One way to guide, and what it costs.

    Attributes
    ----------
    name : str
    levels : (steps + 1,)
        Of its solver; the last is 0.
    weight : Weight
    first : int or None
        For a pulse, its first guided step.
    evaluations : int
        Of a network, for each sample.
    """

    name: str
    levels: Floats
    weight: Weight
    first: int | None
    evaluations: int


@dataclass(frozen=True)
class GuidancePlan:
    """The fields of a `GuidanceStudy`, which are described there, and what follows from them."""

    run_path: str
    edm2: str | None = None
    diffusers: str | None = None
    guide: str | None = None
    trust_pickle: bool = False
    judge: str | None = None
    samples: int = 1000
    steps: int = 40
    high: float = 80.0
    low: float = 0.02
    guided_steps: int = 4
    weight: float = 4.0
    interval: tuple[float, float] = (0.28, 2.9)
    centres: int = 13
    random_centres: int = 16
    solver: str = "euler"
    decision_samples: int = 500
    classes: int | None = None
    threads: int = 0
    chunk: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.run_path, (str, os.PathLike)):
            raise TypeError(f"run_path: expected the folder of a finished study, got {self.run_path!r}")
        object.__setattr__(self, "run_path", os.fspath(self.run_path))
        for name, lowest in (
            ("samples", 6), ("steps", 8), ("guided_steps", 1), ("centres", 2), ("random_centres", 2), ("seed", 0),
            ("decision_samples", 2), ("chunk", 1), ("threads", 0),
        ):  # fmt: skip
            object.__setattr__(self, name, check_integer(getattr(self, name), name, lowest))
        for name in ("high", "low", "weight"):
            object.__setattr__(self, name, check_positive(getattr(self, name), name))
        check_seed(self.seed)
        check_threads(self.threads)
        if self.weight == 1.0:
            raise ValueError("weight: expected another one than 1, which is no guidance")
        if not self.high > self.low:
            raise ValueError(f"high, low: expected high > low, got {self.high} and {self.low}")
        object.__setattr__(self, "interval", tuple(check_finite_number(s, "interval") for s in self.interval))
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval: expected 0 <= low < high, got {self.interval}")
        check_choice(self.solver, ("euler", "heun", "sde"), "solver")
        if not 0 < self.guided_steps < self.steps // 2:
            raise ValueError(
                f"guided_steps: expected less than half of the {self.steps} steps, got {self.guided_steps}"
            )
        if (self.steps + self.guided_steps) % 2:
            raise ValueError(
                f"guided_steps: {self.steps} steps and {self.guided_steps} guided ones are an odd number of "
                "evaluations, which constant guidance, two a step, cannot have"
            )
        for name in ("centres", "random_centres"):
            if getattr(self, name) > self.positions:
                raise ValueError(
                    f"{name}: expected at most {self.positions}, the places of a pulse, got {getattr(self, name)}"
                )
        if self.classes is not None:
            check_integer(self.classes, "classes", 2)
        if self.decision_samples > 2000:
            raise ValueError(f"decision_samples: expected at most 2000, got {self.decision_samples}")

    @property
    def positions(self) -> int:
        """Places of a whole pulse among the steps; the last step, to 0, is not guided."""
        return self.steps - self.guided_steps

    @property
    def evaluations_a_step(self) -> int:
        """Network evaluations of a step without guidance (Heun's last, to 0, takes one)."""
        return 2 if self.solver == "heun" else 1

    def grid(self, steps: int | None = None) -> Floats:
        """Levels of a run of so many steps, the last to 0."""
        return np.append(schedules.log_levels(steps or self.steps, high=self.high, low=self.low), 0.0)

    def centre(self, first: int) -> float:
        """Level in the middle of the pulse whose first guided step is ``first``."""
        grid = self.grid()
        return float(np.sqrt(grid[first] * grid[first + self.guided_steps - 1]))

    def nearest(self, level: float) -> int | None:
        """First guided step of the pulse whose centre is nearest to a level; None where that is a step away or more."""
        away = np.abs(np.log([self.centre(i) / level for i in range(self.positions)]))
        return int(away.argmin()) if away.min() < np.log(self.high / self.low) / (self.steps - 1) else None

    def arms(self, critical: dict[str, float]) -> tuple[list[Arm], dict[str, list[int]]]:
        """Every arm, and which pulses (by first guided step) are the signatures', the sweep's and the random ones.

        Signatures whose level no pulse comes near have none.
        """
        from fastcrit.diffusion import Constant, Interval, Pulse

        cost = self.steps + self.guided_steps  # in evaluations of a first-order solver
        twice = self.evaluations_a_step
        rng = np.random.default_rng([self.seed, 3])
        pulses = {
            "sweep": np.unique(np.linspace(0, self.positions - 1, self.centres).round().astype(int)).tolist(),
            "random": sorted(rng.choice(self.positions, self.random_centres, replace=False).tolist()),
        }
        near = {name: self.nearest(level) for name, level in critical.items()}
        pulses |= {name: [first] for name, first in near.items() if first is not None}
        dose = 1.0 + (self.weight - 1.0) * 2.0 * self.guided_steps / cost

        def evaluations(levels: Floats, weight: Weight) -> int:
            steps = [1 if weight(s) == 1.0 else 2 for s in levels[:-1]]
            return twice * sum(steps) - (twice - 1) * steps[-1]

        none, interval = Constant(1.0), Interval(*self.interval, self.weight)
        about = [evaluations(self.grid(n), interval) for n in range(2, cost + 1)]
        interval_steps = 2 + int(np.argmin(np.abs(np.array(about) - evaluations(self.grid(cost), none))))
        checks.check_guides(interval, self.grid(interval_steps)[:-1], "interval")
        plain: list[tuple[str, int, Weight]] = [
            (NONE, cost, none),
            (SHARED, self.steps, none),
            (CONSTANT, cost // 2, Constant(self.weight)),
            (DOSE, cost // 2, Constant(dose)),
            (INTERVAL, interval_steps, interval),
        ]
        found = [Arm(name, self.grid(n), w, None, evaluations(self.grid(n), w)) for name, n, w in plain]
        width = self.guided_steps * np.log(self.high / self.low) / (self.steps - 1)
        for first in sorted({i for places in pulses.values() for i in places}):
            pulse = Pulse(self.centre(first), width, self.weight)
            found.append(Arm(f"pulse {first}", self.grid(), pulse, first, evaluations(self.grid(), pulse)))
        return found, pulses

    def span(self, chunk: int) -> range:
        """Numbers of the samples of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples))

    @property
    def chunks(self) -> int:
        """Number of chunks of samples; those of the decision come after them."""
        return -(-self.samples // self.chunk)

    @property
    def decision_chunks(self) -> int:
        """Number of chunks of images whose class is followed."""
        return max(1, self.decision_samples // max(self.chunk, 2))

    def decision_span(self, part: int) -> range:
        """Numbers of the images of such a chunk, two at least."""
        n, parts = self.decision_samples, self.decision_chunks
        return range(part * n // parts, (part + 1) * n // parts)

    @property
    def back_levels(self) -> Floats:
        """Levels to which images are noised and from which they are denoised."""
        return self.grid()[:-1][: -self.guided_steps : 2]

    def featured(self, classes: int) -> int:
        """How many samples have their features kept, for diversity and coverage: the first, of each class alike."""
        return min(self.samples, max(_FEATURED, 3 * classes))
