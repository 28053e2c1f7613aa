"""Flow-matching networks of either time and sign, and what is seen of a wrong one where sampling begins."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import Constant, from_velocity, sample
from fastcrit.errors import ConventionWarning

P = 0.25  # variance of normal, white data
LEVELS = [*fc.schedules.log_levels(6, high=80.0, low=0.02), 0.0]


def exact(x, t, P=P):
    """v = noise - x0 at (1 - t) x0 + t noise: E[noise - x0 | x]."""
    t = t[:, None, None, None]
    return (t - (1 - t) * P) / ((1 - t) ** 2 * P + t**2) * x


# The same network in each convention, as what an author would write.
NETWORKS = {
    (False, 1): exact,
    (True, 1): lambda x, t: exact(x, 1 - t),
    (False, -1): lambda x, t: -exact(x, t),
    (True, -1): lambda x, t: -exact(x, 1 - t),  # SiT
}


def told(D, **options):
    """What `sample` warns of, and what it returns."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = sample(D, **({"n_samples": 8, "levels": LEVELS, "solver": "euler", "shape": (1, 8, 8)} | options))
    assert all(issubclass(w.category, ConventionWarning) for w in caught)
    return [str(w.message) for w in caught], y


class TestConventions:
    @pytest.mark.parametrize(("reverse", "sign"), NETWORKS)
    @pytest.mark.parametrize("scale", [1.0, 1000.0])
    def test_give_the_same_denoised_image(self, reverse, sign, scale):
        net = NETWORKS[reverse, sign]
        D = from_velocity(lambda x, t: net(x, t / scale), time_scale=scale, reverse=reverse, sign=sign)
        y = torch.randn(3, 1, 4, 4)
        for s in (0.1, 1.0, 20.0):
            expected = P / (P + s**2) * y
            torch.testing.assert_close(D(y, s), expected, rtol=1e-3, atol=1e-5)  # times in float32
            torch.testing.assert_close(D(y, torch.full((3,), s)), expected, rtol=1e-3, atol=1e-5)

    def test_that_are_none_are_refused(self):
        for options, error, message in (
            ({"sign": 0}, ValueError, "sign: expected 1 .* or -1 .*, got 0"), ({"sign": True}, ValueError, "sign: "),
            ({"reverse": "yes"}, TypeError, "reverse: expected True or False"), ({"sign": "-"}, ValueError, "sign: "),
            ({"time_scale": np.nan}, ValueError, "time_scale: expected a positive number"),
        ):  # fmt: skip
            with pytest.raises(error, match=message):
                from_velocity(exact, **options)


class TestBeginning:
    @pytest.mark.parametrize(("reverse", "sign"), NETWORKS)
    @pytest.mark.parametrize("taken", NETWORKS)
    def test_warns_of_a_wrong_convention_alone(self, reverse, sign, taken):
        D = from_velocity(NETWORKS[reverse, sign], reverse=taken[0], sign=taken[1])
        found, _ = told(D)
        if taken == (reverse, sign):
            assert found == []
            return
        assert len(found) == 1
        returned = "noise - x0" if taken[1] > 0 else "x0 - noise"
        assert f"taken for v = {returned}, time 0 at the {'noise' if taken[0] else 'data'}" in found[0]
        for word in ("s = 80", "reverse=True", "sign=-1", "learned nothing", "D.data_std"):
            assert word in found[0]

    def test_the_right_one_gives_the_data(self):
        levels = [*fc.schedules.log_levels(20, high=80.0, low=0.02), 0.0]
        D = from_velocity(NETWORKS[True, -1], reverse=True, sign=-1)
        found, y = told(D, levels=levels, solver="heun", n_samples=64)
        assert found == []
        assert float(y.std()) == pytest.approx(P**0.5, rel=0.05)  # 4096 normal numbers: 1 %; Heun's steps: as much

    @pytest.mark.parametrize("solver", ["heun", "sde", "dpmpp-2m"])
    def test_of_every_solver(self, solver):
        assert len(told(from_velocity(NETWORKS[True, -1]), solver=solver)[0]) == 1
        assert told(from_velocity(exact), solver=solver)[0] == []

    def test_warns_of_a_network_that_has_learned_nothing(self):
        found, _ = told(from_velocity(lambda x, t: 0 * x))
        assert "standard deviation 8.89" in found[0]  # s/sqrt(1 + s) at s = 80
        assert "or it has learned nothing" in found[0]

    def test_of_a_colored_spectrum_with_a_mean_image(self):
        """As of images: most modes far below the others, and a mean that has most of the power."""
        k = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16), indexing="ij"))
        spectrum = torch.from_numpy(0.3 / (1 + (40 * k) ** 3)).float()
        mean = 0.5 * torch.sin(torch.arange(16) / 3)[:, None].expand(16, 16)

        def velocity(x, t):
            t = t[:, None, None, None]
            gain = (t - (1 - t) * spectrum) / ((1 - t) ** 2 * spectrum + t**2)
            return torch.fft.ifft2(gain * torch.fft.fft2(x - (1 - t) * mean)).real - mean

        size = {"shape": (1, 16, 16)}
        assert told(from_velocity(velocity), **size)[0] == []
        for options in ({"reverse": True}, {"sign": -1}, {"reverse": True, "sign": -1}):
            assert len(told(from_velocity(velocity, **options), **size)[0]) == 1
        # A few states alone: what a mean image has in common with noise by chance is not taken for an answer.
        for seed in range(20):
            assert told(from_velocity(velocity), n_samples=1, seed=seed, **size)[0] == []

    def test_of_data_of_unit_variance_is_silent(self):
        """Where the opposite convention gives the same images, and of white data of any size by the network's word."""
        assert told(from_velocity(lambda x, t: exact(x, t, 1.0)))[0] == []
        wide = from_velocity(lambda x, t: exact(x, t, 9.0))
        assert "standard deviation 3" in told(wide)[0][0]
        wide.data_std = 3.0
        assert told(wide)[0] == []

    def test_of_flows_alone_and_of_noise_alone(self):
        assert told(fc.diffusion.from_denoiser(lambda x, s: 0.5 * x))[0] == []
        initial = torch.randn(8, 1, 8, 8)
        assert told(from_velocity(NETWORKS[True, -1]), initial=initial)[0] == []

    def test_of_a_guided_network(self):
        def labelled(x, t, labels):
            return NETWORKS[True, -1](x, t)

        D = from_velocity(labelled, classes=2, unlabelled=True)
        assert len(told(D, labels=1, guidance=Constant(2.0))[0]) == 1

    def test_is_once_a_run(self):
        assert len(told(from_velocity(NETWORKS[True, -1]), batch_size=2)[0]) == 1


class TestDiffusers:
    def test_says_what_the_scheduler_said(self):
        diffusers = pytest.importorskip("diffusers")
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()

        def sit(x, t):
            return NETWORKS[True, -1](x, t / 1000)

        found, _ = told(fc.diffusion.from_diffusers(sit, scheduler))
        assert "taken for v = noise - x0, time 0 at the data and 1000 at the noise" in found[0]
        # Mochi's scheduler counts time and sigmas from the noise, and steps by x0 - noise.
        mochi = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
        assert told(fc.diffusion.from_diffusers(sit, mochi))[0] == []

    def test_flow_prediction_of_other_solvers(self):
        diffusers = pytest.importorskip("diffusers")
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        for kind in (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler):
            D = fc.diffusion.from_diffusers(lambda x, t: exact(x, t / 1000), kind(**options))
            y = torch.randn(2, 1, 4, 4)
            torch.testing.assert_close(D(y, 3.0), P / (P + 9) * y, rtol=1e-3, atol=1e-5)
            with pytest.raises(ValueError, match="needs use_flow_sigmas=True"):
                fc.diffusion.from_diffusers(exact, kind(prediction_type="flow_prediction"))
