"""The study of large models: the same bits for any ranks, kills and resumptions; what is damaged or fails is named."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import plot, store
from fastcrit._edge import statefile as _statefile
from fastcrit.cli import app
from fastcrit.diffusion import Pulse, sample
from fastcrit.errors import ConventionWarning, IncompleteRunError
from fastcrit.studies import ImageNetStudy
from fastcrit.studies.checks import data_std_of, moments_of
from fastcrit.studies.imagenet.chunk import TrajectorySampler, drawn
from fastcrit.studies.shared.chunks import Chunks
from fastcrit.studies.shared.ranks import Rank
from fastcrit.studies.shared.status import status
from fastcrit.studies.shared.work import Work
from tests.networks import PLAIN, Edm2Contract, StabilityVAEEncoder, diffusers_pipeline, edm2_pickle, random_unet

# Drawing takes four times as long as these runs; the test of the command line draws.
pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {
    "samples": 26, "chunk": 4, "batch": 2, "levels": 6, "high": 20.0, "low": 0.1, "gain_share": 0.3,
    "trust_pickle": True,
}  # fmt: skip
KILLS = 4


def options(config):
    given = [f"--{k.replace('_', '-')}={v}" for k, v in config.items() if k != "trust_pickle"]
    return [*given, "--trust-pickle"] if config.get("trust_pickle") else given


def command(model, out, *more, **config):
    return ["study", "imagenet", *options({**QUICK, **config}), f"--edm2={model}", f"--out={out}", *more]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return edm2_pickle(tmp_path_factory.mktemp("model") / "net.pkl")


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("imagenet") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save_figures", lambda ds, folder: [])
        return out, ImageNetStudy(model, **QUICK).run(out)


@pytest.fixture(scope="module")
def processes():
    """Processes that have torch loaded when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_imagenet_study"])
    return context


def run_in_process(model, out, resume, die_at_write=0):
    """One run; with ``die_at_write`` it is killed when it has written so many chunks but for the last one's name."""
    plot.save_figures = lambda ds, folder: []
    if die_at_write:
        replace, seen = os.replace, []

        def die(*paths):
            if str(paths[1]).endswith(".safetensors"):
                seen.append(paths)
            if len(seen) == die_at_write:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        os.replace = die
    ImageNetStudy(model, **QUICK).run(out, resume=resume)


class TestSameBits:
    def test_for_any_number_of_ranks(self, model, finished, tmp_path):
        ranks = 3  # of 2, and of Dask's workers: test_dask_studies.py
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m", "fastcrit"]
        done = subprocess.run(
            [*torchrun, *command(model, tmp_path / "run")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        xr.testing.assert_identical(store.load_dataset(tmp_path / "run" / "dataset.zarr"), finished[1])
        logs = [(tmp_path / "run" / "logs" / f"rank-{r:04d}.log").read_text() for r in range(ranks)]
        assert all(f"rank {r} of {ranks}" in log for r, log in enumerate(logs))
        assert sum(log.count(" s a sample (") for log in logs) >= 7  # chunks, some perhaps by two at once

    def test_after_kills_at_random_moments(self, model, finished, processes, tmp_path, rng):
        out = tmp_path / "run"
        killed = 0
        while killed < KILLS and not (out / "dataset.zarr").exists():
            process = processes.Process(target=run_in_process, args=(model, out, True))
            process.start()
            process.join(rng.uniform(0.1, 0.8))
            if process.is_alive():
                process.kill()
                process.join()
                killed += 1
        ds = finished[1]
        if not (out / "dataset.zarr").exists():
            ds = ImageNetStudy(model, **QUICK).run(out, resume=True)
        xr.testing.assert_identical(store.load_dataset(out / "dataset.zarr"), finished[1])
        xr.testing.assert_identical(ds, finished[1])

    def test_after_a_kill_in_the_middle_of_a_write(self, model, finished, processes, tmp_path):
        out = tmp_path / "run"
        for _ in range(3):
            process = processes.Process(target=run_in_process, args=(model, out, True, 2))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        assert 1 <= len(list((out / "chunks").glob("chunk-*.safetensors"))) < 7
        assert list((out / "chunks").glob(".chunk-*"))  # what the kills left
        xr.testing.assert_identical(ImageNetStudy(model, **QUICK).run(out, resume=True), finished[1])

    def test_for_two_runs_on_one_folder(self, model, finished, processes, tmp_path):
        out = tmp_path / "run"
        first = processes.Process(target=run_in_process, args=(model, out, False))
        first.start()
        deadline = time.monotonic() + 60
        while not (out / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        second = processes.Process(target=run_in_process, args=(model, out, True))
        second.start()
        for process in (first, second):
            process.join()
            assert process.exitcode == 0
        xr.testing.assert_identical(store.load_dataset(out / "dataset.zarr"), finished[1])

    def test_for_a_rank_that_does_nothing(self, model, finished, tmp_path):
        """Rank 0 of 3 alone: the others' chunks are missing, so it takes them."""
        study = ImageNetStudy(model, **QUICK)
        xr.testing.assert_identical(study.run(tmp_path / "run", rank=Rank(0, 3)), finished[1])
        assert study.run(tmp_path / "run", rank=Rank(2, 3)) is None

    def test_for_independent_processes_of_the_same_number(self, model, finished, tmp_path, monkeypatch):
        """Those that come later take chunks by chance, the others in their order."""
        place = Chunks(tmp_path, "kind", 1, {}, 300, print)
        assert place.order(1, 3)[:4] == [1, 4, 7, 10]
        assert place.order(1, 3)[100:104] == [299, 297, 296, 294]
        one, other = place.order(0, 1, shuffled=True), place.order(0, 1, shuffled=True)
        assert sorted(one) == sorted(other) == list(range(300))
        assert one != other != sorted(other)
        out = tmp_path / "run"
        study = ImageNetStudy(model, **QUICK)
        with monkeypatch.context() as patch:
            patch.setattr(Work, "go", lambda self: None)
            with pytest.raises(IncompleteRunError):
                study.run(out)
        xr.testing.assert_identical(study.run(out, resume=True), finished[1])

    @pytest.mark.parametrize("content", ["", "{}", "[1]", "nothing", '{"rank": 1, "state": "working"}'])
    def test_for_a_progress_file_that_cannot_be_read(self, model, finished, tmp_path, content):
        out = tmp_path / "run"
        (tmp_path / "run").mkdir()
        study = ImageNetStudy(model, **QUICK)
        store.write_config(out, study.config(study.denoiser()))
        (out / "progress").mkdir()
        (out / "progress" / "rank-0001.json").write_text(content)
        xr.testing.assert_identical(study.run(out, resume=True, rank=Rank(0, 2)), finished[1])
        assert "rank-0001.json: cannot be read" in status(out)

    def test_for_ranks_on_machines_that_share_the_folder_or_not(self, model, finished, tmp_path, monkeypatch):
        """Rank 1 is the first of its machine; chunks are where all see them."""
        monkeypatch.setattr("fastcrit.studies.shared.run._SHARED_FOLDER", 0.2)
        study = ImageNetStudy(model, **QUICK)
        place = f"memory://{tmp_path.name}/shared"
        first = study.run(tmp_path / "shared", chunks=place, rank=Rank(0, 2, 0))
        assert study.run(tmp_path / "shared", chunks=place, rank=Rank(1, 2, 0)) is None
        assert study.run(tmp_path / "alone", chunks=place, rank=Rank(1, 2, 0)) is None
        assert (tmp_path / "alone" / "logs" / "rank-0001.log").exists()
        xr.testing.assert_identical(first, finished[1])

    def test_a_resumed_run_remembers_where_its_chunks_are(self, model, finished, tmp_path, monkeypatch):
        study = ImageNetStudy(model, **QUICK)
        with monkeypatch.context() as patch:
            patch.setattr(TrajectorySampler, "make", lambda self, number, keep_on: 1 / 0)
            with pytest.raises(IncompleteRunError):
                study.run(tmp_path / "run", chunks=str(tmp_path / "elsewhere"))
        xr.testing.assert_identical(study.run(tmp_path / "run", resume=True), finished[1])
        assert len(list((tmp_path / "elsewhere").glob("*.safetensors"))) == 7
        assert "7 of 7 chunks" in status(tmp_path / "run")
        assert not (tmp_path / "run" / "chunks").exists()

    def test_with_chunks_at_a_url(self, model, finished, tmp_path):
        study = ImageNetStudy(model, **QUICK)
        place = f"memory://{tmp_path.name}/chunks"
        xr.testing.assert_identical(study.run(tmp_path / "a", chunks=place), finished[1])
        files, name = _statefile.remote(place)
        assert len(files.ls(name)) == 7
        files.pipe_file(f"{name}/chunk-000002.safetensors", b"foreign")
        again = study.run(tmp_path / "b", chunks=place)  # another folder, the same chunks
        xr.testing.assert_identical(again, finished[1])
        log = (tmp_path / "b" / "logs" / "rank-0000.log").read_text()
        assert log.count(" s a sample") == 1
        assert "chunk 2 is computed again: memory://" in log


class TestDamage:
    @pytest.fixture
    def stopped(self, finished, tmp_path):
        """A run of which everything is there but the result."""
        import shutil

        shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("dataset.zarr", "logs"))
        return tmp_path / "run"

    @pytest.mark.parametrize("kind", ["truncated", "a flipped bit", "foreign", "of another number", "no file of ours"])
    def test_is_found_named_and_computed_again(self, model, finished, stopped, kind):
        file = stopped / "chunks" / "chunk-000003.safetensors"
        content = bytearray(file.read_bytes())
        if kind == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif kind == "a flipped bit":
            content[-9] ^= 4
            file.write_bytes(content)
        elif kind == "foreign":
            about, arrays = _statefile.read_state(file, "fastcrit.imagenet-chunk", 1)
            _statefile.write_state(file, "fastcrit.imagenet-chunk", 1, {**about, "study": "0123"}, arrays)
        elif kind == "of another number":
            file.write_bytes((stopped / "chunks" / "chunk-000001.safetensors").read_bytes())
        else:
            file.write_bytes(b"something else")
        xr.testing.assert_identical(ImageNetStudy(model, **QUICK).run(stopped, resume=True), finished[1])
        log = (stopped / "logs" / "rank-0000.log").read_text()
        assert "chunk 3 is computed again" in log
        assert "chunk-000003.safetensors" in log
        assert log.count(" s a sample") == 1
        assert (stopped / "chunks" / "chunk-000003.safetensors.damaged").exists()

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
    def test_a_full_or_read_only_disk_stops_the_run_and_loses_nothing(
        self, model, finished, tmp_path, monkeypatch, code
    ):
        out, sync, calls = tmp_path / "run", os.fsync, []

        def full(descriptor):
            calls.append(descriptor)
            if len(calls) > 3:
                raise OSError(code, os.strerror(code))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=rf"out: {os.strerror(code)} .*what is written stays, --resume goes on"):
            ImageNetStudy(model, **QUICK).run(out)
        monkeypatch.undo()
        assert len(list((out / "chunks").iterdir())) == 3
        xr.testing.assert_identical(ImageNetStudy(model, **QUICK).run(out, resume=True), finished[1])

    def test_a_chunk_that_fails_is_reported_and_the_rest_goes_on(self, model, finished, tmp_path, monkeypatch):
        out, make = tmp_path / "run", TrajectorySampler.make

        def fail(self, number, keep_on):
            if number in (2, 5):
                raise FloatingPointError("planted")
            return make(self, number, keep_on)

        monkeypatch.setattr(TrajectorySampler, "make", fail)
        done = CliRunner().invoke(app, command(model, out))
        assert done.exit_code == 1
        assert "error: chunks 2, 5 failed; why is in" in done.stderr
        log = (out / "logs" / "rank-0000.log").read_text()
        assert "chunk 2 failed:\nTraceback" in log
        assert "FloatingPointError: planted" in log
        assert "5 of 7 chunks, 18 of 26 samples" in status(out)
        monkeypatch.undo()
        done = CliRunner().invoke(app, command(model, out, "--resume"))
        assert done.exit_code == 0, done.stderr
        xr.testing.assert_identical(store.load_dataset(out / "dataset.zarr"), finished[1])

    def test_rank_0_waits_for_others_while_they_work(self, model, tmp_path, monkeypatch):
        out = tmp_path / "run"
        study = ImageNetStudy(model, **QUICK)
        monkeypatch.setattr("fastcrit.studies.shared.work.PATIENCE", 1.0)
        make = TrajectorySampler.make

        def fail(self, number, keep_on):
            said = {
                "rank": 1,
                "of": 2,
                "machine": "m",
                "pid": 1,
                "time": 0.0,
                "state": "working",
                "done": 0,
                "chunk": 2,
            }
            said["where"] = "level 1"
            (out / "progress" / "rank-0001.json").write_text(json.dumps(said))
            if number == 2:
                raise FloatingPointError("planted")
            return make(self, number, keep_on)

        monkeypatch.setattr(TrajectorySampler, "make", fail)
        begin = time.monotonic()
        with pytest.raises(IncompleteRunError, match="chunks 2 failed"):
            study.run(out, rank=Rank(0, 2))
        assert time.monotonic() - begin > 1.0


def test_what_writing_a_chunk_took_is_told_with_the_next(finished):
    seconds = []
    for file in sorted((finished[0] / "chunks").iterdir()):
        about, _ = _statefile.read_state(file, "fastcrit.imagenet-chunk", 1)
        assert list(about["seconds"]) == ["network", "recorder", "gains", "store"]
        seconds.append(about["seconds"]["store"])
    # No states are kept, so storing them takes no time but that of looking whether they are.
    assert seconds[0] < 1e-3 < min(seconds[1:])


class TestResult:
    def test_is_what_a_user_would_record(self, model, finished):
        """The public sampler and recorder, in one go."""
        _, ds = finished
        study = ImageNetStudy(model, **QUICK)
        D = study.denoiser()
        rec = fc.Recorder(study.grid(D), D.shape, data_std=0.5)
        sample(D, np.arange(26) % 5, 26, study.grid(D), "heun", 0, rec)
        expected = rec.dataset()
        for name in ("S", "C", "chi", "xi_efold"):
            np.testing.assert_allclose(ds[name], expected[name], rtol=2e-4, atol=1e-5)  # batches round in float32
        assert ds["n_samples"].values.tolist() == [26] * 6
        chosen = drawn(0, 0.3, range(26))
        assert 2 <= len(chosen) <= 14
        assert ds["n_gains"].values.tolist() == [len(chosen)] * 6
        np.testing.assert_array_equal(drawn(0, 0.3, range(7, 26)), [p - 7 for p in chosen if p >= 7])
        assert int(np.isfinite(ds["chi_jackknife"].values[:, 0, 0]).sum()) == 26  # a sample in each block

    def test_gains_are_those_of_mode_response(self, model, tmp_path):
        study = ImageNetStudy(model, **{**QUICK, "samples": 3, "chunk": 3, "batch": 3, "gain_share": 1.0})
        ds = study.run(tmp_path / "run")
        D, kept = study.denoiser(), {}
        labels = np.arange(3) % 5
        sample(
            D, labels, 3, study.grid(D), "heun", 0, observers=[lambda i, s, y, D_y: kept.update({i: y.clone()})]
        )  # fmt: skip
        shells = ds["shell"].values
        g = fc.mode_response(D, kept[4], float(study.grid(D)[4]), shells, labels, probe="random_phase", seed=4)
        np.testing.assert_allclose(ds["gain_matrix"][4], g.gain_matrix, rtol=1e-5, atol=1e-7)
        u = ds["gain_eigenvector"][4].values
        along = np.einsum("ka,kab,kb->k", u, g.gain_matrix, u)
        np.testing.assert_allclose(ds["gain_on_trajectories"][4], along, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(ds["diagonal_gain"][4], g.diagonal_gain, rtol=1e-5, atol=1e-7)
        waves = ImageNetStudy(model, **{**QUICK, "samples": 3, "chunk": 3, "batch": 3, "gain_share": 1.0, "waves": 2})
        again = waves.run(tmp_path / "waves")
        g = fc.mode_response(D, kept[4], float(study.grid(D)[4]), again["shell"].values, labels, waves=2, seed=4)
        np.testing.assert_allclose(again["gain_matrix"][4], g.gain_matrix, rtol=1e-5, atol=1e-7)

    def test_lengths_of_latents_in_image_pixels_too(self, tmp_path):
        latents = edm2_pickle(tmp_path / "net.pkl", StabilityVAEEncoder(), channels=4)
        ds = ImageNetStudy(latents, **QUICK).run(tmp_path / "run")
        np.testing.assert_array_equal(ds["xi_efold_pixels"], 8 * ds["xi_efold"])
        assert ds["xi_efold_pixels"].attrs["units"] == "nominal image pixels"
        assert ds.attrs["pixels_per_site"] == 8
        assert "in image pixels" in (tmp_path / "run" / "summary.txt").read_text()
        assert "xi_eq_pixels" in ds

    def test_states_are_kept_for_plain_xarray(self, model, tmp_path):
        study = ImageNetStudy(model, **QUICK, save_states=True)
        ds = study.run(tmp_path / "run")
        with xr.open_zarr(tmp_path / "run" / "states.zarr") as states:
            assert states.y.dims == ("level", "sample", "channel", "row", "column")
            np.testing.assert_array_equal(states.level, study.grid(study.denoiser()))
            y = states.y.load()
        D = study.denoiser()
        last = sample(D, np.arange(26) % 5, 26, study.grid(D), "heun", 0)
        np.testing.assert_allclose(y[-1], last, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fc.structure_factor(y[2].values).S, ds["S"][2], rtol=1e-5)
        with pytest.raises(ValueError, match="save_states: expected chunks in a folder"):
            study.run(tmp_path / "other", chunks="memory://x")

    def test_guided_away_from_another_network(self, model, tmp_path):
        guide = edm2_pickle(tmp_path / "guide.pkl", seed=1, classes=0)
        study = ImageNetStudy(
            model, guide, **QUICK, save_states=True, guidance_weight=3.0, guidance_center=2.0, guidance_width=3.0
        )
        study.run(tmp_path / "run")
        D = ImageNetStudy(model, **QUICK).denoiser()
        unguided = fc.diffusion.load_edm2(guide, trust_pickle=True)
        last = sample(
            D, np.arange(26) % 5, 26, study.grid(D), "heun", 0, guidance=Pulse(2.0, 3.0, 3.0), unguided=unguided
        )
        with xr.open_zarr(tmp_path / "run" / "states.zarr") as states:
            np.testing.assert_allclose(states.y[-1], last, rtol=1e-4, atol=1e-5)

    def test_of_a_diffusers_pipeline_from_the_command_line(self, tmp_path):
        folder = diffusers_pipeline(tmp_path / "pipeline", **PLAIN)
        out = tmp_path / "run"
        more = [*options({**QUICK, "trust_pickle": False, "classes": 3, "gain_share": 0.1}), f"--out={out}"]
        call = [sys.executable, "-m", "fastcrit", "study", "imagenet", f"--diffusers={folder}", *more]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "model UNet2DModel; 26 trajectories on 1 x 8 x 8 sites" in done.stdout
        assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["chunks", "dataset.zarr", "logs", "progress"]
        assert store.load_dataset(out / "dataset.zarr").attrs["pixels_per_site"] == 1
        done = CliRunner().invoke(app, ["status", str(out)])
        assert "7 of 7 chunks, 26 of 26 samples, finished" in done.stdout
        assert " s a sample: network " in done.stdout
        assert "done; 7 chunks made" in done.stdout


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    root = tmp_path_factory.mktemp("flow")
    random_unet(**PLAIN, num_class_embeds=4).save_pretrained(root / "unet")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(root / "scheduler")
    return str(root)


class TestFlowFolder:
    """Nothing in a folder says how wide the data are, or which time and sign a flow network has."""

    def test_has_the_data_measured_and_the_warning_in_the_report(self, flow_folder, tmp_path):
        config = {**QUICK, "trust_pickle": False, "samples": 8, "gain_share": 0.0, "solver": "euler", "low": 0.5}
        with pytest.warns(ConventionWarning, match="UNet2DModel: at the noise level s = 20, where the state is noise"):
            ds = ImageNetStudy(diffusers=flow_folder, **config).run(tmp_path / "run")
        assert ds.attrs["warning"].startswith("UNet2DModel: at the noise level s = 20")
        text = (tmp_path / "run" / "summary.txt").read_text()
        assert f"warning: {ds.attrs['warning']}" in text
        assert "reverse=True" in text
        # The first chunk's four states of the last level, without their noise.
        study = ImageNetStudy(diffusers=flow_folder, **config)
        D = study.denoiser()
        with pytest.warns(ConventionWarning):
            y = sample(D, np.arange(4) % 4, 4, study.grid(D), "euler", 0).double()
        expected = (float(y.var(correction=0)) - 0.5**2) ** 0.5
        assert ds.attrs["data_std"] == pytest.approx(expected, rel=1e-4)  # batches round in float32
        assert ds.attrs["data_std_from"] == "the first chunk"

    def test_takes_what_the_data_are_said_to_be(self, flow_folder):
        study = ImageNetStudy(diffusers=flow_folder, **{**QUICK, "trust_pickle": False}, data_std=0.4)
        assert study.recorder_options(study.denoiser(), 4)["data_std"] == 0.4
        with pytest.raises(ValueError, match="data_std: expected a positive number, got 0"):
            ImageNetStudy(diffusers=flow_folder, data_std=0.0)

    def test_noise_as_wide_as_the_data_leaves_the_images(self):
        rng = np.random.default_rng(0)
        x0 = 0.3 * rng.normal(size=4000)
        y = x0 + 0.02 * rng.normal(size=4000)
        # 4000 values: 1.1 %.
        assert data_std_of(np.stack([moments_of(y), moments_of(x0)]), 0.02) == pytest.approx(0.3, rel=0.04)
        assert data_std_of(np.stack([moments_of(0.9 * y), moments_of(x0)]), 9.0) == pytest.approx(x0.std(), rel=1e-9)


class TestRefused:
    def test_guidance_that_would_do_nothing(self, model, tmp_path):
        weight = {**QUICK, "guidance_weight": 2.0}
        for change, message in (
            ({"guidance_weight": 1.0}, "guidance_weight: expected another one than 1"),
            ({"guidance_weight": np.nan}, "guidance_weight: expected a finite number, got nan"),
            ({"classes": 0}, "guidance_weight: a network is guided by itself with labels alone"),
        ):
            with pytest.raises(ValueError, match=message):
                ImageNetStudy(model, **{**weight, **change})
        for change, message in (
            (
                {"guidance_center": 500.0},
                "guidance_center, guidance_width: none of the 6 levels from 20 to 0.1 is guided",
            ),
            ({"guidance_center": 4.0, "guidance_width": 0.1}, "none of the 6 levels from 20 to 0.1 is guided"),
        ):
            guide = edm2_pickle(tmp_path / "guide.pkl", seed=1, classes=0)
            with pytest.raises(ValueError, match=message):
                ImageNetStudy(model, guide, **weight, **change).denoiser()
        with pytest.raises(
            ValueError, match=r"guide: net\.pkl is net\.pkl itself, and guidance away from it does nothing"
        ):
            ImageNetStudy(model, model, **weight).denoiser()
        unlabelled = edm2_pickle(tmp_path / "unlabelled.pkl", classes=0)
        with pytest.raises(ValueError, match=r"unguided: unlabelled\.pkl takes no labels, so that guided by itself"):
            ImageNetStudy(unlabelled, **weight).denoiser()

    def test_pickles_that_are_not_trusted(self, model, tmp_path):
        with pytest.raises(ValueError, match=r"edm2: .*net\.pkl is a pickle, and loading it runs any code"):
            ImageNetStudy(model, **{**QUICK, "trust_pickle": False}).run(tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_files_that_hold_no_network(self, tmp_path):
        path = tmp_path / "net.pkl"
        for content, message in (
            (pickle.dumps({"net": 1}), r"expected a dict with a network under 'ema', got a dict of \['net'\]"),
            (pickle.dumps({"ema": Edm2Contract()})[:500], "damaged, or not a pickle"),
        ):
            path.write_bytes(content)
            with pytest.raises(fc.FileFormatError, match=rf"edm2: .*net\.pkl: {message}"):
                fc.diffusion.load_edm2(path, trust_pickle=True)
        path.write_bytes(b"cno_such_module\nNet\n.")
        with pytest.raises(ModuleNotFoundError, match=r"net\.pkl needs the module no_such_module .* PYTHONPATH"):
            fc.diffusion.load_edm2(path, trust_pickle=True)
        with pytest.raises(FileNotFoundError, match=r"edm2: .*none\.pkl: no such file"):
            fc.diffusion.load_edm2(tmp_path / "none.pkl", trust_pickle=True)

    def test_damaged_folders_of_diffusers(self, tmp_path):
        for name in ("unet", "scheduler"):
            (tmp_path / name).mkdir()
        (tmp_path / "unet/config.json").write_text("{}")
        (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "NoScheduler"}')
        with pytest.raises(fc.FileFormatError, match="expected the name of a scheduler as _class_name, got 'NoSched"):
            fc.diffusion.load_diffusers(tmp_path)
        (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
        with pytest.raises(fc.FileFormatError, match="unet: damaged, or not a UNet2DModel"):
            fc.diffusion.load_diffusers(tmp_path)

    def test_another_configuration(self, model, finished, tmp_path):
        out, _ = finished
        with pytest.raises(FileExistsError, match="exists already"):
            ImageNetStudy(model, **QUICK).run(out)
        begun = tmp_path / "begun"
        store.create_run(begun)
        (begun / "config.json").write_text((out / "config.json").read_text())
        other = edm2_pickle(tmp_path / "other.pkl", seed=1)
        for study, message in (
            (ImageNetStudy(model, **{**QUICK, "seed": 3}), "seed = 0 there, 3 here"),
            (ImageNetStudy(other, **QUICK), "weights = "),
        ):
            for folder in (begun, out):
                with pytest.raises(ValueError, match=f"begun with another configuration: {message}"):
                    study.run(folder, resume=True)

    def test_bad_values_are_named(self, model):
        for change, message in (
            ({"samples": 2}, "samples: "), ({"chunk": 1}, "chunk: "), ({"batch": 3}, "batch: expected a divisor of"),
            ({"levels": 4}, "levels: "), ({"high": 0.01}, "high, low: "), ({"gain_share": 1.5}, "gain_share: "),
            ({"solver": "ddim"}, "solver: "), ({"diffusers": "x"}, "edm2, diffusers: expected one of them"),
            ({"guide": "g.pkl"}, "guide: given without guidance_weight"),
            ({"guidance_center": 2.0}, "guidance_center: given without"), ({"threads": 0}, "threads: "),
            ({"threads": 9999}, "threads: expected at most 1024"), ({"seed": 2**64}, "seed: expected 0 <= seed < 2"),
            ({"batch": 8}, "batch: expected a divisor of chunk = 4, got 8"),
            ({"null_label": 1}, "null_label: given without diffusers"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                ImageNetStudy(model, **{**QUICK, **change})
        with pytest.raises(ValueError, match=r"classes: expected at most 5, which net\.pkl knows, got 6"):
            ImageNetStudy(model, **QUICK, classes=6).denoiser()
        with pytest.raises(ValueError, match=r"classes: net\.pkl was trained with labels alone, got 0"):
            ImageNetStudy(model, **QUICK, classes=0).denoiser()
        with pytest.raises(ValueError, match="is conditional, and without labels it is not unconditional"):
            ImageNetStudy(model, **QUICK, guidance_weight=2.0).denoiser()

    def test_places_for_chunks_that_are_none(self, model, tmp_path):
        (tmp_path / "file").write_text("x")
        for place, message in (
            (str(tmp_path / "file"), "chunks: expected a folder, .*file is a file"),
            ("nowhere://x", "chunks: nowhere://x: cannot be reached"),
        ):
            with pytest.raises(ValueError, match=message):
                ImageNetStudy(model, **QUICK).run(tmp_path / "run", chunks=place)
            assert not (tmp_path / "run").exists()

    def test_ranks_that_make_no_sense(self, monkeypatch):
        assert Rank.of_environment() == Rank(0, 1, 0)
        for names in (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")):
            with monkeypatch.context() as patch:
                for name, value in zip(names, "341", strict=True):
                    patch.setenv(name, value)
                assert Rank.of_environment() == Rank(3, 4, 1)
                patch.setenv(names[0], "4")
                with pytest.raises(ValueError, match=f"{names[0]}: expected a number below {names[1]}, got 4 of 4"):
                    Rank.of_environment()

    def test_status_of_no_run(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="run: no run in"):
            status(tmp_path)
        for config in ({"study": "patch"}, {"study": "imagenet", "samples": 4, "chunk": 0}, {"samples": 4, "chunk": 2}):
            (tmp_path / "config.json").write_text(json.dumps(config))
            with pytest.raises(fc.FileFormatError, match=r"config\.json: damaged, or of a study without chunks"):
                status(tmp_path)


class TestMergingBlocks:
    def test_few_blocks_become_blocks_of_many(self, rng):
        y = rng.standard_normal((12, 8, 8))
        whole = fc.Recorder([1.0], shape=(8, 8), blocks=6)
        for c in range(3):
            part = fc.Recorder([1.0], shape=(8, 8), blocks=2)
            part.update(0, y[4 * c : 4 * c + 4])
            whole.merge(part, first_block=2 * c)
        one = fc.Recorder([1.0], shape=(8, 8), blocks=6)
        for c in range(3):
            for j in range(4):
                one.update(0, y[4 * c + j : 4 * c + j + 1], sample=2 * c + j % 2)
        for name, array in one.state.items():
            np.testing.assert_allclose(whole.state[name], array, rtol=1e-12, atol=1e-12, err_msg=name)
        with pytest.raises(ValueError, match="merge: recorders differ in blocks"):
            whole.merge(part)
        with pytest.raises(ValueError, match="merge: expected at most 2 blocks, as there are here, got 6"):
            part.merge(whole, first_block=0)


def test_torch_keeps_its_threads(model, tmp_path):
    before = torch.get_num_threads()
    ImageNetStudy(model, **QUICK, threads=1).run(tmp_path / "run")
    assert torch.get_num_threads() == before
