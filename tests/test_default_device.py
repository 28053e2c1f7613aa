"""torch's default device and type are the user's: what fastcrit makes does not follow them, and says the same."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion.classifier import train_classifier
from tests.networks import PLAIN, SmallConvolutional, diffusers_pipeline, edm2_pickle, image_classifier


@contextmanager
def default_device():
    """ "meta" stands for an accelerator: what lands there has no values, and does not mix with what is on the CPU."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_type():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = {"set_default_device": default_device, "torch.device": lambda: torch.device("meta"), "type": default_type}


def numbers(result):
    return result.detach().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)


@pytest.fixture(params=DEFAULTS)
def unchanged(request):
    """A check that calls return the same with another default."""

    def check(*calls):
        expected = [numbers(call()) for call in calls]
        with DEFAULTS[request.param]():
            found = [call() for call in calls]
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(numbers(a), b)

    return check


@pytest.fixture
def y():
    return torch.from_numpy(np.random.default_rng(0).normal(size=(3, 1, 8, 8)))


def mixture():
    return fc.theory.GaussianMixture(np.random.default_rng(1).normal(size=(3, 1, 8, 8)), std=0.3)


def test_statistics(unchanged, y):
    def record(device):
        recorder = fc.Recorder([2.0, 1.0], shape=(8, 8), device=device)
        for i in range(2):
            recorder.update(i, y[:, 0], denoised=0.5 * y[:, 0], sample=0)
        return recorder.dataset()["S"]

    fields = y[:, 0]
    unchanged(
        lambda: fc.power_spectrum(fields).power,
        lambda: fc.structure_factor(fields).S,
        lambda: fc.autocorrelation(fields).C,
        lambda: record(None),
        lambda: record("cpu"),
    )


def test_denoisers(unchanged, y):
    net, labelled = (SmallConvolutional(classes=n).double().eval().requires_grad_(False) for n in (0, 3))
    theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
    levels = torch.full((3,), 1.5, dtype=torch.float64)
    one_hot = np.eye(3)
    guided = fc.diffusion.guided(fc.diffusion.from_mixture(mixture()), None, fc.diffusion.Constant(2.0))
    unchanged(
        lambda: fc.diffusion.from_gaussian(theory)(y, levels),
        lambda: fc.diffusion.from_patch(fc.patch.Dictionary.binary(3, 4))(y, 1.0),
        lambda: fc.diffusion.from_mixture(mixture())(y, np.ones(3)),
        lambda: fc.diffusion.from_mixture(mixture())(y, 1.0, one_hot),
        lambda: fc.diffusion.from_epsilon(net, fc.schedules.Cosine())(y, levels),
        lambda: fc.diffusion.from_epsilon(labelled, classes=3)(y, 1.0, [2, 0, 1]),
        lambda: fc.diffusion.from_velocity(net)(y, 1.0),
        lambda: fc.diffusion.from_denoiser(lambda x, s: x / (1 + s[:, None, None, None]))(y, 1.0),
        lambda: guided(y, 1.0, [2, 0, 1]),
    )


def test_derivatives(unchanged, y):
    D = fc.diffusion.from_epsilon(SmallConvolutional().double().eval().requires_grad_(False))
    unchanged(
        lambda: fc.mode_response(D, y, 1.0, [0, 1], waves=1).gain,
        lambda: fc.mode_response(D, y, 1.0, [0, 1], probe="random_phase", method="vjp").gain,
        lambda: fc.mode_response(D, y, 1.0, [0], method="central").gain,
    )


def test_sampling(unchanged):
    D = fc.diffusion.from_mixture(mixture())

    def sample(**options):
        recorder = fc.Recorder([2.0, 1.0], shape=(8, 8))
        return fc.diffusion.sample(D, [2, 0], 2, [2.0, 1.0], recorder=recorder, **options)

    def judge(x):
        return torch.from_numpy(mixture().posterior(x.numpy(), 0.0))

    unchanged(
        lambda: sample(solver="sde"),
        lambda: sample(solver="dpmpp-2m", guidance=fc.diffusion.Constant(2.0), dtype=torch.float64),
        lambda: fc.diffusion.forward_backward(D, mixture().means, judge, [2.0], steps=3).retained,
        lambda: fc.diffusion.class_entropy_rate(D, mixture().means, [0, 1, 2], [2.0, 1.0]).rate,
    )


def test_networks_that_ship_and_that_are_trained(unchanged):
    images = fc.data.fashion_mnist()
    x = torch.from_numpy(images.pixels()[:2])[:, None]
    unchanged(
        lambda: fc.diffusion.pretrained("zeros-0")(x, 1.0),
        lambda: fc.diffusion.classifier.predict(fc.diffusion.fashion_mnist.classifier(), x),
        lambda: next(train_classifier(images.pixels()[:32], images.labels[:32], epochs=1, batch=16).parameters()),
    )


def test_networks_in_files(unchanged, tmp_path):
    from fastcrit.diffusion.judge import load_judge

    pipeline = diffusers_pipeline(tmp_path / "pipeline", **PLAIN)
    pickled = edm2_pickle(tmp_path / "edm2.pkl")
    judge = image_classifier(tmp_path / "judge")
    grey, colour = (torch.from_numpy(np.ones((1, c, 8, 8), dtype=np.float32)) for c in (1, 3))
    unchanged(
        lambda: fc.diffusion.load_edm2(pickled, trust_pickle=True)(colour, 1.0, [1]),
        lambda: load_judge(judge)(np.zeros((1, 3, 32, 32)))[0],
    )
    # diffusers' own networks look at the default type in every call: theirs to answer for.
    for default in (default_device, default_type):
        with default():
            D = fc.diffusion.load_diffusers(pipeline)
        assert (D.device, D.dtype) == (torch.device("cpu"), torch.float32)
        assert torch.isfinite(D(grey, 1.0, [1])).all()
