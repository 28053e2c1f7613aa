"""What other statistics cost, in units of a pass over the same batch that does less."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

import fastcrit as fc
from benches.batches import DTYPES, SITES, SQUARES
from benches.pairing import interleave
from benches.peers import averaging_matrix

LARGE = 2**26  # 256 MiB of float32, which no cache holds


@pytest.mark.benchmark(group="second-moment length")
@pytest.mark.parametrize(
    ("batch", "dtype", "sites"),
    [(batch, dtype, SITES) for batch in SQUARES for dtype in DTYPES] + [(batch, "float32", LARGE) for batch in SQUARES],
    ids=str,
)
def test_second_moment(batch, dtype, sites, benchmark):
    fields = batch.fields(dtype, sites)
    side = batch.lattice[0]
    fields += 4 / side * fields[:, :1, :1]  # S(0) is near 17 and S(k1) near 1, so that there is a length
    x = torch.from_numpy(fields)

    def ours():
        return fc.correlation_length(fields, method="second_moment", center="none", errors=None).value

    some = fields[:1000]
    modes = np.fft.rfft2(some)
    S0, Sy, Sx = (np.mean(np.abs(modes[:, n, m]) ** 2) for n, m in ((0, 0), (1, 0), (0, 1)))
    expected = np.mean([np.sqrt(S0 / S1 - 1) for S1 in (Sx, Sy)]) / (2 * np.sin(np.pi / side))
    found = fc.correlation_length(some, method="second_moment", center="none", errors=None).value
    np.testing.assert_allclose(found, expected, rtol=1e-3)

    ratio = interleave(lambda: torch.sum(x), ours, pairs=25)
    print(f"\n{batch} {dtype}, {fields.nbytes >> 20} MiB: the lengths take {ratio.median:.2f} times torch.sum")
    benchmark.extra_info |= {"table": "second moment", "lattice": batch.lattice, "dtype": dtype, "ratio": asdict(ratio)}
    benchmark.extra_info["MiB"] = sites * fields.itemsize >> 20
    benchmark.pedantic(ours, rounds=5)


@pytest.mark.benchmark(group="Recorder.update")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", SQUARES, ids=str)
def test_recorder(batch, dtype, benchmark):
    fields = batch.fields(dtype)
    recorder = fc.Recorder([1.0], shape=batch.lattice)

    def ours():
        recorder.update(0, fields)

    ours()
    expected = fc.structure_factor(fields).S
    np.testing.assert_allclose(recorder.dataset(lengths=()).S[0], expected, rtol=1e-3)

    ratio = interleave(lambda: fc.power_spectrum(fields).power, ours, pairs=25)
    print(f"\n{batch} {dtype}: Recorder.update takes {ratio.median:.2f} times the spectra")
    benchmark.extra_info |= {"table": "recorder", "lattice": batch.lattice, "dtype": dtype, "ratio": asdict(ratio)}
    benchmark.pedantic(ours, rounds=5)


@pytest.mark.benchmark(group="structure factor")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", SQUARES, ids=str)
def test_structure_factor(batch, dtype, benchmark):
    fields = batch.fields(dtype)
    x = torch.from_numpy(fields)

    def ours():
        return fc.structure_factor(fields).S

    def peer():
        modes = torch.fft.rfftn(x - x.mean(0), dim=(-2, -1))
        return (modes.real.square() + modes.imag.square()).mean(0)

    n = len(fields)
    shells = averaging_matrix(batch.lattice, np.float64)
    np.testing.assert_allclose(peer().double().flatten().numpy() @ shells * n / (n - 1), ours(), rtol=1e-3)

    ratio = interleave(ours, torch.inference_mode()(peer), pairs=25)
    print(f"\n{batch} {dtype}: torch without shells and errors takes {ratio}")
    benchmark.extra_info |= {"table": "factor", "lattice": batch.lattice, "dtype": dtype, "ratio": asdict(ratio)}
    benchmark.pedantic(ours, rounds=5)
