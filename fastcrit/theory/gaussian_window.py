"""Gaussian data seen through a window: the best filter of it, and what is lost without the rest."""

from __future__ import annotations

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def window_about_zero(shape: tuple[int, ...], radius: int) -> NDArray[np.bool_]:
    """Sites of the torus that are no further than ``radius`` from the first on any axis."""
    near = [np.minimum(np.arange(side), side - np.arange(side)) <= radius for side in shape]
    return np.asarray(np.logical_and.reduce(np.meshgrid(*near, indexing="ij")))


def window_filter(P: Floats, s: float, radius: int) -> Floats:
    """The weights w (N1 .. Nd), 0 beyond the window, of E[x_0 | y in the window] = sum_r w_r y_r."""
    inside = window_about_zero(P.shape, radius)
    sites = np.argwhere(inside)
    apart = (sites[:, None] - sites[None]) % np.array(P.shape)
    C = np.fft.ifftn(P).real
    covariance = C[tuple(np.moveaxis(apart, -1, 0))] + s**2 * np.eye(len(sites))
    w = np.zeros(P.shape)
    w[inside] = scipy.linalg.solve(covariance, C[inside], assume_a="pos")
    return w


def exact_gap(P: Floats, s: float, radius: int) -> float:
    """mmse(x_0 | window) - mmse(x_0 | y), as the mean square by which the two filters differ."""
    whole = np.fft.fftn(window_filter(P, s, radius))
    return float(((P + s**2) * np.abs(whole - P / (P + s**2)) ** 2).mean())


def resampled_gap(P: Floats, s: float, radius: int) -> float:
    """2 tr(W S W^T) with W the whole filter beyond the window and S the covariance of states there."""
    w = np.fft.ifftn(P / (P + s**2)).real
    beyond = np.fft.fftn(np.where(window_about_zero(P.shape, radius), 0.0, w))
    return float(2.0 * ((P + s**2) * np.abs(beyond) ** 2).mean())
