"""The radial spectrum alone: time against the number of fields and of threads, memory against the side."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

import fastcrit as fc
from benches.batches import DTYPES, SITES, SQUARES, THREADS, Batch
from benches.pairing import interleave


@pytest.mark.benchmark(group="number of fields")
@pytest.mark.parametrize("samples", [256, 1024, 4096, 16384, 65536])
def test_samples(samples, benchmark):
    batch = Batch((32, 32))
    fields = batch.fields("float32", samples * batch.sites)
    benchmark.extra_info |= {"table": "samples", "lattice": batch.lattice, "dtype": "float32", "samples": samples}
    # As many fields a round for every number of fields in a call.
    iterations = 65536 // samples
    benchmark.pedantic(lambda: fc.power_spectrum(fields).power, rounds=15, iterations=iterations, warmup_rounds=1)


@pytest.mark.benchmark(group="threads")
@pytest.mark.parametrize("side", [32, 64, 128, 256])
def test_threads(side, benchmark):
    fields = Batch((side, side)).fields("float32", 4 * SITES)

    def spectra(threads):
        fc.set_num_threads(threads)
        return fc.power_spectrum(fields).power

    ratio = interleave(lambda: spectra(2), lambda: spectra(1), pairs=25, fields=(len(fields), len(fields)))
    print(f"\n{side} x {side}: 2 threads are {ratio.median:.2f} times as fast as 1")
    benchmark.extra_info |= {"table": "threads", "lattice": [side, side], "dtype": "float32", "ratio": asdict(ratio)}
    benchmark.pedantic(spectra, args=(2,), rounds=5)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.benchmark(group="peak memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", SQUARES, ids=str)
def test_memory(batch, dtype, benchmark):
    command = [sys.executable, "-m", "benches.peak_memory", str(batch), dtype, str(SITES), str(THREADS)]

    def measure():
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(run.stdout)

    peak = benchmark.pedantic(measure, rounds=1)
    print(f"\n{batch} {dtype}: {peak['extra'] / THREADS / 2**20:.2f} MiB per thread")
    benchmark.extra_info |= {"table": "memory", "lattice": batch.lattice, "dtype": dtype, "threads": THREADS, **peak}
