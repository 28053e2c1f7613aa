"""The study of trained networks: what it writes, how it goes on, the bound it compares with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fastcrit as fc
from fastcrit._kernels.lattice import lattice
from fastcrit.diffusion import Net, NetConfig, save_net
from fastcrit.studies import FashionMnistStudy
from fastcrit.studies.fashion_mnist import data_bound, run_all
from fastcrit.studies.fashion_mnist.words import compare, summary, violations

QUICK = {"samples": 70, "levels": 7, "high": 20.0, "low": 0.1, "gain_samples": 8, "waves": 1, "blocks": 8}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A network of the shipped kind, small and with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(NetConfig(width=4, multipliers=(1, 2)))
    path = tmp_path_factory.mktemp("net") / "net.safetensors"
    save_net(path, net, {"training": {"label_dropout": 0.2}})
    return str(path)


@pytest.fixture(scope="module")
def finished(net, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    return out, FashionMnistStudy(net=net, **QUICK).run(out)


class TestBound:
    def test_is_the_shell_average_of_p_over_p_plus_s2(self, rng):
        images = rng.normal(size=(40, 6, 10)).astype(np.float32)
        grid = lattice((6, 10))
        deviations = images - images.mean(axis=0)
        P = (np.abs(np.fft.fft2(deviations)) ** 2).sum(axis=0) / (60 * 39)
        k = np.hypot(*np.meshgrid(np.fft.fftfreq(6), np.fft.fftfreq(10), indexing="ij")) * 6
        shell = np.floor(k + 0.5 + 1e-9).astype(int)
        shell[(shell == 0) & (k > 0)] = 1
        for s, row in zip((0.5, 2.0), data_bound(images, [0.5, 2.0], range(4))[0], strict=True):
            expected = [(P / (P + s**2))[shell == n].mean() for n in range(4)]
            np.testing.assert_allclose(row, expected, rtol=1e-6)
            assert (grid.shell_modes[:4] == [(shell == n).sum() for n in range(4)]).all()

    def test_on_a_torus_the_images_lie_everywhere(self, rng):
        images = (rng.normal(size=(30, 8, 12)) + 5 * rng.normal(size=(8, 12))).astype(np.float32)
        everywhere = np.concatenate([np.roll(images, (a, b), (1, 2)) for a in range(0, 8, 4) for b in range(0, 12, 4)])
        torus, _ = data_bound(images, [1.0], range(4), shift=4)
        # 30 images: n - 1 here, and 180 - 1 of all places.
        np.testing.assert_allclose(torus, data_bound(everywhere, [1.0], range(4))[0], rtol=0.05)
        assert (torus[:, 1:] > data_bound(images, [1.0], range(1, 4))[0]).all()

    def test_error_is_that_of_fresh_images(self, rng):
        bounds = [data_bound(rng.normal(size=(60, 8, 8)).astype(np.float32), [1.0], range(4)) for _ in range(60)]
        spread = np.std([b for b, _ in bounds], axis=0, ddof=1)
        # A standard deviation of 60 draws is known to 9 %; the jackknife's own scatter is averaged.
        np.testing.assert_allclose(np.mean([e for _, e in bounds], axis=0), spread, rtol=0.3)

    def test_roll_moves_whole_images_by_multiples(self, rng):
        images = rng.normal(size=(50, 8, 12)).astype(np.float32)
        rolled = fc.data.roll(images, 4, seed=3)
        shifts = [(a, b) for a in (0, 4) for b in (0, 4, 8)]
        found = [
            [np.array_equal(np.roll(i, s, (0, 1)), r) for s in shifts] for i, r in zip(images, rolled, strict=True)
        ]
        assert (np.sum(found, axis=1) == 1).all()
        assert (np.sum(found, axis=0) > 0).all()


class TestRun:
    def test_writes_dataset_figures_and_summary(self, finished):
        out, ds = finished
        names = {p.name for p in out.iterdir()}
        assert {"config.json", "summary.txt", "dataset.zarr", "gains.png", "softening.svg", "response_deficit.png",
                "structure_factors.png", "lengths.png", "states.png"} <= names  # fmt: skip
        assert not [n for n in names if n.startswith("recorder")]
        xr.testing.assert_identical(fc.store.load_dataset(out / "dataset.zarr"), ds)
        assert (out / "summary.txt").read_text() == summary(ds) + "\n"
        assert ds.n_samples.values.tolist() == [70] * 7
        assert ds.n_gains.values.tolist() == [8, 0, 8, 0, 8, 0, 8]
        for prefix in ("", "forward_"):
            measured = ds[f"{prefix}response_deficit"].values[::2]
            gain = ds[f"{prefix}gain_on_trajectories"].values[::2]
            np.testing.assert_allclose(measured, 1 - gain / ds.gaussian_bound.values[::2])
        assert np.isfinite(ds.forward_S).all()

    def test_forward_states_are_the_data_with_noise(self, finished):
        _, ds = finished
        images = fc.data.fashion_mnist().pixels()
        # 70 images: the pixel variance of the data is known to a few per cent.
        total = (ds.forward_S * ds.counts).sum("k") / ds.counts.sum()
        high = ds.level.values > 5
        np.testing.assert_allclose(total[high], ds.level.values[high] ** 2, rtol=0.05)
        assert 0.2 * images.var() < float(total[-1])

    def test_a_stopped_run_resumes_to_the_same_bits(self, net, finished, tmp_path, monkeypatch):
        study = FashionMnistStudy(net=net, **QUICK)
        saves = []
        save = fc.Recorder.save

        def save_and_stop(rec, path):
            save(rec, path)
            saves.append(path)
            if len(saves) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(fc.Recorder, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "run")
        monkeypatch.undo()
        with pytest.raises(ValueError, match="another configuration: seed = 0 there, 1 here"):
            FashionMnistStudy(net=net, **(QUICK | {"seed": 1})).run(tmp_path / "run", resume=True)
        ds = study.run(tmp_path / "run", resume=True)
        xr.testing.assert_identical(ds, finished[1])

    def test_several_networks_are_compared(self, net, tmp_path):
        quick = QUICK | {"samples": 8, "levels": 5, "gain_samples": 2}
        studies = {net: FashionMnistStudy(net=net, **quick)}
        with pytest.raises(ValueError, match="net: these names make the same folder"):
            run_all({net: studies[net], f"./{net}": studies[net]}, tmp_path / "run")
        text = run_all(studies, tmp_path / "run")
        assert "network net.safetensors for Fashion-MNIST" in text
        with pytest.raises(FileExistsError):
            run_all(studies, tmp_path / "run")
        assert run_all(studies, tmp_path / "run", resume=True) == text  # what is finished is kept

    def test_bad_configurations_are_named(self, net):
        for more, message in (
            ({"samples": 2}, "samples: expected an integer of at least 3"),
            ({"gain_samples": 80}, r"gain_samples: expected at most 70 \(samples\)"),
            ({"solver": "rk4"}, "solver: expected one of"),
            ({"high": -1.0}, "high: expected a positive number"),
        ):
            with pytest.raises(ValueError, match=message):
                FashionMnistStudy(**(QUICK | more))
        with pytest.raises(FileNotFoundError, match="net: nothing is neither"):
            FashionMnistStudy(net="nothing", **QUICK).run()


def test_violations_are_listed_with_level_and_shell(finished):
    ds = finished[1].copy(deep=True)
    ds["response_deficit"][:] = 0.1
    ds["forward_response_deficit"][:] = 0.1
    ds["response_deficit"][2, 3] = -0.5
    ds["response_deficit_stderr"][2, 3] = 0.1
    assert len(violations(ds)) == 1
    assert violations(ds)[0].startswith(f"reverse  s = {float(ds.level[2]):8.3f}  shell 3: gain")


def test_intervals_that_lie_apart_are_said_to(finished):
    def with_softening(low, high):
        found = {name: asdict(s) | {"reason": "none"} for name, s in fc.critical_point(finished[1]).signatures.items()}
        found["softening"] = {"reason": "", "level": (low * high) ** 0.5, "low": low, "high": high}
        return xr.Dataset(attrs={"critical_point": json.dumps(found)})

    assert "All intervals overlap." in compare({"a": with_softening(1, 2), "b": with_softening(1.9, 3)})
    assert "a and b lie 25.0 % apart" in compare({"a": with_softening(1, 2), "b": with_softening(2.5, 3)})


class TestTrainingOfWhatShips:
    def test_leaves_a_network_with_a_card(self, tmp_path, monkeypatch):
        from fastcrit.diffusion import fashion_mnist as made

        subset = fc.data.fashion_mnist()
        monkeypatch.setattr(fc.data, "fashion_mnist", lambda split="subset": subset)
        monkeypatch.setattr(made, "NetConfig", lambda padding: NetConfig(width=4, multipliers=(1, 2), padding=padding))
        judge = made.train_and_save_classifier(tmp_path / "classifier.safetensors", epochs=1)
        assert judge["command"] == "fastcrit train fashion-mnist-classifier --seed 0 --epochs 1"
        with pytest.raises(FileExistsError, match=r"out: .* exists already"):
            made.train_and_save_classifier(tmp_path / "classifier.safetensors")
        monkeypatch.setattr(made, "classifier", lambda: made.load_classifier(tmp_path / "classifier.safetensors")[0])
        text = made.train_denoiser(tmp_path / "run", "circular", steps=3, samples=20)
        assert text == (tmp_path / "run" / "card.md").read_text()
        command = "train fashion-mnist --padding circular --seed 0 --steps 3 --batch 128 --precision float32"
        assert f"fastcrit {command} --device cpu" in text
        D = fc.diffusion.pretrained(tmp_path / "run" / "net.safetensors")
        assert D.shift == 2
        assert D.unlabelled
        assert len(D.card["quality"]["structure_factor_ratio"]) == 15
        assert 0 <= D.card["quality"]["class_agreement"] <= 1
        assert set(D.card["test_error"]) == {"0.1", "0.3", "1", "3", "10", "30"}
        # An untrained network's output is c_skip y: at s = 0.1 it leaves 1/(1 + (s/d)^2) of the noise and more.
        assert D.card["test_error"]["0.1"] == pytest.approx(0.01, rel=0.1)


class TestCommandLine:
    def test_study(self, net, tmp_path, capsys):
        from fastcrit.cli import app

        settings = {"samples": 4, "levels": 5, "gain-samples": 2, "waves": 1, "high": 20, "low": 0.1}
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        app(["study", "fashion-mnist", "--out", str(tmp_path / "run"), "--net", net, *options], standalone_mode=False)
        assert "network net.safetensors for Fashion-MNIST; 4 trajectories each way" in capsys.readouterr().out
        assert (tmp_path / "run" / Path(net).parent.name / "gains.png").exists()
        assert fc.store.load_dataset(tmp_path / "run" / Path(net).parent.name / "dataset.zarr").sizes["level"] == 5

    def test_names_every_option(self, capsys):
        from fastcrit.cli import app

        networks = ("train fashion-mnist", "train fashion-mnist-classifier")
        for command in ("study fashion-mnist", "study guidance", *networks):
            app([*command.split(), "--help"], standalone_mode=False)
            assert "--seed" in capsys.readouterr().out
