"""What Gaussian data with the spectrum of the images would respond with: the bound on a network's gains."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._estimates.averages import jackknife_error
from fastcrit._kernels.lattice import lattice
from fastcrit.modes import gaussian_bound
from fastcrit.theory.gaussian import GaussianTheory

Floats = NDArray[np.float64]


def data_bound(
    images: NDArray[np.float32], levels: Any, shells: Any, shift: int | None = None
) -> tuple[Floats, Floats]:
    """Gaussian bound (levels, shells) of images (n, H, W): P/(P + s^2) of every mode, averaged over each shell.

    With ``shift``, of the images at every place that multiples of it reach on the torus. Second: its standard error, by
    a jackknife over 20 parts of the images.
    """
    grid = lattice(tuple(images.shape[1:]))
    half = np.moveaxis(np.fft.rfft2(images - mean_image(images, shift)), -1, 1).reshape(len(images), -1)
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


def gaussian_gap(images: NDArray[np.float32], levels: Any, radii: Any, shift: int | None = None) -> Floats:
    """Resampled locality gap (levels, radii) of Gaussian data with the spectrum of images (n, H, W), as they lie."""
    square = np.abs(np.fft.fft2(images - mean_image(images, shift))) ** 2
    theory = GaussianTheory(square.sum(axis=0) / (images[0].size * (len(images) - 1)))
    return np.array([[theory.locality_gap(s, int(r), method="resampled") for r in radii] for s in levels])


def mean_image(images: NDArray[np.float32], shift: int | None) -> Floats:
    """Mean of images (n, H, W), with ``shift`` of the images at every place that multiples of it reach on the torus."""
    mean = images.mean(axis=0, dtype=np.float64)
    if shift is not None:
        H, W = (side // shift for side in mean.shape)
        mean = np.tile(mean.reshape(H, shift, W, shift).mean(axis=(0, 2)), (H, W))
    return np.asarray(mean)
