"""Studies of text models: prompts are classes, in configuration, table and report; the same bits for any ranks."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.cli import app
from fastcrit.diffusion import sample
from fastcrit.report import write_report
from fastcrit.studies import GuidanceStudy, ImageNetStudy
from fastcrit.studies.shared.ranks import Rank
from tests import text_pipelines
from tests.networks import PLAIN, diffusers_pipeline, image_classifier
from tests.text_pipelines import NEGATIVE, PROMPTS

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
# Loaded where they are first named: here, so that processes have them when they start.
PIPELINES = {
    "stable_diffusion": diffusers.StableDiffusionPipeline, "stable_diffusion_3": diffusers.StableDiffusion3Pipeline
}  # fmt: skip

QUICK = {
    "samples": 6, "chunk": 2, "batch": 2, "levels": 5, "high": 10.0, "low": 0.5, "gain_share": 0.4, "solver": "euler",
    "negative": NEGATIVE,
}  # fmt: skip
GUIDANCE = {
    "samples": 9, "steps": 8, "high": 10.0, "low": 0.5, "guided_steps": 2, "centres": 2, "random_centres": 2,
    "decision_samples": 4, "chunk": 6, "threads": 1,
}  # fmt: skip
KINDS = tuple(PIPELINES)
# Random networks of flow matching do not know what noise is, and are told so.
pytestmark = [
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.filterwarnings("ignore:.*SD3Transformer2DModel. at the noise level"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    for kind in KINDS:
        getattr(text_pipelines, kind)().save_pretrained(root / kind)
    (root / "prompts.txt").write_text("\n".join(["", *PROMPTS, " "]))
    return root


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    """Of each kind of pipeline the folder of a run by one rank, and its result."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plot, "save_figures", lambda ds, folder: [])
        for kind in KINDS:
            out = tmp_path_factory.mktemp("run") / "run"
            study = ImageNetStudy(diffusers=str(folders / kind), prompts=PROMPTS, **QUICK)
            runs[kind] = out, study.run(out)
    return runs


@pytest.fixture(scope="module")
def processes():
    """Processes that have torch and these libraries loaded when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_prompts_study"])
    return context


def in_process(study, out, how, threads, die_at_write=0):
    """One run; with ``die_at_write`` it is killed when it has written so many chunks but for the last one's name."""
    plot.save_figures = lambda ds, folder: []
    torch.set_num_threads(threads)
    replace, seen = os.replace, []

    def die(*paths):
        if str(paths[1]).endswith(".safetensors"):
            seen.append(paths)
        if die_at_write and len(seen) == die_at_write:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    os.replace = die
    study.run(out, **how)


def two_ranks(processes, study, out):
    """Ranks 0 and 1 of 2, whose torch begins with other numbers of threads."""
    ranks = [processes.Process(target=in_process, args=(study, out, {"rank": Rank(r, 2)}, 1 + r)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    return store.load_dataset(out / "dataset.zarr")


class TestStudy:
    def test_two_ranks_give_the_same_bits(self, folders, finished, processes, tmp_path):
        kind = KINDS[-1]
        study = ImageNetStudy(diffusers=str(folders / kind), prompts=PROMPTS, **QUICK)
        xr.testing.assert_identical(two_ranks(processes, study, tmp_path / "run"), finished[kind][1])

    def test_from_the_command_line_with_a_file_of_prompts(self, folders, finished, tmp_path):
        given = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
        where = [
            f"--diffusers={folders / KINDS[0]}",
            f"--prompts={folders / 'prompts.txt'}",
            f"--out={tmp_path / 'run'}",
        ]
        done = CliRunner().invoke(app, ["study", "imagenet", *given, *where])
        assert done.exit_code == 0, done.stderr
        assert "3 prompts, negative 'blurry', embeddings' sha256 " in done.stdout
        xr.testing.assert_identical(store.load_dataset(tmp_path / "run" / "dataset.zarr"), finished[KINDS[0]][1])
        said = CliRunner().invoke(app, ["status", str(tmp_path / "run")]).stdout
        assert "3 of 3 chunks, 6 of 6 samples, finished" in said

    def test_killed_and_resumed(self, folders, finished, processes, tmp_path):
        out = tmp_path / "run"
        study = ImageNetStudy(diffusers=str(folders / KINDS[1]), prompts=PROMPTS, **QUICK)
        process = processes.Process(target=in_process, args=(study, out, {}, 1, 2))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(list((out / "chunks").glob("chunk-*.safetensors"))) == 1
        xr.testing.assert_identical(study.run(out, resume=True), finished[KINDS[1]][1])

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_what_a_user_would_record(self, folders, finished, kind):
        study = ImageNetStudy(diffusers=str(folders / kind), prompts=PROMPTS, **QUICK)
        pipe = PIPELINES[kind].from_pretrained(folders / kind)
        D = fc.diffusion.from_pipeline(pipe, PROMPTS, NEGATIVE)
        rec = fc.Recorder(study.grid(D), D.shape, data_std=1.0)
        sample(D, np.arange(6) % 3, 6, study.grid(D), "euler", 0, rec)
        np.testing.assert_allclose(finished[kind][1]["S"], rec.dataset()["S"], rtol=2e-4)  # batches round in float32
        assert finished[kind][1].attrs["pixels_per_site"] == 2

    @pytest.mark.parametrize("kind", KINDS)
    def test_says_its_prompts(self, folders, finished, kind):
        out, ds = finished[kind]
        config = json.loads((out / "config.json").read_text())
        assert (config["prompts"], config["negative"]) == (PROMPTS, NEGATIVE)
        assert config == json.loads(ds.attrs["config"])
        D = ImageNetStudy(diffusers=str(folders / kind), prompts=PROMPTS, **QUICK).denoiser()
        assert config["conditioning"] == D.card["prompts"]["sha256"]
        text = (out / "summary.txt").read_text()
        assert f"3 prompts, negative 'blurry', embeddings' sha256 {config['conditioning']}:" in text
        assert "\n  0   a red cat\n  1   a blue dog\n  2   the green boat" in text
        page = write_report(out).path.read_text()
        assert "3 prompts" in page
        assert '<ol start="0"><li>a red cat</li><li>a blue dog</li><li>the green boat</li></ol>' in page
        assert config["conditioning"] in page

    def test_of_other_prompts_is_another_run(self, folders, finished, tmp_path):
        shutil.copytree(finished[KINDS[0]][0], tmp_path / "run", ignore=shutil.ignore_patterns("dataset.zarr"))
        study = ImageNetStudy(diffusers=str(folders / KINDS[0]), prompts=PROMPTS[:2], **QUICK)
        with pytest.raises(ValueError, match=r"begun with another configuration: prompts = .*; conditioning = "):
            study.run(tmp_path / "run", resume=True)

    def test_guided_away_from_the_negative_prompt(self, folders, tmp_path):
        config = {**QUICK, "samples": 3, "chunk": 3, "batch": 3, "gain_share": 0.0, "guidance_weight": 4.0}
        study = ImageNetStudy(diffusers=str(folders / KINDS[0]), prompts=PROMPTS, **config, save_states=True)
        study.run(tmp_path / "run")
        D = ImageNetStudy(diffusers=str(folders / KINDS[0]), prompts=PROMPTS, **QUICK).denoiser()
        last = sample(D, np.arange(3), 3, study.grid(D), "euler", 0, guidance=fc.diffusion.Constant(4.0))
        with xr.open_zarr(tmp_path / "run" / "states.zarr") as states:
            np.testing.assert_allclose(states.y[-1], last, rtol=1e-4, atol=1e-4)

    def test_prompts_are_laid_by_in_turn(self, folders):
        study = ImageNetStudy(diffusers=str(folders / KINDS[0]), prompts=PROMPTS, **QUICK)
        assert study.labels(study.denoiser(), range(2, 7)).tolist() == [2, 0, 1, 2, 0]
        with pytest.raises(ValueError, match="classes: expected at most 3, which UNet2DConditionModel knows, got 4"):
            ImageNetStudy(diffusers=str(folders / KINDS[0]), prompts=PROMPTS, **QUICK, classes=4).denoiser()


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return image_classifier(tmp_path_factory.mktemp("judge"), classes=4)


class TestGuidance:
    @pytest.mark.parametrize("kind", KINDS)
    def test_takes_its_prompts_from_the_run(self, folders, finished, judge, processes, tmp_path, kind):
        run = str(finished[kind][0])
        study = GuidanceStudy(run, diffusers=str(folders / kind), judge=judge, **GUIDANCE)
        ds = study.run(tmp_path / "run")
        if kind == KINDS[1]:
            xr.testing.assert_identical(two_ranks(processes, study, tmp_path / "two"), ds)
        config = json.loads(ds.attrs["config"])
        assert (config["prompts"], config["negative"], config["classes"]) == (PROMPTS, NEGATIVE, 3)
        assert ds["label"].values.tolist() == [0, 1, 2] * 3
        assert {"retained", "entropy_rate"} <= set(ds.data_vars)
        assert "\n  1   a blue dog\n" in (tmp_path / "run" / "summary.txt").read_text()
        page = write_report(tmp_path / "run").path.read_text()
        assert "<li>the green boat</li>" in page

    def test_refuses_what_does_not_go_with_prompts(self, folders, finished, judge, tmp_path):
        run, folder = str(finished[KINDS[0]][0]), str(folders / KINDS[0])
        few = image_classifier(tmp_path / "few", classes=2)
        other = tmp_path / "other"
        shutil.copytree(folder, other)
        (other / "scheduler/scheduler_config.json").write_text(
            (other / "scheduler/scheduler_config.json").read_text().replace("0.02", "0.03")
        )
        for change, message in (
            ({"judge": few}, "classes: judge few knows 2 classes, and none of the number 2"),
            ({"guide": "g.pkl"}, "edm2, guide: .* is a study of prompts, whose negative one is led away from"),
            ({"diffusers": None}, "diffusers: prompts need the folder of their pipeline, got None"),
            ({"diffusers": str(other)}, "was made with other weights than UNet2DConditionModel has now"),
            ({"samples": 8}, "samples: expected 3 or more of each of 3 classes, got 8"),
        ):
            with pytest.raises(ValueError, match=message):
                GuidanceStudy(**{"run_path": run, "diffusers": folder, "judge": judge, **GUIDANCE, **change}).run(
                    tmp_path / "run"
                )


class TestRefused:
    def test_files_that_hold_no_prompts(self, tmp_path):
        file = tmp_path / "prompts.txt"
        for content, error, message in (
            (b"\n \n", ValueError, r"prompts: .*prompts\.txt: expected one at least, got none"),
            (b"a cat\n\na dog\r\na cat\n", ValueError, "expected different ones, got 'a cat' as number 0 and 2"),
            (b"\xff\xfe\x00", fc.FileFormatError, r"prompts: .*prompts\.txt: not text in UTF-8"),
        ):
            file.write_bytes(content)
            with pytest.raises(error, match=message):
                ImageNetStudy(diffusers="model", prompts=str(file))
        with pytest.raises(FileNotFoundError, match=r"prompts: .*none\.txt: no such file; expected one with a prompt"):
            ImageNetStudy(diffusers="model", prompts=str(tmp_path / "none.txt"))
        file.write_bytes("\ufeffein Kätzchen\r\n\r\na dog".encode())
        assert ImageNetStudy(diffusers="model", prompts=file).prompts == ("ein Kätzchen", "a dog")

    def test_fields_that_do_not_go_together(self):
        for given, message in (
            ({"negative": "x"}, "negative: given without prompts"),
            ({"prompts": ["a"], "null_label": 1}, "null_label: given with prompts"),
            ({"prompts": ["a"], "guide": "g.pkl", "guidance_weight": 2.0}, "guide: given with prompts"),
            ({"prompts": ["a"], "edm2": "net.pkl", "diffusers": None}, "edm2: given with prompts"),
        ):
            with pytest.raises(ValueError, match=message):
                ImageNetStudy(**{"diffusers": "model", **given})
        with pytest.raises(TypeError, match="negative: expected a text, got 3"):
            ImageNetStudy(diffusers="model", prompts=["a"], negative=3)

    def test_a_run_without_prompts_says_nothing_of_them(self, tmp_path):
        folder = diffusers_pipeline(tmp_path / "model", **PLAIN)
        study = ImageNetStudy(diffusers=folder)
        config = study.config(study.denoiser())
        assert not {"prompts", "negative", "conditioning"} & config.keys()

    def test_folders_that_are_no_text_pipelines(self, folders, tmp_path):
        folder = diffusers_pipeline(tmp_path / "model", **PLAIN)
        with pytest.raises(ValueError, match="prompts: DDPMPipeline reads no text"):
            ImageNetStudy(diffusers=folder, prompts=PROMPTS).denoiser()
        with pytest.raises(ValueError, match=r"holds a StableDiffusionPipeline, a text model; .*--prompts FILE"):
            ImageNetStudy(diffusers=str(folders / KINDS[0])).denoiser()
        with pytest.raises(FileNotFoundError, match=r"model_index\.json: no such file; prompts need a whole pipeline"):
            ImageNetStudy(diffusers=str(tmp_path), prompts=PROMPTS).denoiser()

    def test_parts_that_bring_code_pickles_or_nothing(self, folders, tmp_path):
        def study(change):
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            shutil.copytree(folders / KINDS[0], folder)
            change(folder)
            return ImageNetStudy(diffusers=str(folder), prompts=PROMPTS)

        def index(**changed):
            def change(folder):
                file = folder / "model_index.json"
                file.write_text(json.dumps(json.loads(file.read_text()) | changed))

            return change

        def pickled(folder):
            (folder / "text_encoder/model.safetensors").unlink()
            torch.save({}, folder / "text_encoder/pytorch_model.bin")

        for change, message in (
            (index(text_encoder=["my_module", "Encoder"]), "text_encoder is a Encoder of my_module, and only classes"),
            (index(text_encoder=["transformers", "AutoModel"]), "text_encoder is a AutoModel of transformers"),
            (index(_class_name="MyPipeline"), "holds MyPipeline, which is none of the pipelines known here"),
            (index(_class_name=["pipeline", "MyPipeline"]), "which is none of the pipelines known here"),
            (pickled, "damaged, or not the safetensors of a StableDiffusionPipeline .*pickles of weights can run code"),
            (lambda folder: (folder / "model_index.json").write_text("{"), r"model_index\.json: damaged"),
            (lambda folder: (folder / "unet/config.json").write_text("{"), "damaged, or not the safetensors"),
        ):  # fmt: skip
            with pytest.raises(fc.FileFormatError, match=message):
                study(change).denoiser()

    def test_weights_of_a_variant_alone_are_read(self, folders, tmp_path):
        pipe = text_pipelines.stable_diffusion().to(torch.float16)
        pipe.save_pretrained(tmp_path / "half", variant="fp16")
        D = ImageNetStudy(diffusers=str(tmp_path / "half"), prompts=PROMPTS).denoiser()
        whole = ImageNetStudy(diffusers=str(folders / KINDS[0]), prompts=PROMPTS).denoiser()
        assert D.dtype == torch.float32
        y = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(D(y, 1.0, [0, 1]), whole(y, 1.0, [0, 1]), rtol=0, atol=0.02)  # rounded weights
