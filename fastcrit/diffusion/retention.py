"""What noising and denoising images has changed, level by level: class, logits, agreement of two runs, patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.averages import jackknife_error

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]

__all__ = ["Retention"]


@dataclass(frozen=True)
class Retention:
    r"""How often an image keeps its class when it is noised and denoised again, and what else has changed.

    All curves are over ``levels``; of curves that were not asked for there are no samples (None), and asking for them
    raises a ValueError. For an exact posterior mean and an exact sampler, `retained` and `agreement` are the same
    number: the image itself is a draw from the posterior of its own noisy state. A network whose `agreement` is above
    its `retained` makes other images than those it was given.

    Attributes
    ----------
    levels : (levels,)
    samples : (levels, n) of 0 and 1
        Whether the classifier gives the result the class it gave the image.
    cosines : (levels, n), optional
        Cosine between the classifier's scores of the image and of the result.
    agreements : (levels, n), optional
        Share of pairs among the reverse runs from one noisy state that end in the same class.
    changes : (levels, n, patches), optional
        Mean square of result less image over the channels and sites of each patch; patches row by row.

    Notes
    -----
    Sources: Sclocchi, Favero and Wyart 2402.16991 (class and cosine), Biroli et al. 2402.18491 (two runs that share
    their past), Sclocchi et al. 2410.13770 (susceptibility). There tokens change or not and the covariance is over
    results of one image, averaged over images; here it is the covariance of square changes over images.
    """

    levels: Floats
    samples: Floats
    cosines: Floats | None = None
    agreements: Floats | None = None
    changes: Floats | None = None

    @property
    def retained(self) -> Floats:
        """Share of images that kept their class."""
        return np.asarray(self.samples.mean(axis=1))

    def interval(self, confidence: float = 0.95) -> Interval:
        """Wilson's interval of `retained`."""
        return _wilson(self.retained, self.samples.shape[1], confidence)

    @property
    def cosine(self) -> Floats:
        """Mean cosine between the scores before and after."""
        return np.asarray(_known(self.cosines, "cosines").mean(axis=1))

    def cosine_interval(self, confidence: float = 0.95) -> Interval:
        """Student's interval of `cosine`, within -1 and 1."""
        cosines = _known(self.cosines, "cosines")
        n = cosines.shape[1]
        half = _student(n, confidence) * cosines.std(axis=1, ddof=1) / np.sqrt(n)
        return np.maximum(self.cosine - half, -1.0), np.minimum(self.cosine + half, 1.0)

    @property
    def agreement(self) -> Floats:
        r"""Chance that two reverse runs from one noisy state end in one class: E :math:`\sum_c q_c^2`."""
        return np.asarray(_known(self.agreements, "agreements").mean(axis=1))

    def agreement_interval(self, confidence: float = 0.95) -> Interval:
        """Wilson's interval of `agreement`; of more than two runs an image it is wider than it need be."""
        agreements = _known(self.agreements, "agreements")
        return _wilson(self.agreement, agreements.shape[1], confidence)

    @property
    def susceptibility(self) -> Floats:
        r"""How many patches change together: :math:`\chi = \sum_{ij} C_{ij} / \sum_i C_{ii}`.

        C is the covariance over images of the square changes of patches i and j. 1 where patches change independently,
        their number where all change alike; NaN where no image has changed more than another.
        """
        return _susceptibility(_known(self.changes, "changes"))[0]

    def susceptibility_interval(self, confidence: float = 0.95) -> Interval:
        """Student's interval of log `susceptibility`, whose error is a jackknife's over images; NaN below 3 images."""
        changes = _known(self.changes, "changes")
        chi, without = _susceptibility(changes)
        half = _student(changes.shape[1], confidence) * jackknife_error(np.log(without))
        return chi * np.exp(-half), chi * np.exp(half)

    def dataset(self, confidence: float = 0.95) -> xr.Dataset:
        """The curves that there are by name, over dim level, each with ``_low`` and ``_high`` of its interval."""
        curves = {
            "retained": (self.samples, "share of images that kept their class", self.interval),
            "cosine": (self.cosines, "cosine of the classifier's scores", self.cosine_interval),
            "agreement": (self.agreements, "chance that two runs end in one class", self.agreement_interval),
            "susceptibility": (self.changes, "patches that change together", self.susceptibility_interval),
        }
        found = xr.Dataset(coords={"level": ("level", self.levels, {"long_name": "noise level s"})})
        for name, (samples, about, interval) in curves.items():
            if samples is not None:
                low, high = interval(confidence)
                found[name] = ("level", getattr(self, name), {"long_name": about})
                found[f"{name}_low"], found[f"{name}_high"] = ("level", low), ("level", high)
        return found.assign_attrs(images=self.samples.shape[1], confidence=confidence)


def _known(samples: Floats | None, name: str) -> Floats:
    if samples is None:
        how = {"agreements": "clones=2", "changes": "patch=4, for example"}.get(name, "forward_backward")
        raise ValueError(f"{name}: not measured in this run ({how})")
    return samples


def _student(n: int, confidence: float) -> float:
    """Half an interval in standard errors."""
    return float(scipy.special.stdtrit(n - 1, 0.5 + 0.5 * confidence))


def _wilson(share: Floats, n: int, confidence: float) -> Interval:
    """Wilson's interval of shares of ``n``, by the operations of scipy.stats.binomtest, which has it of counts only."""
    z = scipy.special.ndtri(0.5 + 0.5 * confidence)
    whole = 2 * (n + z**2)
    centre = (2 * n * share + z**2) / whole
    half = z / whole * np.sqrt(4 * n * share * (1 - share) + z**2)
    return np.where(share == 0, 0.0, centre - half), np.where(share == 1, 1.0, centre + half)


def _susceptibility(changes: Floats) -> tuple[Floats, Floats]:
    """Of changes (levels, n, patches): (levels,), and without each image in turn, (n, levels).

    A sum of all elements of a covariance matrix is the variance of the sum.
    """
    n = changes.shape[1]
    both = [changes.sum(axis=2, keepdims=True), changes]
    deviations = [each - each.mean(axis=1, keepdims=True) for each in both]
    together, apart = ((d**2).sum(axis=(1, 2)) for d in deviations)
    # Without image j a sum of squares about the mean is less by n/(n - 1) of that image's square.
    less = [n / (n - 1) * (d**2).sum(axis=2) for d in deviations]
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (together[:, None] - less[0]) / (apart[:, None] - less[1])
        return together / apart, without.T
