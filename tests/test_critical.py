"""The detector on curves with a known answer: interior extrema found, edges and noise refused, intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import fastcrit as fc

LEVELS = fc.schedules.log_levels(40, high=50.0, low=0.05)


def dataset(curves, scatter, seed, blocks=32):
    """A dataset with given mean curves over LEVELS; blocks scatter about them with independent smooth noise."""
    rng = np.random.default_rng(seed)
    data, n = {}, len(LEVELS)
    for name, curve in curves.items():
        noise = (
            scatter
            * np.sqrt(blocks)
            * (rng.standard_normal((blocks, n)) + rng.standard_normal((blocks, 1)))
            / np.sqrt(2)
        )
        each = curve + noise
        mean = each.mean(0)
        left = (each.sum(0) - each) / (blocks - 1)
        by_shell = name in ("softening", "drift_rate")
        dims = ("level", "shell") if by_shell else ("level",)
        add = (lambda a: a[..., None]) if by_shell else (lambda a: a)
        data[name] = (dims, add(mean))
        data[f"{name}_stderr"] = (dims, add(np.full(n, scatter)))
        data[f"{name}_jackknife"] = (("block", *dims), add(left))
    return xr.Dataset(data, {"level": LEVELS, "block": np.arange(blocks)})


def bump(center, width=0.8, height=1.0):
    return height * np.exp(-(np.log(LEVELS / center) ** 2) / (2 * width**2))


class TestFinding:
    @pytest.mark.parametrize("center", [0.5, 3.0, 10.0])
    def test_an_interior_extremum_is_found_between_the_levels(self, center):
        curves = {
            "softening": 1 - 0.7 * bump(center),
            "xi_eq": 1 + bump(center),
            "chi": 5 + bump(center),
            "xi_efold": 2 + np.tanh(np.log(center / LEVELS)),  # steepest at the center
            "xi_binarized_denoised": 2 + np.tanh(np.log(center / LEVELS)),
            "drift_rate": 0.5 * np.sin(np.clip(np.log(center / LEVELS), -1.5, 2.5)),  # 0 there, and falls again
        }
        cp = fc.critical_point(dataset(curves, 0.01, seed=1))
        assert set(cp.found) == set(cp.signatures) == set(fc.critical.SIGNATURES)
        for s in cp.found.values():
            assert s.low <= s.level <= s.high
            assert s.level == pytest.approx(center, rel=0.1)
        assert 1 <= cp.spread < 1.2

    def test_the_interval_covers_the_truth(self):
        hits = 0
        for seed in range(100):
            s = fc.critical_point(dataset({"xi_eq": 1 + bump(2.0)}, 0.05, seed), n_bootstrap=400)["xi_eq"]
            hits += s.found and s.low <= 2.0 <= s.high
        # 95 of 100, with a binomial scatter of 2.2 and a grid as coarse as the interval.
        assert hits >= 88

    def test_the_same_seed_gives_the_same_answer(self):
        ds = dataset({"xi_eq": 1 + bump(2.0)}, 0.05, 3)
        assert str(fc.critical_point(ds, seed=5)) == str(fc.critical_point(ds, seed=5))

    def test_global_random_numbers_are_neither_used_nor_moved(self):
        """scipy's interpolators may order their points by them, which changes the last digit."""
        rates = 0.5 * np.sin(np.clip(np.log(3.0 / LEVELS), -1.5, 2.5))
        ds = dataset({"drift_rate": rates, "softening": 1 - 0.7 * bump(3.0)}, 0.01, seed=1)
        said = set()
        for seed in range(6):
            np.random.seed(seed)  # noqa: NPY002 (the global generator is what is tested)
            before = np.random.get_state()[1].copy()  # noqa: NPY002
            said.add(fc.critical_point(ds).to_json())
            np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
        assert len(said) == 1

    def test_one_signature_alone(self):
        ds = dataset({"xi_eq": 1 + bump(2.0), "chi": 1 / LEVELS}, 0.01, 3)
        cp = fc.critical_point(ds, signature="xi_eq")
        assert list(cp.signatures) == ["xi_eq"]
        with pytest.raises(fc.NoTransitionError, match="susceptibility: no transition"):
            fc.critical_point(ds, signature="susceptibility")
        with pytest.raises(ValueError, match="signature: the curve of 'softening' was not recorded"):
            fc.critical_point(ds, signature="softening")
        assert fc.critical_point(ds)["softening"].verdict == "not recorded"

    def test_channels_are_averaged(self):
        one = dataset({"chi": 5 + bump(3.0)}, 0.01, 1)
        both = xr.concat([one, one + 0.0], dim="channel")
        assert fc.critical_point(both)["susceptibility"].level == pytest.approx(
            fc.critical_point(one)["susceptibility"].level
        )


class TestRefusing:
    @pytest.mark.parametrize("curve", [np.log(LEVELS), -np.log(LEVELS), np.ones(40), LEVELS**-0.5])
    @pytest.mark.parametrize("scatter", [1e-6, 0.1])
    def test_monotonic_and_flat_curves_have_no_transition(self, curve, scatter):
        found = sum(
            "susceptibility" in fc.critical_point(dataset({"chi": curve}, scatter, seed)).found for seed in range(10)
        )
        assert found == 0

    def test_false_alarms_are_as_rare_as_stated(self):
        # One in 1000 a signature, and sharper noise than the model of the detector may double it: 300 tries, at most 3.
        alarms = 0
        for seed in range(300):
            ds = dataset({"chi": 0.3 * np.log(LEVELS)}, 0.2, seed)
            alarms += "susceptibility" in fc.critical_point(ds, n_bootstrap=1000).found
        assert alarms <= 3

    def test_an_extremum_at_the_edge_is_none(self):
        for center in (80.0, 0.02):
            cp = fc.critical_point(dataset({"chi": bump(center)}, 1e-3, 1))
            assert cp["susceptibility"].reason in ("no interior extremum", "prominence within noise")

    def test_a_spurious_rise_at_the_end_does_not_hide_the_interior_peak(self):
        curve = 1 + bump(3.0) + 20 * bump(0.04, width=0.4)
        assert fc.critical_point(dataset({"xi_eq": curve}, 0.01, 1))["xi_eq"].level == pytest.approx(3.0, rel=0.1)

    def test_levels_where_the_length_is_unknown_are_left_out(self):
        ds = dataset({"xi_eq": 1 + bump(3.0)}, 0.01, 1)
        ds["xi_eq"][:5] = np.nan
        ds["xi_eq_stderr"][-5:] = 10.0
        assert fc.critical_point(ds)["xi_eq"].level == pytest.approx(3.0, rel=0.1)
        ds["xi_eq"][:] = np.nan
        assert "measured at 0 neighbouring levels" in fc.critical_point(ds)["xi_eq"].reason

    def test_a_bump_of_a_few_per_cent_is_no_transition(self):
        s = fc.critical_point(dataset({"xi_eq": 3 + 0.1 * bump(2.0)}, 1e-4, 1))["xi_eq"]
        assert "stands out by 3." in s.reason

    def test_a_wiggle_of_rounding_does_not_hide_the_extremum_beside_it(self):
        """A dip of 0.6 known to 1e-2 at s = 6, and below s = 0.5 a flat curve of float32's rounding, known to 1e-9."""
        rng = np.random.default_rng(0)
        rounding = np.where(LEVELS < 0.5, 1e-7 * rng.standard_normal(40), 0.0)
        error = np.where(LEVELS < 0.5, 1e-9, 1e-2)
        mean = 1 - 0.6 * bump(6.0) + rounding
        each = mean + error * np.sqrt(32) * rng.standard_normal((32, 40))
        left = (each.sum(0) - each) / 31
        ds = xr.Dataset(
            {"softening": (("level", "shell"), each.mean(0)[:, None]),
             "softening_stderr": (("level", "shell"), error[:, None]),
             "softening_jackknife": (("block", "level", "shell"), left[..., None])},
            {"level": LEVELS, "block": np.arange(32)},
        )  # fmt: skip
        found = fc.critical_point(ds)["softening"]
        assert found.low <= 6.0 <= found.high
        assert found.high / found.low < 1.5

    def test_rounding_is_no_transition(self):
        noise = 1e-13 * np.random.default_rng(0).standard_normal(40)
        ds = dataset({"softening": 1 + noise}, 0.0, 1)
        assert not fc.critical_point(ds)["softening"].found


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"signature": "energy"}, "signature: expected one of 'instability', .* got 'energy'"),
            ({"clock": "time"}, "clock: expected one of 'log s', 'log t', got 'time'"),
            ({"confidence": 95}, "confidence: expected a number between 0 and 1, got 95"),
            ({"n_bootstrap": 3}, "n_bootstrap: expected at least 100, got 3"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            fc.critical_point(dataset({"chi": np.ones(40)}, 0.1, 1), **options)

    def test_datasets(self):
        with pytest.raises(ValueError, match="ds: expected the dataset of a Recorder"):
            fc.critical_point(xr.Dataset())
        with pytest.raises(ValueError, match="ds: expected at least 5 positive levels with samples, got 3"):
            fc.critical_point(dataset({"chi": np.ones(40)}, 0.1, 1).isel(level=slice(3)))
        ds = dataset({"chi": 5 + bump(3.0), "softening": 1 - bump(3.0)}, 0.01, 1)
        assert str(fc.critical_point(ds.transpose())) == str(fc.critical_point(ds))
        with pytest.raises(ValueError, match=r"levels: expected strictly decreasing"):
            fc.critical_point(ds.isel(level=slice(None, None, -1)))
        few = fc.critical_point(dataset({"chi": bump(3.0)}, 0.01, 1, blocks=4))
        assert "4 blocks" in few["susceptibility"].reason
        with pytest.raises(ValueError, match="signature: expected one of"):
            few["energy"]


def test_gains_that_were_never_recorded_are_said_to_be():
    rec = fc.Recorder(fc.schedules.log_levels(12, high=20, low=0.2), shape=(16, 16), gain_shells=range(3))
    fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16).sample(rec.levels, 64, recorder=rec)
    rec.state["gain_count"][:] = 0
    found = fc.critical_point(rec.dataset())
    assert {name: found[name].reason for name in ("softening", "xi_eq")} == dict.fromkeys(
        ("softening", "xi_eq"), "not recorded"
    )


def test_gains_at_some_levels_are_joined():
    """Gains with a dip at s = 2, given at every other level: found as if the others were not there."""
    levels = fc.schedules.log_levels(41, high=50, low=0.1)
    rec = fc.Recorder(levels, shape=(16, 16), gain_shells=range(3))
    rng = np.random.default_rng(0)
    for i, s in enumerate(levels):
        rec.update(i, s * rng.normal(size=(64, 16, 16)))
        if i % 2 == 0:
            soft = (
                1 - 0.8 * np.exp(-(np.log(s / 2.0) ** 2)) * np.array([1.0, 0.7, 0.4]) + 0.02 * rng.normal(size=(64, 3))
            )
            rec.update_gain(i, 1 - soft * s**2 / (1 + s**2))
    found = fc.critical_point(rec.dataset(), signature="softening")["softening"]
    assert found.low < 2.0 * 1.1
    assert found.high > 2.0 / 1.1


def test_a_notebook_gets_a_table():
    rec = fc.Recorder(fc.schedules.log_levels(8, high=20.0, low=0.2), shape=(8, 8))
    rng = np.random.default_rng(0)
    for i, s in enumerate(rec.levels):
        rec.update(i, s * rng.standard_normal((40, 8, 8)))
    html = fc.critical_point(rec.dataset())._repr_html_()
    assert html.startswith("<table><tr><th>instability</th><td>not recorded")
    assert html.count("<tr>") == 6
