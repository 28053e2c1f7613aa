"""Dictionaries of patterns: what the patch model believes every patch of an image to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_integer, is_integer, to_numbers, to_real
from fastcrit._edge.extras import need

Floats = NDArray[np.float64]

# Of the largest value of a dictionary: sixth powers of s and of the patterns stay inside the range of float64.
_SMALLEST, _LARGEST = 1e-40, 1e40


@dataclass(frozen=True, eq=False, repr=False)
class Dictionary:
    r"""P patterns with prior weights.

    Attributes
    ----------
    patterns : float64 (P, n, n), or (P, H, W) when position-specific
        The patterns; n odd, the centre pixel is the one they predict. A position-specific dictionary holds whole
        images, and the patterns of site i are their patches around i.
    prior : float64 (P,)
        Weights, positive, normalised to sum 1.
    size : int
        Side n of a patch.
    position_specific : bool
        False: every pattern may occur anywhere (equivariant). True: only at its own site (the local score machine with
        position, Kamb & Ganguli 2412.20292); the lattice is then the image's.

    Raises
    ------
    ValueError
        Even or non-square patches, no patterns, NaN or Inf, a prior of wrong length or with weights that are not
        positive.
    OverflowError
        Patterns whose largest value is beyond 1e40 or below 1e-40.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> d = fc.patch.Dictionary(np.stack([np.ones((3, 3)), -np.ones((3, 3))]), prior=[3, 1])
    >>> d.prior.tolist()
    [0.75, 0.25]
    """

    patterns: Floats
    prior: Floats
    size: int
    position_specific: bool = False

    def __init__(
        self, patterns: Any, prior: Any = None, *, size: int | None = None, position_specific: bool = False
    ) -> None:
        array = to_real(patterns, "patterns").astype(np.float64)
        if array.ndim != 3 or array.size == 0:
            raise ValueError(f"patterns: expected shape (P, n, n) with P >= 1, got {array.shape}")
        if not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array).all(axis=(1, 2))))
            raise ValueError(f"patterns: NaN or infinite value in pattern {bad}")
        if not (_SMALLEST < (largest_value := float(np.abs(array).max())) < _LARGEST or largest_value == 0):
            raise OverflowError(f"patterns: values up to {largest_value:g} have powers beyond float64; rescale them")
        if position_specific:
            if size is None:
                raise ValueError("size: a position-specific dictionary needs the side of its patches")
            largest = 2 * max(array.shape[1:]) - 1
        else:
            if array.shape[1] != array.shape[2]:
                raise ValueError(f"patterns: expected square patterns (P, n, n), got {array.shape}")
            if size is not None and size != array.shape[1]:
                raise ValueError(f"size: patterns have side {array.shape[1]}, got size={size}")
            size = largest = array.shape[1]
        _check_size(size)
        if size > largest:
            raise ValueError(f"size: {size} exceeds {largest}, which already covers the whole {array.shape[1:]} image")
        if prior is None:
            weights = np.full(len(array), 1.0 / len(array))
        else:
            weights = to_numbers(prior, "prior")
            if weights.shape != (len(array),) or not np.isfinite(weights).all() or not (weights > 0).all():
                raise ValueError(f"prior: expected {len(array)} positive weights, got {prior!r}")
            weights = weights / weights.max()  # first, so that the sum cannot overflow
            weights = weights / weights.sum()
        for name, value in (("patterns", array), ("prior", weights), ("size", size)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "position_specific", position_specific)

    def __len__(self) -> int:
        return len(self.patterns)

    @property
    def variance(self) -> float:
        """Variance of the predicted (centre) pixel under the prior; of all pixels for whole images."""
        values = self.patterns if self.position_specific else self.patterns[:, self.size // 2, self.size // 2]
        flat = values.reshape(len(self), -1)
        mean = self.prior @ flat
        return float((self.prior @ (flat - mean) ** 2).mean())

    def __repr__(self) -> str:
        kind = "position-specific images" if self.position_specific else "patterns"
        shape = " x ".join(map(str, self.patterns.shape[1:]))
        return f"<Dictionary: {len(self)} {kind} of {shape}, patches of {self.size} x {self.size}>"

    @property
    def mean(self) -> float:
        """Mean of the predicted (centre) pixel under the prior; of all pixels for whole images."""
        values = self.patterns if self.position_specific else self.patterns[:, self.size // 2, self.size // 2]
        return float(self.prior @ values.reshape(len(self), -1).mean(axis=1))

    @classmethod
    def binary(cls, size: int = 5, random: int = 8, seed: int = 0) -> Dictionary:
        """The uniform patterns +1 and -1 and ``random`` patterns of independent fair signs.

        Where the centre pixels of the random patterns do not balance (`mean` is not 0), one sign is preferred and
        lattices may end uniform, without domains. Those of seed 0 balance for the default size and number.

        Raises
        ------
        ValueError
            ``size`` even or below 1, ``random`` negative.

        Examples
        --------
        >>> import fastcrit as fc
        >>> fc.patch.Dictionary.binary(size=3, random=2).patterns.shape
        (4, 3, 3)
        """
        _check_size(size)
        if random < 0:
            raise ValueError(f"random: expected a number of patterns >= 0, got {random}")
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(random, size, size))
        return cls(np.concatenate([np.ones((1, size, size)), -np.ones((1, size, size)), signs]))

    @classmethod
    def from_images(
        cls,
        images: Any,
        size: int = 5,
        count: int | None = 4096,
        seed: int = 0,
        *,
        method: str = "random",
        position_specific: bool = False,
    ) -> Dictionary:
        """Patterns cut from images.

        Parameters
        ----------
        images : array or tensor (n, H, W)
            Their values are used as they are. Subtract their mean where y = 0 is to be the state of no information,
            as `fastcrit.theory.PatchTheory` has it.
        size : int
            Side of the patches, odd. Equivariant patches lie wholly inside an image.
        count : int or None
            Patterns to keep (images to keep when position-specific); None keeps all.
        seed : int
            For the random choice, or for the start of k-means.
        method : "random" or "kmeans"
            A random subset with equal weights, or the centres of k-means clusters weighted by their sizes
            (MiniBatchKMeans of scikit-learn: the extra ``fastcrit[images]``).
        position_specific : bool
            Keep whole images and compare patches of the same site only.

        Raises
        ------
        ValueError
            Wrong shape, even ``size``, a patch larger than the images, more patterns asked for than there are.

        Examples
        --------
        >>> import numpy as np, fastcrit as fc
        >>> images = np.random.default_rng(0).normal(size=(10, 28, 28))
        >>> len(fc.patch.Dictionary.from_images(images, size=5, count=100))
        100
        """
        array = to_real(images, "images")
        if array.ndim != 3 or array.size == 0:
            raise ValueError(f"images: expected shape (n, H, W), got {array.shape}")
        check_choice(method, ("random", "kmeans"), "method")
        _check_size(size)
        rng = np.random.default_rng(seed)
        if position_specific:
            if method == "kmeans":
                raise ValueError(
                    "method: 'kmeans' is for equivariant dictionaries; a position-specific one keeps images"
                )
            chosen = _choose(len(array), count, "images", rng)
            return cls(array[chosen], size=size, position_specific=True)
        n, height, width = array.shape
        if size > min(height, width):
            raise ValueError(f"size: patches of side {size} are larger than the images ({height} x {width})")
        windows = np.lib.stride_tricks.sliding_window_view(array, (size, size), axis=(1, 2))
        total = n * windows.shape[1] * windows.shape[2]
        if method == "random":
            chosen = _choose(total, count, "patches", rng)
            return cls(windows[np.unravel_index(chosen, windows.shape[:3])])
        if count is None:
            raise ValueError("count: k-means needs the number of clusters")
        need("sklearn", "method='kmeans'")
        from sklearn.cluster import MiniBatchKMeans

        if count > total:
            raise ValueError(f"count: {count} clusters of only {total} patches")
        # k-means sees at most 64 patches a cluster: centres move by less than their spread / 8.
        seen = _choose(total, min(total, 64 * count), "patches", rng)
        flat = windows[np.unravel_index(seen, windows.shape[:3])].reshape(len(seen), -1)
        clusters = MiniBatchKMeans(count, random_state=seed, n_init=1, batch_size=4096).fit(flat)
        sizes = np.bincount(clusters.labels_, minlength=count)
        return cls(clusters.cluster_centers_[sizes > 0].reshape(-1, size, size), prior=sizes[sizes > 0])


def lattice_shape(dictionary: Dictionary, lattice: int | tuple[int, int] | None) -> tuple[int, int]:
    """Sides of the lattice, checked against the dictionary."""
    if dictionary.position_specific:
        height, width = dictionary.patterns.shape[1:]
        if lattice is not None and lattice not in ((height, width), height if height == width else None):
            raise ValueError(
                f"lattice: a position-specific dictionary lives on its images' {height, width}, got {lattice!r}"
            )
        return height, width
    if lattice is None:
        raise ValueError("lattice: expected one side or (height, width)")
    sides = tuple(lattice) if np.iterable(lattice) else (lattice, lattice)
    if len(sides) != 2 or not all(is_integer(x) and x >= 1 for x in sides):
        raise ValueError(f"lattice: expected one side or (height, width), got {lattice!r}")
    if min(sides) < dictionary.size:
        raise ValueError(f"lattice: patterns of side {dictionary.size} are larger than the lattice {sides}")
    return int(sides[0]), int(sides[1])


def _choose(total: int, count: int | None, what: str, rng: np.random.Generator) -> NDArray[np.int64]:
    if count is None:
        return np.arange(total)
    if not 1 <= count <= total:
        raise ValueError(f"count: expected 1 to {total} (all {what}; None keeps them all), got {count}")
    return np.sort(rng.choice(total, size=count, replace=False))


def _check_size(size: int) -> None:
    odd = "an odd patch side >= 1, which has a centre pixel"
    if check_integer(size, "size", 1, expected=odd) % 2 == 0:
        raise ValueError(f"size: expected {odd}, got {size!r}")
