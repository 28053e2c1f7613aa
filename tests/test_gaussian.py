"""The exact Gaussian model: its marginals along ODE and SDE, its gains, and no transition anywhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import fastcrit as fc
from tests.oracles.spectra import shell_average, shell_numbers

LEVELS = fc.schedules.log_levels(12, high=20.0, low=0.05)


@pytest.fixture(scope="module")
def model():
    return fc.theory.GaussianTheory.ornstein_zernike(xi=2.5, lattice=(20, 20))


class TestTrajectories:
    @pytest.mark.parametrize("solver", ["ode", "sde"])
    def test_s_is_p_plus_s_squared_at_every_level(self, model, solver):
        rec = fc.Recorder(LEVELS, shape=(20, 20))
        model.sample(LEVELS, 3000, solver=solver, seed=4, recorder=rec)
        ds = rec.dataset()
        P = shell_average(model.spectrum)[1]
        expected = P + LEVELS[:, None] ** 2
        within = np.abs(ds.S - expected) < 4 * ds.S_stderr
        assert within.mean() >= 0.99

    def test_the_sde_keeps_less_of_the_start_than_the_ode(self, model):
        start = model.sample(LEVELS[:1], 200, seed=1)
        ode = model.sample(LEVELS, 200, solver="ode", seed=1)
        sde = model.sample(LEVELS, 200, solver="sde", seed=1)
        along = [float(np.corrcoef(start.ravel(), end.ravel())[0, 1]) for end in (ode, sde)]
        assert along[0] > 0.3
        # 80,000 pixels: 5 standard errors of a zero correlation are 0.02, and more as neighbours are correlated.
        assert abs(along[1]) < 0.1

    def test_the_ode_step_is_the_solution_of_dy_ds(self, model, rng):
        # Heun with many steps against the closed form, from the same start.
        s, t = 2.0, 1.0
        y = model.sample_data(3, seed=0) + s * rng.standard_normal((3, 20, 20))
        exact = model._filter(y, np.sqrt((model._half + t**2) / (model._half + s**2)))
        z = y.copy()
        grid = np.linspace(s, t, 201)
        for a, b in pairwise(grid):
            k1 = (z - model.denoise(z, a)) / a
            k2 = (z + (b - a) * k1 - model.denoise(z + (b - a) * k1, b)) / b
            z = z + (b - a) * (k1 + k2) / 2
        # Heun's error at step h = 0.005 is of order h^2.
        np.testing.assert_allclose(z, exact, atol=1e-4)

    @pytest.mark.parametrize("form", ["white", "with a white part", "gaussian", "power law", "squared", "images"])
    def test_no_transition_for_any_spectrum(self, form):
        k2 = 4 * np.sin(np.pi * np.fft.fftfreq(28)) ** 2
        k2 = k2[:, None] + k2
        images = fc.data.fashion_mnist().pixels()
        power = (np.abs(np.fft.fft2(images - images.mean(0))) ** 2).mean(0) / 784
        spectrum = {
            "white": np.ones((28, 28)),
            "with a white part": 1 / (1 / 16 + k2) + 0.05,
            "gaussian": 4 * np.exp(-4 * k2),
            "power law": 1 / (k2 + 1e-3),
            "squared": 1 / (1 / 9 + k2) ** 2,
            "images": (power + np.roll(np.flip(power), 1, (0, 1))) / 2,
        }[form]
        model = fc.theory.GaussianTheory(spectrum)
        std = spectrum.mean() ** 0.5
        levels = fc.schedules.log_levels(32, high=50 * std, low=0.05 * std)
        for seed in range(2):
            rec = fc.Recorder(levels, shape=(28, 28), gain_shells=range(6), data_std=std)
            model.sample(levels, 128, solver="sde", recorder=rec, seed=seed)
            assert fc.critical_point(rec.dataset()).found == {}

    @pytest.mark.parametrize("solver", ["ode", "sde"])
    def test_no_signature_reports_a_transition(self, model, solver):
        levels = fc.schedules.log_levels(32, high=50.0, low=0.05)
        rec = fc.Recorder(levels, shape=(20, 20), data_std=model.spectrum.mean() ** 0.5, gain_shells=range(5))
        model.sample(levels, 256, solver=solver, seed=8, recorder=rec)
        cp = fc.critical_point(rec.dataset())
        assert cp.found == {}
        assert all(s.reason for s in cp.signatures.values())
        for name in cp.signatures:
            with pytest.raises(fc.NoTransitionError, match=f"{name}: no transition"):
                fc.critical_point(rec.dataset(), signature=name)


class TestClosedForms:
    def test_denoiser_is_the_posterior_mean(self, model):
        x = model.sample_data(4000, seed=2)
        y = x + 1.5 * np.random.default_rng(3).standard_normal(x.shape)
        D = model.denoise(y, 1.5)
        # The residual of a posterior mean is orthogonal to the data it conditions on.
        r = (x - D) * y
        assert abs(r.mean()) < 5 * r.mean(axis=(1, 2)).std() / np.sqrt(4000)

    def test_gain_is_p_over_p_plus_s2(self, model):
        k = 2 * np.pi * np.array([[0, 0], [3, 4], [-1, 2]]) / 20
        P = np.array([model.spectrum[0, 0], model.spectrum[3, 4], model.spectrum[-1, 2]])
        np.testing.assert_allclose(model.gain(k, 0.7), P / (P + 0.49))
        number = shell_numbers((20, 20))
        g = model.spectrum / (model.spectrum + 0.49)
        np.testing.assert_allclose(model.shell_gain(0.7), [g[number == i].mean() for i in range(11)])

    def test_xi_eq_rises_to_the_length_of_the_data(self, model):
        # (1 - g_k)/(1 - g_0) = (P_0 + s^2)/(P_k + s^2), whose low-k form has xi_eq^2 = xi^2 P_0/(P_0 + s^2).
        assert model.xi_eq(1e-3) == pytest.approx(2.5, rel=1e-3)
        lengths = [model.xi_eq(s) for s in (10.0, 3.0, 1.0, 0.1)]
        assert lengths == sorted(lengths)

    def test_sample_data_has_the_spectrum_in_any_dimension(self):
        for shape in ((33,), (9, 14), (5, 6, 7)):
            model = fc.theory.GaussianTheory.ornstein_zernike(xi=1.3, lattice=shape)
            S = fc.structure_factor(model.sample_data(4000, seed=1), ndim=len(shape), corners=True)
            P = shell_average(model.spectrum, corners=True)[1]
            assert (np.abs(S.S - P) < 5 * S.stderr).mean() >= 0.99

    @pytest.mark.parametrize(
        ("spectrum", "message"),
        [
            ([[1.0, -1.0], [1.0, 1.0]], "spectrum: expected finite values >= 0"),
            ([[1.0, np.nan], [1.0, 1.0]], "spectrum: expected finite values >= 0"),
            ([1.0, 2.0, 3.0], r"spectrum: expected P\(k\) = P\(-k\)"),
            (1.0, "spectrum: expected 1 to 3 axes"),
        ],
    )
    def test_bad_spectra(self, spectrum, message):
        with pytest.raises(ValueError, match=message):
            fc.theory.GaussianTheory(spectrum)

    def test_bad_calls(self, model):
        with pytest.raises(ValueError, match=r"k: expected wavevectors of shape \(\.\.\., 2\)"):
            model.gain([0.0], 1.0)
        with pytest.raises(ValueError, match="k: not a mode"):
            model.gain([0.1, 0.0], 1.0)
        with pytest.raises(ValueError, match="solver: expected one of 'ode', 'sde', got 'euler'"):
            model.sample(LEVELS, 2, solver="euler")
        with pytest.raises(ValueError, match="y: expected shape"):
            model.denoise(np.zeros((2, 5, 5)), 1.0)
        with pytest.raises(ValueError, match=r"recorder: expected one made for the 12 sampling levels, got <Recorder"):
            model.sample(LEVELS, 2, recorder=fc.Recorder([5.0, 1.0], shape=(20, 20)))
        with pytest.raises(ValueError, match=r"s: expected a positive number, got -1"):
            model.denoise(np.zeros((2, 20, 20)), -1)
        with pytest.raises(ValueError, match=r"y: expected finite values"):
            model.denoise(np.full((2, 20, 20), np.nan), 1.0)
        assert model.denoise(np.ones((1, 20, 20), int), 1.0).min() > 0.5  # integers are numbers, not truncated
        with pytest.raises(ValueError, match="n: expected an integer of at least 1, got 0"):
            model.sample_data(0)
