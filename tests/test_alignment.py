"""Alignment and paired statistics: against scikit-learn and scipy, at their nominal rates, and for bad input."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestNeighbors

from fastcrit.alignment import (
    class_alignment,
    coverage,
    minimal_detectable_difference,
    paired,
    pairwise_distance,
)


class TestAlignment:
    @pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, lambda x: torch.from_numpy(x).float()])
    def test_against_sklearn_and_scipy(self, rng, make):
        scores, labels = rng.normal(size=(300, 7)), rng.integers(0, 7, 300)
        found = class_alignment(make(scores), labels)
        assert found.top1.mean() == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=range(7)))
        log_probability = scipy.special.log_softmax(scores, axis=1)[np.arange(300), labels]
        np.testing.assert_allclose(found.log_probability, log_probability, atol=1e-6)  # float32 scores
        assert ((found.margin > 0) == (found.top1 == 1)).all()

    def test_does_not_depend_on_an_additive_constant(self, rng):
        scores, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
        a, b = class_alignment(scores, labels), class_alignment(scores + 700.0 * rng.normal(size=(50, 1)), labels)
        np.testing.assert_allclose(a.log_probability, b.log_probability, atol=1e-9)
        np.testing.assert_allclose(a.margin, b.margin, atol=1e-9)


class TestDiversity:
    def test_pairwise_distance_against_sklearn(self, rng):
        x, labels = rng.normal(size=(700, 5)), np.repeat([0, 3], [600, 100])
        for value, k in zip(pairwise_distance(x, labels), (0, 3), strict=True):
            own = euclidean_distances(x[labels == k])
            assert value == pytest.approx(own[np.triu_indices(len(own), 1)].mean(), rel=1e-6)

    def test_coverage_against_sklearns_neighbours(self, rng):
        real, fake = rng.normal(size=(150, 4)), 0.5 * rng.normal(size=(60, 4))
        labels = np.zeros(150, int)
        radius = NearestNeighbors(n_neighbors=6).fit(real).kneighbors(real)[0][:, -1]
        nearest = NearestNeighbors(n_neighbors=1).fit(fake).kneighbors(real)[0][:, 0]
        assert coverage(fake, labels[:60], real, labels) == pytest.approx((nearest <= radius).mean())

    def test_classes_do_not_cover_each_other(self, rng):
        x = rng.normal(size=(40, 3))
        labels = np.repeat([0, 1], 20)
        assert coverage(x, labels, x, labels) == 1.0
        assert coverage(x[:20], labels[:20], x, labels) == 0.5


class TestPaired:
    def test_a_planted_difference_is_covered_at_the_nominal_rate(self):
        """Three points of 0/1 outcomes that share their seeds: 200 repetitions of 1000 pairs."""
        covered = 0
        for i in range(200):
            rng = np.random.default_rng([1, i])
            difficulty = rng.random(1000)
            a, b = (difficulty < 0.83).astype(float), (difficulty < 0.80).astype(float)
            flips = rng.random(1000) < 0.1  # noise of the arms: outcomes redrawn at the arms' own rates
            a[flips], b[flips] = rng.random(flips.sum()) < 0.83, rng.random(flips.sum()) < 0.80
            found = paired(a, b, n_bootstrap=1000, seed=i)
            covered += found.low <= 0.03 <= found.high
        # 95 % +- 4 standard errors of 200 draws (1.5 %).
        assert 0.95 * 200 - 4 * np.sqrt(200 * 0.95 * 0.05) <= covered

    def test_without_a_difference_false_alarms_are_as_rare_as_said(self):
        """1000 repetitions; at most 7 % at the 5 % level, for the interval and for the sign test."""
        alarms = np.zeros(2)
        for i in range(1000):
            rng = np.random.default_rng([2, i])
            a, b = (rng.random((2, 400)) < 0.7).astype(float)
            found = paired(a, b, n_bootstrap=400, seed=i)
            alarms += [not found.low <= 0 <= found.high, found.p_sign < 0.05]
        assert (alarms <= 70).all()

    def test_error_and_sign_test_against_scipy(self, rng):
        a, b = rng.normal(size=(2, 80))
        found = paired(a, b)
        assert found.stderr == pytest.approx(scipy.stats.sem(a - b))
        assert found.p_sign == pytest.approx(scipy.stats.binomtest(int((a > b).sum()), 80).pvalue)
        bootstrap = scipy.stats.bootstrap((a - b,), np.mean, method="percentile", rng=rng)
        assert found.low == pytest.approx(bootstrap.confidence_interval.low, abs=0.1 * found.stderr)
        assert found.high == pytest.approx(bootstrap.confidence_interval.high, abs=0.1 * found.stderr)
        assert paired(a, a).p_sign == 1.0

    def test_detectable_difference_is_detected_with_its_power(self):
        n, found = 200, 0
        size = minimal_detectable_difference(1.0, n)
        for i in range(2000):
            d = size + np.random.default_rng([3, i]).normal(size=n)
            found += abs(d.mean()) > 1.959964 * d.std(ddof=1) / np.sqrt(n)
        # 80 % +- 4 standard errors of 2000 draws.
        assert abs(found / 2000 - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 2000)


def test_messages_name_the_argument(rng):
    scores, labels = rng.normal(size=(5, 3)), np.array([0, 1, 2, 0, 1])
    bad = scores.copy()
    bad[3, 1] = np.nan
    for call, message in (
        (lambda: class_alignment(scores[0], labels), "scores: expected shape"),
        (lambda: class_alignment(bad, labels), "scores: NaN or infinite for sample 3"),
        (lambda: class_alignment(scores, labels + 1), "labels: expected classes from 0 to 2, got 1 to 3"),
        (lambda: class_alignment(scores, labels[:4]), "labels: expected 5 integers"),
        (lambda: paired([1.0, 2.0], [1.0]), "a, b: expected two sequences of the same length"),
        (lambda: paired([1.0, np.inf], [1.0, 1.0]), "a, b: NaN or infinite in pair 1"),
        (lambda: pairwise_distance(scores[0], labels), "features, labels: expected"),
        (lambda: coverage(scores, labels, scores[:, :2], labels), "reference: expected 3 features, got 2"),
        (lambda: coverage(scores, labels, scores, labels), "reference: class 0 has 2 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
