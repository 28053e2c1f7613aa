"""Theory against closed forms, finite differences of an independent denoiser, and growth along the ODE."""

from __future__ import annotations

import numpy as np
import pytest

import fastcrit as fc
from tests.oracles import patch as oracle


def random_dictionary(rng, P=7, n=5, norms=True, prior=True):
    patterns = rng.standard_normal((P, n, n))
    if not norms:
        patterns /= np.sqrt((patterns**2).sum(axis=(1, 2), keepdims=True))
    return fc.patch.Dictionary(patterns, prior=rng.uniform(0.2, 2.0, P) if prior else None)


def jacobian_row(d, s, L, step=1e-5):
    """dD_(L/2, L/2)/dy_j at y = 0 over all j, by central differences of the oracle, in float64."""
    eye = np.eye(L * L).reshape(L * L, L, L) * step
    up = oracle.denoise(d.patterns, d.prior, eye, s)[:, L // 2, L // 2]
    down = oracle.denoise(d.patterns, d.prior, -eye, s)[:, L // 2, L // 2]
    return ((up - down) / (2 * step)).reshape(L, L)


class TestUniformPair:
    @pytest.mark.parametrize("n", [1, 3, 5, 7])
    def test_critical_level_is_n_and_time_log_1_plus_n2(self, n):
        th = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=n, random=0), lattice=40)
        assert th.critical_level() == pytest.approx(n, abs=1e-9)
        assert th.critical_time(fc.schedules.OrnsteinUhlenbeck()) == pytest.approx(np.log(1 + n * n), abs=1e-9)
        assert th.critical_mode() == (0.0, 0.0)

    def test_log_26(self):
        th = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=5, random=0), lattice=80)
        assert th.critical_time(fc.schedules.OrnsteinUhlenbeck()) == pytest.approx(3.258096538021482, abs=1e-9)

    def test_kernel_spectrum_is_the_dirichlet_kernel(self, rng):
        th = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=5, random=0), lattice=80)
        k = rng.uniform(0.05, 3.0, (20, 2))
        np.testing.assert_allclose(
            th.kernel_spectrum(k, 2.0), np.prod(np.sin(2.5 * k) / np.sin(k / 2), axis=1), atol=1e-12
        )

    @pytest.mark.parametrize("s", [5.5, 8.0, 30.0])
    def test_ginzburg_landau_and_xi_eq_closed_forms(self, s):
        n = 5
        th = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=n, random=0), lattice=80)
        gl = th.ginzburg_landau(s)
        a = n**2 / s**2
        assert gl.r == pytest.approx(1 - a)
        assert gl.c == pytest.approx(n**2 * (n**2 - 1) / (24 * s**2))
        assert gl.u == pytest.approx(a**3 / 3)
        assert th.xi_eq(s) == pytest.approx(np.sqrt(gl.c / gl.r))

    def test_xi_eq_is_nan_below_the_critical_level(self):
        th = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=3, random=0), lattice=10)
        assert np.isnan(th.xi_eq(2.9))


class TestLinearResponse:
    @pytest.mark.parametrize("trial", range(6))
    def test_gain_agrees_with_a_finite_difference_jacobian(self, trial):
        rng = np.random.default_rng(trial)
        d = random_dictionary(rng, P=3 + 2 * trial, n=(3, 5, 7)[trial % 3])
        s, L = float(rng.uniform(0.8, 4.0)), 11
        th = fc.theory.PatchTheory(d, lattice=L)
        row = jacobian_row(d, s, L)
        n = rng.integers(0, L, (12, 2))
        k = 2 * np.pi * n / L
        offset = np.arange(L) - L // 2
        waves = np.exp(1j * (k[:, 0, None, None] * offset[:, None] + k[:, 1, None, None] * offset))
        expected = (row * waves).sum(axis=(1, 2))
        # Central differences at step 1e-5 err by their third derivative times 1e-10 and by rounding of 1e-16/1e-5.
        np.testing.assert_allclose(th.gain(k, s), expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("trial", range(4))
    def test_critical_level_is_where_the_largest_gain_is_one(self, trial):
        rng = np.random.default_rng(100 + trial)
        half = random_dictionary(rng, P=5)
        d = fc.patch.Dictionary(np.concatenate([half.patterns, -half.patterns]), np.tile(half.prior, 2))
        th = fc.theory.PatchTheory(d, lattice=24)
        k = 2 * np.pi * np.stack(np.meshgrid(np.arange(24), np.arange(24), indexing="ij"), axis=-1).reshape(-1, 2) / 24
        s = th.critical_level()
        gains = th.gain(k, s).real
        assert gains.max() == pytest.approx(1.0, abs=1e-9)
        for above in s * np.geomspace(1.001, 30, 60):
            assert th.gain(k, above).real.max() < 1
        assert th.gain(th.critical_mode(), s).real == pytest.approx(1.0, abs=1e-9)

    def test_no_transition_means_that_no_gain_reaches_one(self):
        # The pattern of smallest norm wins as s falls, before any mode has become soft.
        patterns = np.stack([np.ones((3, 3)), np.zeros((3, 3))])
        th = fc.theory.PatchTheory(fc.patch.Dictionary(patterns, prior=[0.05, 0.95]), lattice=12)
        k = 2 * np.pi * np.stack(np.meshgrid(np.arange(12), np.arange(12), indexing="ij"), axis=-1).reshape(-1, 2) / 12
        assert max(th.gain(k, s).real.max() for s in np.geomspace(0.05, 50, 500)) < 1
        with pytest.raises(fc.NoTransitionError, match="no mode reaches gain 1"):
            th.critical_level()

    def test_a_transition_far_below_the_largest_pattern_is_found(self):
        o = np.ones((5, 5))
        th = fc.theory.PatchTheory(fc.patch.Dictionary(np.stack([0.04 * o, -0.04 * o, 10 * o])), lattice=20)
        assert th.critical_level() == pytest.approx(0.2, rel=1e-3)

    def test_a_stripe_dictionary_has_a_finite_wavelength(self):
        stripes = np.stack(
            [np.cos(2 * np.pi * (np.arange(-3, 4) / 4 + phase))[None] * np.ones((7, 1)) for phase in (0, 0.5)]
        )
        th = fc.theory.PatchTheory(fc.patch.Dictionary(stripes), lattice=40)
        k = th.critical_mode()
        # Wavelength 4 along the second axis, up to the window's finite width.
        assert k[0] == 0
        assert abs(abs(k[1]) - np.pi / 2) < 0.3
        assert np.isnan(th.xi_eq(2 * th.critical_level())) == (th.ginzburg_landau(2 * th.critical_level()).c < 0)

    def test_ginzburg_landau_u_from_the_third_derivative(self, rng):
        half = rng.standard_normal((4, 3, 3))
        d = fc.patch.Dictionary(np.concatenate([half, -half]))  # symmetric: no quadratic term
        s = 3.0
        th = fc.theory.PatchTheory(d, lattice=9)
        amplitude = 0.05 * np.array([1, 2, 3])
        D = [oracle.denoise(d.patterns, d.prior, np.full((1, 9, 9), a), s)[0, 4, 4] for a in amplitude]
        gl = th.ginzburg_landau(s)
        # D(a) = (1 - r) a - u a^3 + O(a^5); odd, so two amplitudes eliminate the fifth order.
        f = (np.array(D) / amplitude - (1 - gl.r)) / amplitude**2
        u = -(4 * f[0] - f[1]) / 3
        assert gl.u == pytest.approx(u, rel=2e-3)

    @pytest.mark.parametrize("wave", [(0, 0), (1, 0), (2, 1)])
    def test_small_amplitudes_grow_along_the_ode_as_predicted(self, wave, rng):
        d = random_dictionary(rng, norms=False, prior=False)
        d = fc.patch.Dictionary(np.concatenate([d.patterns, -d.patterns]) * 4)
        L, s0, s1 = 20, 5.0, 2.5
        th = fc.theory.PatchTheory(d, lattice=L)
        k = 2 * np.pi * np.array(wave) / L
        x, y = np.meshgrid(np.arange(L), np.arange(L), indexing="ij")
        e = np.exp(1j * (k[0] * x + k[1] * y))
        start = 1e-4 * np.real(e)[None]
        end = fc.patch.sample(d, L, 1, np.geomspace(s0, s1, 400), solver="heun", initial=start, dtype=np.float64)
        ratio = np.abs((end[0] * np.conj(e)).sum()) / np.abs((start[0] * np.conj(e)).sum())
        C = th.kernel_spectrum(k, 1.0).real  # equal norms: the same at every level
        predicted = -np.log(s0 / s1) + C * (s1**-2 - s0**-2) / 2
        assert th.log_growth(k, s0, s1) == pytest.approx(predicted, rel=1e-9, abs=1e-12)
        assert np.log(ratio) == pytest.approx(predicted, rel=0.005)

    def test_log_growth_with_unequal_norms(self, rng):
        half = rng.standard_normal((5, 3, 3)) * rng.uniform(0.5, 2, (5, 1, 1))
        d = fc.patch.Dictionary(np.concatenate([half, -half]))
        th = fc.theory.PatchTheory(d, lattice=12)
        start = np.full((1, 12, 12), 1e-5)
        end = fc.patch.sample(d, 12, 1, np.geomspace(4, 1.5, 500), solver="heun", initial=start, dtype=np.float64)
        assert np.log(end.mean() / start.mean()) == pytest.approx(th.log_growth([0.0, 0.0], 4.0, 1.5), rel=0.005)


class TestPositionSpecific:
    def test_largest_eigenvalue_agrees_with_the_dense_jacobian(self, rng):
        images = rng.standard_normal((6, 7, 8))
        d = fc.patch.Dictionary(images, size=3, position_specific=True, prior=rng.uniform(1, 2, 6))
        s, step = 1.3, 1e-5
        eye = np.eye(56).reshape(56, 7, 8) * step
        up = oracle.denoise_by_site(images, d.prior, eye, s, 3)
        down = oracle.denoise_by_site(images, d.prior, -eye, s, 3)
        J = ((up - down) / (2 * step)).reshape(56, 56).T
        th = fc.theory.PatchTheory(d)
        assert th.largest_eigenvalue(s) == pytest.approx(np.linalg.eigvals(J).real.max(), abs=1e-7)
        critical = th.critical_level()
        assert th.largest_eigenvalue(critical) == pytest.approx(1.0, abs=1e-8)

    def test_images_with_a_symmetry_and_single_images(self):
        x = np.random.default_rng(126).normal(size=(8, 8))
        odd = x - x[:, ::-1]
        step = np.where(np.arange(8) < 4, 1.0, -1.0) * np.ones((8, 1))
        for image, n in ((odd, 3), (step, 15)):
            images = np.stack([image, -image])
            eye = 1e-6 * np.eye(64).reshape(64, 8, 8)
            up, down = (oracle.denoise_by_site(images, [0.5, 0.5], sign * eye, 2.0, n) for sign in (1, -1))
            dense = np.linalg.eigvals(((up - down) / 2e-6).reshape(64, 64).T).real.max()
            theory = fc.theory.PatchTheory(fc.patch.Dictionary(images, size=n, position_specific=True))
            assert theory.largest_eigenvalue(2.0) == pytest.approx(dense, rel=1e-6)
        assert theory.critical_level() == pytest.approx(8.0)  # +-step: sqrt of the 64 sites
        alone = fc.theory.PatchTheory(fc.patch.Dictionary(odd[None], size=3, position_specific=True))
        assert alone.largest_eigenvalue(1.0) == 0.0

    def test_the_whole_image_gives_speciation(self, rng):
        images = rng.standard_normal((20, 6, 6))
        images /= np.sqrt((images**2).sum(axis=(1, 2), keepdims=True))
        d = fc.patch.Dictionary(images, size=11, position_specific=True)
        # Equal norms and a patch that is everything: J = Cov(x0)/s^2, so s_c is the speciation level.
        assert fc.theory.PatchTheory(d).critical_level() == pytest.approx(fc.theory.speciation_level(images), rel=1e-9)

    def test_plane_waves_are_refused(self, rng):
        d = fc.patch.Dictionary(rng.standard_normal((3, 6, 6)), size=3, position_specific=True)
        th = fc.theory.PatchTheory(d)
        for call in (lambda: th.gain([0.0, 0.0], 1.0), th.critical_mode, lambda: th.xi_eq(1.0)):
            with pytest.raises(ValueError, match="position-specific"):
                call()


class TestPitchfork:
    def test_critical_level_and_branches(self):
        p = fc.theory.pitchfork(64)
        assert p.critical_level() == 8.0
        assert p.gain(8.0) == 1.0
        assert p.magnetisation(8.5) == 0.0
        m = p.magnetisation(4.0)
        assert m == pytest.approx(np.tanh(64 * m / 16), abs=1e-12)
        assert 0.99 < m < 1
        # Just below the critical level m = sqrt(3 (1 - 1/a)) up to higher orders.
        a = 1.001
        assert p.magnetisation(8.0 / np.sqrt(a)) == pytest.approx(np.sqrt(3 * (a - 1)), rel=0.01)

    def test_denoiser_is_the_posterior_mean_of_two_configurations(self, rng):
        y, s = rng.standard_normal((5, 4, 4)), 2.0
        up = np.exp(-((y - 1) ** 2).sum((1, 2)) / (2 * s**2))
        down = np.exp(-((y + 1) ** 2).sum((1, 2)) / (2 * s**2))
        expected = ((up - down) / (up + down))[:, None, None] * np.ones((4, 4))
        np.testing.assert_allclose(fc.theory.pitchfork(16).denoise(y, s), expected, rtol=1e-12)

    def test_integers_are_numbers(self):
        assert fc.theory.pitchfork(4).denoise(np.ones((1, 4), int), 1.0)[0, 0] == pytest.approx(np.tanh(4))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="n_sites: expected at least 1, got 0"):
            fc.theory.pitchfork(0)
        with pytest.raises(ValueError, match="y: expected"):
            fc.theory.pitchfork(4).denoise(np.zeros((2, 3)), 1.0)


class TestSpeciation:
    def test_is_the_root_of_the_largest_eigenvalue(self, rng):
        x = rng.standard_normal((50, 3, 4)) @ rng.standard_normal((4, 4))
        C = np.cov(x.reshape(50, -1).T, bias=True)
        assert fc.theory.speciation_level(x) == pytest.approx(np.sqrt(np.linalg.eigvalsh(C)[-1]), rel=1e-10)
        wide = rng.standard_normal((5, 100))
        C = np.cov(wide.T, bias=True)
        assert fc.theory.speciation_level(wide) == pytest.approx(np.sqrt(np.linalg.eigvalsh(C)[-1]), rel=1e-10)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"data: expected .* at least 2 samples"):
            fc.theory.speciation_level(np.zeros((1, 4)))
        with pytest.raises(ValueError, match="data: NaN or infinite value in sample 2"):
            fc.theory.speciation_level(np.array([[0.0], [1.0], [np.nan]]))


class TestBadInput:
    def test_messages(self, rng):
        d = fc.patch.Dictionary.binary(size=5, random=0)
        with pytest.raises(ValueError, match=r"lattice: patterns of side 5 are larger than the lattice \(4, 4\)"):
            fc.theory.PatchTheory(d, lattice=4)
        with pytest.raises(ValueError, match="lattice: expected one side or"):
            fc.theory.PatchTheory(d)
        with pytest.raises(ValueError, match="lattice: expected one side or"):
            fc.theory.PatchTheory(d, lattice="big")
        th = fc.theory.PatchTheory(d, lattice=8)
        with pytest.raises(ValueError, match="s: expected a positive number, got 0"):
            th.gain([0.0, 0.0], 0)
        with pytest.raises(ValueError, match=r"k: expected wavevectors of shape \(\.\.\., 2\)"):
            th.gain([0.0], 1.0)
        with pytest.raises(fc.NoTransitionError, match="one and the same value"):
            fc.theory.PatchTheory(fc.patch.Dictionary(np.ones((1, 3, 3))), lattice=8).critical_level()
        images = fc.patch.Dictionary(rng.standard_normal((3, 6, 5)), size=3, position_specific=True)
        with pytest.raises(ValueError, match="lattice: a position-specific dictionary lives on its images"):
            fc.theory.PatchTheory(images, lattice=8)
