"""Two builds of fastcrit in turn: python -m benches.before_after BEFORE, an interpreter that has the other one.

For every row the time of before over that of this one, median and quartiles of pairs, and the same for this one against
itself: what lies within that is noise. Three processes live side by side and only one of them works at a time. They are
started several times, since a process keeps the pages that it got: one may be a tenth faster than its twin for life.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benches.batches import DTYPES, SITES, SQUARES, THREADS, Batch

PROCESSES = 6
PAIRS = 9  # of turns in each
SECONDS = 0.02  # of calls in a turn: a change of process is long against a call of a millisecond
Row = dict[str, Any]


class Build:
    """A process that times the calls of one build."""

    def __init__(self, python: str) -> None:
        calls = Path(__file__).with_name("timed_calls.py")
        self._process = subprocess.Popen(
            [python, "-P", str(calls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_WAIT_POLICY": "passive"},
        )

    def end(self) -> None:
        self._process.communicate()

    def ask(self, **request: Any) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self._process.args!r} ended with {self._process.wait()} at {request}")
        return float(answer)


def rows() -> list[Row]:
    batches = [*SQUARES, Batch((1024,)), Batch((32, 32, 32))]
    found = []
    for call in ("power_spectrum", "structure_factor", "second_moment", "Recorder.update"):
        for batch in batches if call == "power_spectrum" else SQUARES:
            shape = [SITES // batch.sites, *batch.lattice]
            found += [{"call": call, "shape": shape, "ndim": batch.ndim, "dtype": dtype} for dtype in DTYPES]
    return [*found, {"call": "patch.sample", "shape": [16, 80, 80], "ndim": 2, "dtype": "float32"}]


def quartiles(ratios: np.ndarray) -> str:
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return f"{median:.3f} [{low:.3f}, {high:.3f}]"


def measure(before: str) -> list[np.ndarray]:
    """Seconds of a call for every row: a line for each turn, columns before, this and this again."""
    builds = [Build(before), Build(sys.executable), Build(sys.executable)]
    found = []
    for row in rows():
        seconds = max(build.ask(threads=THREADS, **row) for build in builds)
        repeat = max(1, round(SECONDS / seconds))
        found.append(np.array([[build.ask(repeat=repeat) for build in builds] for _ in range(PAIRS)]) / repeat)
    for build in builds:
        build.end()
    return found


def main(before: str) -> None:
    processes = [measure(before) for _ in range(PROCESSES)]
    print("| row | this build | before / this | this / this |\n| --- | ---: | ---: | ---: |")
    medians = []
    for row, times in zip(rows(), (np.concatenate(found) for found in zip(*processes, strict=True)), strict=True):
        name = f"{row['call']}, {' × '.join(map(str, row['shape']))}, {row['dtype']}"  # noqa: RUF001 - typeset
        changed, same = times[:, 0] / times[:, 1], times[:, 2] / times[:, 1]
        medians.append([np.median(changed), np.median(same)])
        print(f"| {name} | {1e3 * np.median(times[:, 1]):.3f} ms | {quartiles(changed)} | {quartiles(same)} |")
    for name, m in zip(("before / this", "this / this"), np.transpose(medians), strict=True):
        print(f"medians of the rows, {name}: {min(m):.3f} to {max(m):.3f}, half of them above {np.median(m):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
