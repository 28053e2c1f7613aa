"""What batches of tensors add to a recorder's sums on a device: blocks, gains, signs, offsets.

Nothing here waits for the device, and nothing depends on the order in which threads finish.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastcrit._kernels.offset import LEAST_SCATTER, SMALLEST_RATIO

# Fields go through the transform in pieces of this size in float32; it takes about three times as much besides.
PIECE_BYTES = 256 << 20

# Where no field has been found that is not finite.
NONE_BAD = 2**63 - 1


def signs_of(fields: Tensor) -> Tensor:
    """The sign of every site as +1 (also for 0) or -1, in the type that `single` gives."""
    dtype = torch.float64 if fields.dtype == torch.float64 else torch.float32
    return (fields >= 0).to(dtype).mul_(2.0).sub_(1.0)


def pieces_of(fields: Tensor) -> Iterator[Tensor]:
    """Some fields at a time."""
    return iter(torch.split(fields, max(1, PIECE_BYTES // (4 * fields[0].numel()))))


def add_to_blocks(blocks: Tensor, values: Tensor, first: int) -> None:
    """Add row j of ``values`` to block (first + j) mod len(blocks), in the type of ``blocks``."""
    n = len(blocks)
    whole = len(values) // n * n
    rounds = values[:whole].reshape(-1, n, *values.shape[1:]).sum(dim=0, dtype=blocks.dtype)
    for rows in (rounds, values[whole:]):
        start = first % n
        head = min(len(rows), n - start)
        blocks[start : start + head] += rows[:head]
        blocks[: len(rows) - head] += rows[head:]


def fix_offset(offset: Tensor, count: Tensor, sample: Tensor) -> None:
    """Set the offsets (C,) of a level without samples, to which ``count`` sums, from its first sample (C, sites).

    As `offset.offset_of` does it; only launches work.
    """
    values = sample.double()
    mean = values.mean(dim=1)
    scatter = torch.maximum((values - mean[:, None]).square().mean(dim=1).sqrt(), LEAST_SCATTER * mean.abs())
    heavy = scatter.isfinite() & (mean.abs() > SMALLEST_RATIO * scatter)
    unit = torch.exp2(torch.where(heavy, 8.0 * scatter, 1.0).log2().floor() + 1.0)
    found = torch.where(heavy, (mean / unit).round() * unit, 0.0)
    offset.copy_(torch.where(count.sum() > 0, offset, found))


def add_gains(values: Tensor, first: int, gain: Tensor, count: Tensor, bad: Tensor) -> None:
    """Add gains (batch, shells, ..) to sums by block, but for samples that are not finite: the first lowers ``bad``."""
    finite = values.isfinite().flatten(1).all(dim=1)
    number = torch.arange(first, first + len(values), device=values.device)
    bad.copy_(torch.minimum(bad, number.masked_fill_(finite, NONE_BAD).min()))
    left_out = ~finite.view(-1, *[1] * (values.ndim - 1))
    add_to_blocks(gain, values.masked_fill(left_out, 0.0), first)
    add_to_blocks(count, finite.long(), first)
