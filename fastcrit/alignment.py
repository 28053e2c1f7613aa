"""Whether samples look like their class, how different they are, and how sure a difference between two arms is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._edge.arrays import to_array, to_real

Floats = NDArray[np.float64]

__all__ = [
    "Alignment",
    "Paired",
    "class_alignment",
    "coverage",
    "minimal_detectable_difference",
    "paired",
    "pairwise_distance",
]  # fmt: skip

# Distances between two blocks of features at a time.
_ROWS_AT_A_TIME = 512
# Differences beyond this may have sums that overflow.
_LARGEST = 1e300


@dataclass(frozen=True)
class Alignment:
    """What a classifier says of samples and their target classes, one value a sample.

    Attributes
    ----------
    top1 : (n,) of 0 and 1
        Whether the target has the highest score.
    log_probability : (n,)
        Of the target.
    margin : (n,)
        Score of the target less the highest of the others.
    """

    top1: Floats
    log_probability: Floats
    margin: Floats

    def __str__(self) -> str:
        rows = []
        for name in ("top1", "log_probability", "margin"):
            values = getattr(self, name)
            rows.append(f"{name:<16}{values.mean():10.4f} +- {_spread(values) / np.sqrt(len(values)):.4f}")
        return "\n".join(rows)


def class_alignment(scores: Any, labels: Any) -> Alignment:
    """Alignment of samples with their target classes.

    Parameters
    ----------
    scores : array or tensor (n, classes)
        Of any classifier: logits or log-probabilities.
    labels : (n,) of int
        Target classes.

    Raises
    ------
    ValueError
        Other shapes, NaN or Inf, labels outside the classes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit.alignment import class_alignment
    >>> found = class_alignment(np.array([[2.0, 0.0], [1.0, 3.0]]), [0, 0])
    >>> found.top1.tolist(), found.margin.tolist()
    ([1.0, 0.0], [2.0, -2.0])
    """
    values = to_real(scores, "scores").astype(np.float64)
    targets = to_array(labels, "labels")
    if values.ndim != 2 or values.shape[1] < 2 or not len(values):
        raise ValueError(f"scores: expected shape (n, classes) with at least 2 classes, got {values.shape}")
    if targets.shape != (len(values),) or targets.dtype.kind not in "iu":
        raise ValueError(f"labels: expected {len(values)} integers, got {targets.dtype} {targets.shape}")
    if not (targets.min() >= 0 and targets.max() < values.shape[1]):
        raise ValueError(
            f"labels: expected classes from 0 to {values.shape[1] - 1}, got {targets.min()} to {targets.max()}"
        )
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(f"scores: NaN or infinite for sample {int(np.argmin(finite))}")
    at = np.arange(len(values))
    target = values[at, targets]
    others = values.copy()
    others[at, targets] = -np.inf
    with np.errstate(over="ignore"):
        margin = target - others.max(axis=1)
        log_probability = target - scipy.special.logsumexp(values, axis=1)
    return Alignment((margin > 0).astype(np.float64), log_probability, margin)


@dataclass(frozen=True)
class Paired:
    """Difference between two arms on the same seeds and labels.

    Attributes
    ----------
    difference, stderr : float
        Mean of a - b, and its standard error.
    low, high : float
        Bootstrap interval over pairs.
    p_sign : float
        Two-sided sign test over the pairs that differ; 1 where none does.
    detectable : float
        Difference that this number of pairs would find in 80 of 100 experiments at the 5 % level.
    n : int
        Pairs.
    """

    difference: float
    stderr: float
    low: float
    high: float
    p_sign: float
    detectable: float
    n: int

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4f} [{self.low:+.4f}, {self.high:+.4f}], sign test p = {self.p_sign:.3g}, "
            f"{self.n} pairs (detectable: {self.detectable:.4f})"
        )


def paired(a: Any, b: Any, *, confidence: float = 0.95, n_bootstrap: int = 4000, seed: int = 0) -> Paired:
    """Compare two arms sample by sample: ``a`` and ``b`` (n,) of the same seeds and labels.

    Raises
    ------
    ValueError
        Different lengths, fewer than 2 pairs, NaN or Inf.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit.alignment import paired
    >>> rng = np.random.default_rng(0)
    >>> b = rng.normal(size=500)
    >>> found = paired(b + 0.5 + 0.1 * rng.normal(size=500), b)
    >>> found.low < 0.5 < found.high, found.p_sign < 1e-6
    (True, True)
    """
    first, second = (to_real(x, name).astype(np.float64) for x, name in ((a, "a"), (b, "b")))
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ValueError(f"a, b: expected two sequences of the same length >= 2, got {first.shape} and {second.shape}")
    if not 0 < confidence < 1 or n_bootstrap < 100:
        raise ValueError(
            "confidence, n_bootstrap: expected 0 < confidence < 1 and at least 100 draws, "
            f"got {confidence} and {n_bootstrap}"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        d = first - second
    if not np.isfinite(d).all():
        raise ValueError(f"a, b: NaN or infinite in pair {int(np.argmin(np.isfinite(d)))}")
    if np.abs(d).max() > _LARGEST:
        raise OverflowError("a, b: sums of the differences exceed the range of float64; rescale them")
    n = len(d)
    rng = np.random.default_rng(seed)
    means = np.array([d[rng.integers(0, n, n)].mean() for _ in range(n_bootstrap)])
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(means, [tail, 100.0 - tail])
    up, down = int((d > 0).sum()), int((d < 0).sum())
    p = float(scipy.stats.binomtest(up, up + down).pvalue) if up + down else 1.0
    spread = _spread(d)
    return Paired(
        float(d.mean()), spread / n**0.5, float(low), float(high), p, minimal_detectable_difference(spread, n), n
    )


def minimal_detectable_difference(std: float, n: int, *, power: float = 0.8, level: float = 0.05) -> float:
    """Mean difference that ``n`` pairs with this standard deviation find with this power at this two-sided level.

    Examples
    --------
    >>> from fastcrit.alignment import minimal_detectable_difference
    >>> round(minimal_detectable_difference(1.0, 100), 4)  # (1.96 + 0.84) / 10
    0.2802
    """
    quantile = scipy.special.ndtri
    return float((quantile(1.0 - level / 2.0) + quantile(power)) * std / np.sqrt(n))


def pairwise_distance(features: Any, labels: Any) -> Floats:
    """Mean Euclidean distance between two samples of the same class, per class (NaN for a class of one).

    Parameters
    ----------
    features : array (n, d)
        In a classifier's feature space.
    labels : (n,) of int

    Returns
    -------
    array (classes,)
        In the order of the sorted labels.

    Examples
    --------
    >>> from fastcrit.alignment import pairwise_distance
    >>> pairwise_distance([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]], [0, 0, 1]).tolist()
    [5.0, nan]
    """
    points, classes = _features(features, labels)
    out = []
    for k in np.unique(classes):
        own = points[classes == k]
        total = sum(
            float(_distances(own[i : i + _ROWS_AT_A_TIME], own).sum()) for i in range(0, len(own), _ROWS_AT_A_TIME)
        )
        out.append(total / (len(own) * (len(own) - 1)) if len(own) > 1 else np.nan)
    return np.array(out)


def coverage(features: Any, labels: Any, reference: Any, reference_labels: Any, *, neighbours: int = 5) -> float:
    """Share of reference samples with a sample of their class within the distance of their k-th reference neighbour.

    Source: Naeem et al. 2002.09797, coverage, class by class.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit.alignment import coverage
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> coverage(x, np.zeros(200, int), x, np.zeros(200, int)), coverage(x[:1], [0], x, np.zeros(200, int)) < 0.3
    (1.0, True)
    """
    points, classes = _features(features, labels)
    real, real_classes = _features(reference, reference_labels)
    if points.shape[1] != real.shape[1]:
        raise ValueError(f"reference: expected {points.shape[1]} features, got {real.shape[1]}")
    covered = 0
    for k in np.unique(real_classes):
        own, theirs = real[real_classes == k], points[classes == k]
        if len(own) <= neighbours:
            raise ValueError(f"reference: class {k} has {len(own)} samples, expected more than {neighbours}")
        for i in range(0, len(own), _ROWS_AT_A_TIME):
            some = own[i : i + _ROWS_AT_A_TIME]
            radius = np.partition(_distances(some, own), neighbours, axis=1)[:, neighbours]  # itself is the nearest
            if len(theirs):
                covered += int((_distances(some, theirs).min(axis=1) <= radius).sum())
    return covered / len(real)


def _spread(values: Floats) -> float:
    """Standard deviation, NaN of a single value; in a unit in which squares do not overflow."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    exponent = int(np.frexp(np.abs(values).max())[1])
    return float(np.ldexp(np.ldexp(values, -exponent).std(ddof=1), exponent))


def _features(features: Any, labels: Any) -> tuple[Floats, NDArray[np.int64]]:
    points = to_real(features, "features").astype(np.float64)
    classes = to_array(labels, "labels")
    if points.ndim != 2 or classes.shape != (len(points),) or classes.dtype.kind not in "iu":
        raise ValueError(f"features, labels: expected (n, d) and n integers, got {points.shape} and {classes.shape}")
    if not np.isfinite(points).all():
        raise ValueError("features: NaN or infinite values")
    return points, classes.astype(np.int64)


def _distances(a: Floats, b: Floats) -> Floats:
    return np.asarray(scipy.spatial.distance.cdist(a, b))
