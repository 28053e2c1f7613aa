"""What a guidance experiment is to do: its configuration, its arms and which samples lie in which chunk."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import schedules
from fastcrit._edge.arrays import check_finite_number, check_positive
from fastcrit.studies import checks
from fastcrit.studies.guidance.verdict import CONSTANT, DOSE, INTERVAL, NONE, SHARED
from fastcrit.studies.options import check_falling, check_options, option, seed, threads
from fastcrit.studies.shared.spans import InChunks

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


def _folder(value: Any, name: str) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: expected the folder of a finished study, got {value!r}")
    return os.fspath(value)


def _interval(value: Any, name: str) -> tuple[float, ...]:
    interval = tuple(check_finite_number(s, name) for s in value)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(f"{name}: expected 0 <= low < high, got {interval}")
    return interval


@dataclass(frozen=True)
class GuidancePlan(InChunks):
    """The fields of a `GuidanceStudy`, which are described there, and what follows from them.

    The chunks of the decision come after those of the samples.
    """

    run_path: str = field(
        # torchrun takes --run for one of its own.
        metadata=option(
            "Finished study of a network (fastcrit study fashion-mnist or imagenet).",
            check=_folder, path=True, flags=("--run", "--of"),
        )
    )  # fmt: skip
    edm2: str | None = field(default=None, metadata=option("Of a study of --edm2: the same pickle.", path=True))
    diffusers: str | None = field(
        default=None, metadata=option("Of a study of --diffusers: the same folder.", path=True)
    )
    guide: str | None = field(
        default=None, metadata=option("Pickle of the network that guidance leads away from.", path=True)
    )
    trust_pickle: bool = field(default=False, metadata=option("Pickles run code: say that you may."))
    judge: str | None = field(
        default=None,
        metadata=option("Of a large model: image classifier that transformers' save_pretrained wrote.", path=True),
    )
    samples: int = field(default=1000, metadata=option("Samples an arm, on the same seeds and labels.", lowest=6))
    steps: int = field(default=40, metadata=option("Steps of the solver, even in log s.", lowest=8))
    high: float = field(default=80.0, metadata=option("Highest noise level.", check=check_positive))
    low: float = field(default=0.02, metadata=option("Lowest noise level before 0.", check=check_positive))
    guided_steps: int = field(default=4, metadata=option("Steps that a pulse guides.", lowest=1))
    weight: float = field(
        default=4.0,
        metadata=option("Guidance weight of pulses, constant guidance and interval.", check=check_positive),
    )
    interval: tuple[float, float] = field(
        default=(0.28, 2.9), metadata=option("Levels of the guidance interval.", check=_interval)
    )
    centres: int = field(default=13, metadata=option("Pulses of the sweep.", lowest=2))
    random_centres: int = field(default=16, metadata=option("Pulses at random levels.", lowest=2))
    solver: str = field(default="euler", metadata=option("Of the reverse process.", choices=("euler", "heun", "sde")))
    decision_samples: int = field(
        default=500, metadata=option("Images whose class is followed without guidance.", lowest=2)
    )
    classes: int | None = field(
        default=None, metadata=option("Sample j has label j mod this; default: as the study.", lowest=2)
    )
    threads: int = field(
        default=0,
        metadata=option("Of torch on a CPU, for each rank; 0: as torch has it.", lowest=0, check=threads),
    )
    chunk: int = field(default=100, metadata=option("Samples that are made and saved together.", lowest=1))
    seed: int = field(default=0, metadata=option("Of samples and random levels.", lowest=0, check=seed))

    def __post_init__(self) -> None:
        check_options(self)
        if self.weight == 1.0:
            raise ValueError("weight: expected another one than 1, which is no guidance")
        check_falling(self.high, self.low)
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
