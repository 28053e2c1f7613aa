"""A trained model from noise to image: forward and reverse trajectories, gains beside the Gaussian bound."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit import data
from fastcrit._kernels.lattice import lattice
from fastcrit._version import __version__
from fastcrit.critical import gaussian_rates
from fastcrit.modes import mode_response, response_deficit
from fastcrit.observe import Recorder
from fastcrit.studies import result
from fastcrit.studies.fashion_mnist.bound import data_bound, gaussian_gap, mean_image
from fastcrit.studies.fashion_mnist.plan import FashionMnistPlan
from fastcrit.studies.fashion_mnist.trajectories import Trajectories, image_order
from fastcrit.studies.fashion_mnist.words import DIRECTIONS, summary
from fastcrit.studies.finish import finish, need_what_finishes
from fastcrit.studies.locality import LocalitySums, response_length
from fastcrit.studies.recording import finished_or_begun, record, resumed
from fastcrit.studies.strip import strip

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

# Shells of the gains at the mean image, each from all its waves.
_LOWEST = range(6)
# States between two saves of a run. Gains are taken on the first states, so they come first.
_CHUNK = 64
# Images of locality for a state of the gains: it needs more of them, and no derivatives. Of so many one is a state of
# the response function, whose products are then a sixth of the gains'.
_IMAGES, _RESPONSES = 4, 16


@dataclass(frozen=True)
class FashionMnistStudy(FashionMnistPlan):
    """Configuration of a study of a network for Fashion-MNIST; everything in the result follows from it.

    Parameters
    ----------
    net : str
        Name or path of the network, as `fastcrit.diffusion.pretrained` takes it.
    samples : int
        Trajectories, forward and reverse each; without labels.
    levels : int
        Noise levels, even in log s from ``high`` to ``low``: steps of the solver, all recorded.
    high, low : float
    solver : "dpmpp-2m", "heun", "euler" or "sde"
    gain_samples, gain_every : int
        Gains are measured on the first ``gain_samples`` states of each direction, at every ``gain_every``-th level.
    probes : int
        Tangents of random phases a state, from each of which all shells follow.
    waves : int, optional
        Instead of these, so many wavevectors of each shell.
    locality : bool
        Also measure, on four times ``gain_samples`` images with noise (``samples`` at most) and at the levels of the
        gains, what windows lose and what is known of the class, and on every sixteenth of them the response in space.
    seed : int
    blocks : int
        Jackknife blocks.
    """

    def run(
        self, out: str | os.PathLike[str] | None = None, *, resume: bool = False, device: str = "cpu",
        progress: bool = False,
    ) -> xr.Dataset:  # fmt: skip
        """Sample, measure, find the critical levels; with ``out``, write RUN/dataset.zarr, figures and summary.txt.

        After every 64 trajectories the recorders are saved in RUN, from where ``resume=True`` goes on, to the same bits
        with the same number of torch's threads. Where no run is, ``resume=True`` begins one; of a finished one it
        returns the dataset. Network, states and recorders are on ``device``.

        Raises
        ------
        FileExistsError
            ``out`` exists and ``resume`` is False, or holds something that is no run.
        FileNotFoundError
            No such network.
        ValueError
            ``resume`` with another configuration than the run's (the message says what differs); a network for
            something else.
        FileFormatError
            A saved state, or the network, is damaged.
        """
        if out is not None:
            need_what_finishes()
        from fastcrit import diffusion

        D = diffusion.pretrained(self.net, device)
        given = data.fashion_mnist()
        images, labels = given.pixels(), given.labels
        if D.shape != (1, *images.shape[1:]) or not D.unlabelled:
            raise ValueError(f"net: expected one for {(1, *images.shape[1:])} that works without labels, got {D}")
        if D.shift is not None:  # on a torus the network cannot know where the middle is
            images = data.roll(images, D.shift, self.seed)
        if self.samples > len(images):
            raise ValueError(f"samples: expected at most {len(images)}, the images there are, got {self.samples}")
        folder = None if out is None else Path(out)
        files = {d: None if folder is None else folder / f"recorder-{d}.safetensors" for d in DIRECTIONS}
        saved = [file for file in files.values() if file is not None]
        if folder is not None:
            done = finished_or_begun(folder, self.config(D), saved, resume=resume)
            if done is not None:
                return done
        recorders = {direction: resumed(self._recorder(D), files[direction]) for direction in DIRECTIONS}
        for direction, recorder in recorders.items():
            make = getattr(Trajectories(self, D, images, recorder), direction)
            record(
                recorder, files[direction], self.samples, make, chunk=_CHUNK, about=f"{self.net}, {direction}",
                of="trajectories", progress=progress,
            )  # fmt: skip
        ds = self._dataset(recorders, D, images)
        if self.locality:
            ds = ds.merge(self._locality(D, images, labels), combine_attrs="no_conflicts").merge(response_length(ds))
        if folder is not None:
            finish(ds, folder, summary(ds), saved)
        return ds

    def _recorder(self, D: Denoiser) -> Recorder:
        side = (D.shape or ())[1:]
        return Recorder(
            self.grid, shape=side, blocks=self.blocks, data_std=D.data_std or 1.0,
            gain_shells=range(lattice(side).shells_below_nyquist), device=D.device,
        )  # fmt: skip

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

    def _locality(self, D: Denoiser, images: NDArray[np.float32], labels: NDArray[np.int64]) -> xr.Dataset:
        import torch

        n = min(_IMAGES * self.gain_samples, self.samples)
        some = image_order(self.seed, len(images))[:n]
        x0 = torch.from_numpy(images[some])[:, None]
        sums = LocalitySums(self.grid[:: self.gain_every], x0.shape[2:], self.blocks)
        block = np.arange(len(some)) * self.blocks // len(some)
        sums.measure(
            D, x0, labels[some] if D.classes else None, block, periodic=D.shift is not None, seed=self.seed, first=0,
            derivative="auto", batch=_CHUNK, every=_RESPONSES,
        )  # fmt: skip
        ds = sums.dataset(self.grid, D.classes)
        gap = gaussian_gap(images, self.grid, sums.radii, D.shift)
        about = "locality gap of Gaussian data of this spectrum, resampled"
        ds["locality_gap_gaussian"] = (("level", "radius"), gap, {"long_name": about})
        return ds

    def _mean_image(self, D: Denoiser, images: NDArray[np.float32], shells: int) -> xr.Dataset:
        """Gains and leakage at the mean image, the state of no information: every wavevector of the lowest shells."""
        import torch

        y = torch.from_numpy(mean_image(images, D.shift).astype(np.float32))[None, None].to(D.device)
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
