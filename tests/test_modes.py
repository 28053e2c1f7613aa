"""Mode gains of denoisers: against theory, against each other's way of differentiating, against J written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._kernels.lattice import lattice
from fastcrit._response.probes import waves_of_shell
from tests.networks import SmallConvolutional


def all_modes_of(shape, shell):
    """Integer wavenumbers of a shell by the definition: |k| over the largest fundamental, rounded, ties up."""
    n = np.stack(np.meshgrid(*[np.fft.fftfreq(side) for side in shape], indexing="ij"), axis=-1).reshape(-1, 2)
    width = max(1 / side for side in shape)
    number = np.floor(np.sqrt((n**2).sum(axis=1)) / width + 0.5 + 1e-9).astype(int)
    number[(number == 0) & (n != 0).any(axis=1)] = 1
    return 2 * np.pi * n[number == shell]


class TestAgainstTheory:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
    @pytest.mark.parametrize("shape", [(12, 16), (9, 9), (7, 10)])
    def test_gaussian_denoiser(self, dtype, tolerance, shape):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=shape)
        D = fc.diffusion.from_gaussian(theory)
        y = torch.randn(3, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        shells = range(min(shape) // 2)
        for s in (0.3, 2.0, 30.0):
            g = fc.mode_response(D, y, s, shells)
            expected = [theory.gain(all_modes_of(shape, k), s).real.mean() for k in shells]
            np.testing.assert_allclose(g.gain, expected, atol=tolerance)
            np.testing.assert_allclose(g.samples, np.tile(expected, (3, 1)), atol=tolerance)
            assert (g.stderr <= tolerance).all()
            # Exact for rounding: a sum of the squares of N components.
            assert (g.leakage < 100 * tolerance).all()

    @pytest.mark.parametrize("seed", [1, 4])
    def test_patch_model_at_the_symmetric_point(self, seed):
        d = fc.patch.Dictionary.binary(5, 8, seed=seed)
        theory = fc.theory.PatchTheory(d, 15)
        D = fc.diffusion.from_patch(d)
        for s in (1.5, 4.0):
            for dtype in (torch.float32, torch.float64):
                g = fc.mode_response(D, torch.zeros(1, 1, 15, 15, dtype=dtype), s)
                expected = [theory.gain(all_modes_of((15, 15), k), s).real.mean() for k in range(6)]
                np.testing.assert_allclose(g.gain, expected, atol=1e-5)
                assert np.isnan(g.stderr).all()  # one state

    def test_patch_model_on_trajectories_equals_its_posterior_covariance(self, rng):
        d = fc.patch.Dictionary.binary(3, 6, seed=2)
        y = rng.normal(size=(4, 11, 11))
        g = fc.mode_response(fc.diffusion.from_patch(d), torch.from_numpy(y)[:, None], 1.2, range(4))
        response = fc.patch.response(d, y, 1.2)
        for k in range(4):
            expected = response.gain(all_modes_of((11, 11), k)).real.mean(axis=1)
            np.testing.assert_allclose(g.samples[:, k], expected, atol=1e-10)

    def test_equilibrium_length_of_a_response(self):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=32)
        g = fc.mode_response(fc.diffusion.from_gaussian(theory), torch.zeros(1, 1, 32, 32, dtype=torch.float64), 1.0)
        # 1 - g = s^2/(P + s^2): not linear in k^2, so within the curvature over four shells.
        assert fc.dispersion_length(g) == pytest.approx(theory.xi_eq(1.0), rel=0.02)
        assert g.softest == 0.0


class TestAgainstTheJacobian:
    @pytest.mark.parametrize(("channels", "shape"), [(1, (6, 9)), (3, (6, 9)), (3, (7, 5))])
    @pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
    def test_every_number_from_j_written_out(self, channels, shape, padding_mode):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            net = SmallConvolutional(channels, padding_mode=padding_mode).double().eval()
        D = fc.diffusion.from_epsilon(net)
        s, shells = 1.3, range(min(shape) // 2 + 1)
        y = torch.randn(2, channels, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        g = fc.mode_response(D, y, s, shells)
        N = shape[0] * shape[1]
        x = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 2)
        matrices = np.empty((2, len(shells), channels, channels))
        leaks, drift2 = np.empty((2, 2, len(shells)))
        for i in range(2):
            J = (
                torch.autograd.functional.jacobian(lambda y: D(y, s), y[i : i + 1])
                .numpy()
                .reshape(channels, N, channels, N)
            )
            for shell in shells:
                matrix, leak = [], []
                for k in all_modes_of(shape, shell):
                    e = np.exp(1j * x @ k) / np.sqrt(N)
                    matrix.append(np.einsum("i,aibj,j->ab", e.conj(), J, e))
                    for c in range(channels):
                        Je = J[:, :, c] @ e
                        leak.append(np.linalg.norm(Je - (Je @ e.conj())[:, None] * e) / np.linalg.norm(Je))
                np.testing.assert_allclose(np.mean(matrix, axis=0).imag, 0, atol=1e-12)  # k and -k
                matrices[i, shell], leaks[i, shell] = np.mean(matrix, axis=0).real, np.mean(leak)
                drift2[i, shell] = np.mean(np.diagonal(matrix, axis1=1, axis2=2).imag ** 2)
        gains = np.trace(matrices, axis1=2, axis2=3) / channels
        np.testing.assert_allclose(g.matrix_samples, matrices, atol=1e-12)
        np.testing.assert_allclose(g.diagonal_gain, gains.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(g.leakage, leaks.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(g.drift, np.sqrt(drift2.mean(axis=0)), atol=1e-12)
        np.testing.assert_allclose(g.stderr, g.samples.std(axis=0, ddof=1) / np.sqrt(2), atol=1e-12)
        if channels == 1:
            np.testing.assert_allclose(g.samples, gains, atol=1e-12)

    def test_leakage_is_that_of_broken_equivariance(self):
        y = torch.full((1, 1, 12, 12), 0.3)
        leakage = {}
        for padding in ("circular", "zeros"):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                net = fc.diffusion.Net(
                    fc.diffusion.NetConfig(shape=(1, 12, 12), width=8, multipliers=(1,), padding=padding)
                )
                for p in net.parameters():
                    torch.nn.init.normal_(p, std=0.1)
            D = fc.diffusion.from_edm(net.eval(), unlabelled=True)
            leakage[padding] = fc.mode_response(D, y, 1.0, range(4)).leakage
        # float32 through a dozen layers.
        assert leakage["circular"].max() < 1e-4
        assert leakage["zeros"].min() > 1e-2

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
    def test_three_ways_to_differentiate_agree(self, dtype, tolerance):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = SmallConvolutional().to(dtype).eval()
        D = fc.diffusion.from_epsilon(net)
        y = 2 * torch.randn(2, 1, 10, 10, dtype=dtype, generator=torch.Generator().manual_seed(0))
        found = {m: fc.mode_response(D, y, 1.5, range(4), method=m) for m in ("jvp", "vjp", "central")}
        for method, g in found.items():
            assert g.method == method
            np.testing.assert_allclose(g.samples, found["jvp"].samples, atol=tolerance)
            np.testing.assert_allclose(g.leakage, found["jvp"].leakage, atol=10 * tolerance)


class TestChoiceOfMethod:
    def test_an_operation_without_forward_rule_falls_back_to_reverse_twice(self):
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x**2

            @staticmethod
            def backward(ctx, grad):
                (x,) = ctx.saved_tensors
                return 2 * x * grad

        D = fc.diffusion.from_denoiser(lambda x, s: Square.apply(x))
        y = torch.full((1, 1, 6, 6), 0.4, dtype=torch.float64)
        g = fc.mode_response(D, y, 1.0, range(3))
        assert g.method == "vjp"
        np.testing.assert_allclose(g.gain, 0.8, atol=1e-12)

    def test_no_derivatives_at_all_fall_back_to_differences(self):
        D = fc.diffusion.from_denoiser(lambda x, s: torch.from_numpy(np.tanh(x.detach().numpy())))
        y = torch.full((1, 1, 6, 6), 0.4, dtype=torch.float64)
        g = fc.mode_response(D, y, 1.0, range(3))
        assert g.method == "central"
        np.testing.assert_allclose(g.gain, 1 - np.tanh(0.4) ** 2, atol=1e-8)

    def test_a_derivative_that_is_cut_off_inside_is_found_out(self):
        # Half of the response goes through a detached branch: jvp runs, and is wrong.
        D = fc.diffusion.from_denoiser(lambda x, s: 0.25 * x + 0.25 * x.detach())
        y = torch.randn(1, 1, 6, 6, dtype=torch.float64)
        g = fc.mode_response(D, y, 1.0, range(3))
        assert g.method == "central"
        np.testing.assert_allclose(g.gain, 0.5, atol=1e-10)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("s", [0.05, 0.1, 1.0])
    def test_a_sharp_denoiser_is_measured_on_its_own_scale(self, s, dtype):
        """The uniform pair at y = 0 responds within s^2/25: far below the size of the states."""
        D = fc.diffusion.from_patch(fc.patch.Dictionary.binary(5, 0))
        for method in ("auto", "central"):
            g = fc.mode_response(D, torch.zeros(1, 1, 10, 10, dtype=dtype), s, [0], method=method)
            assert g.gain[0] == pytest.approx(25 / s**2, rel=5e-3)
            assert g.method == ("jvp" if method == "auto" else "central")

    def test_attention_has_forward_derivatives(self):
        class Attention(torch.nn.Module):
            def forward(self, x, t):
                tokens = x.flatten(2).transpose(1, 2)
                out = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
                return out.transpose(1, 2).reshape(x.shape)

        D = fc.diffusion.from_epsilon(Attention().eval())
        y = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = {m: fc.mode_response(D, y, 1.0, range(2), method=m) for m in ("auto", "central")}
        assert found["auto"].method == "jvp"
        np.testing.assert_allclose(found["auto"].samples, found["central"].samples, atol=1e-8)


class TestSamplingOfWaves:
    def test_waves_of_a_shell_are_one_of_each_pair(self):
        for shape in ((8, 8), (7, 9), (6, 10), (1, 8)):
            for shell in range(len(lattice(shape).shell_k)):
                k, own = waves_of_shell(shape, shell)
                expected = {tuple(np.rint(m * np.array(shape) / (2 * np.pi)).astype(int) % shape) for m in
                            (all_modes_of(shape, shell) if min(shape) > 1 else [])}  # fmt: skip
                both = {tuple(np.rint(sign * v * np.array(shape) / (2 * np.pi)).astype(int) % shape)
                        for v in k for sign in (1, -1)}  # fmt: skip
                assert len(both) == 2 * (~own).sum() + own.sum() == lattice(shape).shell_modes[shell]
                if min(shape) > 1:
                    assert both == expected

    def test_drawn_waves_estimate_the_same_gain_and_follow_from_the_seed(self):
        d = fc.patch.Dictionary.binary(3, 6, seed=2)
        D = fc.diffusion.from_patch(d)
        y = torch.randn(200, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        every = fc.mode_response(D, y, 1.2, range(4))
        some = fc.mode_response(D, y, 1.2, range(4), waves=2, seed=7)
        # 4 standard errors of the paired differences.
        difference = some.samples - every.samples
        error = difference.std(axis=0, ddof=1) / np.sqrt(200)
        assert (np.abs(difference.mean(axis=0)) <= 4 * error + 1e-12).all()
        again = fc.mode_response(D, y, 1.2, range(4), waves=2, seed=7, memory=1 << 16)
        np.testing.assert_allclose(again.samples, some.samples, atol=1e-13)
        other = fc.mode_response(D, y[:3], 1.2, range(4), waves=2, seed=8)
        assert np.abs(other.samples - some.samples[:3]).max() > 1e-6

    @pytest.mark.parametrize(("side", "shell"), [(4, 2), (6, 3), (8, 4)])
    def test_drawn_waves_are_unbiased_where_a_shell_holds_nyquist_modes(self, side, shell):
        """A gain of 1 at modes that are their own opposites and 0 elsewhere."""
        own = np.zeros((side, side))
        own[np.ix_([0, side // 2], [0, side // 2])] = 1.0
        response = torch.from_numpy(own)
        D = fc.diffusion.from_denoiser(lambda x, s: torch.fft.ifft2(response * torch.fft.fft2(x)).real)
        y = torch.zeros(3000, 1, side, side, dtype=torch.float64)
        expected = fc.mode_response(D, y[:1], 1.0, [shell]).gain[0]
        for waves in (1, 2):
            some = fc.mode_response(D, y, 1.0, [shell], waves=waves)
            assert some.gain[0] == pytest.approx(expected, abs=4.5 * some.stderr[0])

    def test_waves_follow_from_the_number_of_the_sample(self):
        D = fc.diffusion.from_patch(fc.patch.Dictionary.binary(3, 6, seed=2))
        y = torch.randn(6, 1, 9, 9, dtype=torch.float64)
        whole = fc.mode_response(D, y, 1.0, range(4), waves=1).samples
        rest = fc.mode_response(D, y[2:], 1.0, range(4), waves=1, first_sample=2).samples
        np.testing.assert_allclose(rest, whole[2:], atol=1e-13)

    def test_a_small_memory_limit_gives_the_same(self):
        D = fc.diffusion.from_epsilon(SmallConvolutional().double().eval())
        y = torch.randn(5, 1, 8, 8, dtype=torch.float64)
        whole, small = (fc.mode_response(D, y, 1.0, range(3), memory=m) for m in (1 << 30, 1))
        np.testing.assert_allclose(small.samples, whole.samples, atol=1e-12)


class TestBound:
    def test_deficit_of_gaussian_response_is_zero_and_of_none_is_one(self):
        P = np.array([4.0, 1.0, 0.25])
        bound = fc.modes.gaussian_bound(P, 1.5)
        np.testing.assert_allclose(bound, P / (P + 2.25))
        np.testing.assert_allclose(fc.modes.response_deficit(bound, bound), 0, atol=1e-15)
        np.testing.assert_allclose(fc.modes.response_deficit(0 * bound, bound), 1)

    def test_exact_posterior_stays_below_it(self):
        """Two points at +-1 on every site together: E g_0 = mmse/s^2 on y = x0 + s noise, below P/(P + s^2)."""
        d = fc.patch.Dictionary.binary(3, 0)
        generator = torch.Generator().manual_seed(0)
        x0 = torch.sign(torch.randn(4000, 1, 1, 1, dtype=torch.float64, generator=generator)).expand(-1, 1, 3, 3)
        noise = torch.randn(4000, 1, 3, 3, dtype=torch.float64, generator=generator)
        for s in (1.0, 3.0, 8.0):
            y = x0 + s * noise
            g = fc.mode_response(fc.diffusion.from_patch(d), y, s, [0])
            deficit = fc.modes.response_deficit(g.gain, fc.modes.gaussian_bound(9.0, s))  # P_0 = N <m^2> = 9
            assert deficit[0] > -3 * g.stderr[0] / fc.modes.gaussian_bound(9.0, s)
            # mmse of a +-1 spin in total noise variance s^2/9, by quadrature.
            z = np.linspace(-8, 8, 4001)
            weight = np.exp(-(z**2) / 2)
            m = np.tanh((1 + s / 3 * z) * 9 / s**2)
            mmse = 9 * (1 - np.average(m**2, weights=weight))
            assert g.gain[0] == pytest.approx(mmse / s**2, abs=4 * g.stderr[0])


class TestErrors:
    def test_messages_name_the_argument(self):
        D = fc.diffusion.from_epsilon(SmallConvolutional().eval(), shape=(1, 6, 6))
        y = torch.zeros(2, 1, 6, 6)
        run = fc.mode_response
        for call, error, message in (
            (lambda: run(D, y.numpy(), 1.0), ValueError, "y: expected a float32 or float64 tensor"),
            (lambda: run(D, y.half(), 1.0), ValueError, "got torch.float16"),
            (lambda: run(D, torch.zeros(2, 1, 9, 8), 1.0), ValueError, "y: .* takes states"),
            (lambda: run(D, y, -1.0), ValueError, "s: expected a positive noise level"),
            (lambda: run(D, y, 1.0, [2, 1]), ValueError, "shells: expected ascending numbers below"),
            (lambda: run(D, y, 1.0, [99]), ValueError, "shells: expected ascending numbers below"),
            (lambda: run(D, y, 1.0, []), ValueError, "shells: expected ascending numbers below"),
            (lambda: run(D, y, 1.0, method="fd"), ValueError, "method: expected one of"),
            (lambda: run(D, y, 1.0, waves=0), ValueError, "waves: expected a positive integer"),
            (lambda: run(D, y, 1.0, probe="phases"), ValueError, "probe: expected one of"),
            (lambda: run(D, y, 1.0, probe="random_phase", waves=2), ValueError, "waves: expected None with probe="),
            (lambda: run(D, y, 1.0, probe="random_phase", probes=0), ValueError, "probes: expected an integer"),
            (lambda: run(D, y, 1.0, probes=2), ValueError, 'probes: expected 1 with probe="waves"'),
            (lambda: run(D, y, 1.0, step=-1.0), ValueError, "step: expected a positive number"),
            (lambda: run(D, y, 1.0, labels=[1, 2]), ValueError, "labels: .* takes no labels"),
            (lambda: run(D, y + float("nan"), 1.0, [0]), FloatingPointError, "y: the response of state 0 at s = 1"),
            (
                lambda: run(D, y + torch.tensor([0, np.inf])[:, None, None, None], 1.0, probe="random_phase"),
                FloatingPointError,
                "y: the response of state 1 at s = 1",
            ),
        ):
            with pytest.raises(error, match=message):
                call()
