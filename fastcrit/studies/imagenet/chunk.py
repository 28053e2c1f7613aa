"""One chunk of the ImageNet study: trajectories from its numbers, into a recorder, with gains, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit.diffusion import sample
from fastcrit.modes import mode_response
from fastcrit.observe import Recorder
from fastcrit.studies import checks, result

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser
    from fastcrit.studies.imagenet.plan import ImageNetPlan

# What the time of a chunk is spent on; the network's is what is left of it all.
PARTS = ("network", "recorder", "gains", "store")


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
        about = {"samples": len(span), "gain_method": self._method, "seconds": {p: watch.spent[p] for p in PARTS}}
        return about, state

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
        self._sampler, self._keep_on = sampler, keep_on

    def update(self, i: int, y: Any, *, denoised: Any = None, sample: int | None = None) -> None:
        """Called by the sampler at every level."""
        assert sample is not None
        self._keep_on(f"level {i}")
        times = [time.perf_counter()]
        super().update(i, y, denoised=denoised, sample=sample)
        if i == len(self.levels) - 1:
            self.data_moments += [checks.moments_of(y), checks.moments_of(denoised)]
        times.append(time.perf_counter())
        self._gains(i, y, sample)
        times.append(time.perf_counter())
        if self._sampler.states is not None:
            self._sampler.states[i, sample : sample + len(y)] = y.cpu().numpy()
        times.append(time.perf_counter())
        for part, seconds in zip(("recorder", "gains", "store"), np.diff(times), strict=True):
            self.spent[part] += float(seconds)

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
