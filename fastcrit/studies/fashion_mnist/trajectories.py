"""Trajectories of a network and of its data, a chunk at a time, with gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit.modes import mode_response
from fastcrit.observe import Recorder
from fastcrit.studies import result

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser
    from fastcrit.studies.fashion_mnist.plan import FashionMnistPlan


@dataclass
class Trajectories:
    """Trajectories of a study, a chunk at a time, into a recorder."""

    study: FashionMnistPlan
    D: Denoiser
    images: NDArray[np.float32]
    recorder: Recorder

    def reverse(self, first: int, n: int) -> None:
        """Sample the network."""
        from fastcrit.diffusion import sample

        def gains(i: int, s: float, y: Any, D_y: Any) -> None:
            self._gains(i, s, y, first)

        sample(
            self.D, n_samples=n, levels=self.study.grid, solver=self.study.solver, seed=self.study.seed,
            recorder=self.recorder, observers=[gains] if first < self.study.gain_samples else [], first_sample=first,
        )  # fmt: skip

    def forward(self, first: int, n: int) -> None:
        """Images with noise: the same noise at every level."""
        import torch

        order = image_order(self.study.seed, len(self.images))
        x0 = torch.from_numpy(self.images[order[first : first + n]])[:, None]
        noise = torch.from_numpy(
            np.stack(
                [
                    np.random.default_rng([self.study.seed, 2, j]).standard_normal(x0.shape[1:], dtype=np.float32)
                    for j in range(first, first + n)
                ]
            )
        )
        for i, s in enumerate(self.study.grid.tolist()):
            y = (x0 + s * noise).to(self.D.device)
            with torch.no_grad():
                denoised = self.D(y, s)
            self.recorder.update(i, y[:, 0], denoised=denoised[:, 0], sample=first)
            self._gains(i, s, y, first)

    def _gains(self, i: int, s: float, y: Any, first: int) -> None:
        some = y[: max(0, self.study.gain_samples - first)]
        if i % self.study.gain_every == 0 and len(some):
            seed = self.study.seed * len(self.study.grid) + i
            how = result.probing(self.study.probes, self.study.waves)
            response = mode_response(
                self.D, some, s, self.recorder.gain_shells, seed=seed, first_sample=first, **how
            )  # fmt: skip
            self.recorder.update_gain(i, response.samples, sample=first)


def image_order(seed: int, images: int) -> NDArray[np.int64]:
    """In which order images become forward trajectories."""
    return np.random.default_rng([seed, 1]).permutation(images)
