"""A small classifier, trained apart from every denoiser, to say whether a sample looks like its label.

It lives on a torus and is trained on images at every place of it: a denoiser with circular padding cannot know where
on the torus the middle is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastcrit import data
from fastcrit._edge import statefile as _statefile
from fastcrit.diffusion.network import built_plainly
from fastcrit.errors import FileFormatError

CLASSIFIER_FORMAT = "fastcrit.classifier"
FORMAT_VERSION = 1


class Classifier(nn.Module):
    """Class scores of grey images (batch, 1, H, W), H and W at least 4, in the scale of the training images.

    Examples
    --------
    >>> import torch
    >>> from fastcrit.diffusion.classifier import Classifier
    >>> Classifier(classes=10).eval()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, classes: int = 10, width: int = 24) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        layers: list[nn.Module] = []
        here = 1
        for channels in (width, 2 * width, 4 * width):
            for before in (here, channels):
                layers += [_conv(before, channels), nn.BatchNorm2d(channels), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            here = channels
        self.features = nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.scores = nn.Linear(here, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (batch, classes): log-probabilities up to a constant."""
        out: Tensor = self.scores(self.features(images))
        return out


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, padding_mode="circular", bias=False)


def train_classifier(
    images: NDArray[np.float32], labels: NDArray[np.int64], *, epochs: int = 4, batch: int = 128, seed: int = 0,
    progress: bool = False,
) -> Classifier:  # fmt: skip
    """Train on images (n, H, W) or (n, 1, H, W), rolled at random; Adam with one cycle of the learning rate.

    Everything random follows from ``seed``.
    """
    pictures = images.reshape(len(images), *images.shape[-2:])
    if not 1 <= batch <= len(pictures) or len(labels) != len(pictures):
        raise ValueError(
            f"batch: expected 1 to {len(pictures)} (images) and as many labels, got {batch} and {len(labels)} labels"
        )
    targets = torch.from_numpy(labels.astype(np.int64))
    with torch.random.fork_rng(devices=[]), built_plainly():
        torch.manual_seed(seed)
        net = Classifier(int(labels.max()) + 1)
    steps = epochs * (len(pictures) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    with tqdm(total=steps, disable=None if progress else True, unit="step") as bar:
        for _ in range(epochs):
            order = rng.permutation(len(pictures))
            for i in range(len(pictures) // batch):
                chosen = order[i * batch : (i + 1) * batch]
                rolled = torch.from_numpy(data.roll(pictures[chosen], seed=int(rng.integers(2**63))))[:, None]
                loss = nn.functional.cross_entropy(net(rolled), targets[chosen], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                rate.step()
                bar.update()
    return net.eval().requires_grad_(False)


def predict(net: Classifier, images: Tensor, batch: int = 500) -> Tensor:
    """Log-probabilities (n, classes) of images (n, 1, H, W)."""
    with torch.no_grad():
        parts = torch.split(images.float(), batch)
        return torch.cat([net(part).log_softmax(dim=1) for part in parts])


def save_classifier(path: Any, net: Classifier, card: dict[str, Any]) -> None:
    """Write a classifier with its card to one safetensors file with a checksum."""
    arrays = {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}
    config = {"classes": net.classes, "width": net.width, "card": card}
    _statefile.write_state(path, CLASSIFIER_FORMAT, FORMAT_VERSION, config, arrays)


def load_classifier(path: Any) -> tuple[Classifier, dict[str, Any]]:
    """Read a file of `save_classifier`: the classifier in evaluation mode, and its card.

    Raises
    ------
    FileNotFoundError
        No such file.
    FileFormatError
        The file is damaged or is no classifier.
    """
    config, arrays = _statefile.read_state(path, CLASSIFIER_FORMAT, FORMAT_VERSION)
    try:
        with built_plainly():
            net = Classifier(config["classes"], config["width"])
        net.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: not a classifier of this version ({error})") from error
    return net.eval().requires_grad_(False), config["card"]
