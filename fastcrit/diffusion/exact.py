"""Denoisers that are known exactly: of patch models, Gaussian data and mixtures of Gaussians. The null cases."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastcrit._edge.arrays import check_choice
from fastcrit.diffusion.denoiser import Denoiser, Level, _column
from fastcrit.patch.dictionary import Dictionary, lattice_shape
from fastcrit.theory.gaussian import GaussianTheory
from fastcrit.theory.mixture import GaussianMixture


def from_patch(
    dictionary: Dictionary, lattice: int | tuple[int, int] | None = None, *, boundary: str = "periodic"
) -> Denoiser:
    """The patch model in torch, differentiable: D_i = sum over patterns of w(i) times their centre pixel.

    For sampling, `fastcrit.patch.sample` is faster by far; this one has derivatives and any device.

    Parameters
    ----------
    dictionary : Dictionary
        Equivariant.
    lattice : int or (int, int), optional
        Default: any that the states bring.
    boundary : "periodic" or "zero"

    Raises
    ------
    ValueError
        A position-specific dictionary.
    """
    check_choice(boundary, ("periodic", "zero"), "boundary")
    if not isinstance(dictionary, Dictionary):
        raise TypeError(f"dictionary: expected a fastcrit.patch.Dictionary, got {type(dictionary).__name__}")
    if dictionary.position_specific:
        raise ValueError("dictionary: expected an equivariant one; fastcrit.patch.sample runs the position-specific")
    half = dictionary.size // 2
    patterns = torch.from_numpy(np.array(dictionary.patterns, dtype=np.float64))
    log_prior = torch.from_numpy(np.log(dictionary.prior))
    mode = "circular" if boundary == "periodic" else "constant"

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        if y.shape[1] != 1 or (mode == "circular" and min(y.shape[2:]) < dictionary.size):
            raise ValueError(
                f"y: expected one channel and sides of at least {dictionary.size}, the patch's, got {tuple(y.shape)}"
            )
        taps = patterns.to(y)
        column = _column(s, y)
        padded = torch.nn.functional.pad(y, (half,) * 4, mode=mode)
        overlap = torch.nn.functional.conv2d(padded, taps[:, None])
        bias = log_prior.to(y)[:, None, None]
        weights = torch.softmax((overlap - taps.square().sum((1, 2))[:, None, None] / 2) / column**2 + bias, dim=1)
        out: Tensor = torch.einsum("bphw,p->bhw", weights, taps[:, half, half])
        return out[:, None]

    shape = None if lattice is None else (1, *lattice_shape(dictionary, lattice))
    return Denoiser(denoise, name="patch model", shape=shape)


def from_gaussian(theory: GaussianTheory) -> Denoiser:
    """The Wiener filter P/(P + s^2) of Gaussian data: exact, the null case of every statistic."""
    if not isinstance(theory, GaussianTheory):
        raise TypeError(f"theory: expected a fastcrit.theory.GaussianTheory, got {type(theory).__name__}")
    side = theory.spectrum.shape
    axes = tuple(range(-len(side), 0))
    half = torch.from_numpy(np.ascontiguousarray(theory.spectrum[..., : side[-1] // 2 + 1]))

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        y = y if y.dtype == torch.float64 else y.float()  # transforms know no half precision
        P = half.to(y)
        response = P / (P + _column(s, y, len(side) + 2) ** 2)
        out: Tensor = torch.fft.irfftn(response * torch.fft.rfftn(y, dim=axes), s=side, dim=axes)
        return out

    return Denoiser(denoise, name="Wiener filter", shape=(1, *side))


def from_mixture(model: GaussianMixture) -> Denoiser:
    """The exact denoiser of a mixture of Gaussians, with class labels and without: the null case of guidance."""
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"model: expected a fastcrit.theory.GaussianMixture, got {type(model).__name__}")
    means, log_weights = torch.from_numpy(model.means), torch.from_numpy(np.log(model.weights))

    def denoise(y: Tensor, s: Level, labels: Tensor | None) -> Tensor:
        y64 = y.double()
        mean = means.to(y.device)
        total = model.std**2 + _column(s, y64, 4) ** 2
        if labels is None:
            # |y - mu|^2 without |y|^2, which all classes share.
            energy = y64.flatten(1) @ mean.flatten(1).T - 0.5 * mean.flatten(1).square().sum(dim=1)
            posterior = torch.softmax(energy / total.reshape(-1, 1) + log_weights.to(y.device), dim=1)
            center = torch.einsum("nc,cijk->nijk", posterior, mean)
        else:
            center = mean[labels]
        return center + model.std**2 / total * (y64 - center)

    return Denoiser(
        denoise, name="mixture of Gaussians", shape=model.means.shape[1:], classes=len(model.means), unlabelled=True
    )
