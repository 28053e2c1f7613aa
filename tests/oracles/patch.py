"""The patch model from its definition, in plain float64 numpy: every patch against every pattern. Nothing shared."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def patches(y, n, periodic=True):
    """(samples, H, W, n, n): the patch around every site."""
    half = n // 2
    padded = np.pad(y, ((0, 0), (half, half), (half, half)), mode="wrap" if periodic else "constant")
    return np.lib.stride_tricks.sliding_window_view(padded, (n, n), axis=(1, 2))


def weights(patterns, prior, y, s, periodic=True):
    """Posterior weights (samples, H, W, P)."""
    n = patterns.shape[1]
    views = patches(np.asarray(y, dtype=np.float64), n, periodic)
    distance = np.stack([((views - p) ** 2).sum(axis=(-2, -1)) for p in patterns], axis=-1)
    log_w = np.log(prior) - distance / (2 * s**2)
    w = np.exp(log_w - log_w.max(axis=-1, keepdims=True))
    return w / w.sum(axis=-1, keepdims=True)


def denoise(patterns, prior, y, s, periodic=True):
    n = patterns.shape[1]
    return weights(patterns, prior, y, s, periodic) @ patterns[:, n // 2, n // 2]


def denoise_by_site(images, prior, y, s, n, periodic=False):
    """Position-specific: at site i, image mu is compared over the window around i only."""
    half = n // 2
    mode = "wrap" if periodic else "constant"
    out = np.empty(np.shape(y))
    _, height, width = images.shape
    for j, state in enumerate(np.asarray(y, dtype=np.float64)):
        square = np.pad((state - images) ** 2, ((0, 0), (half, half), (half, half)), mode=mode)
        distance = np.zeros_like(images)
        for a in range(n):
            for b in range(n):
                distance += square[:, a : a + height, b : b + width]
        log_w = np.log(prior)[:, None, None] - distance / (2 * s**2)
        w = np.exp(log_w - log_w.max(axis=0))
        out[j] = (w * images).sum(axis=0) / w.sum(axis=0)
    return out


def sample(patterns, prior, shape, n_samples, levels, solver, rng, initial=None, denoiser=None):
    """Reverse process by the definitions of the three solvers, with numpy's random numbers."""
    D = denoiser or (lambda y, s: denoise(patterns, prior, y, s))
    y = levels[0] * rng.standard_normal((n_samples, *shape)) if initial is None else np.array(initial, dtype=np.float64)
    for s, t in pairwise(levels):
        if solver == "sde":
            d = D(y, s)
            noise = rng.standard_normal(y.shape)
            y = d + (t / s) ** 2 * (y - d) + t * np.sqrt(1 - (t / s) ** 2) * noise
        else:
            slope = (y - D(y, s)) / s
            end = y + (t - s) * slope
            if solver == "heun" and t > 0:
                slope = 0.5 * (slope + (end - D(end, t)) / t)
                end = y + (t - s) * slope
            y = end
    return y
