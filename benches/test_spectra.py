"""The finished radial spectrum against FFTW's bare transform and against the usual scripts, 2 threads each."""

from __future__ import annotations

import numpy as np
import pyfftw
import pytest
import scipy.fft
import torch

import fastcrit as fc
from benches.pairing import interleave

THREADS = 2
SITES = 2**22  # of the whole batch: 16 MB of float32


def fftw(fields):
    """A planned (FFTW_MEASURE) r2c transform of the batch in place of its own arrays: no spectrum, no binning."""
    source = pyfftw.empty_aligned(fields.shape, fields.dtype)
    kind = np.complex64 if fields.dtype == np.float32 else np.complex128
    target = pyfftw.empty_aligned((*fields.shape[:-1], fields.shape[-1] // 2 + 1), kind)
    plan = pyfftw.FFTW(source, target, axes=(1, 2), threads=THREADS, flags=("FFTW_MEASURE",))
    source[:] = fields
    return plan.execute


def torch_pipeline(fields):
    """torch.fft.rfft2, |.|^2, and a matrix product that averages the shells."""
    n = fields.shape[-1]
    x = torch.from_numpy(fields)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)) * n
    shell = np.floor(k + 0.5).astype(int).ravel()
    weight = np.broadcast_to(np.where((np.arange(n // 2 + 1) % (n / 2)) == 0, 1.0, 2.0), k.shape).ravel()
    keep = n // 2 + 1
    matrix = np.zeros((k.size, keep))
    inside = shell < keep
    matrix[np.flatnonzero(inside), shell[inside]] = weight[inside]
    average = torch.from_numpy((matrix / matrix.sum(axis=0) / n**2).astype(fields.dtype))

    @torch.inference_mode()
    def run():
        f = torch.view_as_real(torch.fft.rfft2(x))
        return (f * f).sum(-1).flatten(1) @ average

    return run


def scipy_pipeline(fields):
    """scipy.fft.rfft2 and numpy.bincount, field by field."""
    n = fields.shape[-1]
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)) * n
    shell = np.floor(k + 0.5).astype(int).ravel()
    weight = np.broadcast_to(np.where((np.arange(n // 2 + 1) % (n / 2)) == 0, 1.0, 2.0), k.shape).ravel()
    counts = np.bincount(shell, weight)

    def run():
        power = np.abs(scipy.fft.rfft2(fields, workers=THREADS)) ** 2 * weight.reshape(k.shape) / n**2
        return np.stack([np.bincount(shell, p.ravel()) / counts for p in power])[:, : n // 2 + 1]

    return run


@pytest.mark.benchmark(group="radial spectrum")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("side", [28, 32, 64, 128])
def test_spectrum(side, dtype, benchmark):
    fc.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    fields = rng.standard_normal((SITES // side**2, side, side)).astype(dtype)

    def ours():
        return fc.power_spectrum(fields).power

    for pipeline in (torch_pipeline, scipy_pipeline):
        np.testing.assert_allclose(pipeline(fields[:3])(), ours()[:3], rtol=1e-3)
    peers = {"FFTW's bare transform": fftw, "torch": torch_pipeline, "scipy": scipy_pipeline}
    print(f"\n{side} x {side} {dtype}, batch {len(fields)}:")
    for name, make in peers.items():
        ratio = interleave(ours, make(fields))
        benchmark.extra_info[f"{name} over fastcrit"] = ratio.median
        print(f"  {name} takes {ratio}")
    benchmark.pedantic(ours, rounds=5)
