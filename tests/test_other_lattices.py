"""States on a line, (C, L), and in a volume or video, (C, T, H, W): sampled, recorded, guided and differentiated."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._kernels.lattice import lattice
from fastcrit._response.method_choice import probe_tangents
from fastcrit._response.probes import random_phases

SHAPES = [(16,), (9,), (4, 6, 5), (3, 1, 8)]


class Convolution(torch.nn.Module):
    """x, a time (batch,) and labels to something of x's shape, on a lattice of any dimension."""

    def __init__(self, ndim, channels=2, classes=0):
        super().__init__()
        conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[ndim - 1]
        self.first, self.second = (conv(a, b, 3, padding=1) for a, b in ((channels, 6), (6, channels)))
        self.norm, self.label = torch.nn.GroupNorm(2, 6), torch.nn.Embedding(max(classes, 1), 6)
        self.ndim = ndim

    def forward(self, x, t, labels=None):
        shift = torch.log1p(t)[:, None] + (0 if labels is None else self.label(labels))
        h = self.norm(self.first(x)) + shift.reshape(*shift.shape, *(1,) * self.ndim)
        return self.second(torch.tanh(h))


def convolution(ndim, **options):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Convolution(ndim, **options).double().eval()


def states(shape, n=2, seed=1):
    return torch.randn(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(shape):
    return fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=shape)


def shell_means(theory):
    """P averaged over the modes of every shell below Nyquist."""
    high = 1e8  # where P/(P + s^2) is P/s^2 to 1e-15
    return theory.shell_gain(high) * high**2


class TestGains:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_of_gaussian_data_are_the_exact_bound(self, shape):
        theory = gaussian(shape)
        D, y = fc.diffusion.from_gaussian(theory), states((1, *shape))
        shells = range(lattice(shape).shells_below_nyquist)
        ways = ({}, {"probe": "random_phase"}, {"method": "vjp"}, {"method": "central"})
        for s, some in ((0.3, ways[:2]), (2.0, ways), (30.0, ways[1:2])):
            expected = theory.shell_gain(s)
            for options in some:
                g = fc.mode_response(D, y, s, shells, **options)
                # float64: exact, and differences of a linear D by some 1e-14.
                np.testing.assert_allclose(g.gain, expected, atol=1e-12)
                np.testing.assert_allclose(g.k, lattice(shape).shell_k[: len(g.k)])
                if "probe" not in options:
                    assert g.leakage.max() < 1e-10

    @pytest.mark.parametrize("shape", [(12,), (7,), (4, 6, 5)])
    def test_of_a_network_are_those_of_its_jacobian(self, shape):
        channels, N = 2, int(np.prod(shape))
        D = fc.diffusion.from_epsilon(convolution(len(shape)), shape=(channels, *shape))
        y, shells = states((channels, *shape), 1), range(3)
        g = fc.mode_response(D, y, 1.3, shells)
        assert g.method == "jvp"
        J = torch.autograd.functional.jacobian(lambda y: D(y, 1.3), y).reshape(channels, N, channels, N).numpy()
        n = np.stack(np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"), axis=-1).reshape(N, -1)
        x = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(N, -1)
        number = np.floor(np.sqrt((n**2).sum(axis=1)) * min(shape) + 0.5 + 1e-9).astype(int)
        number[(number == 0) & (n != 0).any(axis=1)] = 1
        for shell in shells:
            waves = np.exp(2j * np.pi * x @ n[number == shell].T) / np.sqrt(N)
            matrix = np.einsum("ik,aibj,jk->ab", waves.conj(), J, waves).real / waves.shape[1]
            np.testing.assert_allclose(g.matrix_samples[0, shell], matrix, atol=1e-12)

    @pytest.mark.parametrize("shape", [(10,), (3, 4, 6)])
    def test_by_derivatives_are_those_by_differences(self, shape):
        D = fc.diffusion.from_epsilon(convolution(len(shape)), shape=(2, *shape))
        y = states((2, *shape))
        found = {m: fc.mode_response(D, y, 1.3, range(2), method=m) for m in ("auto", "jvp", "vjp", "central")}
        assert found["auto"].method == "jvp"
        for g in found.values():
            # Of fourth order in float64, near eps^(4/5).
            np.testing.assert_allclose(g.matrix_samples, found["jvp"].matrix_samples, atol=1e-6)

    def test_a_part_that_is_cut_off_is_found_out(self):
        """The mean over all sites, or of each frame, detached."""
        for shape, axes, shells in (((12,), (2,), [0]), ((4, 6, 6), (2, 3, 4), [0]), ((4, 6, 6), (3, 4), [0, 1])):
            D = fc.diffusion.from_denoiser(
                lambda y, s, axes=axes: 0.5 * (y - y.mean(axes, keepdim=True).detach()), shape=(1, *shape)
            )
            g = fc.mode_response(D, states((1, *shape)), 1.0, shells)
            assert g.method == "central"
            assert g.gain[0] == pytest.approx(0.0, abs=1e-9)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_probes_have_every_mode_once(self, shape):
        axes = tuple(range(-len(shape), 0))
        power = np.abs(np.fft.fftn(random_phases(shape, [0, 1]), norm="ortho")) ** 2
        assert power.flat[0] < 1e-20
        np.testing.assert_allclose(power.ravel()[1:], 1.0)
        both = np.abs(np.fft.fftn(probe_tangents(shape, 3, [0, 1]), axes=axes, norm="ortho")) ** 2
        grid = lattice(shape)
        inside = np.isin(grid.shell_of_mode, [0, 1]).reshape(shape[-1] // 2 + 1, *shape[:-1])
        half = both.sum(axis=0)[..., : shape[-1] // 2 + 1]
        assert (half[:, np.moveaxis(inside, 0, -1)] > 0.99).all()
        assert half[:, ~np.moveaxis(inside, 0, -1)].max(initial=0) < 1e-20


class TestSampling:
    @pytest.mark.parametrize("shape", [(32,), (4, 6, 8)])
    def test_gaussian_data_have_their_structure_factor(self, shape):
        theory, n = gaussian(shape), 400
        levels = fc.schedules.log_levels(60, high=60, low=0.3)
        recorders = [fc.Recorder(levels[[20, -1]], one, ndim=len(shape)) for one in (shape, (1, *shape))]
        fc.diffusion.sample(
            fc.diffusion.from_gaussian(theory), n_samples=n, levels=levels, seed=3, recorder=recorders[0],
            observers=recorders[1:], batch_size=200,
        )  # fmt: skip
        modes = lattice(shape).shell_modes
        for rec in recorders:
            S = rec.dataset().S
            for s in S.level.values:
                P = shell_means(theory) + s**2
                error = np.ravel(S.sel(level=s).values)[: len(P)] / P - 1
                # 4.5 standard errors; real fields have half as many modes of their own, and P differs inside a shell.
                # 2 % for the steps of the solver.
                assert (np.abs(error) < 4.5 * np.sqrt(2 / (n * modes[: len(P)])) * 1.2 + 0.02).all()

    @pytest.mark.parametrize("shape", [(10,), (3, 4, 6)])
    def test_sample_j_depends_on_seed_and_j_alone_guided_too(self, shape):
        net = convolution(len(shape), classes=3)
        D = fc.diffusion.from_epsilon(net, shape=(2, *shape), classes=3, unlabelled=True)
        levels = [5.0, 2.0, 1.0, 0.5]
        for guidance in (None, fc.diffusion.Pulse(2.0, 1.0, 3.0)):
            run = {"levels": levels, "seed": 2, "dtype": torch.float64, "guidance": guidance, "solver": "sde"}
            whole = fc.diffusion.sample(D, [0, 1, 2], 3, **run)
            assert whole.shape == (3, 2, *shape)
            last = fc.diffusion.sample(D, [2], 1, first_sample=2, **run)
            torch.testing.assert_close(last, whole[2:], rtol=1e-9, atol=1e-9)
        D = fc.diffusion.guided(D, None, fc.diffusion.Constant(2.0))
        g = fc.mode_response(D, states((2, *shape)), 1.0, [0, 1], 1)
        expected = fc.mode_response(D, states((2, *shape)), 1.0, [0, 1], 1, method="central")
        np.testing.assert_allclose(g.matrix_samples, expected.matrix_samples, atol=1e-6)

    def test_a_network_of_diffusers_on_a_line(self):
        diffusers = pytest.importorskip("diffusers")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = diffusers.UNet1DModel(
                sample_size=32, in_channels=2, out_channels=2, extra_in_channels=64, block_out_channels=(32, 32),
                down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
            ).double().eval()  # fmt: skip
        scheduler = diffusers.DDPMScheduler(prediction_type="epsilon")
        D = fc.diffusion.from_diffusers(net, scheduler)
        assert D.shape == (2, 32)
        y, s = states((2, 32)), 1.3
        vp = fc.schedules.VP(scheduler.alphas_cumprod.double().numpy())
        with torch.no_grad():
            eps = net((1 + s**2) ** -0.5 * y, torch.full((2,), float(vp.t(s)), dtype=torch.float64)).sample
            torch.testing.assert_close(D(y, s), y - s * eps)
        g = fc.mode_response(D, y, s, [0, 1, 2])
        expected = fc.mode_response(D, y, s, [0, 1, 2], method="central")
        np.testing.assert_allclose(g.matrix_samples, expected.matrix_samples, atol=1e-6)
        rec = fc.Recorder([2.0, 1.0], (2, 32), ndim=1)
        fc.diffusion.sample(D, n_samples=4, levels=[2.0, 1.0], recorder=rec)
        assert np.isfinite(rec.dataset().S).all()


class TestErrors:
    def test_say_which_lattice_is_meant(self):
        theory = gaussian((16,))
        D = fc.diffusion.from_gaussian(theory)
        assert D.ndim == 1
        anything = fc.diffusion.from_denoiser(lambda y, s: y)
        assert anything.ndim == 2
        run = fc.diffusion.sample
        for call, message in (
            (lambda: fc.diffusion.from_denoiser(lambda y, s: y, shape=(1, 2, 3, 4, 5)), r"shape: .* or \(C, T, H, W\)"),
            (lambda: anything(torch.zeros(2, 1, 16), 1.0), r"y: expected states .* as shape=\(C, L\)"),
            (lambda: D(torch.zeros(2, 1, 4, 4), 1.0), r"y: Wiener filter takes states of shape \(batch, \*\(1, 16\)\)"),
            (lambda: fc.mode_response(D, torch.zeros(2, 1, 4, 4), 1.0), "y: Wiener filter takes states"),
            (lambda: fc.mode_response(anything, torch.zeros(2, 1, 16), 1.0), r"as shape=\(C, L\)"),
            (lambda: fc.mode_response(D, torch.zeros(2, 16), 1.0), r"y: expected a float32 or float64 tensor"),
            (
                lambda: run(D, n_samples=2, levels=[2.0, 1.0], recorder=fc.Recorder([1.0], (1, 16))),
                r"recorder: made with ndim=2, sampling states of shape \(1, 16\), .* ndim=1",
            ),
            (lambda: fc.diffusion.from_patch(fc.patch.Dictionary.binary(3, 5, seed=2))(torch.zeros(1, 1, 9), 1.0),
             r"y: expected states \(batch, C, H, W\)"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                call()
