"""One run to a noise level and back: class, logits, agreement of two runs and patches, against mixtures."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
import torch

import fastcrit as fc
from fastcrit.diffusion import Retention, forward_backward, from_gaussian, from_mixture
from fastcrit.theory import GaussianMixture
from tests.test_decision import expected_of, two_classes

LEVELS = [40.0, 8.0, 4.0, 2.0, 1.0, 0.4]


def judge_of(model):
    return lambda y: torch.from_numpy(model.posterior(y.double().numpy(), 0.0))


def three_classes():
    """Means that differ by patches: the first class is apart from the others in the upper half only."""
    means = np.zeros((3, 1, 4, 4))
    means[0, :, :2], means[1, :, 2:], means[2, :, 2:] = 2.0, 1.0, -1.0
    return GaussianMixture(means, 0.3, [3, 2, 1])


class TestExactValues:
    @pytest.mark.parametrize(("a", "std", "weight"), [(2.0, 0.5, 0.5), (4.0, 0.5, 0.5), (4.0, 0.3, 0.2)])
    def test_agreement_of_two_classes_is_the_quadratures(self, a, std, weight):
        expected = [1.0 - 2.0 * expected_of(s, a, std, weight, lambda p: p * (1.0 - p)) for s in LEVELS]
        np.testing.assert_allclose(two_classes(a, std, weight).agreement(LEVELS), expected, atol=1e-4)

    def test_both_are_those_of_draws_from_the_posterior(self):
        """Draws of a class by its posterior, and of the image in it: nothing of the formulas is used."""
        model, n, s, rng = three_classes(), 200_000, 2.0, np.random.default_rng(5)
        x0, _ = model.sample_data(n, seed=6)
        y = x0 + s * rng.standard_normal(x0.shape)
        q = model.posterior(y, s)
        draws, v = [], model.std**2
        for _ in range(2):
            c = (q.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
            mean = model.means[c] + v / (v + s**2) * (y - model.means[c])
            draws.append((c, mean + np.sqrt(v * s**2 / (v + s**2)) * rng.standard_normal(y.shape)))
        (c, one), (d, other) = draws
        # A share of 200,000: five errors of 0.5/447.
        assert model.agreement(s) == pytest.approx((c == d).mean(), abs=0.0056)
        changes = ((one - other) ** 2).reshape(n, 2, 2, 2, 2).mean(axis=(2, 4)).reshape(1, n, 4)
        found = Retention(np.array([s]), np.zeros((1, n)), changes=changes)
        error = np.log(found.susceptibility_interval()[1] / found.susceptibility)[0] / 1.96
        assert error < 0.01
        assert np.log(model.susceptibility(s, 2) / found.susceptibility[0]) == pytest.approx(0, abs=5 * error)

    def test_ends_are_certainty_and_the_prior(self):
        model = three_classes()
        assert model.agreement(1e-3) == pytest.approx(1.0, abs=1e-9)
        assert model.agreement(1e5) == pytest.approx((model.weights**2).sum(), abs=1e-6)
        assert model.susceptibility(1e-3, 2) == pytest.approx(1.0, abs=1e-9)
        assert model.susceptibility([[2.0, 3.0]], 2).shape == (1, 2)

    def test_equal_classes_are_the_prior_at_all_levels_and_change_by_patches(self):
        model = GaussianMixture(np.ones((2, 1, 4, 4)), 0.5, [0.7, 0.3])
        np.testing.assert_allclose(model.agreement([0.0, 1.0, 50.0]), 0.58, rtol=1e-12)
        np.testing.assert_allclose(model.susceptibility([0.1, 1.0, 50.0], 2), 1.0, rtol=1e-12)

    def test_bad_values_are_named(self):
        model = two_classes(2.0)
        for call, message in (
            (lambda: model.agreement([1.0, -1.0]), "s: expected finite noise levels >= 0"),
            (lambda: model.agreement(np.nan), "s: expected finite"),
            (lambda: model.susceptibility(0.0, 2), "s: expected positive"),
            (lambda: model.susceptibility(1.0, 3), "patch: expected a divisor of both sides of a 4 x 4 lattice"),
            (lambda: model.agreement(1.0, seed=-1), "seed: "),
        ):
            with pytest.raises(ValueError, match=message):
                call()


class TestForwardBackward:
    @pytest.mark.parametrize("model", [two_classes(4.0), three_classes()], ids=["two classes", "three classes"])
    def test_agreement_retention_and_susceptibility_are_the_mixtures_at_six_levels(self, model):
        """Two draws from the posterior of a state, and the image that it was made of, are of one class alike."""
        n, steps = 400, 40
        x0, _ = model.sample_data(n, seed=2)
        found = forward_backward(
            from_mixture(model), x0, judge_of(model), LEVELS, steps=steps, solver="sde", clones=2, patch=2, seed=4
        )
        expected = model.agreement(LEVELS)
        # Ancestral steps of log width h err in first order: by 0.056, 0.019 (and statistics) and 0.012 at h = 0.38,
        # 0.19 and 0.095 (two classes, s = 4, where they err most), so by 0.15 h. A share of n: five binomial errors.
        h = np.log(LEVELS[0] / 0.02) / steps
        allowed = 5.0 * np.sqrt(expected * (1.0 - expected) / n) + 0.15 * h
        assert (np.abs(found.agreement - expected) < allowed).all()
        assert (np.abs(found.retained - expected) < allowed).all()
        # Changes likewise: 3 % at h = 0.38.
        chi, error = found.susceptibility, np.log(found.susceptibility_interval(0.6827)[1] / found.susceptibility)
        assert (np.abs(np.log(chi / model.susceptibility(LEVELS, 2))) < 5.0 * error + 0.08 * h).all()
        # Probabilities that are 0 or 1: their cosine is whether the class was kept.
        np.testing.assert_allclose(found.cosine, found.retained, atol=5e-3)

    def test_null_one_class_agrees_always_and_changes_patch_by_patch(self):
        D = from_gaussian(fc.theory.GaussianTheory(np.full((4, 4), 0.25)))
        x0 = 0.5 * np.random.default_rng(3).standard_normal((300, 1, 4, 4))
        judge = lambda y: torch.ones(len(y), 1)  # noqa: E731
        found = forward_backward(D, x0, judge, LEVELS, steps=30, solver="sde", clones=2, patch=2)
        assert (found.agreement == 1).all()
        assert (found.retained == 1).all()
        assert (found.cosine == 1).all()
        # One interval of 100 fails; six are looked at.
        low, high = found.susceptibility_interval(0.999)
        assert ((low < 1) & (high > 1)).all()

    def test_null_where_nothing_changes_there_is_certainty_and_no_susceptibility(self):
        model = two_classes(4.0)
        x0, _ = model.sample_data(20, seed=2)
        same = fc.diffusion.from_denoiser(lambda x, s: torch.as_tensor(x0).to(x)[: len(x)], shape=(1, 4, 4))
        found = forward_backward(same, x0.astype(np.float32), judge_of(model), [2.0, 0.4], steps=4, patch=2)
        assert (found.retained == 1).all()
        np.testing.assert_allclose(found.cosine, 1, rtol=1e-6)
        assert (found.changes < 1e-10).all()
        silent = Retention(found.levels, found.samples, changes=np.zeros((2, 20, 4)))
        assert np.isnan(silent.susceptibility).all()
        assert np.isnan(silent.susceptibility_interval()).all()

    def test_options_leave_the_first_run_as_it_was(self):
        model = two_classes(2.0)
        x0, _ = model.sample_data(40)
        D, judge = from_mixture(model), judge_of(model)
        plain, more = (
            forward_backward(D, x0, judge, [4.0, 1.0], steps=10, solver="sde", seed=3, **options)
            for options in ({}, {"clones": 3, "patch": 4})
        )
        assert np.array_equal(plain.samples, more.samples)
        assert np.array_equal(plain.cosines, more.cosines)
        assert set(np.unique(more.agreements).round(6)) <= {0.333333, 1.0}  # of three pairs in two classes
        assert more.changes.shape == (2, 40, 1)
        np.testing.assert_allclose(more.susceptibility, 1.0)  # of a single patch

    def test_chunks_and_batches_do_not_matter(self):
        model = two_classes(2.0)
        x0, _ = model.sample_data(30)
        D, judge, how = from_mixture(model), judge_of(model), {"steps": 10, "solver": "sde", "clones": 2, "patch": 2}
        whole = forward_backward(D, x0, judge, [4.0, 1.0], **how)
        for other, rows in (
            (forward_backward(D, x0, judge, [4.0, 1.0], batch_size=7, **how), slice(None)),
            (forward_backward(D, x0[20:], judge, [4.0, 1.0], first_sample=20, **how), slice(20, None)),
        ):
            assert np.array_equal(other.agreements, whole.agreements[:, rows])
            np.testing.assert_allclose(other.changes, whole.changes[:, rows], rtol=1e-3, atol=1e-5)

    def test_bad_values_are_named(self):
        model = two_classes(2.0)
        D, x0, judge = from_mixture(model), model.means, judge_of(model)
        for options, message in (
            ({"clones": 2}, "clones: expected 1 with solver='euler'"),
            ({"clones": 0}, "clones: "),
            ({"patch": 3}, r"patch: expected a divisor of both sides of images \(2, 1, 4, 4\), got 3"),
            ({"patch": 0}, "patch: "),
        ):
            with pytest.raises(ValueError, match=message):
                forward_backward(D, x0, judge, [1.0], **options)


class TestRetention:
    def test_curves_are_labelled_by_level_with_their_intervals(self):
        rng = np.random.default_rng(0)
        found = Retention(
            np.array([3.0, 1.0]), np.ones((2, 50)), rng.random((2, 50)), np.ones((2, 50)), rng.random((2, 50, 4))
        )
        ds = found.dataset(0.9)
        for name in ("retained", "cosine", "agreement", "susceptibility"):
            assert (ds[f"{name}_low"] <= ds[name]).all()
            assert (ds[name] <= ds[f"{name}_high"]).all()
        assert float(ds["retained"].sel(level=3.0)) == 1
        assert "agreement" not in Retention(np.array([1.0]), np.ones((1, 5))).dataset()

    def test_what_was_not_measured_is_named(self):
        plain = Retention(np.array([1.0]), np.ones((1, 5)))
        for name, how in (("agreement", "clones=2"), ("susceptibility", "patch=4"), ("cosine", "forward_backward")):
            with pytest.raises(ValueError, match=how):
                getattr(plain, name)

    @pytest.mark.parametrize("confidence", [0.68, 0.95])
    def test_intervals_of_shares_are_wilsons_to_the_bit(self, confidence):
        for n in (2, 7, 100):
            samples = (np.arange(n)[None] < np.arange(n + 1)[:, None]).astype(float)
            low, high = Retention(np.arange(n + 1.0), samples).interval(confidence)
            for k in range(n + 1):
                expected = scipy.stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
                assert (low[k], high[k]) == (expected.low, expected.high)

    @pytest.mark.parametrize("flips", [0.0, 0.3])
    def test_intervals_of_the_susceptibility_hold_what_they_say(self, flips):
        """Patches with changes of their own, chi-square of one degree times 0.1, and one that all have together."""
        rng, hits, tries = np.random.default_rng(1), 0, 400
        common = flips * (1.0 - flips)
        exact = (16 * common + 4 * 0.02) / (4 * common + 4 * 0.02)
        for _ in range(tries):
            changes = 0.1 * rng.normal(size=(1, 200, 4)) ** 2 + (rng.random((1, 200, 1)) < flips)
            low, high = Retention(np.ones(1), np.ones((1, 200)), changes=changes).susceptibility_interval()
            hits += int(low[0] <= exact <= high[0])
        # 2000 tries gave 94 and 93 %: of 400, five binomial errors of 0.0125 below that at most.
        assert 0.87 < hits / tries < 0.995
