"""A classifier out of any image backbone: features from the user's network, a head fitted on their labelled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcrit._edge.arrays import check_choice, check_integer, to_array, to_tensor
from fastcrit._edge.extras import need

HEADS = ("linear", "neighbours")


class Probe:
    """Class scores from a frozen backbone: ``probe(images)`` are log-probabilities, as `class_alignment` takes them.

    Parameters
    ----------
    backbone : callable
        ``f(images) -> features (n, d)``: a torchvision model whose last layer is ``torch.nn.Identity()``, a timm model
        with ``num_classes=0``, DINOv2 from torch hub, or one of transformers (its ``pooler_output`` is taken). Features
        with more axes are averaged over the last ones. A module is used as it is: call ``.eval()`` first.
    images : tensor or array (n, C, H, W)
        Labelled images, in the scale of the samples that will be judged.
    labels : (n,) of int
        From 0; every class has at least two.
    head : "linear" or "neighbours"
        Logistic regression on standardised features, or the share of a class among the nearest labelled images (by
        cosine distance; one pseudo-count is shared by the classes, so that no probability is 0).
    neighbours : int
        How many.
    preprocess : callable, optional
        Applied to images before the backbone: resizing, normalisation, three channels.
    batch_size : int
        Images that go through the backbone together.
    device : torch.device, optional
        Where batches are sent; default: where the backbone's parameters are.

    Raises
    ------
    ValueError
        Labels that do not fit the images, features that are not finite or not (n, d).
    ModuleNotFoundError
        scikit-learn is not installed (the extra ``fastcrit[images]``).

    Examples
    --------
    >>> import torch, fastcrit as fc
    >>> data = fc.data.fashion_mnist()
    >>> images = torch.from_numpy(data.pixels())[:, None]
    >>> backbone = lambda x: torch.nn.functional.avg_pool2d(x, 4).flatten(1)  # yours: a network
    >>> probe = fc.diffusion.Probe(backbone, images[:1500], data.labels[:1500])
    >>> found = fc.alignment.class_alignment(probe(images[1500:]), data.labels[1500:])
    >>> bool(found.top1.mean() > 0.7)
    True
    """

    def __init__(
        self,
        backbone: Callable[[Tensor], Any],
        images: Any,
        labels: Any,
        *,
        head: str = "linear",
        neighbours: int = 20,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 64,
        device: torch.device | str | None = None,
    ) -> None:
        need("sklearn", "fitting a head to a backbone")
        if not callable(backbone):
            raise TypeError(f"backbone: expected a callable, got {type(backbone).__name__}")
        check_choice(head, HEADS, "head")
        self.batch_size = check_integer(batch_size, "batch_size", 1)
        self._backbone, self._preprocess = backbone, preprocess
        if device is None and isinstance(backbone, torch.nn.Module):
            device = next((p.device for p in backbone.parameters()), None)
        self._device = device
        targets = to_array(labels, "labels")
        if targets.dtype.kind not in "iu" or targets.shape != (len(images),):
            raise ValueError(f"labels: expected {len(images)} integers, got {targets.dtype} {targets.shape}")
        counts = np.bincount(targets) if targets.size and targets.min() >= 0 else np.zeros(1)
        if len(counts) < 2 or counts.min() < 2:
            raise ValueError("labels: expected classes from 0, two or more, each with at least two images")
        self.classes = len(counts)
        features = self.features(images).astype(np.float64)
        if head == "linear":
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler

            fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, targets)
            self._head: Callable[[Any], Any] = fitted.predict_log_proba
        else:
            from sklearn.neighbors import KNeighborsClassifier

            k = check_integer(neighbours, "neighbours", 1)
            if k > len(features):
                raise ValueError(f"neighbours: expected at most {len(features)}, the labelled images, got {k}")
            nearest = KNeighborsClassifier(k, metric="cosine").fit(features, targets)
            self._head = lambda x: np.log((nearest.predict_proba(x) * k + 1 / self.classes) / (k + 1))

    def features(self, images: Any) -> NDArray[np.float32]:
        """Features (n, d) of images (n, C, H, W)."""
        pictures = to_tensor(images, "images")
        if pictures.ndim != 4 or not len(pictures):
            raise ValueError(f"images: expected shape (n, C, H, W), got {tuple(pictures.shape)}")
        found = []
        with torch.no_grad():
            for part in torch.split(pictures.float(), self.batch_size):
                part = part if self._device is None else part.to(self._device)
                out = self._backbone(part if self._preprocess is None else self._preprocess(part))
                out = getattr(out, "pooler_output", out)
                if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != len(part):
                    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                    raise ValueError(f"backbone: expected features ({len(part)}, d), got {got}")
                found.append((out.flatten(2).mean(dim=2) if out.ndim > 2 else out).float().cpu().numpy())
        features = np.concatenate(found)
        finite = np.isfinite(features).all(axis=1)
        if not finite.all():
            raise ValueError(f"backbone: features of image {int(np.argmin(finite))} are NaN or infinite")
        return features

    def __call__(self, images: Any) -> Tensor:
        """Log-probabilities (n, classes), on the CPU."""
        return torch.from_numpy(np.asarray(self._head(self.features(images).astype(np.float64))))
