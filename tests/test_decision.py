"""Where the class is decided: curves of a mixture of Gaussians against quadrature, and guidance placed by them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
import torch

import fastcrit as fc
from fastcrit.diffusion import Pulse, class_entropy_rate, forward_backward, from_mixture, sample
from fastcrit.theory import GaussianMixture


def two_classes(half_distance, std=0.5, weight=0.5):
    """Means at +-a on a 4 x 4 lattice, a in units of the distance in 16 dimensions."""
    mean = np.full((1, 4, 4), half_distance / 4.0)
    return GaussianMixture(np.stack([mean, -mean]), std, [weight, 1.0 - weight])


def expected_of(s, half_distance, std, weight, function):
    """E over classes and states of function(p of the other class), by quadrature along the line between the means."""
    x, w = np.polynomial.hermite_e.hermegauss(200)
    total = std**2 + s**2
    out = 0.0
    for sign, own in ((1.0, weight), (-1.0, 1.0 - weight)):
        u = sign * half_distance + np.sqrt(total) * x
        odds = 2.0 * half_distance * sign * u / total + np.log(own / (1.0 - own))
        out += own * (w * function(scipy.special.expit(-odds))).sum() / w.sum()
    return out


def exact_rate(s, a, std, weight=0.5):
    """E|D_y - D_0|^2/s^3 with D_y - D_0 = s^2/(v + s^2) (1 - p_y) (mu_y - mu_other)."""
    return expected_of(s, a, std, weight, lambda p: p**2) * (2.0 * a) ** 2 * s / (std**2 + s**2) ** 2


class TestMixture:
    def test_denoisers_are_posterior_means(self, rng):
        """Against the definition on many data: sum of x0 p(y | x0) over sum of p(y | x0), in two dimensions."""
        model = GaussianMixture(np.array([[1.0, 0.2], [-0.4, 0.9], [0.1, -1.0]]).reshape(3, 1, 1, 2), 0.6, [1, 2, 3])
        D, s = from_mixture(model), 0.8
        x0, labels = model.sample_data(400_000, seed=1)
        for y in rng.normal(size=(4, 1, 1, 2)):
            weight = np.exp(-((y - x0) ** 2).sum(axis=(1, 2, 3)) / (2 * s**2))
            for label in (None, 0, 2):
                own = weight if label is None else weight * (labels == label)
                expected = (own[:, None, None, None] * x0).sum(axis=0) / own.sum()
                # 4e5 draws with a share of about 0.1 within reach: an error of 0.6/sqrt(4e4) = 0.003; five of them.
                found = D(torch.from_numpy(y)[None], s, label)
                assert found[0].numpy() == pytest.approx(expected, abs=0.015)
            posterior = np.bincount(labels, weight) / weight.sum()
            assert model.posterior(y[None], s)[0] == pytest.approx(posterior, abs=0.01)

    def test_the_adapter_and_the_model_agree(self, rng):
        model = GaussianMixture(rng.normal(size=(3, 2, 4, 3)), 0.5)
        y, s = rng.normal(size=(5, 2, 4, 3)), torch.tensor([0.1, 0.5, 1.0, 3.0, 50.0], dtype=torch.float64)
        D = from_mixture(model)
        together = D(torch.from_numpy(y), s)
        for i, level in enumerate(s.tolist()):
            weighted = sum(
                p * D(torch.from_numpy(y[i : i + 1]), level, c)
                for c, p in enumerate(model.posterior(y[i : i + 1], level)[0])
            )
            torch.testing.assert_close(together[i : i + 1], weighted, rtol=1e-12, atol=1e-12)

    def test_samples_of_a_class_are_its_gaussian(self):
        model = two_classes(2.0, std=0.7)
        levels = np.append(fc.schedules.log_levels(200, high=100, low=0.005), 0.0)
        y = sample(from_mixture(model), 1, 4000, levels, "heun", dtype=torch.float64).numpy()
        # Standard errors of 64,000 sites: 0.7/253 and, of a variance, 0.49 sqrt(2)/253; Heun's own error is smaller.
        assert y.mean() == pytest.approx(-0.5, abs=4 * 0.7 / 253)
        assert y.var() == pytest.approx(0.49, abs=4 * 0.49 * 2**0.5 / 253)


class TestEntropyRate:
    @pytest.mark.parametrize(
        ("a", "std", "weight"), [(2.0, 0.5, 0.5), (4.0, 0.5, 0.5), (8.0, 1.0, 0.5), (4.0, 0.3, 0.2)]
    )
    def test_is_the_quadratures_and_integrates_to_the_entropy(self, a, std, weight):
        model = two_classes(a, std, weight)
        # Where classes overlap, the state without noise leaves some entropy: what is gained above is less.
        clean = expected_of(1e-9, a, std, weight, lambda p: -np.log1p(-np.minimum(p, 1 - 1e-15)))
        x0, labels = model.sample_data(8000, seed=3)
        levels = fc.schedules.log_levels(36, high=1000 * std, low=0.02 * std)
        found = class_entropy_rate(from_mixture(model), x0, labels, levels, seed=5)
        expected = np.array([exact_rate(s, a, std, weight) for s in levels])
        # Where rare states carry the rate, their share among the images says little of its error.
        carried = levels * expected > 0.02 * (levels * expected).max()
        assert (np.abs(found.rate - expected) < 5 * found.stderr)[carried].all()
        total, error = found.integral
        assert error < 0.02 * model.class_entropy
        assert total == pytest.approx(model.class_entropy - clean, abs=0.03 * model.class_entropy)

    def test_three_classes_integrate_to_the_entropy(self, rng):
        model = GaussianMixture(3.0 * rng.normal(size=(3, 1, 3, 5)), 0.4, [3, 2, 1])
        x0, labels = model.sample_data(8000, seed=3)
        found = class_entropy_rate(from_mixture(model), x0, labels, fc.schedules.log_levels(36, high=1000, low=0.02))
        assert found.integral[0] == pytest.approx(model.class_entropy, rel=0.03)

    def test_peak_is_the_quadratures_and_none_of_a_rising_curve(self):
        a, std = 4.0, 0.5
        x0, labels = two_classes(a, std).sample_data(5000)
        levels = fc.schedules.log_levels(40, high=100, low=0.05)
        found = class_entropy_rate(from_mixture(two_classes(a, std)), x0, labels, levels)
        at = np.argmax([s * exact_rate(s, a, std) for s in levels])
        assert levels[at + 1] <= found.peak <= levels[at - 1]
        assert np.isnan(type(found)(levels, np.outer(levels**-2, np.linspace(0.9, 1.1, 50))).peak)

    def test_chunks_and_batches_do_not_matter(self):
        x0, labels = two_classes(2.0).sample_data(40)
        D, levels = from_mixture(two_classes(2.0)), [3.0, 1.0]
        whole = class_entropy_rate(D, x0, labels, levels).samples
        assert class_entropy_rate(D, x0, labels, levels, batch_size=7).samples == pytest.approx(whole, rel=1e-5)
        part = class_entropy_rate(D, x0[30:], labels[30:], levels, first_sample=30).samples
        assert part == pytest.approx(whole[:, 30:], rel=1e-5)


class TestForwardBackward:
    def test_retention_falls_from_all_to_chance_where_the_classes_meet(self):
        """The posterior at the noisy state is the chance of the class that an exact sampler returns to."""
        a, std = 4.0, 0.5
        model = two_classes(a, std)
        x0, _ = model.sample_data(600, seed=2)
        levels = [40.0, 8.0, 4.0, 2.0, 0.8]

        def judge(y):
            return torch.from_numpy(model.posterior(y.numpy(), 0.0))

        found = forward_backward(from_mixture(model), x0, judge, levels, steps=80, solver="sde", seed=4)
        expected = [1.0 - expected_of(s, a, std, 0.5, lambda p: p) for s in levels]
        # Five binomial errors; the ancestral steps of log width 0.1 add less than 0.02.
        assert found.retained == pytest.approx(expected, abs=5 * 0.5 / 600**0.5 + 0.02)
        low, high = found.interval()
        assert ((low <= found.retained) & (found.retained <= high)).all()

    def test_bad_values_are_named(self, rng):
        model = two_classes(2.0)
        D, x0 = from_mixture(model), np.zeros((3, 1, 4, 4))
        judge = lambda y: torch.zeros(len(y), 2)  # noqa: E731
        only_labels = fc.diffusion.from_denoiser(lambda x, s, y: x, classes=2)
        for call, message in (
            (lambda: forward_backward(D, x0[:1], judge, [1.0]), "images: expected two or more"),
            (lambda: forward_backward(D, x0[:, :, :3], judge, [1.0]), r"images: .* \(3, 1, 3, 4\)"),
            (lambda: forward_backward(D, np.full_like(x0, np.nan), judge, [1.0]), "images: NaN"),
            (lambda: forward_backward(D, x0, judge, [1.0], lowest=2.0), "lowest: "),
            (lambda: forward_backward(D, x0, judge, [1.0], steps=1), "steps: "),
            (lambda: forward_backward(only_labels, x0, judge, [1.0]), "D: expected a network that works without"),
            (lambda: class_entropy_rate(only_labels, x0, [0, 1, 0], [1.0]), "D: expected a network that works with"),
            (lambda: class_entropy_rate(D, x0, [0, 1, 2], [1.0]), "labels: expected classes from 0 to 1"),
            (lambda: class_entropy_rate(D, x0, [0, 1, 0], [1.0, 2.0]), "levels: expected strictly decreasing"),
            (lambda: GaussianMixture(np.zeros((1, 1, 2, 2)), 1.0), "means: expected shape"),
            (lambda: GaussianMixture(np.zeros((2, 1, 2, 2)), 0.0), "std: "),
            (lambda: GaussianMixture(np.zeros((2, 1, 2, 2)), 1.0, [1.0, -1.0]), "weights: "),
            (lambda: model.posterior(np.zeros((1, 2, 2)), 1.0), "y: expected states"),
            (lambda: model.sample_data(0), "n: "),
        ):
            with pytest.raises(ValueError, match=message):
                call()
        with pytest.raises(TypeError, match="D: expected a Denoiser"):
            class_entropy_rate(judge, x0, [0, 0, 0], [1.0])
        with pytest.raises(TypeError, match="model: expected"):
            from_mixture(D)


class TestWhereGuidanceWorks:
    """The exact null: how far a weak pulse moves the log odds of a sample is known, level by level."""

    @pytest.mark.parametrize(("a", "std"), [(2.0, 0.5), (4.0, 0.5), (8.0, 0.5)])
    def test_the_alignment_curve_is_the_analytic_one_and_its_maximum_lies_at_higher_noise_than_the_entropy_rates(
        self, a, std
    ):
        r"""A pulse of weight w adds (w - 1)(D_y - D_0)/s per unit of s to the flow of the class.

        The flow of a Gaussian scales what is added at s by sqrt(v/(v + s^2)) until s = 0, and the log odds there are
        2 a u/v along the line between the means. So their mean gain per unit of log s is

            (w - 1) s^2/(v + s^2)^{3/2} E[1 - p_y] (2a)^2/sqrt(v),

        while the entropy rate is s^2/(v + s^2)^2 E[(1 - p_y)^2] (2a)^2 per unit of log s. They differ: guidance acts
        on states near the decision in first order of 1 - p_y and not in second, and what it adds at low noise shrinks
        less. Both favour pulses before the rate's maximum.
        """
        model = two_classes(a, std)
        D, n, weight = from_mixture(model), 800, 1.05
        grid = fc.schedules.log_levels(60, high=20 * a, low=0.02)
        labels = np.arange(n) % 2
        step = np.log(grid[0] / grid[1])

        def margin(guidance):
            y = sample(D, labels, n, np.append(grid, 0.0), "heun", guidance=guidance, dtype=torch.float64).numpy()
            u = y.mean(axis=(1, 2, 3)) * 4.0 * np.where(labels == 0, 1.0, -1.0)  # along the line of the means
            return 2.0 * a * u / std**2

        base = margin(None)
        v = std**2

        def analytic(s):
            return s**2 / (v + s**2) ** 1.5 * expected_of(s, a, std, 0.5, lambda p: p) * (2 * a) ** 2 / v**0.5

        places = range(2, 56, 4)
        centres = np.array([np.sqrt(grid[i] * grid[i + 2]) for i in places])
        gain = np.stack([margin(Pulse(s, 3 * step, weight)) - base for s in centres])
        measured, error = gain.mean(axis=1), gain.std(axis=1) / n**0.5
        expected = (weight - 1) * np.array(
            [np.mean([analytic(s * np.exp(x)) for x in step * np.linspace(-1.5, 1.5, 7)]) for s in centres]
        ) * 3 * step  # fmt: skip
        # Five standard errors, and 5 % of the largest for second order in w - 1 and for the steps.
        assert (np.abs(measured - expected) < 5 * error + 0.05 * expected.max()).all()
        best = centres[measured.argmax()]
        # The maximum is that of the analytic curve, to a pulse's spacing, and at higher noise than the rate's.
        fine = np.geomspace(0.05, 20 * a, 400)
        assert abs(np.log(best / fine[np.argmax([analytic(s) for s in fine])])) < 4.5 * step
        assert fine[np.argmax([analytic(s) for s in fine])] > fine[np.argmax([s * exact_rate(s, a, std) for s in fine])]
