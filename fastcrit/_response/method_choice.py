"""Which way of taking derivatives is right for a denoiser: found on one state, in every shell that is asked for.

A derivative that a network cuts off (`detach`, a mean turned into a float, a round trip through numpy) is wrong in the
modes that went that way and may be right in all others: wrong at k = 0 alone, or along one axis. So the probe holds
all modes of the shells, and shells are compared one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastcrit._kernels.lattice import lattice
from fastcrit._response.derivative import Derivative
from fastcrit._response.evaluation import eps_of
from fastcrit._response.probes import mode_amplitudes, shell_averages

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]

# The derivative of a network in half precision is right to a few per cent; one that is cut off is wrong by its size.
_TOLERANCE = 0.1
# Differences that change by more than half from one step to the next follow nothing, and judge nothing.
_SETTLED = 0.5
# Rounding against rounding, in standard deviations of one mode's.
_DEVIATIONS = 3.0
# Gains at several steps that are called alike, and unlike, as shares of the largest.
_ALIKE, _UNLIKE = 0.15, 0.25
_TINY = 1e-300
# Types that round by more than this are of half precision: what they round has derivatives all the same.
_HALF = 2.0**-12
# Largest change of a pixel in units of 1 + s, from too long for the curvature of most networks, and how many steps,
# each a fourth of the one before, lead to where rounding shows, by the bytes of a number.
_LONGEST = 1 / 6
_STEPS = {4: 10, 8: 12}


def probe_tangents(shape: tuple[int, ...], channels: int, shells: list[int]) -> Floats:
    """Two fields (2, C, *shape) of all modes of these shells, a quarter wave apart: no mode is orthogonal to both.

    Phases differ at random from mode to mode, and between channels by up to 120 degrees, so that neither their sum nor
    their differences cancel.
    """
    *lead, last = shape
    axes = tuple(range(-len(shape), 0))
    phase = np.angle(np.fft.rfftn(np.random.default_rng(0).standard_normal(shape), axes=axes))
    place = np.arange(math.prod(lead)).reshape(lead)  # of a wavevector but for its last component
    opposite = place[np.ix_(*(-np.arange(side) % side for side in lead))] if lead else place
    edge = 2 * np.arange(last // 2 + 1) % last == 0  # where the half spectrum holds both k and -k
    own = edge & (place == opposite)[..., None]  # their own opposites, and real
    phase[own] = np.pi / 4
    turn = 2 * np.pi / 3 * (np.arange(channels) * 0.618034 % 1) - np.array([0.0, np.pi / 2])[:, None]
    turn = turn.reshape(*turn.shape, *(1,) * len(shape)) * np.where(edge & (place > opposite)[..., None], -1.0, 1.0)
    modes = np.where(own, np.cos(phase + turn), np.exp(1j * (phase + turn)))
    inside = np.moveaxis(np.isin(lattice(shape).shell_of_mode, shells).reshape(last // 2 + 1, *lead), 0, -1)
    return np.fft.irfftn(modes * inside, s=shape, axes=axes, norm="ortho")


def choose_method(
    take: Derivative,
    y: Tensor,
    labels: Tensor | None,
    shells: list[int],
    methods: tuple[str, ...],
    fixed: bool,
    rows: int,
) -> bool:
    """Set the step of central differences, unless it is fixed, and the first of ``methods`` that they bear out.

    "central" where they bear out none; False if that is because the differences follow nothing. On the first state. The
    first field takes two evaluations at each of 10 steps (12 in float64), the second at 3, and each method that is
    tried two products.
    """
    import torch

    y, labels = y[:1], None if labels is None else labels[:1]
    shape = tuple(int(n) for n in y.shape[2:])
    tangents = torch.from_numpy(probe_tangents(shape, y.shape[1], shells)).to(y)[:, None]
    judge = _Judge(lambda y: take.D(y, take.s, labels), y, shells)
    # A fixed step stands for two of the scan's, twice and half as long, which have the same error.
    count = 3 if fixed else _STEPS[y.element_size()]
    sizes: Floats = (2 * take.step if fixed else _LONGEST * (1 + take.s)) / np.float64(4) ** np.arange(count)
    first = judge.scan(tangents[0], sizes)
    best, rounds = judge.step_of(first, take.s)
    take.method = "central"
    if not fixed:
        # Of fourth order from h and 2 h; where the network rounds, as long as it may be.
        take.step = float(sizes[best] / 2 if rounds else np.sqrt(2) * sizes[best + 2])
    if not methods or not (rounds or first.change[best] <= _SETTLED):
        return False
    if rounds and eps_of(take.D, y) < _HALF:
        return True  # not by its type: what rounds so (integers, 8 bits) has no derivative, or none of a part
    # Three steps in a row. Of a network in half precision the two longer ones tell, and the third what rounding does to
    # it, four times as much as to them.
    at, which, share = (best - 1, 0, 0.25) if rounds else (best, 1, 1.0)
    second = judge.scan(tangents[1], sizes[at : at + 3])
    expected = torch.stack([first.products[at + which], second.products[which]])
    noise = share * torch.stack([first.products[at + 1] - first.products[at], second.products[1] - second.products[0]])
    for method in methods:
        take.method = method
        found = _products(take, y, tangents, labels, rows)
        if (
            found is not None
            and judge.agree(found, expected, noise, float(first.rounding[at + 2]))
            and (not rounds or judge.agree_in_gains(tangents, found, expected))
        ):
            return True
    take.method = "central"
    return True


def contradicted(take: Derivative, y: Tensor, labels: Tensor | None, shells: list[int], rows: int, name: str) -> bool:
    """Whether central differences at the first state say other than take's method, where they say anything.

    ValueError, of the argument ``name``, where the network has no derivatives of the kind.
    """
    tried = Derivative(take.D, take.s, take.method, 0.0)
    try:
        tried(y[:1], y.new_ones(1, 1, *y.shape[1:]), None if labels is None else labels[:1])
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f'{name}: {take.method!r} cannot go through D; expected "central" or "auto", or a network without what '
            f"torch has no such derivative of, such as reentrant checkpoints ({error})"
        ) from error
    judged = choose_method(tried, y, labels, shells, (take.method,), False, rows)
    return judged and tried.method != take.method


@dataclass(frozen=True)
class _Scan:
    """Products with one tangent by differences, from long steps to short."""

    tangent: Tensor
    sizes: Floats  # steps: largest change of a pixel
    slopes: list[Tensor]  # of second order
    products: list[Tensor]  # of fourth order, from each step and the next
    change: Floats  # between each of them and the next, relative; below 1/4 for rounding alone
    rounding: Floats  # of a slope, root mean square


class _Judge:
    """Differences of f at y, and what they say shell by shell."""

    def __init__(self, f: Callable[[Tensor], Tensor], y: Tensor, shells: list[int]) -> None:
        self.f = f
        self.y = y
        self.shells = shells
        self.shape = tuple(int(n) for n in y.shape[2:])

    def scan(self, tangent: Tensor, sizes: Floats) -> _Scan:
        """Products by differences over ``sizes``, each a fourth of the one before."""
        import torch

        slopes = []
        with torch.no_grad():
            for size in sizes.tolist():
                h = size / float(tangent.abs().max())
                ahead, behind = self.f(self.y + h * tangent), self.f(self.y - h * tangent)
                slopes.append((ahead - behind).double() / (2 * h))
        # Richardson: the error of second order is 16 times that at a fourth of the step.
        products = [(16 * b - a) / 15 for a, b in pairwise(slopes)]
        eps, size_of = torch.finfo(ahead.dtype).eps, float(ahead.double().square().mean().sqrt())
        rounding = eps * size_of * float(tangent.abs().max()) / sizes
        change = [
            float((a - b).norm() / (torch.maximum(a.norm(), b.norm()) + 4 * r * a.numel() ** 0.5).clamp_min(_TINY))
            for (a, b), r in zip(pairwise(products), rounding[2:], strict=True)
        ]
        return _Scan(tangent, sizes, slopes, products, np.array(change), rounding)

    def step_of(self, scan: _Scan, s: float) -> tuple[int, bool]:
        """The first of the two products that change least between them; whether the network rounds.

        One that rounds is constant, or of another slope, between its jumps. A denoiser is smooth where the state moves
        by less than its noise, s: three longer steps about there that agree in a shell, and not with the short ones,
        have the say. (Two may agree by chance where D is sharp.)
        """
        best = int(np.argmin([c if np.isfinite(c) else np.inf for c in scan.change]))
        length = scan.sizes * float(scan.tangent.norm() / scan.tangent.abs().max())
        within = max(1, int(np.argmax(length <= s)))
        if length[within] > s or within >= best:
            return best, False
        three = [self._gains(scan.tangent, slope) for slope in scan.slopes[within - 1 : within + 2]]
        least = self._gains(scan.tangent, scan.products[best + 1])
        noise = scan.rounding[best + 2] * scan.tangent.numel() ** 0.5 / float(scan.tangent.norm())
        scale = max(np.abs(three[2]).max(), np.abs(least).max(), noise / _UNLIKE)
        # Alike by their own measure: where D saturates, slopes fall with the step, and are small beside the local one.
        alike = np.ptp(three, axis=0) <= _ALIKE * np.abs(three).max(axis=0)
        rounds = alike & (np.abs(three[2] - least) > _UNLIKE * scale)
        return (within, True) if rounds.any() else (best, False)

    def agree(self, found: Tensor, expected: Tensor, noise: Tensor, rounding: float) -> bool:
        """Whether products are the expected ones in every shell, but for the noise of those."""
        missed, whole, noisy = (self._amplitude(x) for x in (found.double() - expected, expected, noise))
        noisy = np.maximum(noisy, float(noise.square().mean().sqrt()))
        # Noise other than rounding excuses less than what would hide a gain.
        excused = np.maximum(np.minimum(_DEVIATIONS * noisy, _SETTLED * whole.max()), _DEVIATIONS * rounding)
        return bool((missed <= _TOLERANCE * whole + excused).all())

    def agree_in_gains(self, tangents: Tensor, found: Tensor, expected: Tensor) -> bool:
        """Whether gains are not unlike the expected ones: the noise of a shell's modes averages out over them."""
        one, other = (
            np.mean([self._gains(v, product) for v, product in zip(tangents, products, strict=True)], axis=0)
            for products in (found, expected)
        )
        return bool((np.abs(one - other) <= _UNLIKE * np.abs(other).max()).all())

    def _amplitude(self, products: Tensor) -> Floats:
        """Root mean square of a mode, by shells."""
        power = mode_amplitudes(products.double(), len(self.shape)).abs().square()
        return np.asarray(np.sqrt(shell_averages(power, self.shape, self.shells).mean(dim=(0, 1, 2)).cpu().numpy()))

    def _gains(self, tangent: Tensor, product: Tensor) -> Floats:
        """<v, Jv>/<v, v> by shells."""
        v, Jv = (mode_amplitudes(x.double(), len(self.shape)) for x in (tangent, product))
        overlap, norm = (
            shell_averages(x, self.shape, self.shells).sum(dim=(0, 1)).cpu().numpy()
            for x in ((v.conj() * Jv).real, v.abs().square())
        )
        return np.asarray(overlap / norm)


def _products(take: Derivative, y: Tensor, tangents: Tensor, labels: Tensor | None, rows: int) -> Tensor | None:
    """Products by take's method, ``rows`` at a time; None where the network has none of the kind."""
    import torch

    try:
        return torch.cat([take(y, some, labels) for some in torch.split(tangents, max(1, min(rows, len(tangents))))])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a network's operations raise; it has just run without derivatives
        return None
