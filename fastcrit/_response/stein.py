r"""The mean response without a derivative: E dD_i/dy_j = E[D_i n_j]/s on states y = x0 + s n (Stein's lemma).

What is known to respond exactly may be taken off D first, and its response put back: it carries most of the noise of
the average, and none of its mean. Here that is a constant field and a convolution of y, fitted to other states than
those they are taken off, which keeps the average unbiased.
"""

from __future__ import annotations

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._estimates.response_function import by_distance
from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

# Groups of states: what is taken off one is fitted to all others.
_FOLDS = 8


def stein_samples(grid: Lattice, D: Floats, y: Floats, noise: Floats, s: float) -> tuple[Floats, Floats]:
    """Matrices (states, shells, C, C) and moments (states, 2) from D, y and n (states, C, N1 .. Nd) at level s."""
    axes = tuple(range(-grid.ndim, 0))
    taken = _known_part(grid, D, y, s)
    shells, moments = [], []
    for i in range(len(D)):
        constant, kernel = (part[i % len(part)] for part in taken)
        rest = _modes(grid, D[i]) - constant - kernel * _modes(grid, y[i])
        product = np.conj(rest)[:, None] * _modes(grid, noise[i])
        response = scipy.fft.irfftn(product, s=grid.shape, axes=axes) / (grid.sites * s)
        own = np.arange(len(rest))
        response[own, own] += scipy.fft.irfftn(kernel, s=grid.shape, axes=axes)
        shell, moment = by_distance(grid, response)
        shells.append(shell)
        moments.append(moment)
    return np.stack(shells), np.stack(moments)


def _known_part(grid: Lattice, D: Floats, y: Floats, s: float) -> tuple[Complex, Floats]:
    """For each fold a constant (C, modes) and a kernel (modes), in numpy's rfftn layout, fitted to all other folds.

    The kernel is the least-squares one of each orbit, about the means, of all channels alike.
    """
    states, C = D.shape[:2]
    folds = min(states, _FOLDS)
    count = np.bincount(np.arange(states) % folds, minlength=folds)
    half = (*grid.shape[:-1], grid.shape[-1] // 2 + 1)
    of_D, of_y = np.zeros((2, folds, C, *half), dtype=complex)
    cross, power = np.zeros((2, folds, len(grid.orbit_k)))
    for i in range(states):
        a, b = _modes(grid, D[i]), _modes(grid, y[i])
        of_D[i % folds] += a
        of_y[i % folds] += b
        cross[i % folds] += _orbit_sums(grid, (a * np.conj(b)).real)
        power[i % folds] += _orbit_sums(grid, np.abs(b) ** 2)
    constants, kernels = np.zeros_like(of_D), np.zeros((folds, *half))
    for fold in range(folds) if folds > 1 else ():
        n = states - count[fold]
        mean_D, mean_y = ((x.sum(axis=0) - x[fold]) / n for x in (of_D, of_y))
        about = cross.sum(axis=0) - cross[fold] - n * _orbit_sums(grid, (mean_D * np.conj(mean_y)).real)
        whole = power.sum(axis=0) - power[fold] - n * _orbit_sums(grid, np.abs(mean_y) ** 2)
        # Of few states that may happen to vanish; so much noise is in one.
        least = s**2 * grid.sites * C * grid.orbit_modes
        kernels[fold] = grid.to_full(about / (np.maximum(whole, 0.0) + least))
        constants[fold] = mean_D - kernels[fold] * mean_y
    return constants, kernels


def _modes(grid: Lattice, fields: Floats) -> Complex:
    """Transforms (C, modes) in numpy's rfftn layout, in double precision."""
    return np.asarray(scipy.fft.rfftn(fields.astype(np.float64), axes=tuple(range(-grid.ndim, 0))))


def _orbit_sums(grid: Lattice, values: Floats) -> Floats:
    """Sums over channels and the modes of each orbit, of values (C, modes) that k and -k share."""
    last_first = np.moveaxis(values.sum(axis=0), -1, 0).ravel()
    weights = last_first * grid.half_weights
    return np.asarray(np.bincount(grid.orbit_of_mode, weights, minlength=len(grid.orbit_k)), dtype=np.float64)
