"""The patch sampler against torch: conv2d, softmax, randn, the same dictionary, the same number of threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import fastcrit as fc
from benches.pairing import interleave

THREADS = 2
SAMPLES = 64


def torch_sampler(d, side, levels):
    """The reverse SDE as one would write it in torch, float32, without gradients."""
    half = d.size // 2
    kernels = torch.tensor(d.patterns, dtype=torch.float32)[:, None]
    center = kernels[:, 0, half, half].view(1, -1, 1, 1)
    norms = (kernels**2).sum(dim=(1, 2, 3)).view(1, -1, 1, 1)
    log_prior = torch.tensor(np.log(d.prior), dtype=torch.float32).view(1, -1, 1, 1)

    @torch.inference_mode()
    def run():
        y = float(levels[0]) * torch.randn(SAMPLES, 1, side, side)
        for s, t in pairwise(map(float, levels)):
            overlap = torch.nn.functional.conv2d(torch.nn.functional.pad(y, [half] * 4, mode="circular"), kernels)
            w = torch.softmax((overlap - norms / 2) / s**2 + log_prior, dim=1)
            D = (w * center).sum(dim=1, keepdim=True)
            y = D + (t / s) ** 2 * (y - D) + t * (1 - (t / s) ** 2) ** 0.5 * torch.randn_like(y)
        return y

    return run


@pytest.mark.benchmark(group="patch sampler, 80 x 80, 64 samples, per 20 steps of the SDE")
@pytest.mark.parametrize(
    ("name", "dictionary"),
    [
        ("the paper's: +-1 and 8 random 5 x 5 patterns", lambda: fc.patch.Dictionary.binary(5, 8, seed=0)),
        (
            "512 patches of Fashion-MNIST",
            lambda: fc.patch.Dictionary.from_images(fc.data.fashion_mnist().pixels(), 5, 512),
        ),
    ],
)
def test_sampler(name, dictionary, benchmark):
    fc.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)
    d = dictionary()
    levels = fc.schedules.OrnsteinUhlenbeck().levels(2000)[-21:]  # the last 20 of the paper's steps
    peer = torch_sampler(d, 80, levels)

    def ours():
        return fc.patch.sample(d, 80, SAMPLES, levels, solver="sde", seed=0)

    ratio = interleave(ours, peer, pairs=15 if len(d) < 100 else 5)
    benchmark.extra_info |= {"dictionary": name, "torch over fastcrit": ratio.median, "core": fc.core_info()}
    print(f"\n{name}: torch {torch.__version__} takes {ratio}")
    benchmark.pedantic(ours, rounds=3)
