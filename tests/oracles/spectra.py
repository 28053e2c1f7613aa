"""Slow float64 definitions: direct Fourier sums, shells by looping over wavevectors. No FFT, nothing from fastcrit."""

from __future__ import annotations

import numpy as np


def direct_dft(field):
    """phi^(k) = sum_x phi(x) exp(-i k x) over the last axes, all modes, as products with the full DFT matrices."""
    out = np.asarray(field, dtype=np.float64).astype(np.complex128)
    for axis, side in enumerate(out.shape):
        n = np.arange(side)
        # The product modulo the side keeps the angle small, and with it the rounding of exp.
        matrix = np.exp(-2j * np.pi * (np.outer(n, n) % side) / side)
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return out


def wavevectors(shape):
    """(N1, .., Nd, d) wavevectors in rad per site, signed."""
    axes = []
    for side in shape:
        n = np.arange(side)
        axes.append(2 * np.pi * np.where(2 * n > side, n - side, n) / side)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def shell_numbers(shape):
    """Shell of every mode: |k| over the largest fundamental, to the nearest integer, ties up."""
    k = np.sqrt((wavevectors(shape) ** 2).sum(axis=-1))
    number = np.floor(k / (2 * np.pi / smallest_side(shape)) + 0.5 + 1e-9).astype(int)
    return np.where(k > 0, np.maximum(number, 1), 0)  # k = 0 is alone in its shell


def smallest_side(shape):
    """Smallest side of more than one site: an axis of one site has no wavelength."""
    return min([side for side in shape if side > 1], default=1)


def shell_average(values, corners=False):
    """(k, mean, counts) of values on the full lattice of modes."""
    shape = values.shape
    number = shell_numbers(shape)
    length = np.sqrt((wavevectors(shape) ** 2).sum(axis=-1))
    dk = 2 * np.pi / smallest_side(shape)
    k, mean, counts = [], [], []
    for shell in sorted(set(number.ravel().tolist())):
        if not corners and shell * dk > np.pi * (1 + 1e-9):
            continue
        inside = number == shell
        k.append(length[inside].mean())
        mean.append(values[inside].mean())
        counts.append(int(inside.sum()))
    return np.array(k), np.array(mean), np.array(counts)


def power_spectrum(field, corners=False):
    """(k, power, counts) of one field."""
    return shell_average(np.abs(direct_dft(field)) ** 2 / np.size(field), corners)


def autocorrelation(field, periodic=True):
    """(r, C, pairs) of one field by summing over pairs of sites, lags up to half the smallest side."""
    x = np.asarray(field, dtype=np.float64)
    shape = x.shape
    sums, pairs, lengths, vectors = {}, {}, {}, {}
    reach = [range(side) if periodic else range(-side + 1, side) for side in shape]
    for lag in np.array(np.meshgrid(*reach, indexing="ij")).reshape(len(shape), -1).T:
        if periodic:
            signed = [n - side if 2 * n > side else n for n, side in zip(lag, shape, strict=True)]
            product = x * np.roll(x, [-n for n in lag], axis=tuple(range(len(shape))))
        else:
            signed = lag
            first = tuple(slice(max(0, -n), min(side, side - n)) for n, side in zip(lag, shape, strict=True))
            second = tuple(slice(max(0, n), min(side, side + n)) for n, side in zip(lag, shape, strict=True))
            product = x[first] * x[second]
        r = float(np.sqrt(sum(float(n) ** 2 for n in signed)))
        shell = int(np.floor(r + 0.5 + 1e-9))
        if shell > smallest_side(shape) // 2:
            continue
        sums[shell] = sums.get(shell, 0.0) + product.sum()
        pairs[shell] = pairs.get(shell, 0) + product.size
        lengths[shell] = lengths.get(shell, 0.0) + r
        vectors[shell] = vectors.get(shell, 0) + 1
    order = sorted(sums)
    return (
        np.array([lengths[i] / vectors[i] for i in order]),
        np.array([sums[i] / pairs[i] for i in order]),
        np.array([vectors[i] for i in order]),
    )
