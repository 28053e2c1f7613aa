"""How patches of two draws from one posterior of a mixture of Gaussians change together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def changes_together(means: Floats, pairs: Floats, v: float, s: float, patch: int) -> float:
    r"""Susceptibility :math:`\sum_{ij} C_{ij}/\sum_i C_{ii}` of the square changes of patches (side ``patch``).

    ``pairs`` (classes, classes) is the chance that the two draws are of these classes; means (classes, C, H, W).
    """
    classes, C, H, W = means.shape
    apart = (means[:, None] - means[None]) ** 2
    square = apart.reshape(classes, classes, C, H // patch, patch, W // patch, patch).mean(axis=(2, 4, 6))
    square = square.reshape(classes, classes, -1)  # of the means' difference, by patches
    weight = pairs[..., None]
    ratio = s**2 / (v + s**2)
    change, spread = ratio**2 * square + 2 * v * ratio, 2 * v * ratio
    # The variance of a mean over a patch's values (m + sqrt(spread) z)^2, of the pairs' average.
    own = (weight * (4 * spread * ratio**2 * square + 2 * spread**2)).sum(axis=(0, 1)) / (C * patch**2)
    each = (weight * change**2).sum(axis=(0, 1)) - (weight * change).sum(axis=(0, 1)) ** 2
    whole = change.sum(axis=2)[..., None]
    together = (weight * whole**2).sum() - (weight * whole).sum() ** 2
    return float((together + own.sum()) / (each + own).sum())
