"""What a study asks of its networks before it begins, and what it says of them at its end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser
    from fastcrit.diffusion.guidance import Weight

Floats = NDArray[np.float64]

# States by which a flow network's time and sign are looked at, and values that they have at most together.
_STATES, _VALUES = 16, 2**22


def check_guides(weight: Weight, levels: Floats, names: str) -> None:
    """ValueError unless ``weight``, made of the arguments of these names, guides at one of the levels at least."""
    if bool((np.asarray(weight(levels)) == 1.0).all()):
        spread = f"{len(levels)} levels from {levels[0]:.4g} to {levels[-1]:.4g}"
        raise ValueError(f"{names}: none of the {spread} is guided; expected another place, a wider one or more levels")


def check_leads_away(D: Denoiser, guide: Denoiser | None) -> None:
    """ValueError for a guide that is the network itself, with the same labels: guidance would do nothing."""
    if guide is not None and not guide.unlabelled and guide.card["sha256"] == D.card["sha256"]:
        raise ValueError(f"guide: {guide.name} is {D.name} itself, and guidance away from it does nothing")


def convention_of_flow(D: Denoiser, labels: Any, level: float, seed: int) -> str | None:
    """What is wrong with time or sign of a flow network, where its run begins; None where nothing is to be seen.

    ``labels`` of 16 samples or more, or None.
    """
    from fastcrit.diffusion import sample
    from fastcrit.diffusion._beginning import wrong_convention

    if D.flow is None:
        return None
    assert D.shape is not None
    n = max(1, min(_STATES, _VALUES // int(np.prod(D.shape))))
    if labels is not None:
        n = min(n, len(labels))
        labels = labels[:n]
    import torch

    y = sample(D, labels, n, [level], "euler", seed)
    with torch.no_grad():
        return wrong_convention(D, y, D(y, level, labels), level)


def data_std_of(moments: NDArray[np.float64], level: float) -> float:
    """Standard deviation of the data, from states of a level and their denoised images.

    ``moments`` (2, 3): number of values, their sum and that of their squares, of both. The states' variance without
    that of the noise is the data's; where the noise is as large as that, the images' is the better bound.
    """
    n, total, squares = moments.T
    variances = squares / n - (total / n) ** 2
    return math.sqrt(max(float(variances[0]) - level**2, float(variances[1])))


def moments_of(values: Any) -> NDArray[np.float64]:
    """Number, sum and sum of squares of a tensor's or array's values: for `data_std_of`."""
    wide = values.double() if hasattr(values, "double") else np.asarray(values, np.float64)
    return np.array([float(np.prod(values.shape)), float(wide.sum()), float((wide * wide).sum())])
