"""The locality gap: resampled, cropped and by regional posteriors, against Gaussian data and patch models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastcrit as fc


def random_spectrum(rng, shape):
    """Positive and even, with correlations that reach a few sites."""
    k2 = sum(np.meshgrid(*[4 * np.sin(np.pi * np.fft.fftfreq(side)) ** 2 for side in shape], indexing="ij"))
    return np.abs(np.fft.fftn(rng.normal(size=shape))) ** 2 / np.prod(shape) / (0.3 + k2)


def wiener(C, s, inside):
    """By the definition, with dense matrices: weights of the sites ``inside`` for the first, and its error."""
    shape = C.shape
    sites = np.argwhere(inside)
    apart = tuple(np.moveaxis((sites[:, None] - sites[None]) % shape, -1, 0))
    own = C[tuple(sites.T)]
    w = np.linalg.solve(C[apart] + s**2 * np.eye(len(sites)), own)
    return w, C.flat[0] - own @ w


def near(shape, radius):
    offsets = np.stack(np.meshgrid(*[(np.arange(n) + n // 2) % n - n // 2 for n in shape], indexing="ij"), axis=-1)
    return (np.abs(offsets) <= radius).all(axis=-1)


class TestGaussianTheory:
    @pytest.mark.parametrize("shape", [(7, 8), (11,), (4, 3, 5)])
    def test_gaps_by_dense_matrices(self, rng, shape):
        theory, s = fc.theory.GaussianTheory(random_spectrum(rng, shape)), 0.9
        C = np.fft.ifftn(theory.spectrum).real
        everything, mmse = wiener(C, s, np.ones(shape, bool))
        for radius in range(max(shape) // 2 + 1):
            inside = near(shape, radius)
            w, error = wiener(C, s, inside)
            np.testing.assert_allclose(theory.window_filter(s, radius)[inside], w, atol=1e-13)
            assert not theory.window_filter(s, radius)[~inside].any()
            assert theory.locality_gap(s, radius) == pytest.approx(error - mmse, abs=1e-13)
            outside = np.argwhere(~inside)
            apart = tuple(np.moveaxis((outside[:, None] - outside[None]) % shape, -1, 0))
            beyond = everything.reshape(shape)[~inside]
            expected = 2 * beyond @ (C[apart] + s**2 * np.eye(len(outside))) @ beyond
            assert theory.locality_gap(s, radius, method="resampled") == pytest.approx(expected, abs=1e-13)

    def test_refusals(self):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
        with pytest.raises(ValueError, match=r"^s: expected a positive number"):
            theory.locality_gap(0.0, 1)
        with pytest.raises(ValueError, match=r"^radius: expected an integer of at least 0"):
            theory.locality_gap(1.0, -1)
        with pytest.raises(ValueError, match=r"^method: expected one of 'exact', 'resampled'"):
            theory.locality_gap(1.0, 1, method="cropped")


class TestMeasured:
    levels = (3.0, 1.0, 0.4)
    radii = (0, 1, 2, 3)

    @pytest.mark.parametrize("shape", [(9, 12), (10, 10)])
    def test_resampled_is_that_of_gaussian_data_at_four_radii(self, rng, shape):
        theory = fc.theory.GaussianTheory(random_spectrum(rng, shape))
        x0 = theory.sample_data(400, seed=1)[:, None]
        found = fc.diffusion.locality_gap(fc.diffusion.from_gaussian(theory), x0, self.levels, self.radii, sites=4)
        expected = np.array([[theory.locality_gap(s, r, method="resampled") for r in self.radii] for s in self.levels])
        np.testing.assert_array_less(np.abs(found.gap - expected), 5 * found.stderr)
        assert (found.stderr < 0.1 * expected).all()  # a factor of 2, or of s, would be seen
        np.testing.assert_allclose(found.amplitude, np.sqrt(found.gap))
        assert found.method == "resampled"
        low, high = found.interval(0.9)
        np.testing.assert_allclose(high - low, 2 * 1.6448536 * found.stderr, rtol=1e-6)

    def test_a_regional_posterior_gives_the_exact_gap(self, rng):
        shape = (9, 12)
        theory = fc.theory.GaussianTheory(random_spectrum(rng, shape))
        x0 = theory.sample_data(400, seed=2)[:, None]
        for radius in (0, 1, 2, 4):

            def windowed(y, s, inside, radius=radius):
                """Of what is inside alone; right at the centre."""
                w = np.fft.rfftn(theory.window_filter(s, radius))
                seen = torch.fft.rfftn(torch.where(inside, y, 0.0).double(), dim=(2, 3))
                return torch.fft.irfftn(seen * torch.from_numpy(w).conj(), s=shape, dim=(2, 3))

            found = fc.diffusion.locality_gap(
                fc.diffusion.from_gaussian(theory), x0, self.levels, [radius], method=windowed, sites=4
            )
            expected = np.array([theory.locality_gap(s, radius) for s in self.levels])
            np.testing.assert_array_less(np.abs(found.gap[:, 0] - expected), 5 * found.stderr[:, 0])
            assert (found.stderr[:, 0] < 0.1 * expected).all()
            assert found.method == "windowed"

    def test_regional_posteriors_of_a_mixture_lose_what_their_errors_say(self, rng):
        """E|D_A(y) - D_A(y_W)|^2 = mmse(A|y_W) - mmse(A|y), with both errors measured against the images."""
        means = 0.8 * rng.normal(size=(3, 2, 1, 1)) + 0.4 * rng.normal(size=(3, 2, 6, 7))
        model = fc.theory.GaussianMixture(means, 0.6, [1.0, 2.0, 2.0])
        x0, _ = model.sample_data(4000, seed=3)
        lost = []

        def regional(y, s, inside):
            return torch.from_numpy(model.denoise(y, s, inside))

        s, n = 2.0, rng.normal(size=x0.shape)
        y = x0 + s * n
        whole = model.denoise(y, s)
        np.testing.assert_allclose(whole, fc.diffusion.from_mixture(model)(torch.from_numpy(y), s), atol=1e-12)
        for radius in (0, 1, 2):
            inside = np.roll(near((6, 7), radius), (2, 3), axis=(0, 1))
            alone = model.denoise(y, s, inside)
            errors = [((x - x0) ** 2).mean(axis=1)[:, 2, 3] for x in (alone, whole)]
            change = ((alone - whole) ** 2).mean(axis=1)[:, 2, 3]
            apart = errors[0] - errors[1] - change
            assert abs(apart.mean()) < 5 * apart.std() / 4000**0.5
            assert change.mean() > 10 * apart.std() / 4000**0.5 or radius == 2
            lost.append(change.mean())
        assert lost[0] > lost[1] > lost[2]
        found = fc.diffusion.locality_gap(fc.diffusion.from_mixture(model), x0[:600], [s], [0, 1, 2], method=regional)
        assert (np.diff(found.gap[0]) < 0).all()

    def test_the_regional_posterior_of_a_mixture_is_that_of_its_sites(self, rng):
        model = fc.theory.GaussianMixture(rng.normal(size=(3, 1, 3, 4)), 0.7, [1.0, 2.0, 2.0])
        y, inside = rng.normal(size=(5, 1, 3, 4)), rng.random((5, 1, 3, 4)) < 0.4
        found = model.posterior(y, 1.2, inside)
        distance = ((y[:, None] - model.means) ** 2 * inside[:, None]).sum(axis=(2, 3, 4))
        expected = model.weights * np.exp(-distance / (2 * (0.49 + 1.44)))
        np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-13)
        every = np.ones((1, 1, 3, 4), bool)
        np.testing.assert_allclose(model.denoise(y, 1.2, every), model.denoise(y, 1.2), atol=1e-13)
        prior = model.denoise(y, 1.2, ~every)
        np.testing.assert_allclose(prior[0], np.tensordot(model.weights, model.means, axes=1), atol=1e-13)
        for bad in (np.ones((3, 4)), np.ones((2, 5), bool)):
            with pytest.raises(ValueError, match=r"^inside: expected bools that broadcast"):
                model.denoise(y, 1.2, bad)

    @pytest.mark.parametrize(("size", "shape"), [(3, (8, 9)), (5, (11, 9))])
    def test_nothing_is_lost_beyond_the_patch(self, rng, size, shape):
        d = fc.patch.Dictionary.binary(size, 6, seed=int(rng.integers(99)))
        D, x0 = fc.diffusion.from_patch(d), np.sign(rng.normal(size=(12, 1, *shape)))
        found = fc.diffusion.locality_gap(D, x0, [2.0, 0.8], range(4), sites=3)
        assert not found.samples[:, size // 2 :].any()
        assert (found.gap[:, : size // 2] > 0).all()
        cropped = fc.diffusion.locality_gap(D, x0, [2.0], [size // 2, size // 2 + 1], method="cropped")
        assert cropped.gap.max() < 1e-10  # float32; a crop's own centre sees its whole patch

    def test_a_crop_sees_what_a_window_of_a_larger_image_does(self, rng):
        """A convolution of 3 x 3 with zeros beyond edges: its crop of radius 0 lacks the neighbours, and no more."""
        kernel = torch.from_numpy(rng.normal(size=(1, 1, 3, 3)))
        D = fc.diffusion.from_denoiser(lambda y, s: torch.nn.functional.conv2d(y, kernel.to(y), padding=1))
        x0 = rng.normal(size=(600, 1, 8, 7))
        outside = (kernel.square().sum() - kernel[0, 0, 1, 1] ** 2).item()
        for periodic in (False, True):
            found = fc.diffusion.locality_gap(
                D, x0, [0.5], [0, 1], method="cropped", periodic=periodic, sites=2, batch_size=77
            )
            if not periodic:  # margins keep windows inside: the neighbours have unit variance and s^2 of noise
                assert found.gap[0, 0] == pytest.approx(outside * 1.25, abs=5 * found.stderr[0, 0])
                assert found.gap[0, 1] < 1e-20

    def test_windows_stop_at_edges_or_go_on(self):
        """D is the mean over the whole lattice: with all but a window replaced, what changes is the others' share."""
        D = fc.diffusion.from_denoiser(lambda y, s: y.mean(dim=(2, 3), keepdim=True).expand_as(y))
        x0 = np.array([0.0, 100.0])[:, None, None, None] * np.ones((2, 1, 5, 6))
        for periodic, expected in ((True, {21 / 30}), (False, {21 / 30, 24 / 30, 26 / 30})):
            found = fc.diffusion.locality_gap(D, x0, [1e-3], [1], periodic=periodic, sites=1, seed=3)
            share = np.sqrt(found.samples[0, 0]) / 100
            assert all(min(abs(one - x) for x in expected) < 1e-4 for one in share)

    @pytest.mark.parametrize("shape", [(2, 9), (1, 4, 5, 6)])
    def test_lines_and_volumes(self, rng, shape):
        D = fc.diffusion.from_denoiser(lambda y, s: y + torch.roll(y, 2, dims=-1), shape=shape)
        found = fc.diffusion.locality_gap(D, rng.normal(size=(4, *shape)), [1.0], [0, 1, 2])
        assert (found.gap[0, :2] > 0).all()
        assert found.gap[0, 2] == 0

    def test_labels_and_types(self, rng):
        model = fc.theory.GaussianMixture(rng.normal(size=(3, 2, 4, 5)), 0.5)
        x0, labels = model.sample_data(30)
        D = fc.diffusion.from_mixture(model)
        # With its class known the posterior has one site; without, all.
        known = fc.diffusion.locality_gap(D, x0, [2.0], [0], labels, batch_size=7)
        free = fc.diffusion.locality_gap(D, torch.from_numpy(x0), [2.0], [0])
        assert not known.gap.any()
        assert free.gap[0, 0] > 0

    def test_seeds_repeat_to_the_bit_and_batches_change_nothing(self, rng):
        theory = fc.theory.GaussianTheory(random_spectrum(rng, (6, 7)))
        D, x0 = fc.diffusion.from_gaussian(theory), theory.sample_data(9, seed=1)[:, None]
        one, again, other = (fc.diffusion.locality_gap(D, x0, [1.0], [0, 1], seed=k) for k in (1, 1, 2))
        np.testing.assert_array_equal(one.samples, again.samples)
        assert (one.samples != other.samples).all()
        small = fc.diffusion.locality_gap(D, x0, [1.0], [0, 1], seed=1, batch_size=2)
        np.testing.assert_allclose(small.samples, one.samples, rtol=1e-9)

    def test_errors_are_those_that_averages_scatter_by(self):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=6)
        D = fc.diffusion.from_gaussian(theory)
        gaps, errors = [], []
        for draw in range(150):
            x0 = theory.sample_data(40, seed=draw)[:, None]
            found = fc.diffusion.locality_gap(D, x0, [1.0], [0], seed=draw)
            gaps.append(found.gap[0, 0])
            errors.append(found.stderr[0, 0])
        # The spread of 150 is known to 6 %; correlations of neighbours count where they are positive alone.
        assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(gaps), rel=0.25)


class TestRefusals:
    D = fc.diffusion.from_denoiser(lambda y, s: 0.5 * y)
    x0 = np.zeros((3, 1, 5, 6))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"D": lambda y, s: y}, TypeError, r"^D: expected a Denoiser, got function"),
            ({"x0": x0[:1]}, ValueError, r"^x0: expected two images or more"),
            ({"x0": x0[0]}, ValueError, r"^x0: expected two images or more"),
            ({"x0": np.where(np.arange(3)[:, None, None, None] == 1, np.nan, x0)}, ValueError, r"^x0: .* in image 1"),
            ({"levels": [0.0]}, ValueError, r"^levels: expected positive"),
            ({"levels": [1.0, 2.0]}, ValueError, r"^levels: expected strictly decreasing"),
            ({"radii": [1, 1]}, ValueError, r"^radii: expected ascending integers"),
            ({"radii": [-1]}, ValueError, r"^radii: expected ascending"),
            ({"radii": [0.5]}, ValueError, r"^radii: expected ascending"),
            ({"radii": 3}, ValueError, r"^radii: expected ascending"),
            ({"radii": [3], "method": "cropped"}, ValueError, r"^radii: expected at most 2 for crops"),
            ({"method": "fixed"}, ValueError, r"^method: expected one of 'resampled', 'cropped', 'masked', got"),
            ({"method": "masked"}, TypeError, r"^D: attention windows are known of DiT.*; take locality_gap"),
            ({"sites": 0}, ValueError, r"^sites: expected an integer of at least 1"),
            ({"labels": [0, 1, 2]}, ValueError, r"^labels: "),
        ],
    )
    def test_by_name(self, options, error, message):
        given = {"D": self.D, "x0": self.x0, "levels": [1.0], "radii": [1]} | options
        with pytest.raises(error, match=message):
            fc.diffusion.locality_gap(given.pop("D"), given.pop("x0"), given.pop("levels"), given.pop("radii"), **given)

    def test_crops_of_one_shape_alone(self):
        D = fc.diffusion.from_denoiser(lambda y, s: y, shape=(1, 5, 6))
        with pytest.raises(ValueError, match=r"^method: .* takes states of one shape alone"):
            fc.diffusion.locality_gap(D, self.x0, [1.0], [1], method="cropped")

    def test_what_is_not_finite_is_named(self):
        D = fc.diffusion.from_denoiser(lambda y, s: y * torch.where(y.amax((1, 2, 3), keepdim=True) > 50, torch.nan, 1))
        x0 = self.x0.copy()
        x0[1] += 100
        with pytest.raises(FloatingPointError, match=r"^x0: the denoised image of image 1 at s = 1 is"):
            fc.diffusion.locality_gap(D, x0, [1.0], [0])

    def test_confidence(self):
        found = fc.diffusion.locality_gap(self.D, self.x0, [1.0], [1])
        with pytest.raises(ValueError, match=r"^confidence: "):
            found.interval(1.0)
