"""A mixture of Gaussians, one for each class: denoisers with and without labels, and the posterior of the class, exact.

The null case of guidance: here it is known at which noise level the class is decided.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_integer, check_positive, to_numbers, to_real

Floats = NDArray[np.float64]


class GaussianMixture:
    r"""Data N(mean of the class, std^2) on every site, independent between sites; classes drawn with their weights.

    At noise level s the states of class c are N(:math:`\mu_c`, :math:`v + s^2`), v = std^2, so that

    .. math:: D_c = \mu_c + \frac{v}{v + s^2}(y - \mu_c), \quad
              D_\emptyset = \sum_c p(c|y; s) D_c, \quad p(c|y; s) \propto \pi_c e^{-|y - \mu_c|^2 / 2(v + s^2)}

    Parameters
    ----------
    means : array (classes, C, H, W)
    std : float
    weights : (classes,), optional
        Positive, made to sum to 1. Default: equal.

    Raises
    ------
    ValueError
        Fewer than two classes, values that are not finite, weights that do not fit.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> model = fc.theory.GaussianMixture(np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4)), std=0.5)
    >>> model.posterior(np.ones((1, 1, 4, 4)), 2.0).round(3).tolist()  # log odds 2 * 16 / (0.25 + 4)
    [[0.001, 0.999]]
    """

    def __init__(self, means: Any, std: float, weights: Any = None) -> None:
        self.means = np.array(to_real(means, "means"), dtype=np.float64)  # a copy: the caller may go on with theirs
        if self.means.ndim != 4 or len(self.means) < 2 or self.means.size == 0:
            raise ValueError(f"means: expected shape (classes, C, H, W), two classes or more, got {self.means.shape}")
        if not np.isfinite(self.means).all():
            raise ValueError("means: NaN or infinite values")
        self.std = check_positive(std, "std")
        given = np.ones(len(self.means)) if weights is None else to_numbers(weights, "weights")
        if given.shape != (len(self.means),) or not (np.isfinite(given) & (given > 0)).all():
            raise ValueError(f"weights: expected {len(self.means)} positive numbers, got {weights!r}")
        self.weights = given / given.sum()

    @property
    def class_entropy(self) -> float:
        """H(Y) in nats."""
        return float(-(self.weights * np.log(self.weights)).sum())

    def sample_data(self, n: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
        """``n`` exact samples (n, C, H, W) and their classes."""
        rng = np.random.default_rng(seed)
        labels = rng.choice(len(self.means), size=check_integer(n, "n", 1), p=self.weights)
        return self.means[labels] + self.std * rng.standard_normal((n, *self.means.shape[1:])), labels

    def posterior(self, y: Any, s: float) -> Floats:
        """p(class | y; s) (n, classes) of states (n, C, H, W); ``s`` may be 0."""
        states = to_real(y, "y").astype(np.float64)
        if states.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"y: expected states (n, *{self.means.shape[1:]}), got {states.shape}")
        if not np.isfinite(states).all():
            raise ValueError("y: NaN or infinite values")
        if not len(states):
            return np.zeros((0, len(self.means)))
        points, means = states.reshape(len(states), -1), self.means.reshape(len(self.means), -1)
        # |y - mu|^2 without |y|^2, which all classes share.
        with np.errstate(over="ignore", invalid="ignore"):
            energy = (points @ means.T - 0.5 * (means**2).sum(axis=1)) / (self.std**2 + float(s) ** 2)
        if not np.isfinite(energy).all():
            raise OverflowError("y: log odds of the classes exceed the range of float64; rescale states and model")
        return np.asarray(scipy.special.softmax(energy + np.log(self.weights), axis=1))
