"""What a study measures of locality beside its trajectories: how far the network looks, and when that matters.

On forward states of images, which are data or the study's own samples: response in space, what windows lose, what is
known of the class. Sums by jackknife blocks, which chunks add.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.averages import jackknife_error
from fastcrit._estimates.information import integral_from_above
from fastcrit._estimates.level_peak import LevelPeak, level_peak
from fastcrit._estimates.response_function import share_within
from fastcrit._kernels.lattice import Lattice, lattice

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]

# Seconds are told apart by these.
PARTS = ("response", "locality")
# Names of the sums, and their axes after blocks; those of the counts are blocks alone.
_SUMS = {
    "gap": ("level", "radius"), "change": ("level",), "excess": ("level",), "square": ("level", "lag"),
}  # fmt: skip
_COUNTS = {"gap": "images", "change": "labelled", "excess": "labelled", "square": "states"}


def radii_of(shape: tuple[int, ...]) -> list[int]:
    """Three radii of windows, about a sixteenth, an eighth and a quarter of the smallest side; fewer on small lattices.

    Examples
    --------
    >>> from fastcrit.studies.locality import radii_of
    >>> radii_of((28, 28)), radii_of((64, 48)), radii_of((8, 8))
    ([1, 3, 7], [3, 6, 12], [1, 2])
    """
    return sorted({max(1, min(shape) // part) for part in (16, 8, 4)})


@dataclass
class LocalitySums:
    """Sums over images, by blocks.

    Parameters
    ----------
    levels : (levels,)
    shape : tuple of int
        Of the lattice.
    blocks : int
    """

    levels: Floats
    shape: tuple[int, ...]
    blocks: int
    radii: list[int] = field(init=False)
    grid: Lattice = field(init=False)
    arrays: dict[str, Floats] = field(init=False)

    def __post_init__(self) -> None:
        self.radii, self.grid = radii_of(self.shape), lattice(self.shape)
        sizes = {"level": len(self.levels), "radius": len(self.radii), "lag": len(self.grid.lag_r)}
        self.arrays = {name: np.zeros((self.blocks, *(sizes[a] for a in axes))) for name, axes in _SUMS.items()}
        self.arrays |= {name: np.zeros(self.blocks) for name in sorted(set(_COUNTS.values()))}

    def measure(
        self, D: Denoiser, x0: Sequence[Tensor] | Tensor, labels: Any, blocks: NDArray[np.int64], *, periodic: bool,
        seed: int, first: int, derivative: str, batch: int, every: int,
    ) -> dict[str, float]:  # fmt: skip
        """Add images (n, C, ..), two or more, each to its block, with labels, if any; seconds of each of `PARTS`.

        ``first`` is the number of the first image; those of which ``every`` divides it are states of the response
        function, with a column of J each. Labels tell what is known of the class; D is measured without them where it
        works so.
        """
        import torch

        from fastcrit.diffusion import information, locality_gap

        begin = time.perf_counter()
        x0 = torch.stack(list(x0))
        x0 = x0 if x0.dtype == torch.float64 else x0.float()
        given = None if D.unlabelled else labels
        draws: dict[str, Any] = {"seed": seed, "first_sample": first, "batch_size": batch}
        gap = locality_gap(D, x0, self.levels, self.radii, given, periodic=periodic, **draws)
        self._add("gap", blocks, np.moveaxis(gap.samples, -1, 0))
        self._add("images", blocks, np.ones(len(x0)))
        if labels is not None and D.classes and D.unlabelled:
            known = information(D, x0, self.levels, labels, **draws).classes
            assert known is not None
            assert known.excess is not None
            self._add("change", blocks, known.samples.T)
            self._add("excess", blocks, known.excess.T)
            self._add("labelled", blocks, np.ones(len(x0)))
        middle = time.perf_counter()
        self._respond(D, x0, given, blocks, seed, first, derivative, every)
        return {"response": time.perf_counter() - middle, "locality": middle - begin}

    def _respond(
        self, D: Denoiser, x0: Tensor, labels: Any, blocks: NDArray[np.int64], seed: int, first: int, derivative: str,
        every: int,
    ) -> None:  # fmt: skip
        import torch

        from fastcrit.diffusion.forward_states import ForwardStates
        from fastcrit.response import response_function

        some = np.array([i for i in range(len(x0)) if (first + i) % every == 0], dtype=np.int64)
        if not len(some):
            return
        states = ForwardStates(x0, some, seed, first, D.device)
        few = None if labels is None else torch.as_tensor(labels)[some]
        for i, s in enumerate(self.levels.tolist()):
            found = response_function(
                D, states(s), s, few, derivative=derivative, asymmetry=False, seed=seed + i,
                first_sample=first + int(some[0]),
            )  # fmt: skip
            derivative = found.method
            np.add.at(self.arrays["square"][:, i], blocks[some], found.square_samples)
        self._add("states", blocks[some], np.ones(len(some)))

    def _add(self, name: str, blocks: NDArray[np.int64], samples: Floats) -> None:
        np.add.at(self.arrays[name], blocks, samples)

    def add(self, sums: dict[str, Floats], first: int) -> None:
        """Add the blocks of the sums of another into these, from the block of this number on."""
        for name, values in self.arrays.items():
            for block, more in enumerate(sums[name], start=first):
                values[block % self.blocks] += more

    def dataset(self, grid: Floats, classes: int) -> xr.Dataset:
        """Means with jackknife errors, on a study's ``grid`` of levels: NaN at others. Empty without images.

        ``classes`` is how many there are, as many images of each.
        """
        if not self.arrays["images"].any():
            return xr.Dataset()
        put = _Put(grid, self.levels)
        radius = ("radius", self.radii, {"long_name": "half the side of a window", "units": "sites"})
        ds = xr.Dataset(coords={"radius": radius, "level": grid})
        about = "square of what the denoised image changes by, at a site, when all beyond a window is another image's"
        gap = self._estimates("gap", lambda x: x)
        put(ds, "locality_gap", gap, about, "radius")
        r, pairs = self.grid.lag_r, self.grid.lag_pairs
        if self.arrays["states"].any():
            shares = self._estimates("square", lambda q: share_within(q, pairs, r, self.radii))
            put(ds, "response_share", shares, "share of the mean square of dD/dy within a distance", "radius")
        peaks = {"gap": self._peak(gap[..., len(self.radii) // 2])}
        if self.arrays["labelled"].any():
            rate = self._estimates("change", lambda m: m / self.levels**2)
            put(ds, "class_rate", rate, "nats about the class that a unit of log s takes away")
            known, bias = (
                self._estimates(name, lambda m: integral_from_above(self.levels, m.T).T)
                for name in ("change", "excess")
            )
            put(ds, "class_information", known, "nats that the state tells of the class, integrated from above")
            put(ds, "class_information_bias", bias, "nats of these that errors against the images do not bear out")
            ds.attrs["class_entropy"] = float(np.log(classes))
            peaks["class"] = self._peak(rate).cut(biased_below(ds))
        ds.attrs["locality_images"] = int(self.arrays["images"].sum())
        ds.attrs["locality_states"] = int(self.arrays["states"].sum())
        ds.attrs["locality_peaks"] = json.dumps({name: peak.to_dict() for name, peak in peaks.items()})
        return ds

    def _estimates(self, name: str, estimate: Any) -> Floats:
        """(1 + blocks, levels, ..): of all, and without each block that has any."""
        sums, counts = self.arrays[name], self.arrays[_COUNTS[name]]
        sums, counts = sums[counts > 0], counts[counts > 0]
        each = (-1, *(1,) * (sums.ndim - 1))
        with np.errstate(invalid="ignore", divide="ignore"):  # without the only block there is no estimate
            left = (sums.sum(axis=0) - sums) / (counts.sum() - counts).reshape(each)
            return np.asarray(estimate(np.concatenate([sums.sum(axis=0)[None] / counts.sum(), left])))

    def _peak(self, estimates: Floats) -> LevelPeak:
        return level_peak(self.levels, estimates[0], estimates[1:])


def biased_below(ds: xr.Dataset) -> float:
    """The highest level at which more seems to be known of the class than there is, by two errors; NaN for none."""
    sure = ds["class_information"].values - 2 * ds["class_information_stderr"].values
    above = np.flatnonzero(sure > ds.attrs["class_entropy"])
    return float(ds["level"][above[0]]) if above.size else float("nan")


def response_length(ds: xr.Dataset) -> xr.Dataset:
    r"""How far the network looks, from the gains of a run's two lowest shells: :math:`g_k = g_0/(1 + \xi^2 \hat k^2)`.

    As the second-moment correlation length has it of spectra: the second moment of G(r) as its longest waves see it,
    averaged over the modes of the shell. Far less noisy than a sum of r^2 G. NaN where g_0 < g_1; empty without gains
    of both shells.
    """
    if "gain_on_trajectories" not in ds or ds.sizes["shell"] < 2 or int(ds["shell"][1]) != 1:
        return xr.Dataset()
    s2 = ds["level"].values ** 2
    grid = lattice(tuple(int(n) for n in np.atleast_1d(ds.attrs["lattice"])))
    first = grid.shell_of_mode == 1
    k2 = (4 * np.sin(grid.half_wavevectors[first] / 2) ** 2).sum(axis=1)
    xi = np.geomspace(1e-3, 1e3, 2000)
    falls = np.average(1 / (1 + xi[:, None] ** 2 * k2), axis=1, weights=grid.half_weights[first])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = s2 / (s2 + ds.attrs["data_std"] ** 2)
        gains = [ds["gain_on_trajectories"].values, 1 - ds["softening_jackknife"].values * share[:, None]]
        ratio, replicates = (g[..., 1] / g[..., 0] for g in gains)
        value, lengths = (np.interp(-r, -falls, xi, left=np.nan, right=np.nan) for r in (ratio, replicates))
        error = jackknife_error(lengths)
    about = "how far the network looks, sites: second moment of its response, from its two lowest gains"
    return xr.Dataset({
        "response_length": ("level", value, {"long_name": about}),
        "response_length_stderr": ("level", error, {"long_name": "standard error of response_length"}),
    })  # fmt: skip


class _Put:
    """Writes estimates into a dataset, at the levels where they are."""

    def __init__(self, grid: Floats, levels: Floats) -> None:
        self._size, self._at = len(grid), np.searchsorted(-grid, -levels)

    def __call__(self, ds: xr.Dataset, name: str, estimates: Floats, about: str, *dims: str) -> None:
        for suffix, values in (("", estimates[0]), ("_stderr", jackknife_error(estimates[1:]))):
            placed = np.full((self._size, *values.shape[1:]), np.nan)
            placed[self._at] = values
            long = about if not suffix else f"standard error of {name}"
            ds[f"{name}{suffix}"] = (("level", *dims), placed, {"long_name": long})
