"""The finished radial spectrum against bare transforms, the usual pipelines and packages, 2 threads each."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

import fastcrit as fc
from benches.batches import DTYPES, SQUARES, Batch
from benches.pairing import interleave
from benches.peers import BATCHED, PACKAGES

CHECKED = 16  # fields


@pytest.mark.filterwarnings("ignore")  # the packages warn of what will change in them
@pytest.mark.benchmark(group="radial spectrum")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [*SQUARES, Batch((64, 64), channels=3), Batch((1024,)), Batch((32, 32, 32))], ids=str)
def test_spectrum(batch, dtype, benchmark):
    fields, ndim = batch.fields(dtype), batch.ndim

    def ours():
        return fc.power_spectrum(fields, ndim=ndim).power

    expected = ours()
    print(f"\n{batch} {dtype}, {len(fields)} of them:")
    results = {}
    # A package that takes one field does not see whether they are channels.
    for peer in BATCHED if batch.channels > 1 else (*BATCHED, *PACKAGES):
        if ndim not in peer.dims:
            continue
        few = fields[: max(2, peer.sites // batch.sites)]
        try:
            peer.check(few[:CHECKED], ndim, expected[: min(len(few), CHECKED)])
            run = peer.make(few, ndim)
        except ImportError as error:
            results[peer.name] = {"skipped": str(error)}
            print(f"  {peer.name}: {error}")
            continue
        ratio = interleave(ours, run, peer.pairs, fields=(expected[..., 0].size, few[(..., *[0] * ndim)].size))
        results[peer.name] = asdict(ratio) | {"fields": len(few)}
        print(f"  {peer.name} takes {ratio} per field")
    benchmark.extra_info |= {
        "table": "spectrum",
        "channels": batch.channels,
        "lattice": batch.lattice,
        "samples": len(fields),
        "dtype": dtype,
        "ours": float(np.median([r["ours"] for r in results.values() if "ours" in r])),
        "peers": results,
    }
    benchmark.pedantic(ours, rounds=5)
