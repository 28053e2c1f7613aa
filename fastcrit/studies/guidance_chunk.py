"""One chunk of a guidance experiment: a few samples in every arm, judged.

A pulse's run up to its first guided step is that of the run without guidance, so it is taken from there: what the arms
share is done once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit.alignment import class_alignment
from fastcrit.diffusion import guided, sample
from fastcrit.studies.guidance_verdict import MEASURES, SHARED

if TYPE_CHECKING:
    from fastcrit.studies.guidance import Arm, GuidanceStudy
    from fastcrit.studies.guidance_subject import Subject


class ArmSampler:
    """Makes chunks of an experiment."""

    def __init__(self, study: GuidanceStudy, subject: Subject, arms: list[Arm]) -> None:
        self.study, self.subject, self.arms = study, subject, arms
        self.spent_on_files = 0.0

    def make(self, number: int, keep_on: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The `MEASURES` (arms, n), features (arms, those that are kept, d), evaluations a sample (arms,)."""
        study, subject = self.study, self.subject
        span = study.span(number)
        n, first = len(span), span.start
        kept = len(range(first, min(span.stop, study.featured(subject.classes))))
        labels = subject.labels(span)
        states: list[Any] = []  # of the run without guidance, at every level of the pulses' grid
        made: dict[str, list[Any]] = {name: [] for name in (*MEASURES, "features", "evaluations")}
        begin, judging = time.perf_counter(), 0.0
        for i, arm in enumerate(self.arms):
            keep_on(f"arm {i + 1} of {len(self.arms)}")
            D = guided(subject.D, subject.guide, arm.weight)
            skipped = arm.first or 0
            y = sample(
                D, labels, n, arm.levels[skipped:], study.solver, study.seed, first_sample=first,
                initial=states[skipped] if skipped else None, batch_size=n,
                observers=[lambda i, s, y, D: states.append(y.clone())] if arm.name == SHARED else [],
            )  # fmt: skip
            judged = time.perf_counter()
            scores, features = subject.look(y)
            found = class_alignment(scores, labels)
            for name in MEASURES:
                made[name].append(getattr(found, name))
            made["features"].append(features[:kept])
            # What a pulse takes from the run without guidance counts as its own.
            made["evaluations"].append(D.evaluations // n + skipped * study.evaluations_a_step)
            judging += time.perf_counter() - judged
        network = time.perf_counter() - begin - judging
        seconds = {"network": network, "judge": judging, "store": self.spent_on_files}
        self.spent_on_files = 0.0
        return {"samples": n, "seconds": seconds}, {name: np.stack(values) for name, values in made.items()}
