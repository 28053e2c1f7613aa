"""One command: it begins a run, goes on with one that was killed at any moment, and says of a finished one that it is.

FASTCRIT_KILLS=20 kills each study so many times at random moments, and as many times in its first ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.cli import app
from fastcrit.diffusion import Net, NetConfig, save_net
from fastcrit.studies import ImageNetStudy, PatchStudy
from fastcrit.studies.shared.ranks import Rank
from tests.networks import edm2_pickle

pytestmark = pytest.mark.usefixtures("no_figures")

KILLS = int(os.environ.get("FASTCRIT_KILLS", "1"))
STUDIES = ("patch", "fashion-mnist", "imagenet", "guidance")


class KilledError(Exception):
    """What a planted kill raises."""


class Killer:
    """Before a step of its file system in a folder a process stops, and then takes no other step."""

    _installed: Killer | None = None

    def __init__(self, folder, dies):
        self.folder, self.dies = str(folder), dies
        self.steps, self.dead, self.written = 0, False, None  # the file that the last step opened to write to

    @contextmanager
    def at_work(self):
        if Killer._installed is None:
            sys.addaudithook(Killer._hook)  # there to stay, and idle without a killer
        Killer._installed = self
        try:
            yield self
        finally:
            Killer._installed = _NOBODY

    @staticmethod
    def _hook(event, args):
        if Killer._installed is not None and event in _STEPS:
            Killer._installed.see(event, args)

    def see(self, event, args):
        if not str(args[0]).startswith(self.folder) or (event == "open" and not _writes(args)):
            return
        self.steps += 1
        self.dead = self.dead or self.dies(self.steps)
        if self.dead:
            raise KilledError(f"before {event} {args[0]}")
        self.written = Path(args[0]) if event == "open" else None


_NOBODY = Killer("\0", lambda step: False)
_STEPS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def _writes(args):
    return bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Of each study a command of a small run, but for its folder."""
    root = tmp_path_factory.mktemp("networks")
    nets = []
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = Net(NetConfig(width=4, multipliers=(1, 2)))
        (root / f"net-{seed}").mkdir()
        nets.append(str(root / f"net-{seed}" / "net.safetensors"))
        save_net(nets[-1], net, {"training": {"label_dropout": 0.2}})
    model = edm2_pickle(root / "net.pkl")
    found = {"softening": {"level": 2.0, "low": 1.5, "high": 3.0, "reason": ""}}
    config = {"study": "fashion-mnist", "net": nets[0], "weights": fc.diffusion.pretrained(nets[0]).card["sha256"]}
    (root / "study").mkdir()
    ds = xr.Dataset(attrs={"config": json.dumps(config), "critical_point": json.dumps(found)})
    store.save_dataset(ds, root / "study" / "dataset.zarr")
    networks = "--levels=5 --high=20 --low=0.1 --gain-samples=2 --waves=1"
    return {
        "patch": "patch --patterns=0 --lattice=10 --samples=96 --levels=6 --substeps=1",
        "fashion-mnist": f"fashion-mnist --net={nets[0]} --samples=66 {networks}",
        "several networks": f"fashion-mnist --net={nets[0]} --net={nets[1]} --samples=4 {networks}",
        "imagenet": f"imagenet --edm2={model} --trust-pickle --samples=12 --chunk=4 --batch=2 --levels=5 --high=20 "
        "--low=0.1 --gain-share=0.3 --save-states",
        "guidance": f"guidance --of={root / 'study'} --samples=9 --steps=8 --high=10 --low=0.5 --guided-steps=2 "
        "--centres=2 --random-centres=2 --decision-samples=4 --chunk=6 --classes=3 --threads=1",
    }


@pytest.fixture(scope="module")
def undisturbed(commands, tmp_path_factory):
    """What a run of a study leaves that nothing happened to."""
    runs = {}

    def of(study):
        if study not in runs:
            out = tmp_path_factory.mktemp("whole") / "run"
            command(commands[study], out)
            runs[study] = left_by(out)
        return runs[study]

    return of


@pytest.fixture(scope="module")
def processes():
    """Processes that have torch loaded when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_resume"])
    return context


def words(study, out):
    return ["study", *study.split(), f"--out={out}", "--resume"]


def command(study, out):
    done = CliRunner().invoke(app, words(study, out))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def in_a_process(study, out):
    plot.save_figures = lambda ds, folder: []
    app(words(study, out))


def left_by(out):
    """Datasets and tables, by their places in the folder, and the states where they are kept."""
    left = {str(p.relative_to(out)): store.load_dataset(p) for p in sorted(out.rglob("dataset.zarr"))}
    for store_of_states in out.glob("states.zarr"):
        with xr.open_zarr(store_of_states) as states:
            left["states"] = states.load()
    return left | {str(p.relative_to(out)): p.read_text() for p in sorted(out.rglob("*.txt"))}


def assert_same(left, expected):
    assert left.keys() == expected.keys()
    for name, there in expected.items():
        if isinstance(there, xr.Dataset):
            xr.testing.assert_identical(left[name], there)
        else:
            assert left[name] == there


def assert_ends_the_same(study, out, expected):
    """The command once more comes to the same end, and then says that it is finished and changes nothing."""
    command(study, out)
    assert_same(left_by(out), expected)
    assert not list(out.rglob("recorder*"))
    again = command(study, out)
    assert again.startswith(f"{out}: finished already; ")
    assert again.count("\n") == 1
    assert_same(left_by(out), expected)


class TestKilled:
    @pytest.mark.parametrize("study", ["patch", "several networks", "imagenet", "guidance"])
    def test_before_each_step_that_begins_it_a_run_ends_as_if_nothing_had_happened(
        self, commands, undisturbed, tmp_path, study
    ):
        """Whether the write before that step is whole or torn."""

        def killed(out, dies):
            with Killer(out, dies).at_work() as killer:
                stopped = CliRunner().invoke(app, words(commands[study], out))
            assert isinstance(stopped.exception, KilledError), (out, stopped.output, stopped.exception)
            return killer

        left, torn_ones = [], []
        while not left or not any(left[-1].rglob("config.json")):
            out, last = tmp_path / f"run-{len(left)}", len(left)
            killer = killed(out, lambda n, last=last: n == last + 1)
            left.append(out)
            if killer.written is not None and not any(out.rglob("config.json")):
                shutil.copytree(out, torn := tmp_path / f"torn-{len(left)}")
                os.truncate(torn / killer.written.relative_to(out), killer.written.stat().st_size // 2)
                torn_ones.append(torn)
        # Folder, configuration, its place; states are stored by many steps more.
        assert len(left) >= {"imagenet": 20, "several networks": 4}.get(study, 3)
        assert torn_ones
        for out in (*left, *torn_ones):
            killed(out, lambda n, out=out: any(out.rglob("config.json")))
            assert next(out.rglob("config.json")).read_text() == next(left[-1].rglob("config.json")).read_text()
        assert_ends_the_same(commands[study], random.Random(study).choice(left), undisturbed(study))

    @pytest.mark.parametrize("study", STUDIES)
    def test_at_random_moments_and_in_its_first_ones_it_ends_with_the_same_bits(
        self, commands, undisturbed, processes, tmp_path, study
    ):
        expected, draw, killed = undisturbed(study), random.Random(f"{study} {KILLS}"), {"first": 0, "later": 0}

        def started(out):
            process = processes.Process(target=in_a_process, args=(commands[study], out))
            process.start()
            return process

        def kill(process, moment):
            if process.is_alive():
                process.kill()
                killed[moment] += 1
            process.join()

        runs = 0
        while min(killed.values()) < KILLS:
            runs += 1
            out = tmp_path / f"run-{runs}"
            process = started(out)
            while not out.exists() and process.is_alive():
                pass
            time.sleep(draw.choice((0.0, draw.uniform(0.0, 0.02), draw.uniform(0.0, 0.3))))
            kill(process, "first")
            seconds = 0.6
            while killed["later"] < KILLS * runs and not (out / "dataset.zarr").exists():
                process = started(out)
                process.join(draw.uniform(0.1, seconds))
                kill(process, "later")
                seconds *= 1.3  # or a run that loads for long never comes to its end
                if KILLS > 1 and draw.random() < 0.3:
                    break
            assert_ends_the_same(commands[study], out, expected)
        if KILLS > 1:
            print(f"{study}: {killed['first']} kills in the first moments, {killed['later']} at random ones")


class TestResume:
    @pytest.mark.parametrize("study", STUDIES)
    def test_leaves_a_folder_alone_that_holds_something_else(self, commands, tmp_path, study):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        done = CliRunner().invoke(app, words(commands[study], tmp_path / "run"))
        assert isinstance(done.exception, FileExistsError)
        assert "run holds no run to resume, but notes.txt; choose another name, or delete it" in str(done.exception)
        assert [p.name for p in (tmp_path / "run").rglob("*")] == ["notes.txt"]
        done = CliRunner().invoke(app, words(commands[study], tmp_path / "run" / "notes.txt"))
        assert "notes.txt is no folder" in str(done.exception)
        assert (tmp_path / "run" / "notes.txt").read_text() == "mine"

    def test_takes_no_work_of_a_run_for_nothing(self, commands, tmp_path):
        for name, file in (
            ("patch", "recorder.safetensors"), ("patch", "dataset.zarr/.zgroup"), ("patch", "logs/rank-0000.log"),
            ("imagenet", "chunks/chunk-000000.safetensors"), ("imagenet", "states.zarr/y/c/0/0/0/0/0"),
            ("imagenet", "dataset.zarr/.zgroup"), ("imagenet", "logs/mine.log"), ("guidance", "states.zarr/zarr.json"),
            ("several networks", "net-1/recorder-reverse.safetensors"), ("several networks", "config.json"),
        ):  # fmt: skip
            out = tmp_path / f"{name} {file.replace('/', ' ')}"
            (out / file).parent.mkdir(parents=True)
            (out / file).write_text("x")
            done = CliRunner().invoke(app, words(commands[name], out))
            assert isinstance(done.exception, FileExistsError), file
            assert "holds no run to resume, but " in str(done.exception)
            assert [p for p in out.rglob("*") if p.is_file()] == [out / file]

    def test_begins_among_what_ranks_leave_in_the_first_second(self, commands, undisturbed, tmp_path):
        out = tmp_path / "run"
        for file in (
            "logs/rank-0003.log", "progress/rank-0001.json", "progress/.rank-0001.json.7", "chunks-are-at.txt",
            ".config.json.77",
        ):  # fmt: skip
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_text("memory://nowhere\n")
        (out / "chunks").mkdir()
        command(commands["imagenet"], out)
        assert_same(left_by(out), undisturbed("imagenet"))
        assert len(list((out / "chunks").iterdir())) == 3  # here, and not where a killed command would have had them

    def test_replaces_the_store_of_states_of_another_command_that_never_began(self, commands, undisturbed, tmp_path):
        out = tmp_path / "run"
        with Killer(out, lambda n: (out / "states.zarr").exists()).at_work():
            CliRunner().invoke(app, words(commands["imagenet"].replace("high=20", "high=10"), out))
        assert (out / "states.zarr").exists()
        assert not (out / "config.json").exists()
        command(commands["imagenet"], out)
        assert_same(left_by(out), undisturbed("imagenet"))

    def test_begins_where_a_file_system_without_links_has_half_a_configuration(self, tmp_path, monkeypatch):
        link = os.link

        def refuse(source, target):
            if str(target).endswith("config.json"):
                raise PermissionError("no links here")
            link(source, target)

        monkeypatch.setattr("os.link", refuse)
        study = PatchStudy(patterns=0, lattice=10, samples=8, levels=6, substeps=1)
        whole = study.run(tmp_path / "whole")
        text = (tmp_path / "whole" / "config.json").read_text()
        for n in (0, len(text) // 2):
            out = tmp_path / f"half-{n}"
            out.mkdir()
            (out / "config.json").write_text(text[:n])
            xr.testing.assert_identical(study.run(out, resume=True), whole)
            assert (out / "config.json").read_text() == text
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text(text[: len(text) // 2] + "!")
        with pytest.raises(fc.FileFormatError, match=r"config\.json: damaged"):
            study.run(tmp_path / "other", resume=True)

    def test_a_kill_at_the_very_end_leaves_nothing_behind(self, commands, undisturbed, tmp_path):
        out = tmp_path / "run"
        with Killer(out, lambda n: (out / "dataset.zarr").exists()).at_work():
            CliRunner().invoke(app, words(commands["patch"], out))
        assert (out / "recorder.safetensors").exists()
        assert "finished already" in command(commands["patch"], out)
        assert sorted(p.name for p in out.iterdir()) == ["config.json", "dataset.zarr", "summary.txt"]
        assert_same(left_by(out), undisturbed("patch"))

    def test_two_that_begin_at_once_share_the_run(self, commands, undisturbed, processes, tmp_path):
        out = tmp_path / "run"
        both = [processes.Process(target=in_a_process, args=(commands["imagenet"], out)) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join()
            assert process.exitcode == 0
        assert_same(left_by(out), undisturbed("imagenet"))

    def test_of_a_finished_run_asks_for_the_same_configuration(self, commands, tmp_path):
        out = tmp_path / "run"
        command(commands["patch"], out)
        done = CliRunner().invoke(app, [*words(commands["patch"], out), "--seed=3"])
        assert isinstance(done.exception, ValueError)
        assert "begun with another configuration: seed = 0 there, 3 here" in str(done.exception)

    def test_a_finished_run_needs_neither_its_chunks_nor_the_right_to_write(self, commands, tmp_path):
        out = tmp_path / "run"
        command(commands["imagenet"], out)
        shutil.rmtree(out / "chunks")
        steps = Killer(out, lambda n: True)
        with steps.at_work():
            assert "finished already" in command(commands["imagenet"], out)
        assert steps.steps == 0

    def test_without_it_an_existing_folder_is_refused(self, commands, tmp_path):
        out = tmp_path / "run"
        with Killer(out, lambda n: (out / "config.json").exists()).at_work():
            CliRunner().invoke(app, words(commands["imagenet"], out))
        before = sorted(out.rglob("*"))
        done = CliRunner().invoke(app, words(commands["imagenet"], out)[:-1])
        assert isinstance(done.exception, FileExistsError)
        assert sorted(out.rglob("*")) == before

    def test_ctrl_c_in_the_first_second_says_how_to_repeat_the_command(self, commands, tmp_path, monkeypatch):
        out = tmp_path / "run"

        def stop(self, folder):
            (folder / ".states.zarr.x").mkdir()
            raise KeyboardInterrupt

        monkeypatch.setattr("fastcrit.studies.imagenet.study._Job.prepare", stop)
        done = CliRunner().invoke(app, words(commands["imagenet"], out))
        assert done.exit_code == 130
        assert done.stderr == f"\nstopped: before anything was begun; the same command with --resume begins in {out}\n"


def test_rank_1_waits_for_rank_0_to_begin_with_resume_too(commands, processes, tmp_path):
    study = ImageNetStudy(commands["imagenet"].split()[1].removeprefix("--edm2="), trust_pickle=True, samples=12,
                          chunk=4, batch=2, levels=5, high=20.0, low=0.1, gain_share=0.3, save_states=True)  # fmt: skip
    out = tmp_path / "run"
    other = processes.Process(target=study.run, args=(out,), kwargs={"resume": True, "rank": Rank(1, 2, 1)})
    other.start()
    ds = study.run(out, resume=True, rank=Rank(0, 2))
    other.join()
    assert other.exitcode == 0
    assert study.run(out, resume=True, rank=Rank(1, 2, 1)) is None
    xr.testing.assert_identical(ds, store.load_dataset(out / "dataset.zarr"))
