"""Locality in studies: sums against single calls, peaks and windows, what runs with it write and say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

import fastcrit as fc
from fastcrit._estimates.level_peak import LevelPeak, level_peak, peaks_of
from fastcrit._estimates.response_function import share_within
from fastcrit._kernels.lattice import lattice
from fastcrit.critical import CriticalPoint, Signature
from fastcrit.diffusion import Net, NetConfig, save_net
from fastcrit.report import write_report
from fastcrit.report.locality import when_context_matters
from fastcrit.studies import FashionMnistStudy, ImageNetStudy
from fastcrit.studies.fashion_mnist.bound import gaussian_gap
from fastcrit.studies.locality import LocalitySums, biased_below, radii_of, response_length
from fastcrit.studies.locality_words import lines_of_locality, sentences
from fastcrit.studies.shared.status import status
from tests.networks import edm2_pickle

LEVELS = fc.schedules.log_levels(9, high=30.0, low=0.3)


@pytest.fixture(scope="module")
def mixture():
    means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 8, 8))
    model = fc.theory.GaussianMixture(means, std=1.0)
    x0, labels = model.sample_data(48, seed=2)
    return model, torch.from_numpy(x0), labels


def measured(D, x0, labels, blocks, **options):
    sums = LocalitySums(LEVELS, tuple(x0.shape[2:]), 8)
    given = {"periodic": True, "seed": 3, "first": 0, "derivative": "auto", "batch": 64, "every": 6}
    sums.measure(D, x0, labels, blocks, **given | options)
    return sums


class TestSums:
    def test_are_those_of_single_calls(self, mixture):
        model, x0, labels = mixture
        D = fc.diffusion.from_mixture(model)
        ds = measured(D, x0, labels, np.arange(48) % 8).dataset(LEVELS, 2)
        gap = fc.diffusion.locality_gap(D, x0, LEVELS, ds["radius"].values, seed=3)
        np.testing.assert_allclose(ds["locality_gap"], gap.gap, rtol=1e-12)
        rate = fc.diffusion.class_entropy_rate(D, x0, labels, LEVELS, seed=3)
        np.testing.assert_allclose(ds["class_rate"], rate.rate * LEVELS, rtol=1e-6, atol=1e-9)
        known = fc.diffusion.information(D, x0, LEVELS, labels, seed=3).classes
        np.testing.assert_allclose(ds["class_information"], known.value, rtol=1e-12)
        np.testing.assert_allclose(ds["class_information_bias"], known.bias, rtol=1e-9, atol=1e-12)
        # Blocks of six images give the errors of single images to a third or so.
        np.testing.assert_allclose(ds["class_information_stderr"], known.stderr, rtol=1.0)
        assert ds.attrs["locality_images"] == 48
        assert ds.attrs["locality_states"] == 8

    def test_share_within_is_that_of_the_exact_response(self):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16)
        x0 = torch.from_numpy(theory.sample_data(12, seed=1))[:, None]
        ds = measured(fc.diffusion.from_gaussian(theory), x0, None, np.arange(12) % 8).dataset(LEVELS, 0)
        grid = lattice((16, 16))
        for i, s in enumerate(LEVELS):
            exact = theory.response_function(s)
            within = share_within(exact.square, exact.pairs, grid.lag_r, radii_of((16, 16)))
            np.testing.assert_allclose(ds["response_share"][i], within, rtol=1e-5)
        assert "class_rate" not in ds

    def test_chunks_add_up_in_any_blocks(self, mixture):
        model, x0, labels = mixture
        D = fc.diffusion.from_mixture(model)
        whole = LocalitySums(LEVELS, (8, 8), 8)
        for c in range(4):
            part = slice(12 * c, 12 * c + 12)
            sums = measured(D, x0[part], labels[part], np.zeros(12, dtype=np.int64), first=12 * c)
            whole.add(sums.arrays, c)
        ds = whole.dataset(LEVELS, 2)
        rate = fc.diffusion.class_entropy_rate(D, x0, labels, LEVELS, seed=3)
        np.testing.assert_allclose(ds["class_rate"], rate.rate * LEVELS, rtol=1e-6, atol=1e-9)
        assert ds.attrs["locality_states"] == 8
        assert np.isfinite(ds["response_share_stderr"]).all()

    def test_chunks_of_several_blocks_keep_them(self, mixture):
        """Errors of few chunks are those of all their blocks, as of one call with as many."""
        model, x0, labels = mixture
        D = fc.diffusion.from_mixture(model)
        whole = LocalitySums(LEVELS, (8, 8), 8)
        for c in range(2):
            part, few = slice(24 * c, 24 * c + 24), LocalitySums(LEVELS, (8, 8), 4)
            few.measure(
                D, x0[part], labels[part], np.arange(24) * 4 // 24, periodic=True, seed=3, first=24 * c,
                derivative="auto", batch=64, every=6,
            )  # fmt: skip
            whole.add(few.arrays, 4 * c)
        assert (whole.arrays["images"] == 6).all()
        known = fc.diffusion.information(D, x0, LEVELS, labels, seed=3).classes
        np.testing.assert_allclose(whole.dataset(LEVELS, 2)["class_information"], known.value, rtol=1e-9)
        # Of eight blocks an error is known to a third or so.
        np.testing.assert_allclose(whole.dataset(LEVELS, 2)["class_information_stderr"], known.stderr, rtol=1.0)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_images_in_half_precision_are_measured(self, kind):
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8)
        x0 = torch.from_numpy(theory.sample_data(6, seed=1))[:, None].to(kind)
        D = fc.diffusion.from_gaussian(theory)
        half, single = (measured(D, x, None, np.arange(6)).dataset(LEVELS, 0) for x in (x0, x0.float()))
        xr.testing.assert_identical(half, single)

    def test_levels_are_put_where_they_belong(self, mixture):
        model, x0, labels = mixture
        sums = LocalitySums(LEVELS[::2], (8, 8), 8)
        sums.measure(
            fc.diffusion.from_mixture(model), x0, labels, np.arange(48) % 8, periodic=True, seed=3, first=0,
            derivative="auto", batch=64, every=100,
        )  # fmt: skip
        ds = sums.dataset(LEVELS, 2)
        assert np.isfinite(ds["locality_gap"][::2]).all()
        assert np.isnan(ds["locality_gap"][1::2]).all()

    def test_without_images_there_is_nothing(self):
        assert not LocalitySums(LEVELS, (8, 8), 8).dataset(LEVELS, 2)


class TestResponseLength:
    @pytest.mark.parametrize("xi", [1.0, 3.0])
    def test_is_ornstein_and_zernikes(self, xi):
        """1/sqrt(1/xi^2 + 1/s^2)."""
        theory = fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=24)
        recorder = fc.Recorder(LEVELS, shape=(24, 24), gain_shells=range(3), blocks=4)
        theory.sample(LEVELS, 8, recorder=recorder)
        found = response_length(recorder.dataset())
        np.testing.assert_allclose(found["response_length"], 1 / np.sqrt(xi**-2 + LEVELS**-2), rtol=1e-4)
        assert (found["response_length_stderr"] < 1e-6).all()

    def test_none_without_gains(self):
        recorder = fc.Recorder(LEVELS, shape=(8, 8), blocks=2)
        fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8).sample(LEVELS, 4, recorder=recorder)
        assert not response_length(recorder.dataset())


class TestPeak:
    levels = np.geomspace(50, 0.05, 31)

    def curve(self, at, width=0.8):
        return np.exp(-((np.log(self.levels / at) / width) ** 2))

    def test_of_a_known_curve(self, rng):
        noise = 0.02 * rng.normal(size=(10, 31))
        found = level_peak(self.levels, self.curve(2.3), self.curve(2.3) + noise - noise.mean(axis=0))
        half = np.exp(0.8 * np.sqrt(np.log(2)))
        assert found.level == pytest.approx(2.3, rel=0.02)
        assert found.low == pytest.approx(2.3 / half, rel=0.02)  # lines between levels 26 % apart
        assert found.high == pytest.approx(2.3 * half, rel=0.02)
        assert found.level_low < 2.3 < found.level_high
        assert LevelPeak.from_dict(json.loads(json.dumps(found.to_dict()))) == found

    def test_a_stretch_is_cut_where_it_means_nothing(self):
        found = LevelPeak(3.0, 2.5, 3.5, 1.0, 9.0, 1.0, 0.1)
        assert found.cut(2.0).low == 2.0
        assert found.cut(0.5) == found.cut(float("nan")) == found

    def test_a_maximum_where_the_curve_means_nothing_is_none(self):
        """Cut at its maximum or above, the stretch would end before it begins."""
        found = LevelPeak(3.0, 2.5, 3.5, 1.0, 9.0, 1.0, 0.1)
        assert not found.cut(3.0).found
        assert not found.cut(20.0).found
        assert not LevelPeak(*(float("nan"),) * 7).cut(2.0).found

    def test_none_of_what_only_rises_or_is_noise(self, rng):
        rising, sure = 1 / self.levels, np.zeros((10, 31))
        assert not level_peak(self.levels, rising, rising + sure).found
        noise = rng.normal(size=(40, 31))
        left = (noise.sum(axis=0) - noise) / 39
        assert not level_peak(self.levels, noise.mean(axis=0), left).found

    @pytest.mark.parametrize("blocks", [2, 3, 4, 8, 32])
    def test_noise_has_none_however_few_blocks_tell_the_error(self, rng, blocks):
        """By Student's t it is as rare: of 200 draws at most 9, where four errors alone would find 60 of 2 blocks."""
        found = 0
        for _ in range(200):
            noise = rng.normal(size=(blocks, 31))
            left = (noise.sum(axis=0) - noise) / (blocks - 1)
            found += level_peak(self.levels, noise.mean(axis=0), left).found
        assert found <= 9  # 1.3 % of 16 blocks is the most that is seen: more than 9 of 200 come once in 3000

    def test_an_end_that_stays_above_is_the_end(self):
        found = level_peak(self.levels, self.curve(30.0), np.tile(self.curve(30.0), (4, 1)))
        assert found.high == self.levels[0]

    def test_intervals_are_those_that_peaks_scatter_by(self, rng):
        """Of 150 draws as many are held as of 95 %, less 4 standard deviations; coarse levels make them wider."""
        held = 0
        for _ in range(150):
            samples = self.curve(2.3) + 0.3 * rng.normal(size=(30, 31))
            left = (samples.sum(axis=0) - samples) / 29
            found = level_peak(self.levels, samples.mean(axis=0), left)
            held += found.level_low <= 2.3 <= found.level_high
        assert held >= 0.95 * 150 - 4 * np.sqrt(150 * 0.95 * 0.05)


QUICK = {"samples": 32, "levels": 5, "high": 20.0, "low": 0.1, "gain_samples": 8, "blocks": 8}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(NetConfig(width=4, multipliers=(1, 2), classes=10))
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_net(path, net, {"training": {"label_dropout": 0.2}})
    return str(path)


class TestFashionMnist:
    @pytest.mark.usefixtures("no_figures")
    def test_writes_says_and_draws(self, net, tmp_path):
        ds = FashionMnistStudy(net=net, **QUICK, locality=True).run(tmp_path / "run")
        plain = FashionMnistStudy(net=net, **QUICK).run()
        for name in plain:
            xr.testing.assert_identical(plain[name], ds[name])
        assert "locality" not in json.loads(plain.attrs["config"])
        assert json.loads(ds.attrs["config"])["locality"] is True
        assert list(ds["radius"].values) == [1, 3, 7]
        assert np.isfinite(ds["locality_gap_gaussian"]).all()
        assert ds.attrs["locality_images"] == 32
        assert ds.attrs["locality_states"] == 2
        at = np.isfinite(ds["n_gains"].where(ds["n_gains"] > 0)).values
        for name in ("locality_gap", "response_share", "class_rate", "class_information"):
            assert (np.isfinite(ds[name].values.reshape(5, -1)).all(axis=1) == at).all(), name
        assert ds.attrs["class_entropy"] == pytest.approx(np.log(10))
        assert sentences(ds)
        assert lines_of_locality(ds)[1] in (tmp_path / "run" / "summary.txt").read_text()
        assert fc.plot.locality(ds).axes
        panel = when_context_matters(ds)
        assert panel.title == "When context matters"
        assert len(panel.figure.data) >= 5
        again = FashionMnistStudy(net=net, **QUICK, locality=True).run(tmp_path / "run", resume=True)
        xr.testing.assert_identical(again, ds)


OPTIONS = {
    "samples": 26, "chunk": 4, "batch": 2, "levels": 6, "high": 20.0, "low": 0.1, "gain_share": 0.5,
    "trust_pickle": True, "locality": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return edm2_pickle(tmp_path_factory.mktemp("model") / "net.pkl")


def test_gaussian_images_lose_what_gaussian_data_do():
    """The null case: images that are Gaussian data, whose spectrum is measured from 40000 of them."""
    theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=10)
    images = theory.sample_data(40_000, seed=1).astype(np.float32)
    found = gaussian_gap(images, [3.0, 1.0], [1, 2])
    expected = [[theory.locality_gap(s, r, method="resampled") for r in (1, 2)] for s in (3.0, 1.0)]
    # Weights beyond a window are mostly of k = 0, whose power 40000 images tell to sqrt(2/40000) = 0.7 %; gaps are of
    # second order in them, and three standard errors of that, twice, and a half more for the factor (P + s^2), are 6 %.
    np.testing.assert_allclose(found, expected, rtol=0.06)


class TestImageNet:
    @pytest.mark.usefixtures("no_figures")
    def test_chunks_made_again_give_the_same_bits_and_status_says_what_it_took(self, model, tmp_path):
        out, study = tmp_path / "run", ImageNetStudy(model, **OPTIONS)
        ds = study.run(out)
        shutil.rmtree(out / "dataset.zarr")
        for chunk in sorted((out / "chunks").glob("*.safetensors"))[1::2]:
            chunk.unlink()
        xr.testing.assert_identical(study.run(out, resume=True), ds)
        assert ds.attrs["locality_images"] > 4
        assert np.isfinite(ds["locality_gap"]).all()
        said = status(out)
        assert " response " in said
        assert " locality " in said

    def test_of_no_samples_it_is_refused(self, model):
        with pytest.raises(ValueError, match=r"^locality: measured on gain_share of the samples"):
            ImageNetStudy(model, **OPTIONS | {"gain_share": 0.0})

    def test_too_few_samples_leave_the_rest_of_the_run_which_says_so(self, model, tmp_path):
        """Of single images in their chunks nothing is measured: each needs another one beyond its window."""
        out, study = tmp_path / "run", ImageNetStudy(model, **OPTIONS | {"gain_share": 0.01, "samples": 8})
        ds = study.run(out)
        assert "locality_gap" not in ds
        said = "Of locality nothing was measured"
        assert sentences(ds)[0].startswith(said)
        assert said in (out / "summary.txt").read_text()
        assert said in write_report(out).path.read_text()
        assert not (out / "locality.png").exists()

    @pytest.mark.usefixtures("no_figures")
    def test_few_chunks_have_several_blocks_each(self, model, tmp_path, monkeypatch):
        """Of an error of two blocks nothing is known."""
        used = []
        estimates = LocalitySums._estimates

        def watched(self, name, estimate):
            found = estimates(self, name, estimate)
            used.append(len(found) - 1)
            return found

        monkeypatch.setattr(LocalitySums, "_estimates", watched)
        study = ImageNetStudy(model, **OPTIONS | {"samples": 16, "chunk": 8, "gain_share": 1.0, "blocks": 8})
        study.run(tmp_path / "run")
        assert used[0] == 8

    def test_one_level_is_drawn(self, model, tmp_path, recwarn):
        ds = ImageNetStudy(model, **OPTIONS | {"samples": 12, "gain_share": 1.0, "gain_every": 9}).run(tmp_path / "run")
        assert np.isfinite(ds["locality_gap"][:, 0]).sum() == 1
        assert (tmp_path / "run" / "locality.png").exists()
        assert not [w for w in recwarn if "xlims" in str(w.message)]

    @pytest.mark.usefixtures("no_figures")
    def test_guided_runs_measure_the_network_itself(self, model, tmp_path, monkeypatch):
        asked = []
        measure = LocalitySums.measure

        def watched(self, D, *args, **options):
            asked.append(type(D).__name__)
            return measure(self, D, *args, **options)

        monkeypatch.setattr(LocalitySums, "measure", watched)
        guide = edm2_pickle(tmp_path / "guide.pkl", seed=1, classes=0)
        study = ImageNetStudy(model, guide, **OPTIONS | {"samples": 12}, guidance_weight=2.0)
        ds = study.run(tmp_path / "run")
        assert asked == ["Denoiser"] * len(asked)
        assert ds.attrs["locality_images"] > 1


class TestWords:
    def dataset(self, gap, rate, drift=None):
        ds = xr.Dataset(
            {
                "class_information": ("level", [0.0, 0.5, 1.0, 3.0]),
                "class_information_stderr": ("level", [0.0, 0.1, 0.1, 0.1]),
            },
            {"level": ("level", [8.0, 4.0, 2.0, 1.0]), "radius": ("radius", [1, 3, 7])},
            {"lattice": [28, 28], "class_entropy": 2.3},
        )
        ds.attrs["locality_peaks"] = json.dumps({"gap": gap.to_dict(), "class": rate.to_dict()})
        return ds

    def test_windows_that_overlap_lie_inside_or_do_not(self):
        wide = LevelPeak(3.0, 2.5, 3.5, 1.0, 9.0, 1.0, 0.1)
        narrow = LevelPeak(3.2, 2.9, 3.6, 2.0, 5.0, 0.25, 0.1)
        away = LevelPeak(20.0, 19.0, 21.0, 15.0, 30.0, 1.0, 0.1)
        none = LevelPeak(*(float("nan"),) * 7)
        inside, across, apart, nothing = (
            " ".join(sentences(self.dataset(gap, rate)))
            for gap, rate in ((narrow, wide), (wide, narrow), (narrow, away), (none, wide))
        )
        assert "The first window lies inside the second, and the intervals of their peaks overlap." in inside
        assert "changes the denoised image by 0.5 a site" in inside
        assert "The two windows overlap" in across
        assert "do not overlap: what context decides is not the class" in apart
        assert "At no level does what a window of 7 x 7 sites loses stand out." in nothing
        assert "From s = 1.00 down more than the 2.30 nats" in inside
        assert biased_below(self.dataset(narrow, wide)) == 1.0

    def test_the_drift_lies_in_windows_that_were_found(self):
        wide = LevelPeak(3.0, 2.5, 3.5, 1.0, 9.0, 1.0, 0.1)
        away = LevelPeak(20.0, 19.0, 21.0, 15.0, 30.0, 1.0, 0.1)
        none = LevelPeak(*(float("nan"),) * 7)

        def said(gap, rate=None):
            ds = self.dataset(gap, rate or none)
            if rate is None:
                ds.attrs["locality_peaks"] = json.dumps({"gap": gap.to_dict()})
            found = Signature("instability", 4.0, 3.5, 4.5, 1.0, 0.1, kind="instability")
            ds.attrs["critical_point"] = CriticalPoint({"instability": found}, 0.95).to_json()
            return " ".join(sentences(ds))

        assert "s = 4.00, where context matters and where the class is decided." in said(wide, wide)
        assert "s = 4.00, outside both." in said(away, away)
        assert "s = 4.00, outside the levels where context matters." in said(away, none)
        assert "s = 4.00, where context matters." in said(wide)
        assert "drift" not in said(none, none)

    def test_nothing_of_other_runs(self):
        assert sentences(xr.Dataset()) == lines_of_locality(xr.Dataset()) == []
        assert peaks_of(xr.Dataset()) == {}
