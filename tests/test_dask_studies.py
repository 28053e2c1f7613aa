"""Studies on Dask: the same bits as one process and as ranks, whatever dies; what fails or does not fit is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial

import dask
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from fastcrit import plot, store
from fastcrit._edge import statefile
from fastcrit.analyze import cluster
from fastcrit.cli import app
from fastcrit.errors import IncompleteRunError
from fastcrit.studies import ImageNetStudy
from fastcrit.studies.imagenet.chunk import TrajectorySampler
from fastcrit.studies.imagenet.study import _job
from fastcrit.studies.shared import on_dask
from fastcrit.studies.shared.ranks import Rank
from fastcrit.studies.shared.status import status
from tests.networks import edm2_pickle
from tests.test_resume import commands, words  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("no_figures")

QUICK = {
    "samples": 26, "chunk": 4, "batch": 2, "levels": 6, "high": 20.0, "low": 0.1, "gain_share": 0.3,
    "trust_pickle": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return ImageNetStudy(edm2_pickle(tmp_path_factory.mktemp("model") / "net.pkl"), **QUICK)


@pytest.fixture(scope="module")
def alone(study, tmp_path_factory):
    """By one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save_figures", lambda ds, folder: [])
        return study.run(tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def client():
    """Of two workers, each a process."""
    from distributed import get_client

    with cluster(None, 2, "2GB"):
        yield get_client()


@pytest.fixture(autouse=True)
def plain_workers(request):
    """Workers forget what a test has done to them."""
    yield
    if "client" in request.fixturenames:
        request.getfixturevalue("client").run(do, "nothing")


def do(what, numbers=(), until=None):
    """On a worker: what it does to the chunks of these numbers; it hangs until a file is gone."""
    if not hasattr(TrajectorySampler, "plain"):
        TrajectorySampler.plain = TrajectorySampler.make

    def make(self, number, keep_on):
        if number in numbers and what == "raise":
            raise FloatingPointError("planted")
        if number in numbers and what == "disk full":
            raise OSError(28, "No space left on device", "there")
        while number in numbers and what == "hang" and until.exists():
            keep_on("somewhere")
            time.sleep(0.05)
        return TrajectorySampler.plain(self, number, keep_on)

    TrajectorySampler.make = make


def kill_one_at_work(out, hanging):
    """When a worker says that it is at a chunk."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in (out / "progress").glob("rank-*.json"):
            said = json.loads(file.read_text())
            if said["rank"] > 0 and said["state"] == "working" and said["where"] == "somewhere":
                os.kill(said["pid"], signal.SIGSTOP)
                hanging.unlink()
                os.kill(said["pid"], signal.SIGKILL)
                return
        time.sleep(0.01)
    raise AssertionError("no worker was at a chunk")


class TestSameBits:
    def test_of_two_workers_two_ranks_and_one_process(self, study, alone, client, tmp_path):
        xr.testing.assert_identical(study.run(tmp_path / "dask", client=client), alone)
        log = (tmp_path / "dask" / "logs" / "rank-0000.log").read_text()
        assert "2 Dask workers of tcp://" in log
        assert log.count(", by worker ") == 7
        context = multiprocessing.get_context("forkserver")
        other = context.Process(target=study.run, args=(tmp_path / "ranks",), kwargs={"rank": Rank(1, 2, 1)})
        other.start()
        xr.testing.assert_identical(study.run(tmp_path / "ranks", rank=Rank(0, 2)), alone)
        other.join()
        assert other.exitcode == 0
        for number in range(7):  # and so has every chunk, but for times and who made it
            file = f"chunks/chunk-{number:06d}.safetensors"
            (a, x), (b, y) = (
                statefile.read_state(tmp_path / run / file, "fastcrit.imagenet-chunk", 1) for run in ("dask", "ranks")
            )
            assert a["study"] == b["study"]
            assert x.keys() == y.keys()
            assert all(x[name].tobytes() == y[name].tobytes() for name in x)
        text = status(tmp_path / "dask")
        assert "7 of 7 chunks, 26 of 26 samples, finished" in text
        assert "rank    1 on " in text
        assert "waits for chunks" in text

    def test_after_a_worker_is_killed_in_the_middle_of_a_chunk(self, study, alone, client, tmp_path):
        out = tmp_path / "run"
        (tmp_path / "hanging").touch()
        client.run(do, "hang", (3,), tmp_path / "hanging")
        killer = threading.Thread(target=kill_one_at_work, args=(out, tmp_path / "hanging"))
        killer.start()
        xr.testing.assert_identical(study.run(out, client=client), alone)
        killer.join()
        assert not (tmp_path / "hanging").exists()
        assert (out / "logs" / "rank-0000.log").read_text().count(", by worker ") == 7
        client.wait_for_workers(2, timeout=60)  # its nanny starts another

    def test_of_a_guidance_experiment_from_the_command_line(self, commands, client, tmp_path):  # noqa: F811
        for name, more in (("alone", []), ("dask", [f"--dask={client.scheduler.address}"])):
            done = CliRunner().invoke(app, [*words(commands["guidance"], tmp_path / name), *more])
            assert done.exit_code == 0, (done.output, done.exception)
        datasets = [store.load_dataset(tmp_path / name / "dataset.zarr") for name in ("alone", "dask")]
        xr.testing.assert_identical(*datasets)
        again = [*words(commands["guidance"], tmp_path / "dask"), f"--dask={client.scheduler.address}"]
        assert "finished already" in CliRunner().invoke(app, again).output

    def test_of_a_relative_path_and_other_threads_of_torch(self, study, alone, client, tmp_path, monkeypatch):
        for worker in client.nthreads():
            client.submit(torch.set_num_threads, 2, workers=[worker], pure=False).result()
        monkeypatch.chdir(tmp_path)
        os.link(study.edm2, "net.pkl")
        xr.testing.assert_identical(replace(study, edm2="net.pkl").run("run", client=client), alone)
        for worker in client.nthreads():
            assert client.submit(torch.get_num_threads, workers=[worker], pure=False).result() == 2


class TestFailing:
    def test_a_chunk_that_fails_is_named_and_the_others_are_saved(self, study, alone, client, tmp_path):
        out = tmp_path / "run"
        client.run(do, "raise", (2, 5))
        with pytest.raises(IncompleteRunError, match=r"chunks 2, 5 failed; why is in .*logs; all others are saved"):
            study.run(out, client=client)
        log = (out / "logs" / "rank-0000.log").read_text()
        assert "chunk 2 failed:\nTraceback" in log
        assert "FloatingPointError: planted" in log
        assert "5 of 7 chunks, 18 of 26 samples" in status(out)
        client.run(do, "nothing")
        xr.testing.assert_identical(study.run(out, client=client, resume=True), alone)

    def test_a_chunk_whose_workers_die_again_and_again_is_named(self, study, alone, client, tmp_path):
        out = tmp_path / "run"
        (tmp_path / "hanging").touch()
        client.run(do, "hang", (6,), tmp_path / "hanging")
        before = client.run_on_scheduler(allow, 0)  # deaths before the scheduler gives a task up
        killer = threading.Thread(target=kill_one_at_work, args=(out, tmp_path / "hanging"))
        killer.start()
        try:
            with pytest.raises(IncompleteRunError, match="chunks 6 failed"):
                study.run(out, client=client)
        finally:
            client.run_on_scheduler(allow, before)
            killer.join()
        assert "KilledWorker" in (out / "logs" / "rank-0000.log").read_text()
        client.wait_for_workers(2, timeout=60)
        client.run(do, "nothing")
        xr.testing.assert_identical(study.run(out, client=client, resume=True), alone)

    def test_a_full_disk_stops_the_run(self, study, alone, client, tmp_path):
        client.run(do, "disk full", (4,))
        with pytest.raises(OSError, match=r"out: No space left on device .*what is written stays, --resume goes on"):
            study.run(tmp_path / "run", client=client)
        client.run(do, "nothing")
        xr.testing.assert_identical(study.run(tmp_path / "run", client=client, resume=True), alone)

    def test_ctrl_c_cancels_what_is_to_come(self, study, alone, client, tmp_path, monkeypatch):
        def stop(self, number, where):
            raise KeyboardInterrupt

        monkeypatch.setattr(on_dask.OnDask, "_made", stop)
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "run", client=client)
        monkeypatch.undo()
        monkeypatch.setattr(plot, "save_figures", lambda ds, folder: [])
        assert not client.futures
        xr.testing.assert_identical(study.run(tmp_path / "run", client=client, resume=True), alone)

    def test_workers_that_do_not_fit_are_named(self, study, client, tmp_path):
        job = on_dask._Task(
            _again(study), {**study.config(study.denoiser()), "weights": "0123"}, "kind", 7, str(tmp_path), tmp_path, {}
        )
        with pytest.raises(
            on_dask.UnfitWorkerError, match=r"dask: worker . on .* has another configuration: weights = "
        ):
            client.submit(job, 0, pure=False).result()
        with pytest.raises(on_dask.UnfitWorkerError, match=r"dask: worker . on .* does not see .*none; expected"):
            client.submit(replace(job, place=str(tmp_path / "none")), 0, pure=False).result()
        lost = replace(study, edm2=str(tmp_path / "lost.pkl"))
        with pytest.raises(on_dask.UnfitWorkerError, match=r"dask: worker . on .* cannot load the model: edm2: .*lost"):
            client.submit(replace(job, again=_again(lost)), 0, pure=False).result()

    def test_what_is_no_cluster_is_refused_before_a_folder_is_made(self, study, tmp_path):
        with pytest.raises(TypeError, match=r"client: expected a dask\.distributed.Client or the address of"):
            study.run(tmp_path / "run", client=3)
        with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), pytest.raises(OSError, match="connect"):
            study.run(tmp_path / "run", client="tcp://127.0.0.1:9")
        with pytest.raises(ValueError, match="dask: expected one process, whose workers are the ranks; this is rank 1"):
            study.run(tmp_path / "run", client="tcp://127.0.0.1:9", rank=Rank(1, 2))
        assert not (tmp_path / "run").exists()


def allow(failures, dask_scheduler):
    before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, failures
    return before


def _again(study):
    return partial(_job, study, "cpu")
