"""One chunk of a guidance experiment: a few samples in every arm, judged; or a few images whose class is followed.

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
from fastcrit.diffusion import class_entropy_rate, forward_backward, guided, sample
from fastcrit.studies.guidance.verdict import MEASURES, SHARED

if TYPE_CHECKING:
    from fastcrit.studies.guidance.plan import Arm, GuidancePlan
    from fastcrit.studies.guidance.subject import Subject


class ArmSampler:
    """Makes chunks of an experiment."""

    def __init__(self, study: GuidancePlan, subject: Subject, arms: list[Arm]) -> None:
        self.study, self.subject, self.arms = study, subject, arms

    def make(self, number: int, keep_on: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What a chunk's file holds."""
        study = self.study
        begin = time.perf_counter()
        watch = _Watch(self.subject, keep_on)
        if number < study.chunks:
            n, arrays = self._arms(number, watch)
        else:
            n, arrays = self._decision(study.decision_span(number - study.chunks), watch)
        network = time.perf_counter() - begin - watch.judging
        return {"samples": n, "seconds": {"network": network, "judge": watch.judging}}, arrays

    def _arms(self, number: int, watch: _Watch) -> tuple[int, dict[str, NDArray[Any]]]:
        """The `MEASURES` (arms, n), features (arms, those that are kept, d), evaluations a sample (arms,)."""
        study, subject = self.study, self.subject
        span = study.span(number)
        n, first = len(span), span.start
        kept = len(range(first, min(span.stop, study.featured(subject.classes))))
        labels = subject.labels(span)
        states: list[Any] = []  # of the run without guidance, at every level of the pulses' grid
        made: dict[str, list[Any]] = {name: [] for name in (*MEASURES, "features", "evaluations")}
        for i, arm in enumerate(self.arms):
            watch.keep_on(f"arm {i + 1} of {len(self.arms)}")
            D = guided(subject.D, subject.guide, arm.weight)
            skipped = arm.first or 0
            y = sample(
                D, labels, n, arm.levels[skipped:], study.solver, study.seed, first_sample=first,
                initial=states[skipped] if skipped else None, batch_size=n,
                observers=[lambda i, s, y, D: states.append(y.clone())] if arm.name == SHARED else [],
            )  # fmt: skip
            scores, features = watch.look(y)
            found = class_alignment(scores, labels)
            for name in MEASURES:
                made[name].append(getattr(found, name))
            made["features"].append(features[:kept])
            # What a pulse takes from the run without guidance counts as its own.
            made["evaluations"].append(D.evaluations // n + skipped * study.evaluations_a_step)
        return n, {name: np.stack(values) for name, values in made.items()}

    def _decision(self, span: range, watch: _Watch) -> tuple[int, dict[str, NDArray[Any]]]:
        """Without guidance: the class-entropy rate (levels, n) of images, and whether they keep it (levels, n)."""
        import torch

        study, subject = self.study, self.subject
        assert subject.unlabelled is not None
        watch.keep_on("decision, images")
        x0, labels = self._images(span)
        watch.keep_on("decision, class-entropy rate")
        about: dict[str, Any] = {"seed": study.seed, "first_sample": span.start, "batch_size": study.chunk}
        rate = class_entropy_rate(subject.D, x0, labels, study.grid()[:-1], unlabelled=subject.unlabelled, **about)

        def look(y: Any) -> Any:
            watch.keep_on("decision, noised and denoised")
            return torch.from_numpy(watch.look(y)[0])

        back = forward_backward(
            subject.unlabelled, x0, look, study.back_levels, steps=study.steps, lowest=study.low, solver=study.solver,
            **about,
        )  # fmt: skip
        return len(span), {"entropy_rate": rate.samples, "retained": back.samples}

    def _images(self, span: range) -> tuple[Any, NDArray[np.int64]]:
        """Without noise, and their classes: real ones, or else samples of the network."""
        study, subject = self.study, self.subject
        if subject.real is not None:
            pixels, labels = subject.real
            chosen = np.random.default_rng([study.seed, 4]).permutation(len(pixels))[span.start : span.stop]
            return pixels[chosen], labels[chosen]
        # Numbers beyond the arms': their noise is not that of the experiments these images are for.
        numbers = range(study.samples + span.start, study.samples + span.stop)
        labels = subject.labels(numbers)
        x0 = sample(
            subject.D, labels, len(numbers), study.grid(), study.solver, study.seed, first_sample=numbers.start,
            batch_size=study.chunk,
        )  # fmt: skip
        return x0, labels


class _Watch:
    """Who is told where a chunk is, and what judging it took."""

    def __init__(self, subject: Subject, keep_on: Callable[[str], None]) -> None:
        self.keep_on, self.judging = keep_on, 0.0
        self._subject = subject

    def look(self, states: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """As `Subject.look`, timed."""
        begin = time.perf_counter()
        found = self._subject.look(states)
        self.judging += time.perf_counter() - begin
        return found
