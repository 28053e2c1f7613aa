"""Information by I-MMSE: closed forms of mixtures and Gaussian data, what is measured against them, windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit._estimates.information import InformationCurve, first_above, level_window, where_above


def two_classes(side=20, mean=1.0, std=1.0):
    return fc.theory.GaussianMixture(
        mean * np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, side, side)), std
    )


def left_of_two(snr):
    """Entropy in nats that is left of two classes at this n mu^2/(v + s^2), by Gauss-Hermite quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(150)
    odds = 2 * np.asarray(snr)[..., None] + 2 * np.sqrt(np.asarray(snr))[..., None] * x
    return np.logaddexp(0, -odds) @ (w / w.sum())


def regional_of(model):
    def regional(y, s, inside, labels=None):
        return torch.from_numpy(model.denoise(y.numpy(), s, inside.numpy(), None if labels is None else labels.numpy()))

    return regional


SITE = np.arange(400).reshape(20, 20)
A, C = SITE < 16, SITE >= 96  # 16, 80 and 304 sites
LEVELS = fc.schedules.log_levels(30, high=120.0, low=1.0)


class TestMixtureTheory:
    def test_two_classes_by_quadrature(self):
        model = two_classes(mean=0.7, std=0.6)
        for s in (0.5, 3.0, 12.0):
            for inside in (None, A, C):
                n = 400 if inside is None else int(inside.sum())
                known = np.log(2) - left_of_two(n * 0.49 / (0.36 + s**2))
                # Quasi-Monte Carlo over 2^13 points: 3e-5 where hardly a state is in doubt.
                assert model.class_information(s, inside) == pytest.approx(known, abs=6e-5)
                own = n / 2 * np.log1p(0.36 / s**2)
                assert model.information(s, inside) == pytest.approx(known + own, rel=1e-9, abs=6e-5)

    def test_conditional_information_peaks_where_the_theory_says(self):
        """Two classes +-1 of unit variance, 16, 80 and 304 sites: 0.0419 nats at s = 7.33, on a flat top."""
        model = two_classes()
        levels = np.geomspace(3, 20, 60)

        def left(n, s):
            return left_of_two(n / (1 + s**2))

        nats = [model.conditional_information(s, A, C) for s in levels]
        known = -left(96, levels) - left(384, levels) + left(80, levels) + left(400, levels)
        np.testing.assert_allclose(nats, known, atol=5e-5)
        assert model.conditional_information(7.33, A, C) == pytest.approx(0.0419, abs=1e-4)
        assert max(nats) == pytest.approx(0.0420, abs=1e-4)
        assert 6.8 < levels[np.argmax(nats)] < 7.5

    def test_several_classes_by_sampling(self, rng):
        means = rng.normal(size=(4, 2, 3, 4))
        model = fc.theory.GaussianMixture(means, 0.8, [1.0, 2.0, 3.0, 1.5])
        inside = rng.random((3, 4)) < 0.5
        x0, labels = model.sample_data(200_000, seed=1)
        y = x0 + 1.3 * rng.normal(size=x0.shape)
        for seen in (None, inside):
            q = model.posterior(y, 1.3, seen)
            each = model.class_entropy + np.log(q[np.arange(len(q)), labels])
            assert abs(model.class_information(1.3, seen) - each.mean()) < 5 * each.std() / len(q) ** 0.5

    def test_gap_by_sampling(self, rng):
        means = 0.8 * rng.normal(size=(3, 2, 1, 1)) + 0.4 * rng.normal(size=(3, 2, 5, 6))
        model = fc.theory.GaussianMixture(means, 0.6, [1.0, 2.0, 2.0])
        x0, _ = model.sample_data(3000, seed=3)

        def regional(y, s, inside):
            return torch.from_numpy(model.denoise(y.numpy(), s, inside.numpy()))

        D = fc.diffusion.from_mixture(model)
        for periodic in (True, False):
            found = fc.diffusion.locality_gap(
                D, x0, [2.0], [0, 1, 2], method=regional, periodic=periodic, sites=2, batch_size=500
            )
            known = [model.locality_gap(2.0, r, periodic=periodic) for r in (0, 1, 2)]
            np.testing.assert_array_less(np.abs(found.gap[0] - known), 5 * found.stderr[0])
            assert (found.stderr[0] < 0.1 * np.array(known)).all()
        assert model.locality_gap(2.0, 5, periodic=False) == pytest.approx(0.0, abs=1e-12)

    def test_labels_are_known_classes(self, rng):
        model = fc.theory.GaussianMixture(rng.normal(size=(3, 2, 3, 4)), 0.7)
        y, labels = rng.normal(size=(5, 2, 3, 4)), [0, 2, 1, 1, 0]
        D = fc.diffusion.from_mixture(model)
        np.testing.assert_allclose(
            model.denoise(y, 1.2, labels=labels), D(torch.from_numpy(y), 1.2, labels), atol=1e-12
        )
        for bad in ([0, 1], [0, 1, 2, 3, 0], [0.5] * 5):
            with pytest.raises(ValueError, match=r"^labels: expected 5 integers from 0 to 2"):
                model.denoise(y, 1.2, labels=bad)


class TestGaussianTheory:
    @pytest.mark.parametrize("shape", [(4, 5), (7,), (2, 3, 4)])
    def test_determinants(self, rng, shape):
        k2 = sum(np.meshgrid(*[4 * np.sin(np.pi * np.fft.fftfreq(side)) ** 2 for side in shape], indexing="ij"))
        model = fc.theory.GaussianTheory(1 / (0.2 + k2))
        inside, s = rng.random(shape) < 0.5, 0.8
        sites = np.indices(shape).reshape(len(shape), -1).T
        apart = tuple(np.moveaxis((sites[:, None] - sites) % shape, -1, 0))
        covariance = np.fft.ifftn(model.spectrum).real[apart]
        for seen in (np.ones(shape, bool), inside):
            own = covariance[np.ix_(seen.ravel(), seen.ravel())]
            known = 0.5 * np.linalg.slogdet(np.eye(len(own)) + own / s**2)[1]
            assert model.information(s, seen) == pytest.approx(known, rel=1e-10)
        assert model.information(s) == pytest.approx(model.information(s, np.ones(shape, bool)), rel=1e-12)

    def test_white_data_tell_nothing_of_other_sites(self):
        model = fc.theory.GaussianTheory(np.full((5, 6), 2.0))
        x = np.arange(30).reshape(5, 6)
        assert model.conditional_information(0.7, x < 4, x > 20) == pytest.approx(0.0, abs=1e-12)


@pytest.fixture(scope="module")
def of_mixture():
    model = two_classes()
    x0, labels = model.sample_data(2000, seed=4)
    D = fc.diffusion.from_mixture(model)
    return model, fc.diffusion.information(D, x0, LEVELS, labels, A=A, C=C, regional=regional_of(model))


class TestMeasured:
    def test_a_mixtures_curves(self, of_mixture):
        model, found = of_mixture
        B = ~(A | C)
        for curve, exact in (
            (found.image, lambda s: model.information(s)),
            (found.classes, lambda s: model.class_information(s)),
            (found.window, lambda s: model.information(s, B)),
            (found.window_classes, lambda s: model.class_information(s, B)),
            (found.conditional, lambda s: model.conditional_information(s, A, C)),
        ):
            known = np.array([exact(s) for s in LEVELS])
            # The trapezoidal rule is off by h^2/12 of the slope's change, h = 0.165: 0.0023 of a curve's largest rate.
            rule = 0.0024 * np.abs(np.gradient(known, np.log(LEVELS))).max()
            np.testing.assert_array_less(np.abs(curve.value - known), 5 * curve.stderr + rule + 1e-4)

    def test_class_information_is_the_entropy_within_a_hundredth(self):
        """An error of 0.7 %."""
        model = two_classes(side=4, std=0.5)
        x0, labels = model.sample_data(15_000, seed=5)
        levels = fc.schedules.log_levels(40, high=80.0, low=0.1)
        found = fc.diffusion.information(fc.diffusion.from_mixture(model), x0, levels, labels, batch_size=4096)
        assert found.classes.stderr[-1] < 0.007 * np.log(2)
        assert found.classes.value[-1] == pytest.approx(np.log(2), rel=0.01)
        assert found.entropy == pytest.approx(np.log(2), rel=0.001)
        assert np.isnan(found.biased_below)

    def test_posterior_means_have_no_bias(self, of_mixture):
        _, found = of_mixture
        for curve in (found.classes, found.window_classes, found.conditional):
            np.testing.assert_array_less(np.abs(curve.bias), 5 * curve.bias_stderr)
        assert np.isnan(found.image.bias).all()
        assert np.isnan(found.biased_below)

    def test_peak_and_windows(self, of_mixture):
        _, found = of_mixture
        top = found.conditional.value.argmax()
        assert found.conditional.value[top] == pytest.approx(0.0420, abs=5 * found.conditional.stderr[top])
        assert 5.5 < found.conditional.peak < 9
        for delta in (0.02, 0.03, 0.035):
            near, far = found.nonlocality(delta), found.speciation(delta)
            fine = np.geomspace(500, 1, 4000)
            assert far.contains(near)
            lost = fine[left_of_two(80 / (1 + fine**2)) > delta].min()
            told = fine[np.log(2) - left_of_two(400 / (1 + fine**2)) > delta].max()
            assert far.low_interval[0] / 1.03 < lost < far.low_interval[1] * 1.03
            assert far.high_interval[0] / 1.03 < told < far.high_interval[1] * 1.03
            exact = -left_of_two(96 / (1 + fine**2)) - left_of_two(384 / (1 + fine**2))
            exact += left_of_two(80 / (1 + fine**2)) + left_of_two(400 / (1 + fine**2))
            above = fine[exact > delta]
            assert near.low_interval[0] / 1.03 < above.min() < near.low_interval[1] * 1.03
            assert near.high_interval[0] / 1.03 < above.max() < near.high_interval[1] * 1.03
            assert near.low_interval[0] <= near.low <= near.low_interval[1]

    def test_gaussian_data_by_dense_filters(self, rng):
        shape, levels = (4, 5), fc.schedules.log_levels(30, high=60.0, low=0.5)
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=shape)
        sites = np.indices(shape).reshape(2, -1).T
        covariance = np.fft.ifftn(model.spectrum).real[tuple(np.moveaxis((sites[:, None] - sites) % shape, -1, 0))]

        def regional(y, s, inside, labels):
            seen = inside[0, 0].numpy().ravel()
            own = covariance[np.ix_(seen, seen)] + s**2 * np.eye(seen.sum())
            w = np.linalg.solve(own, covariance[seen])  # (seen, sites)
            return torch.from_numpy(y.numpy().reshape(len(y), -1)[:, seen] @ w).reshape(y.shape)

        x = np.indices(shape)[1]
        a, c = x == 0, x == 2
        x0 = model.sample_data(1500, seed=1)[:, None]
        found = fc.diffusion.information(
            fc.diffusion.from_gaussian(model), x0, levels, A=a, C=c, B=(x == 1), regional=regional
        )  # A, B and C leave columns
        known = [model.conditional_information(s, a, c, x == 1) for s in levels]
        slack = 5 * found.conditional.stderr + 0.003 * max(known)
        np.testing.assert_array_less(np.abs(found.conditional.value - known), slack)
        known = np.array([model.information(s) for s in levels])
        np.testing.assert_array_less(np.abs(found.image.value - known), 5 * found.image.stderr + 0.003 * known.max())
        assert found.classes is None
        assert np.isnan(found.entropy)

    def test_resampled_is_nothing_where_nothing_is_correlated(self, rng):
        D = fc.diffusion.from_denoiser(lambda y, s: 0.5 * y)
        x0 = rng.normal(size=(40, 1, 5, 6))
        x = np.indices((5, 6))[1]
        found = fc.diffusion.information(D, x0, [10.0, 1.0], A=x < 2, C=x > 3)
        assert np.abs(found.conditional.value).max() < 1e-9
        assert found.regional == "resampled"
        assert found.window.value[-1] > 0

    def test_a_networks_error_is_said(self):
        """An error of 0.1 a site in what a network says of a class adds 16 * 0.01/s^3 to the rate, 0.08/s^2 in all."""
        model = two_classes(side=4, std=0.4)
        exact = fc.diffusion.from_mixture(model)

        def function(y, s, labels=None):
            return exact(y, s, labels) + (0.0 if labels is None else 0.1)

        D = fc.diffusion.from_denoiser(function, shape=(1, 4, 4), classes=2, unlabelled=True)
        x0, labels = model.sample_data(300)
        found = fc.diffusion.information(D, x0, fc.schedules.log_levels(30, high=80, low=0.05), labels)
        expected = 0.08 / found.levels**2
        apart = np.abs(found.classes.bias - 2 * expected)  # the error against the images rises by as much
        np.testing.assert_array_less(apart, 5 * found.classes.bias_stderr + 0.01 * expected)
        known = found.levels[2 * expected > 0.1 * (np.log(2) + expected)][0]
        assert 0.7 * known < found.biased_below < 1.2 * known

    def test_batches_and_one_hot_labels_change_nothing(self, rng):
        model = fc.theory.GaussianMixture(rng.normal(size=(3, 1, 3, 4)), 0.5)
        x0, labels = model.sample_data(11)
        D = fc.diffusion.from_mixture(model)
        options = {"A": np.arange(12).reshape(3, 4) < 2, "C": np.arange(12).reshape(3, 4) > 8}
        one = fc.diffusion.information(D, x0, [3.0, 1.0], labels, **options)
        other = fc.diffusion.information(
            D, torch.from_numpy(x0), [3.0, 1.0], np.eye(3)[labels], **options, batch_size=4
        )
        for name in ("image", "classes", "window", "window_classes", "conditional"):
            np.testing.assert_allclose(getattr(one, name).samples, getattr(other, name).samples, rtol=1e-9, atol=1e-12)
        assert one.entropy == pytest.approx(other.entropy)


class TestCurves:
    levels = np.geomspace(100, 0.1, 200)

    def test_integral_of_a_known_error(self):
        """mmse = P s^2/(P + s^2) integrates to half of log(1 + P/s^2)."""
        curve = InformationCurve(self.levels, np.tile((2 * self.levels**2 / (2 + self.levels**2))[:, None], 3))
        np.testing.assert_allclose(curve.value, 0.5 * np.log1p(2 / self.levels**2), rtol=1e-3)
        assert curve.stderr.max() < 1e-15

    def test_errors_are_those_that_averages_scatter_by(self, rng):
        values, errors = [], []
        for _ in range(300):
            curve = InformationCurve(self.levels[::20], rng.gamma(1.0, size=(1, 30)) * np.ones((10, 1)))
            values.append(curve.value[-1])
            errors.append(curve.stderr[-1])
        # The spread of 300 is known to 4 %, and errors of 30 samples of an exponential are low by 3 % or so.
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.15)

    def test_ends_of_windows(self):
        levels = np.array([8.0, 4.0, 2.0, 1.0])
        assert where_above(levels, np.array([0.0, 2.0, 2.0, 0.0]), 1.0) == (
            pytest.approx(2**0.5),
            pytest.approx(32**0.5),
        )
        assert np.isnan(where_above(levels, np.array([0.0, 0.5, 0.5, 0.0]), 1.0)).all()
        low, high = where_above(levels, np.array([0.0, 2.0, 2.0, 2.0]), 1.0)
        assert np.isnan(low)
        assert high == pytest.approx(32**0.5)
        assert first_above(levels, np.array([0.0, 0.0, 2.0, 0.0]), 1.0) == pytest.approx(8**0.5)
        assert np.isnan(first_above(levels, np.array([2.0, 0.0, 2.0, 0.0]), 1.0))
        assert np.isnan(first_above(levels, np.zeros(4), 1.0))

    def test_intervals_hold_what_they_say(self, rng):
        """Of 95 %: over 100 draws of 50 images 95 +- 2.2 of them hold the truth; the bootstrap's are a little short."""
        levels = np.geomspace(10, 1, 20)
        shape = levels**2 * np.exp(-(np.log(levels / 3) ** 2))
        truth = InformationCurve(levels, np.tile(shape[:, None], 2))
        low, high = where_above(levels, truth.value, 0.5 * truth.value.max())
        held = 0
        for draw in range(100):
            curve = InformationCurve(levels, shape[:, None] * (1 + rng.normal(size=(20, 50))))
            found = level_window(
                [curve.each], lambda v: (first_above(levels, v[0], 0.5 * truth.value.max()), 0.0), draw
            )
            held += found.low_interval[0] <= first_above(levels, truth.value, 0.5 * truth.value.max())
            held += found.low_interval[1] >= first_above(levels, truth.value, 0.5 * truth.value.max())
        assert held >= 2 * 100 - 15  # both sides of 100: 195 expected, 15 missed has a chance below 1e-4
        assert low < high or np.isnan(low)


class TestRefusals:
    model = two_classes(side=4)
    D = fc.diffusion.from_mixture(model)
    x0 = np.zeros((3, 1, 4, 4))
    half = np.arange(16).reshape(4, 4) < 8

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"A": half}, ValueError, r"^A, C: expected both regions"),
            (
                {"A": half, "C": half},
                ValueError,
                r"^B: expected at least one site|^A, B, C: expected regions that share",
            ),
            ({"A": half, "C": ~half}, ValueError, r"^B: expected at least one site, got none"),
            ({"A": half[:2], "C": ~half}, ValueError, r"^A: expected bools of the lattice's shape \(4, 4\)"),
            ({"A": half * 1.0, "C": ~half}, ValueError, r"^A: expected bools"),
            ({"regional": "cropped"}, ValueError, r'^regional: expected "resampled" or a function'),
            ({"labels": [0, 1]}, ValueError, r"^labels: expected one for each of 3"),
            ({"x0": x0[:1]}, ValueError, r"^x0: expected two images or more"),
            ({"levels": [1.0, 2.0]}, ValueError, r"^levels: expected strictly decreasing"),
            ({"D": lambda y, s: y}, TypeError, r"^D: expected a Denoiser"),
        ],
    )
    def test_by_name(self, options, error, message):
        given = {"D": self.D, "x0": self.x0, "levels": [1.0]} | options
        with pytest.raises(error, match=message):
            fc.diffusion.information(given.pop("D"), given.pop("x0"), given.pop("levels"), **given)

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            (lambda y, *_: y[:, :1], ValueError, r"^{}: expected denoised images of the states' shape \(3, 2, 4, 4\)"),
            (lambda y, *_: y.numpy(), TypeError, r"^{}: expected a function that returns a tensor, got ndarray"),
        ],
    )
    def test_functions_that_return_something_else(self, wrong, error, message):
        """One channel for two would broadcast."""
        D = fc.diffusion.from_denoiser(lambda y, s: 0.5 * y, shape=(2, 4, 4))
        x, x0 = np.arange(16).reshape(4, 4), np.zeros((3, 2, 4, 4))
        with pytest.raises(error, match=message.format("regional")):
            fc.diffusion.information(D, x0, [1.0], A=x < 2, C=x > 9, regional=wrong)
        with pytest.raises(error, match=message.format("method")):
            fc.diffusion.locality_gap(D, x0, [1.0], [1], method=wrong)
        with pytest.raises(TypeError, match=r"^unlabelled: expected a Denoiser or None, got int"):
            fc.diffusion.information(D, x0, [1.0], unlabelled=3)

    def test_networks_that_need_labels(self):
        D = fc.diffusion.from_denoiser(lambda y, s, labels: y, shape=(1, 4, 4), classes=2)
        with pytest.raises(ValueError, match=r"^D: expected a network that works without labels"):
            fc.diffusion.information(D, self.x0, [1.0], [0, 1, 0])

    def test_windows_of_what_was_not_measured(self):
        found = fc.diffusion.information(self.D, self.x0, [1.0])
        with pytest.raises(ValueError, match=r"^A, C: expected regions"):
            found.nonlocality()
        with pytest.raises(ValueError, match=r"^labels, A, C: expected labels and regions"):
            found.speciation()
        x = np.arange(16).reshape(4, 4)
        found = fc.diffusion.information(self.D, self.x0, [1.0], A=x < 2, C=x > 9)
        with pytest.raises(ValueError, match=r"^delta: expected a positive number"):
            found.nonlocality(0.0)

    def test_what_is_not_finite_is_named(self):
        D = fc.diffusion.from_denoiser(lambda y, s: y * torch.where(y.amax((1, 2, 3), keepdim=True) > 50, torch.nan, 1))
        x0 = self.x0.copy()
        x0[1] += 100
        with pytest.raises(FloatingPointError, match=r"^x0: the denoised image of image 1 at s = 1 is"):
            fc.diffusion.information(D, x0, [1.0])
