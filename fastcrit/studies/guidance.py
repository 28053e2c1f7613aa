"""Does guidance at the critical level align samples better than at other times? The experiment, on one network.

Every arm sees the same seeds and labels and costs the same number of network evaluations. A pulse's run up to its
first guided step is that of the run without guidance, so it is taken from there: what the arms share is done once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

import fastcrit
from fastcrit import _statefile, data, schedules, store
from fastcrit._arrays import check_choice, check_integer, check_positive
from fastcrit._extras import need
from fastcrit.alignment import class_alignment, coverage, pairwise_distance
from fastcrit.correlation import jackknife_error
from fastcrit.errors import FileFormatError
from fastcrit.studies.guidance_verdict import CONSTANT, DOSE, INTERVAL, MEASURES, NONE, SHARED, summary, verdict

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser
    from fastcrit.diffusion.guidance import Weight

Floats = NDArray[np.float64]
Images = tuple[NDArray[np.float32], NDArray[np.int64]]  # pixels (n, 1, H, W) and classes
Judge = Callable[[Any], tuple[Any, Any]]  # images -> scores (n, classes) and features (n, d)

_CHUNK_FORMAT, _CHUNK_VERSION = "fastcrit.guidance-chunk", 1
# At most so many groups of samples of the jackknife that says how sure a diversity is.
_GROUPS = 20


@dataclass(frozen=True)
class Arm:
    """One way to guide, and what it costs.

    Attributes
    ----------
    name : str
    levels : (steps + 1,)
        Of its solver; the last is 0.
    weight : Weight
    first : int or None
        For a pulse, its first guided step.
    evaluations : int
        Of a network, for each sample.
    """

    name: str
    levels: Floats
    weight: Weight
    first: int | None
    evaluations: int


@dataclass(frozen=True)
class GuidanceStudy:
    """Configuration of a guidance experiment on the network of a finished study.

    Parameters
    ----------
    run : path
        Folder of a finished `FashionMnistStudy`: which network, and its critical levels.
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
        Images for the class-entropy rate and the forward-backward experiment.
    chunk : int
        Samples that are made and saved together.
    seed : int
    """

    run_path: str
    samples: int = 1000
    steps: int = 40
    high: float = 80.0
    low: float = 0.02
    guided_steps: int = 4
    weight: float = 4.0
    interval: tuple[float, float] = (0.28, 2.9)
    centres: int = 13
    random_centres: int = 16
    solver: str = "euler"
    decision_samples: int = 500
    chunk: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.run_path, (str, os.PathLike)):
            raise TypeError(f"run_path: expected the folder of a finished study, got {self.run_path!r}")
        object.__setattr__(self, "run_path", os.fspath(self.run_path))
        for name, lowest in (
            ("samples", 30), ("steps", 8), ("guided_steps", 1), ("centres", 2), ("random_centres", 2), ("seed", 0),
            ("decision_samples", 2), ("chunk", 1),
        ):  # fmt: skip
            object.__setattr__(self, name, check_integer(getattr(self, name), name, lowest))
        for name in ("high", "low", "weight"):
            object.__setattr__(self, name, check_positive(getattr(self, name), name))
        if not self.high > self.low:
            raise ValueError(f"high, low: expected high > low, got {self.high} and {self.low}")
        object.__setattr__(self, "interval", tuple(float(s) for s in self.interval))
        if len(self.interval) != 2 or not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval: expected 0 <= low < high, got {self.interval}")
        check_choice(self.solver, ("euler", "heun", "sde"), "solver")
        if not 0 < self.guided_steps < self.steps // 2:
            raise ValueError(
                f"guided_steps: expected less than half of the {self.steps} steps, got {self.guided_steps}"
            )
        if (self.steps + self.guided_steps) % 2:
            raise ValueError(
                f"guided_steps: {self.steps} steps and {self.guided_steps} guided ones are an odd number of "
                "evaluations, which constant guidance, two a step, cannot have"
            )
        for name in ("centres", "random_centres"):
            if getattr(self, name) > self.positions:
                raise ValueError(
                    f"{name}: expected at most {self.positions}, the places of a pulse, got {getattr(self, name)}"
                )
        if self.decision_samples > 2000:
            raise ValueError(f"decision_samples: expected at most 2000, got {self.decision_samples}")

    @property
    def positions(self) -> int:
        """Places of a whole pulse among the steps; the last step, to 0, is not guided."""
        return self.steps - self.guided_steps

    @property
    def evaluations_a_step(self) -> int:
        """Network evaluations of a step without guidance (Heun's last, to 0, takes one)."""
        return 2 if self.solver == "heun" else 1

    def grid(self, steps: int | None = None) -> Floats:
        """Levels of a run of so many steps, the last to 0."""
        return np.append(schedules.log_levels(steps or self.steps, high=self.high, low=self.low), 0.0)

    def centre(self, first: int) -> float:
        """Level in the middle of the pulse whose first guided step is ``first``."""
        grid = self.grid()
        return float(np.sqrt(grid[first] * grid[first + self.guided_steps - 1]))

    def nearest(self, level: float) -> int:
        """First guided step of the pulse whose centre is nearest to a level."""
        centres = np.array([self.centre(i) for i in range(self.positions)])
        return int(np.argmin(np.abs(np.log(centres / level))))

    def arms(self, critical: dict[str, float]) -> tuple[list[Arm], dict[str, list[int]]]:
        """Every arm, and which pulses (by first guided step) are the signatures', the sweep's and the random ones."""
        from fastcrit.diffusion import Constant, Interval, Pulse

        cost = self.steps + self.guided_steps  # in evaluations of a first-order solver
        twice = self.evaluations_a_step
        rng = np.random.default_rng([self.seed, 3])
        pulses = {
            "sweep": np.unique(np.linspace(0, self.positions - 1, self.centres).round().astype(int)).tolist(),
            "random": sorted(rng.choice(self.positions, self.random_centres, replace=False).tolist()),
        }
        pulses |= {name: [self.nearest(level)] for name, level in critical.items()}
        dose = 1.0 + (self.weight - 1.0) * 2.0 * self.guided_steps / cost

        def evaluations(levels: Floats, weight: Weight) -> int:
            steps = [1 if weight(s) == 1.0 else 2 for s in levels[:-1]]
            return twice * sum(steps) - (twice - 1) * steps[-1]

        none, interval = Constant(1.0), Interval(*self.interval, self.weight)
        about = [evaluations(self.grid(n), interval) for n in range(2, cost + 1)]
        interval_steps = 2 + int(np.argmin(np.abs(np.array(about) - evaluations(self.grid(cost), none))))
        plain: list[tuple[str, int, Weight]] = [
            (NONE, cost, none),
            (SHARED, self.steps, none),
            (CONSTANT, cost // 2, Constant(self.weight)),
            (DOSE, cost // 2, Constant(dose)),
            (INTERVAL, interval_steps, interval),
        ]
        found = [Arm(name, self.grid(n), w, None, evaluations(self.grid(n), w)) for name, n, w in plain]
        width = self.guided_steps * np.log(self.high / self.low) / (self.steps - 1)
        for first in sorted({i for places in pulses.values() for i in places}):
            pulse = Pulse(self.centre(first), width, self.weight)
            found.append(Arm(f"pulse {first}", self.grid(), pulse, first, evaluations(self.grid(), pulse)))
        return found, pulses

    def run(
        self, out: str | os.PathLike[str] | None = None, *, resume: bool = False, device: str = "cpu",
        progress: bool = False,
    ) -> xr.Dataset:  # fmt: skip
        """Sample every arm and judge the samples; with ``out``, write RUN/dataset.zarr, figures and summary.txt.

        Samples are made a chunk at a time, all arms of them; each is saved, and ``resume=True`` goes on with those
        that are missing, to the same bits with the same number of torch's threads.

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds a finished run.
        FileNotFoundError, ValueError
            No finished study in ``run_path``, or one of a network without labels; ``resume`` without a run to resume,
            or one with another configuration.
        FileFormatError
            A saved chunk, the study, or the network is damaged.
        """
        if out is not None:
            need("zarr", "a study that writes its result")
            need("matplotlib", "a study that writes its figures")
        D, levels, name = _finished(self.run_path, device)
        judge, real = _judge(D), _images(D, self.seed)
        arms, pulses = self.arms({k: v["level"] for k, v in levels.items()})
        config = {"study": "guidance", **asdict(self), "weights": D.card["sha256"], "critical": levels}
        folder = None if out is None else store.begin_run(out, config, finished="dataset.zarr", resume=resume)
        chunks = []
        starts, label = range(0, self.samples, self.chunk), f"{len(arms)} arms"
        for first in tqdm(starts, label, disable=None if progress else True, unit=f"{self.chunk} samples"):
            file = None if folder is None else folder / f"chunk-{first // self.chunk:05d}.safetensors"
            if file is not None and file.exists():
                about, chunk = _statefile.read_state(file, _CHUNK_FORMAT, _CHUNK_VERSION)
                if about != {"first": first}:
                    raise FileFormatError(f"{file}: a chunk of another run")
            else:
                chunk = _Chunk(self, D, arms, judge).of(first, min(self.chunk, self.samples - first))
                if file is not None:
                    _statefile.write_state(file, _CHUNK_FORMAT, _CHUNK_VERSION, {"first": first}, chunk)
            chunks.append(chunk)
        ds = self._dataset(chunks, arms, judge, real).merge(self._decision(D, judge, real, progress))
        ds.attrs |= {"title": f"guidance of network {name}", "fastcrit": fastcrit.__version__}
        ds.attrs |= {"config": json.dumps(config), "pulses": json.dumps(pulses), "critical": json.dumps(levels)}
        ds.attrs["verdict"] = verdict(ds)
        if folder is not None:
            from fastcrit import plot

            plot.save_figures(ds, folder)
            (folder / "summary.txt").write_text(summary(ds) + "\n")
            store.save_dataset(ds, folder / "dataset.zarr")
            for saved in folder.glob("chunk-*.safetensors"):
                saved.unlink()
        return ds

    def _dataset(self, chunks: list[dict[str, Any]], arms: list[Arm], judge: Judge, real: Images) -> xr.Dataset:
        scores = np.concatenate([c["scores"] for c in chunks], axis=1)
        features = np.concatenate([c["features"] for c in chunks], axis=1)
        labels = _labels(0, self.samples)
        evaluated = np.unique(np.stack([c["evaluations"] for c in chunks]), axis=0)
        expected = np.array([arm.evaluations for arm in arms])
        if not (evaluated == expected).all():
            raise RuntimeError(f"evaluations of the arms: expected {expected}, counted {evaluated}")
        found = [class_alignment(s, labels) for s in scores]
        ds = xr.Dataset(
            {
                m: (("arm", "sample"), np.stack([getattr(f, m) for f in found]), {"long_name": about})
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
                "center": ("arm", [np.nan if arm.first is None else self.centre(arm.first) for arm in arms]),
                "steps": ("arm", [len(arm.levels) - 1 for arm in arms]),
                "evaluations": ("arm", expected, {"long_name": "network evaluations a sample"}),
            },
        )
        pixels, real_labels = real
        real_features = judge(pixels)[1]
        spread, error, covered = [], [], []
        for f in features:
            whole, parts = _diversity(f, labels)
            spread.append(whole)
            error.append(jackknife_error(parts))
            covered.append(coverage(f, labels, real_features, real_labels))
        ds["diversity"] = ("arm", spread, {"long_name": "mean distance within a class, in the classifier's features"})
        ds["diversity_stderr"] = ("arm", error)
        ds["coverage"] = ("arm", covered, {"long_name": "share of real images with a sample near them"})
        return ds

    def _decision(self, D: Denoiser, judge: Judge, real: Images, progress: bool) -> xr.Dataset:
        """Where the class is decided, without guidance: on real images."""
        import torch

        from fastcrit.diffusion import class_entropy_rate, forward_backward

        pixels, labels = real
        chosen = np.random.default_rng([self.seed, 4]).permutation(len(pixels))[: self.decision_samples]
        x0, labels = pixels[chosen], labels[chosen]
        grid = self.grid()[:-1]
        rate = class_entropy_rate(D, x0, labels, grid, seed=self.seed, progress=progress)
        low, high = rate.interval()
        back = forward_backward(
            D, x0, lambda y: torch.from_numpy(judge(y)[0]), grid[: -self.guided_steps : 2],
            steps=self.steps, lowest=self.low, solver=self.solver, seed=self.seed, progress=progress,
        )  # fmt: skip
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


@dataclass
class _Chunk:
    """A few samples in every arm."""

    study: GuidanceStudy
    D: Denoiser
    arms: list[Arm]
    judge: Judge

    def of(self, first: int, n: int) -> dict[str, NDArray[Any]]:
        """Scores (arms, n, classes), features (arms, n, d) and evaluations a sample (arms,)."""
        from fastcrit.diffusion import guided, sample

        labels = _labels(first, n)
        states: list[Any] = []  # of the run without guidance, at every level of the pulses' grid
        scores, features, evaluations = [], [], []
        for arm in self.arms:
            D = guided(self.D, None, arm.weight)
            begin = arm.first or 0
            y = sample(
                D, labels, n, arm.levels[begin:], self.study.solver, self.study.seed, first_sample=first,
                initial=states[begin] if begin else None, batch_size=n,
                observers=[lambda i, s, y, D: states.append(y.clone())] if arm.name == SHARED else [],
            )  # fmt: skip
            judged = self.judge(y)
            scores.append(judged[0])
            features.append(judged[1])
            # What a pulse takes from the run without guidance counts as its own.
            evaluations.append(D.evaluations // n + begin * self.study.evaluations_a_step)
        return {
            "scores": np.stack(scores), "features": np.stack(features), "evaluations": np.array(evaluations)
        }  # fmt: skip


def _finished(run: str, device: str) -> tuple[Denoiser, dict[str, Any], str]:
    """The network of a finished study, the critical levels found in it (with their intervals), and its name."""
    from fastcrit import diffusion

    folder = Path(run)
    if not (folder / "dataset.zarr").exists():
        inner = sorted(p.parent.name for p in folder.glob("*/dataset.zarr"))
        hint = f"; it holds the studies {', '.join(inner)}: name one of these folders" if inner else ""
        raise FileNotFoundError(f"run: no finished study in {folder}{hint}")
    ds = store.load_dataset(folder / "dataset.zarr")
    config = json.loads(ds.attrs.get("config", "{}"))
    if config.get("study") != "fashion-mnist":
        raise ValueError(f"run: expected a study of a network (fastcrit study fashion-mnist), got {folder}")
    D = diffusion.pretrained(config["net"], device)
    if D.card["sha256"] != config["weights"]:
        raise ValueError(f"run: {folder} was made with other weights than {config['net']} has now")
    if not D.classes or not D.unlabelled:
        raise ValueError(f"run: expected a network that works with labels and without, got {D}")
    found = {
        name: {k: s[k] for k in ("level", "low", "high")}
        for name, s in json.loads(ds.attrs["critical_point"]).items()
        if not s["reason"]
    }
    return D, found, folder.name


def _labels(first: int, n: int) -> NDArray[np.int64]:
    """Target classes of samples first, .., each class in turn."""
    return np.arange(first, first + n) % 10


def _images(D: Denoiser, seed: int) -> Images:
    """Real images (n, 1, H, W) where the network's samples may lie, and their classes."""
    images = data.fashion_mnist()
    pixels = images.pixels() if D.shift is None else data.roll(images.pixels(), D.shift, seed)
    return pixels[:, None], images.labels


def _judge(D: Denoiser) -> Judge:
    """The shipped classifier, where the network is: images -> scores (n, classes) and features (n, d), numpy."""
    import torch

    from fastcrit.diffusion import fashion_mnist

    place = D.device or "cpu"
    net = fashion_mnist.classifier().to(place)

    def judge(images: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            parts = torch.split(torch.as_tensor(images).to(place, torch.float32), 500)
            features = torch.cat([net.features(part) for part in parts])
            return net.scores(features).cpu().numpy(), features.cpu().numpy()

    return judge


def _diversity(features: Any, labels: Any) -> tuple[float, Floats]:
    """Mean distance within a class, and the same without each group of samples in turn."""
    groups = min(_GROUPS, len(labels) // 10)
    group = np.arange(len(labels)) // 10 % groups  # ten classes in turn: every group has them all
    parts = [float(pairwise_distance(features[group != g], labels[group != g]).mean()) for g in range(groups)]
    return float(pairwise_distance(features, labels).mean()), np.array(parts)
