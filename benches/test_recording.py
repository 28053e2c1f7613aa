"""What a recorder adds to the sampling of a trained network: the same run with and without it, in turn."""

from __future__ import annotations

import time

import pytest
import torch

import fastcrit as fc
from benches.pairing import interleave

THREADS = 2
SAMPLES = 128


@pytest.mark.benchmark(group="sampling of the shipped network, recorded at every level")
@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun"])
def test_recording(solver, benchmark):
    fc.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    D = fc.diffusion.pretrained("circular-0")
    levels = fc.schedules.log_levels(7, high=10, low=0.3)
    spent = [0.0]

    class Timed(fc.Recorder):
        def update(self, *args, **options):
            begin = time.perf_counter()
            super().update(*args, **options)
            spent[0] += time.perf_counter() - begin

    rec = Timed(levels, shape=(28, 28))

    def bare():
        return fc.diffusion.sample(D, n_samples=SAMPLES, levels=levels, solver=solver, seed=0)

    def recorded():
        return fc.diffusion.sample(D, n_samples=SAMPLES, levels=levels, solver=solver, seed=0, recorder=rec)

    pairs = 15
    spent[0] = 0.0
    ratio = interleave(bare, recorded, pairs=pairs)
    share = spent[0] / (pairs + 1) / ratio.ours  # interleave warms each of them up once
    benchmark.extra_info |= {"table": "recording", "solver": solver, "ratio": vars(ratio), "share": share}
    print(f"\n{solver}: with the recorder {ratio}; of that, updates are {100 * share:.2f} % of the bare run")
    benchmark.pedantic(bare, rounds=1)
