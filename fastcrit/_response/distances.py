"""A denoiser's response by distance, from products with J: probes of random phase, columns of J, and the transposed.

Fields v with all modes but k = 0 at random phase and the constant wave have E sum v v^T = 1, so that the correlation of
J v with v is, on average, the response averaged over sites; without noise where J is a convolution. The constant wave
goes on its own since lengths hang on it: among random phases all other modes would be its noise. The square of J needs
single columns.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy  # submodules load on first use
from numpy.typing import NDArray

from fastcrit._estimates.lags import shell_means
from fastcrit._estimates.response_function import by_distance
from fastcrit._kernels.lattice import Lattice
from fastcrit._response.derivative import Derivative
from fastcrit._response.evaluation import eps_of
from fastcrit._response.probes import in_channel, pieces, random_phases

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]

# End the keys of the draws of phases and of sites; those of `probes` end in 4.
_PHASES, _SITES = 5, 6
# Number of the constant wave among the fields of random phase, which count from 0; columns come after these.
_CONSTANT = -1
# v J v and v J^T v are one number. Apart by more than this share of |v| |J v|, and than rounding, reverse mode has lost
# a part of the derivative.
_SAME = 1e-3
_ROUNDING = 30


@dataclass(frozen=True)
class Distances:
    """What probes say of each state."""

    matrices: Floats  # (states, shells, C, C): output, then input channel
    moments: Floats  # (states, 2): G summed over all lags, and r^2 G
    squares: Floats  # (states, shells); NaN without columns
    asymmetry: float  # NaN where it was not asked for, or reverse mode does not go through


def measure_distances(
    take: Derivative,
    y: Tensor,
    labels: Tensor | None,
    grid: Lattice,
    *,
    probes: int,
    columns: int,
    transposed: bool,
    key: list[int],
    rows: int,
) -> Distances:
    """By ``probes`` fields and ``columns`` sites of every state, in each channel; ``rows`` products at a time."""
    states, C = y.shape[:2]
    response = np.zeros((states, C, C, *grid.shape))
    squares = np.zeros((states, len(grid.lag_r)))
    both = _Both(take, eps_of(take.D, y), transposed and take.method != "central")
    tangents = [(kind, c) for kind in range(_CONSTANT, probes + columns) for c in range(C)]
    sites = [_sites(grid, columns, [key[0], key[1] + i, 0, _SITES]) for i in range(states)]
    for some, part in pieces(states, len(tangents), rows):
        few = None if labels is None else labels[some]
        numbers = range(states)[some]
        fields = np.zeros((len(tangents[part]), len(numbers), *grid.shape))
        for at, (kind, c) in enumerate(tangents[part]):
            for row, i in enumerate(numbers):
                if kind == _CONSTANT:
                    fields[at, row] = grid.sites**-0.5
                elif kind < probes:
                    fields[at, row] = random_phases(grid.shape, [key[0], key[1] + i, kind * C + c, _PHASES])
                else:
                    fields[at, row][sites[i][kind - probes]] = 1.0
        random = sum(kind < probes for kind, _ in tangents[part])
        v = _tangents(y[some], fields, [c for _, c in tangents[part]])
        products = take(y[some], v, few)
        both.add(y[some], v[:random], products[:random], few)
        host = products.double().cpu().numpy()
        for at, (kind, c) in enumerate(tangents[part]):
            for row, i in enumerate(numbers):
                if kind < probes:
                    share = 1 if kind == _CONSTANT else probes
                    # Of a field without k = 0 the constant part of Jv has nothing to tell.
                    response[i, :, c] += correlate(grid, host[at, row], fields[at, row]) / (share * grid.sites)
                else:
                    back = tuple(-x for x in sites[i][kind - probes])
                    column = np.roll((host[at, row] ** 2).sum(axis=0), back, axis=tuple(range(grid.ndim)))
                    squares[i] += shell_means(grid, column) / (columns * C)
    shells, moments = zip(*(by_distance(grid, one) for one in response), strict=True)
    if not columns:
        squares[:] = np.nan
    return Distances(np.stack(shells), np.stack(moments), squares, both.asymmetry)


def correlate(grid: Lattice, fields: Floats, others: Floats) -> Floats:
    """Sums over i of f_i g_(i + r) at every lag r of the torus, for fields (.., N1 .. Nd) that broadcast."""
    axes = tuple(range(-grid.ndim, 0))
    product = np.conj(scipy.fft.rfftn(fields, axes=axes)) * scipy.fft.rfftn(others, axes=axes)
    return np.asarray(scipy.fft.irfftn(product, s=grid.shape, axes=axes))


class _Both:
    """Sums of squares of J v and of J v - J^T v, as long as reverse mode goes through."""

    def __init__(self, take: Derivative, eps: float, wanted: bool) -> None:
        self._take = take
        self._tolerance = max(_SAME, _ROUNDING * eps)
        self._wanted = wanted
        self._apart = self._whole = 0.0

    def add(self, y: Tensor, v: Tensor, products: Tensor, labels: Tensor | None) -> None:
        if not self._wanted or not len(v):
            return
        import torch

        try:
            transposed = self._take.transposed(y, v, labels)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a network's operations raise: it has no derivative of the kind, and no asymmetry
            self._wanted = False
            return
        v, Jv, JTv = (x.double().flatten(2) for x in (v, products, transposed))
        size = v.norm(dim=2) * Jv.norm(dim=2)
        if bool((((v * (Jv - JTv)).sum(dim=2)).abs() > self._tolerance * size).any()):
            warnings.warn(
                f"asymmetry: NaN, since reverse mode loses a part of the derivative of {self._take.D.name} that "
                "forward mode has",
                stacklevel=4,
            )
            self._wanted = False
        self._apart += float((Jv - JTv).square().sum())
        self._whole += float(Jv.square().sum())

    @property
    def asymmetry(self) -> float:
        return math.sqrt(self._apart / self._whole) if self._wanted and self._whole > 0 else float("nan")


def _tangents(y: Tensor, fields: Floats, channels: list[int]) -> Tensor:
    import torch

    return in_channel(y, torch.from_numpy(fields).to(y), torch.tensor(channels, device=y.device))


def _sites(grid: Lattice, columns: int, key: list[int]) -> list[tuple[int, ...]]:
    """So many sites of the lattice, without repetition."""
    flat = np.random.default_rng(key).choice(grid.sites, columns, replace=False)
    return [tuple(int(x) for x in np.unravel_index(site, grid.shape)) for site in flat]
