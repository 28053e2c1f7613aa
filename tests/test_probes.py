"""Gain matrices of channels, and tangents of random phase: against J written out, theory, all waves and Stein."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._estimates.dispersion import collective_modes
from fastcrit._kernels.lattice import lattice
from fastcrit._response.probes import random_phases
from tests.networks import SmallConvolutional

SHAPES = [(8, 8), (7, 9), (6, 9)]


def network(channels=3, padding_mode="zeros", dtype=torch.float64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SmallConvolutional(channels, padding_mode=padding_mode, **options).to(dtype).eval()


def states(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def images(n):
    return torch.from_numpy(fc.data.fashion_mnist().pixels()[:n])[:, None]


def linear_denoiser(matrices):
    """D that multiplies every mode of the half spectrum by a matrix (H, W/2 + 1, C, C), complex or real."""
    matrices = torch.from_numpy(np.asarray(matrices, dtype=np.complex128))

    def apply(x, s):
        modes = torch.einsum("hwab,nbhw->nahw", matrices.to(torch.fft.rfft2(x).dtype), torch.fft.rfft2(x))
        return torch.fft.irfft2(modes, s=x.shape[-2:])

    return fc.diffusion.from_denoiser(apply)


def shell_means(values, shape):
    """Means over all modes of each shell of values (H, W/2 + 1, ..) of the half spectrum: real parts."""
    grid = lattice(shape)
    flat = np.moveaxis(values, 1, 0).reshape(-1, *values.shape[2:]).real
    weight = grid.half_weights.reshape(-1, *(1,) * (flat.ndim - 1))
    return np.array(
        [
            (weight * flat)[grid.shell_of_mode == k].sum(axis=0) / grid.shell_modes[k]
            for k in range(grid.shells_below_nyquist)
        ]
    )


def cross_spectra(shape, correlation, levels=(4.0, 1.0, 0.25)):
    """P_ab(k) of three unlike channels of one shape in k, correlated like this: (H, W/2 + 1, 3, 3)."""
    kx, ky = 2 * np.pi * np.fft.rfftfreq(shape[1]), 2 * np.pi * np.fft.fftfreq(shape[0])
    k2 = 4 * np.sin(ky[:, None] / 2) ** 2 + 4 * np.sin(kx / 2) ** 2
    root = np.sqrt(levels)
    same = np.full((3, 3), correlation) + (1 - correlation) * np.eye(3)
    return 3 / (0.1 + k2)[..., None, None] * same * np.outer(root, root)


class TestChannels:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("probe", ["waves", "random_phase"])
    def test_a_network_that_mixes_channels_equally_has_one_collective_mode(self, shape, probe):
        p = 0.6
        D = fc.diffusion.from_denoiser(lambda x, s: p * x.mean(dim=1, keepdim=True).expand_as(x))
        g = fc.mode_response(D, states(2, 3, *shape), 1.0, range(3), probe=probe)
        np.testing.assert_allclose(g.gain, p, atol=1e-12)
        np.testing.assert_allclose(g.diagonal_gain, p / 3, atol=1e-12)
        np.testing.assert_allclose(g.gain_matrix, np.full((3, 3, 3), p / 3), atol=1e-12)
        np.testing.assert_allclose(g.eigenvector, np.full((3, 3), 3**-0.5), atol=1e-12)

    @pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_forward_derivatives_and_finite_differences_have_the_same_matrix(self, shape, padding_mode):
        D, y = fc.diffusion.from_epsilon(network(padding_mode=padding_mode)), states(2, 3, *shape)
        exact, differences = (fc.mode_response(D, y, 1.3, range(4), method=m) for m in ("jvp", "central"))
        # Fourth-order differences err by near eps^(4/5) = 3e-13 of D's scale.
        np.testing.assert_allclose(differences.matrix_samples, exact.matrix_samples, atol=1e-10)
        # Output first: this network's matrix is not symmetric.
        assert np.abs(exact.gain_matrix - np.swapaxes(exact.gain_matrix, 1, 2)).max() > 1e-3

    def test_the_collective_gain_is_the_leading_eigenvalue_of_the_mean(self):
        g = fc.mode_response(fc.diffusion.from_epsilon(network()), states(4, 3, 8, 8), 1.3)
        matrix = g.matrix_samples.mean(axis=0)
        np.testing.assert_allclose(g.gain_matrix, matrix, atol=1e-14)
        np.testing.assert_allclose(g.gain, np.linalg.eigvalsh((matrix + np.swapaxes(matrix, 1, 2)) / 2)[:, -1])
        np.testing.assert_allclose(g.samples.mean(axis=0), g.gain)
        np.testing.assert_allclose(g.stderr, g.samples.std(axis=0, ddof=1) / 2)
        np.testing.assert_allclose(np.linalg.norm(g.eigenvector, axis=1), 1)
        assert (g.eigenvector[np.arange(5), np.abs(g.eigenvector).argmax(axis=1)] > 0).all()

    def test_of_one_channel_the_matrix_is_the_gain(self):
        g = fc.mode_response(fc.diffusion.from_epsilon(network(1)), states(3, 1, 8, 8), 1.3)
        np.testing.assert_array_equal(g.gain_matrix, g.gain[:, None, None])
        np.testing.assert_array_equal(g.matrix_samples, g.samples[:, :, None, None])
        np.testing.assert_array_equal(g.diagonal_gain, g.gain)
        np.testing.assert_array_equal(g.eigenvector, 1)

    @pytest.mark.parametrize("probe", ["waves", "random_phase"])
    @pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, 1.0])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_gaussian_channels_attain_the_bound(self, shape, correlation, probe):
        """Their denoiser is P (P + s^2)^-1 mode by mode; rounding, a few hundred eps, is all that is left."""
        P, s = cross_spectra(shape, correlation), 1.5
        D = linear_denoiser(P @ np.linalg.inv(P + s**2 * np.eye(3)))
        shells = range(lattice(shape).shells_below_nyquist)
        g = fc.mode_response(D, states(2, 3, *shape), s, shells, probe=probe)
        bound = shell_means(fc.modes.gaussian_bound(P, s, channels=True), shape)
        np.testing.assert_allclose(g.gain_matrix, bound, atol=1e-12)
        # Of the weakest direction, 1e-3 of the strongest, 1e-12 is 1e-9 in its own measure.
        np.testing.assert_allclose(fc.modes.response_deficit(g.gain_matrix, bound, channels=True), 0, atol=1e-9)
        np.testing.assert_allclose(g.gain, np.linalg.eigvalsh(bound)[:, -1], atol=1e-12)


class TestMatrices:
    def test_bound_of_one_channel_is_the_number(self, rng):
        P = rng.uniform(0.1, 10, size=(5, 4))
        matrices = fc.modes.gaussian_bound(P[..., None, None], 1.5, channels=True)
        np.testing.assert_allclose(matrices[..., 0, 0], fc.modes.gaussian_bound(P, 1.5))

    def test_bound_solves_its_equation_for_complex_spectra_at_every_level(self, rng):
        z = rng.normal(size=(6, 3, 5)) + 1j * rng.normal(size=(6, 3, 5))
        P, s = z @ np.conj(np.swapaxes(z, 1, 2)), np.array([0.1, 1.0, 10.0])[:, None]
        bound = fc.modes.gaussian_bound(P, s, channels=True)
        assert bound.shape == (3, 6, 3, 3)
        np.testing.assert_allclose(bound @ (P + s[..., None, None] ** 2 * np.eye(3)), np.broadcast_to(P, bound.shape))

    def test_bound_of_no_noise_is_the_projection_on_what_has_power(self):
        np.testing.assert_allclose(
            fc.modes.gaussian_bound(np.full((3, 3), 4.0), 0.0, channels=True), np.full((3, 3), 1 / 3)
        )

    def test_what_was_not_measured_stays_nan(self):
        bound = fc.modes.gaussian_bound(
            np.stack([np.eye(2), np.full((2, 2), np.nan), 0 * np.eye(2)]), 1.0, channels=True
        )
        np.testing.assert_array_equal(
            fc.modes.response_deficit(0 * bound[:1], bound, channels=True), [1, np.nan, np.nan]
        )
        gain = np.stack([bound[0], np.full((2, 2), np.nan)])
        deficit = fc.modes.response_deficit(gain, bound[0], channels=True)
        assert abs(deficit[0]) < 1e-15
        assert np.isnan(deficit[1])

    def test_deficit_is_of_the_direction_that_comes_closest(self):
        bound = np.diag([0.8, 0.4, 0.0])  # the third carries no power, and what gain it has does not count
        assert fc.modes.response_deficit(np.diag([0.4, 0.3, 5.0]), bound, channels=True) == pytest.approx(0.25)
        assert fc.modes.response_deficit(np.diag([0.4, 0.6, 5.0]), bound, channels=True) == pytest.approx(-0.5)
        assert fc.modes.response_deficit(np.diag([-0.4, -0.3, 5.0]), bound, channels=True) == pytest.approx(1.5)

    def test_a_collective_mode_stays_itself_where_another_overtakes_it(self):
        """Along (1, 1) the gain falls, along (1, -1) it rises above it; level 2 is the softest."""
        even, odd = np.full((2, 2), 0.5), np.array([[0.5, -0.5], [-0.5, 0.5]])
        a, b = [0.2, 0.5, 0.9, 0.6, 0.3], [0.1, 0.1, 0.3, 0.5, 0.7]
        G = np.array([p * even + q * odd for p, q in zip(a, b, strict=True)])[:, None]
        gain, vector = collective_modes(G)
        np.testing.assert_allclose(gain[:, 0], np.maximum(a, b))  # exact: the softest is the softest
        np.testing.assert_allclose(vector[:3, 0], 2**-0.5)
        # With errors of 0.2 an entry neither 0.5 nor 0.7 is surely ahead: the mode stays what it was.
        gain, vector = collective_modes(G, np.full(G.shape, 0.2))
        np.testing.assert_allclose(gain[:, 0], a)
        np.testing.assert_allclose(vector[:, 0], 2**-0.5)

    def test_noise_where_all_gains_are_alike_does_not_choose_the_mode(self):
        """P = 400, 20, 10 of three channels: from g of nearly 1 for all, where noise mixes them, to high noise."""
        s = fc.schedules.log_levels(24, high=50, low=0.05)
        G = np.einsum("lc,cd->lcd", np.array([400.0, 20.0, 10.0]) / (np.array([400.0, 20.0, 10.0]) + s[:, None] ** 2),
                      np.eye(3))[:, None]  # fmt: skip
        for seed in range(20):
            noise = 5e-4 * np.random.default_rng(seed).standard_normal(G.shape)
            gain, _ = collective_modes(G + noise, np.full(G.shape, 5e-4))
            np.testing.assert_allclose(gain[:, 0], G[:, 0, 0, 0], atol=6e-3)


class TestRandomPhases:
    @pytest.mark.parametrize("shape", [*SHAPES, (1, 8), (5, 1)])
    def test_the_field_has_modulus_one_at_every_mode_but_the_mean(self, shape):
        v = random_phases(shape, [0, 1, 2])
        modulus = np.abs(np.fft.fft2(v, norm="ortho"))
        assert modulus[0, 0] < 1e-12
        np.testing.assert_allclose(modulus.ravel()[1:], 1, atol=1e-12)

    def test_phases_are_uniform_and_independent(self):
        """Means over n draws of unit numbers lie within 5/sqrt(n), one of some 1400 beyond with odds of 1e-3."""
        n, shape = 4000, (4, 6)
        v = np.fft.fft2([random_phases(shape, [0, j]) for j in range(n)], norm="ortho").reshape(n, -1)[:, 1:]
        opposite = [((-a % 4) * 6 + (-b % 6)) - 1 for a in range(4) for b in range(6)][1:]
        moments = np.stack([v.conj().T @ v / n, v.T @ v / n])
        moments[0] -= np.eye(23)
        moments[1, np.arange(23), opposite] -= 1  # conj(v_k) v_-k* = |v_k|^2
        assert np.abs(moments).max() < 5 / np.sqrt(n)
        assert np.abs(v.mean(axis=0)).max() < 5 / np.sqrt(n)

    @pytest.mark.parametrize("method", ["jvp", "vjp", "central"])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_exact_where_j_is_circulant(self, shape, dtype, tolerance, method):
        """Circular padding and homogeneous states, of unlike channels: no other mode to bring in."""
        D = fc.diffusion.from_epsilon(network(padding_mode="circular", dtype=dtype))
        y = states(2, 3, 1, 1, dtype=dtype).expand(2, 3, *shape).contiguous()
        exact, probed = (
            fc.mode_response(D, y, 1.3, range(lattice(shape).shells_below_nyquist), probe=probe, method=m)
            for probe, m in (("waves", "jvp"), ("random_phase", method))
        )
        np.testing.assert_allclose(probed.matrix_samples, exact.matrix_samples, atol=tolerance)
        assert np.isnan(probed.drift).all()
        assert np.isnan(probed.leakage).all()
        assert probed.method == method

    @pytest.mark.parametrize("shape", [(8, 8), (6, 9)])
    def test_unbiased_in_every_entry_of_the_matrix(self, shape):
        """All waves at one state against 1000 draws there: 4.5 errors, one of 45 entries beyond with odds of 3e-4."""
        D, y = fc.diffusion.from_epsilon(network()), states(1, 3, *shape)
        exact = fc.mode_response(D, y, 1.3, range(lattice(shape).shells_below_nyquist))
        draws = fc.mode_response(D, y.expand(1000, -1, -1, -1), 1.3, probe="random_phase").matrix_samples
        error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
        assert draws.shape[1:] == exact.matrix_samples.shape[1:]
        assert error[1:].max() > 1e-4
        # The first shell is exact.
        assert (np.abs(draws.mean(axis=0) - exact.gain_matrix) <= 4.5 * error + 1e-12).all()

    def test_labels_go_with_their_states(self):
        D = fc.diffusion.from_epsilon(network(1, "circular", classes=3), classes=3)
        y, labels = torch.zeros(3, 1, 8, 8, dtype=torch.float64), [2, 0, 1]
        exact, probed = (
            fc.mode_response(D, y, 1.3, range(5), labels, probe=probe) for probe in ("waves", "random_phase")
        )
        np.testing.assert_allclose(probed.samples, exact.samples, atol=1e-12)
        assert np.ptp(exact.samples, axis=0).min() > 1e-4

    def test_phases_follow_from_the_seed_and_the_number_of_the_sample(self):
        D, y = fc.diffusion.from_epsilon(network()), states(5, 3, 8, 8)
        options = {"probe": "random_phase", "probes": 3, "seed": 7, "method": "jvp"}
        whole = fc.mode_response(D, y, 1.3, **options).matrix_samples
        rest = fc.mode_response(D, y[2:], 1.3, first_sample=2, **options).matrix_samples
        np.testing.assert_allclose(rest, whole[2:], atol=1e-13)
        for memory in (1, 1 << 18):  # one product at a time, and a few
            small = fc.mode_response(D, y, 1.3, memory=memory, **options).matrix_samples
            np.testing.assert_allclose(small, whole, atol=1e-13)
        few = fc.mode_response(D, y, 1.3, [0, 3], **options).matrix_samples
        np.testing.assert_allclose(few, whole[:, [0, 3]], atol=1e-13)
        other = fc.mode_response(D, y, 1.3, **options | {"seed": 8}).matrix_samples
        np.testing.assert_allclose(other[:, 0], whole[:, 0], atol=1e-13)  # the constant wave has no phase
        assert np.abs(other - whole)[:, 1:].min() > 1e-8

    def test_products_are_one_a_probe_and_channel_and_one_for_the_constant(self):
        """Counted by the network: central differences call it four times a product."""
        calls = []
        D = fc.diffusion.from_denoiser(lambda x, s: calls.append(len(x)) or torch.tanh(x))
        y = states(1, 2, 6, 6)
        for shells, options, products in (
            (None, {"probe": "random_phase"}, 4),
            ([0], {"probe": "random_phase"}, 2),
            ([1, 2, 3], {"probe": "random_phase", "probes": 3}, 6),
            ([0, 1, 2], {"waves": 1}, 10),
        ):
            calls.clear()
            fc.mode_response(D, y, 1.0, shells, method="central", step=1e-3, **options)
            # And one state to see what memory it takes, and two beside each other.
            assert sum(calls) == 4 * products + 3


class TestShippedNetwork:
    """zeros-0: J is far from circulant, and differs from state to state."""

    def test_unbiased_in_every_shell(self):
        """All waves at one state against 200 draws there: 4 errors, one of 14 beyond with odds of 1e-3."""
        D, s = fc.diffusion.pretrained("zeros-0"), 3.0
        y = images(1) + s * states(1, 1, 28, 28, dtype=torch.float32)
        shells = range(lattice((28, 28)).shells_below_nyquist)
        exact = fc.mode_response(D, y, s, shells, method="jvp")
        draws = fc.mode_response(D, y.expand(200, -1, -1, -1), s, probe="random_phase", method="jvp")
        assert draws.shells == exact.shells
        # Rounding of a float32 network: some 1e-6 of a product.
        assert (np.abs(draws.gain - exact.gain) <= 4 * draws.stderr + 1e-5).all()

    def test_agrees_with_steins_estimate_on_forward_states(self):
        """E dD_i/dy_j = E D_i n_j / s on y = x0 + s n: no derivative is taken. Paired, state by state."""
        D, s, shells = fc.diffusion.pretrained("zeros-0"), 3.0, range(7)
        x0 = images(300)
        n = states(*x0.shape, dtype=torch.float32)
        y = x0 + s * n
        with torch.no_grad():
            # x0 does not know n: taken from D it changes no mean, and the errors are smaller.
            answer = (D(y, s) - x0).double().numpy()[:, 0]
        overlap = np.fft.rfft2(n.double().numpy()[:, 0], norm="ortho").conj() * np.fft.rfft2(answer, norm="ortho") / s
        stein = shell_means(np.moveaxis(overlap, 0, -1), (28, 28))[shells].T
        g = fc.mode_response(D, y, s, shells, probe="random_phase", method="jvp")
        difference = stein - g.samples
        error = difference.std(axis=0, ddof=1) / np.sqrt(len(y))
        # 4 errors: one of 7 beyond with odds of 4e-4. Errors are a tenth of the gain of the first shells, and less.
        assert (np.abs(difference.mean(axis=0)) <= 4 * error).all()
        assert (error[:3] < 0.15 * g.gain[:3]).all()
