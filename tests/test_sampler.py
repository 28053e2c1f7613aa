"""The patch sampler against an independent numpy implementation; seeds, splits and threads; gains; memorisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import fastcrit as fc
from fastcrit.patch import Dictionary, denoise, response, sample
from fastcrit.patch.random import exp, fill_normal, philox
from tests.oracles import patch as oracle
from tests.oracles import spectra as spectra_oracle


def mixed(rng, P=21, n=5):
    """A dictionary with unequal norms and priors; more patterns than the kernels hold at a time."""
    return Dictionary(rng.standard_normal((P, n, n)) * rng.uniform(0.5, 2, (P, 1, 1)), rng.uniform(0.2, 2, P))


class TestRandomNumbers:
    def test_philox_agrees_with_the_published_vectors(self):
        # Random123 kat_vectors: philox4x32 10 with zeros, with ones, and with digits of pi.
        ones = 0xFFFFFFFF
        pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
        known = [
            ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
            ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
            (*pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
        ]
        for counter, key, expected in known:
            words = np.empty((4, 1), np.uint32)
            philox(words, *(np.uint32(c) for c in counter), *(np.uint32(k) for k in key))
            assert tuple(int(w) for w in words[:, 0]) == expected

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_normals_are_normal(self, dtype):
        x = np.empty(400_003, dtype)
        fill_normal(x, np.uint64(7), 3, 5)
        # Kolmogorov-Smirnov at 1e-3, moments within 5 standard errors.
        assert stats.kstest(x.astype(np.float64), "norm").pvalue > 1e-3
        n = len(x)
        assert abs(x.mean(dtype=float)) < 5 / np.sqrt(n)
        assert abs(x.var(dtype=float) - 1) < 5 * np.sqrt(2 / n)
        assert abs(stats.kurtosis(x.astype(float))) < 5 * np.sqrt(24 / n)
        for lag in (1, 2, 3, 4, 400, 1600):
            assert abs(np.mean(x[:-lag].astype(float) * x[lag:])) < 5 / np.sqrt(n)

    def test_streams_of_samples_steps_and_seeds_are_unrelated(self):
        def draw(seed, sample_number, step):
            x = np.empty(20_000, np.float64)
            fill_normal(x, np.uint64(seed), sample_number, step)
            return x

        base = draw(1, 2, 3)
        for other in (draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1 + 2**32, 2, 3), draw(1, 2 + 2**32, 3)):
            assert abs(np.mean(base * other)) < 5 / np.sqrt(20_000)

    def test_the_same_numbers_whatever_the_length(self):
        long, short = np.empty(5000, np.float32), np.empty(1234, np.float32)
        fill_normal(long, np.uint64(9), 1, 1)
        fill_normal(short, np.uint64(9), 1, 1)
        np.testing.assert_array_equal(long[:1234], short)

    def test_the_vectorised_exponential(self):
        from numba import njit

        @njit
        def apply(x, out):
            for i in range(len(x)):
                out[i] = exp(x[i])

        x = np.concatenate([np.linspace(-100, 0, 200_001), [-87.0, -86.999, -0.0]]).astype(np.float32)
        out = np.empty_like(x)
        apply(x, out)
        exact = np.exp(x.astype(np.float64))
        kept = x > -87
        # 2 ulp of float32.
        assert (np.abs(out[kept] - exact[kept]) <= 2 * 2.0**-23 * exact[kept]).all()
        assert (out[~kept] == 0).all()


class TestDenoiser:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-4)])
    @pytest.mark.parametrize("periodic", [True, False])
    @pytest.mark.parametrize(("n", "shape"), [(1, (4, 5)), (3, (3, 7)), (5, (13, 9)), (7, (20, 32)), (9, (9, 9))])
    def test_agrees_with_the_definition(self, dtype, tolerance, periodic, n, shape, rng):
        d = mixed(rng, P=37, n=n)
        for s in (0.3, 1.0, 4.0):
            y = d.patterns[:3, n // 2, n // 2, None, None] + s * rng.standard_normal((3, *shape))
            found = denoise(d, y.astype(dtype), s, boundary="periodic" if periodic else "zero")
            assert found.dtype == dtype
            expected = oracle.denoise(d.patterns, d.prior, y.astype(dtype), s, periodic)
            # float32 logits of size |xi y n^2|/s^2 carry an error of that times 6e-8, here up to 1e-4 relative.
            np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(d.patterns).max())

    @pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-4)])
    @pytest.mark.parametrize("periodic", [True, False])
    @pytest.mark.parametrize("n", [1, 3, 7])
    def test_position_specific_agrees_with_the_definition(self, dtype, tolerance, periodic, n, rng):
        images = rng.standard_normal((9, 10, 7))
        d = Dictionary(images, prior=rng.uniform(1, 2, 9), size=n, position_specific=True)
        for s in (0.5, 3.0):
            y = (images[:2] + s * rng.standard_normal((2, 10, 7))).astype(dtype)
            found = denoise(d, y, s, boundary="periodic" if periodic else "zero")
            expected = oracle.denoise_by_site(images, d.prior, y, s, n, periodic)
            np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(images).max())

    def test_extreme_levels_stay_finite(self, rng):
        d = mixed(rng)
        y = 50 * rng.standard_normal((2, 12, 12))
        for s in (1e-3, 1e-2, 1e3, 1e6):
            for dtype in (np.float32, np.float64):
                assert np.isfinite(denoise(d, y.astype(dtype), s)).all()
        nearest = d.patterns[np.argmin(((d.patterns - y[0, :5, :5]) ** 2).sum((1, 2))), 2, 2]
        assert denoise(d, y, 1e-3)[0, 2, 2] == pytest.approx(nearest)

    def test_torch_in_torch_out(self, rng):
        d = Dictionary.binary()
        y = torch.from_numpy(rng.standard_normal((2, 8, 8))).float()
        assert isinstance(denoise(d, y, 1.0), torch.Tensor)


class TestSampling:
    @pytest.mark.parametrize("solver", ["euler", "heun"])
    @pytest.mark.parametrize("end", [0.2, 0.0])
    def test_ode_solvers_agree_with_the_definition(self, solver, end, rng):
        d = mixed(rng)
        levels = np.array([5.0, 3.0, 1.5, 0.9, 0.4, end])
        start = 5 * rng.standard_normal((3, 11, 14))
        found = sample(d, (11, 14), 3, levels, solver, initial=start, dtype=np.float64)
        expected = oracle.sample(d.patterns, d.prior, (11, 14), 3, levels, solver, rng, initial=start)
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_the_sde_agrees_with_the_definition_for_its_own_noise(self, rng):
        class Philox:
            """Stands in for numpy's generator: the sampler's noise of every sample, step after step."""

            def __init__(self):
                self.step = 0

            def standard_normal(self, shape):
                out = np.empty(shape)
                for j in range(shape[0]):
                    fill_normal(out[j].reshape(-1), np.uint64(11), j, self.step)
                self.step += 1
                return out

        d = mixed(rng)
        levels = np.geomspace(6, 0.3, 9)
        found = sample(d, 10, 3, levels, "sde", seed=11, dtype=np.float64)
        expected = oracle.sample(d.patterns, d.prior, (10, 10), 3, levels, "sde", Philox())
        np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_final_structure_factor_is_that_of_an_independent_implementation(self):
        d = Dictionary.binary(size=3, random=2, seed=5)
        levels = fc.schedules.log_levels(40, high=20, low=0.2)
        ours = fc.structure_factor(sample(d, 16, 600, levels, "sde", seed=1))
        numpys = oracle.sample(d.patterns, d.prior, (16, 16), 600, levels, "sde", np.random.default_rng(2))
        theirs = fc.structure_factor(numpys)
        error = np.hypot(ours.stderr, theirs.stderr)
        assert (np.abs(ours.S - theirs.S) < 4 * error).all()

    def test_threads_and_splits_change_no_bit(self, threads):
        d = Dictionary.binary()
        levels = fc.schedules.log_levels(20, high=20, low=0.2)
        for solver in ("sde", "heun"):
            threads(1)
            one = sample(d, 24, 7, levels, solver, seed=3)
            threads(2)
            np.testing.assert_array_equal(sample(d, 24, 7, levels, solver, seed=3), one)
            parts = [sample(d, 24, n, levels, solver, seed=3, first_sample=a) for a, n in ((0, 1), (1, 4), (5, 2))]
            np.testing.assert_array_equal(np.concatenate(parts), one)

    def test_recording_and_observing_change_no_bit(self):
        d = Dictionary.binary()
        levels = fc.schedules.log_levels(21, high=20, low=0.2)
        seen = []
        rec = fc.Recorder(levels[::4], shape=(24, 24), gain_shells=(0, 1))
        a = sample(d, 24, 5, levels, seed=3)
        b = sample(d, 24, 5, levels, seed=3, recorder=rec, observers=[lambda i, s, y, D: seen.append((i, s, y.std()))])
        np.testing.assert_array_equal(a, b)
        assert [i for i, _, _ in seen] == list(range(21))
        assert (rec.dataset().n_samples == 5).all()

    def test_the_recorder_sees_the_first_and_the_last_state(self):
        d = Dictionary.binary()
        levels = fc.schedules.log_levels(8, high=20, low=0.2)
        rec = fc.Recorder(levels[[0, -1]], shape=(24, 24))
        end = sample(d, 24, 40, levels, seed=3, recorder=rec)
        first = sample(d, 24, 40, levels[:1], seed=3)
        for i, y in enumerate((first, end)):
            np.testing.assert_allclose(rec.dataset().S[i], fc.structure_factor(y).S, rtol=1e-4)

    def test_a_recorder_as_an_observer(self):
        d = Dictionary.binary()
        levels = fc.schedules.log_levels(8, high=20, low=0.2)
        a, b = (fc.Recorder(levels, shape=(24, 24)) for _ in range(2))
        sample(d, 24, 10, levels, seed=3, recorder=a, observers=[b])
        np.testing.assert_array_equal(a.dataset().S, b.dataset().S)

    def test_the_default_boundary_is_that_of_theory(self, rng):
        images = rng.standard_normal((4, 8, 8))
        d = Dictionary(images, size=5, position_specific=True)
        y = rng.standard_normal((2, 8, 8))
        np.testing.assert_array_equal(denoise(d, y, 1.0), denoise(d, y, 1.0, boundary="zero"))

    def test_zero_boundary_differs_and_single_steps_work(self, rng):
        d = Dictionary.binary()
        a = sample(d, 12, 2, [5.0, 2.0], boundary="zero", seed=1)
        assert (a != sample(d, 12, 2, [5.0, 2.0], seed=1)).any()
        np.testing.assert_allclose(sample(d, 12, 2, [5.0], seed=1) / 5, sample(d, 12, 2, [1.0], seed=1), rtol=2e-7)

    def test_ending_at_zero_gives_the_denoised_image(self, rng):
        d = mixed(rng)
        y = rng.standard_normal((2, 9, 9))
        for solver in ("sde", "euler", "heun"):
            end = sample(d, 9, 2, [0.8, 0.0], solver, initial=y, dtype=np.float64)
            np.testing.assert_allclose(end, oracle.denoise(d.patterns, d.prior, y, 0.8), atol=1e-12)


class TestGain:
    @pytest.mark.parametrize("boundary", ["periodic", "zero"])
    def test_agrees_with_finite_differences_of_the_oracle(self, boundary, rng):
        d = mixed(rng, P=6, n=3)
        s, L, h = 1.4, 9, 1e-5
        y = s * rng.standard_normal((2, L, L))
        x0, x1 = np.meshgrid(np.arange(L), np.arange(L), indexing="ij")
        k = 2 * np.pi * np.array([[0, 0], [1, 0], [2, 3]]) / L
        found = response(d, y, s, boundary=boundary).gain(k)
        for j, (a, b) in enumerate(k):
            gain = 0
            for wave in (np.cos(a * x0 + b * x1), np.sin(a * x0 + b * x1)):
                up = oracle.denoise(d.patterns, d.prior, y + h * wave, s, boundary == "periodic")
                down = oracle.denoise(d.patterns, d.prior, y - h * wave, s, boundary == "periodic")
                gain = gain + ((up - down) / (2 * h) * wave).sum((1, 2))
            # <e, J e> with e = exp(ikx)/L is the sum over cos and sin of its parts; its real part needs no cross terms.
            np.testing.assert_allclose(found[:, j].real, gain / L**2, atol=1e-8)

    def test_the_recorder_gets_the_shell_average(self, rng):
        d = Dictionary.binary()
        levels = fc.schedules.log_levels(6, high=10, low=1.0)
        rec = fc.Recorder(levels, shape=(12, 12), gain_shells=(0, 1, 3))
        states = {}
        sample(d, 12, 4, levels, recorder=rec, observers=[lambda i, s, y, D: states.update({i: y.copy()})])
        gain = rec.dataset().gain_on_trajectories
        number = spectra_oracle.shell_numbers((12, 12))
        k = spectra_oracle.wavevectors((12, 12))
        for i, s in enumerate(levels):
            r = response(d, states[i], s)
            expected = [r.gain(k[number == shell]).real.mean() for shell in (0, 1, 3)]
            np.testing.assert_allclose(gain[i], expected, rtol=1e-5, atol=1e-9)

    def test_at_zero_it_is_the_gain_of_theory(self, rng):
        d = mixed(rng)
        k = rng.uniform(-3, 3, (5, 2))
        found = response(d, np.zeros((1, 16, 16)), 2.0).gain(k)[0]
        np.testing.assert_allclose(found, fc.theory.PatchTheory(d, 16).gain(k, 2.0), atol=1e-10)

    def test_position_specific_is_refused(self, rng):
        d = Dictionary(rng.standard_normal((3, 8, 8)), size=3, position_specific=True)
        with pytest.raises(ValueError, match="dictionary: the response to plane waves"):
            response(d, np.zeros((1, 8, 8)), 1.0)


class TestMemorisation:
    def test_a_patch_that_covers_the_image_reproduces_training_images_and_a_small_one_does_not(self):
        images = fc.data.fashion_mnist().pixels()[:1000]
        levels = np.append(fc.schedules.log_levels(30, high=80.0, low=0.02), 0.0)

        def nearest(size):
            d = Dictionary.from_images(images, size=size, count=None, position_specific=True)
            y = sample(d, n_samples=6, levels=levels, solver="sde", seed=2, boundary="zero")
            return np.sqrt(((y[:, None] - images) ** 2).mean(axis=(2, 3))).min(axis=1)

        assert nearest(55).max() < 1e-3  # every sample is a training image
        assert nearest(5).min() > 0.05  # no sample is one


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"levels": None}, ValueError, "levels: expected decreasing noise levels"),
            ({"levels": [1.0, 2.0]}, ValueError, "levels: expected strictly decreasing noise levels, got 1.0 then 2.0"),
            ({"levels": [2.0, -1.0]}, ValueError, "levels: expected positive noise levels, got -1.0"),
            ({"levels": [1e30, 1.0]}, ValueError, "levels: expected noise levels from 1e-12 to 1e12, got 1e\\+30 to 1"),
            ({"initial": np.full((3, 8, 8), 1e39)}, ValueError, "initial: NaN or infinite value in sample 0"),
            ({"levels": [2.0, 0.0, -1.0]}, ValueError, "levels: expected positive"),
            ({"solver": "rk4"}, ValueError, "solver: expected one of 'euler', 'heun', 'sde', got 'rk4'"),
            ({"boundary": "open"}, ValueError, "boundary: expected one of 'periodic', 'zero', got 'open'"),
            ({"n_samples": 0}, ValueError, "n_samples: expected an integer from 1"),
            ({"seed": -1}, ValueError, "seed: expected an integer from 0"),
            ({"seed": 2**64}, ValueError, "seed: expected an integer from 0"),
            ({"first_sample": 1.5}, ValueError, "first_sample: expected an integer from 0"),
            ({"lattice": 4}, ValueError, r"lattice: patterns of side 5 are larger than the lattice \(4, 4\)"),
            ({"lattice": 0}, ValueError, "lattice: expected one side or"),
            ({"lattice": None}, ValueError, "lattice: expected one side or"),
            ({"dtype": np.float16}, ValueError, "dtype: expected float32 or float64, got float16"),
            ({"initial": np.zeros((2, 8, 8))}, ValueError, "initial: expected states"),
            ({"initial": np.full((3, 8, 8), np.nan)}, ValueError, "initial: NaN or infinite value in sample 0"),
            ({"initial": np.zeros((3, 8, 8)), "n_samples": 2}, ValueError, "initial: expected 2 states, got 3"),
            ({"dictionary": np.ones((2, 5, 5))}, TypeError, "dictionary: expected a fastcrit.patch.Dictionary"),
        ],
    )
    def test_of_sample_is_named(self, options, error, message):
        arguments = {"dictionary": Dictionary.binary(), "lattice": 8, "n_samples": 3, "levels": [2.0, 1.0], **options}
        if "initial" in options and options["initial"].shape[0] == 2:
            arguments["lattice"] = 9
        with pytest.raises(error, match=message):
            sample(**arguments)

    def test_recorders_that_do_not_fit(self, rng):
        d = Dictionary.binary()
        with pytest.raises(
            ValueError, match=r"recorder: made for states of shape \(9, 9\), sampling states of shape \(8, 8\)"
        ):
            sample(d, 8, 2, [2.0, 1.0], recorder=fc.Recorder([2.0], shape=(9, 9)))
        with pytest.raises(ValueError, match=r"recorder: its level 1\.5 is not among the sampling levels"):
            sample(d, 8, 2, [2.0, 1.0], recorder=fc.Recorder([1.5], shape=(8, 8)))
        by_site = Dictionary(rng.standard_normal((3, 8, 8)), size=3, position_specific=True)
        with pytest.raises(ValueError, match="recorder: gain_shells needs an equivariant dictionary"):
            sample(by_site, None, 2, [2.0, 1.0], recorder=fc.Recorder([2.0], shape=(8, 8), gain_shells=(0,)))

    def test_of_denoise_is_named(self):
        d = Dictionary.binary()
        with pytest.raises(ValueError, match="y: NaN or infinite value in sample 1"):
            denoise(d, np.stack([np.zeros((8, 8)), np.full((8, 8), np.inf)]), 1.0)
        with pytest.raises(ValueError, match="s: expected a positive number, got 0"):
            denoise(d, np.zeros((1, 8, 8)), 0)
        with pytest.raises(ValueError, match=r"y: expected states \(samples, H, W\), got \(8, 8\)"):
            denoise(d, np.zeros((8, 8)), 1.0)
        with pytest.raises(ValueError, match="lattice: patterns of side 5 are larger"):
            denoise(d, np.zeros((1, 3, 8)), 1.0)
        with pytest.raises(TypeError, match="y: expected real values, got complex"):
            denoise(d, np.zeros((1, 8, 8), complex), 1.0)
