"""What theory predicts of patch models: linear response at y = 0, and along trajectories by the closure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.arrays import (
    check_choice,
    check_integer,
    check_levels,
    check_positive,
    check_seed,
    to_numbers,
)
from fastcrit._estimates import dispersion as _dispersion
from fastcrit._estimates.response_function import ResponseFunction
from fastcrit.errors import NoTransitionError
from fastcrit.patch.dictionary import Dictionary, lattice_shape
from fastcrit.schedules import Schedule
from fastcrit.theory import closure as _closure
from fastcrit.theory.patch_response import patch_response, patch_response_at
from fastcrit.theory.site_modes import largest_eigenvalue_by_site, softest_wave

__all__ = ["GinzburgLandau", "PatchTheory"]

Floats = NDArray[np.float64]

# The largest gain is looked for on this many levels a decade before its crossing of 1 is refined.
_SCAN_PER_DECADE = 50
# Levels below this fraction of the upper bound are not searched. (Patterns of small norm beside large ones can have
# their transition at a hundredth of it.)
_LOWEST_LEVEL = 1e-4
# Trajectories begin at this multiple of the upper bound, where the largest gain is below 1/400: of the structure factor
# s^2 + P of a stationary state the start s^2 lacks 1/400 at most, and the reverse SDE forgets it on the way.
_START_ABOVE = 20.0


@dataclass(frozen=True)
class GinzburgLandau:
    """d phi / d(-log s) = -r phi + c laplacian(phi) - u phi^3 near the symmetric point; lengths in sites."""

    r: float
    c: float
    u: float


class PatchTheory:
    r"""Linear response of the patch model about the symmetric point y = 0.

    With weights :math:`\bar w_\mu \propto \pi_\mu e^{-\|\xi^\mu\|^2/2s^2}` and
    :math:`C_j = \mathrm{Cov}_{\bar w}(\xi_c, \xi_j)`, plane waves are eigenvectors with gain
    :math:`g_k = \hat C(k)/s^2`, :math:`\hat C(k) = \sum_j C_j e^{ik(j-c)}`. The critical level solves
    :math:`s^2 = \max_k \mathrm{Re}\,\hat C(k; s)`. Source: arXiv:2603.20092.

    y = 0 is a state of no information only for patterns whose mean is 0; subtract it first where it is not.

    Parameters
    ----------
    dictionary : Dictionary
    lattice : int or (int, int)
        Sides in sites; wavevectors are those of this periodic lattice. A position-specific dictionary brings its own.

    Raises
    ------
    ValueError
        A patch larger than the lattice.

    Examples
    --------
    >>> import fastcrit as fc
    >>> pair = fc.patch.Dictionary.binary(size=5, random=0)
    >>> theory = fc.theory.PatchTheory(pair, lattice=80)
    >>> round(theory.critical_level(), 9), theory.critical_mode()
    (5.0, (0.0, 0.0))
    """

    def __init__(self, dictionary: Dictionary, lattice: int | tuple[int, int] | None = None) -> None:
        self.dictionary = dictionary
        self.lattice = lattice_shape(dictionary, lattice)
        half = dictionary.size // 2
        offsets = np.arange(-half, half + 1)
        self._offsets = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
        if not dictionary.position_specific:
            self._flat = dictionary.patterns.reshape(len(dictionary), -1)
            self._center = self._flat[:, self._flat.shape[1] // 2]
            self._norms = (self._flat**2).sum(axis=1)

    def weights(self, s: float) -> Floats:
        """Posterior weights of the patterns at y = 0 and noise level ``s``, (P,)."""
        self._equivariant("weights")
        log_w = np.log(self.dictionary.prior) - self._norms / (2.0 * check_positive(s, "s") ** 2)
        w = np.exp(log_w - log_w.max())
        return np.asarray(w / w.sum())

    def covariance(self, s: float) -> Floats:
        """C_j = Cov(center, pixel j) under the weights at y = 0, (n, n)."""
        w = self.weights(s)
        mean = w @ self._flat
        C = (w * (self._center - w @ self._center)) @ (self._flat - mean)
        return np.asarray(C.reshape(self.dictionary.size, self.dictionary.size))

    def kernel_spectrum(self, k: Any, s: float) -> Any:
        """C^(k), complex, for wavevectors ``k`` (..., 2) in rad per site."""
        k = to_numbers(k, "k")
        if k.ndim < 1 or k.shape[-1] != 2:
            raise ValueError(f"k: expected wavevectors of shape (..., 2), got {k.shape}")
        return np.exp(1j * (k @ self._offsets.T)) @ self.covariance(s).ravel()

    def gain(self, k: Any, s: float) -> Any:
        """g_k = C^(k)/s^2 at the symmetric point, complex: growth is the real part, phase drift the imaginary."""
        return self.kernel_spectrum(k, s) / check_positive(s, "s") ** 2

    def critical_level(self) -> float:
        """The largest noise level at which the softest mode's gain is 1; the first that the reverse process meets.

        Raises
        ------
        NoTransitionError
            No mode reaches gain 1 at any level.
        """
        top = self._search_from()
        if top == 0.0:
            raise NoTransitionError("the dictionary predicts one and the same value everywhere: no mode responds")
        low = _LOWEST_LEVEL * top
        levels = np.geomspace(top, low, int(_SCAN_PER_DECADE * np.log10(top / low)))
        previous = levels[0]
        for s in levels:
            if self._excess(s) >= 0:
                if s == previous:  # the bound itself is attained
                    return float(s)
                return float(scipy.optimize.brentq(self._excess, s, previous, xtol=1e-13 * s, rtol=8.9e-16))
            previous = s
        raise NoTransitionError(f"no mode reaches gain 1 between s = {low:.3g} and {top:.3g}")

    def critical_mode(self) -> tuple[float, ...]:
        """Wavevector in rad per site, of the lattice's modes, with the largest gain at the critical level."""
        self._equivariant("critical_mode")
        return self._softest(self.critical_level())[1]

    def critical_time(self, schedule: Schedule) -> float:
        """The critical level as a time of ``schedule``, an object such as `fastcrit.schedules.OrnsteinUhlenbeck()`."""
        if not hasattr(schedule, "t"):
            raise TypeError(f"schedule: expected a schedule, such as OrnsteinUhlenbeck(), got {schedule!r}")
        return float(schedule.t(self.critical_level()))

    def xi_eq(self, s: float) -> float:
        """Equilibrium correlation length sqrt(c/r) in sites; NaN unless r > 0 and the softest mode is at k = 0."""
        gl = self.ginzburg_landau(s)
        if any(self._softest(s)[1]):
            return float("nan")
        return float(np.sqrt(gl.c / gl.r)) if gl.r > 0 and gl.c >= 0 else float("nan")

    def ginzburg_landau(self, s: float) -> GinzburgLandau:
        """Field-theory coefficients at level ``s``: r = 1 - g_0, c from the curvature of g_k, u from cumulants."""
        C = self.covariance(s).ravel()
        s = float(s)
        # Isotropic mean over the two axes of -1/2 d^2 C^/dk^2.
        c = 0.25 * float(C @ (self._offsets**2).sum(axis=1)) / s**2
        w = self.weights(s)
        a = self._center - w @ self._center
        b = self._flat.sum(axis=1)
        b = b - w @ b
        kappa = float(w @ (a * b**3)) - 3.0 * float(w @ (a * b)) * float(w @ b**2)
        return GinzburgLandau(r=1.0 - float(C.sum()) / s**2, c=c, u=-kappa / (6.0 * s**6))

    def log_growth(self, k: Any, start: float, end: float) -> Any:
        """Log amplitude ratio of mode ``k`` (..., 2) along the probability-flow ODE from ``start`` down to ``end``.

        Exact to first order in the amplitude: the integral of Re g_k - 1 over -log s (by Gauss-Legendre quadrature,
        whose nodes are enough for rounding when norms are equal; then it is -log(s0/s1) + Re C^ (s1^-2 - s0^-2)/2).
        """
        check_levels([start, end])
        nodes, weights = np.polynomial.legendre.leggauss(64)
        half = 0.5 * np.log(start / end)
        s = np.exp(0.5 * np.log(start * end) + half * nodes)
        values = np.stack([np.real(self.gain(k, float(x))) - 1.0 for x in s], axis=-1)
        return half * (values @ weights)

    def largest_eigenvalue(self, s: float) -> float:
        """Largest real part among the eigenvalues of the Jacobian dD/dy at y = 0.

        On the periodic lattice of an equivariant dictionary this is max_k Re g_k. For a position-specific dictionary,
        with zeros outside the image, it is found by ARPACK's Arnoldi iteration (Lanczos for matrices that are not
        symmetric, which this is where neighbouring sites weigh the images differently).
        """
        s = check_positive(s, "s")
        if not self.dictionary.position_specific:
            return self._softest(s)[0] / s**2
        return largest_eigenvalue_by_site(self.dictionary, s)

    def response_function(self, s: float, y: Any = None) -> ResponseFunction:
        """G(r) as `fastcrit.response_function` has it, exactly: at y = 0, or at states ``y`` (n, H, W) on the torus.

        dD_i/dy_j is the covariance of both pixels under the posterior of i's patch, over s^2: 0 beyond the patch, and
        not symmetric unless the dictionary is. ValueError for a position-specific one, a level that is not positive,
        and states of another shape or not finite.

        Examples
        --------
        >>> import fastcrit as fc
        >>> theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=3, random=0), lattice=8)
        >>> theory.response_function(2.0).G.round(9).tolist()  # 1/s^2 on the patch
        [0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
        """
        self._equivariant("response_function")
        if y is None:
            return patch_response(self.covariance(s), s, self.lattice)
        return patch_response_at(self.dictionary, y, check_positive(s, "s"), self.lattice)

    def drift_rate(self, k: Any, s: float, process: str = "sde") -> Any:
        r"""Growth rate of mode ``k`` (..., 2) under the reverse drift at y = 0, from Re g_k.

        `fastcrit.modes.drift_rate` with the dictionary's standard deviation. At y = 0, not on trajectories, where
        the noise of the state makes gains smaller (`trajectories`).

        Parameters
        ----------
        k : (..., 2)
            Wavevectors in rad per site.
        s : float
        process : "sde" or "ode"

        Returns
        -------
        array (...)
            Rates a unit of Ornstein-Uhlenbeck time; above 0 a disturbance grows.

        Raises
        ------
        ValueError
            A position-specific dictionary, a level that is not positive, another process.

        Examples
        --------
        >>> import fastcrit as fc
        >>> theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=5, random=0), lattice=80)
        >>> abs(float(theory.drift_rate([0.0, 0.0], 49**0.5))) < 0.01  # 1/2 = (1 - 25/s^2)(1 + 1/s^2) at s = 7.00
        True
        """
        self._equivariant("drift_rate")
        return _dispersion.drift_rate(np.real(self.gain(k, s)), s, self._data_std, process)

    def trajectories(
        self,
        levels: Any,
        solver: str = "sde",
        seed: int = 0,
        *,
        substeps: int | None = None,
        method: str = "auto",
        process: str | None = None,
    ) -> xr.Dataset:
        r"""Structure factor, gains and drift rates along trajectories: self-consistent theory.

        A Gaussian state of spectrum S responds by its mean Jacobian (Stein's lemma),
        :math:`g_k = \sum_\mu \langle w_\mu (\xi^\mu_c - D)\rangle\,\hat\xi^\mu(k)/s^2`, and a step from s to s',
        :math:`r = (s'/s)^2`, makes :math:`S' = |r + (1 - r) g_k|^2 S + s'^2 (1 - r)` of it (reverse SDE;
        :math:`r = s'/s` and no noise for the flow). The mean of the state goes along,
        :math:`m' = r m + (1 - r)\langle D\rangle`.

        Parameters
        ----------
        levels : sequence of float
            Noise levels, strictly decreasing and positive: at 0, the denoised image, there is no state and no gain.
            At the first the state is noise, as the sampler's: start where s^2 is far above the patterns' power.
        solver : "sde", "euler" or "heun"
            Whose steps, as in `fastcrit.patch.sample`.
        seed : int
            Of the quasi-random points. They are the same at all levels.
        substeps : int, optional
            Steps from each level to the next; 1 are those that a sampler on ``levels`` makes. Default: as many as keep
            steps in log s at 0.04 or below.
        method : "auto", "quadrature" or "qmc"
            How overlaps are averaged: along the one line that the patterns lie on, exactly (the +-1 pair); or over
            quasi-random points. "auto" takes the first where it can.
        process : "sde" or "ode", optional
            Whose drift rates and length. Default: the solver's, which is the flow for Euler and Heun.

        Returns
        -------
        xarray.Dataset
            ``S`` (level, k) of the state with its noise, ``gain`` (the real part), ``drift_rate`` (level, shell),
            all averaged over shells below Nyquist; ``xi_drift`` and the mean ``m`` of the state (level).
            ``nonlinear_share`` (level) is the share of the variance of D that linear response does not explain, and
            ``neglected`` the power that the steps leave out for it, relative to S where it is most. ``valid`` (level):
            k = 0 is the softest mode; and here and at all levels above no more than 3 % is neglected and linear
            response explains at least half of D. S is then the sampler's within about 2 % (as measured: at most 3 %).

        Raises
        ------
        ValueError
            A position-specific dictionary; levels that are not positive and decreasing; another solver, method or
            process; quadrature for patterns that do not lie on a line; fewer substeps than one.

        Notes
        -----
        Source: ours. It holds while states are Gaussian: down to about the drift's zero. Further down sites commit to
        a pattern and states become bimodal; with a softest mode at k != 0 it overestimates gains.

        Examples
        --------
        >>> import fastcrit as fc
        >>> theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=5, random=0), lattice=80)
        >>> ds = theory.trajectories(fc.schedules.log_levels(48, high=50.0, low=0.5))
        >>> ds["valid"].values[[0, -1]].tolist()
        [True, False]
        """
        closure, process = self._closure("trajectories", solver, seed, method, process)
        s = check_levels(levels)
        if s[0] > 1e12 or s[-1] < 1e-12:
            raise ValueError(f"levels: expected noise levels from 1e-12 to 1e12, got {s[0]:g} to {s[-1]:g}")
        steps = None if substeps is None else check_integer(substeps, "substeps", 1)
        return _closure.build_trajectories(closure, s, steps, self._data_std, process)

    def instability_level(self, solver: str = "sde", seed: int = 0, *, process: str | None = None) -> float:
        r"""The first noise level at which the reverse drift amplifies a mode, along self-consistent `trajectories`.

        Coming from high noise, the first zero of the largest drift rate.

        Parameters
        ----------
        solver : "sde", "euler" or "heun"
        seed : int
            Of the quasi-random points.
        process : "sde" or "ode", optional
            Whose drift. Default: the solver's. The flow's rate is :math:`(P_k - 1)/2s^2` at high noise (data of unit
            variance): it is above 0 from the beginning wherever any P_k is above 1, and has no first zero.

        Returns
        -------
        float
            NaN where there is no zero, and where the theory is not valid at it.

        Raises
        ------
        ValueError
            A position-specific dictionary, another solver or process.

        Notes
        -----
        Source: ours. Gains are slightly too large, and so is the level: by 1 % for patches of Fashion-MNIST and for the
        pair with random patterns, by 1 to 3 % for the pair of n = 7, 5 and 3 (steps of 0.04 in log s as the sampler's).

        Examples
        --------
        >>> import fastcrit as fc
        >>> theory = fc.theory.PatchTheory(fc.patch.Dictionary.binary(size=5, random=0), lattice=80)
        >>> abs(theory.instability_level() / theory.critical_level() - 1) < 0.03
        True
        """
        closure, process = self._closure("instability_level", solver, seed, "auto", process)
        top = self._search_from()
        if top == 0.0:  # one and the same value everywhere
            return float("nan")
        return _closure.find_instability(closure, _START_ABOVE * top, _LOWEST_LEVEL * top, self._data_std, process)

    def _closure(
        self, what: str, solver: str, seed: int, method: str, process: str | None
    ) -> tuple[_closure.Closure, str]:
        """The checked closure, and the process whose drift is meant."""
        self._equivariant(what)
        check_choice(solver, _closure.SOLVERS, "solver")
        check_choice(method, _closure.METHODS, "method")
        check_seed(check_integer(seed, "seed", 0))
        if process is None:
            process = "sde" if solver == "sde" else "ode"
        check_choice(process, _dispersion.PROCESSES, "process")
        return _closure.Closure(self.dictionary, self.lattice, solver, method, seed), process

    @property
    def _data_std(self) -> float:
        return self.dictionary.variance**0.5 or 1.0  # one pattern has no scale of its own

    def _equivariant(self, what: str) -> None:
        if self.dictionary.position_specific:
            raise ValueError(f"{what}: not defined for a position-specific dictionary, whose kernel is no convolution")

    def _softest(self, s: float) -> tuple[float, tuple[float, ...]]:
        """max_k Re C^(k) over the lattice's modes, and the wavevector; among equals the one of smallest |k|."""
        return softest_wave(self.covariance(s), self._offsets, self.lattice)

    def _excess(self, s: float) -> float:
        if self.dictionary.position_specific:
            return self.largest_eigenvalue(s) - 1.0
        return self._softest(s)[0] / s**2 - 1.0

    def _search_from(self) -> float:
        """A level above which no gain reaches 1: |Cov(a, b)| <= (range of a)(range of b)/4, summed over the patch."""
        patterns = self.dictionary.patterns
        spread = float((patterns.max(axis=0) - patterns.min(axis=0)).max())
        pixels = min(self.dictionary.size**2, int(np.prod(self.lattice)))
        return 0.5 * spread * float(np.sqrt(pixels)) * (1.0 + 1e-9)
