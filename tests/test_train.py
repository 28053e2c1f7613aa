"""The small network, its training, the classifier: what resumes, what is refused, what equivariance holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fastcrit as fc
from fastcrit.diffusion import Net, NetConfig, Training
from fastcrit.diffusion.classifier import load_classifier, predict, save_classifier, train_classifier

TINY = NetConfig(shape=(1, 8, 8), classes=3, width=4, multipliers=(1, 2), padding="zeros")


@pytest.fixture(scope="module")
def images():
    """A bar across, a bar down and a square, with a little noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    pixels = np.full((300, 1, 8, 8), -0.5, np.float32)
    for picture, label in zip(pixels, labels, strict=True):
        picture[0][(slice(2, 4), slice(None), slice(2, 6))[label], (slice(None), slice(2, 4), slice(2, 6))[label]] = 0.8
    return pixels + 0.05 * rng.standard_normal(pixels.shape, dtype=np.float32), labels


def small(**more):
    return Training(**({"net": TINY, "steps": 250, "batch": 32, "learning_rate": 4e-3, "log_level_mean": 0.0} | more))


class TestNet:
    @pytest.mark.parametrize("padding", ["circular", "zeros"])
    def test_shifts_by_the_pooling_commute_on_a_torus_only(self, padding):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Net(NetConfig(shape=(2, 8, 12), width=4, multipliers=(1, 2, 2), padding=padding, classes=0)).double()
            for p in net.parameters():
                torch.nn.init.normal_(p, std=0.2)
        x, s = torch.randn(3, 2, 8, 12, dtype=torch.float64), torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
        by = {shift: (net(x.roll(shift, (2, 3)), s) - net(x, s).roll(shift, (2, 3))).abs().max() for shift in
              ((4, 4), (0, 8), (1, 0))}  # fmt: skip
        assert by[(1, 0)] > 1e-3
        assert all((by[shift] < 1e-12) == (padding == "circular") for shift in ((4, 4), (0, 8)))

    def test_local_normalisation_keeps_the_reach_of_the_convolutions(self):
        """A single scale with one block: 2 + 2 + 2 convolutions down, middle and up, one in, one out: 8 pixels."""
        net = Net(NetConfig(shape=(1, 32, 32), width=4, multipliers=(1,), padding="zeros", classes=0)).double()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
        x = torch.randn(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(net(x, torch.ones(1, dtype=torch.float64))[0, 0, 0, 0], x)
        far = np.add.outer(np.arange(32) > 8, np.arange(32) > 8)
        assert (grad[0, 0].numpy()[far > 0] == 0).all()
        assert (grad[0, 0, :9, :9] != 0).any()

    def test_no_labels_are_zeros(self):
        net = Net(TINY)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.2)
        x = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(net(x, torch.ones(2)), net(x, torch.tensor(1.0), torch.zeros(2, 3)))
        assert not torch.allclose(net(x, torch.ones(2)), net(x, torch.ones(2), torch.eye(3)[:2]))

    def test_bad_configurations_are_named(self):
        for more, message in (
            ({"padding": "reflect"}, "padding: expected one of"),
            ({"shape": (1, 9, 8)}, r"shape: expected \(C, H, W\) with sides divisible by 2"),
            ({"data_std": 0.0}, "data_std: expected a positive"),
            ({"width": 1}, "width: expected an integer of at least 2"),
        ):
            with pytest.raises(ValueError, match=message):
                NetConfig(**({"shape": (1, 8, 8), "multipliers": (1, 2)} | more))


class TestTraining:
    def test_learns_to_denoise_and_the_labels(self, images):
        pixels, labels = images
        net, history = small().run(pixels, labels)
        assert len(history["loss"]) == 2
        assert history["loss"][1] < 0.6 * history["loss"][0]
        D = fc.diffusion.from_edm(net, unlabelled=True)
        x0 = torch.from_numpy(pixels[:60])
        y = x0 + torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        Wiener = y * pixels.var() / (pixels.var() + 1)  # the best that knows the variance alone
        assert (D(y, 1.0) - x0).square().mean() < 0.5 * (Wiener - x0).square().mean()
        # At high noise the label says everything.
        mean = torch.stack([torch.from_numpy(pixels[labels == k].mean(axis=0)) for k in range(3)])
        y = 10 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        assert (D(y, 10.0, [0, 1, 2]) - mean).square().mean() < 0.5 * (D(y, 10.0) - mean).square().mean()

    def test_a_stopped_run_resumes_with_the_same_steps(self, images, tmp_path, monkeypatch):
        whole, _ = small(steps=30).run(*images, tmp_path / "whole")

        class StopError(Exception):
            pass

        from fastcrit.diffusion import train

        save = train._State.save

        def save_and_stop(state, path):
            save(state, path)
            if state.step == 17:
                raise StopError

        monkeypatch.setattr(train._State, "save", save_and_stop)
        with pytest.raises(StopError):
            small(steps=30).run(*images, tmp_path / "stopped", save_every=0.0)
        monkeypatch.undo()
        with pytest.raises(FileExistsError, match="exists already"):
            small(steps=30).run(*images, tmp_path / "stopped")
        with pytest.raises(ValueError, match="another configuration: seed = 0 there, 1 here"):
            small(steps=30, seed=1).run(*images, tmp_path / "stopped", resume=True)
        resumed, _ = small(steps=30).run(*images, tmp_path / "stopped", resume=True)
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert sorted(p.name for p in (tmp_path / "stopped").iterdir()) == ["config.json", "net.safetensors"]
        with pytest.raises(FileExistsError, match="holds a finished run"):
            small(steps=30).run(*images, tmp_path / "stopped", resume=True)

    def test_a_damaged_checkpoint_is_refused_by_name(self, images, tmp_path):
        small(steps=3).run(*images, tmp_path / "run")
        path = tmp_path / "run" / "net.safetensors"
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        with pytest.raises(fc.FileFormatError, match=r"net\.safetensors: damaged"):
            fc.diffusion.load_net(path)
        fc.Recorder([1.0], shape=(4, 4)).save(tmp_path / "recorder.safetensors")
        with pytest.raises(fc.FileFormatError, match=r"recorder\.safetensors: not a fastcrit\.net file"):
            fc.diffusion.pretrained(tmp_path / "recorder.safetensors")
        with pytest.raises(FileNotFoundError, match="neither one of circular-0"):
            fc.diffusion.pretrained("no-such-net")

    def test_what_is_saved_loads_the_same(self, images, tmp_path):
        net, _ = small(steps=5).run(*images, tmp_path / "run")
        D = fc.diffusion.pretrained(tmp_path / "run" / "net.safetensors")
        y = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(D(y, 1.0, [0, 2]), net(y, torch.tensor(1.0), torch.eye(3)[[0, 2]]), rtol=0, atol=0)
        assert D.unlabelled
        assert D.card["training"] == json.loads(json.dumps(small(steps=5).to_dict()))

    def test_bad_input_is_named(self, images):
        pixels, labels = images
        for run, message in (
            (lambda: small().run(pixels[:, 0], labels), r"images: expected float32 \(n, \*\(1, 8, 8\)\)"),
            (lambda: small().run(pixels.astype(float), labels), "images: expected float32"),
            (lambda: small().run(pixels * np.nan, labels), "images: NaN or infinite"),
            (lambda: small().run(pixels, labels + 1), "labels: expected classes from 0 to 2"),
            (lambda: small().run(pixels, labels[:5]), "labels: expected 300 integers"),
            (lambda: small().run(pixels, labels, device="nowhere"), "device: 'nowhere' is not to be had here"),
            (lambda: small().run(pixels, labels, device="cuda:99"), "device: 'cuda:99' is not to be had here"),
            (lambda: small(steps=0), "steps: expected an integer of at least 1"),
            (lambda: small(label_dropout=1.0), r"label_dropout: expected a number in \[0, 1\)"),
            (lambda: small(precision="float16"), "precision: expected one of"),
        ):
            with pytest.raises(ValueError, match=message):
                run()


class TestClassifier:
    def test_learns_saves_and_loads(self, images, tmp_path):
        pixels, labels = images
        net = train_classifier(pixels[:, 0], labels, epochs=12, batch=30)
        found = predict(net, torch.from_numpy(pixels))
        assert (found.argmax(dim=1).numpy() == labels).mean() > 0.95
        np.testing.assert_allclose(found.exp().sum(dim=1), 1, rtol=1e-5)
        save_classifier(tmp_path / "c.safetensors", net, {"seed": 0})
        again, card = load_classifier(tmp_path / "c.safetensors")
        torch.testing.assert_close(predict(again, torch.from_numpy(pixels)), found, rtol=0, atol=0)
        assert card == {"seed": 0}
        with pytest.raises(fc.FileFormatError, match=r"not a fastcrit\.net file"):
            fc.diffusion.load_net(tmp_path / "c.safetensors")
