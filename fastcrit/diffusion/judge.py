"""Who says which class a sample is: the shipped classifier, or an image classifier that transformers saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from fastcrit._edge.arrays import to_tensor
from fastcrit._edge.extras import need
from fastcrit._edge.placement import usable_device
from fastcrit._edge.statefile import digest_of_files
from fastcrit.diffusion.network import built_plainly
from fastcrit.errors import FileFormatError

# Images in the classifier at a time.
_BATCH = 250


class Judge:
    """Class scores and features of samples; made by `shipped_judge` and `load_judge`.

    Attributes
    ----------
    name : str
    classes : int
    sha256 : str
        Of its weights and settings.
    """

    def __init__(
        self, look: Callable[[Tensor], tuple[Tensor, Tensor]], *, name: str, classes: int, sha256: str, device: str
    ) -> None:
        self.name, self.classes, self.sha256 = name, classes, sha256
        self._look, self._device = look, device

    def __call__(self, images: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores (n, classes) and features (n, d), float32, of images (n, C, H, W) in [-1, 1]."""
        with torch.no_grad():
            parts = torch.split(to_tensor(images, "images").to(self._device, torch.float32), _BATCH)
            scores, features = zip(*(self._look(part) for part in parts), strict=True)
        return torch.cat(scores).cpu().numpy(), torch.cat(features).cpu().numpy()


def shipped_judge(device: str = "cpu") -> Judge:
    """The classifier of Fashion-MNIST that ships with fastcrit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit.diffusion.judge import shipped_judge
    >>> scores, features = shipped_judge()(np.zeros((3, 1, 28, 28)))
    >>> scores.shape, features.shape
    ((3, 10), (3, 96))
    """
    from fastcrit.diffusion import fashion_mnist

    net, path = fashion_mnist.classifier().to(device), fashion_mnist.CLASSIFIER

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        features = net.features(images)
        return net.scores(features), features

    return Judge(look, name="Fashion-MNIST", classes=10, sha256=digest_of_files([path]), device=device)


def load_judge(folder: str | os.PathLike[str], *, device: str = "cpu") -> Judge:
    """An image classifier of transformers: a folder as its save_pretrained, and its image processor's, write it.

    Images, rounded to bytes, are prepared by its own image processor (resized, cropped, normalised, as its
    preprocessor_config.json says). Grey images become three equal channels. Features are what its last linear layer
    reads. Its classes have to be numbered as the network's.

    Parameters
    ----------
    folder : path
        With config.json, model.safetensors and preprocessor_config.json; nothing is downloaded.
    device : str
        Where it lives, as torch names it.

    Raises
    ------
    FileNotFoundError
        A part of the folder is missing.
    FileFormatError
        Transformers cannot read it, weights are missing, or it is no classifier that ends in a linear layer.
    ModuleNotFoundError
        Transformers is not installed (the extra ``fastcrit[judge]``).

    Examples
    --------
    >>> from fastcrit.diffusion.judge import load_judge
    >>> load_judge("no-such-folder")
    Traceback (most recent call last):
    FileNotFoundError: judge: no-such-folder/config.json: no such file; expected an image classifier as transformers'
    save_pretrained writes it
    """
    root = Path(folder)
    for part in ("config.json", "preprocessor_config.json"):
        if not (root / part).is_file():
            raise FileNotFoundError(
                f"judge: {root / part}: no such file; expected an image classifier as transformers' save_pretrained "
                "writes it"
            )
    device = usable_device(device)
    net, prepare = _transformers(root)
    net = net.to(device).eval().requires_grad_(False)
    linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features == net.config.num_labels]
    if not linear:
        raise FileFormatError(f"judge: {root}: expected a classifier that ends in a linear layer, {type(net).__name__}")
    seen: list[Tensor] = []
    linear[-1].register_forward_pre_hook(lambda layer, given: seen.append(given[0]))

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        if images.shape[1] not in (1, 3) or not bool(torch.isfinite(images).all()):
            raise ValueError(
                f"images: expected finite grey or RGB ones, got {tuple(images.shape)}, finite: "
                f"{bool(torch.isfinite(images).all())}"
            )
        pixels = images.clamp(-1.0, 1.0).add(1.0).mul(127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        rows = list(pixels.permute(0, 2, 3, 1).cpu().numpy())
        given = prepare(images=rows, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        seen.clear()
        scores: Tensor = net(pixel_values=given.to(device)).logits
        return scores.float(), seen[0].float().flatten(1)

    files = sorted([*root.glob("*.safetensors"), root / "config.json", root / "preprocessor_config.json"])
    return Judge(look, name=root.name, classes=int(net.config.num_labels), sha256=digest_of_files(files), device=device)


def _transformers(root: Path) -> tuple[Any, Any]:
    """The classifier in a folder, and its image processor."""
    library: Any = need("transformers", f"loading {root}")
    logging = library.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with built_plainly():
            net, loaded = library.AutoModelForImageClassification.from_pretrained(
                root, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        prepare = library.AutoImageProcessor.from_pretrained(root, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise FileFormatError(f"judge: {root}: damaged, or not an image classifier ({error})") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    # Transformers fills them with random numbers.
    if absent := sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]])):
        raise FileFormatError(f"judge: {root}: no weights, or of another shape, for {', '.join(absent[:3])}")
    return net, prepare
