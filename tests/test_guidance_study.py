"""The guidance experiment: arms at equal cost, what is shared, how it goes on, and a verdict that the numbers give."""

from __future__ import annotations

import json
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
from fastcrit import store
from fastcrit._estimates.attributes import sentences_of
from fastcrit.alignment import paired
from fastcrit.cli import app
from fastcrit.diffusion import Net, NetConfig, Pulse, guided, sample, save_net
from fastcrit.studies import GuidanceStudy
from fastcrit.studies.guidance.subject import subject_of
from fastcrit.studies.guidance.verdict import (
    ARMS,
    AT_LEVELS,
    DECISION,
    NO_PULSE,
    SWEEP,
    best_centre,
    placement,
    sentences,
    summary,
    verdict,
    verdict_attributes,
)

QUICK = {
    "samples": 30, "steps": 12, "high": 20.0, "low": 0.1, "guided_steps": 2, "centres": 4, "random_centres": 3,
    "decision_samples": 6, "chunk": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of a small network with random weights, with critical levels planted."""
    folder = tmp_path_factory.mktemp("study")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(NetConfig(width=4, multipliers=(1, 2)))
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    save_net(folder / "net.safetensors", net, {"training": {"label_dropout": 0.2}})
    planted = {
        "softening": {"level": 2.0, "low": 1.5, "high": 3.0, "reason": ""},
        "xi_eq": {"level": 0.5, "low": 0.4, "high": 0.7, "reason": ""},
        "growth": {"level": None, "low": None, "high": None, "reason": "prominence within noise"},
    }
    path = str(folder / "net.safetensors")
    config = {"study": "fashion-mnist", "net": path, "weights": fc.diffusion.pretrained(path).card["sha256"]}
    ds = xr.Dataset(attrs={"config": json.dumps(config), "critical_point": json.dumps(planted)})
    store.save_dataset(ds, folder / "dataset.zarr")
    return folder


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("guidance") / "run"
    return out, GuidanceStudy(str(study), **QUICK).run(out)


class TestArms:
    @pytest.mark.parametrize("solver", ["euler", "heun", "sde"])
    def test_cost_the_same(self, solver):
        config = GuidanceStudy("-", solver=solver)
        arms, pulses = config.arms({"softening": 2.9})
        cost = {arm.name: arm.evaluations for arm in arms}
        # Heun's last step, to 0, has one evaluation: constant guidance guides it, the others do not.
        assert cost["none"] == {"euler": 44, "heun": 87, "sde": 44}[solver]
        spread = {"euler": 0, "heun": 1, "sde": 0}[solver]
        for name, evaluations in cost.items():
            allowed = {"none, the pulses' steps": 8, "interval": 2}.get(name, spread)
            assert abs(evaluations - cost["none"]) <= allowed, name
        assert len(pulses["sweep"]) == 13
        assert len(set(pulses["random"])) == 16
        assert all(arm.evaluations == arms[-1].evaluations for arm in arms if arm.first is not None)

    def test_a_pulse_guides_its_steps_and_no_others(self):
        config = GuidanceStudy("-", steps=30, guided_steps=6, centres=24, random_centres=2)
        arms, _ = config.arms({})
        pulses = [arm for arm in arms if arm.first is not None]
        assert len(pulses) == config.positions == 24
        for arm in pulses:
            guided_at = np.flatnonzero(arm.weight(arm.levels[:-1]) != 1)
            assert guided_at.tolist() == list(range(arm.first, arm.first + 6))

    def test_signatures_get_the_pulse_nearest_to_their_level(self):
        config = GuidanceStudy("-")
        last = config.centre(config.positions - 1)
        _, pulses = config.arms({"softening": 2.9, "xi_eq": 1e-9, "growth": 1e9, "susceptibility": 0.9 * last})
        assert set(pulses) == {"sweep", "random", "softening", "susceptibility"}  # no pulse comes near the others
        assert pulses["susceptibility"] == [config.positions - 1]
        centre = config.centre(pulses["softening"][0])
        assert abs(np.log(centre / 2.9)) <= 0.5 * np.log(80 / 0.02) / 39 * 1.001

    def test_bad_values_are_named(self):
        for change, message in (
            ({"samples": 5}, "samples: "),
            ({"steps": 12, "guided_steps": 6}, "guided_steps: expected less than half"),
            ({"guided_steps": 3}, "guided_steps: 40 steps and 3"),
            ({"centres": 99}, "centres: expected at most 36"),
            ({"interval": (3.0, 1.0)}, "interval: "),
            ({"interval": (0.1, np.inf)}, "interval: expected a finite number, got inf"),
            ({"weight": np.nan}, "weight: expected a positive number, got nan"),
            ({"weight": 0.0}, "weight: "),
            ({"weight": 1.0}, "weight: expected another one than 1"),
            ({"seed": 2**64}, "seed: expected 0 <= seed < 2\\^64"),
            ({"threads": 9999}, "threads: expected at most 1024"),
            ({"high": 0.01}, "high, low: "),
            ({"solver": "dpmpp-2m"}, "solver: "),
            ({"decision_samples": 5000}, "decision_samples: "),
        ):
            with pytest.raises(ValueError, match=message):
                GuidanceStudy("-", **change)

    def test_an_interval_that_guides_no_step_is_refused(self):
        with pytest.raises(ValueError, match=r"interval: none of the .* levels from 80 to 0.02 is guided"):
            GuidanceStudy("-", interval=(100.0, 200.0)).arms({})


class TestRun:
    def test_a_pulse_is_what_a_user_would_sample(self, study, finished):
        """From the start, with the public sampler and classifier; the run took its beginning from elsewhere."""
        _, ds = finished
        config = GuidanceStudy(str(study), **QUICK)
        D = fc.diffusion.pretrained(study / "net.safetensors")
        arm = next(a for a in config.arms({"softening": 2.0})[0] if a.first == config.nearest(2.0))
        labels = np.arange(30) % 10
        levels = config.grid()
        assert levels[arm.first] > levels[-1]
        width = 2 * np.log(20.0 / 0.1) / 11
        D_w = guided(D, None, Pulse(config.centre(arm.first), width, 4.0))
        y = sample(D_w, labels, 30, levels, "euler", 0, batch_size=10)
        assert D_w.evaluations == 30 * arm.evaluations
        scores = fc.diffusion.fashion_mnist.classifier()(y)
        expected = fc.alignment.class_alignment(scores.numpy(), labels)
        row = ds.sel(arm=arm.name)
        # Another batch size in the classifier, and nothing else.
        np.testing.assert_allclose(row["log_probability"], expected.log_probability, rtol=1e-4, atol=1e-4)

    def test_writes_what_it_returns(self, finished):
        out, ds = finished
        assert sorted(p.name for p in out.iterdir()) == [
            "alignment.png", "alignment.svg", "chunks", "config.json", "dataset.zarr", "logs", "progress",
            "summary.txt",
        ]  # fmt: skip
        xr.testing.assert_identical(store.load_dataset(out / "dataset.zarr"), ds)
        assert (out / "summary.txt").read_text() == summary(ds) + "\n"
        assert verdict(ds) in summary(ds)

    def test_of_fewer_classes_knows_no_others(self, study, tmp_path):
        ds = GuidanceStudy(str(study), **QUICK, classes=4).run(tmp_path / "run")
        assert sorted(set(ds["label"].values)) == [0, 1, 2, 3]
        _, real = subject_of(GuidanceStudy(str(study), **QUICK, classes=4), "cpu").real
        assert sorted(set(real)) == [0, 1, 2, 3]
        assert "posterior gives log 4" in summary(ds)

    def test_analyze_prints_it_again(self, finished):
        out, ds = finished
        assert CliRunner().invoke(app, ["analyze", str(out)]).stdout == summary(ds) + "\n"
        found = json.loads(CliRunner().invoke(app, ["analyze", str(out), "--json"]).stdout)
        assert [row["arm"] for row in found["arms"]] == ds["arm"].values.tolist()
        np.testing.assert_allclose([row["top1"] for row in found["arms"]], ds["top1"].mean("sample"))
        assert found["critical"].keys() == {"softening", "xi_eq"}
        assert found["verdict"] == verdict(ds)

    def test_resumes_after_a_kill_to_the_same_bits(self, study, finished, tmp_path):
        out = tmp_path / "killed"
        options = [part for k, v in QUICK.items() for part in (f"--{k.replace('_', '-')}", str(v))]
        command = [sys.executable, "-m", "fastcrit", "study", "guidance", "--run", str(study), "--out", str(out)]
        process = subprocess.Popen(
            [*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while not (out / "chunks" / "chunk-000000.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "dataset.zarr").exists()
        config = GuidanceStudy(str(study), **QUICK)
        with pytest.raises(FileExistsError, match="exists already"):
            config.run(out)
        with pytest.raises(ValueError, match="another configuration: weight"):
            GuidanceStudy(str(study), **QUICK, weight=3.0).run(out, resume=True)
        damaged = out / "chunks" / "chunk-000000.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-9])  # made again
        xr.testing.assert_identical(config.run(out, resume=True), finished[1])
        xr.testing.assert_identical(config.run(out, resume=True), finished[1])  # and a finished one is as it is

    def test_unfit_runs_are_refused(self, study, tmp_path):
        with pytest.raises(FileNotFoundError, match="no finished study"):
            GuidanceStudy(str(tmp_path), **QUICK).run(tmp_path / "out")
        with pytest.raises(FileNotFoundError, match=f"it holds the studies {study.name}"):
            GuidanceStudy(str(study.parent), **QUICK).run(tmp_path / "out")
        patch = tmp_path / "patch"
        patch.mkdir()
        store.save_dataset(xr.Dataset(attrs={"config": json.dumps({"study": "patch"})}), patch / "dataset.zarr")
        with pytest.raises(ValueError, match="expected a study of a network"):
            GuidanceStudy(str(patch), **QUICK).run(tmp_path / "out")


def planted(n=400, seed=0, **share):
    """An experiment whose pulses align the given shares of the samples, and no network behind it."""
    rng = np.random.default_rng(seed)
    names = ["none", "none, the pulses' steps", "constant", "constant, a pulse's dose", "interval"]
    chance = [0.6, 0.6, 0.9, 0.7, 0.8] + [share.get(f"pulse{i}", 0.6) for i in range(10)]
    difficulty = rng.random(n)
    top1 = np.array([(difficulty + 0.05 * rng.normal(size=n) < c) for c in chance], dtype=float)
    names += [f"pulse {i}" for i in range(10)]
    config = {"weight": 4.0, "guided_steps": 2, "steps": 12}
    pulses = {"sweep": [0, 3, 6, 9], "random": [0, 1, 2, 4, 5, 7, 8], "softening": [3]}
    return xr.Dataset(
        {
            **dict.fromkeys(("top1", "log_probability", "margin"), (("arm", "sample"), top1)),
            "diversity": ("arm", np.linspace(2, 1, 15)), "diversity_stderr": ("arm", np.full(15, 0.01)),
            "coverage": ("arm", np.full(15, 0.5)), "class_decided": ((), 2.2), "class_entropy": ((), 2.3),
            "class_entropy_stderr": ((), 0.1), "retained": ("back_level", [0.2, 0.7]),
        },
        {"arm": names, "center": ("arm", [*[np.nan] * 5, *np.geomspace(20, 0.1, 10)]),
         "evaluations": ("arm", [14] * 15), "back_level": [5.0, 1.0]},
        {"config": json.dumps(config), "pulses": json.dumps(pulses), "title": "planted",
         "critical": json.dumps({"softening": {"level": 3.4, "low": 3.0, "high": 4.0}})},
    )  # fmt: skip


class TestVerdict:
    def test_says_which_way_the_numbers_point(self):
        assert "better than a random one; 0 of 7 of these are as good" in verdict(planted(pulse3=0.75))
        assert "worse than a random one; 7 of 7" in verdict(planted(pulse3=0.45))
        assert "not shown to differ from a random one" in verdict(planted())

    def test_gives_every_sentence_its_role(self):
        ds = planted(pulse3=0.75)
        assert [role for role, _ in sentences(ds)] == [ARMS, AT_LEVELS, SWEEP, DECISION]
        kept = verdict_attributes(ds)
        assert kept["verdict"] == verdict(ds) == " ".join(text for _, text in sentences(ds))
        assert sentences_of(ds.assign_attrs(kept)) == sentences(ds)
        none = ds.drop_vars("retained").assign_attrs(critical="{}")
        assert [role for role, _ in sentences(none)] == [ARMS, NO_PULSE, SWEEP]
        far = ds.assign_attrs(critical=json.dumps({"growth": {"level": 1e9, "low": 1e8, "high": 1e10}}))
        assert sentences(far)[1] == (NO_PULSE, "No pulse comes near the level of growth (1000000000.00).")

    def test_quotes_the_numbers_of_the_table(self):
        ds = planted(pulse3=0.75)
        top1 = dict(zip(ds["arm"].values, 100 * ds["top1"].values.mean(axis=1), strict=True))
        said = verdict(ds)
        others = [f"pulse {i}" for i in (0, 1, 2, 4, 5, 7, 8)]
        gain = top1["pulse 3"] - np.mean([top1[o] for o in others])
        for text in (
            f"no guidance {top1['none']:.1f} %", f"a pulse, centred on 3.42, gives {top1['pulse 3']:.1f} %",
            f"{gain:+.1f} points",
            "the pulse at s = 3.42 [3.42, 3.42] is best", "maximum at s = 2.20", "noised to s = 1.00",
        ):  # fmt: skip
            assert text in said
        found = placement(ds, 3)
        own = ds["top1"].values[8]
        assert found.comparison == paired(own, np.mean([ds.sel(arm=o)["top1"].values for o in others], axis=0))
        assert best_centre(ds)["value"] == pytest.approx(own.mean())

    def test_interval_covers_a_planted_difference_over_samples_and_centres(self):
        """100 experiments: 16 centres of chance 0.6 +- 0.05, a pulse 5 points above their mean."""
        covered = 0
        for i in range(100):
            rng = np.random.default_rng([7, i])
            chances = {f"pulse{j}": 0.6 + 0.05 * rng.normal() for j in (0, 1, 2, 4, 5, 7, 8)}
            found = placement(planted(300, seed=i, **chances, pulse3=0.65), 3, n_bootstrap=400, seed=i)
            covered += found.low <= 0.05 <= found.high
        # Seven centres are few for a percentile bootstrap: it covers about 90 %. Four errors of 100 draws.
        assert covered >= 90 - 4 * 3

    def test_without_a_critical_level_it_says_so(self):
        ds = planted()
        ds.attrs["critical"] = "{}"
        assert "found no critical level" in verdict(ds)

    def test_of_a_level_that_no_pulse_comes_near_it_says_so(self):
        ds = planted(pulse3=0.75)
        ds.attrs["critical"] = json.dumps({"xi_eq": {"level": 99.0, "low": 90.0, "high": 100.0}})
        ds.attrs["pulses"] = json.dumps({"sweep": [0, 3], "random": [3, 4, 5]})
        assert "No pulse comes near the level of xi_eq (99.00)." in verdict(ds)

    def test_a_pulse_is_not_compared_with_itself(self):
        ds = planted(pulse3=0.75)
        ds.attrs["pulses"] = json.dumps({"sweep": [0, 3], "random": [3, 4, 5], "softening": [3]})
        assert "0 of 2 of these are as good" in verdict(ds)
