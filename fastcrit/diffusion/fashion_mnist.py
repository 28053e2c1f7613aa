"""What ships for Fashion-MNIST and how it is made: training of denoiser and classifier, and how good samples are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcrit import data, schedules, store
from fastcrit._version import __version__
from fastcrit.diffusion.adapters import from_edm
from fastcrit.diffusion.classifier import Classifier, load_classifier, predict, save_classifier, train_classifier
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.net import NetConfig
from fastcrit.diffusion.sample import sample
from fastcrit.diffusion.train import Training, load_net, save_net
from fastcrit.spectra import structure_factor

_FOLDER = Path(__file__).parent.parent / "data_files"
CLASSIFIER = _FOLDER / "fashion-mnist-classifier.safetensors"
# Levels at which the held-out denoising error goes into the card.
_ERROR_LEVELS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Shells of the structure factor that goes into the card.
_CARD_SHELLS = 15


def classifier() -> Classifier:
    """The shipped classifier of Fashion-MNIST (pixels in [-1, 1]).

    Examples
    --------
    >>> import fastcrit as fc, torch
    >>> from fastcrit.diffusion.classifier import predict
    >>> images = fc.data.fashion_mnist()
    >>> found = predict(fc.diffusion.fashion_mnist.classifier(), torch.from_numpy(images.pixels()[:300])[:, None])
    >>> bool((found.argmax(dim=1).numpy() == images.labels[:300]).mean() > 0.9)
    True
    """
    return load_classifier(CLASSIFIER)[0]


def train_denoiser(
    out: str | os.PathLike[str], padding: str = "circular", seed: int = 0, steps: int = 4000,
    precision: str = "float32", batch: int = 128, *, device: str = "cpu", samples: int = 2000, resume: bool = False,
    progress: bool = False,
) -> str:  # fmt: skip
    """Train on the 60,000 images; write RUN/net.safetensors with its card, and RUN/card.md, which is returned.

    ``samples`` are drawn to say how good they are.

    Raises
    ------
    FileExistsError, ValueError, FileFormatError
        As for `Training.run`.
    """
    training = Training(NetConfig(padding=padding), steps=steps, batch=batch, precision=precision, seed=seed)
    folder = Path(out)
    if not resume and folder.exists():
        store.create_run(folder)  # refuses before the images are loaded
    trained = resume and (folder / "net.safetensors").exists()
    if not trained or (folder / "card.md").exists():  # else only the card is missing
        images = data.fashion_mnist("train")
        pixels = images.pixels()[:, None]
        training.run(pixels, images.labels, folder, resume=resume, device=device, progress=progress)
    write_card(folder / "net.safetensors", samples=samples, progress=progress)
    return (folder / "card.md").read_text()


def write_card(path: Path, *, samples: int = 2000, progress: bool = False) -> None:
    """Measure a trained net, and write what was found into its file and into card.md beside it."""
    net, card = load_net(path)
    D = from_edm(net, unlabelled=True)
    D.shift = net.config.shift
    card |= {"command": _command(card), "fastcrit": __version__}
    card["test_error"] = denoising_errors(D)
    card["quality"] = quality(D, samples, progress=progress)
    save_net(path, net, card)
    (path.parent / "card.md").write_text(_card_text(path.name, card))


def _command(card: dict[str, Any]) -> str:
    """What made the net of this card."""
    made = card["training"]
    options = {"padding": made["net"]["padding"]} | {k: made[k] for k in ("seed", "steps", "batch", "precision")}
    options["device"] = card["device"]
    return "fastcrit train fashion-mnist " + " ".join(f"--{name} {value}" for name, value in options.items())


def denoising_errors(D: Denoiser, n: int = 1000, seed: int = 0) -> dict[str, float]:
    """Mean squared error a pixel of D, with labels, on the first ``n`` test images at a few noise levels."""
    test = data.fashion_mnist("test")
    x0 = torch.from_numpy(test.pixels()[:n])[:, None]
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(x0.shape, dtype=np.float32))
    found = {}
    batches = [slice(i, i + 250) for i in range(0, n, 250)]
    with torch.no_grad():
        for s in _ERROR_LEVELS:
            D_y = torch.cat([D(x0[b] + s * noise[b], s, test.labels[:n][b]) for b in batches])
            found[f"{s:g}"] = round(float((D_y - x0).square().mean()), 6)
    return found


def quality(D: Denoiser, n: int = 2000, seed: int = 0, *, progress: bool = False) -> dict[str, Any]:
    """Samples with labels (each class equally often) against the test set: structure factor and class agreement.

    Returns
    -------
    dict
        ``structure_factor_ratio``: S of ``n`` samples over S of the 10,000 test images, shells 0 to 14 (where samples
        lie anywhere on a torus, so do the test images); ``structure_factor_ratio_stderr``; ``class_agreement``: share
        of samples that the classifier gives their label; ``classifier_accuracy``: its own on the test images.
    """
    labels = np.arange(n) % 10
    levels = np.append(schedules.EDM(sigma_min=0.01, sigma_max=80.0).levels(24), 0.0)
    samples = sample(D, labels, n, levels, "heun", seed, batch_size=250, progress=progress)
    test = data.fashion_mnist("test")
    pixels = test.pixels() if D.shift is None else data.roll(test.pixels(), D.shift)
    ours, theirs = structure_factor(samples[:, 0].numpy()), structure_factor(pixels)
    some = slice(0, _CARD_SHELLS)
    ratio = ours.S[some] / theirs.S[some]
    error = ratio * np.hypot(ours.stderr[some] / ours.S[some], theirs.stderr[some] / theirs.S[some])
    judge = classifier()

    def share(images: Tensor, labels: Any) -> float:
        return round(float((predict(judge, images).argmax(dim=1).numpy() == labels).mean()), 4)

    return {
        "samples": n,
        "rolled_by": D.shift,
        "sampler": "heun, EDM grid of 24 levels from 80 to 0.01, then 0",
        "structure_factor_ratio": [round(float(r), 4) for r in ratio],
        "structure_factor_ratio_stderr": [round(float(e), 4) for e in error],
        "class_agreement": share(samples, labels),
        "classifier_accuracy": share(torch.from_numpy(pixels)[:, None], test.labels),
    }


def train_and_save_classifier(
    out: str | os.PathLike[str], seed: int = 0, epochs: int = 4, *, progress: bool = False
) -> dict[str, Any]:
    """Train the classifier on the 60,000 images and write it with its card, which is returned."""
    if Path(out).exists():
        raise FileExistsError(f"out: {out} exists already; choose another name or delete it")
    if not Path(out).resolve().parent.is_dir():
        raise FileNotFoundError(f"out: the folder of {out} does not exist")
    begun = time.monotonic()
    images, test = data.fashion_mnist("train"), data.fashion_mnist("test")
    net = train_classifier(images.pixels(), images.labels, epochs=epochs, seed=seed, progress=progress)
    found = predict(net, torch.from_numpy(data.roll(test.pixels()))[:, None]).argmax(dim=1).numpy()
    card = {
        "seed": seed,
        "epochs": epochs,
        "command": f"fastcrit train fashion-mnist-classifier --seed {seed} --epochs {epochs}",
        "seconds": round(time.monotonic() - begun, 1),
        "test_accuracy": round(float((found == test.labels).mean()), 4),
    }
    save_classifier(out, net, card)
    return card


def _card_text(name: str, card: dict[str, Any]) -> str:
    quality, training = card["quality"], card["training"]
    rows = "\n".join(
        f"| {k} | {r:.3f} | {e:.3f} |"
        for k, (r, e) in enumerate(
            zip(quality["structure_factor_ratio"], quality["structure_factor_ratio_stderr"], strict=True)
        )
    )
    by = quality["rolled_by"]
    where = (
        f", rolled by random multiples of {by} pixels, since the network cannot know where the middle is" if by else ""
    )
    errors = ", ".join(f"{s}: {e:.4g}" for s, e in card["test_error"].items())
    losses = ", ".join(f"{loss:.4f}" for loss in card["loss"][:: max(1, len(card["loss"]) // 8)])
    return f"""# {name}

Class-conditional denoiser of Fashion-MNIST (60,000 training images, pixels in [-1, 1]), label dropout
{training["label_dropout"]:g}, {training["net"]["padding"]} padding, seed {training["seed"]}.

* Made by `{card["command"]}`
  in {card["seconds"] / 60:.1f} minutes ({card["machine"]}, torch {card["torch"]}, fastcrit {card["fastcrit"]}).
* Training loss (EDM's weighting; means of 100 steps, from the first to the last): {losses}
* Mean squared error a pixel on 1000 test images, by noise level: {errors}
* Class agreement of {quality["samples"]} conditional samples: {quality["class_agreement"]:.3f}, by a classifier that
  is right on {quality["classifier_accuracy"]:.3f} of the test images.
* Structure factor of these samples over that of the 10,000 test images{where} ({quality["sampler"]}):

| shell | ratio | standard error |
| ---: | ---: | ---: |
{rows}
"""
