"""Tangents that gains are measured along, and what their products with J say.

Plane waves tell a mode's gain, its drift and its leakage, one mode at a time. A tangent with all modes at random phase
tells the gains of all shells at once, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastcrit._kernels.lattice import lattice
from fastcrit._response.derivative import Derivative

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]

# Ends the key of every draw of phases: keys of other draws in fastcrit are shorter, so that no stream serves twice.
_PHASES = 4
# Number of the constant wave among the fields of random phase, which count from 0.
_CONSTANT = -1


@dataclass(frozen=True)
class Measured:
    """What probes say of each state and shell."""

    matrix: Floats  # (states, shells, C, C): output, then input channel
    drift2: Floats  # (states, shells): square of Im <e_k, J e_k>; NaN where probes do not tell
    leakage: Floats  # (states, shells): likewise


@lru_cache(maxsize=64)
def waves_of_shell(shape: tuple[int, ...], shell: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Wavevectors of a shell, one of each pair k and -k, and which of them are their own opposite."""
    grid = lattice(shape)
    inside = grid.shell_of_mode == shell
    sides = np.array(shape)
    n = np.rint(grid.half_wavevectors[inside] * sides / (2 * np.pi)).astype(np.int64) % sides
    opposite = -n % sides
    first = [tuple(a) <= tuple(b) for a, b in zip(n.tolist(), opposite.tolist(), strict=True)]
    both = {tuple(a) for a in n.tolist()}
    # A mode on the edge of the half spectrum has its opposite there too; elsewhere it stands for both.
    keep = np.array([f or tuple(b) not in both for f, b in zip(first, opposite.tolist(), strict=True)])
    return 2 * np.pi * n[keep] / sides, (n[keep] == opposite[keep]).all(axis=1)


@dataclass(frozen=True)
class WavePlan:
    """Waves to measure at every state."""

    column: NDArray[np.int64]  # (waves,): which of the chosen shells
    k: Floats  # (states, waves, ndim)
    own: NDArray[np.bool_]  # (states, waves): k is its own opposite
    share: Floats  # (waves,): mean of the weights below over all waves of the shell

    def average(self, values: Floats) -> Floats:
        """Averages (..., states, shells) of values (..., states, waves); a wave counts twice if for k and -k."""
        weight = np.where(self.own, 1.0, 2.0)
        starts = np.flatnonzero(np.diff(self.column, prepend=-1))
        # Divided by the weight that a draw has on average, not by its own: that would favour modes of lesser weight.
        return np.asarray(np.add.reduceat(weight * values / self.share, starts, axis=-1) / np.bincount(self.column))


def draw_waves(shape: tuple[int, ...], shells: list[int], states: int, waves: int | None, seed: list[int]) -> WavePlan:
    """All waves of each shell, or so many, drawn for each state by ``seed``: [seed, number of the first state]."""
    found = [waves_of_shell(shape, shell) for shell in shells]
    sizes = [len(k) if waves is None else min(waves, len(k)) for k, _ in found]
    k, own = [], []
    for i in range(states):
        rng = np.random.default_rng([seed[0], seed[1] + i])
        drawn = [
            np.arange(size) if size == len(all_k) else rng.choice(len(all_k), size, replace=False)
            for size, (all_k, _) in zip(sizes, found, strict=True)
        ]
        k.append(np.concatenate([all_k[some] for some, (all_k, _) in zip(drawn, found, strict=True)]))
        own.append(np.concatenate([all_own[some] for some, (_, all_own) in zip(drawn, found, strict=True)]))
    share = [np.where(all_own, 1.0, 2.0).mean() for _, all_own in found]
    column = np.repeat(np.arange(len(shells)), sizes)
    return WavePlan(column, np.stack(k), np.stack(own), np.asarray(share)[column])


def measure_waves(take: Derivative, y: Tensor, labels: Tensor | None, plan: WavePlan, rows: int) -> Measured:
    """Gains, drift and leakage along the plan's waves in each channel, ``rows`` products with J at a time."""
    C, (states, waves) = y.shape[1], plan.own.shape
    re, im = np.empty((2, C, C, states, waves))
    leakage = np.empty((C, states, waves))
    for c in range(C):
        for some, part in pieces(states, waves, rows // 2):  # a wave is two tangents
            few = None if labels is None else labels[some]
            along = _respond(take, y[some], few, c, plan.k[some, part], plan.own[some, part])
            re[:, c, some, part], im[:, c, some, part], leakage[c, some, part] = along
    drift2 = np.diagonal(im**2).mean(axis=-1)
    matrix = np.moveaxis(plan.average(re), (0, 1), (-2, -1))
    return Measured(matrix, plan.average(drift2), plan.average(leakage.mean(axis=0)))


def _respond(
    take: Derivative, y: Tensor, labels: Tensor | None, channel: int, k: Floats, own: NDArray[np.bool_]
) -> tuple[Floats, Floats, Floats]:
    """Re and Im (channels, states, waves) and leakage (states, waves), of waves in one channel.

    With e = (c + i s)/sqrt 2 and waves c, s of norm 1 (2^(1/2) and 0 where k is its own opposite).
    """
    import torch

    sides = tuple(y.shape[2:])
    ones = (1,) * len(sides)
    k = k.transpose(2, 1, 0)  # (ndim, waves, states)
    places = np.ogrid[tuple(slice(side) for side in sides)]
    phase = sum(ki.reshape(*ki.shape, *ones) * x for ki, x in zip(k, places, strict=True))
    cosine, sine = np.cos(phase), np.where(own.T.reshape(*own.T.shape, *ones), 0.0, np.sin(phase))
    c, s = (torch.from_numpy(wave * np.sqrt(2.0 / math.prod(sides))).to(y) for wave in (cosine, sine))
    waves_with_sine = torch.from_numpy(~own.all(axis=0)).to(y.device)
    fields = torch.cat([c, s[waves_with_sine]])
    products = take(y, in_channel(y, fields, channel), labels).double()
    Jc, Js = products[: len(c)], torch.zeros_like(products[: len(c)])
    Js[waves_with_sine] = products[len(c) :]
    c, s = c.double()[:, :, None], s.double()[:, :, None]

    def dot(a: Tensor, b: Tensor) -> Tensor:  # (waves, states, channels, 1, ..)
        return (a * b).sum(tuple(range(3, a.ndim)), keepdim=True)

    re, im = (dot(c, Jc) + dot(s, Js)) / 2, (dot(c, Js) - dot(s, Jc)) / 2
    field = tuple(range(2, Jc.ndim))
    rest = ((Jc - re * c + im * s).square() + (Js - re * s - im * c).square()).sum(field)
    whole = (Jc.square() + Js.square()).sum(field).clamp_min(torch.finfo(torch.float64).tiny)
    leakage = (rest / whole).sqrt()
    re, im = (x.flatten(2).permute(2, 1, 0) for x in (re, im))
    return _numpy(re), _numpy(im), _numpy(leakage.T)


def random_phases(shape: tuple[int, ...], key: list[int], *, constant: bool = False) -> Floats:
    """A real field v with |<e_k, v>| = 1 at every k != 0, 0 at k = 0 unless ``constant``, and uniform phases.

    White noise has such phases, independent ones, and signs at the modes that are their own opposite; its amplitudes
    are divided out.
    """
    axes = tuple(range(len(shape)))
    modes = np.fft.rfftn(np.random.default_rng(key).standard_normal(shape), axes=axes)
    modes /= np.abs(modes)
    if not constant:
        modes[(0,) * len(shape)] = 0.0
    return np.fft.irfftn(modes, s=shape, axes=axes, norm="ortho")


def measure_random_phases(
    take: Derivative, y: Tensor, labels: Tensor | None, shells: list[int], probes: int, seed: list[int], rows: int
) -> Measured:
    r"""Gains of all shells from ``probes`` fields of random phase in each channel.

    Re conj(v_k) (Jv)_k = g_k + Re sum_{k' != k} conj(v_k) J_kk' v_k', whose second term has the mean 0.
    """
    import torch

    states, C, *sides = y.shape
    shape = tuple(sides)
    numbers = [_CONSTANT] * (0 in shells) + list(range(probes if shells[-1] > 0 else 0))
    # In one row, since all products of a state share one evaluation of the network itself.
    tangents = [(number, channel) for number in numbers for channel in range(C)]
    matrix = np.zeros((states, len(shells), C, C))
    for some, part in pieces(states, len(tangents), rows):
        few = None if labels is None else labels[some]
        samples = range(seed[1], seed[1] + states)[some]
        fields = [[_field(shape, n, [seed[0], j, n * C + c, _PHASES]) for j in samples] for n, c in tangents[part]]
        v = torch.from_numpy(np.array(fields)).to(y.device)
        channels = torch.tensor([c for _, c in tangents[part]], device=y.device)
        products = take(y[some], in_channel(y[some], v.to(y.dtype), channels), few).double()
        of_v, of_products = (mode_amplitudes(x, len(shape)) for x in (v, products))
        overlaps = (of_v[:, :, None].conj() * of_products).real
        gains = _numpy(shell_averages(overlaps, shape, shells).transpose(2, 3))  # (n, states, shells, C)
        # The constant wave and the others share no shell: both are 0 at each other's modes.
        for (n, c), gain in zip(tangents[part], gains, strict=True):
            matrix[some, :, :, c] += gain if n == _CONSTANT else gain / probes
    unknown = np.full(matrix.shape[:2], np.nan)
    return Measured(matrix, unknown, unknown)


def _field(shape: tuple[int, ...], number: int, key: list[int]) -> Floats:
    """A field of random phase, or the constant wave, which is all of the k = 0 shell."""
    return np.full(shape, np.prod(shape) ** -0.5) if number == _CONSTANT else random_phases(shape, key)


def mode_amplitudes(fields: Tensor, ndim: int) -> Tensor:
    """<e_k, f> of real fields, on the last ``ndim`` axes: (.., modes) as in a half spectrum, last axis first."""
    import torch

    half: Tensor = torch.fft.rfftn(fields, dim=tuple(range(-ndim, 0)), norm="ortho")
    return half.movedim(-1, -ndim).flatten(-ndim)


def shell_averages(values: Tensor, shape: tuple[int, ...], shells: list[int]) -> Tensor:
    """Averages (.., shells) over a shell's modes, of values (.., modes of the half spectrum) that k and -k share."""
    import torch

    grid = lattice(shape)
    inside = np.flatnonzero(np.isin(grid.shell_of_mode, shells))
    column = np.searchsorted(shells, grid.shell_of_mode[inside])
    share = grid.half_weights[inside] / grid.shell_modes[shells][column]
    at, into, times = (torch.from_numpy(a).to(values.device) for a in (inside, column, share))
    return values.new_zeros(*values.shape[:-1], len(shells)).index_add_(-1, into, values[..., at] * times)


def in_channel(y: Tensor, fields: Tensor, channel: int | Tensor) -> Tensor:
    """Tangents (n, states, C, ..) that are fields (n, states, ..) in one channel: the same or each its own."""
    import torch

    tangents = y.new_zeros(len(fields), *y.shape)
    tangents[torch.arange(len(fields), device=y.device), :, channel] = fields
    return tangents


def pieces(states: int, tangents: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the states and of the tangents at each, at most ``rows`` products (and at least one) together."""
    together = max(1, min(tangents, rows))
    batch = max(1, rows // together)
    for i in range(0, states, batch):
        for j in range(0, tangents, together):
            yield slice(i, i + batch), slice(j, j + together)


def _numpy(values: Tensor) -> Floats:
    return np.asarray(values.cpu().numpy())
