r"""The response by distance of a mixture of Gaussians, from the posterior of the class at given or at all states.

.. math:: J = \frac{v}{v + s^2} 1 + \frac{s^2}{(v + s^2)^2} \mathrm{Cov}_q(\mu)

with the posterior q of the class. Averages over sites are correlations of the means, which states do not change: what
is averaged over states are products of q.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._estimates.response_function import ResponseFunction, exact_response
from fastcrit._kernels.lattice import lattice

Floats = NDArray[np.float64]

# Squares take all fourth products of posteriors: so many classes have 10^4 to 10^5 of them.
_MOST_CLASSES = 16


def response_at_states(means: Floats, v: float, s: float, posteriors: Floats) -> ResponseFunction:
    """At states whose classes have ``posteriors`` (states, classes)."""
    M = _covariances(posteriors)
    fourth = (np.outer(m, m) for m in M.reshape(len(M), -1))
    return _response(means, v, s, M, fourth if len(means) <= _MOST_CLASSES else None)


def response_at_all_states(means: Floats, v: float, s: float, weights: Floats, posteriors: Floats) -> ResponseFunction:
    """Averaged over groups of states with ``weights`` (groups,) and ``posteriors`` (groups, points, classes)."""
    classes = len(means)
    M = np.zeros((classes, classes))
    fourth = np.zeros((classes**2, classes**2)) if classes <= _MOST_CLASSES else None
    for weight, q in zip(weights, posteriors, strict=True):
        M += weight * (np.diag(q.mean(axis=0)) - q.T @ q / len(q))
        if fourth is not None:
            pairs = _covariances(q).reshape(len(q), -1)
            fourth += weight * (pairs.T @ pairs) / len(q)
    return _response(means, v, s, M[None], None if fourth is None else [fourth])


def _covariances(q: Floats) -> Floats:
    """M with Cov_q = sum_cd M_cd mu_c mu_d^T, (states, classes, classes)."""
    return np.asarray(q[:, :, None] * np.eye(q.shape[1]) - q[:, :, None] * q[:, None])


def _response(means: Floats, v: float, s: float, M: Floats, fourth: Iterable[Floats] | None) -> ResponseFunction:
    """From M and the products M_cd M_ef (classes^2, classes^2) of every state, or their averages as one."""
    classes, C, *sides = means.shape
    shape, axes = tuple(sides), tuple(range(-len(sides), 0))
    half, here = (*shape[:-1], shape[-1] // 2 + 1), (0,) * len(shape)
    own, pull = v / (v + s**2), s**2 / (v + s**2) ** 2
    means = means - means.mean(axis=0)  # differences alone count, and are smaller
    modes = scipy.fft.rfftn(means, axes=axes).reshape(classes, C, -1)
    # Output channel a at i, input channel b at i + r.
    spectra = np.einsum("ncd,cak,dbk->nabk", M, np.conj(modes), modes, optimize=True)
    response = scipy.fft.irfftn(spectra.reshape(len(M), C, C, *half), s=shape, axes=axes) * (pull / math.prod(shape))
    variance = np.trace(response, axis1=1, axis2=2)[(slice(None), *here)] / C
    for c in range(C):
        response[(slice(None), c, c, *here)] += own
    square = np.full((len(M), *shape), np.nan)
    if fourth is not None:
        # Cov_q(i, j)^2 = sum M_cd M_ef (mu_c mu_e)(i) (mu_d mu_f)(j), products summed over channels.
        products = scipy.fft.rfftn(np.einsum("ca...,ea...->ce...", means, means), axes=axes)
        products = products.reshape(classes, classes, -1)
        for n, one in enumerate(fourth):
            tensor = one.reshape((classes,) * 4)
            spectrum = np.einsum("cdef,cek,dfk->k", tensor, np.conj(products), products, optimize=True)
            square[n] = scipy.fft.irfftn(spectrum.reshape(half), s=shape, axes=axes)
        square *= pull**2 / (C * math.prod(shape))
        square.reshape(len(M), -1)[:, 0] += own**2 + 2 * own * variance
    return exact_response(lattice(shape), s, response, square)
