"""Times calls of the fastcrit that the interpreter has: a row as JSON on standard input, seconds a line on its output.

Run as a file by benches/before_after.py, so that nothing of this checkout but this file is on the path.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastcrit as fc


def call_of(row: dict[str, Any]) -> Callable[[], object]:
    """The call that a row names, with its input made once."""
    rng = np.random.default_rng(0)
    if row["call"] == "patch.sample":
        d = fc.patch.Dictionary.binary(5, 8, seed=0)
        levels = fc.schedules.OrnsteinUhlenbeck().levels(2000)[-6:]
        return lambda: fc.patch.sample(d, row["shape"][-1], row["shape"][0], levels, solver="sde", seed=0)
    fields = rng.standard_normal(row["shape"], dtype=row["dtype"])
    ndim = row["ndim"]
    if row["call"] == "Recorder.update":
        recorder = fc.Recorder([1.0], shape=fields.shape[-ndim:])
        return lambda: recorder.update(0, fields)
    if row["call"] == "second_moment":
        return lambda: fc.correlation_length(fields, method="second_moment", center="none", errors=None)
    return lambda: getattr(fc, row["call"])(fields, ndim=ndim)


def main() -> None:
    call: Callable[[], object] = list
    for line in sys.stdin:
        request = json.loads(line)
        if "call" in request:
            fc.set_num_threads(request["threads"])
            call = call_of(request)
            call()
        begin = time.perf_counter()
        for _ in range(request.get("repeat", 1)):
            call()
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
