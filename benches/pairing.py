"""Interleaved timing: A, B, A, B, .. in one process, and the ratio of each pair, so that a drifting machine cancels."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def duration(seconds: float) -> str:
    """Three digits and the unit that suits them."""
    unit, name = next((u for u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= u[0]), (1e-9, "ns"))
    value = seconds / unit
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(max(value, 1)))))}f} {name}"


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
            f" (ours {duration(self.ours)}, peer {duration(self.peers)})"
        )


def interleave(
    ours: Callable[[], object], peer: Callable[[], object], pairs: int = 15, fields: tuple[int, int] = (1, 1)
) -> Ratio:
    """Time both in turn after a warm-up of each; seconds and ratios are per field of the ``fields`` in each call."""
    ours()
    peer()
    times = np.empty((pairs, 2))
    for i in range(pairs):
        for column, call in enumerate((ours, peer)):
            begin = time.perf_counter()
            call()
            times[i, column] = time.perf_counter() - begin
    times /= fields
    low, median, high = np.percentile(times[:, 1] / times[:, 0], [25, 50, 75])
    return Ratio(median, low, high, *np.median(times, axis=0))
