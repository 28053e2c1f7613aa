"""What is measured: batches of white noise of one size in all, whatever the lattice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THREADS = 2
SITES = 2**22  # of a whole batch: 16 MiB of float32
SIDES = (28, 32, 64, 80, 96, 128, 256, 512)
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Batch:
    """Fields on one lattice, ``channels`` to a sample."""

    lattice: tuple[int, ...]
    channels: int = 1

    @property
    def sites(self) -> int:
        return int(np.prod(self.lattice))

    @property
    def ndim(self) -> int:
        return len(self.lattice)

    def fields(self, dtype: str, sites: int = SITES) -> np.ndarray:
        """White noise of variance 1, about ``sites`` of it."""
        lead = (sites // (self.sites * self.channels), *([self.channels] if self.channels > 1 else []))
        return np.random.default_rng(0).standard_normal((*lead, *self.lattice), dtype=dtype)

    def __str__(self) -> str:
        return "x".join(map(str, ([self.channels] if self.channels > 1 else []) + list(self.lattice)))


SQUARES = tuple(Batch((side, side)) for side in SIDES)
