"""A mixture of Gaussians, one for each class: denoisers with and without labels, and the posterior of the class, exact.

The null case of guidance: here it is known at which noise level the class is decided.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_integer, check_positive, to_numbers, to_real
from fastcrit._estimates.response_function import ResponseFunction
from fastcrit.theory.mixture_change import changes_together
from fastcrit.theory.mixture_information import (
    class_information,
    mixture_gap,
    pairs,
    posteriors,
    products,
    windows_about,
)
from fastcrit.theory.mixture_response import response_at_all_states, response_at_states
from fastcrit.theory.regions import SIGNS, region, seen_by_four, seen_sites

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

    def posterior(self, y: Any, s: float, inside: Any = None) -> Floats:
        """p(class | y; s) (n, classes) of states (n, C, H, W); ``s`` may be 0.

        Of the sites alone that ``inside`` marks, bools that broadcast against the states, if it is given.
        """
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
            if inside is None:
                overlap = points @ means.T - 0.5 * (means**2).sum(axis=1)
            else:
                seen = seen_sites(inside, states.shape).reshape(points.shape)
                overlap = (points * seen) @ means.T - 0.5 * seen @ (means**2).T
            energy = overlap / (self.std**2 + float(s) ** 2)
        if not np.isfinite(energy).all():
            raise OverflowError("y: log odds of the classes exceed the range of float64; rescale states and model")
        return np.asarray(scipy.special.softmax(energy + np.log(self.weights), axis=1))

    def denoise(self, y: Any, s: float, inside: Any = None, labels: Any = None) -> Floats:
        r"""E[x0 | y], :math:`D_\emptyset`, in float64, of states (n, C, H, W); or of the sites alone that are inside.

        Parameters
        ----------
        y : array (n, C, H, W)
        s : float
            Noise level, positive.
        inside : array of bool that broadcasts against the states, optional
            Sites that are seen: a regional posterior. What lies beyond is estimated, too, from the class.
        labels : (n,) of int, optional
            Classes, which are then known: :math:`D_c`.

        Raises
        ------
        ValueError
            A level that is not positive; states of another shape or not finite; ``inside`` that does not broadcast;
            labels that are no classes, or not one a state.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
        >>> model = fc.theory.GaussianMixture(means, std=0.5)
        >>> x = model.denoise(np.ones((1, 1, 4, 4)), 2.0, inside=np.arange(4) == 0)  # one column is seen
        >>> x[0, 0, 0].round(3).tolist()  # tanh(4/4.25), and a little of y where it is seen
        [0.751, 0.736, 0.736, 0.736]
        """
        q = self.posterior(y, check_positive(s, "s"), inside)
        states = to_real(y, "y").astype(np.float64)
        center = (
            np.tensordot(q, self.means, axes=1)
            if labels is None
            else self.means[_classes(labels, len(q), len(self.means))]
        )
        own = center + self.std**2 / (self.std**2 + s**2) * (states - center)
        return own if inside is None else np.where(seen_sites(inside, states.shape), own, center)

    def agreement(self, s: Any, seed: int = 0) -> Any:
        r"""Chance that two draws from the posterior of one noisy state are of one class, E :math:`\sum_c q_c^2`.

        q are the posterior's probabilities of the classes. Of draws from an exact reverse process it is the cloning
        agreement, and the share of images that keep their class when they are noised and denoised.

        Parameters
        ----------
        s : float or array
            Noise levels, 0 included.
        seed : int
            Of the points of a quasi-Monte Carlo average over noisy states, in the space that the means span; good to
            about 1e-4.

        Returns
        -------
        float, or array of the shape of ``s``

        Raises
        ------
        ValueError
            Noise levels below 0 or not finite.

        Notes
        -----
        Source: Biroli et al. 2402.18491 (cloning).

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
        >>> fc.theory.GaussianMixture(means, std=0.5).agreement([0.5, 4.0, 1000.0]).round(3).tolist()
        [1.0, 0.773, 0.5]
        """
        levels = _levels(s)
        found = np.array([np.trace(self._pairs(level, seed)) for level in levels.ravel()])
        return found.reshape(levels.shape) if np.ndim(s) else float(found[0])

    def susceptibility(self, s: Any, patch: int, seed: int = 0) -> Any:
        r"""How many patches change together between two such draws, :math:`\chi = \sum_{ij} C_{ij}/\sum_i C_{ii}`.

        C is the covariance of the square changes of patches i and j, as `fastcrit.diffusion.forward_backward` has it of
        images and results. 1 where no class changes, since sites are independent within a class.

        Parameters
        ----------
        s : float or array
            Noise levels, positive.
        patch : int
            Side of a patch, in sites; a divisor of both sides.
        seed : int
            As in `agreement`.

        Returns
        -------
        float, or array of the shape of ``s``

        Raises
        ------
        ValueError
            Noise levels that are not positive, a patch that does not tile the lattice.

        Notes
        -----
        Of draws of classes c and c' the difference has the mean :math:`s^2(\mu_{c'} - \mu_c)/(v + s^2)` and the
        variance :math:`2 v s^2/(v + s^2)` on every site, whatever the state. Source of the definition: Sclocchi et al.
        2410.13770, there over results of one image and averaged over images.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
        >>> fc.theory.GaussianMixture(means, std=0.3).susceptibility([0.5, 4.0], patch=2).round(2).tolist()
        [1.0, 3.82]
        """
        levels, patch = _levels(s), check_integer(patch, "patch", 1)
        if not (levels > 0).all():
            raise ValueError(f"s: expected positive noise levels, got {levels[levels <= 0][0]:.6g}")
        H, W = self.means.shape[2:]
        if H % patch or W % patch:
            raise ValueError(f"patch: expected a divisor of both sides of a {H} x {W} lattice, got {patch}")
        found = np.array(
            [changes_together(self.means, self._pairs(x, seed), self.std**2, x, patch) for x in levels.flat]
        )
        return found.reshape(levels.shape) if np.ndim(s) else float(found[0])

    def response_function(self, s: float, y: Any = None, *, seed: int = 0) -> ResponseFunction:
        r"""G(r) of :math:`D_\emptyset`, exactly: at given states, or averaged over the noisy states of a level.

        :math:`J = \frac{v}{v + s^2} 1 + \frac{s^2}{(v + s^2)^2} \mathrm{Cov}_q(\mu)` with the posterior q of the class.
        For two classes :math:`\pm\mu`, uniform, G is :math:`s^2\mu^2(1 - m^2)/(v + s^2)^2` at every r but 0: what the
        class ties together has no range.

        Parameters
        ----------
        s : float
            Noise level, positive.
        y : array (n, C, H, W), optional
            States. Default: the average over y = x0 + s n.
        seed : int
            Of that average, as in `agreement`; relative error about 1e-4.

        Returns
        -------
        ResponseFunction
            As `fastcrit.response_function` measures it. ``square`` is NaN for more than 16 classes.

        Raises
        ------
        ValueError
            A level that is not positive; states of another shape, none, or not finite.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
        >>> g = fc.theory.GaussianMixture(means, std=1.0).response_function(2.0, np.zeros((1, 1, 4, 4)))
        >>> g.G.round(3).tolist()  # 1/5 + 4/25, 4/25, ..
        [0.36, 0.16, 0.16, 0.16]
        """
        s = check_positive(s, "s")
        if y is None:
            return response_at_all_states(self.means, self.std**2, s, self.weights, self._posteriors(s, seed))
        q = self.posterior(y, s)
        if not len(q):
            raise ValueError("y: expected at least one state, got none")
        return response_at_states(self.means, self.std**2, s, q)

    def information(self, s: float, inside: Any = None, *, seed: int = 0) -> float:
        r"""I(x0; y) in nats: what the state tells of the image, and a region's of the region.

        Half of :math:`\log(1 + v/s^2)` a site and channel, and what the state tells of the class.

        Parameters
        ----------
        s : float
            Noise level, positive.
        inside : array (H, W) of bool, optional
            The region; default: all.
        seed : int
            As in `agreement`.

        Raises
        ------
        ValueError
            A level that is not positive; a region that is not bools (H, W).
        """
        s = check_positive(s, "s")
        seen = region(inside, self.means.shape[2:])
        own = 0.5 * self.means.shape[1] * int(seen.sum()) * np.log1p(self.std**2 / s**2)
        return float(own) + self.class_information(s, inside, seed=seed)

    def class_information(self, s: float, inside: Any = None, *, seed: int = 0) -> float:
        r"""I(class; y) in nats: `class_entropy` at little noise, 0 at much; arguments and errors as `information`.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 4, 4))
        >>> model = fc.theory.GaussianMixture(means, std=1.0)
        >>> [round(model.class_information(s), 3) for s in (0.3, 3.0, 30.0)]
        [0.693, 0.447, 0.009]
        """
        total = self.std**2 + check_positive(s, "s") ** 2
        seen = region(inside, self.means.shape[2:])
        check_integer(seed, "seed", 0)
        return class_information(products(self.means, self.weights, seen), self.weights, total, seed)

    def conditional_information(self, s: float, A: Any, C: Any, B: Any = None, *, seed: int = 0) -> float:
        r"""I(y_A; y_C | y_B) in nats: what A tells of C beyond what lies between them.

        Of this model all of it is of the class: :math:`I_{AB} + I_{BC} - I_B - I_{ABC}` of `class_information`.

        Parameters
        ----------
        s : float
            Noise level, positive.
        A, C, B : array (H, W) of bool
            B by default is what A and C leave.
        seed : int
            As in `agreement`.

        Raises
        ------
        ValueError
            A level that is not positive; regions that are not bools (H, W), share sites or have none.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 20, 20))
        >>> site = np.arange(400).reshape(20, 20)
        >>> model = fc.theory.GaussianMixture(means, std=1.0)
        >>> round(model.conditional_information(7.33, A=site < 16, C=site >= 96), 4)
        0.0419
        """
        seen = seen_by_four(A, C, B, self.means.shape[2:])
        return sum(SIGNS[name] * self.class_information(s, mask, seed=seed) for name, mask in seen.items())

    def locality_gap(self, s: float, radius: int, *, periodic: bool = True, seed: int = 0) -> float:
        r"""Mean square change of :math:`D_\emptyset` at a site that sees a window of 2 ``radius`` + 1 sites a side.

        Over noisy states, sites and channels; mmse given the window less mmse given all.

        Parameters
        ----------
        s : float
            Noise level, positive.
        radius : int
        periodic : bool
            Whether windows go on at the opposite edge.
        seed : int
            As in `agreement`.

        Raises
        ------
        ValueError
            A level that is not positive, a negative radius.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> means = np.array([-1.0, 1.0])[:, None, None, None] * np.ones((2, 1, 8, 8))
        >>> model = fc.theory.GaussianMixture(means, std=0.5)
        >>> [round(model.locality_gap(3.0, radius), 3) for radius in (0, 1, 2, 4)]
        [0.841, 0.421, 0.129, 0.0]
        """
        s, radius = check_positive(s, "s"), check_integer(radius, "radius", 0)
        windows = windows_about(self.means.shape[2:], radius, periodic)
        return mixture_gap(self.means, windows, self.weights, self.std**2, s, check_integer(seed, "seed", 0))

    def _pairs(self, s: float, seed: int) -> Floats:
        """E q_c q_c' (classes, classes) over a level's noisy states: the classes of two draws from one posterior."""
        return pairs(self._posteriors(s, seed), self.weights)

    def _posteriors(self, s: float, seed: int) -> Floats:
        """Posteriors (classes, points, classes) at noisy states of each class."""
        seen = products(self.means, self.weights)
        return posteriors(seen, self.weights, self.std**2 + s**2, check_integer(seed, "seed", 0))


def _classes(labels: Any, n: int, classes: int) -> NDArray[np.int64]:
    known = to_numbers(labels, "labels", "a sequence of integers")
    if known.shape != (n,) or (known != np.rint(known)).any() or not ((known >= 0) & (known < classes)).all():
        raise ValueError(f"labels: expected {n} integers from 0 to {classes - 1}, got {labels!r}")
    return known.astype(np.int64)


def _levels(s: Any) -> Floats:
    levels = to_numbers(s, "s")
    if not (np.isfinite(levels) & (levels >= 0)).all():
        raise ValueError(f"s: expected finite noise levels >= 0, got {s!r}")
    return levels
