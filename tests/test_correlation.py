"""Lengths on exact Gaussian fields, closed forms for each estimator, coverage of the intervals, flags and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc


def gaussian(xi, side, n, seed, noise=0.0):
    """Exact fields with S = 1/(xi^-2 + k^2) plus white noise of variance ``noise``."""
    field = fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=side).sample_data(n, seed=seed)
    if noise:
        field += np.sqrt(noise) * np.random.default_rng([seed, 1]).standard_normal(field.shape)
    return field


class TestOrnsteinZernike:
    @pytest.mark.parametrize("side", [28, 64])
    @pytest.mark.parametrize("xi", [1.0, 2.0, 4.0, 8.0])
    def test_within_3_percent_of_the_truth(self, xi, side):
        found = fc.correlation_length(gaussian(xi, side, 4000, seed=int(xi)))
        assert found.value == pytest.approx(xi, rel=0.03)
        assert found.stderr < 0.03 * xi
        assert (found.relative > 0.25) == ("finite_size" in found.flags)

    @pytest.mark.parametrize("side", [28, 64])
    @pytest.mark.parametrize("xi", [1.0, 2.0, 4.0, 8.0])
    @pytest.mark.parametrize("background", [2.25, "free"])
    def test_within_6_percent_with_white_noise_added(self, xi, side, background):
        field = gaussian(xi, side, 4000, seed=10 + int(xi), noise=2.25)
        found = fc.correlation_length(field, background=background)
        assert found.value == pytest.approx(xi, rel=0.06)

    def test_the_interval_covers_the_truth(self):
        # 200 repetitions at 95 %: a binomial count of 190 +- 3.1.
        covered = 0
        for repetition in range(200):
            low, high = fc.correlation_length(gaussian(2.0, 24, 256, seed=1000 + repetition)).interval(0.95)
            covered += low <= 2.0 <= high
        assert 180 <= covered <= 198

    def test_without_k_zero_and_with_k_max(self):
        field = gaussian(3.0, 32, 3000, seed=5)
        assert fc.correlation_length(field, include_zero=False).value == pytest.approx(3.0, rel=0.05)
        assert fc.correlation_length(field, k_max=1.0).value == pytest.approx(3.0, rel=0.05)

    @pytest.mark.parametrize("shape", [(256,), (15, 22), (12, 10, 9)])
    def test_in_one_two_and_three_dimensions(self, shape):
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=1.7, lattice=shape)
        found = fc.correlation_length(model.sample_data(4000, seed=3), ndim=len(shape))
        assert found.value == pytest.approx(1.7, abs=max(4 * found.stderr, 0.02))

    def test_a_structure_factor_gives_the_same_as_its_fields(self):
        field = gaussian(2.0, 20, 200, seed=1)
        a = fc.correlation_length(field)
        b = fc.correlation_length(fc.structure_factor(field))
        assert (a.value, a.stderr) == (b.value, b.stderr)

    def test_spacing_scales_lengths(self):
        field = gaussian(2.0, 20, 200, seed=1)
        assert fc.correlation_length(field, spacing=0.5).value == pytest.approx(
            0.5 * fc.correlation_length(field).value, rel=1e-9
        )

    def test_channels_give_arrays_and_torch_is_accepted(self):
        field = np.stack([gaussian(1.0, 24, 800, 1), gaussian(3.0, 24, 800, 2)], axis=1)
        found = fc.correlation_length(torch.from_numpy(field).float())
        np.testing.assert_allclose(found.value, [1.0, 3.0], rtol=0.1)
        assert found.stderr.shape == (2,)

    def test_white_noise_has_no_length(self, rng):
        field = rng.standard_normal((500, 24, 24))
        found = fc.correlation_length(field)
        # The likelihood of white noise is flat in xi up to about (samples * modes)^(-1/4) = 0.04 sites.
        assert found.value < 0.1
        known = fc.correlation_length(field, background=1.0)
        assert np.isnan(known.value)
        assert known.flags[0] in ("background_dominates", "no_convergence")

    @pytest.mark.parametrize("scale", [1e-60, 1e-10, 1e60])
    def test_the_unit_of_the_field_does_not_matter(self, scale):
        field = gaussian(3.0, 24, 200, seed=6)
        one, other = fc.correlation_length(field), fc.correlation_length(field * scale)
        assert other.value == pytest.approx(one.value, rel=1e-6)
        assert other.stderr == pytest.approx(one.stderr, rel=1e-4)

    def test_a_strong_signal_without_k_zero_is_not_called_background(self):
        for seed in range(10):
            found = fc.correlation_length(gaussian(8.0, 16, 64, seed), include_zero=False, background=0.01)
            assert "background_dominates" not in found.flags

    def test_flags_a_length_beyond_the_box(self):
        assert "finite_size" in fc.correlation_length(gaussian(16.0, 28, 500, seed=0)).flags


class TestOtherEstimators:
    def test_second_moment_is_exact_on_a_known_spectrum(self):
        # S(k) = 1/(xi^-2 + k^2) has the second-moment length xi exactly; the estimate has S(0)'s error.
        found = fc.correlation_length(gaussian(6.0, 32, 20000, seed=2), method="second_moment")
        assert found.value == pytest.approx(6.0, abs=4 * found.stderr)
        assert found.stderr < 0.1

    def test_second_moment_equals_the_one_from_the_full_spectrum(self):
        field = gaussian(4.0, 21, 300, seed=2)[:, :, :18]
        direct = fc.correlation_length(field, method="second_moment")
        via = fc.correlation_length(fc.structure_factor(field), method="second_moment")
        assert direct.value == pytest.approx(via.value, rel=1e-9)
        assert direct.stderr == pytest.approx(via.stderr, rel=1e-6)

    def test_second_moment_below_zero_is_nan_and_flagged(self):
        x = np.arange(16)
        phase = np.random.default_rng(0).uniform(0, 2 * np.pi, (50, 1))
        field = np.cos(2 * np.pi * x / 16 + phase)
        found = fc.correlation_length(field, method="second_moment", ndim=1)
        assert np.isnan(found.value)
        assert "negative_second_moment" in found.flags

    def test_a_lattice_of_one_site_has_no_second_moment(self):
        field = np.random.default_rng(0).normal(size=(50, 1, 1))
        found = fc.correlation_length(field, method="second_moment")
        assert np.isnan(found.value)
        assert found.flags == ("negative_second_moment",)

    @pytest.mark.parametrize(
        ("method", "expected"),
        [("exponential", 5.0), ("efold", 5.0), ("integral", 5.0)],
    )
    def test_an_exponential_correlation(self, method, expected):
        # A circulant with C(r) = exp(-r/5) on a ring of 1024 sites; 4000 samples.
        r = np.minimum(np.arange(1024), 1024 - np.arange(1024))
        spectrum = np.maximum(np.fft.fft(np.exp(-r / 5.0)).real, 0.0)
        field = fc.theory.GaussianTheory(spectrum).sample_data(4000, seed=7)
        found = fc.correlation_length(field, method=method, ndim=1)
        # The trapezoid integral of a sampled exponential exceeds 5 by 5/(12 * 25), 0.3 %.
        assert found.value == pytest.approx(expected, abs=4 * found.stderr + 0.02)
        assert found.stderr < 0.1

    def test_binarized_is_the_efold_of_the_sign(self):
        field = gaussian(4.0, 32, 300, seed=4)
        sign = np.where(field >= 0, 1.0, -1.0)
        a = fc.correlation_length(field, method="binarized")
        b = fc.correlation_length(sign, method="efold")
        assert a.value == pytest.approx(b.value, rel=1e-5)

    @pytest.mark.parametrize(("xi", "efold"), [(2.0, 0.94), (4.0, 1.46), (8.0, 2.45)])
    def test_reference_values_on_a_lattice_of_28(self, xi, efold):
        field = gaussian(xi, 28, 4000, seed=21)
        # The reference labels a shell of lags by its number; fastcrit by the mean distance of its lags.
        C = fc.autocorrelation(field, normalize=True).C
        assert np.interp(-np.exp(-1), -C, np.arange(len(C))) == pytest.approx(efold, rel=0.03)
        r = fc.autocorrelation(field).r
        found = fc.correlation_length(field, method="efold")
        assert found.value == pytest.approx(np.interp(-np.exp(-1), -C, r), rel=1e-3)

    def test_no_crossing_is_nan_and_flagged(self):
        field = np.random.default_rng(0).standard_normal((40, 1, 1)) * np.ones((40, 12, 12))
        found = fc.correlation_length(field, method="efold")
        assert np.isnan(found.value)
        assert "no_crossing" in found.flags


class TestErrors:
    def test_stderr_is_the_scatter_of_repetition(self):
        repeats = [fc.correlation_length(gaussian(2.0, 24, 200, seed=s)) for s in range(100)]
        scatter = np.std([r.value for r in repeats], ddof=1)
        mean = np.mean([r.stderr for r in repeats])
        # A scatter of 100 values is known to 7 %.
        assert mean == pytest.approx(scatter, rel=0.25)

    @pytest.mark.parametrize("method", fc.METHODS)
    def test_two_samples_have_a_value_and_no_error(self, method):
        # Less their mean they are equal but for the sign: their scatter says nothing.
        field = gaussian(2.0, 16, 2, seed=0)
        found = fc.correlation_length(field, method=method)
        assert np.isnan(found.stderr)
        if found.value > 0:
            assert "unstable_error" in found.flags
        assert np.isnan(fc.structure_factor(field).stderr).all()
        assert np.isnan(fc.autocorrelation(field).stderr).all()

    @pytest.mark.parametrize("method", ["efold", "integral", "binarized"])
    def test_a_length_below_the_first_lag_is_flagged(self, method, rng):
        found = fc.correlation_length(rng.standard_normal((200, 16, 16)), method=method)
        assert found.flags == ("below_resolution",)

    def test_no_length_has_no_error(self, rng):
        found = [fc.correlation_length(rng.standard_normal((200, 16, 16))) for _ in range(10)]
        none = [f for f in found if f.flags == ("uncorrelated",)]
        assert none
        assert all(f.value == 0 and np.isnan(f.stderr) for f in none)

    def test_none_when_not_asked_for(self):
        found = fc.correlation_length(gaussian(2.0, 16, 50, seed=0), errors=None)
        assert np.isnan(found.stderr)
        assert "unstable_error" not in found.flags

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "fourier"}, "method: expected one of 'ornstein_zernike', .* got 'fourier'"),
            ({"background": "fixed"}, "background: expected a number, or 'free'"),
            ({"background": "free", "method": "efold"}, "background: expected a number, or 'free' with"),
            ({"background": -1.0}, "background: expected a finite number >= 0, got -1.0"),
            ({"errors": "bootstrap"}, "errors: expected one of 'jackknife', got 'bootstrap'"),
            ({"k_max": 0.0}, "k_max: expected a positive number, got 0.0"),
            ({"k_max": 0.1}, "k_max: fewer than 3 distinct wavenumbers up to 0.1 are left to fit"),
            ({"blocks": 1}, "blocks: expected an integer of at least 2, got 1"),
            ({"center": "sample", "method": "second_moment"}, "center: 'sample' removes"),
            ({"ndim": 3}, "field_or_S: expected shape"),
            ({"spacing": 0}, "spacing: expected a positive number, got 0"),
        ],
    )
    def test_bad_options_are_named(self, options, message, rng):
        with pytest.raises(ValueError, match=message):
            fc.correlation_length(rng.standard_normal((10, 16, 16)), **options)

    @pytest.mark.parametrize("method", fc.METHODS)
    def test_one_sample_is_no_ensemble(self, method):
        with pytest.raises(ValueError, match="at least 2 samples"):
            fc.correlation_length(np.ones((1, 8, 8)), method=method)

    @pytest.mark.parametrize("method", fc.METHODS)
    @pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite value")])
    def test_the_sample_with_nan_or_inf_is_named(self, method, value, word, rng):
        field = rng.standard_normal((90, 8, 8))
        field[71, 2, 2] = value
        with pytest.raises(ValueError, match=f"field_or_S: {word} in the field at index 71"):
            fc.correlation_length(field, method=method)

    def test_a_structure_factor_without_modes(self):
        made = fc.StructureFactor(k=np.arange(3), S=np.ones(3), stderr=np.ones(3), counts=np.ones(3), n_samples=2)
        with pytest.raises(ValueError, match=r"field_or_S: .* needs a StructureFactor made by structure_factor\(\)"):
            fc.correlation_length(made)


def test_a_mode_beyond_the_range_of_float32_is_an_error_though_the_mean_is_not():
    wave = 2e37 * np.cos(2 * np.pi * np.arange(64) / 64)
    fields = np.broadcast_to(wave[:, None], (2, 64, 16)).astype(np.float32)
    with pytest.raises(OverflowError, match="exceeds the range of float32"):
        fc.correlation_length(fields, method="second_moment", center="none")
