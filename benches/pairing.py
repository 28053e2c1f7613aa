"""Interleaved timing: A, B, A, B, .. in one process, and the ratio of each pair, so that a drifting machine cancels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """How many times longer the peer takes: median and quartiles over pairs; seconds are medians."""

    median: float
    low: float
    high: float
    ours: float
    peers: float

    def __str__(self) -> str:
        return (
            f"{self.median:.2f} x [{self.low:.2f}, {self.high:.2f}]"
            f" (ours {1e3 * self.ours:.2f} ms, peer {1e3 * self.peers:.2f} ms)"
        )


def interleave(ours: Callable[[], object], peer: Callable[[], object], pairs: int = 15) -> Ratio:
    """Time both in turn after a warm-up of each."""
    ours()
    peer()
    times = np.empty((pairs, 2))
    for i in range(pairs):
        for column, call in enumerate((ours, peer)):
            begin = time.perf_counter()
            call()
            times[i, column] = time.perf_counter() - begin
    low, median, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
    return Ratio(median, low, high, *np.median(times, axis=0))
