"""Bytes that the first radial spectrum of a process needs at its peak, beside its input and its output.

python -m benches.peak_memory 64x64 float32 SITES THREADS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fastcrit as fc
from benches.batches import Batch


def peak() -> int:
    """Largest resident set so far. Not getrusage's: that one remembers the process which started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main(lattice: str, dtype: str, sites: str, threads: str) -> None:
    fc.set_num_threads(int(threads))
    # The input is made without a temporary and is larger than what importing leaves free: now is the peak so far.
    fields = Batch(tuple(map(int, lattice.split("x")))).fields(dtype, int(sites))
    before = peak()
    spectrum = fc.power_spectrum(fields)
    output = spectrum.k.nbytes + spectrum.power.nbytes + spectrum.counts.nbytes
    print(json.dumps({"extra": peak() - before - output, "input": fields.nbytes, "output": output}))


if __name__ == "__main__":
    main(*sys.argv[1:])
