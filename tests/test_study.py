"""The patch study as users run it: table, figures, repeatability, resuming after a kill, refusals, command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.studies.finish import finish
from fastcrit.studies.patch import PatchStudy, summary

SMALL = {"lattice": 24, "samples": 40, "levels": 16, "substeps": 2}


def run_cli(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "fastcrit", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    ds = PatchStudy(patterns=0, **SMALL).run(out)
    return out, ds


class TestStudy:
    def test_leaves_dataset_figures_and_table(self, finished):
        out, ds = finished
        names = {p.name for p in out.iterdir()}
        figures = {name for name in names if name.endswith((".png", ".svg"))}
        assert names - figures == {"config.json", "dataset.zarr", "summary.txt"}
        drawn = ("structure_factors", "lengths", "drift_rates", "gains", "softening", "order_parameter", "states")
        assert {f"{n}.{s}" for n in drawn for s in ("png", "svg")} <= figures
        xr.testing.assert_identical(store.load_dataset(out / "dataset.zarr"), ds)
        assert (out / "summary.txt").read_text().rstrip("\n") == summary(ds)
        for name in figures:
            if name.endswith("png"):
                with Image.open(out / name) as image:
                    assert min(image.size) > 300
                    assert np.asarray(image.convert("L")).std() > 5  # not blank

    def test_the_table_has_theory_beside_the_signatures(self, finished):
        _, ds = finished
        text = summary(ds)
        assert "theory (symmetric point)        5.0000" in text
        assert "3.2581" in text
        for name in ("softening", "xi_eq", "growth", "susceptibility"):
            assert name in text

    def test_signatures_that_exist_are_interior_with_intervals(self, finished):
        _, ds = finished
        found = {k: v for k, v in json.loads(ds.attrs["critical_point"]).items() if not v["reason"]}
        assert "softening" in found
        for s in found.values():
            assert float(ds.level.min()) < s["low"] <= s["level"] <= s["high"] < float(ds.level.max())

    def test_theory_columns_are_theorys(self, finished):
        _, ds = finished
        s = ds.level.values
        np.testing.assert_allclose(ds.gain_at_symmetric_point[:, 0], 25 / s**2)
        above = s > 5.0
        closed = np.sqrt(25 * 24 / (24 * s**2) / (1 - 25 / s**2), where=above, out=np.full_like(s, np.nan))
        np.testing.assert_allclose(ds.xi_eq_theory, closed)

    def test_gains_on_trajectories_respect_the_gaussian_bound_at_high_noise(self, finished):
        _, ds = finished
        # At s far above the data the posterior is the prior: the gain is that at the symmetric point.
        np.testing.assert_allclose(ds.gain_on_trajectories[0, 0], ds.gain_at_symmetric_point[0, 0], rtol=0.02)
        assert (ds.gain_on_trajectories < 1).all()

    def test_the_same_seed_gives_the_same_table_and_dataset(self, finished):
        _, ds = finished
        again = PatchStudy(patterns=0, **SMALL).run()
        xr.testing.assert_identical(again, ds)
        other = PatchStudy(patterns=0, seed=1, **SMALL).run()
        assert (other.S != ds.S).any()

    def test_fashion_mnist_patches(self, tmp_path):
        ds = PatchStudy("fashion-mnist", patterns=40, **SMALL).run(tmp_path / "run")
        assert ds.attrs["theory_critical_level"] > 0
        assert "40 patches of Fashion-MNIST" in summary(ds)

    def test_a_dictionary_without_transition_says_so(self):
        ds = PatchStudy("fashion-mnist", patterns=1, **SMALL).run()
        assert "no transition: the dictionary predicts one and the same value" in summary(ds)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dictionary": "mnist"}, "dictionary: expected one of 'binary', 'fashion-mnist', got 'mnist'"),
            ({"samples": 2}, "samples: expected an integer of at least 3, got 2"),
            ({"levels": 4}, "levels: expected an integer of at least 5, got 4"),
            ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
            ({"patterns": -1}, "patterns: expected an integer of at least 0, got -1"),
            ({"dictionary": "fashion-mnist", "patterns": 0}, "patterns: expected an integer of at least 1, got 0"),
            ({"substeps": 0}, "substeps: expected an integer of at least 1, got 0"),
        ],
    )
    def test_bad_configurations(self, options, message):
        with pytest.raises(ValueError, match=message):
            PatchStudy(**options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lattice": 3}, "lattice: patterns of side 5 are larger"),
            ({"size": 4}, "size: expected an odd patch side"),
            ({"solver": "rk4"}, "solver: expected one of"),
            ({"seed": 2**64}, "seed: expected an integer below 2"),
            ({"low": 1e-30}, "low: expected a noise level from 1e-12 to 1e12"),
            ({"high": 0.01}, "high, low: expected high > low > 0"),
        ],
    )
    def test_bad_runs_leave_no_folder(self, options, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            PatchStudy(**{**SMALL, **options}).run(tmp_path / "run")
        assert not (tmp_path / "run").exists()


class TestEnding:
    def test_accepts_what_another_run_on_the_folder_has_written_where_it_is_the_same(self, tmp_path, monkeypatch):
        monkeypatch.setattr(plot, "save_figures", lambda ds, folder: [])
        ds, partial = xr.Dataset({"x": ("level", [1.0, 2.0])}), tmp_path / "recorder.safetensors"
        for _ in range(2):
            partial.touch()
            finish(ds, tmp_path, "table", [partial])
            assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset.zarr", "summary.txt"]
        assert (tmp_path / "summary.txt").read_text() == "table\n"
        partial.touch()
        with pytest.raises(fc.FileFormatError, match="not what the chunks of this run add up to"):
            finish(ds + 1, tmp_path, "table", [partial])
        assert partial.exists()


class TestResuming:
    def test_a_killed_run_resumes_to_the_same_bits(self, tmp_path):
        options = ["--patterns", 2, "--lattice", 24, "--levels", 12, "--samples", 1000, "--substeps", 2]
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert run_cli("study", "patch", "--out", whole, *options).returncode == 0
        process = subprocess.Popen(
            [sys.executable, "-m", "fastcrit", "study", "patch", "--out", str(killed), *map(str, options)],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not (killed / "recorder.safetensors").exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "dataset.zarr").exists()
        refused = run_cli("study", "patch", "--out", killed, *options, "--resume", "--seed", 5)
        assert refused.returncode == 2
        assert "begun with another configuration: seed = 0 there, 5 here" in refused.stderr
        assert run_cli("study", "patch", "--out", killed, *options, "--resume").returncode == 0
        xr.testing.assert_identical(
            store.load_dataset(killed / "dataset.zarr"), store.load_dataset(whole / "dataset.zarr")
        )

    def test_a_damaged_state_is_refused_by_name(self, tmp_path):
        study = PatchStudy(patterns=0, **SMALL)
        store.begin_run(tmp_path / "run", {"study": "patch", **asdict(study)}, finished="dataset.zarr")
        (tmp_path / "run" / "recorder.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(fc.FileFormatError, match=r"recorder\.safetensors: damaged"):
            study.run(tmp_path / "run", resume=True)
        (tmp_path / "run" / "config.json").write_text("{")
        with pytest.raises(fc.FileFormatError, match=r"config\.json: damaged"):
            study.run(tmp_path / "run", resume=True)

    def test_nothing_is_overwritten_and_a_finished_run_is_its_dataset(self, finished):
        out, ds = finished
        study = PatchStudy(patterns=0, **SMALL)
        with pytest.raises(FileExistsError, match=r"out: .* exists already"):
            study.run(out)
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        xr.testing.assert_identical(study.run(out, resume=True), ds)
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
        with pytest.raises(ValueError, match="begun with another configuration: seed = 0 there, 1 here"):
            PatchStudy(patterns=0, **SMALL, seed=1).run(out, resume=True)


class TestCommandLine:
    def test_study_prints_the_table(self, tmp_path):
        done = run_cli("study", "patch", "--out", tmp_path / "r", "--patterns", 0, "--lattice", 16, "--samples", 32,
                       "--levels", 12)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "theory (symmetric point)        5.0000" in done.stdout
        again = run_cli("study", "patch", "--out", tmp_path / "r")
        assert again.returncode == 2
        assert again.stderr.startswith("error: out:")
        assert "Traceback" not in again.stderr

    def test_analyze_a_study_and_fields(self, finished, tmp_path, rng):
        out, ds = finished
        for path in (out / "dataset.zarr", out):
            done = run_cli("analyze", path)
            assert done.returncode == 0, done.stderr
            assert str(fc.critical_point(ds)) == done.stdout.rstrip("\n")
        rec = fc.Recorder(fc.schedules.log_levels(6, high=5, low=1), shape=(8, 8))
        for i in range(6):
            rec.update(i, rng.standard_normal((20, 8, 8)))
        rec.save(tmp_path / "recorder.safetensors")
        done = run_cli("analyze", tmp_path / "recorder.safetensors")
        assert done.stdout.startswith("instability     not recorded")
        np.save(tmp_path / "fields.npy", rng.standard_normal((30, 2, 12, 12)))
        done = run_cli("analyze", tmp_path / "fields.npy")
        assert done.returncode == 0, done.stderr
        assert "30 samples on 12 x 12 sites, 2 channels averaged" in done.stdout
        for method in fc.METHODS:
            assert method in done.stdout

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: None, "fields.npy: no such file"),
            (lambda p: p.write_bytes(b"\x93NUMPY"), "fields.npy: damaged, truncated"),
            (lambda p: np.save(p, np.ones((1, 8, 8))), "at least 2 samples"),
            (lambda p: np.save(p, np.full((3, 8, 8), np.nan)), "NaN in the field at index 0"),
            (lambda p: np.save(p, np.ones((3, 8, 8), complex)), "expected real values, got complex"),
        ],
    )
    def test_analyze_refuses_in_one_line(self, make, message, tmp_path):
        make(tmp_path / "fields.npy")
        done = run_cli("analyze", tmp_path / "fields.npy")
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1

    def test_a_damaged_study_is_refused(self, finished, tmp_path):
        import shutil

        out, _ = finished
        shutil.copytree(out / "dataset.zarr", tmp_path / "d.zarr")
        chunk = next(p for p in (tmp_path / "d.zarr" / "S").iterdir() if not p.name.startswith("."))
        chunk.write_bytes(chunk.read_bytes()[:20])
        done = run_cli("analyze", tmp_path / "d.zarr")
        assert done.returncode == 2
        assert "d.zarr: damaged" in done.stderr

    def test_version(self):
        assert run_cli("--version").stdout.startswith(f"fastcrit {fc.__version__} (core: ")


class TestFigures:
    def test_svg_is_the_same_every_time(self, finished, tmp_path):
        out, ds = finished
        plot.save_figures(ds, tmp_path)
        for name in ("lengths.svg", "gains.svg"):
            assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
