"""Rates of the reverse drift: exact on Gaussian data, log 26 on the pair of patterns, and what the signature says."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import fastcrit as fc
from fastcrit._edge.statefile import write_state
from fastcrit._estimates.dataset import with_drift
from fastcrit._estimates.extrema import Curve, first_zero
from fastcrit.critical import INSTABILITY, WEAKENING, CriticalPoint, gaussian_rates, stored_critical_point
from fastcrit.modes import dispersion_length, drift_rate

LEVELS = fc.schedules.log_levels(40, high=30.0, low=0.1)


def with_gains(gain, scatter=0.0, seed=0, samples=64, levels=LEVELS, shape=(16, 16), **options):
    """A recorder's dataset of noise, with gains (levels, shells) that scatter between samples by so much."""
    rng = np.random.default_rng(seed)
    rec = fc.Recorder(levels, shape=shape, gain_shells=range(gain.shape[1]), **options)
    for i, s in enumerate(levels):
        rec.update(i, s * rng.standard_normal((samples, *shape)))
        rec.update_gain(i, gain[i] + scatter * rng.standard_normal((samples, gain.shape[1])))
    return rec.dataset()


class TestRate:
    def test_it_is_one_half_less_the_softening(self, rng):
        gain, s = rng.uniform(-0.2, 1.2, (7, 3)), np.geomspace(50, 0.1, 7)[:, None]
        for std in (1.0, 0.3):
            softening = (1 - gain) * (s**2 + std**2) / s**2
            np.testing.assert_allclose(drift_rate(gain, s, std), 0.5 - softening, rtol=1e-13)
            np.testing.assert_allclose(drift_rate(gain, s, std, "ode"), 0.5 - softening / 2, rtol=1e-13)

    def test_gaussian_data_cross_where_p_is_two_variances_above_the_noise(self):
        for P, std in ((4.0, 1.0), (30.0, 1.0), (3.0, 0.5)):
            s = np.sqrt(P - 2 * std**2)
            assert drift_rate(P / (P + s**2), s, std) == pytest.approx(0.0, abs=1e-14)
        # The ODE's: 1 - (s^2 + v)/(2 (P + s^2)) is below 0 nowhere but where s^2 + v > P + s^2.
        assert drift_rate(0.5 / (0.5 + 4.0), 2.0, 1.0, "ode") < 0 < drift_rate(1.5 / (1.5 + 4.0), 2.0, 1.0, "ode")

    def test_datasets_and_arrays_alike(self, rng):
        gain = xr.DataArray(rng.uniform(0, 1, (4, 2)), dims=("level", "shell"), coords={"level": [8.0, 4.0, 2.0, 0.0]})
        rate = drift_rate(gain, gain.level)
        assert rate.dims == gain.dims
        np.testing.assert_allclose(rate[:3], drift_rate(gain.values[:3], gain.level.values[:3, None]))
        assert np.isnan(rate[3]).all()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0.5, 1.0, 1.0, "vp"), "process: expected one of 'sde', 'ode', got 'vp'"),
            ((0.5, -1.0), "s: expected noise levels >= 0"),
            ((0.5, float("nan")), "s: expected noise levels >= 0"),
            ((0.5, 1.0, 0.0), "data_std: expected a positive number"),
            (
                (np.ones((4, 3)), np.ones(4)),
                r"s: expected a noise level, or as many as broadcast against gain \(4, 3\)",
            ),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            drift_rate(*arguments)


class TestLength:
    @pytest.mark.parametrize("process", ["sde", "ode"])
    def test_a_quadratic_dispersion_gives_its_length(self, process):
        k2, s, std, xi = np.array([0.0, 0.1, 0.2, 0.4, 0.8]), 3.0, 1.4, 2.5
        variance = s**2 / (s**2 + std**2) * (1 if process == "sde" else 2)
        gain = 1 - variance * (0.5 + 0.2 * (1 + xi**2 * k2))  # mu = -0.2 (1 + xi^2 k^2)
        options = {"of": "drift", "s": s, "data_std": std, "process": process}
        assert dispersion_length(k2, gain, **options) == pytest.approx(xi, rel=1e-12)
        rows = dispersion_length(k2, np.stack([gain, gain]), **{**options, "s": np.array([s, s])})
        np.testing.assert_allclose(rows, xi)
        # Above the zero there is no length; of the score there is.
        unstable = 1 - variance * (0.5 - 0.2 * (1 - k2))
        assert np.isnan(dispersion_length(k2, unstable, **options))
        assert np.isfinite(dispersion_length(k2, unstable))

    def test_it_needs_the_level(self):
        with pytest.raises(ValueError, match='s: needed for of="drift", got None'):
            dispersion_length(np.array([0.0, 1.0]), np.zeros(2), of="drift")


class TestDataset:
    def test_everything_follows_from_the_gains(self, rng):
        gain = rng.uniform(0, 0.8, (len(LEVELS), 4))
        ds = with_gains(gain, 0.05, data_std=0.7)
        s = ds.level.values[:, None]
        np.testing.assert_allclose(ds.drift_rate, drift_rate(ds.gain_on_trajectories.values, s, 0.7))
        np.testing.assert_allclose(ds.drift_rate, 0.5 - ds.softening)
        np.testing.assert_allclose(ds.drift_rate_stderr, ds.softening_stderr)
        assert ds.drift_rate_jackknife.dims == ("block", "level", "shell")
        k2 = fc.Recorder([1.0], shape=(16, 16)).grid.shell_k2[:4]
        for i in (3, 20):
            expected = dispersion_length(
                k2, ds.gain_on_trajectories[i].values, ds.gain_on_trajectories_stderr[i].values, of="drift",
                s=float(s[i, 0]), data_std=0.7,
            )  # fmt: skip
            np.testing.assert_allclose(ds.xi_drift[i], expected)

    def test_a_run_of_an_older_version_gets_it_from_what_it_has(self, tmp_path):
        gain = 4 / (4 + LEVELS[:, None] ** 2) * np.array([1.0, 0.5])
        ds = with_gains(gain, 0.01)
        new = [str(n) for n in ds if str(n).startswith(("drift_rate", "xi_drift"))]
        assert len(new) == 6
        old = ds.drop_vars(new)
        xr.testing.assert_identical(with_drift(old)[new], ds[new])
        pytest.importorskip("zarr")
        fc.store.save_dataset(old, tmp_path / "old.zarr")
        xr.testing.assert_identical(fc.store.load_dataset(tmp_path / "old.zarr")[new], ds[new])
        assert str(fc.critical_point(old)) == str(fc.critical_point(ds))
        # What it had found says nothing of the drift: it is looked for again.
        ds.attrs["critical_point"] = '{"softening": {"name": "softening", "level": 2.0, "low": 1.0, "high": 3.0, ' \
            '"prominence": 9.0, "noise": 3.0, "reason": ""}}'  # fmt: skip
        assert stored_critical_point(ds)[INSTABILITY].level > 0

    @pytest.mark.parametrize("shape", [(16, 16), (2, 16, 16)])
    def test_a_recorder_saved_by_an_older_version_is_read(self, tmp_path, rng, shape):
        rec = fc.Recorder(LEVELS[:6], shape=shape, gain_shells=range(3))
        for i in range(6):
            rec.update(i, rng.standard_normal((20, *shape)))
            rec.update_gain(i, rng.uniform(0, 1, (20, 3)))
        old = {n: a for n, a in rec.sums().items() if n not in ("cross", "gain_matrix")}
        config = {n: v for n, v in rec.config().items() if n != "denoised"}
        counters = {"next": rec._record.next, "next_gain": rec._record.next_gain}
        write_state(tmp_path / "rec", "fastcrit.recorder", 1, config, {**old, **counters})
        ds, read = rec.dataset(), fc.Recorder.load(tmp_path / "rec").dataset()
        for name in read.data_vars:
            xr.testing.assert_identical(read[name].variable, ds[name].variable)
        assert "drift_rate" in read
        assert "cross_spectrum" not in read  # unknown, not 0


class TestInstability:
    @pytest.mark.parametrize("form", ["0.5", "1.9", "2.5", "4", "20", "rising"])
    def test_gaussian_data_cross_where_they_should_or_not_at_all(self, form):
        P = np.array([3.0, 8.0, 1.0]) if form == "rising" else float(form) * np.array([1.0, 0.6, 0.3])
        gain = P / (P + LEVELS[:, None] ** 2)
        for scatter in (0.0, 0.02):
            found = fc.critical_point(with_gains(gain, scatter), signature=None)[INSTABILITY]
            if P.max() > 2:
                assert found.kind == INSTABILITY
                # Without noise the interval is that of the interpolation alone.
                slack = 0.0 if scatter == 0 else 0.02
                assert found.low * (1 - slack) <= np.sqrt(P.max() - 2) <= found.high * (1 + slack)
                assert found.shell == int(np.argmax(P))
                assert found.high / found.low < 1.3
            else:
                assert not found.found
                assert np.isnan(found.level)

    def test_the_interval_covers_the_zero_at_its_nominal_rate(self):
        rate = drift_rate(6 / (6 + LEVELS**2), LEVELS)  # 0 at s = 2
        error, blocks = 0.02, 32
        hits = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            # Of trajectories: levels go together.
            noise = rng.standard_normal((blocks, 40)) + rng.standard_normal((blocks, 1))
            each = rate + error * np.sqrt(blocks / 2) * noise
            mean, left = each.mean(0), (each.sum(0) - each) / (blocks - 1)
            draws = rng.multinomial(blocks, np.full(blocks, 1 / blocks), 400) - 1.0
            found = first_zero("x", Curve(mean, left), np.full(40, error), np.log(LEVELS), draws, 0.95)
            hits += found.low <= 2.0 <= found.high
        # 190 of 200 with a binomial scatter of 3.1; a bootstrap of 32 blocks is a little narrow.
        assert 178 <= hits <= 199

    @pytest.mark.parametrize("xi", [1.2, 4.0])
    def test_trajectories_of_gaussian_data_show_no_transition(self, xi):
        """Measured and Gaussian level agree: the word is instability, and it is no evidence."""
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=20)
        std = model.spectrum.mean() ** 0.5
        rec = fc.Recorder(LEVELS, shape=(20, 20), data_std=std, gain_shells=range(6))
        model.sample(LEVELS, 128, solver="sde", recorder=rec, seed=3)
        cp = fc.critical_point(rec.dataset())
        assert cp.found == {}
        exact = xi**2 - 2 * std**2
        if exact <= 0:
            assert cp[INSTABILITY].kind == ""
            return
        assert cp[INSTABILITY].low <= np.sqrt(exact) <= cp[INSTABILITY].high
        # P_0 is a mean of 128 squares: 4.5 of its standard errors.
        assert cp[INSTABILITY].gaussian ** 2 + 2 * std**2 == pytest.approx(xi**2, rel=4.5 * np.sqrt(2 / 128))
        assert "Gaussian data of this spectrum cross there, too" in cp[INSTABILITY].verdict
        assert "instability" in cp[INSTABILITY].verdict

    def test_a_zero_far_from_the_gaussian_one_is_a_transition(self):
        """States of spectrum P_0 = 100 that respond as if it were 6."""
        rng = np.random.default_rng(0)
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=10.0, lattice=16)
        rec = fc.Recorder(LEVELS, shape=(16, 16), gain_shells=range(2))
        fields = model.sample_data(64)
        for i, s in enumerate(LEVELS):
            rec.update(i, fields + s * rng.standard_normal(fields.shape))
            gain = 6 / (6 + s**2) * np.array([1.0, 0.2])
            rec.update_gain(i, gain + 1e-3 * rng.standard_normal((64, 2)))
        found = fc.critical_point(rec.dataset())[INSTABILITY]
        assert found.found
        assert found.gaussian_low > 2 * found.high

    def test_where_the_drift_only_weakens_it_says_so(self):
        depth, level = -0.1, 2.0
        rate = -0.5 + (depth + 0.5) * np.exp(-(np.log(LEVELS / level) ** 2) / 2)
        gain = 1 - (0.5 - rate) * LEVELS**2 / (LEVELS**2 + 1)
        found = fc.critical_point(with_gains(np.stack([gain, 0.5 * gain], axis=1), 0.05))[INSTABILITY]
        assert found.found
        assert found.kind == WEAKENING
        assert found.low <= level <= found.high
        assert found.depth_low <= depth <= found.depth_high + 0.01  # the largest of a few levels, not of all
        assert "weakening, no instability" in found.verdict

    @pytest.mark.parametrize("shape", [(1, 16, 16), (2, 16, 16)])
    def test_channels_of_gaussian_data_with_gains_that_are_numbers_show_none(self, shape):
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=3.0, lattice=16)
        std = model.spectrum.mean() ** 0.5
        rec = fc.Recorder(LEVELS, shape=shape, data_std=std, gain_shells=range(4))
        rng = np.random.default_rng(0)
        x = model.sample_data(64 * shape[0]).reshape(64, *shape)
        for i, s in enumerate(LEVELS):
            rec.update(i, x + s * rng.standard_normal(x.shape))
            rec.update_gain(i, model.shell_gain(float(s))[:4] + 1e-3 * rng.standard_normal((64, 4)))
        found = fc.critical_point(rec.dataset())[INSTABILITY]
        assert "Gaussian data of this spectrum cross there, too" in found.verdict
        assert found.low <= np.sqrt(9 - 2 * std**2) * 1.01
        assert found.high >= np.sqrt(9 - 2 * std**2) * 0.99

    def test_recorded_shells_are_compared_with_themselves(self):
        """Shells 1, 3, 5 of three Gaussian channels: k = 0, which would cross at higher noise, was not asked for."""
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=4.0, lattice=16)
        std = model.spectrum.mean() ** 0.5
        shells = [1, 3, 5]
        rec = fc.Recorder(LEVELS, shape=(3, 16, 16), data_std=std, gain_shells=shells)
        rng = np.random.default_rng(1)
        x = model.sample_data(3 * 256).reshape(256, 3, 16, 16)
        for i, s in enumerate(LEVELS):
            rec.update(i, x + s * rng.standard_normal(x.shape))
            gain = model.shell_gain(float(s))[shells][:, None, None] * np.eye(3)
            rec.update_gain(i, gain + 1e-4 * rng.standard_normal((256, 3, 3, 3)))
        ds = rec.dataset()
        assert not fc.critical_point(ds)[INSTABILITY].found
        exact = drift_rate(model.shell_gain(0.1)[shells], 0.1, std)
        np.testing.assert_allclose(gaussian_rates(ds)[-1], exact, atol=0.25)

    def test_a_level_without_a_value_changes_nothing(self):
        ds = with_gains(6 / (6 + LEVELS[:, None] ** 2) * np.ones(2), 0.01)
        whole = fc.critical_point(ds)[INSTABILITY]
        holed = ds.drop_vars("n_gains").copy(deep=True)
        for name in ("drift_rate", "drift_rate_stderr", "drift_rate_jackknife"):
            holed[name][{"level": 10}] = np.nan
        again = fc.critical_point(holed)[INSTABILITY]
        assert again.level == pytest.approx(whole.level, rel=0.01)

    @pytest.mark.parametrize("c", [lambda s: 1 / (1 + s), lambda s: 0.9 / (1 + s**2), lambda s: 0 * s])
    def test_a_linear_denoiser_commits_to_nothing(self, c):
        """D = c(s) y; the first is a flow network's that has learned nothing, v = 0: softest at 1 + 2^0.5."""
        rng = np.random.default_rng(0)
        rounding = 1 + 1e-7 * rng.standard_normal((len(LEVELS), 64, 3))
        rec = fc.Recorder(LEVELS, shape=(16, 16), gain_shells=range(3))
        for i, s in enumerate(LEVELS):
            rec.update(i, np.hypot(s, 1) * rng.standard_normal((64, 16, 16)))
            rec.update_gain(i, c(s) * rounding[i])
        cp = fc.critical_point(rec.dataset())
        assert cp.found == {}
        if c(1.0) == 0.5:
            assert "linear response" in cp["softening"].reason

    def test_noise_does_not_cross(self):
        gain = np.zeros((len(LEVELS), 3))
        for seed in range(5):
            found = fc.critical_point(with_gains(gain, 0.3, seed=seed, shape=(4, 4)))[INSTABILITY]
            assert not found.found, found

    def test_a_drift_unstable_from_the_start_has_no_level(self):
        found = fc.critical_point(with_gains(np.full((len(LEVELS), 2), 0.9)))[INSTABILITY]
        assert found.reason == "the drift is unstable at the highest recorded level"
        assert np.isnan(found.level)

    def test_json_and_back(self):
        cp = fc.critical_point(with_gains(6 / (6 + LEVELS[:, None] ** 2) * np.ones(2), 0.01))
        again = CriticalPoint.from_json(cp.to_json())
        assert str(again) == str(cp)
        assert again[INSTABILITY].shell == cp[INSTABILITY].shell

    def test_the_pair_on_trajectories_loses_stability_at_log_26(self):
        """Purpose of it all: t = log 26 for +-1 of 5 x 5, here on a small lattice; 2 % of the time is 5 % of s."""
        pair = fc.patch.Dictionary.binary(size=5, random=0)
        steps = fc.schedules.log_levels(121, high=40, low=1.0)
        rec = fc.Recorder(steps[::4], shape=(40, 40), gain_shells=range(4))
        fc.patch.sample(pair, lattice=40, n_samples=64, levels=steps, seed=1, recorder=rec)
        found = fc.critical_point(rec.dataset())[INSTABILITY]
        assert found.found
        assert np.log1p(found.level**2) == pytest.approx(np.log(26), rel=0.02)
        assert found.shell == 0


class TestDenoised:
    def test_the_sums_are_those_of_a_recorder_of_its_own(self, rng):
        options = {"shape": (2, 12, 10), "blocks": 8, "low_modes": 3}
        rec, images, states = (
            fc.Recorder(LEVELS[:3], **options),
            *(fc.Recorder(LEVELS[:3], binarized=b, **options) for b in (True, False)),
        )
        for i in range(3):
            y, D = rng.standard_normal((2, 30, 2, 12, 10))
            for begin, end in ((0, 11), (11, 30)):
                rec.update(i, y[begin:end], denoised=D[begin:end])
            images.update(i, D)
            states.update(i, y)
        for name, values in images.sums().items():
            if name not in ("cross", "eps"):
                np.testing.assert_allclose(rec.sums()[f"denoised_{name}"], values, rtol=1e-12, atol=1e-12)
        for name, values in states.sums().items():
            np.testing.assert_allclose(rec.sums()[name], values, rtol=1e-12, atol=1e-12)
        ds, of_images = rec.dataset(), images.dataset()
        np.testing.assert_allclose(ds.S_denoised, of_images.S, rtol=1e-10)
        np.testing.assert_allclose(ds.xi_binarized_denoised, of_images.xi_binarized, rtol=1e-10)
        assert {"xi_ornstein_zernike_denoised", "xi_second_moment_denoised", "xi_efold_denoised_stderr"} <= set(ds)

    def test_gaussian_denoised_images_have_the_filtered_spectrum(self):
        model = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16)
        rec = fc.Recorder(LEVELS[::8], shape=(16, 16))
        model.sample(LEVELS[::8], 4000, recorder=rec)
        ds = rec.dataset()
        P = model.spectrum
        for i, s in enumerate(LEVELS[::8]):
            D = P**2 / (P + s**2)
            # A shell of m modes has a relative error sqrt(2/(4000 m)) at most: 4.5 of them.
            assert ds.S_denoised[i, 0] == pytest.approx(D[0, 0], rel=4.5 * np.sqrt(2 / 4000))
        assert (ds.n_denoised == 4000).all()

    def test_merge_save_and_load_keep_them(self, rng, tmp_path):
        whole, left, right = (fc.Recorder(LEVELS[:1], shape=(8, 8), blocks=4) for _ in range(3))
        y, D = rng.standard_normal((2, 24, 8, 8))
        whole.update(0, y, denoised=D)
        left.update(0, y[:9])  # before the first denoised image arrived
        left.merge(right)
        right.update(0, y[9:], denoised=D[9:], sample=9)
        left.merge(right)
        assert left.sums()["denoised_count"].sum() == 15
        whole.save(tmp_path / "rec")
        xr.testing.assert_identical(fc.Recorder.load(tmp_path / "rec").dataset(), whole.dataset())

    def test_a_single_image_among_many_states_has_no_ensemble(self, rng):
        rec = fc.Recorder(LEVELS[:2], shape=(8, 8))
        for i in range(2):
            rec.update(i, rng.standard_normal((50, 8, 8)))
        rec.update(0, rng.standard_normal((1, 8, 8)), denoised=rng.standard_normal((1, 8, 8)))
        ds = rec.dataset()
        assert np.isnan(ds.S_denoised).all()
        assert np.isfinite(ds.S).all()

    def test_a_recorder_may_do_without(self, rng):
        rec = fc.Recorder(LEVELS[:1], shape=(8, 8), denoised=False)
        rec.update(0, rng.standard_normal((5, 8, 8)), denoised=rng.standard_normal((5, 8, 8)))
        assert not [name for name in rec.sums() if name.startswith("denoised")]

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    @pytest.mark.parametrize("contiguous", [True, False])
    def test_bad_images_are_named_and_leave_everything_as_it_was(self, rng, bad, contiguous):
        rec = fc.Recorder(LEVELS[:1], shape=(8, 8))
        y, D = rng.standard_normal((2, 200, 8, 8))
        rec.update(0, y, denoised=D)
        before = {name: values.copy() for name, values in rec.sums().items()}
        D[130, 2, 3] = bad
        images = D if contiguous else np.asfortranarray(D)
        with pytest.raises(ValueError, match=r"denoised: .* 130"):
            rec.update(0, y, denoised=images)
        with pytest.raises(ValueError, match="denoised: expected as many images as states, 200, got 3"):
            rec.update(0, y, denoised=D[:3])
        with pytest.raises(ValueError, match=r"denoised: expected states of shape \(batch, \*\(8, 8\)\)"):
            rec.update(0, y, denoised=D[..., :5])
        for name, values in rec.sums().items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)
        assert rec._record.next[0] == 200

    def test_the_patch_sampler_hands_them_over(self):
        pair = fc.patch.Dictionary.binary(size=3, random=0)
        rec = fc.Recorder([8.0, 2.0, 0.5, 0.0], shape=(16, 16))
        seen = {}
        fc.patch.sample(
            pair, 16, 40, [8.0, 4.0, 2.0, 1.0, 0.5, 0.0], recorder=rec, dtype=np.float64,
            observers=[lambda i, s, y, D: seen.setdefault(s, D.copy())],
        )  # fmt: skip
        ds = rec.dataset()
        for i, s in enumerate(rec.levels):
            np.testing.assert_allclose(ds.S_denoised[i], fc.structure_factor(seen[s]).S, rtol=1e-9)

    def test_the_patch_sampler_ends_on_0_with_gains(self):
        pair = fc.patch.Dictionary.binary(size=3, random=0)
        rec = fc.Recorder([8.0, 2.0, 0.0], shape=(12, 12), gain_shells=range(3))
        fc.patch.sample(pair, 12, 8, rec.levels, recorder=rec)
        ds = rec.dataset()
        assert ds.n_gains.values.tolist() == [8, 8, 0]
        assert ds.n_denoised.values.tolist() == [8, 8, 8]


class TestClocks:
    def test_growth_by_both_clocks(self):
        """xi = log(1/s)-like: a logistic in log t has its largest slope at another level by the other clock."""
        t = np.log1p(LEVELS**2)
        middle = 0.8
        xi = 3 + np.tanh(np.log(middle / t))
        rng = np.random.default_rng(0)
        blocks = xi + 0.02 * rng.standard_normal((32, len(LEVELS)))
        left = (blocks.sum(0) - blocks) / 31
        data = {"xi_efold": ("level", blocks.mean(0)), "xi_efold_stderr": ("level", np.full(len(LEVELS), 0.004))}
        data["xi_efold_jackknife"] = (("block", "level"), left)
        ds = xr.Dataset(data, {"level": LEVELS, "block": np.arange(32)})
        by_t = fc.critical_point(ds, clock="log t")["growth"]
        assert by_t.clock == "log t"
        # A line through five levels, 0.15 apart in log s, leans towards where the pace is higher.
        assert by_t.level == pytest.approx(np.sqrt(np.expm1(middle)), rel=0.06)
        by_s = fc.critical_point(ds)["growth"]
        assert by_s.clock == "log s"
        assert "clock log s" in by_s.verdict
        # d log t/d log s < 2 falls with s, so that the other clock's maximum lies at lower noise.
        assert by_s.level < by_t.level
