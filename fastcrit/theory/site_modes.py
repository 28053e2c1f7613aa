"""The largest eigenvalue of a patch model's response: of a plane wave, or, where sites differ, by iteration."""

from __future__ import annotations

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit.patch.dictionary import Dictionary

Floats = NDArray[np.float64]


def softest_wave(
    covariance: Floats, offsets: NDArray[np.int64], lattice: tuple[int, int]
) -> tuple[float, tuple[float, ...]]:
    """max_k Re C^(k) over the lattice's modes, and the wavevector; among equals the one of smallest |k|.

    Of the ``covariance`` (n, n) of the centre with the pixels at ``offsets`` (n^2, 2).
    """
    kernel = np.zeros(lattice)
    np.add.at(kernel, tuple(offsets.T % np.array(lattice)[:, None]), covariance.ravel())
    spectrum = np.fft.fft2(kernel).real
    k = [2.0 * np.pi * np.fft.fftfreq(side) for side in lattice]
    length = np.hypot(*np.meshgrid(*k, indexing="ij"))
    best = spectrum.max()
    # Equal up to the rounding of a sum over the patch.
    tied = spectrum >= best - 1e-12 * np.abs(covariance).sum()
    at = np.unravel_index(np.argmin(np.where(tied, length, np.inf)), spectrum.shape)
    return float(best), (abs(float(k[0][at[0]])), float(k[1][at[1]] * (1 if k[0][at[0]] >= 0 else -1)) + 0.0)


def largest_eigenvalue_by_site(dictionary: Dictionary, s: float) -> float:
    """Of a position-specific dictionary's response at y = 0 and level s, by an iterative solver."""
    images = dictionary.patterns
    _, height, width = images.shape
    half = dictionary.size // 2
    rows = _window_matrix(height, half)
    columns = _window_matrix(width, half)

    def box(x: Floats) -> Floats:  # sums over each site's patch, cut at the border
        return np.asarray(rows @ x @ columns)

    log_w = np.log(dictionary.prior)[:, None, None] - box(images**2) / (2.0 * s**2)
    w = np.exp(log_w - log_w.max(axis=0))
    w /= w.sum(axis=0)
    centred = images - (w * images).sum(axis=0)
    coupling = w * centred

    def apply(v: Floats) -> Floats:
        # Cov_i(x_i, sum_j x_j v_j) over the patch of i; the mean of the second factor drops out against `centred`.
        return np.asarray((coupling * box(images * v.reshape(height, width))).sum(axis=0).ravel() / s**2)

    n = height * width
    if n < 4:  # ARPACK needs room for its basis
        dense = np.stack([apply(e) for e in np.eye(n)], axis=1)
        return float(np.linalg.eigvals(dense).real.max())
    # Fixed, so that the result does not vary between calls; random, so that no symmetry of the images confines it.
    start = np.random.default_rng(0).standard_normal(n)
    if not apply(start).any():
        return 0.0  # a single image, or the same one over and over: nothing responds
    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=apply, dtype=np.float64)
    found = scipy.sparse.linalg.eigs(operator, k=1, which="LR", v0=start, return_eigenvectors=False)
    return float(found.real.max())


def _window_matrix(side: int, half: int) -> Floats:
    i = np.arange(side)
    return np.asarray(np.abs(i[:, None] - i[None, :]) <= half, dtype=np.float64)
