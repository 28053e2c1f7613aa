"""A trained model from noise to image: forward and reverse trajectories, gains beside the Gaussian bound."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastcrit import data, schedules, store
from fastcrit._edge.arrays import check_choice, check_positive
from fastcrit._edge.extras import need
from fastcrit._estimates.attributes import config_of
from fastcrit._estimates.averages import jackknife_error
from fastcrit._kernels.lattice import lattice
from fastcrit._version import __version__
from fastcrit.critical import gaussian_rates
from fastcrit.errors import FileFormatError
from fastcrit.modes import gaussian_bound, mode_response, response_deficit
from fastcrit.observe import Recorder
from fastcrit.studies import result
from fastcrit.studies.fashion_mnist.words import DIRECTIONS, compare, summary
from fastcrit.studies.strip import strip

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]

# Shells of the gains at the mean image, each from all its waves.
_LOWEST = range(6)
# States between two saves of a run. Gains are taken on the first states, so they come first.
_CHUNK = 64


@dataclass(frozen=True)
class FashionMnistStudy:
    """Configuration of a study of a network for Fashion-MNIST; everything in the result follows from it.

    Parameters
    ----------
    net : str
        Name or path of the network, as `fastcrit.diffusion.pretrained` takes it.
    samples : int
        Trajectories, forward and reverse each; without labels.
    levels : int
        Noise levels, even in log s from ``high`` to ``low``: steps of the solver, all recorded.
    solver : "dpmpp-2m", "heun", "euler" or "sde"
    gain_samples, gain_every : int
        Gains are measured on the first ``gain_samples`` states of each direction, at every ``gain_every``-th level.
    probes : int
        Tangents of random phases a state, from each of which all shells follow.
    waves : int, optional
        Instead of these, so many wavevectors of each shell.
    seed : int
    blocks : int
        Jackknife blocks.
    """

    net: str = "circular-0"
    samples: int = 512
    levels: int = 49
    high: float = 80.0
    low: float = 0.02
    solver: str = "dpmpp-2m"
    gain_samples: int = 64
    gain_every: int = 2
    probes: int = 1
    waves: int | None = None
    seed: int = 0
    blocks: int = 32

    def __post_init__(self) -> None:
        for name, lowest in (
            ("samples", 3), ("levels", 5), ("gain_samples", 2), ("gain_every", 1), ("probes", 1), ("waves", 1),
            ("seed", 0), ("blocks", 2),
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "waves" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value < 2**64:
                raise ValueError(f"{name}: expected an integer of at least {lowest}, got {value!r}")
            object.__setattr__(self, name, int(value))
        if self.gain_samples > self.samples:
            raise ValueError(f"gain_samples: expected at most {self.samples} (samples), got {self.gain_samples}")
        check_choice(self.solver, ("dpmpp-2m", "heun", "euler", "sde"), "solver")
        for name in ("high", "low"):
            object.__setattr__(self, name, check_positive(getattr(self, name), name))
        if not self.high > self.low:
            raise ValueError(f"high, low: expected high > low, got {self.high} and {self.low}")
        if not isinstance(self.net, (str, os.PathLike)):
            raise TypeError(f"net: expected a name or a path, got {self.net!r}")
        object.__setattr__(self, "net", os.fspath(self.net))

    @property
    def grid(self) -> Floats:
        """The noise levels."""
        return schedules.log_levels(self.levels, high=self.high, low=self.low)

    def config(self, D: Denoiser) -> dict[str, Any]:
        """What the result follows from: the fields, and the network's file by its checksum."""
        return {"study": "fashion-mnist", **asdict(self), "weights": D.card["sha256"]}

    def run(
        self, out: str | os.PathLike[str] | None = None, *, resume: bool = False, device: str = "cpu",
        progress: bool = False,
    ) -> xr.Dataset:  # fmt: skip
        """Sample, measure, find the critical levels; with ``out``, write RUN/dataset.zarr, figures and summary.txt.

        After every 64 trajectories the recorders are saved in RUN, from where ``resume=True`` goes on, to the same bits
        with the same number of torch's threads. Network, states and recorders are on ``device``.

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds a finished run.
        FileNotFoundError, ValueError
            ``resume`` without a run to resume, or one with another configuration; no such network.
        FileFormatError
            A saved state, or the network, is damaged.
        """
        if out is not None:
            need("zarr", "a study that writes its result")
            need("matplotlib", "a study that writes its figures")
        from fastcrit import diffusion

        D = diffusion.pretrained(self.net, device)
        images = data.fashion_mnist().pixels()
        if D.shape != (1, *images.shape[1:]) or not D.unlabelled:
            raise ValueError(f"net: expected one for {(1, *images.shape[1:])} that works without labels, got {D}")
        if D.shift is not None:  # on a torus the network cannot know where the middle is
            images = data.roll(images, D.shift, self.seed)
        if self.samples > len(images):
            raise ValueError(f"samples: expected at most {len(images)}, the images there are, got {self.samples}")
        folder = None if out is None else store.begin_run(out, self.config(D), finished="dataset.zarr", resume=resume)
        recorders = {direction: self._recorder(D, folder, direction) for direction in DIRECTIONS}
        for direction, recorder in recorders.items():
            run = _Run(self, D, images, recorder)
            chunks = range(int(recorder.state["count"][-1].sum()), self.samples, _CHUNK)
            about = f"{self.net}, {direction}"
            for first in tqdm(chunks, about, disable=None if progress else True, unit=f"{_CHUNK} trajectories"):
                n = min(_CHUNK, self.samples - first)
                getattr(run, direction)(first, n)
                if folder is not None:
                    recorder.save(_saved(folder, direction))
        ds = self._dataset(recorders, D, images)
        if folder is not None:
            from fastcrit import plot

            plot.save_figures(ds, folder)
            (folder / "summary.txt").write_text(summary(ds) + "\n")
            store.save_dataset(ds, folder / "dataset.zarr")
            for direction in DIRECTIONS:
                _saved(folder, direction).unlink()
        return ds

    def _recorder(self, D: Denoiser, folder: Path | None, direction: str) -> Recorder:
        side = (D.shape or ())[1:]
        recorder = Recorder(
            self.grid, shape=side, blocks=self.blocks, data_std=D.data_std or 1.0, gain_shells=_shells(side),
            device=D.device,
        )  # fmt: skip
        if folder is not None and _saved(folder, direction).exists():
            loaded = Recorder.load(_saved(folder, direction), device=D.device)
            if loaded.config() != recorder.config():
                raise FileFormatError(f"{_saved(folder, direction)}: the recorder of another run")
            return loaded
        return recorder

    def _dataset(self, recorders: dict[str, Recorder], D: Denoiser, images: NDArray[np.float32]) -> xr.Dataset:
        ds = recorders["reverse"].dataset()
        shells = ds["shell"].values
        forward = recorders["forward"].dataset()
        kept = [
            str(name) for name in forward.data_vars
            if not str(name).endswith(("_jackknife", "_flags")) and name not in ("C", "C_stderr")
        ]  # fmt: skip
        ds = ds.assign({f"forward_{name}": forward[name].variable for name in kept})
        bound, bound_error = data_bound(images, ds["level"].values, shells, D.shift)
        about = "P/(P + s^2) of the data, averaged over the shell's modes: what Gaussian response would be"
        ds["gaussian_bound"] = (("level", "shell"), bound, {"long_name": about})
        scale = (ds["level"].values ** 2 + ds.attrs["data_std"] ** 2) / ds["level"].values ** 2
        ds["gaussian_bound_stderr"] = (("level", "shell"), bound_error)
        about = "softening of Gaussian data of this spectrum"
        ds["softening_gaussian"] = (("level", "shell"), (1 - bound) * scale[:, None], {"long_name": about})
        ds["drift_rate_gaussian"] = gaussian_rates(ds)
        for prefix in ("", "forward_"):
            gain = ds[f"{prefix}gain_on_trajectories"]
            ds[f"{prefix}response_deficit"] = (
                gain.dims, response_deficit(gain.values, bound), {"long_name": "1 - E g (P + s^2)/P"}
            )  # fmt: skip
            error = np.hypot(
                ds[f"{prefix}gain_on_trajectories_stderr"].values / bound, gain.values * bound_error / bound**2
            )
            ds[f"{prefix}response_deficit_stderr"] = (gain.dims, error)
        ds = ds.merge(self._mean_image(D, images, len(shells))).merge(
            strip(D, None, self.grid, self.solver, self.seed, self.samples)
        )
        name = self.net if os.sep not in self.net else Path(self.net).name
        ds.attrs |= {"title": f"network {name} for Fashion-MNIST", "fastcrit": __version__}
        ds.attrs |= {"config": json.dumps(self.config(D)), "card": json.dumps(D.card)}
        ds.attrs |= result.find_critical(ds, self.seed)
        return ds

    def _mean_image(self, D: Denoiser, images: NDArray[np.float32], shells: int) -> xr.Dataset:
        """Gains and leakage at the mean image, the state of no information: every wavevector of the lowest shells."""
        import torch

        y = torch.from_numpy(_mean_image(images, D.shift).astype(np.float32))[None, None].to(D.device)
        levels = self.grid
        gain, leakage = np.full((2, len(levels), shells), np.nan)
        for i in range(0, len(levels), self.gain_every):
            response = mode_response(D, y, float(levels[i]), _LOWEST[:shells])
            gain[i, : len(response.gain)], leakage[i, : len(response.gain)] = response.gain, response.leakage
        dims = ("level", "shell")
        return xr.Dataset(
            {
                "gain_at_mean_image": (dims, gain, {"long_name": "mode gain at the mean image, without noise"}),
                "leakage_at_mean_image": (dims, leakage, {"long_name": "share of J e_k in other modes"}),
            }
        )


@dataclass
class _Run:
    """Trajectories of a study, a chunk at a time, into a recorder."""

    study: FashionMnistStudy
    D: Denoiser
    images: NDArray[np.float32]
    recorder: Recorder

    def reverse(self, first: int, n: int) -> None:
        """Sample the network."""
        from fastcrit.diffusion import sample

        def gains(i: int, s: float, y: Any, D_y: Any) -> None:
            self._gains(i, s, y, first)

        sample(
            self.D, n_samples=n, levels=self.study.grid, solver=self.study.solver, seed=self.study.seed,
            recorder=self.recorder, observers=[gains] if first < self.study.gain_samples else [], first_sample=first,
        )  # fmt: skip

    def forward(self, first: int, n: int) -> None:
        """Images with noise: the same noise at every level."""
        import torch

        order = np.random.default_rng([self.study.seed, 1]).permutation(len(self.images))
        x0 = torch.from_numpy(self.images[order[first : first + n]])[:, None]
        noise = torch.from_numpy(
            np.stack(
                [
                    np.random.default_rng([self.study.seed, 2, j]).standard_normal(x0.shape[1:], dtype=np.float32)
                    for j in range(first, first + n)
                ]
            )
        )
        for i, s in enumerate(self.study.grid.tolist()):
            y = (x0 + s * noise).to(self.D.device)
            with torch.no_grad():
                denoised = self.D(y, s)
            self.recorder.update(i, y[:, 0], denoised=denoised[:, 0], sample=first)
            self._gains(i, s, y, first)

    def _gains(self, i: int, s: float, y: Any, first: int) -> None:
        some = y[: max(0, self.study.gain_samples - first)]
        if i % self.study.gain_every == 0 and len(some):
            seed = self.study.seed * len(self.study.grid) + i
            how = result.probing(self.study.probes, self.study.waves)
            response = mode_response(
                self.D, some, s, self.recorder.gain_shells, seed=seed, first_sample=first, **how
            )  # fmt: skip
            self.recorder.update_gain(i, response.samples, sample=first)


def _shells(side: tuple[int, ...]) -> range:
    """All below the Nyquist wavenumber."""
    return range(lattice(side).shells_below_nyquist)


def data_bound(
    images: NDArray[np.float32], levels: Any, shells: Any, shift: int | None = None
) -> tuple[Floats, Floats]:
    """Gaussian bound (levels, shells) of images (n, H, W): P/(P + s^2) of every mode, averaged over each shell.

    With ``shift``, of the images at every place that multiples of it reach on the torus. Second: its standard error, by
    a jackknife over 20 parts of the images.
    """
    grid = lattice(tuple(images.shape[1:]))
    half = np.moveaxis(np.fft.rfft2(images - _mean_image(images, shift)), -1, 1).reshape(len(images), -1)
    square = np.abs(half) ** 2
    shell = grid.shell_of_mode

    def of(total: Floats, n: int) -> Floats:
        power = total / (grid.sites * (n - 1))  # n - 1: the ensemble mean is removed
        bound = gaussian_bound(power, np.asarray(levels)[:, None])
        return np.stack(
            [np.average(bound[:, shell == k], axis=1, weights=grid.half_weights[shell == k]) for k in shells], axis=1
        )

    total, parts = square.sum(axis=0), np.array_split(np.arange(len(images)), min(20, len(images) // 2))
    without = [of(total - square[part].sum(axis=0), len(images) - len(part)) for part in parts]
    return of(total, len(images)), np.asarray(jackknife_error(np.stack(without)))


def _mean_image(images: NDArray[np.float32], shift: int | None) -> Floats:
    """Mean of images (n, H, W), with ``shift`` of the images at every place that multiples of it reach on the torus."""
    mean = images.mean(axis=0, dtype=np.float64)
    if shift is not None:
        H, W = (side // shift for side in mean.shape)
        mean = np.tile(mean.reshape(H, shift, W, shift).mean(axis=(0, 2)), (H, W))
    return np.asarray(mean)


def run_all(
    studies: dict[str, FashionMnistStudy], out: str | os.PathLike[str], *, resume: bool = False, device: str = "cpu",
    progress: bool = False,
) -> str:  # fmt: skip
    """Run studies in RUN/<name> each, write RUN/comparison.txt, return all tables. Finished ones are kept on resuming.

    Raises
    ------
    FileExistsError
        ``out`` exists and ``resume`` is False.
    ValueError, FileNotFoundError, FileFormatError
        As for `FashionMnistStudy.run`.
    """
    from fastcrit import diffusion

    folder = Path(out)
    if len({_folder_name(name) for name in studies}) < len(studies):
        raise ValueError(f"net: these names make the same folder: {', '.join(studies)}")
    for study in studies.values():
        diffusion.pretrained(study.net)  # a misspelt one is found before the first has run
    if not resume:
        store.create_run(folder)
    elif not folder.is_dir():
        raise FileNotFoundError(f"out: no run to resume in {folder}")
    datasets = {}
    for name, study in studies.items():
        own = folder / _folder_name(name)
        if (own / "dataset.zarr").exists():
            ds = store.load_dataset(own / "dataset.zarr")
            if config_of(ds) != study.config(diffusion.pretrained(study.net)):
                raise ValueError(f"out: {own} was made with another configuration")
        else:
            ds = study.run(own, resume=resume and own.exists(), device=device, progress=progress)
        datasets[own.name] = ds
    tables = [summary(ds) for ds in datasets.values()]
    if len(datasets) > 1:
        tables.append(compare(datasets))
        (folder / "comparison.txt").write_text(tables[-1] + "\n")
    return "\n\n".join(tables)


def _folder_name(net: str) -> str:
    """Of a network's run: its name; for a net.safetensors, the name of the folder that it lies in."""
    path = Path(net)
    if path.suffix != ".safetensors":
        return path.name
    return path.resolve().parent.name if path.stem == "net" else path.stem


def _saved(folder: Path, direction: str) -> Path:
    return folder / f"recorder-{direction}.safetensors"
