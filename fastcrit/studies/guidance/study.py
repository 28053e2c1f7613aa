"""Does guidance at the critical level align samples better than at other times? The experiment, on one network.

Every arm sees the same seeds and labels and costs the same number of network evaluations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.averages import jackknife_error
from fastcrit._version import __version__
from fastcrit.alignment import coverage, pairwise_distance
from fastcrit.studies import checks
from fastcrit.studies.guidance.plan import GuidancePlan
from fastcrit.studies.guidance.subject import Subject, subject_of
from fastcrit.studies.guidance.verdict import MEASURES, summary, verdict_attributes
from fastcrit.studies.prompts import config_of_prompts
from fastcrit.studies.shared.chunks import Chunks
from fastcrit.studies.shared.on_dask import with_absolute_paths
from fastcrit.studies.shared.ranks import Rank
from fastcrit.studies.shared.run import shared_run
from fastcrit.studies.shared.work import Sampler

Floats = NDArray[np.float64]

# At most so many groups of samples of the jackknife that says how sure a diversity is.
_GROUPS = 20
# Where things lie on this machine; what they are, their checksums say.
_PLACES = ("run_path", "edm2", "guide", "diffusers", "trust_pickle", "judge")


@dataclass(frozen=True)
class GuidanceStudy(GuidancePlan):
    """Configuration of a guidance experiment on the network of a finished study.

    Parameters
    ----------
    run_path : path
        Folder of a finished `FashionMnistStudy` or `ImageNetStudy`: which network, and its critical levels.
    edm2, diffusers : path, optional
        Of an `ImageNetStudy`: where its network is. Its prompts, where it has some, are those of its configuration.
    guide : path, optional
        Pickle of the network to lead away from. Default: the same without labels.
    trust_pickle : bool
        Pickles run code; without this they are refused.
    judge : path, optional
        Of an `ImageNetStudy`, needed: who says which class a sample is, as `fastcrit.diffusion.load_judge` reads it.
        Where classes are prompts, its class j has to be what the j-th prompt asks for.
    samples : int
        In every arm, each class equally often.
    steps : int
        Of a pulse's solver, even in log s from ``high`` to ``low`` and then to 0.
    high, low : float
    guided_steps : int
        Of a pulse: its width is as many times the step in log s.
    weight : float
        Of a pulse, of the constant weight and of the interval.
    interval : (low, high)
        Noise levels of the guidance interval; default: 2404.07724's for 512 x 512 ImageNet.
    centres : int
        Of the sweep, evenly spread over the levels where a whole pulse fits.
    random_centres : int
        Drawn from the same levels without replacement.
    solver : "euler", "heun" or "sde"
    decision_samples : int
        Images for the class-entropy rate and the forward-backward experiment: real ones of Fashion-MNIST, else samples
        of the network.
    classes : int, optional
        Sample j has label j mod this. Default: all of the study.
    threads : int
        Of torch, on a CPU: sums of other numbers of threads are rounded otherwise. 0: as torch has it.
    chunk : int
        Samples that are made and saved together.
    seed : int
    """

    def run(
        self, out: str | os.PathLike[str], *, chunks: str | None = None, resume: bool = False, device: str = "cpu",
        rank: Rank | None = None, client: Any = None, progress: bool = False,
    ) -> xr.Dataset | None:  # fmt: skip
        """Sample every arm and judge the samples; rank 0 then writes RUN/dataset.zarr, figures and summary.txt.

        Samples are made a chunk at a time, all arms of them, by any number of ranks, to the same bits with the same
        ``threads``.

        Parameters
        ----------
        out : path
            Folder of the run.
        chunks, resume, device, rank, client, progress
            As for `ImageNetStudy.run`.

        Returns
        -------
        xarray.Dataset, or None for other ranks than 0

        Raises
        ------
        FileNotFoundError
            No finished study in ``run_path``, no network, no judge.
        ValueError
            A study of something else, of other weights, or with guidance; a network without labels; a judge that does
            not know all classes; too few samples for the classes; ``resume`` with another configuration.
        FileExistsError, IncompleteRunError, ModuleNotFoundError, OSError
            As for `ImageNetStudy.run`.
        FileFormatError
            The study, a network or the judge is damaged.
        """
        rank = Rank.of_environment() if rank is None else rank
        job = _job(self, device if client is not None else rank.device(device))
        return shared_run(job, out, chunks=chunks, resume=resume, rank=rank, client=client, progress=progress)


def _job(study: GuidanceStudy, device: str) -> _Job:
    import torch

    return _Job(study, subject_of(study, device), study.threads or torch.get_num_threads(), device)


class _Job:
    """An experiment, and the network that it is about."""

    def __init__(self, study: GuidanceStudy, subject: Subject, threads: int, device: str) -> None:
        self.study, self.subject, self.threads, self.device = study, subject, threads, device
        self.arms, self.pulses = study.arms({k: v["level"] for k, v in subject.critical.items()})

    def __str__(self) -> str:
        return f"{self.subject.D}, {len(self.arms)} arms, judge {self.subject.judge.name}"

    @property
    def config(self) -> dict[str, Any]:
        """What the result follows from."""
        subject = self.subject
        fields = {name: value for name, value in asdict(self.study).items() if name not in _PLACES}
        return {
            "study": "guidance", **fields, "threads": self.threads, "classes": subject.classes,
            "null_label": subject.null_label, "decision_chunks": self.count - self.study.chunks,
            "device": "cpu" if subject.D.device is None else subject.D.device.type,
            "weights": subject.D.card["sha256"],
            "guide": None if subject.guide is None else subject.guide.card["sha256"],
            "judge": subject.judge.sha256, "critical": subject.critical, **config_of_prompts(subject.D),
        }  # fmt: skip

    @property
    def count(self) -> int:
        """Number of chunks."""
        return self.study.chunks + (0 if self.subject.unlabelled is None else self.study.decision_chunks)

    made_first: tuple[str, ...] = ()

    @property
    def again(self) -> Callable[[], _Job]:
        """Makes this job in another process, where torch may begin with another number of threads."""
        return partial(_job, replace(with_absolute_paths(self.study), threads=self.threads), self.device)

    def prepare(self, folder: Path) -> None:
        """Nothing has to be there."""

    def sampler(self, folder: Path) -> Sampler:
        """Who makes the chunks."""
        from fastcrit.studies.guidance.chunk import ArmSampler

        return ArmSampler(self.study, self.subject, self.arms)

    def summary(self, ds: xr.Dataset) -> str:
        """The table, and the verdict."""
        return summary(ds)

    def result(self, chunks: Chunks) -> xr.Dataset | None:
        """All samples of all arms, and what they say; None where a chunk turns out to be damaged."""
        parts = []
        for c in range(self.count):
            found = chunks.load(c)
            if found is None:
                return None
            parts.append(found[1])
        ds = self._alignment(parts[: self.study.chunks])
        if self.subject.unlabelled is not None:
            ds = ds.merge(self._decision(parts[self.study.chunks :]))
        ds.attrs |= {"title": f"guidance of network {self.subject.name}", "fastcrit": __version__}
        ds.attrs |= {"config": json.dumps(self.config), "pulses": json.dumps(self.pulses)}
        ds.attrs["critical"] = json.dumps(self.subject.critical)
        if self.subject.locality_peaks:
            ds.attrs["locality_peaks"] = self.subject.locality_peaks
        labels = self.subject.labels(range(self.study.samples))
        if wrong := checks.convention_of_flow(self.subject.D, labels, float(self.study.high), self.study.seed):
            ds.attrs["warning"] = wrong
        ds.attrs |= verdict_attributes(ds)
        return ds

    def _alignment(self, parts: list[dict[str, Any]]) -> xr.Dataset:
        arms, subject = self.arms, self.subject
        features = np.concatenate([part["features"] for part in parts], axis=1)
        labels = subject.labels(range(self.study.samples))
        evaluated = np.unique(np.stack([part["evaluations"] for part in parts]), axis=0)
        expected = np.array([arm.evaluations for arm in arms])
        if not (evaluated == expected).all():
            raise RuntimeError(f"evaluations of the arms: expected {expected}, counted {evaluated}")
        ds = xr.Dataset(
            {
                m: (("arm", "sample"), np.concatenate([part[m] for part in parts], axis=1), {"long_name": about})
                for m, about in zip(
                    MEASURES,
                    ("target class has the highest score", "log-probability of the target", "margin of the target"),
                    strict=True,
                )
            },
            {
                "arm": [arm.name for arm in arms],
                "label": ("sample", labels),
                "first_step": ("arm", [-1 if arm.first is None else arm.first for arm in arms]),
                "center": ("arm", [np.nan if arm.first is None else self.study.centre(arm.first) for arm in arms]),
                "steps": ("arm", [len(arm.levels) - 1 for arm in arms]),
                "evaluations": ("arm", expected, {"long_name": "network evaluations a sample"}),
            },
        )
        own = labels[: features.shape[1]]
        spread, error = zip(*(_diversity(f, own, subject.classes) for f in features), strict=True)
        about = "mean distance within a class, in the judge's features"
        ds["diversity"] = ("arm", list(spread), {"long_name": about, "samples": len(own)})
        ds["diversity_stderr"] = ("arm", list(error))
        if subject.real is not None:
            pixels, real_labels = subject.real
            real = subject.judge(pixels)[1]
            covered = [coverage(f, own, real, real_labels) for f in features]
            ds["coverage"] = ("arm", covered, {"long_name": "share of real images with a sample near them"})
        return ds

    def _decision(self, parts: list[dict[str, Any]]) -> xr.Dataset:
        """Where the class is decided, without guidance."""
        from fastcrit.diffusion import EntropyRate, Retention

        grid = self.study.grid()[:-1]
        rate = EntropyRate(grid, np.concatenate([part["entropy_rate"] for part in parts], axis=1))
        back = Retention(self.study.back_levels, np.concatenate([part["retained"] for part in parts], axis=1))
        low, high = rate.interval()
        kept_low, kept_high = back.interval()
        about = "s dH(Y|y_s)/ds = E|D_y - D_0|^2/s^2"
        return xr.Dataset(
            {
                "entropy_rate": ("level", rate.rate * grid, {"long_name": about, "units": "nats per unit of log s"}),
                "entropy_rate_low": ("level", low * grid),
                "entropy_rate_high": ("level", high * grid),
                "class_entropy": ((), rate.integral[0], {"long_name": "integral of the rate", "units": "nats"}),
                "class_entropy_stderr": ((), rate.integral[1]),
                "class_decided": ((), rate.peak, {"long_name": "level of the rate's interior maximum"}),
                "retained": ("back_level", back.retained, {"long_name": "share that kept its class"}),
                "retained_low": ("back_level", kept_low),
                "retained_high": ("back_level", kept_high),
            },
            {
                "level": ("level", grid, {"long_name": "noise level s"}),
                "back_level": ("back_level", back.levels, {"long_name": "noise level s"}),
            },
        )


def _diversity(features: Any, labels: Any, classes: int) -> tuple[float, float]:
    """Mean distance within a class, and its jackknife error: without each group of samples in turn."""
    groups = min(_GROUPS, len(labels) // classes)
    group = np.arange(len(labels)) // classes % groups  # the classes in turn: every group has them all
    parts = [float(pairwise_distance(features[group != g], labels[group != g]).mean()) for g in range(groups)]
    return float(pairwise_distance(features, labels).mean()), float(jackknife_error(np.array(parts)))
