"""A large class-conditional model on many processes: spectra, lengths and gains along its trajectories.

Everything is made in numbered chunks of samples (chunks.py), each from its number and the configuration alone; the
result is their sum in the order of their numbers. So any number of ranks, kills and resumptions gives the same bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.statefile import is_url
from fastcrit._estimates.attributes import config_of
from fastcrit._version import __version__
from fastcrit.critical import gaussian_rates
from fastcrit.observe import Recorder
from fastcrit.studies import checks, result
from fastcrit.studies.imagenet.plan import ImageNetPlan
from fastcrit.studies.imagenet.states import EMPTY_STORE, STORE, create_states
from fastcrit.studies.locality import response_length
from fastcrit.studies.locality_words import lines_of_locality
from fastcrit.studies.prompts import lines_of_prompts
from fastcrit.studies.shared.chunks import Chunks
from fastcrit.studies.shared.on_dask import with_absolute_paths
from fastcrit.studies.shared.ranks import Rank
from fastcrit.studies.shared.run import shared_run
from fastcrit.studies.shared.work import Sampler
from fastcrit.studies.strip import strip

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageNetStudy(ImageNetPlan):
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
        Folder with unet/ or transformer/, and scheduler/, as `fastcrit.diffusion.load_diffusers` reads it.
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
    locality : bool
        Also measure, on that share of the samples as images that are noised again and at the levels of the gains, what
        windows lose and what is known of the class, and on every eighth of them the response in space. Of the network
        itself, without guidance, and without labels where it works so.
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
    prompts : path or sequence of str, optional
        With ``diffusers``, which is then the folder of a whole text pipeline: different texts, or a file with one a
        line. Each is a class, as `fastcrit.diffusion.from_pipeline` makes it: sample j has the prompt of the number
        j mod ``classes``.
    negative : str, optional
        With ``prompts``: the one that stands for no label, from which guidance leads away. Default: an empty one.

    Examples
    --------
    >>> from fastcrit.studies import ImageNetStudy
    >>> ImageNetStudy(diffusers="my-model", samples=1000, chunk=100).chunks
    10
    """

    def run(
        self, out: str | os.PathLike[str], *, chunks: str | None = None, resume: bool = False, device: str = "cpu",
        rank: Rank | None = None, client: Any = None, progress: bool = False,
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
            Go on with a run that was stopped; begin one where there is none; of a finished one, return what it found.
            Only rank 0 makes the folder; others wait for it.
        device : str
            As torch names it; "cuda" is the device of each rank's own number on its machine.
        rank : Rank, optional
            Default: as torchrun or srun say.
        client : dask.distributed.Client or address of a scheduler, optional
            Dask's workers make the chunks, a task a chunk, to the same bits; ``device`` is that of each worker.
            They have to see the model's files and the place of the chunks. This process is the only rank.
        progress : bool
            Say on standard error what is done.

        Returns
        -------
        xarray.Dataset, or None for other ranks than 0

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds something that is no run.
        FileNotFoundError
            Rank 0 has made no folder for two minutes.
        ValueError
            ``resume`` with another configuration than the run's (the message says what differs); a Dask worker that
            does not see what it has to, or has other weights there.
        IncompleteRunError
            Chunks failed, or the workers died that had them; why is in the log. All others are saved.
        ModuleNotFoundError
            ``client`` without dask.distributed (the extra ``fastcrit[dask]``).
        OSError
            The folder cannot be written. What is there stays, and ``resume`` goes on from it.
        """
        rank = Rank.of_environment() if rank is None else rank
        if self.save_states and chunks is not None and is_url(chunks):
            raise ValueError(f"save_states: expected chunks in a folder that all ranks share, got {chunks}")
        job = _job(self, device if client is not None else rank.device(device))
        return shared_run(job, out, chunks=chunks, resume=resume, rank=rank, client=client, progress=progress)


def _job(study: ImageNetStudy, device: str) -> _Job:
    return _Job(study, study.denoiser(device), device)


@dataclass(frozen=True)
class _Job:
    """A study and the denoiser that it samples."""

    study: ImageNetStudy
    D: Denoiser
    device: str

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

    @property
    def made_first(self) -> tuple[str, ...]:
        """What `prepare` makes."""
        return EMPTY_STORE if self.study.save_states else ()

    @property
    def again(self) -> Callable[[], _Job]:
        """Makes this job in another process."""
        return partial(_job, with_absolute_paths(self.study), self.device)

    def prepare(self, folder: Path) -> None:
        """The store of the states, where they are kept."""
        if self.study.save_states:
            assert self.D.shape is not None
            levels, batch = self.study.grid(self.D), self.study.batch
            create_states(folder / STORE, levels, self.study.samples, self.D.shape, batch)

    @property
    def classes(self) -> int:
        """Of the samples; 0 without labels."""
        return self.study.known_classes(self.D) if self.study.classes is None else self.study.classes

    def sampler(self, folder: Path) -> Sampler:
        """Who makes the chunks."""
        from fastcrit.studies.imagenet.chunk import TrajectorySampler

        return TrajectorySampler(self.study, self.D, folder)

    def summary(self, ds: xr.Dataset) -> str:
        """The table."""
        return summary(ds)

    def result(self, chunks: Chunks) -> xr.Dataset | None:
        """The sum of all chunks in their order; None where one turns out to be damaged, which is then missing."""
        study, D = self.study, self.D
        std, whole = study.data_std or D.data_std, None
        locality = study.locality_sums(D, study.blocks) if study.locality else None
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
            if locality is not None:
                sums = {name: found[1].pop(f"locality_{name}") for name in locality.arrays}
                locality.add(sums, c * study.locality_blocks_a_chunk)
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
        if locality is not None:
            about_locality = locality.dataset(study.grid(D), self.classes)
            ds = ds.merge(about_locality, combine_attrs="no_conflicts").merge(response_length(ds))
        ds.attrs |= {"title": f"model {D.name}", "fastcrit": __version__, "model": D.name}
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
    config = config_of(ds)
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
    return "\n".join(lines + lines_of_locality(ds) + lines_of_prompts(config))
