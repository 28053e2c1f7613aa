"""The response by distance: against what is known exactly, J written out, and one measurement against the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._kernels.lattice import lattice
from fastcrit._response.derivative import Derivative
from tests.networks import SmallConvolutional

# A denoiser that nobody here trained, beside the repository where there is one. Without it the same network runs with
# random weights, of which all of this is as true.
TRAINED = Path(__file__).parents[2] / "shared" / "data" / "bf_dncnn_0-100.safetensors"


def lags_of(shape):
    """Every lag of the torus, to the nearest image, and its length."""
    axes = [(np.arange(side) + side // 2) % side - side // 2 for side in shape]
    lags = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return lags, np.sqrt((lags**2).sum(axis=-1))


def over_shells(values):
    """Means over lags whose length rounds to the same number of sites, by definition; mean lengths, and pairs."""
    _, length = lags_of(values.shape)
    number = np.floor(length + 0.5).astype(int)
    shells = np.unique(number)
    means = np.array([values[number == shell].mean() for shell in shells])
    return means, np.array([length[number == j].mean() for j in shells]), np.bincount(number.ravel())[shells]


def jacobian(D, y, s):
    """J of one state (C, *sides), as (C, sites, C, sites)."""
    J = torch.autograd.functional.jacobian(lambda y: D(y[None], s)[0], y)
    sites = y[0].numel()
    return J.reshape(len(y), sites, len(y), sites).double().numpy()


def averaged(J, shape):
    """Of J (C, sites, C, sites): averages over sites of the trace over channels and of squares, both over C, by lag."""
    C, sites = J.shape[:2]
    at = np.stack(np.unravel_index(np.arange(sites), shape), axis=-1)
    G, square = np.zeros((2, *shape))
    for lag in np.ndindex(*shape):
        other = np.ravel_multi_index(tuple(((at + lag) % shape).T), shape)
        blocks = J[:, np.arange(sites), :, other]  # (sites, C, C)
        G[lag] = np.trace(blocks, axis1=1, axis2=2).mean() / C
        square[lag] = (blocks**2).sum(axis=(1, 2)).mean() / C
    return G, square


def random_spectrum(rng, shape):
    """Positive, even, otherwise anything: no lag is like another but its opposite."""
    return np.abs(np.fft.fftn(rng.normal(size=shape))) ** 2 / np.prod(shape)


def within(found, expected, error, deviations=5.0):
    """So many standard errors, of about a hundred numbers a test; those are seen to be small where they matter."""
    np.testing.assert_array_less(np.abs(found - expected), deviations * error + 1e-12)


def conv_net(seed, channels=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallConvolutional(channels, **options).double().eval()


class TestGaussianData:
    @pytest.mark.parametrize("shape", [(12, 17), (9, 9), (16, 10), (31,), (5, 6, 7)])
    def test_every_shell_is_that_of_the_transformed_gain(self, rng, shape):
        theory, s = fc.theory.GaussianTheory(random_spectrum(rng, shape)), 0.8
        G = np.fft.ifftn(theory.spectrum / (theory.spectrum + s**2)).real
        exact = theory.response_function(s)
        expected, r, pairs = over_shells(G)
        np.testing.assert_allclose(exact.r, r, atol=1e-12)
        np.testing.assert_array_equal(exact.pairs, pairs)
        np.testing.assert_allclose(exact.G, expected, atol=1e-14)
        np.testing.assert_allclose(exact.square, over_shells(G**2)[0], atol=1e-14)
        assert not exact.stderr.any()
        assert exact.asymmetry == exact.length_stderr == exact.radius_stderr() == 0.0
        y = torch.from_numpy(rng.normal(size=(2, 1, *shape)))
        measured = fc.response_function(fc.diffusion.from_gaussian(theory), y, s)
        # J is a convolution: random phases and single columns have no noise.
        np.testing.assert_allclose(measured.samples, np.tile(expected, (2, 1)), atol=1e-13)
        np.testing.assert_allclose(measured.square, exact.square, atol=1e-13)
        np.testing.assert_allclose(measured.moments, np.tile(exact.moments, (2, 1)), atol=1e-11)
        assert measured.asymmetry < 1e-12
        assert measured.method == "jvp"

    @pytest.mark.parametrize("kind", ["float64 arrays", "float32 arrays", "float32", "float64", "bfloat16"])
    @pytest.mark.parametrize("shape", [(12, 17), (9, 10)])
    def test_stein_agrees_in_every_shell(self, rng, shape, kind):
        theory, s, states = fc.theory.GaussianTheory(random_spectrum(rng, shape)), 1.7, 40
        x0 = theory.sample_data(states, seed=int(rng.integers(1000)))
        n = rng.normal(size=x0.shape)
        if kind.endswith("arrays"):
            dtype = np.dtype(kind.split()[0])
            D, y, n = theory.denoise, (x0 + s * n).astype(dtype), n.astype(dtype)
        else:
            dtype = getattr(torch, kind)
            n = torch.from_numpy(n)[:, None].to(dtype)
            y = torch.from_numpy(x0)[:, None].to(dtype) + s * n
            D = fc.diffusion.from_gaussian(theory)
        found = fc.response_function(D, y, s, method="stein", noise=n)
        expected = theory.response_function(s)
        # bfloat16 rounds states by 2^-9 of their size, which is no part of what is tested.
        rounding = 1e-3 if kind == "bfloat16" else 1e-6 if "32" in kind else 0.0
        within(found.G, expected.G, found.stderr + rounding)
        # Small enough that a factor of 2, s or N would be seen.
        assert found.stderr[0] < 0.02 * expected.G[0]
        assert np.isnan(found.square).all()
        assert np.isnan([found.asymmetry, found.radius(), found.radius_stderr()]).all()
        assert found.method == "stein"

    @pytest.mark.parametrize("s", np.geomspace(0.3, 60.0, 8))
    @pytest.mark.parametrize(("A", "xi"), [(1.0, 5.0), (6.0, 4.0)])
    def test_ornstein_zernike_length(self, A, xi, s):
        """With the lattice momentum the second moment is that of the plane at every level, up to exp(-L/2 xi)."""
        P = A * fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=(96, 111)).spectrum
        theory = fc.theory.GaussianTheory(P)
        expected = (xi**-2 + A / s**2) ** -0.5
        assert theory.response_function(s).length == pytest.approx(expected, rel=1e-3)
        y = torch.zeros(1, 1, *P.shape, dtype=torch.float64)
        measured = fc.response_function(fc.diffusion.from_gaussian(theory), y, s, columns=0, asymmetry=False)
        assert measured.length == pytest.approx(expected, rel=1e-3)

    def test_sums_over_shells_are_gains(self, rng):
        theory = fc.theory.GaussianTheory(random_spectrum(rng, (8, 11)))
        g = theory.response_function(1.3)
        assert (g.G * g.pairs).sum() == pytest.approx(float(theory.gain([0.0, 0.0], 1.3)))
        assert (g.square * g.pairs).sum() * 88 == pytest.approx(
            ((theory.spectrum / (theory.spectrum + 1.69)) ** 2).sum()
        )

    def test_shells_begin_with_those_of_the_autocorrelation(self, rng):
        g = fc.theory.GaussianTheory(random_spectrum(rng, (8, 11))).response_function(1.0)
        c = fc.autocorrelation(rng.normal(size=(3, 8, 11)))
        np.testing.assert_array_equal(g.r[: len(c.r)], c.r)
        np.testing.assert_array_equal(g.pairs[: len(c.r)], c.counts)


class TestAgainstTheJacobian:
    @pytest.mark.parametrize(("channels", "shape"), [(1, (5, 8)), (3, (6, 5)), (2, (7, 7))])
    @pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
    def test_all_columns_and_many_probes(self, channels, shape, padding_mode):
        D = fc.diffusion.from_epsilon(conv_net(3, channels, padding_mode=padding_mode))
        y = torch.randn(3, channels, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        s, sites = 1.3, int(np.prod(shape))
        g = fc.response_function(D, y, s, probes=300, columns=sites)
        J = [jacobian(D, one, s) for one in y]
        both = [averaged(one, shape) for one in J]
        np.testing.assert_allclose(g.square_samples, [over_shells(square)[0] for _, square in both], atol=1e-13)
        expected = np.array([over_shells(G)[0] for G, _ in both])
        # A lag's noise is that of sum_(k != k') conj(v_k) J_kk' v_k': at most |J|/N, over the root of the probes, the
        # channels' mean and the shell; and 5 deviations of it.
        size = max(np.linalg.norm(one) for one in J)
        noise = size / sites / np.sqrt(300 * channels * g.pairs)
        np.testing.assert_array_less(np.abs(g.samples - expected), 5 * noise * np.ones((3, 1)))
        assert (noise < 0.05 * expected[:, 0].min()).all()
        apart = [np.linalg.norm(one - one.transpose(2, 3, 0, 1)) ** 2 for one in J]
        whole = [np.linalg.norm(one) ** 2 for one in J]
        # 300 fields a channel and state: a few per cent.
        assert g.asymmetry == pytest.approx(np.sqrt(np.sum(apart) / np.sum(whole)), rel=0.05)
        np.testing.assert_allclose(g.stderr, g.samples.std(axis=0, ddof=1) / 3**0.5)

    def test_channels_are_output_then_input(self, rng):
        """D mixes channels by a matrix and shifts: the response between channels is that matrix, at that distance."""
        mix = torch.from_numpy(rng.normal(size=(3, 3)))
        D = fc.diffusion.from_denoiser(lambda y, s: torch.einsum("ab,nbhw->nahw", mix, torch.roll(y, 2, dims=3)))
        y = torch.from_numpy(rng.normal(size=(1, 3, 7, 9)))
        n = rng.normal(size=(2000, 3, 7, 9))
        of_noise = fc.response_function(D, torch.from_numpy(2 * n), 2.0, method="stein", noise=n)
        for g in (fc.response_function(D, y, 2.0, probes=40), of_noise):
            # One of the lags in the shell of 2 sites.
            assert np.abs(g.G_matrix[2] * g.pairs[2] - mix.numpy()).max() < 0.35
        np.testing.assert_allclose(g.G, np.trace(g.G_matrix, axis1=1, axis2=2) / 3, atol=1e-14)

    def test_fields_of_one_channel_are_without_noise_where_equivariant(self, rng):
        D = fc.diffusion.from_epsilon(conv_net(5, padding_mode="circular"))
        y = torch.full((1, 1, 8, 9), 0.3, dtype=torch.float64)
        G, square = averaged(jacobian(D, y[0], 1.0), (8, 9))
        g = fc.response_function(D, y, 1.0, seed=int(rng.integers(99)))
        np.testing.assert_allclose(g.G, over_shells(G)[0], atol=1e-13)
        np.testing.assert_allclose(g.square, over_shells(square)[0], atol=1e-13)
        assert np.isnan(g.stderr).all()  # one state
        assert np.isnan(g.length_stderr)

    def test_it_is_the_transform_of_the_gain(self, rng):
        D = fc.diffusion.from_epsilon(conv_net(5, 2, padding_mode="circular"))
        y = torch.full((1, 2, 8, 9), 0.3, dtype=torch.float64)
        every = range(len(lattice((8, 9)).shell_k))
        gain, g = fc.mode_response(D, y, 1.0, every), fc.response_function(D, y, 1.0)
        modes = lattice((8, 9)).shell_modes
        assert g.G[0] == pytest.approx((gain.diagonal_gain * modes).sum() / 72)
        assert (g.G * g.pairs).sum() == pytest.approx(gain.diagonal_gain[0])

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-4), (torch.float64, 1e-8)])
    def test_ways_to_differentiate_agree(self, dtype, tolerance):
        D = fc.diffusion.from_epsilon(conv_net(0).to(dtype))
        y = 2 * torch.randn(2, 1, 9, 10, dtype=dtype, generator=torch.Generator().manual_seed(0))
        found = {m: fc.response_function(D, y, 1.5, derivative=m) for m in ("auto", "jvp", "vjp", "central")}
        assert [g.method for g in found.values()] == ["jvp", "jvp", "vjp", "central"]
        for g in found.values():
            np.testing.assert_allclose(g.samples, found["jvp"].samples, atol=tolerance)
            np.testing.assert_allclose(g.square_samples, found["jvp"].square_samples, atol=tolerance)
        assert np.isnan(found["central"].asymmetry)

    @pytest.mark.parametrize("shape", [(2, 12), (1, 4, 5, 6)])
    def test_lines_and_volumes(self, rng, shape):
        mixed = torch.from_numpy(rng.normal(size=(2 * int(np.prod(shape)),)))

        def cubic(y, s):
            return mixed[: y[0].numel()].reshape(y.shape[1:]) * torch.roll(y, 1, dims=-1) ** 3

        D = fc.diffusion.from_denoiser(cubic, shape=shape)
        y = torch.from_numpy(rng.normal(size=(1, *shape)))
        square = averaged(jacobian(D, y[0], 1.0), shape[1:])[1]
        g = fc.response_function(D, y, 1.0, columns=int(np.prod(shape[1:])))
        np.testing.assert_allclose(g.square, over_shells(square)[0], atol=1e-12)
        assert g.ndim == len(shape) - 1


class TestSumRule:
    """N G(0) = mmse/s^2, a channel, of exact posteriors on forward states: G(0) as in J, mmse by what was put in."""

    def check(self, D, x0, s, rng, exact):
        n = rng.normal(size=x0.shape)
        y = torch.from_numpy(x0 + s * n)
        error = ((D(y, s).numpy() - x0) ** 2).mean(axis=(1, 2, 3))
        mmse, spread = error.mean() / s**2, error.std() / s**2 / len(x0) ** 0.5
        for g in (
            fc.response_function(D, y, s, columns=0, asymmetry=False, probes=4),
            fc.response_function(D, y, s, method="stein", noise=n),
        ):
            assert g.G[0] == pytest.approx(mmse, abs=5 * np.hypot(spread, g.stderr[0]))
            assert g.G[0] == pytest.approx(exact, abs=5 * g.stderr[0] + 1e-9)
            assert np.hypot(spread, g.stderr[0]) < 0.1 * mmse  # a factor of 2 or s is seen
        assert exact == pytest.approx(mmse, abs=5 * spread)

    def test_gaussian(self, rng):
        theory = fc.theory.GaussianTheory(random_spectrum(rng, (9, 12)))
        x0 = theory.sample_data(300, seed=3)[:, None]
        self.check(fc.diffusion.from_gaussian(theory), x0, 0.6, rng, theory.response_function(0.6).G[0])

    def test_mixture(self, rng):
        model = fc.theory.GaussianMixture(0.5 * rng.normal(size=(3, 2, 5, 6)), std=0.8, weights=[1.0, 2.0, 3.0])
        x0, _ = model.sample_data(300, seed=4)
        self.check(fc.diffusion.from_mixture(model), x0, 1.5, rng, model.response_function(1.5).G[0])

    def test_patch(self, rng):
        """Images of one sign throughout: every patch is one of the pair, and D its posterior mean."""
        pair = fc.patch.Dictionary.binary(3, 0)
        x0 = np.sign(rng.normal(size=(300, 1, 1, 1))) * np.ones((1, 1, 7, 8))
        s = 2.5
        y = x0[:, 0] + s * rng.normal(size=(300, 7, 8))
        exact = fc.theory.PatchTheory(pair, (7, 8)).response_function(s, y)
        self.check(fc.diffusion.from_patch(pair), x0, s, rng, pytest.approx(exact.G[0], abs=5 * exact.stderr[0]))


class TestMixture:
    def test_two_classes_respond_alike_at_any_distance(self, rng):
        mu, std, s, shape = 0.7, 0.9, 2.1, (5, 8)
        v = std**2
        means = mu * np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, *shape))
        model = fc.theory.GaussianMixture(means, std)
        y = 2.0 * rng.normal(size=(4, 1, *shape)) + rng.normal(size=(4, 1, 1, 1))
        q = model.posterior(y, s)
        m = q[:, 1] - q[:, 0]
        apart = s**2 * mu**2 * (1 - m**2) / (v + s**2) ** 2
        expected = np.tile(apart[:, None], (1, len(lattice(shape).lag_r)))
        expected[:, 0] += v / (v + s**2)
        D = fc.diffusion.from_mixture(model)
        for g in (model.response_function(s, y), fc.response_function(D, torch.from_numpy(y), s)):
            # J is a convolution: all is exact.
            np.testing.assert_allclose(g.samples, expected, atol=1e-13)
            np.testing.assert_allclose(g.square_samples, expected**2, atol=1e-13)
        assert fc.response_function(D, torch.from_numpy(y), s).asymmetry < 1e-12
        n = rng.normal(size=(2000, 1, *shape))
        x0, _ = model.sample_data(2000, seed=5)
        stein = fc.response_function(D, torch.from_numpy(x0 + s * n), s, method="stein", noise=n)
        exact = model.response_function(s)
        assert np.ptp(exact.G[1:]) < 1e-12
        within(stein.G, exact.G, stein.stderr)
        assert (stein.stderr[1:] < 0.1 * exact.G[1:]).all()

    @pytest.mark.parametrize("channels", [1, 2])
    def test_at_states_it_is_j_written_out(self, rng, channels):
        shape = (4, 7)
        model = fc.theory.GaussianMixture(rng.normal(size=(3, channels, *shape)), 0.6, [3.0, 1.0, 2.0])
        y = rng.normal(size=(3, channels, *shape))
        g = model.response_function(1.9, y)
        D = fc.diffusion.from_mixture(model)
        both = [averaged(jacobian(D, one, 1.9), shape) for one in torch.from_numpy(y)]
        np.testing.assert_allclose(g.samples, [over_shells(G)[0] for G, _ in both], atol=1e-13)
        np.testing.assert_allclose(g.square_samples, [over_shells(square)[0] for _, square in both], atol=1e-13)

    def test_over_all_states_it_is_the_average(self, rng):
        model = fc.theory.GaussianMixture(0.6 * rng.normal(size=(3, 2, 4, 6)), 0.8, [3.0, 1.0, 2.0])
        x0, _ = model.sample_data(4000, seed=1)
        states = model.response_function(1.4, x0 + 1.4 * rng.normal(size=x0.shape))
        whole = model.response_function(1.4)
        # And the quasi-random points', as said.
        within(whole.G, states.G, states.stderr + 1e-4 * whole.G[0])
        within(whole.square, states.square, states.square_stderr + 1e-4 * whole.square[0])
        assert whole.radius() == pytest.approx(states.radius(), abs=5 * states.radius_stderr())

    def test_many_classes_have_no_square(self, rng):
        model = fc.theory.GaussianMixture(rng.normal(size=(17, 1, 3, 3)), 1.0)
        for g in (model.response_function(1.0), model.response_function(1.0, np.zeros((1, 1, 3, 3)))):
            assert np.isfinite(g.G).all()
            assert np.isnan(g.square).all()
            assert np.isnan(g.square_stderr).all()
            assert np.isnan(g.radius())

    def test_classes_without_differences(self):
        model = fc.theory.GaussianMixture(np.ones((2, 1, 3, 4)), 2.0)
        np.testing.assert_allclose(model.response_function(1.0).G, [0.8, 0.0, 0.0], atol=1e-15)

    def test_refusals(self):
        model = fc.theory.GaussianMixture(np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 3, 4)), 1.0)
        with pytest.raises(ValueError, match=r"^s: expected a positive"):
            model.response_function(0.0)
        with pytest.raises(ValueError, match=r"^y: expected at least one"):
            model.response_function(1.0, np.zeros((0, 1, 3, 4)))


class TestPatchModel:
    @pytest.mark.parametrize("shape", [(7, 10), (9, 9)])
    def test_nothing_beyond_the_patch(self, rng, shape):
        d = fc.patch.Dictionary.binary(3, 6, seed=int(rng.integers(99)))
        y, s = rng.normal(size=(3, *shape)), 1.2
        theory = fc.theory.PatchTheory(d, shape)
        exact = theory.response_function(s, y)
        sites = int(np.prod(shape))
        D = fc.diffusion.from_patch(d)
        torch_model = fc.response_function(D, torch.from_numpy(y)[:, None], s, columns=sites)
        arrays = fc.response_function(lambda y, s: fc.patch.denoise(d, y, s), y, s, columns=sites)
        assert (torch_model.method, arrays.method) == ("jvp", "central")
        beyond = exact.r > 2**0.5
        for g in (exact, torch_model, arrays):
            assert np.abs(g.square[beyond]).max() == 0
            np.testing.assert_allclose(g.square_samples, exact.square_samples, atol=1e-10)
        assert np.abs(exact.G[beyond]).max() == 0
        assert exact.radius(0.999) <= 2**0.5
        np.testing.assert_allclose(arrays.samples, torch_model.samples, atol=1e-9)
        J = [jacobian(D, torch.from_numpy(one)[None], s) for one in y]
        np.testing.assert_allclose(exact.samples, [over_shells(averaged(one, shape)[0])[0] for one in J], atol=1e-13)
        apart, whole = (np.linalg.norm(x) for x in (np.array(J) - np.transpose(J, (0, 3, 4, 1, 2)), np.array(J)))
        assert exact.asymmetry == pytest.approx(apart / whole)

    def test_average_kernel_is_that_of_the_samplers_response(self, rng):
        d = fc.patch.Dictionary.binary(5, 8, seed=1)
        y = rng.normal(size=(4, 11, 13))
        kernel = fc.patch.response(d, y, 1.5)
        g = fc.theory.PatchTheory(d, (11, 13)).response_function(1.5, y)
        np.testing.assert_allclose(g.moments[:, 0], kernel.gain([0.0, 0.0]).real, atol=1e-12)

    def test_symmetric_point(self):
        """The pair's kernel is 1/s^2 on n x n sites: sums over a square."""
        theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(5, 0), (12, 11))
        g = theory.response_function(4.0)
        lags, _ = lags_of((12, 11))
        inside = (np.abs(lags) <= 2).all(axis=-1) / 16.0
        np.testing.assert_allclose(g.G, over_shells(inside)[0], atol=1e-15)
        np.testing.assert_allclose(g.square, over_shells(inside**2)[0], atol=1e-15)
        assert g.length == pytest.approx(1.0)  # mean x^2 of -2 .. 2 is 2; over 2 d, both axes
        assert g.asymmetry == 0.0
        y = torch.zeros(1, 1, 12, 11, dtype=torch.float64)
        measured = fc.response_function(fc.diffusion.from_patch(theory.dictionary), y, 4.0)
        np.testing.assert_allclose(measured.G, g.G, atol=1e-14)

    def test_refusals(self):
        theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(3, 0), (5, 6))
        with pytest.raises(ValueError, match=r"^y: expected states \(n, \*\(5, 6\)\), got shape \(1, 6, 5\)"):
            theory.response_function(1.0, np.zeros((1, 6, 5)))
        with pytest.raises(ValueError, match=r"^y: NaN or infinite values in state 1"):
            theory.response_function(1.0, np.array([0.0, np.nan])[:, None, None] * np.ones((2, 5, 6)))
        with pytest.raises(ValueError, match=r"^s: "):
            theory.response_function(-1.0)


class TestAsymmetry:
    def test_of_a_planted_map_is_exact(self):
        """a y(x) + b y(x - 1): |J - J^T|^2 = 2 b^2 a site of |J|^2 = a^2 + b^2, in every field of random phase."""
        a, b = 0.8, 0.3
        D = fc.diffusion.from_denoiser(lambda y, s: a * y + b * torch.roll(y, 1, dims=3))
        y = torch.zeros(2, 1, 5, 7, dtype=torch.float64)
        g = fc.response_function(D, y, 1.0)
        assert g.asymmetry == pytest.approx(np.sqrt(2) * b / np.hypot(a, b))
        assert np.isnan(fc.response_function(D, y, 1.0, asymmetry=False).asymmetry)

    def test_no_reverse_mode_no_asymmetry(self):
        class Forward(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x

            @staticmethod
            def jvp(ctx, tangent):
                return 2 * tangent

            @staticmethod
            def vmap(info, in_dims, x):
                return 2 * x, in_dims[0]

        D = fc.diffusion.from_denoiser(lambda x, s: Forward.apply(x))
        y = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
        g = fc.response_function(D, y, 1.0)
        assert np.isnan(g.asymmetry)
        np.testing.assert_allclose(g.G[:2], [2.0, 0.0], atol=1e-8)

    def test_a_part_that_reverse_mode_loses_is_noticed(self):
        def hooked(y, s):
            h = 2 * y
            if h.requires_grad:
                h.register_hook(lambda grad: grad / 2)
            return h

        D = fc.diffusion.from_denoiser(hooked)
        y = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
        with pytest.warns(UserWarning, match="asymmetry: NaN, since reverse mode loses") as said:
            g = fc.response_function(D, y, 1.0, derivative="jvp")
        assert np.isnan(g.asymmetry)
        assert said[0].filename == __file__


class TestStein:
    @pytest.mark.parametrize("states", [2, 8])
    def test_it_is_unbiased_and_its_errors_are_right_for_few_states(self, rng, states):
        """What is taken off D is fitted to other states: of 400 averages of so few, the mean and the spread."""
        model = fc.theory.GaussianMixture(rng.normal(size=(2, 1, 4, 5)), 0.7)
        D = fc.diffusion.from_mixture(model)
        found, errors = [], []
        for draw in range(400):
            x0, _ = model.sample_data(states, seed=draw)
            n = rng.normal(size=x0.shape)
            g = fc.response_function(D, torch.from_numpy(x0 + 1.7 * n), 1.7, method="stein", noise=n)
            found.append(g.G)
            errors.append(g.stderr)
        spread = np.std(found, axis=0)
        within(np.mean(found, axis=0), model.response_function(1.7).G, spread / 20)
        # The spread of 400 is known to 4 %, and so is the mean square error.
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), axis=0)), spread, rtol=0.25)

    def test_what_is_linear_costs_no_noise(self, rng):
        """Plain E[D n]/s has the noise of the images: here ten times that, and more."""
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=(16, 15))
        x0, n, s = theory.sample_data(100, seed=1), rng.normal(size=(100, 16, 15)), 1.0
        y = x0 + s * n
        g = fc.response_function(theory.denoise, y, s, method="stein", noise=n)
        plain = (theory.denoise(y, s) * n).mean(axis=(1, 2)) / s
        assert g.stderr[0] < 0.1 * plain.std(ddof=1) / 10

    def test_one_state_has_no_error(self, rng):
        n = rng.normal(size=(1, 9, 8))
        g = fc.response_function(lambda y, s: 0.5 * y, n, 1.0, method="stein", noise=n)
        expected = np.fft.ifftn(np.abs(np.fft.fftn(n[0])) ** 2).real / 72 * 0.5
        np.testing.assert_allclose(g.G, over_shells(expected)[0], atol=1e-14)
        assert np.isnan(g.stderr).all()

    def test_agrees_with_derivatives_of_a_network(self, rng):
        D = fc.diffusion.from_epsilon(conv_net(7, 2))
        n = rng.normal(size=(1500, 2, 7, 6))
        y = torch.from_numpy(np.tanh(rng.normal(size=(1500, 2, 1, 1))) + 0.8 * n)
        stein = fc.response_function(D, y, 0.8, method="stein", noise=torch.from_numpy(n))
        exact = fc.response_function(D, y, 0.8, columns=0, asymmetry=False)
        within(stein.G, exact.G, np.hypot(stein.stderr, exact.stderr))
        assert stein.stderr[0] < 0.02 * exact.G[0]

    def test_labels_reach_the_network(self, rng):
        model = fc.theory.GaussianMixture(rng.normal(size=(2, 1, 4, 5)), 0.7)
        D = fc.diffusion.from_mixture(model)
        n = rng.normal(size=(30, 1, 4, 5))
        y = torch.from_numpy(model.means[1] + 1.3 * n)
        expected = 0.49 / (0.49 + 1.69)  # of one class, on the site itself
        g = fc.response_function(D, y, 1.3, [1] * 30, method="stein", noise=n, memory=1)
        within(g.G, [expected, *[0.0] * (len(g.G) - 1)], g.stderr)
        products = fc.response_function(D, y, 1.3, 1)
        np.testing.assert_allclose(products.G, [expected, *[0.0] * (len(g.G) - 1)], atol=1e-14)


class TestThirdPartyDenoiser:
    """A bias-free network of 20 convolutions: D(a y) = a D(y), so that J y = D(y); a row of J reaches 20 sites."""

    @pytest.fixture(params=["random weights", *(["trained"] if TRAINED.exists() else [])])
    def weights(self, request):
        if request.param == "trained":
            from safetensors.torch import load_file

            return list(load_file(TRAINED).values())
        generator = torch.Generator().manual_seed(0)
        sizes = [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 18, (1, 64, 3, 3)]
        # Of He's size, so that signals neither grow nor fade; the last one small.
        scales = [(2 / (9 * size[1])) ** 0.5 for size in sizes[:-1]] + [0.2 / 24]
        return [scale * torch.randn(size, generator=generator) for size, scale in zip(sizes, scales, strict=True)]

    @staticmethod
    def denoiser(weights, dtype):
        taps = [w.to(dtype) for w in weights]

        def residual(y, sigma):
            h = y
            for w in taps[:-1]:
                h = torch.relu(torch.nn.functional.conv2d(h, w, padding=1))
            return y - torch.nn.functional.conv2d(h, taps[-1], padding=1)

        return fc.diffusion.from_denoiser(residual)

    @staticmethod
    def noisy_images(count, s, rng):
        pixels = (fc.data.fashion_mnist().pixels()[:count, None] + 1) / 2
        n = rng.normal(size=pixels.shape)
        return torch.from_numpy(pixels + s * n), torch.from_numpy(n)

    def test_j_times_y_is_the_denoised_image(self, weights, rng):
        D, s = self.denoiser(weights, torch.float64), 60 / 255
        y, _ = self.noisy_images(3, s, rng)
        for method in ("jvp", "vjp"):
            product = Derivative(D, s, method, 0.0)(y, y[None], None)[0]
            # 20 layers, sums of 576 products in each.
            assert float((product - D(y, s)).abs().max()) < 1e-11

    def test_rows_reach_20_sites_and_no_less(self, weights, rng):
        D, s = self.denoiser(weights, torch.float64), 60 / 255
        whole = np.tile((fc.data.fashion_mnist().pixels()[7] + 1) / 2, (2, 2))[None, None]
        y = torch.from_numpy(whole + s * rng.normal(size=whole.shape))
        for site in ((27, 30), (20, 35), (33, 22)):
            cotangent = torch.zeros_like(y)
            cotangent[0, 0][site] = 1.0
            row = Derivative(D, s, "jvp", 0.0).transposed(y, cotangent[None], None)[0, 0, 0]
            touched = [x.unique() for x in row.nonzero(as_tuple=True)]
            for axis, at in zip(touched, site, strict=True):
                assert [int(axis.min()), int(axis.max())] == [at - 20, at + 20]

    def test_jvp_and_stein_agree_on_noisy_images(self, weights, rng):
        D, s = self.denoiser(weights, torch.float32), 60 / 255
        images = 60
        y, n = self.noisy_images(images, s, rng)
        stein = fc.response_function(D, y.float(), s, method="stein", noise=n.float())
        exact = fc.response_function(D, y.float(), s, columns=0, asymmetry=False)
        assert exact.method == "jvp"
        # Of the same states, so that what they share drops out.
        apart = stein.samples - exact.samples
        within(apart.mean(axis=0), 0.0, apart.std(axis=0, ddof=1) / images**0.5 + 1e-5)
        assert apart[:, 0].std() / images**0.5 < 0.07 * exact.G[0]


class TestSeeds:
    def test_the_same_bits_again_and_others_of_another_seed(self, rng):
        D = fc.diffusion.from_epsilon(conv_net(1, 2))
        y = torch.from_numpy(rng.normal(size=(4, 2, 6, 7)))
        first, again = (fc.response_function(D, y, 1.0, seed=3, probes=2, columns=2) for _ in range(2))
        for name in ("samples", "square_samples", "moments", "G_matrix", "stderr"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert first.asymmetry == again.asymmetry
        other = fc.response_function(D, y, 1.0, seed=4, probes=2, columns=2)
        assert (other.samples != first.samples).any(axis=1).all()
        assert (other.square_samples != first.square_samples).any(axis=1).all()

    def test_draws_follow_from_the_number_of_the_sample_and_memory_changes_nothing(self, rng):
        D = fc.diffusion.from_epsilon(conv_net(1))
        y = torch.from_numpy(rng.normal(size=(5, 1, 6, 7)))
        whole = fc.response_function(D, y, 1.0, probes=2, columns=3)
        rest = fc.response_function(D, y[2:], 1.0, probes=2, columns=3, first_sample=2)
        small = fc.response_function(D, y, 1.0, probes=2, columns=3, memory=1)
        np.testing.assert_allclose(rest.samples, whole.samples[2:], atol=1e-13)
        np.testing.assert_allclose(rest.square_samples, whole.square_samples[2:], atol=1e-13)
        np.testing.assert_allclose(small.samples, whole.samples, atol=1e-13)
        assert small.asymmetry == pytest.approx(whole.asymmetry)

    def test_drawn_columns_are_unbiased(self, rng):
        D = fc.diffusion.from_epsilon(conv_net(1))
        y = torch.from_numpy(rng.normal(size=(300, 1, 6, 7)))
        some = fc.response_function(D, y, 1.0, asymmetry=False)
        every = fc.response_function(D, y, 1.0, columns=42, asymmetry=False)
        apart = some.square_samples - every.square_samples
        within(apart.mean(axis=0), 0.0, apart.std(axis=0, ddof=1) / 300**0.5)


class TestErrors:
    def test_length_and_radius_have_the_errors_that_they_scatter_by(self, rng):
        means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 6, 7))
        model = fc.theory.GaussianMixture(means, std=0.8)
        lengths, radii, errors = [], [], []
        for draw in range(200):
            x0, _ = model.sample_data(40, seed=draw)
            g = model.response_function(4.0, x0 + 4.0 * rng.normal(size=x0.shape))
            lengths.append(g.length)
            radii.append(g.radius(0.9))
            errors.append((g.length_stderr, g.radius_stderr(0.9)))
        # The spread of 200 draws is known to 5 %; radii are linear between shells, which jackknifes feel.
        np.testing.assert_allclose(np.mean(errors, axis=0), [np.std(lengths), np.std(radii)], rtol=0.35)

    def test_radius_is_where_the_share_lies(self):
        g = fc.theory.PatchTheory(fc.patch.Dictionary.binary(5, 0), (12, 11)).response_function(4.0)
        r = g.r
        # 25 sites alike: 1, 8 in the shell of 1 site, 12 of 2, 4 of 3.
        assert g.radius(1 / 25) == pytest.approx(0.0, abs=1e-12)
        assert g.radius(9 / 25) == pytest.approx(r[1])
        assert g.radius(15 / 25) == pytest.approx((r[1] + r[2]) / 2)
        assert g.radius(0.02) == 0.0
        for share in (0, 1, -0.1, float("nan")):
            with pytest.raises(ValueError, match=r"^share: expected a number between 0 and 1"):
                g.radius(share)

    def test_no_response_has_no_length(self):
        D = fc.diffusion.from_denoiser(lambda y, s: 0 * y)
        g = fc.response_function(D, torch.zeros(2, 1, 4, 5, dtype=torch.float64), 1.0)
        assert not g.G.any()
        assert np.isnan([g.length, g.length_stderr, g.radius(), g.asymmetry]).all()


class TestRefusals:
    y = torch.zeros(2, 1, 5, 6, dtype=torch.float64)
    D = fc.diffusion.from_denoiser(lambda y, s: 0.5 * y)
    n = np.random.default_rng(0).standard_normal((2, 1, 5, 6))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"s": 0.0}, ValueError, r"^s: expected a positive noise level, got 0.0"),
            ({"s": -1.0}, ValueError, r"^s: expected a positive"),
            ({"s": float("nan")}, ValueError, r"^s: expected a positive"),
            ({"method": "vjp"}, ValueError, r"^method: expected one of 'jvp', 'stein', got 'vjp'"),
            ({"derivative": "stein"}, ValueError, r"^derivative: expected one of 'auto'"),
            ({"noise": n}, ValueError, r'^noise: expected None with method="jvp"'),
            ({"method": "stein"}, ValueError, r"^noise: expected the n of y = x0 \+ s n"),
            ({"method": "stein", "noise": n[:1]}, ValueError, r"^noise: expected the shape of y, \(2, 1, 5, 6\)"),
            ({"method": "stein", "noise": n * np.nan}, ValueError, r"^noise: NaN or infinite values .* state 0"),
            ({"method": "stein", "noise": 4 * n}, ValueError, r"^noise: expected independent normal numbers"),
            ({"method": "stein", "noise": n, "probes": 2}, ValueError, r"^probes: expected 1 with"),
            ({"method": "stein", "noise": n, "columns": 0}, ValueError, r"^columns: expected 1 with"),
            ({"method": "stein", "noise": n, "derivative": "jvp"}, ValueError, r"^derivative: expected 'auto' with"),
            ({"method": "stein", "noise": n, "step": 0.1}, ValueError, r"^step: expected None with"),
            ({"probes": 0}, ValueError, r"^probes: expected an integer of at least 1, got 0"),
            ({"columns": -1}, ValueError, r"^columns: expected an integer of at least 0, got -1"),
            ({"columns": 31}, ValueError, r"^columns: expected an integer from 0 to 30, got 31"),
            ({"step": -1.0}, ValueError, r"^step: expected a positive number"),
            ({"seed": -1}, ValueError, r"^seed: "),
            ({"labels": [0, 1]}, ValueError, r"^labels: "),
            ({"y": y[:0]}, ValueError, r"^y: expected a float32 or float64 tensor"),
            ({"y": y.half()}, ValueError, r"^y: expected a float32 or float64 tensor"),
            ({"y": y.numpy()}, ValueError, r"^y: expected a float32 or float64 tensor .*, got ndarray"),
            ({"y": y.numpy(), "method": "stein", "noise": n}, ValueError, r"^y: expected a floating-point tensor"),
            ({"D": "net"}, TypeError, r"^D: expected a Denoiser or a function of arrays, got str"),
            ({"D": lambda y, s: y}, TypeError, r"^D: expected a Denoiser with tensors"),
            ({"D": lambda y, s: y, "y": n, "labels": 0}, ValueError, r"^labels: expected None for a function"),
            ({"D": lambda y, s: y, "y": n[0, 0, 0]}, ValueError, r"^y: expected states \(states, H, W\)"),
            ({"D": lambda y, s: y, "y": n, "s": 0}, ValueError, r"^s: expected a positive number, got 0"),
            ({"D": lambda y, s: y[:, :, 1:], "y": n}, ValueError, r"^D: expected denoised images of the states' shape"),
        ],
    )
    def test_by_name(self, options, error, message):
        given = {"D": self.D, "y": self.y, "s": 1.0} | options
        with pytest.raises(error, match=message):
            fc.response_function(given.pop("D"), given.pop("y"), given.pop("s"), **given)

    @pytest.mark.parametrize("options", [{}, {"method": "stein"}])
    def test_what_is_not_finite_is_named_by_its_state(self, rng, options):
        D = fc.diffusion.from_denoiser(lambda y, s: y * torch.where(y.amax((1, 2, 3), keepdim=True) > 50, torch.nan, 1))
        n = rng.normal(size=(4, 1, 5, 6))
        y = torch.from_numpy(n.copy())
        y[2] += 100.0
        with pytest.raises(FloatingPointError, match=r"^y: the response of state 2 at s = 1 is NaN or infinite"):
            fc.response_function(D, y, 1.0, **options, **({"noise": n} if options else {}))

    @pytest.mark.parametrize("options", [{}, {"method": "stein"}])
    def test_batches_that_matter_are_warned_of_where_it_was_called(self, rng, options):
        D = fc.diffusion.from_denoiser(lambda y, s: y / (1 + y.square().mean()))
        n = rng.normal(size=(3, 1, 5, 6))
        given = {"noise": n} if options else {}
        with pytest.warns(UserWarning, match="depends on the others in its batch") as said:
            fc.response_function(D, torch.from_numpy(n), 1.0, **options, **given)
        assert said[0].filename == __file__
        with pytest.warns(UserWarning, match="depends on the others in its batch") as said:
            fc.mode_response(D, torch.from_numpy(n), 1.0)
        assert said[0].filename == __file__

    def test_a_derivative_that_loses_a_part_is_warned_of_by_its_argument(self):
        D = fc.diffusion.from_denoiser(lambda y, s: 0.25 * y + 0.25 * y.detach())
        y = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
        with pytest.warns(UserWarning, match=r"^derivative: 'jvp' says other .* pass derivative=\"auto\"") as said:
            fc.response_function(D, y, 1.0, derivative="jvp")
        assert said[0].filename == __file__
        g = fc.response_function(D, y, 1.0)
        assert g.method == "central"
        assert g.G[0] == pytest.approx(0.5)

    def test_dropout_is_refused(self):
        net = torch.nn.Dropout(0.5)
        with pytest.warns(UserWarning, match="training mode"):
            D = fc.diffusion.from_denoiser(net_of(net))
        n = np.random.default_rng(0).standard_normal((2, 1, 8, 8))
        for options in ({}, {"method": "stein", "noise": n}):
            with pytest.raises(ValueError, match=r"^D: .* answers the same state otherwise each time"):
                fc.response_function(D, torch.from_numpy(n), 1.0, **options)


def net_of(module):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x, sigma):
            return self.inner(x)

    return Wrapped()
