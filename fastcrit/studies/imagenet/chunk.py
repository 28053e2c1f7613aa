"""One chunk of the ImageNet study: trajectories from its numbers, into a recorder, with gains, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit.diffusion import Guided, sample
from fastcrit.modes import mode_response
from fastcrit.observe import Recorder
from fastcrit.studies import checks, locality, result
from fastcrit.studies.locality import LocalitySums

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser
    from fastcrit.studies.imagenet.plan import ImageNetPlan

# What the time of a chunk is spent on; the network's is what is left of it all.
PARTS = ("network", "recorder", "gains", "store")
# Of every so many of the images of locality one is a state of the response function, whose cost is that of gains.
_RESPONSES = 8


class TrajectorySampler:
    """Makes chunks of a study."""

    def __init__(self, study: ImageNetPlan, D: Denoiser, folder: Path) -> None:
        self.study, self.D = study, D
        self._method = ""
        self.states: Any = None
        if study.save_states:
            from fastcrit.studies.imagenet.states import open_states

            self.states = open_states(folder / "states.zarr")

    def make(self, number: int, keep_on: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What a chunk's file holds; ``keep_on`` is told every level."""
        study, D, span = self.study, self.D, self.study.span(number)
        begin = time.perf_counter()
        watch = _Watch(self, keep_on)
        for first in range(span.start, span.stop, study.batch):
            watch.labels = study.labels(D, range(first, min(first + study.batch, span.stop)))
            n = min(study.batch, span.stop - first)
            sample(
                D, watch.labels, n, study.grid(D), study.solver, study.seed, watch, first_sample=first, batch_size=n,
            )  # fmt: skip
        state = watch.sums() | {"data_moments": watch.data_moments}
        watch.spent["network"] = time.perf_counter() - begin - sum(watch.spent.values())
        seconds = {p: watch.spent[p] for p in PARTS}
        if study.locality:
            keep_on("locality")
            sums, more = self._locality(watch.images, watch.classes, span.start)
            state |= {f"locality_{name}": values for name, values in sums.arrays.items()}
            seconds |= more
        return {"samples": len(span), "gain_method": self._method, "seconds": seconds}, state

    def _locality(self, images: list[Any], labels: list[int], first: int) -> tuple[LocalitySums, dict[str, float]]:
        """Of the chunk's samples whose gains were measured, as images that are noised again; of two or more."""
        study, D = self.study, self.D
        network = D.conditional if isinstance(D, Guided) else D
        sums = study.locality_sums(D, study.locality_blocks_a_chunk)
        if len(images) < 2:
            return sums, dict.fromkeys(locality.PARTS, 0.0)
        seconds = sums.measure(
            network, images, labels or None, np.arange(len(images)) * sums.blocks // len(images), periodic=False,
            seed=study.seed, first=first, derivative=self.method, batch=study.batch, every=_RESPONSES,
        )  # fmt: skip
        return sums, seconds

    @property
    def method(self) -> str:
        """How gains are measured: chosen once, at a state that every rank has, since to try out takes long."""
        if not self._method:
            D, s = self.D, float(self.study.grid(self.D)[self.study.levels // 2])
            labels = self.study.labels(D, range(1))
            y = sample(D, labels, 1, [s], "euler", self.study.seed)
            self._method = mode_response(D, y, s, [0], labels, waves=1).method
        return self._method


class _Watch(Recorder):
    """A chunk's recorder, which also measures gains and keeps states, and knows what each took."""

    def __init__(self, sampler: TrajectorySampler, keep_on: Callable[[str], None]) -> None:
        study, D = sampler.study, sampler.D
        device = None if D.device is None or D.device.type == "cpu" else D.device
        super().__init__(**study.recorder_options(D, study.blocks_a_chunk), device=device)
        self.labels: NDArray[np.int64] | None = None
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.data_moments = np.zeros((2, 3))  # of the states and of their denoised images at the last level
        # Denoised images at the last level of the samples whose gains are measured, and their classes.
        self.images: list[Any] = []
        self.classes: list[int] = []
        self._sampler, self._keep_on = sampler, keep_on

    def update(self, i: int, y: Any, *, denoised: Any = None, sample: int | None = None) -> None:
        """Called by the sampler at every level."""
        assert sample is not None
        self._keep_on(f"level {i}")
        times = [time.perf_counter()]
        super().update(i, y, denoised=denoised, sample=sample)
        if i == len(self.levels) - 1:
            self.data_moments += [checks.moments_of(y), checks.moments_of(denoised)]
            if self._sampler.study.locality:
                self._keep(denoised, sample)
        times.append(time.perf_counter())
        self._gains(i, y, sample)
        times.append(time.perf_counter())
        if self._sampler.states is not None:
            self._sampler.states[i, sample : sample + len(y)] = y.cpu().numpy()
        times.append(time.perf_counter())
        for part, seconds in zip(("recorder", "gains", "store"), np.diff(times), strict=True):
            self.spent[part] += float(seconds)

    def _keep(self, denoised: Any, first: int) -> None:
        study = self._sampler.study
        chosen = drawn(study.seed, study.gain_share, range(first, first + len(denoised)))
        self.images += [denoised[p].cpu() for p in chosen]
        self.classes += [] if self.labels is None else self.labels[chosen].tolist()

    def _gains(self, i: int, y: Any, first: int) -> None:
        study, D = self._sampler.study, self._sampler.D
        if i % study.gain_every:
            return
        chosen = drawn(study.seed, study.gain_share, range(first, first + len(y)))
        if len(chosen):
            response = mode_response(
                D, y[chosen].to(D.device or "cpu"), float(self.levels[i]), self.gain_shells,
                None if self.labels is None else self.labels[chosen],
                method=self._sampler.method, seed=study.seed * study.levels + i, first_sample=first,
                **result.probing(study.probes, study.waves),
            )  # fmt: skip
            self.update_gain(i, response.samples if self.channels == 1 else response.matrix_samples)


def drawn(seed: int, share: float, samples: range) -> list[int]:
    """Places of the samples that are drawn with this probability, each by its number alone."""
    # 3: noise of the sampler has other keys, and 1 and 2 are the draws of other studies.
    return [p for p, j in enumerate(samples) if np.random.default_rng([seed, 3, j]).random() < share]
