r"""What noisy states, or parts of them, tell of the class in a mixture of Gaussians: averages over its posteriors.

A state matters by its components in the space that the means span, and within a class these are normal. What is seen
of a state enters by the products :math:`\mu_c \cdot \mu_d` over the sites seen alone.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit.theory.regions import near_along

Floats = NDArray[np.float64]

# Points of the average over noisy states of each class: a scrambled Sobol sequence, whose error here is about 1e-5.
_POINTS = 2**13


def centred(means: Floats, weights: Floats) -> Floats:
    """Means about their weighted average: the posterior knows differences alone."""
    return means - np.tensordot(weights, means, axes=1)


def posteriors(products: Floats, weights: Floats, total: float, seed: int) -> Floats:
    """Posteriors (classes, points, classes) at noisy states of each class.

    ``products`` (classes, classes) are those of the `centred` means over what is seen; ``total`` is v + s^2.
    """
    sizes, axes = np.linalg.eigh(products)
    kept = sizes > 1e-13 * np.abs(products).max(initial=0.0)
    rank = int(kept.sum())
    if not rank:
        return np.broadcast_to(weights, (len(weights), 1, len(weights)))
    centres = axes[:, kept] * np.sqrt(sizes[kept])  # (classes, rank)
    generator = np.random.default_rng([seed, rank])
    points = scipy.special.ndtri(scipy.stats.qmc.Sobol(rank, seed=generator).random(_POINTS))
    found = []
    for centre in centres:
        states = centre + np.sqrt(total) * points
        energy = (states @ centres.T - 0.5 * (centres**2).sum(axis=1)) / total + np.log(weights)
        found.append(scipy.special.softmax(energy, axis=1))
    return np.stack(found)


def pairs(found: Floats, weights: Floats) -> Floats:
    """E q_c q_d (classes, classes) of `posteriors`."""
    return np.asarray(np.einsum("c,cpa,cpb->ab", weights, found, found, optimize=True) / found.shape[1])


def products(means: Floats, weights: Floats, inside: NDArray[np.bool_] | None = None) -> Floats:
    """Of the centred means of classes (classes, C, H, W), over the sites ``inside`` (H, W) or all."""
    about = centred(means, weights)
    if inside is not None:
        about = about[..., inside]
    flat = about.reshape(len(about), -1)
    return np.asarray(flat @ flat.T)


def class_information(products: Floats, weights: Floats, total: float, seed: int) -> float:
    """Nats that what is seen of a state tells of the class."""
    q = posteriors(products, weights, total, seed)
    left = scipy.special.entr(q).sum(axis=2).mean(axis=1)
    return float(scipy.special.entr(weights).sum() - weights @ left)


def windows_about(shape: tuple[int, ...], radius: int, periodic: bool) -> NDArray[np.bool_]:
    """Which sites are in the square window about each site, (sites, sites)."""
    return functools.reduce(np.kron, (near_along(side, radius, periodic) for side in shape))


def mixture_gap(means: Floats, windows: NDArray[np.bool_], weights: Floats, v: float, s: float, seed: int) -> float:
    r"""E|D_A(y) - D_A(y_W)|^2 averaged over sites A, each with its window W (sites, sites), and over channels.

    :math:`\frac{s^4}{(v + s^2)^2} (E|\sum_c q_c \mu_c|^2 - E|\sum_c q^W_c \mu_c|^2)` at the site, since the first sum
    has the second as its mean given what the window sees.
    """
    classes, C = means.shape[:2]
    flat = centred(means, weights).reshape(classes, C, -1)
    each = np.einsum("cki,dki->icd", flat, flat)  # products at every site
    whole = pairs(posteriors(each.sum(axis=0), weights, v + s**2, seed), weights)
    seen = (windows.astype(np.float64) @ each.reshape(len(windows), -1)).reshape(each.shape)
    # Many windows see the same products: of uniform means all do.
    digits = 12 - int(np.floor(np.log10(np.abs(seen).max() or 1.0)))
    distinct, which = np.unique(seen.round(digits).reshape(len(seen), -1), axis=0, return_inverse=True)
    few = [pairs(posteriors(one.reshape(classes, classes), weights, v + s**2, seed), weights) for one in distinct]
    lost = whole - np.stack(few)[which.ravel()]
    return float((s**2 / (v + s**2)) ** 2 * (lost * each).sum(axis=(1, 2)).mean() / C)
