"""The response of a denoiser by distance: averages over shells of lags, the lengths they imply, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastcrit._estimates.averages import jackknife_error
from fastcrit._estimates.lags import lag_squares, shell_means
from fastcrit._kernels.lattice import Lattice

Floats = NDArray[np.float64]

EXACT = "exact"


@dataclass(frozen=True)
class ResponseFunction:
    r"""How far a denoiser looks: its derivative by distance, averaged over sites, states and shells of lags.

    Shells of lags are those of `fastcrit.autocorrelation`: the first len(autocorrelation.r) are the same. The others
    lie beyond half the smallest side, in the corners of the torus; with them sums over shells, weighted by ``pairs``,
    are sums over all lags. Standard errors are over states, whose scatter holds that of the probes: NaN for one state,
    0 where a theory is exact.

    Attributes
    ----------
    r : (shells,)
        Mean distance of the lags in a shell, in sites, to the nearest image on the torus.
    pairs : (shells,)
        Lattice vectors in each shell.
    G, stderr : (shells,)
        :math:`G(r) = \frac1N \sum_i \partial D_i / \partial y_{i+r}`, the mean of the diagonal over channels. It is the
        Fourier transform of `ModeResponse.diagonal_gain`.
    G_matrix : (shells, C, C)
        The same between channels: output, then input channel.
    square, square_stderr : (shells,)
        Mean square of :math:`\partial D_i / \partial y_{i+r}`, summed over output and input channels and divided by C.
        NaN where it was not measured, as from Stein's form.
    asymmetry : float
        :math:`\|J v - J^T v\|/\|J v\|` over all probes: 0 for a posterior mean. NaN where it was not measured.
    samples, square_samples : (states, shells)
        Of every state.
    moments : (states, 2)
        Of every state, G summed over all lags, and r^2 G.
    ndim : int
        Lattice axes d.
    s : float
        Noise level.
    method : str
        How derivatives were taken: "jvp", "vjp", "central", "stein" or "exact".
    """

    r: Floats
    pairs: NDArray[np.int64]
    G: Floats
    stderr: Floats
    G_matrix: Floats
    square: Floats
    square_stderr: Floats
    asymmetry: float
    samples: Floats = field(repr=False)
    square_samples: Floats = field(repr=False)
    moments: Floats = field(repr=False)
    ndim: int
    s: float
    method: str

    @property
    def length(self) -> float:
        r"""Response length :math:`\sqrt{\sum_r r^2 G / 2d \sum_r G}`, in sites; NaN where that is no number.

        Sums are over all lags of the torus, and r^2 is that of each lag, not of its shell.
        """
        return float(self._lengths(self.moments.mean(axis=0)))

    @property
    def length_stderr(self) -> float:
        """Standard error of `length`, by the jackknife over states."""
        return self._error(self.moments, self._lengths)

    def radius(self, share: float = 0.9) -> float:
        r"""Distance within which this share of :math:`\sum_r \mathrm{E}J^2` lies, in sites; NaN without ``square``.

        Linear between shells, and 0 where the site itself holds that share.

        Parameters
        ----------
        share : float
            Between 0 and 1.

        Raises
        ------
        ValueError
            Another share.
        """
        return float(self._radii(self.square, _check_share(share)))

    def radius_stderr(self, share: float = 0.9) -> float:
        """Standard error of `radius`, by the jackknife over states; arguments and errors as there."""
        share = _check_share(share)
        return self._error(self.square_samples, lambda square: self._radii(square, share))

    def _lengths(self, moments: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.sqrt(moments[..., 1] / (2 * self.ndim * moments[..., 0])))

    def _radii(self, square: Floats, share: float) -> Floats:
        total = np.cumsum(square * self.pairs, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            within = total / total[..., -1:]
        rows = within.reshape(-1, within.shape[-1])
        radii = [np.interp(share, row, self.r) if np.isfinite(row).all() else np.nan for row in rows]
        return np.asarray(radii).reshape(within.shape[:-1])

    def _error(self, samples: Floats, estimate: Callable[[Floats], Floats]) -> float:
        n = len(samples)
        if n == 1:
            known = self.method == EXACT and np.isfinite(samples).all()
            return 0.0 if known else float("nan")
        left = (samples.sum(axis=0) - samples) / (n - 1)
        return float(jackknife_error(estimate(left)))


def by_distance(grid: Lattice, response: Floats) -> tuple[Floats, Floats]:
    """Of one state's response (C, C, N1 .. Nd) at every lag: shell means (shells, C, C), and both moments (2,)."""
    axes = tuple(range(-grid.ndim, 0))
    diagonal = np.trace(response, axis1=0, axis2=1) / len(response)
    moments = np.stack([diagonal.sum(axis=axes), (lag_squares(grid) * diagonal).sum(axis=axes)])
    return np.moveaxis(shell_means(grid, response), -1, 0), moments


def share_within(square: Floats, pairs: NDArray[np.int64], r: Floats, radii: Sequence[float]) -> Floats:
    """Shares (.., radii) of mean squares (.., shells) within distances, linear between shells."""
    total = np.cumsum(square * pairs, axis=-1)
    rows = total.reshape(-1, total.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [np.interp(radii, r, row) / row[-1] for row in rows]
    return np.asarray(shares).reshape(*total.shape[:-1], len(radii))


def summarise(
    grid: Lattice, s: float, method: str, matrices: Floats, moments: Floats, squares: Floats, asymmetry: float
) -> ResponseFunction:
    """From every state's matrices (states, shells, C, C), moments (states, 2) and squares (states, shells)."""
    samples = np.trace(matrices, axis1=2, axis2=3) / matrices.shape[-1]
    return ResponseFunction(
        r=grid.lag_r,
        pairs=grid.lag_pairs,
        G=samples.mean(axis=0),
        stderr=_standard_error(samples, method),
        G_matrix=matrices.mean(axis=0),
        square=squares.mean(axis=0),
        square_stderr=_standard_error(squares, method),
        asymmetry=float(asymmetry),
        samples=samples,
        square_samples=squares,
        moments=moments,
        ndim=grid.ndim,
        s=float(s),
        method=method,
    )


def exact_response(
    grid: Lattice, s: float, response: Floats, square: Floats, asymmetry: float = 0.0
) -> ResponseFunction:
    """From exact responses (states, C, C, N1 .. Nd) and mean squares (states, N1 .. Nd) at every lag."""
    shells, moments = zip(*(by_distance(grid, one) for one in response), strict=True)
    squares = shell_means(grid, square)
    return summarise(grid, s, EXACT, np.stack(shells), np.stack(moments), squares, asymmetry)


def _standard_error(samples: Floats, method: str) -> Floats:
    """Over states; of one state 0 where it is exact and known, NaN elsewhere."""
    n = len(samples)
    if n == 1:
        return np.where(np.isfinite(samples[0]), 0.0 if method == EXACT else np.nan, np.nan)
    return np.asarray(samples.std(axis=0, ddof=1) / np.sqrt(n))


def _check_share(share: float) -> float:
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, got {share!r}")
    return float(share)
