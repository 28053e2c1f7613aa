"""From a model to a pulse in one call: on mixtures, whose softest level is known, on the pair and on Gaussian data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.critical import stored_critical_point
from fastcrit.diffusion import FoundPulse, Pulse, find_pulse, from_gaussian, from_mixture, from_patch
from fastcrit.theory import GaussianMixture
from tests.test_decision import expected_of, two_classes

QUICK = {"samples": 64, "levels": 25, "gain_every": 1, "high": 80, "low": 0.3}


def softest(a, std, data_std, s):
    r"""Softening of the line between the means of two classes, that of k = 0 on a lattice, averaged over its states.

    D = v/(v + s^2) y + s^2/(v + s^2) E[mu | y], and the derivative of E[mu | y] is the posterior's covariance of mu,
    4 a^2 p (1 - p), over v + s^2. So g = v/(v + s^2) + 4 a^2 s^2 E[p (1 - p)]/(v + s^2)^2.
    """
    v = std**2
    spread = np.array([expected_of(x, a, std, 0.5, lambda p: p * (1.0 - p)) for x in s])
    gain = v / (v + s**2) + 4.0 * a**2 * s**2 * spread / (v + s**2) ** 2
    return (1.0 - gain) * (s**2 + data_std**2) / s**2


@pytest.fixture(scope="module")
def of_mixture():
    return find_pulse(from_mixture(two_classes(8.0)), **QUICK)


class TestLevel:
    def test_is_the_exact_one_of_two_classes(self, of_mixture):
        found = of_mixture
        s = np.geomspace(0.5, 50, 400)
        expected = s[np.argmin(softest(8.0, 0.5, found.dataset.attrs["data_std"], s))]
        assert found.signature == "softening"
        # The interval, half as wide again: one in 20 misses the interval of 95 %. And two levels of the run.
        low, high = (found.level * (end / found.level) ** 1.5 for end in (found.low, found.high))
        assert low < expected < high
        assert abs(np.log(found.level / expected)) < 2 * np.log(80 / 0.3) / 24

    def test_of_the_pair_with_a_named_signature_is_where_the_drift_loses_its_stability(self):
        D = from_patch(fc.patch.Dictionary.binary(3, random=0), lattice=16)
        found = find_pulse(D, signature="instability", samples=16, levels=17, high=20, low=0.3, gain_every=1)
        # Self-consistent theory: 2.84 (tests/test_closure.py has it).
        assert found.signature == "instability"
        assert found.low < 2.84 < found.high

    def test_null_gaussian_data_have_none_and_the_reasons_are_said(self):
        D = from_gaussian(fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16))
        with pytest.raises(fc.NoTransitionError, match=r"softening: no transition \(.*instability: no transition \("):
            find_pulse(D, **QUICK)

    def test_null_of_a_single_class_with_labels(self):
        """The same mixture has a level without labels: a class alone is Gaussian."""
        with pytest.raises(fc.NoTransitionError, match="no level stands out"):
            find_pulse(from_mixture(two_classes(8.0)), 1, **QUICK)

    def test_of_several_channels_is_that_of_the_collective_mode(self):
        """Classes that differ in the mean of two channels alike: a distance of 8 in 2 x 16 values."""
        mean = np.full((2, 4, 4), 8.0 / 32**0.5)
        model = GaussianMixture(np.stack([mean, -mean]), 0.5)
        found = find_pulse(from_mixture(model), **QUICK)
        s = np.geomspace(0.5, 50, 400)
        expected = s[np.argmin(softest(8.0, 0.5, found.dataset.attrs["data_std"], s))]
        low, high = (found.level * (end / found.level) ** 1.5 for end in (found.low, found.high))
        assert low < expected < high
        assert found.products == 64 * 25 * 2 * 2  # states, levels, channels, the constant wave and one random phase

    def test_batches_do_not_matter(self, of_mixture):
        again = find_pulse(from_mixture(two_classes(8.0)), batch_size=9, **QUICK)
        assert again.level == pytest.approx(of_mixture.level, rel=1e-3)
        assert again.products == of_mixture.products


class TestFound:
    def test_costs_are_what_the_network_was_asked(self):
        """Counted in the network itself, without those under derivatives."""
        model, counts = two_classes(8.0), {"states": 0}
        exact = from_mixture(model)

        def network(x, s):
            if not torch._C._functorch.is_functorch_wrapped_tensor(x):
                counts["states"] += len(x)
            return exact(x, s)

        D = fc.diffusion.from_denoiser(network, shape=(1, 4, 4))
        for solver, a_sample in (("dpmpp-2m", 25), ("heun", 49)):
            counts["states"] = 0
            found = find_pulse(D, solver=solver, **QUICK)
            assert found.evaluations == 64 * a_sample
            # At every level one state, to see what memory it takes, and two together, to see that a batch does not
            # change it; and some 55 states once, in differences that choose the derivative.
            assert 0 <= counts["states"] - found.evaluations < 3 * 25 + 60
            assert found.products == 64 * 25 * 2

    def test_says_what_it_is(self, of_mixture):
        found = of_mixture
        assert isinstance(found, FoundPulse)
        assert found.pulse == Pulse(found.level, 0.85, 4.0)
        assert found.low < found.level < found.high
        assert repr(found) == f"<FoundPulse: {found.summary}>"
        for part in (f"s = {found.level:.3f}", "softening", "64 samples", "1600 evaluations and 3200 derivatives"):
            assert part in found.summary
        assert stored_critical_point(found.dataset)["softening"].level == found.level

    def test_width_weight_and_shape_are_the_callers(self):
        found = find_pulse(from_mixture(two_classes(8.0)), width=0.5, weight=2.0, pulse_shape="gaussian", **QUICK)
        assert found.pulse == Pulse(found.level, 0.5, 2.0, "gaussian")
        assert found.pulse(found.level) == 2.0

    def test_guides_samples_and_tells_a_pipeline_of_diffusers(self, of_mixture):
        D, levels = from_mixture(two_classes(8.0)), [*fc.schedules.log_levels(20, high=40, low=0.1), 0.0]
        plain, guided = (
            fc.diffusion.sample(D, [0, 1], 2, levels, "euler", guidance=pulse) for pulse in (None, of_mixture.pulse)
        )
        assert (guided - plain).abs().max() > 1e-3
        diffusers = pytest.importorskip("diffusers")
        scheduler = diffusers.DDIMScheduler()
        scheduler.set_timesteps(20)

        class Pipeline:
            _guidance_scale = 1.001

        pipe, used = Pipeline(), []
        callback = fc.diffusion.to_diffusers_callback(of_mixture.pulse, scheduler)
        for i, t in enumerate(scheduler.timesteps):
            used.append(pipe._guidance_scale)
            callback(pipe, i, t, {})
        expected = of_mixture.pulse(fc.diffusion.scheduler_levels(scheduler, 20)[1:-1])
        np.testing.assert_allclose(used[1:], expected, atol=2e-6)
        assert max(used) == 4.0

    def test_data_of_unknown_scale_are_measured(self):
        model = two_classes(8.0)
        exact = from_mixture(model)
        D = fc.diffusion.from_denoiser(lambda x, s: exact(x, s), shape=(1, 4, 4))
        found = find_pulse(D, **QUICK)
        # Of the classes' means +-2 and the variance 0.25; the mean over samples is not taken out.
        assert found.dataset.attrs["data_std"] == pytest.approx(4.25**0.5, rel=0.02)
        assert find_pulse(D, data_std=1.3, **QUICK).dataset.attrs["data_std"] == 1.3


def test_bad_values_are_named_before_the_run():
    D = from_mixture(two_classes(2.0))
    needs = fc.diffusion.from_denoiser(lambda x, s, y: x, shape=(1, 4, 4), classes=2)
    anywhere = fc.diffusion.from_denoiser(lambda x, s: x)
    for call, message in (
        (lambda: find_pulse(D, samples=7), "samples: "),
        (lambda: find_pulse(D, signature="none"), "signature: "),
        (lambda: find_pulse(D, width=-1.0), "width: "),
        (lambda: find_pulse(D, pulse_shape="round"), "shape: "),
        (lambda: find_pulse(D, levels=20, gain_every=4), "levels, gain_every: expected gains at 8 .* got 5"),
        (lambda: find_pulse(D, levels=4), "levels: "),
        (lambda: find_pulse(D, probes=0), "probes: "),
        (lambda: find_pulse(D, high=0.01), "high"),
        (lambda: find_pulse(D, data_std=0.0), "data_std: "),
        (lambda: find_pulse(D, [0, 1]), "labels: expected one for each of 64"),
        (lambda: find_pulse(needs), "labels: .* is conditional"),
        (lambda: find_pulse(anywhere), r"shape: expected \(C, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="D: expected a Denoiser"):
        find_pulse(lambda y, s: y)
