"""The guidance experiment on large models: who judges, what is led away from, ranks, latents, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.alignment import class_alignment
from fastcrit.cli import app
from fastcrit.diffusion.judge import load_judge, shipped_judge
from fastcrit.report import guidance as figures
from fastcrit.studies import GuidanceStudy, ImageNetStudy
from fastcrit.studies.guidance.chunk import ArmSampler
from fastcrit.studies.guidance.subject import subject_of
from tests.networks import (
    PLAIN,
    StabilityVAEEncoder,
    diffusers_pipeline,
    edm2_pickle,
    image_classifier,
    random_unet,
)

QUICK = {
    "samples": 21, "steps": 10, "high": 20.0, "low": 0.1, "guided_steps": 2, "centres": 3, "random_centres": 3,
    "decision_samples": 6, "chunk": 8, "threads": 1, "trust_pickle": True,
}  # fmt: skip
PLANTED = {
    "softening": {"level": 2.0, "low": 1.5, "high": 3.0, "reason": ""},
    "xi_eq": {"level": None, "low": None, "high": None, "reason": "prominence within noise"},
}


def finished_study(folder, **config):
    """A folder as `ImageNetStudy` leaves it, with critical levels planted."""
    study = ImageNetStudy(**{"trust_pickle": True, "samples": 4, "chunk": 4, **config})
    attrs = {"config": json.dumps(study.config(study.denoiser())), "critical_point": json.dumps(PLANTED)}
    folder.mkdir()
    store.save_dataset(xr.Dataset(attrs=attrs), folder / "dataset.zarr")
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("large")


@pytest.fixture(scope="module")
def judge(place):
    return image_classifier(place / "judge")


@pytest.fixture(scope="module")
def study(place, judge):
    """Arguments of an experiment on a conditional network, guided by an unconditional one."""
    model, guide = edm2_pickle(place / "net.pkl"), edm2_pickle(place / "guide.pkl", seed=1, classes=0)
    run = finished_study(place / "model", edm2=model)
    return {"run_path": run, "edm2": model, "guide": guide, "judge": judge, **QUICK}


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("guidance") / "run"
    return out, GuidanceStudy(**study).run(out)


class TestRun:
    def test_two_ranks_give_the_same_bits(self, study, finished, tmp_path):
        out = tmp_path / "run"
        given = {k: v for k, v in study.items() if k not in ("run_path", "trust_pickle")}
        options = [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "fastcrit"]
        call = ["study", "guidance", f"--of={study['run_path']}", f"--out={out}", "--trust-pickle", *options]
        done = subprocess.run([*launch, *call], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "role" in done.stdout
        xr.testing.assert_identical(store.load_dataset(out / "dataset.zarr"), finished[1])
        said = CliRunner().invoke(app, ["status", str(out)]).stdout
        assert "4 of 4 chunks, 21 of 21 samples, finished" in said  # the last one is the decision's
        assert "judge" in said

    def test_the_result_is_what_a_user_would_find(self, study, finished):
        """From the start, with the public sampler; the run took a pulse's beginning from elsewhere."""
        _, ds = finished
        config = GuidanceStudy(**study)
        D = fc.diffusion.load_edm2(study["edm2"], trust_pickle=True)
        guide = fc.diffusion.load_edm2(study["guide"], trust_pickle=True)
        arm = next(a for a in config.arms({"softening": 2.0})[0] if a.first == config.nearest(2.0))
        labels = np.arange(21) % 5
        y = fc.diffusion.sample(
            D, labels, 21, config.grid(), "euler", 0, guidance=arm.weight, unguided=guide, batch_size=8
        )
        scores, _ = load_judge(study["judge"])(y)
        expected = class_alignment(scores, labels)
        row = ds.sel(arm=arm.name)
        # Other batch sizes in the classifier; states and scores are of order 1.
        np.testing.assert_allclose(row["log_probability"], expected.log_probability, rtol=1e-4, atol=1e-5)
        assert int(row["evaluations"]) == arm.evaluations == 12
        assert "coverage" not in ds
        assert {"retained", "entropy_rate"} <= set(ds.data_vars)
        assert "role" in (finished[0] / "summary.txt").read_text()
        assert "posterior gives log 5 = 1.609" in (finished[0] / "summary.txt").read_text()
        assert len(figures.panels(ds)) == 3

    def test_features_are_kept_of_as_many_as_are_said(self, study, finished, monkeypatch):
        config = GuidanceStudy(**study)
        assert config.featured(5) == 21
        monkeypatch.setattr("fastcrit.studies.guidance.plan._FEATURED", 10)
        subject = subject_of(config, "cpu")
        arms, _ = config.arms({"softening": 2.0})
        made = [ArmSampler(config, subject, arms).make(c, lambda where: None)[1] for c in range(3)]
        assert [m["features"].shape[1] for m in made] == [8, 7, 0]  # 3 of each of 5 classes
        assert [m["top1"].shape[1] for m in made] == [8, 8, 5]

    def test_a_weaker_network_with_the_same_classes_leaves_no_curve_of_the_decision(self, study, place, tmp_path):
        weaker = edm2_pickle(place / "weaker.pkl", seed=2)
        ds = GuidanceStudy(**{**study, "guide": weaker}).run(tmp_path / "run")
        assert "retained" not in ds
        assert "level" not in ds
        assert (tmp_path / "run" / "alignment.png").stat().st_size > 1000
        assert "class-entropy" not in ds.attrs["verdict"]
        assert len(figures.panels(ds)) == 2

    def test_the_decision_is_that_of_the_public_functions(self, study, finished):
        """In one go, on samples whose numbers come after the arms'."""
        config = GuidanceStudy(**{**study, "decision_samples": 25})  # three chunks
        assert [len(config.decision_span(i)) for i in range(config.decision_chunks)] == [8, 8, 9]
        subject = subject_of(config, "cpu")
        sampler = ArmSampler(config, subject, config.arms({})[0])
        made = [sampler.make(config.chunks + i, lambda where: None)[1] for i in range(3)]
        labels = np.arange(21, 46) % 5
        x0 = fc.diffusion.sample(subject.D, labels, 25, config.grid(), "euler", 0, first_sample=21)
        rate = fc.diffusion.class_entropy_rate(subject.D, x0, labels, config.grid()[:-1], unlabelled=subject.guide)
        np.testing.assert_allclose(np.concatenate([m["entropy_rate"] for m in made], axis=1), rate.samples, rtol=1e-3)
        back = fc.diffusion.forward_backward(
            subject.guide, x0, lambda y: torch.from_numpy(subject.look(y)[0]), config.back_levels, steps=10, lowest=0.1
        )
        kept = np.concatenate([m["retained"] for m in made], axis=1)
        assert (kept == back.samples).mean() > 0.99  # batches round

    def test_of_a_diffusers_model(self, judge, tmp_path):
        folder = diffusers_pipeline(tmp_path / "pipeline", **PLAIN)
        run = finished_study(tmp_path / "model", diffusers=folder, null_label=3, classes=3, trust_pickle=False)
        config = {**QUICK, "trust_pickle": False, "run_path": run, "diffusers": folder, "judge": judge, "samples": 9}
        ds = GuidanceStudy(**config).run(tmp_path / "run")
        assert sorted(set(ds["label"].values)) == [0, 1, 2]
        assert "retained" in ds

    @pytest.mark.parametrize(("null_label", "expected"), [(3, [0, 1, 2]), (1, [0, 2, 3])])
    def test_no_sample_has_the_class_that_stands_for_none(self, judge, tmp_path, null_label, expected):
        folder = diffusers_pipeline(tmp_path / "pipeline", **PLAIN)
        model = {"diffusers": folder, "null_label": null_label}
        run = finished_study(tmp_path / "model", **model, trust_pickle=False)
        config = {**QUICK, "trust_pickle": False, "run_path": run, "diffusers": folder, "judge": judge}
        subject = subject_of(GuidanceStudy(**config), "cpu")
        assert sorted(set(subject.labels(range(20)))) == expected
        study = ImageNetStudy(**model, samples=8)
        assert sorted(set(study.labels(study.denoiser(), range(20)))) == expected
        with pytest.raises(ValueError, match="classes: expected at most 3, which UNet2DModel knows, got 4"):
            ImageNetStudy(**model, classes=4).denoiser()


class TestJudge:
    @pytest.mark.parametrize("settings", [{}, {"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"size": 400}])
    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 9, 14), (3, 70, 50)])
    def test_scores_are_the_classifiers_own(self, tmp_path, rng, settings, shape):
        from PIL import Image
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        if "size" in settings:
            settings = {"size": {"shortest_edge": settings["size"]}}  # from 384 on nothing is cropped
        judge = image_classifier(tmp_path / "judge", **settings)
        images = rng.uniform(-1.2, 1.2, (5, *shape)).astype(np.float32)
        scores, features = load_judge(judge)(images)
        pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
        pictures = [Image.fromarray(p.squeeze()).convert("RGB") for p in pixels]
        given = AutoImageProcessor.from_pretrained(judge)(pictures, return_tensors="pt")
        net = AutoModelForImageClassification.from_pretrained(judge)
        with torch.no_grad():
            out = net(**given)
            # The last layer is linear: it gives the scores from the features.
            again = net.classifier(torch.from_numpy(features)[:, :, None, None])
        np.testing.assert_allclose(scores, out.logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, again, rtol=1e-4, atol=1e-5)

    def test_a_head_without_weights_is_refused(self, judge, tmp_path):
        from safetensors.numpy import load_file, save_file

        shutil.copytree(judge, tmp_path / "judge")
        file = tmp_path / "judge" / "model.safetensors"
        kept = {name: value for name, value in load_file(file).items() if not name.startswith("classifier")}
        save_file(kept, file, metadata={"format": "pt"})
        with pytest.raises(fc.FileFormatError, match=r"judge: no weights, or of another shape, for classifier"):
            load_judge(tmp_path / "judge")

    def test_images_that_cannot_be_looked_at(self, judge):
        for images in (np.zeros((2, 4, 8, 8)), np.full((2, 3, 8, 8), np.nan)):
            with pytest.raises(ValueError, match="images: expected finite grey or RGB ones, got"):
                load_judge(judge)(images)

    def test_latents_are_decoded(self, judge, study, place, tmp_path):
        latents = edm2_pickle(place / "latents.pkl", StabilityVAEEncoder(), channels=4)
        run = finished_study(tmp_path / "model", edm2=latents)
        guide = edm2_pickle(place / "guide-latents.pkl", seed=1, classes=0, channels=4)
        subject = subject_of(GuidanceStudy(**{**study, "run_path": run, "edm2": latents, "guide": guide}), "cpu")
        y = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        images = StabilityVAEEncoder().decode(y).numpy() / 127.5 - 1
        assert images.shape == (3, 3, 64, 64)
        np.testing.assert_allclose(subject.look(y)[0], load_judge(judge)(images)[0], rtol=1e-4, atol=1e-5)

    def test_latents_of_diffusers_are_decoded_by_its_autoencoder(self, tmp_path):
        from diffusers import AutoencoderKL, DDPMScheduler

        vae = AutoencoderKL(block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
                            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, latent_channels=1,
                            scaling_factor=0.5).eval()  # fmt: skip
        vae.save_pretrained(tmp_path / "vae")
        random_unet(sample_size=8).save_pretrained(tmp_path / "unet")
        DDPMScheduler().save_pretrained(tmp_path / "scheduler")
        D = fc.diffusion.load_diffusers(tmp_path)
        assert D.card["pixels_per_site"] == 2  # of its own two resolutions
        y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(D.decode(y), vae.decode(y / 0.5).sample)
        (tmp_path / "vae" / "config.json").write_text("{")
        with pytest.raises(fc.FileFormatError, match="vae: damaged, or not an AutoencoderKL"):
            fc.diffusion.load_diffusers(tmp_path).decode(y)

    def test_the_shipped_one_is_the_shipped_classifier(self):
        images = fc.data.fashion_mnist().pixels()[:20, None]
        scores, features = shipped_judge()(images)
        net = fc.diffusion.fashion_mnist.classifier()
        np.testing.assert_allclose(scores, net(torch.from_numpy(images)), rtol=1e-5, atol=1e-5)
        assert features.shape == (20, 96)

    def test_what_is_no_judge_is_named(self, judge, tmp_path):
        for part in ("config.json", "preprocessor_config.json"):
            folder = tmp_path / part
            shutil.copytree(judge, folder)
            (folder / part).unlink()
            with pytest.raises(FileNotFoundError, match=rf"judge: .*{part}: no such file"):
                load_judge(folder)
        for i, (part, content, message) in enumerate((
            ("model.safetensors", "x", "damaged, or not an image classifier"),
            ("config.json", "{}", "damaged, or not an image classifier"),
            ("preprocessor_config.json", "{", "damaged, or not an image classifier"),
            ("preprocessor_config.json", '{"image_processor_type": "Nobody"}', "damaged, or not an image classifier"),
        )):  # fmt: skip
            folder = tmp_path / str(i)
            shutil.copytree(judge, folder)
            (folder / part).write_text(content)
            with pytest.raises(fc.FileFormatError, match=rf"judge: .*{message}"):
                load_judge(folder)


class TestRefused:
    def test_what_does_not_fit_together(self, study, place, judge, tmp_path):
        other = edm2_pickle(tmp_path / "other.pkl", seed=5)
        guided = finished_study(tmp_path / "guided", edm2=study["edm2"], guide=study["guide"], guidance_weight=2.0)
        few = image_classifier(tmp_path / "few", classes=3)
        for change, error, message in (
            ({"judge": None}, ValueError, "judge: needed"),
            ({"edm2": None}, ValueError, "edm2, diffusers: expected one of them"),
            ({"trust_pickle": False}, ValueError, "is a pickle, and loading it runs any code"),
            ({"edm2": other}, ValueError, r"made with other weights than other\.pkl has now"),
            ({"guide": None}, ValueError, "works with labels and without, or a guide beside it"),
            ({"run_path": guided}, ValueError, "expected a study without guidance"),
            ({"classes": 6}, ValueError, r"classes: expected at most 5, which net\.pkl knows, got 6"),
            ({"judge": few}, ValueError, "classes: judge few knows 3 classes, and none of the number 4"),
            ({"samples": 14}, ValueError, "samples: expected 3 or more of each of 5 classes, got 14"),
            ({"judge": str(tmp_path / "none")}, FileNotFoundError, "judge: .*no such file"),
            ({"guide": edm2_pickle(tmp_path / "g4.pkl", channels=4)}, ValueError, "guide: does not take what net"),
            ({"guide": str(tmp_path / "none.pkl")}, FileNotFoundError, "guide: .*no such file"),
        ):
            with pytest.raises(error, match=message):
                GuidanceStudy(**{**study, **change}).run(tmp_path / "out")
            assert not (tmp_path / "out").exists()

    def test_states_that_the_judge_cannot_see(self, study, tmp_path):
        two = edm2_pickle(tmp_path / "two.pkl", channels=2)
        run = finished_study(tmp_path / "model", edm2=two)
        guide = edm2_pickle(tmp_path / "guide.pkl", channels=2, classes=0)
        with pytest.raises(
            ValueError, match=r"judge: cannot look at what two\.pkl makes .*expected finite grey or RGB"
        ):
            GuidanceStudy(**{**study, "run_path": run, "edm2": two, "guide": guide}).run(tmp_path / "out")

    @pytest.mark.parametrize("device", ["cuda:7", "nowhere"])
    def test_devices_that_are_not_there(self, study, device, tmp_path):
        with pytest.raises(ValueError, match=f"device: '{device}' is not to be had here"):
            GuidanceStudy(**study).run(tmp_path / "out", device=device)
        with pytest.raises(ValueError, match=f"device: '{device}' is not to be had here"):
            fc.diffusion.pretrained("zeros-0", device)

    def test_levels_above_the_networks(self, judge, tmp_path):
        folder = diffusers_pipeline(tmp_path / "pipeline")
        run = finished_study(tmp_path / "model", diffusers=folder, null_label=3, trust_pickle=False)
        config = {**QUICK, "trust_pickle": False, "run_path": run, "diffusers": folder, "judge": judge}
        with pytest.raises(ValueError, match=r"high: expected at most [0-9.]+, the network's highest noise level"):
            GuidanceStudy(**{**config, "high": 5000.0}).run(tmp_path / "out")

    def test_a_study_of_a_shipped_network_needs_no_judge(self, tmp_path):
        config = {"study": "fashion-mnist", "net": "zeros-0", "weights": "-"}
        (tmp_path / "run").mkdir()
        store.save_dataset(xr.Dataset(attrs={"config": json.dumps(config)}), tmp_path / "run" / "dataset.zarr")
        with pytest.raises(ValueError, match="is a study of zeros-0, which needs none of them"):
            GuidanceStudy(str(tmp_path / "run"), judge="x", samples=30).run(tmp_path / "out")


def test_alignment_is_drawn_into_axes_that_are_given(finished):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert plot.alignment(finished[1], axes) is axes.figure
    assert axes.get_ylabel() == "share of samples with their class"
