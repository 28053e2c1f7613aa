"""Dictionaries: what they hold, where patterns come from, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcrit.patch import Dictionary


class TestBinary:
    def test_pair_first_then_random_signs(self):
        d = Dictionary.binary(size=5, random=8, seed=1)
        assert d.patterns.shape == (10, 5, 5)
        assert (d.patterns[0] == 1).all()
        assert (d.patterns[1] == -1).all()
        assert set(np.unique(d.patterns[2:])) == {-1.0, 1.0}
        np.testing.assert_allclose(d.prior, 0.1)

    def test_the_default_balances_and_others_say_that_they_do_not(self):
        assert Dictionary.binary().mean == pytest.approx(0.0, abs=1e-12)
        assert Dictionary.binary(seed=1).mean == pytest.approx(-0.6)

    def test_the_seed_decides(self):
        a, b, c = (Dictionary.binary(seed=s).patterns for s in (1, 1, 2))
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


class TestFromImages:
    def test_patches_are_patches_of_the_images(self, rng):
        images = rng.standard_normal((4, 9, 11))
        d = Dictionary.from_images(images, size=3, count=50, seed=3)
        windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2)).reshape(-1, 9)
        for p in d.patterns.reshape(50, 9):
            assert (windows == p).all(axis=1).any()
        assert len(np.unique(d.patterns.reshape(50, 9), axis=0)) == 50  # without replacement

    def test_all_patches(self, rng):
        d = Dictionary.from_images(rng.standard_normal((2, 6, 7)), size=3, count=None)
        assert len(d) == 2 * 4 * 5

    def test_kmeans_centres_carry_the_sizes_of_their_clusters(self, rng):
        flat = np.concatenate([np.full((30, 3, 3), -1.0), np.full((90, 3, 3), 2.0)])
        d = Dictionary.from_images(flat + 0.01 * rng.standard_normal(flat.shape), size=3, count=2, method="kmeans")
        order = np.argsort(d.patterns[:, 1, 1])
        np.testing.assert_allclose(d.patterns[order, 1, 1], [-1, 2], atol=0.02)
        np.testing.assert_allclose(d.prior[order], [0.25, 0.75])

    def test_position_specific_keeps_whole_images(self, rng):
        images = rng.standard_normal((10, 8, 8)).astype(np.float32)
        d = Dictionary.from_images(torch.from_numpy(images), size=5, count=4, position_specific=True)
        assert d.patterns.shape == (4, 8, 8)
        assert d.position_specific
        assert d.size == 5

    def test_variance_is_that_of_the_predicted_pixel(self, rng):
        patterns = rng.standard_normal((6, 3, 3))
        prior = rng.uniform(1, 2, 6)
        d = Dictionary(patterns, prior)
        w = prior / prior.sum()
        c = patterns[:, 1, 1]
        assert d.variance == pytest.approx(w @ c**2 - (w @ c) ** 2)


class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda: Dictionary.binary(size=4), ValueError, "size: expected an odd patch side >= 1, .* got 4"),
            (lambda: Dictionary.binary(size=0), ValueError, "size: expected an odd patch side >= 1"),
            (lambda: Dictionary.binary(random=-1), ValueError, "random: expected a number of patterns >= 0, got -1"),
            (lambda: Dictionary(np.ones((2, 4, 4))), ValueError, "size: expected an odd patch side"),
            (lambda: Dictionary(np.ones((2, 3, 5))), ValueError, "patterns: expected square patterns"),
            (lambda: Dictionary(np.ones((3, 3))), ValueError, r"patterns: expected shape \(P, n, n\)"),
            (lambda: Dictionary(np.ones((0, 3, 3))), ValueError, r"patterns: expected shape \(P, n, n\) with P >= 1"),
            (
                lambda: Dictionary(np.full((2, 3, 3), np.nan)),
                ValueError,
                "patterns: NaN or infinite value in pattern 0",
            ),
            (lambda: Dictionary(np.ones((2, 3, 3), complex)), TypeError, "patterns: expected real values, got complex"),
            (lambda: Dictionary([[["a"]]]), TypeError, "patterns: expected real numbers"),
            (lambda: Dictionary(np.ones((2, 3, 3)), prior=[1.0]), ValueError, "prior: expected 2 positive weights"),
            (
                lambda: Dictionary(np.ones((2, 3, 3)), prior=[1.0, 0.0]),
                ValueError,
                "prior: expected 2 positive weights",
            ),
            (lambda: Dictionary(np.ones((2, 3, 3)), size=5), ValueError, "size: patterns have side 3, got size=5"),
            (lambda: Dictionary(np.ones((2, 6, 6)), position_specific=True), ValueError, "size: a position-specific"),
            (
                lambda: Dictionary(np.ones((2, 6, 6)), size=13, position_specific=True),
                ValueError,
                "size: 13 exceeds 11",
            ),
            (
                lambda: Dictionary.from_images(np.ones((2, 4, 4)), size=5),
                ValueError,
                "size: patches of side 5 are larger",
            ),
            (lambda: Dictionary.from_images(np.ones((4, 4)), size=3), ValueError, "images: expected shape"),
            (
                lambda: Dictionary.from_images(np.ones((1, 4, 4)), size=3, count=5),
                ValueError,
                r"count: expected 1 to 4 \(all patches; None keeps them all\), got 5",
            ),
            (
                lambda: Dictionary.from_images(np.ones((1, 4, 4)), size=3, count=None, method="kmeans"),
                ValueError,
                "count: k-means needs the number of clusters",
            ),
            (
                lambda: Dictionary.from_images(np.ones((1, 4, 4)), size=3, method="pca"),
                ValueError,
                "method: expected one of 'random', 'kmeans', got 'pca'",
            ),
        ],
    )
    def test_is_named(self, make, error, message):
        with pytest.raises(error, match=message):
            make()
