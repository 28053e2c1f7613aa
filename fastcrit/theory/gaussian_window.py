"""Gaussian data seen through a window: the best filter of it, what it tells, and what is lost without the rest."""

from __future__ import annotations

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit.theory.regions import near_along

Floats = NDArray[np.float64]


def window_about_zero(shape: tuple[int, ...], radius: int) -> NDArray[np.bool_]:
    """Sites of the torus that are no further than ``radius`` from the first on any axis."""
    near = [near_along(side, radius, periodic=True)[0] for side in shape]
    return np.asarray(np.logical_and.reduce(np.meshgrid(*near, indexing="ij")))


def window_filter(P: Floats, s: float, radius: int) -> Floats:
    """The weights w (N1 .. Nd), 0 beyond the window, of E[x_0 | y in the window] = sum_r w_r y_r."""
    inside = window_about_zero(P.shape, radius)
    covariance = _covariance(P, inside)
    w = np.zeros(P.shape)
    w[inside] = scipy.linalg.solve(covariance + s**2 * np.eye(len(covariance)), covariance[0], assume_a="pos")
    return w


def region_information(P: Floats, s: float, inside: NDArray[np.bool_]) -> float:
    """I(x_R; y_R) in nats."""
    covariance = _covariance(P, inside) / s**2
    return float(0.5 * np.linalg.slogdet(covariance + np.eye(len(covariance))).logabsdet)


def exact_gap(P: Floats, s: float, radius: int) -> float:
    """mmse(x_0 | window) - mmse(x_0 | y), as the mean square by which the two filters differ."""
    whole = np.fft.fftn(window_filter(P, s, radius))
    return float(((P + s**2) * np.abs(whole - P / (P + s**2)) ** 2).mean())


def resampled_gap(P: Floats, s: float, radius: int) -> float:
    """2 tr(W S W^T) with W the whole filter beyond the window and S the covariance of states there."""
    w = np.fft.ifftn(P / (P + s**2)).real
    beyond = np.fft.fftn(np.where(window_about_zero(P.shape, radius), 0.0, w))
    return float(2.0 * ((P + s**2) * np.abs(beyond) ** 2).mean())


def _covariance(P: Floats, inside: NDArray[np.bool_]) -> Floats:
    """Of the sites inside, in the order of a mask; the first of them, of a window about zero, is zero."""
    sites = np.argwhere(inside)
    apart = (sites[:, None] - sites[None]) % np.array(P.shape)
    return np.asarray(np.fft.ifftn(P).real[tuple(np.moveaxis(apart, -1, 0))])
