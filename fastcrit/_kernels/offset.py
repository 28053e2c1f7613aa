"""What a recorder's sums of k = 0 are about: an offset of every level and channel, near the mean of the fields.

Squares of fields about a mean of 1e6 leave no digit for fluctuations of 1. The first sample of a level fixes an offset
c, rounded coarsely, so that it is exactly 0 for fields about zero, whose sums are then what they always were, and so
that recorders of the same data mostly agree in it. Where they do not, their sums are exact functions of each other: see
`about`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sums = dict[str, NDArray[Any]]

# The sum of a lattice of N sites about zero has relative errors of eps: its square spoils digits of a variance that is
# so many times smaller than the square of the mean, times N. Below that many standard deviations of a site there is no
# offset.
SMALLEST_RATIO = 64.0
# A field without scatter has this share of its mean.
LEAST_SCATTER = 2.0**-40


def offset_of(sample: Any) -> Floats:
    """(C,): the offsets of channels, from the first sample (C, sites) of a level.

    A multiple of a power of two of 8 to 16 standard deviations, or 0 for a mean of less than SMALLEST_RATIO of them.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite has no offset, and is refused later
        values = np.asarray(sample, dtype=np.float64)
        mean = values.mean(axis=1)
        scatter = np.maximum(values.std(axis=1), LEAST_SCATTER * np.abs(mean))
        heavy = np.isfinite(scatter) & (np.abs(mean) > SMALLEST_RATIO * scatter)
        unit = np.ldexp(1.0, np.frexp(np.where(heavy, 8.0 * scatter, 1.0))[1])
        return np.asarray(np.where(heavy, np.rint(mean / unit) * unit, 0.0))


def about(sums: Sums, old: Floats, new: Floats, shape: tuple[int, ...]) -> Sums:
    """Sums (levels, blocks, ..) about the offsets ``new`` (levels, C), from those about ``old``; those that change.

    With d = old - new and n samples, sum (t + N d)^2 / N = sum t^2 / N + 2 d sum t + n N d^2, and so on: exact but for
    rounding of eps n N d^2. Offsets of the same data differ by a few standard deviations of a site, and the error is a
    few times N eps of the variance.
    """
    sites = float(np.prod(shape))
    d, e = (old - new)[:, None], (np.abs(old) - np.abs(new))[:, None]
    n = sums["count"][..., None].astype(np.float64)
    changed: Sums = {name: sums[name].copy() for name in ("power", "low", "first", "moments", "cross") if name in sums}
    t = sums["low"][..., 0, 0]
    gained = d * (2.0 * t + n * sites * d)
    changed["power"][..., 0] += gained
    for axis, side in enumerate(shape):
        if side == 1:  # its first mode is k = 0
            changed["first"][..., axis] += gained
    changed["low"][..., 0, 0] += n * sites * d
    moments = changed["moments"]
    moments[..., 2] += e * (2.0 * moments[..., 1] + n * e)
    moments[..., 1] += n * e
    moments[..., 0] += n * d
    if "cross" in changed:
        mixed = t[..., :, None] * d[..., None, :]
        changed["cross"][..., 0, :, :] += (
            mixed + mixed.swapaxes(-1, -2) + n[..., None] * sites * d[..., :, None] * d[..., None, :]
        )
    return changed


def common(counts: NDArray[np.int64], mine: Floats, theirs: Floats) -> Floats:
    """Offsets (levels, C) of two sums together: mine, or theirs where I have no samples, whose counts are given."""
    return np.where(counts.sum(axis=-1)[..., None] > 0, mine, theirs)


def added(states: list[Sums], shape: tuple[int, ...]) -> Sums:
    """Sums of recorders made alike (`Recorder.sums`) together, in this order, of fields on a lattice of this shape."""
    total = {name: values.copy() for name, values in states[0].items()}
    offset = total.setdefault("offset", np.zeros(_offset_in(total).shape))
    for more in states[1:]:
        theirs = _offset_in(more)
        offset[...] = common(total["count"], offset, theirs)
        if (theirs != offset).any():
            more = more | about(more, theirs, offset, shape)
        for name, values in more.items():
            if name == "eps":
                total[name] = np.maximum(total[name], values)
            elif name != "offset":
                total[name] += values
    return total


def _offset_in(sums: Sums) -> Floats:
    levels, _, channels = sums["moments"].shape[:3]
    return sums.get("offset", np.zeros((levels, channels)))
