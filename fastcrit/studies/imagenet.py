"""A large class-conditional model on many processes: spectra, lengths and gains along its trajectories.

Everything is made in numbered chunks of samples (chunks.py), each from its number and the configuration alone; the
result is their sum in the order of their numbers. So any number of ranks, kills and resumptions gives the same bits.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import fastcrit
from fastcrit import schedules
from fastcrit._arrays import check_choice, check_finite_number, check_integer, check_positive, check_seed, check_threads
from fastcrit._lattice import lattice
from fastcrit._statefile import is_url
from fastcrit.critical import gaussian_rates
from fastcrit.observe import Recorder
from fastcrit.studies import checks, result
from fastcrit.studies.chunks import Chunks
from fastcrit.studies.labels import classes_but, labels_of
from fastcrit.studies.ranks import Rank
from fastcrit.studies.shared_run import shared_run
from fastcrit.studies.strip import strip
from fastcrit.studies.work import Sampler

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]

# Of waves, whose cost is that of their number.
_SHELLS = 6
# Where the model lies on this machine; what it is, its checksum says.
_PLACES = ("edm2", "guide", "diffusers", "trust_pickle")


@dataclass(frozen=True)
class ImageNetStudy:
    """Configuration of a study of a large model; everything in the result follows from it and from the model's weights.

    Parameters
    ----------
    edm2 : path, optional
        Pickle of EDM or EDM2, as `fastcrit.diffusion.load_edm2` reads it; this or ``diffusers``.
    guide : path, optional
        Pickle of the network that guidance leads away from: one without labels, or a weaker one.
    trust_pickle : bool
        Pickles run code; without this they are refused.
    diffusers : path, optional
        Folder with unet/ and scheduler/, as `fastcrit.diffusion.load_diffusers` reads it.
    null_label : int, optional
        With ``diffusers``: the class that stands for "no label".
    samples, chunk, batch : int
        Trajectories; so many are recorded and saved together; so many are in the network at once, a divisor of
        ``chunk``; 0: the largest up to 64.
    levels : int
        Noise levels, even in log s from ``high`` to ``low``: steps of the solver, all recorded.
    high, low : float
        ``high`` is lowered to the highest level that the network knows.
    solver : "heun", "euler", "sde" or "dpmpp-2m"
    classes : int, optional
        Sample j has label j mod ``classes``, passing over ``null_label``; default: all that the network knows. 0: no
        labels.
    gain_share, gain_every, probes : float, int, int
        Gains are measured on about this share of the samples, drawn by seed and number of the sample, at every
        ``gain_every``-th level, by ``probes`` tangents of random phases in each channel, which give all shells.
    waves : int, optional
        Instead of these, so many wavevectors of each of the lowest shells.
    guidance_weight, guidance_center, guidance_width : float, optional
        Guide with this weight: around a noise level, over ``guidance_width`` in log s; without a center, everywhere.
    data_std : float, optional
        Standard deviation of the data, to which drift rates are scaled. Default: what the network says (EDM's do), or
        else that of the first chunk's samples.
    blocks : int
        Jackknife blocks.
    seed : int
    save_states : bool
        Keep all states in RUN/states.zarr.
    threads : int
        Of torch, on a CPU: sums of other numbers of threads are rounded otherwise.

    Examples
    --------
    >>> from fastcrit.studies import ImageNetStudy
    >>> ImageNetStudy(diffusers="my-model", samples=1000, chunk=100).chunks
    10
    """

    edm2: str | None = None
    guide: str | None = None
    trust_pickle: bool = False
    diffusers: str | None = None
    null_label: int | None = None
    samples: int = 50_000
    chunk: int = 256
    batch: int = 0
    levels: int = 32
    high: float = 80.0
    low: float = 0.02
    solver: str = "heun"
    classes: int | None = None
    gain_share: float = 0.02
    gain_every: int = 1
    probes: int = 1
    waves: int | None = None
    guidance_weight: float | None = None
    guidance_center: float | None = None
    guidance_width: float = 1.0
    data_std: float | None = None
    blocks: int = 32
    seed: int = 0
    save_states: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        if (self.edm2 is None) == (self.diffusers is None):
            raise ValueError(f"edm2, diffusers: expected one of them, got {self.edm2!r} and {self.diffusers!r}")
        if self.guide is not None and self.guidance_weight is None:
            raise ValueError("guide: given without guidance_weight")
        if self.guidance_center is not None and self.guidance_weight is None:
            raise ValueError("guidance_center: given without guidance_weight")
        if self.null_label is not None and self.diffusers is None:
            raise ValueError("null_label: given without diffusers")
        check_integer(self.chunk, "chunk", 2)
        if self.batch == 0:
            object.__setattr__(self, "batch", max(n for n in range(1, 65) if self.chunk % n == 0))
        for name, lowest in (
            ("samples", 3), ("chunk", 2), ("batch", 1), ("levels", 5), ("gain_every", 1), ("probes", 1), ("waves", 1),
            ("seed", 0), ("blocks", 2), ("threads", 1),
        ):  # fmt: skip
            if not (name == "waves" and self.waves is None):
                object.__setattr__(self, name, check_integer(getattr(self, name), name, lowest))
        check_seed(self.seed)
        check_threads(self.threads)
        if self.chunk % self.batch:
            raise ValueError(f"batch: expected a divisor of chunk = {self.chunk}, got {self.batch}")
        if self.classes is not None:
            check_integer(self.classes, "classes", 0)
        if self.guidance_weight is not None:
            object.__setattr__(self, "guidance_weight", check_finite_number(self.guidance_weight, "guidance_weight"))
            if self.guidance_weight == 1.0:
                raise ValueError("guidance_weight: expected another one than 1, which is no guidance")
            if self.classes == 0 and self.guide is None:
                raise ValueError("guidance_weight: a network is guided by itself with labels alone, got classes = 0")
        for name in ("high", "low", "guidance_width", "guidance_center", "data_std"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive(getattr(self, name), name))
        if not self.high > self.low:
            raise ValueError(f"high, low: expected high > low, got {self.high} and {self.low}")
        if not 0.0 <= check_finite_number(self.gain_share, "gain_share") <= 1.0:
            raise ValueError(f"gain_share: expected a share from 0 to 1, got {self.gain_share!r}")
        check_choice(self.solver, ("heun", "euler", "sde", "dpmpp-2m"), "solver")

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.samples // self.chunk)

    @property
    def blocks_a_chunk(self) -> int:
        """Jackknife blocks of a chunk's recorder: together they make up ``blocks``, but two each at least."""
        return max(2, self.blocks // self.chunks)

    def grid(self, D: Denoiser) -> Floats:
        """The noise levels of a run of this denoiser."""
        return schedules.log_levels(self.levels, high=min(self.high, D.highest), low=self.low)

    def span(self, chunk: int) -> range:
        """Numbers of the samples of a chunk."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples))

    def labels(self, D: Denoiser, samples: range) -> NDArray[np.int64] | None:
        """Classes of these samples, as `labels_of` has them; None without labels."""
        classes = self.known_classes(D) if self.classes is None else self.classes
        return labels_of(samples, classes, self.null_label) if classes else None

    def known_classes(self, D: Denoiser) -> int:
        """Number of classes but the one that stands for "no label"."""
        return classes_but(D.classes, self.null_label)

    def config(self, D: Denoiser) -> dict[str, Any]:
        """What the result follows from: the fields, the kind of device, the networks by their files' checksums."""
        fields = {name: value for name, value in asdict(self).items() if name not in _PLACES}
        device = "cpu" if D.device is None else D.device.type
        return {
            "study": "imagenet", **fields, "device": device, "weights": D.card["sha256"], "guide": D.card.get("guide")
        }  # fmt: skip

    def denoiser(self, device: str = "cpu") -> Denoiser:
        """The denoiser that is sampled, guided where the configuration says so.

        Raises
        ------
        ValueError
            A pickle that is not trusted; more classes than the network knows; guidance without a network to lead away
            from, or at none of the levels.
        FileNotFoundError, FileFormatError, ModuleNotFoundError
            As for `fastcrit.diffusion.load_edm2` and `fastcrit.diffusion.load_diffusers`.
        """
        from fastcrit import diffusion
        from fastcrit.diffusion.checkpoints import load_pair

        D, unguided = load_pair(
            self.edm2, self.diffusers, self.guide, trust_pickle=self.trust_pickle, null_label=self.null_label,
            device=device,
        )  # fmt: skip
        if D.shape is None:
            raise ValueError(f"edm2, diffusers: {D.name} does not say what shape its states have")
        if (self.classes or 0) > self.known_classes(D):
            raise ValueError(
                f"classes: expected at most {self.known_classes(D)}, which {D.name} knows, got {self.classes}"
            )
        if self.guidance_weight is None:
            return D
        checks.check_leads_away(D, unguided)
        if unguided is not None:
            D.card["guide"] = unguided.card["sha256"]
        weight = (
            diffusion.Constant(self.guidance_weight)
            if self.guidance_center is None
            else diffusion.Pulse(self.guidance_center, self.guidance_width, self.guidance_weight)
        )
        guided = diffusion.guided(D, unguided, weight)
        checks.check_guides(weight, self.grid(guided), "guidance_center, guidance_width")
        return guided

    def run(
        self, out: str | os.PathLike[str], *, chunks: str | None = None, resume: bool = False, device: str = "cpu",
        rank: Rank | None = None, progress: bool = False,
    ) -> xr.Dataset | None:  # fmt: skip
        """Make the chunks that are missing; rank 0 then adds them up and writes RUN/dataset.zarr, figures, summary.txt.

        Parameters
        ----------
        out : path
            Folder of the run.
        chunks : path or URL, optional
            Where the chunks are: a folder that all ranks see, or the URL of one on any file system that fsspec knows.
            Default: RUN/chunks.
        resume : bool
            Go on with a run that was stopped. Only rank 0 makes the folder; others wait for it.
        device : str
            As torch names it; "cuda" is the device of each rank's own number on its machine.
        rank : Rank, optional
            Default: as torchrun or srun say.
        progress : bool
            Say on standard error what is done.

        Returns
        -------
        xarray.Dataset, or None for other ranks than 0

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds a finished run.
        FileNotFoundError, ValueError
            ``resume`` without a run to resume, or one with another configuration (the message says what differs).
        IncompleteRunError
            Chunks failed; their tracebacks are in the log. All others are saved.
        OSError
            The folder cannot be written. What is there stays, and ``resume`` goes on from it.
        """
        rank = Rank.of_environment() if rank is None else rank
        if self.save_states and chunks is not None and is_url(chunks):
            raise ValueError(f"save_states: expected chunks in a folder that all ranks share, got {chunks}")
        job = _Job(self, self.denoiser(rank.device(device)))
        return shared_run(job, out, chunks=chunks, resume=resume, rank=rank, progress=progress)

    def recorder_options(self, D: Denoiser, blocks: int, data_std: float | None = None) -> dict[str, Any]:
        """Arguments of the run's recorder, or with fewer blocks of a chunk's."""
        assert D.shape is not None
        shells = lattice(tuple(D.shape[1:])).shells_below_nyquist
        return {
            "levels": self.grid(D),
            "shape": D.shape,
            "blocks": blocks,
            "data_std": data_std or self.data_std or D.data_std or 1.0,
            "gain_shells": range(shells if self.waves is None else min(_SHELLS, shells)),
        }


@dataclass(frozen=True)
class _Job:
    """A study and the denoiser that it samples."""

    study: ImageNetStudy
    D: Denoiser

    def __str__(self) -> str:
        return str(self.D)

    @property
    def config(self) -> dict[str, Any]:
        """What the result follows from."""
        return self.study.config(self.D)

    @property
    def count(self) -> int:
        """Number of chunks."""
        return self.study.chunks

    @property
    def threads(self) -> int:
        """Of torch."""
        return self.study.threads

    def prepare(self, folder: Path) -> None:
        """The store of the states, where they are kept."""
        if self.study.save_states:
            from fastcrit.studies.states import create_states

            assert self.D.shape is not None
            levels, batch = self.study.grid(self.D), self.study.batch
            create_states(folder / "states.zarr", levels, self.study.samples, self.D.shape, batch)

    def sampler(self, folder: Path) -> Sampler:
        """Who makes the chunks."""
        from fastcrit.studies.imagenet_chunk import TrajectorySampler

        return TrajectorySampler(self.study, self.D, folder)

    def summary(self, ds: xr.Dataset) -> str:
        """The table."""
        return summary(ds)

    def result(self, chunks: Chunks) -> xr.Dataset | None:
        """The sum of all chunks in their order; None where one turns out to be damaged, which is then missing."""
        study, D = self.study, self.D
        std, whole = study.data_std or D.data_std, None
        measured = std is None
        for c in range(study.chunks):
            found = chunks.load(c)
            if found is None:
                return None
            if std is None:
                std = checks.data_std_of(found[1]["data_moments"], float(study.grid(D)[-1]))
            if whole is None:
                whole = Recorder(**study.recorder_options(D, study.blocks, std))
            part = Recorder(**study.recorder_options(D, study.blocks_a_chunk, std))
            part.set_sums(found[1])
            whole.merge(part, first_block=c * study.blocks_a_chunk)
        assert whole is not None
        labels = study.labels(D, range(study.samples))
        ds = whole.dataset().merge(strip(D, labels, study.grid(D), study.solver, study.seed, study.samples))
        pixels = D.card["pixels_per_site"]
        if pixels is not None and pixels > 1:
            for name in [str(n) for n in ds.data_vars if str(n).startswith("xi_") and not str(n).endswith("_flags")]:
                scaled = ds[name] * pixels
                about = f"{ds[name].attrs.get('long_name', name)}, times the encoder's {pixels} pixels a site"
                ds[f"{name}_pixels"] = scaled.assign_attrs(long_name=about, units="nominal image pixels")
        ds.attrs |= {"title": f"model {D.name}", "fastcrit": fastcrit.__version__, "model": D.name}
        ds.attrs |= {"pixels_per_site": 0 if pixels is None else pixels, "config": json.dumps(self.config)}
        ds.attrs["data_std_from"] = "the first chunk" if measured else "the network" if D.data_std else "data_std"
        if wrong := checks.convention_of_flow(D, labels, float(study.grid(D)[0]), study.seed):
            ds.attrs["warning"] = wrong
        if "drift_rate" in ds:
            ds["drift_rate_gaussian"] = gaussian_rates(ds)
        ds.attrs |= result.find_critical(ds, study.seed)
        return ds


def summary(ds: xr.Dataset) -> str:
    """The table of a finished study: signatures, and lengths at their levels."""
    config = result.config_of(ds)
    shape = " x ".join(map(str, ds.attrs["lattice"]))
    pixels = ds.attrs["pixels_per_site"]
    lines = [
        f"{ds.attrs['title']}; {int(ds['n_samples'].max())} trajectories on {ds.sizes['channel']} x {shape} sites, "
        f"{config['levels']} levels, {config['solver']}, seed {config['seed']}; gains of {int(ds['n_gains'].max())} "
        "states",
        "",
        f"{'':24}{'noise level s':>14}   {'95 % interval':<22}{'xi_efold there':>15}"
        + (f"{'in image pixels':>17}" if pixels > 1 else ""),
    ]
    for name, found in result.signatures(ds).items():
        if not found.found:
            lines.append(f"{name:24}{found.reason}")
            continue
        near = int(np.abs(np.log(ds["level"].values / found.level)).argmin())
        xi = float(ds["xi_efold"][near].mean())
        interval = f"[{found.low:.4g}, {found.high:.4g}]"
        lines.append(
            f"{name:24}{found.level:14.4f}   {interval:<22}{xi:15.3f}"
            + (f"{xi * pixels:17.2f}" if pixels > 1 else "")
            + (f"  {found.remark}" if found.kind else "")
        )
    if "warning" in ds.attrs:
        lines += ["", f"warning: {ds.attrs['warning']}"]
    return "\n".join(lines)
