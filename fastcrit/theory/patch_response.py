"""The response by distance of a patch model: at y = 0, or at states, from the posterior covariance of each patch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import to_real
from fastcrit._estimates.response_function import ResponseFunction, exact_response
from fastcrit._kernels.lattice import lattice
from fastcrit.patch.dictionary import Dictionary

Floats = NDArray[np.float64]


def patch_response(covariance: Floats, s: float, shape: tuple[int, int]) -> ResponseFunction:
    """At a homogeneous state, with ``covariance`` (n, n) of the centre with each pixel under the posterior."""
    return _summary(np.broadcast_to(covariance / s**2, (1, 1, 1, *covariance.shape)), s, shape)


def patch_response_at(dictionary: Dictionary, y: Any, s: float, shape: tuple[int, int]) -> ResponseFunction:
    """At periodic states (states, *shape)."""
    states = to_real(y, "y").astype(np.float64)
    if states.ndim != 3 or states.shape[1:] != shape or not len(states):
        raise ValueError(f"y: expected states (n, *{shape}), got shape {states.shape}")
    finite = np.isfinite(states).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"y: NaN or infinite values in state {int(np.argmin(finite))}")
    n, half = dictionary.size, dictionary.size // 2
    flat = dictionary.patterns.reshape(len(dictionary), -1)
    center = flat[:, flat.shape[1] // 2]
    bias = np.log(dictionary.prior) - (flat**2).sum(axis=1) / (2.0 * s**2)
    kernels = []
    for state in states:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(state, half, mode="wrap"), (n, n))
        energy = windows.reshape(*state.shape, -1) @ (flat.T / s**2) + bias
        w = np.exp(energy - energy.max(axis=-1, keepdims=True))
        w /= w.sum(axis=-1, keepdims=True)
        # Cov(x_c, x_j): the mean of x_j drops out against the centred factor.
        coupling = w * (center - (w @ center)[..., None])
        kernels.append((coupling @ flat).reshape(*state.shape, n, n) / s**2)
    return _summary(np.stack(kernels), s, shape)


def _summary(kernels: Floats, s: float, shape: tuple[int, int]) -> ResponseFunction:
    """From dD_i/dy_(i+j-c) (states, rows, columns, n, n) at all sites i, or at one that stands for them."""
    n, half = kernels.shape[-1], kernels.shape[-1] // 2
    response, square = np.zeros((2, len(kernels), *shape))
    apart = 0.0
    for a in range(n):
        for b in range(n):
            one, lag = kernels[..., a, b], ((a - half) % shape[0], (b - half) % shape[1])
            response[:, *lag] = one.mean(axis=(1, 2))
            square[:, *lag] = (one**2).mean(axis=(1, 2))
            # dD_j/dy_i at the j that is a - half, b - half away: from its own kernel, mirrored.
            mirrored = np.roll(kernels[..., n - 1 - a, n - 1 - b], (half - a, half - b), axis=(1, 2))
            apart += float(((one - mirrored) ** 2).mean())
    whole = float(square.sum(axis=(1, 2)).mean())
    asymmetry = np.sqrt(apart / whole) if whole > 0 else float("nan")
    return exact_response(lattice(shape), s, response[:, None, None], square, asymmetry)
