"""Windows about a site; and three regions: A about which is asked, C far away, B between them, and who sees which."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import to_array

Mask = NDArray[np.bool_]

# What the four regional denoisers see, and the sign with which each enters I(A; C | B).
SIGNS = {"AB": 1, "BC": 1, "B": -1, "ABC": -1}


def near_along(side: int, radius: int, periodic: bool) -> Mask:
    """Which places of an axis are in the window about each, (side, side); windows go on at edges, or stop there."""
    apart = np.abs(np.arange(side)[:, None] - np.arange(side))
    return np.asarray((np.minimum(apart, side - apart) if periodic else apart) <= radius)


def seen_by_four(A: Any, C: Any, B: Any, shape: tuple[int, ...]) -> dict[str, Mask]:
    """Masks of the lattice, by the names of `SIGNS`; B is what A and C leave, unless it is given.

    Raises
    ------
    ValueError
        Masks that are not bools of the lattice's shape, that overlap, or one that is empty.
    """
    a, c = _mask(A, "A", shape), _mask(C, "C", shape)
    b = ~(a | c) if B is None else _mask(B, "B", shape)
    for name, mask in (("A", a), ("B", b), ("C", c)):
        if not mask.any():
            raise ValueError(f"{name}: expected at least one site, got none")
    if (a & c).any() or (a & b).any() or (b & c).any():
        raise ValueError("A, B, C: expected regions that share no site")
    return {"AB": a | b, "BC": b | c, "B": b, "ABC": a | b | c}


def region(inside: Any, shape: tuple[int, ...]) -> Mask:
    """The mask of one region, which is everything for None; ValueError as above."""
    return np.ones(shape, dtype=bool) if inside is None else _mask(inside, "inside", shape)


def seen_sites(inside: Any, shape: tuple[int, ...]) -> Mask:
    """Bools that broadcast against states of this shape, made so; ValueError for others."""
    given = to_array(inside, "inside")
    sides = list(zip(given.shape[::-1], shape[::-1], strict=False))
    if given.dtype != np.bool_ or given.ndim > len(shape) or any(own not in (1, side) for own, side in sides):
        raise ValueError(
            f"inside: expected bools that broadcast against states {shape}, got {given.dtype} {given.shape}"
        )
    return np.broadcast_to(given, shape)


def _mask(given: Any, name: str, shape: tuple[int, ...]) -> Mask:
    mask = to_array(given, name)
    if mask.dtype != np.bool_ or mask.shape != shape:
        raise ValueError(f"{name}: expected bools of the lattice's shape {shape}, got {mask.dtype} {mask.shape}")
    return mask
