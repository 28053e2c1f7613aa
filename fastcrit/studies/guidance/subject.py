"""What a guidance experiment is about: the network of a finished study, its critical levels, and who judges samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit import data, store
from fastcrit._estimates.attributes import config_of
from fastcrit.studies import checks, result
from fastcrit.studies.finish import DATASET, is_finished
from fastcrit.studies.labels import classes_but, labels_of
from fastcrit.studies.prompts import load_prompted

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser
    from fastcrit.diffusion.judge import Judge
    from fastcrit.studies.guidance.plan import GuidancePlan

# Latents that are decoded at a time.
_DECODED = 4

Images = tuple[NDArray[np.float32], NDArray[np.int64]]  # pixels (n, C, H, W) and classes


@dataclass(frozen=True)
class Subject:
    """A network to guide, found by a finished study of it.

    Attributes
    ----------
    name : str
        Of the study.
    D : Denoiser
    guide : Denoiser or None
        To lead away from; None: ``D`` without labels.
    critical : dict
        The critical levels found, each with its interval, by signature.
    classes : int
        Sample j has label j mod this, passing over ``null_label``.
    null_label : int or None
        The class that stands for "no label".
    judge : Judge
    real : Images or None
        Of the data, where the judge knows them.
    locality_peaks : str
        What the study found of locality, as its dataset has it; empty for nothing.
    """

    name: str
    D: Denoiser
    guide: Denoiser | None
    critical: dict[str, dict[str, float]]
    classes: int
    null_label: int | None
    judge: Judge
    real: Images | None
    locality_peaks: str

    @property
    def unlabelled(self) -> Denoiser | None:
        """The network that works without labels; None for autoguidance, where none does."""
        other = self.D if self.guide is None else self.guide
        return next((d for d in (other, self.D) if d.unlabelled), None)

    def labels(self, samples: range) -> NDArray[np.int64]:
        """Target classes of these samples."""
        return labels_of(samples, self.classes, self.null_label)

    def look(self, states: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scores and features of states without noise."""
        if self.D.decode is None:
            return self.judge(states)
        import torch

        with torch.no_grad():  # decoders take much memory
            parts = [self.judge(self.D.decode(part)) for part in torch.split(states, _DECODED)]
        scores, features = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(features)

    def try_out(self, level: float) -> None:
        """One evaluation of everything, so that what does not fit together is said before the run begins."""
        import torch

        if self.D.shape is None:
            raise ValueError(f"run: {self.D.name} does not say what shape its states have")
        y = torch.zeros(1, *self.D.shape, device=self.D.device)
        labels = self.labels(range(1))
        x = self.D(y, level, labels)
        if self.guide is not None:
            try:
                self.guide(y, level, None if self.guide.unlabelled else labels)
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"guide: does not take what {self.D.name} takes ({error})") from error
        try:
            self.look(x)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"judge: cannot look at what {self.D.name} makes ({error})") from error


def subject_of(study: GuidancePlan, device: str) -> Subject:
    """The network of the finished study that an experiment names.

    Raises
    ------
    FileNotFoundError
        No finished study there, no network, no judge.
    ValueError
        A study of something else, or of other weights; one that was guided; a network without labels; a judge that
        does not know all classes.
    FileFormatError
        The study, a network or the judge is damaged.
    """
    from fastcrit import diffusion
    from fastcrit.diffusion.checkpoints import load_pair
    from fastcrit.diffusion.judge import load_judge, shipped_judge

    folder = Path(study.run_path)
    if not is_finished(folder):
        inner = sorted(p.parent.name for p in folder.glob(f"*/{DATASET}"))
        hint = f"; it holds the studies {', '.join(inner)}: name one of these folders" if inner else ""
        raise FileNotFoundError(f"run: no finished study in {folder}{hint}")
    ds = store.load_dataset(folder / DATASET)
    config = config_of(ds)
    guide = real = null_label = None
    if config.get("study") == "fashion-mnist":
        if study.edm2 or study.diffusers or study.guide or study.judge:
            raise ValueError(
                f"edm2, diffusers, guide, judge: {folder} is a study of {config['net']}, which needs none of them"
            )
        D = diffusion.pretrained(config["net"], device)
        judge, real, known = shipped_judge(device), _images(D, study.seed), D.classes
    elif config.get("study") == "imagenet":
        if config["guidance_weight"] is not None:
            raise ValueError(f"run: expected a study without guidance, {folder} has guidance_weight")
        if study.judge is None:
            raise ValueError("judge: needed to say whether samples look like their class, got None")
        if "prompts" in config:
            if study.edm2 or study.guide:
                raise ValueError(f"edm2, guide: {folder} is a study of prompts, whose negative one is led away from")
            D = load_prompted(study.diffusers, config["prompts"], config["negative"], config["threads"], device)
        else:
            D, guide = load_pair(
                study.edm2, study.diffusers, study.guide, trust_pickle=study.trust_pickle,
                null_label=config["null_label"], device=device,
            )  # fmt: skip
        checks.check_leads_away(D, guide)
        null_label = D.null_label
        judge = load_judge(study.judge, device=device)
        known = classes_but(D.classes, null_label) if config["classes"] is None else config["classes"]
    else:
        raise ValueError(f"run: expected a study of a network (fastcrit study fashion-mnist or imagenet), got {folder}")
    if D.card["sha256"] != config["weights"]:
        raise ValueError(f"run: {folder} was made with other weights than {D.name} has now")
    if known < 2 or (guide is None and not D.unlabelled):
        raise ValueError(f"run: expected a network that works with labels and without, or a guide beside it, got {D}")
    classes = known if study.classes is None else study.classes
    if classes > known:
        raise ValueError(f"classes: expected at most {known}, which {D.name} knows, got {classes}")
    largest = int(labels_of(range(classes), classes, null_label).max())
    if largest >= judge.classes:
        raise ValueError(f"classes: judge {judge.name} knows {judge.classes} classes, and none of the number {largest}")
    if study.samples < 3 * classes:
        raise ValueError(f"samples: expected 3 or more of each of {classes} classes, got {study.samples}")
    if real is not None:
        pixels, labels = real
        real = pixels[labels < classes], labels[labels < classes]
    highest = min(D.highest, D.highest if guide is None else guide.highest)
    if study.high > highest * (1 + 1e-6):
        raise ValueError(f"high: expected at most {highest:.6g}, the network's highest noise level, got {study.high:g}")
    found = {
        s.kind or name: {"level": s.level, "low": s.low, "high": s.high}
        for name, s in result.signatures(ds).items()
        if s.found
    }
    subject = Subject(
        folder.name, D, guide, found, classes, null_label, judge, real, str(ds.attrs.get("locality_peaks", ""))
    )
    subject.try_out(study.high)
    return subject


def _images(D: Denoiser, seed: int) -> Images:
    """Real images (n, 1, H, W) where the network's samples may lie, and their classes."""
    images = data.fashion_mnist()
    pixels = images.pixels() if D.shift is None else data.roll(images.pixels(), D.shift, seed)
    return pixels[:, None], images.labels
