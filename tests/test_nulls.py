"""What commits to nothing has no transition: linear filters, untrained networks; and what hides in one channel has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc

LEVELS = fc.schedules.log_levels(16, high=80.0, low=0.1)
SIDE = 8
DDPM = fc.schedules.VP(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))


def study(D, n=64, probe="random_phase", collective=True, data_std=1.0):
    """Trajectories of D with gains at every level."""
    rec = fc.Recorder(LEVELS, shape=D.shape, data_std=data_std, gain_shells=range(4), blocks=16)

    def gains(i, s, y, denoised):
        g = fc.mode_response(D, y[:16], s, rec.gain_shells, probe=probe, method="jvp", seed=i)
        rec.update_gain(i, g.matrix_samples if collective and rec.channels > 1 else g.samples)

    fc.diffusion.sample(D, n_samples=n, levels=LEVELS, solver="euler", recorder=rec, observers=[gains])
    return rec.dataset()


def reasons(cp):
    return {name: signature.reason for name, signature in cp.signatures.items()}


def wiener(P, channels):
    """The posterior's filter for data of spectrum P (H, W)."""
    P = torch.from_numpy(P)

    def denoise(y, s):
        gain = P / (P + s.double().reshape(-1, 1, 1, 1) ** 2)
        return torch.fft.ifft2(gain * torch.fft.fft2(y.double())).real.to(y.dtype)

    return fc.diffusion.from_denoiser(denoise, shape=(channels, SIDE, SIDE))


class Net(torch.nn.Module):
    """A small random network: nothing in it is zero, nothing is trained."""

    def __init__(self, channels, seed):
        super().__init__()
        torch.manual_seed(seed)
        conv = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((channels, 12), (12, 12), (12, channels))]
        self.body = torch.nn.Sequential(conv[0], torch.nn.SiLU(), conv[1], torch.nn.SiLU(), conv[2])
        self.eval().requires_grad_(False)

    def forward(self, x, t):
        return self.body(x + 0.1 * torch.log1p(t.reshape(-1, 1, 1, 1).float()))


def scaled(net):
    """With an input of variance 1, as networks of exploding variance are given."""
    return lambda x, t: net(x / (1 + t.reshape(-1, 1, 1, 1) ** 2).sqrt(), t)


def preconditioned(net):
    """The denoiser of EDM's parameterisation."""

    def denoise(y, s):
        s = s.reshape(-1, 1, 1, 1)
        total = (1 + s**2).sqrt()
        return y / total**2 + s / total * net(y / total, s.reshape(-1))

    return denoise


# A flow that predicts nothing is told from one whose time runs the other way by its words only: it warns.
@pytest.mark.filterwarnings("ignore::fastcrit.errors.ConventionWarning")
class TestLinear:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("probe", ["waves", "random_phase"])
    @pytest.mark.parametrize("small", [0.0, 1e-3])
    def test_a_flow_that_has_learned_nothing(self, channels, probe, small):
        D = fc.diffusion.from_velocity(lambda x, t: small * torch.sin(3 * x), shape=(channels, SIDE, SIDE))
        cp = fc.critical_point(study(D, probe=probe))
        assert cp.found == {}
        # The curve itself has the extremum, at 1 + sqrt(2), and the answer says why it is none.
        assert cp["softening"].level == pytest.approx(1 + 2**0.5, rel=0.1)
        assert "linear response" in cp["softening"].reason

    @pytest.mark.parametrize(
        "shrink",
        [lambda s: 1 / (1 + s), lambda s: 1 / (1 + s**3), lambda s: 0.3 / (0.3 + s**1.5), lambda s: 0.5 + 0 * s],
    )
    def test_any_shrinking_of_the_state(self, shrink):
        D = fc.diffusion.from_denoiser(lambda y, s: shrink(s.reshape(-1, 1, 1, 1)) * y, shape=(1, SIDE, SIDE))
        cp = fc.critical_point(study(D))
        assert cp.found == {}, reasons(cp)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("slope", [-2.0, 1.0])
    def test_wiener_filters_of_a_spectrum_that_the_data_do_not_have(self, channels, slope):
        k2 = sum(np.meshgrid(*[4 * np.sin(np.pi * np.fft.fftfreq(SIDE)) ** 2] * 2, indexing="ij"))
        cp = fc.critical_point(study(wiener(5 * (0.1 + k2) ** (slope / 2), channels), data_std=0.5))
        assert cp.found == {}, reasons(cp)


@pytest.mark.filterwarnings("ignore::fastcrit.errors.ConventionWarning")  # as above
class TestUntrained:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("kind", ["velocity", "epsilon", "variance preserving", "edm", "denoised"])
    def test_networks_of_every_parameterisation(self, kind, channels):
        net = Net(channels, seed=channels)
        shape = (channels, SIDE, SIDE)
        D = {
            "velocity": lambda: fc.diffusion.from_velocity(net, shape=shape),
            "epsilon": lambda: fc.diffusion.from_epsilon(scaled(net), shape=shape),
            "variance preserving": lambda: fc.diffusion.from_epsilon(net, DDPM, shape=shape),
            "edm": lambda: fc.diffusion.from_denoiser(preconditioned(net), shape=shape),
            "denoised": lambda: fc.diffusion.from_denoiser(net, shape=shape),
        }[kind]()
        cp = fc.critical_point(study(D))
        assert cp.found == {}, (reasons(cp), cp)


class TestChannels:
    def test_a_transition_in_one_latent_of_four_is_found_and_named(self):
        """Domains in the third channel, white noise in the others, which has no length."""
        pair = fc.diffusion.from_patch(fc.patch.Dictionary.binary(3, 0), lattice=24)

        def denoise(y, s):
            out = y / (1 + s.reshape(-1, 1, 1, 1) ** 2)
            out[:, 2:3] = pair(y[:, 2:3], float(s[0]))
            return out

        cps = {}
        for channels in (1, 4):
            D = pair if channels == 1 else fc.diffusion.from_denoiser(denoise, shape=(4, 24, 24))
            levels = fc.schedules.log_levels(24, high=30.0, low=0.1)
            rec = fc.Recorder(levels, shape=D.shape)
            fc.diffusion.sample(D, n_samples=96, levels=levels, solver="sde", recorder=rec)
            cps[channels] = fc.critical_point(rec.dataset())
        alone, among = cps[1], cps[4]
        assert {"growth", "growth_denoised"} <= alone.found.keys()
        assert among.found.keys() == alone.found.keys()
        for name, found in among.found.items():
            assert alone[name].low < found.level < alone[name].high
        # The sign of white noise has a length, below a site, so that the mean of denoised images shows it as well.
        assert among["growth"].channel == 2
        assert "in channel 2" in among["growth"].verdict

    @pytest.mark.parametrize("collective", [True, False])
    def test_grey_images_have_the_transition_of_their_brightness(self, collective):
        """The same two classes once in one channel and three times over: P and s^2 in the ratio of 3."""
        ones = np.ones((1, SIDE, SIDE))
        grey = fc.theory.GaussianMixture(means=np.stack([np.ones((3, SIDE, SIDE)), -np.ones((3, SIDE, SIDE))]), std=0.3)
        one = fc.theory.GaussianMixture(means=np.stack([3**0.5 * ones, -(3**0.5) * ones]), std=0.3)
        found = [
            fc.critical_point(
                study(fc.diffusion.from_mixture(model), n=256, collective=collective, data_std=1.0),
                signature="softening",
            )["softening"]
            for model in (grey, one)
        ]
        assert found[0].low < found[1].level < found[0].high, found
