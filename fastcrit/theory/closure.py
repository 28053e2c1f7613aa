r"""The self-consistent theory of the patch model's trajectories: a Gaussian state and its mean response.

The state of a homogeneous random field is carried from level to level by its mean m and its spectrum S(k). By Stein's
lemma the response of D to a Gaussian state is its *mean* Jacobian, an average over the overlaps of a single patch with
the patterns. The theory is ours; it measures itself how far it is to be trusted (`Response`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy  # submodules load on first use
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.dispersion import dispersion_length, drift_rate
from fastcrit._kernels.lattice import lattice as lattice_tables
from fastcrit.patch.dictionary import Dictionary

Floats = NDArray[np.float64]

SOLVERS = ("sde", "euler", "heun")
METHODS = ("auto", "quadrature", "qmc")

# The largest step in log s that is made when nobody says how many. The error is of first order, as the sampler's own:
# steps of 0.04 put the drift's zero of the +-1 pair 0.4 % above its limit of small steps, steps of 0.01 0.1 %.
LARGEST_STEP = 0.04
# Of the zero that the theory predicts, which belongs to no sampler's grid.
_STEP_OF_ZERO = 0.02

# What makes a response trusted. Measured with the sampler in shells 0 to 5, the linear response to each sample's own
# noise as control variate: for the pair of n = 3, 5 and 7, the pair with 4, 8 and 16 random patterns (lattice 80, 512
# samples), pairs with a prior or a mean, other random patterns, smooth ones (lattice 48 or 64) and patches of
# Fashion-MNIST (64 samples), S is off by 0.3 to 2.0 % (errors up to 0.9 %; the patches: 3.2 +- 0.9 %) where as much as
# 3 % of it is neglected, and by up to 4 % where 5 % is; gains are then too large by up to 0.035. The estimate is of the
# right size only while linear response explains most of D: of states that drift towards one sign (random patterns whose
# centres do not balance) S is off by 9 % where the share is 0.84 and the estimate 2.3 %, but by 1 % where it is 0.5.
_NEGLECTED = 0.03
_NONLINEAR = 0.5
# Gains that are equal up to rounding are not softer at k != 0 than at k = 0.
_EQUAL = 1e-9

# Sobol points, a power of 2; each is used with its opposite, so that odd moments vanish. Seeds then differ by less than
# 0.1 % in the drift's zero with 4 or 8 random patterns beside the pair (1024 points: 1 %).
_POINTS = 4096
# Entries of a table (points, patterns) that are held at once.
_ENTRIES = 2**23
# Principal directions of the centred patterns below this share of the largest are rounding.
_NO_DIRECTION = 1e-12
# The normal weight left out beyond this many standard deviations is 2e-19.
_CUT = 9.0
# Where logits cross, weights change like tanh(a t), whose poles lie at distance pi/2a from the real axis: the error of
# the trapezoidal rule of step 0.4/a is 2 exp(-pi^2/0.4) = 4e-11. Far below the transition, where the theory is not
# valid, the number of nodes ends that.
_NODE_STEP = 0.4
_MOST_NODES = 2**18


@dataclass(frozen=True)
class State:
    """Mean of a site, and spectrum (H, W) of the fluctuations in the layout of `numpy.fft.fft2`."""

    mean: float
    S: Floats


@dataclass(frozen=True)
class Response:
    """Mean response of D to a Gaussian state.

    Attributes
    ----------
    gain : (H, W)
        g_k, complex for dictionaries without parity.
    mean : float
        <D>.
    nonlinear_share : float
        Share of the variance of D that linear response does not explain, 1 - sum |g|^2 S/(N var D).
    neglected : float
        Power of that unexplained part, which the step of S leaves out, relative to S in the mode where it is most.
    """

    gain: NDArray[np.complex128]
    mean: float
    nonlinear_share: float
    neglected: float

    @property
    def trusted(self) -> bool:
        """Whether a step with this response makes the sampler's S."""
        return self.neglected <= _NEGLECTED and self.nonlinear_share <= _NONLINEAR

    @property
    def softest_is_uniform(self) -> bool:
        """Whether no mode is softer than k = 0."""
        real = self.gain.real
        return bool(real[0, 0] >= real.max() - _EQUAL * np.abs(real).max())


@dataclass(frozen=True)
class Point:
    """A level of a trajectory."""

    s: float
    state: State
    response: Response


class Closure:
    """Gaussian states of one dictionary on one lattice, their responses, and the steps of one solver."""

    def __init__(
        self, dictionary: Dictionary, lattice: tuple[int, int], solver: str = "sde", method: str = "auto", seed: int = 0
    ) -> None:
        self.lattice = lattice
        self.solver = solver
        n = dictionary.size
        self._patterns = dictionary.patterns.reshape(len(dictionary), -1)
        self._center = self._patterns[:, n * n // 2]
        self._sums = self._patterns.sum(axis=1)
        self._norms = (self._patterns**2).sum(axis=1)
        self._log_prior = np.log(dictionary.prior)
        # Logits that all patterns share drop out of the weights: only differences matter, P - 1 dimensions at most.
        self._centred = self._patterns - self._patterns.mean(axis=0)
        self.dimensions = _rank(self._centred)
        self.method = self._choose(method)
        self._points = _normal_points(self.dimensions, seed) if self.method == "qmc" else None
        self._pixel, self._apart = _patch_sites(n, lattice)

    def start(self, s: float) -> State:
        """The sampler's: noise and nothing else."""
        return State(0.0, np.full(self.lattice, s**2))

    def respond(self, state: State, s: float) -> Response:
        """Mean gain, <D>, and what linear response does not explain."""
        slopes = self._overlaps(state.S) / s**2
        t, p = self._nodes(slopes)
        bias = self._log_prior - self._norms / (2.0 * s**2) + state.mean * self._sums / s**2
        D, coupling = self._average(t, p, slopes, bias)
        mean = float(p @ D)
        kernel = np.zeros(self.lattice)
        np.add.at(kernel.reshape(-1), self._pixel, coupling @ self._patterns / s**2)
        gain = np.conj(np.fft.fft2(kernel))  # D_i = sum_j K_j y_(i+j)
        linear = np.abs(gain) ** 2 * state.S
        variance = float(p @ (D - mean) ** 2)
        even = float(p @ (0.5 * (D + D[::-1]) - mean) ** 2)
        share = max(0.0, 1.0 - float(linear.mean()) / variance) if variance > 0 else 0.0
        return Response(gain, mean, share, _neglected(linear, even, share * variance, state.S))

    def step(self, at: Point, to: float) -> Point:
        """One solver step to the lower level ``to``: what it does to a mode of gain g_k, and to the mean."""
        s, state, response = at.s, at.state, at.response
        ratio = (to / s) ** 2 if self.solver == "sde" else to / s
        factor = ratio + (1.0 - ratio) * response.gain
        mean = ratio * state.mean + (1.0 - ratio) * response.mean
        if self.solver == "heun":
            second = self.respond(State(mean, np.abs(factor) ** 2 * state.S), to)
            half = 0.5 * (to - s)
            slope = (state.mean - response.mean) / s + (mean - second.mean) / to
            factor = 1.0 + half * ((1.0 - response.gain) / s + factor * (1.0 - second.gain) / to)
            mean = state.mean + half * slope
        S = np.abs(factor) ** 2 * state.S
        if self.solver == "sde":
            S = S + to**2 * (1.0 - ratio)
        state = State(mean, S)
        return Point(to, state, self.respond(state, to))

    def march(self, levels: Floats, substeps: int | None = None) -> Iterator[Point]:
        """The points at ``levels``, with ``substeps`` steps from each to the next (default: small enough ones).

        Yields
        ------
        Point
        """
        s = float(levels[0])
        state = self.start(s)
        point = Point(s, state, self.respond(state, s))
        yield point
        for above, below in pairwise(levels):
            steps = substeps or max(1, int(np.ceil(np.log(above / below) / LARGEST_STEP - 1e-9)))
            for to in np.geomspace(above, below, steps + 1)[1:]:
                point = self.step(point, float(to))
            yield point

    def _choose(self, method: str) -> str:
        if method == "auto":
            return "quadrature" if self.dimensions <= 1 else "qmc"
        if method == "quadrature" and self.dimensions > 1:
            raise ValueError(
                f"method: 'quadrature' is for patterns on one line (such as the pair +1, -1); differences of these "
                f"span {self.dimensions} dimensions, take 'qmc'"
            )
        return method

    def _overlaps(self, S: Floats) -> Floats:
        """Overlaps of a patch's fluctuations with the centred patterns as (P, d) times d independent normal numbers."""
        covariance = np.fft.ifft2(S).real.reshape(-1)[self._apart]
        values, vectors = np.linalg.eigh(covariance)
        U, size, _ = np.linalg.svd(self._centred @ (vectors * np.sqrt(np.maximum(values, 0.0))), full_matrices=False)
        # The sign of a singular vector is arbitrary: fixed, so that quasi-random sums go smoothly from level to level.
        largest = np.take_along_axis(U, np.abs(U).argmax(axis=0)[None], axis=0)
        return np.asarray((U * np.where(largest < 0, -size, size))[:, : self.dimensions])

    def _nodes(self, slopes: Floats) -> tuple[Floats, Floats]:
        """Points (m, d) and weights (m,) of an average over normal numbers t, where logits are ``slopes`` @ t.

        In reverse order they are their opposites.
        """
        if self._points is not None:
            return self._points, np.full(len(self._points), 1.0 / len(self._points))
        steepest = 0.5 * float(np.ptp(slopes)) if slopes.size else 0.0
        step = min(0.1, _NODE_STEP / max(steepest, 1.0))
        t = np.linspace(-_CUT, _CUT, min(_MOST_NODES, int(2 * _CUT / step) + 1))
        p = np.exp(-0.5 * t**2)
        return t[:, None][:, : self.dimensions], p / p.sum()

    def _average(self, t: Floats, p: Floats, slopes: Floats, bias: Floats) -> tuple[Floats, Floats]:
        """D at every point, (m,), and <w_mu (xi^mu_c - D)>, (P,)."""
        D = np.empty(len(t))
        weight = np.zeros(len(bias))
        product = np.zeros(len(bias))
        rows = max(1, _ENTRIES // len(bias))
        for i in range(0, len(t), rows):
            w = t[i : i + rows] @ slopes.T + bias
            w -= w.max(axis=1, keepdims=True)
            np.exp(w, out=w)
            w /= w.sum(axis=1, keepdims=True)
            D[i : i + rows] = w @ self._center
            weight += p[i : i + rows] @ w
            product += (p[i : i + rows] * D[i : i + rows]) @ w
        return D, weight * self._center - product


def build_trajectories(closure: Closure, levels: Floats, substeps: int | None, std: float, process: str) -> xr.Dataset:
    """See `PatchTheory.trajectories`."""
    grid = lattice_tables(closure.lattice)
    spectra, gains, numbers = [], [], []
    for point in closure.march(levels, substeps):  # whole spectra of all levels would fill the memory
        response = point.response
        spectra.append(_shell_means(point.state.S))
        gains.append(_shell_means(response.gain.real))
        numbers.append(
            (
                point.state.mean, response.nonlinear_share, response.neglected, response.trusted,
                response.softest_is_uniform,
            )
        )  # fmt: skip
    gain = np.stack(gains)
    m, share, neglected, trusted, uniform = np.array(numbers, dtype=np.float64).T
    shells = np.arange(gain.shape[1])
    xi = np.full(len(levels), np.nan)
    if len(shells) > 1:
        k2 = grid.shell_k2[shells]
        xi = dispersion_length(k2, gain, of="drift", s=levels, data_std=std, process=process)
    by_shell = ("level", "shell")
    rate = drift_rate(gain, levels[:, None], std, process)
    # S carries on what a level above left out; where the softest mode is at k != 0 is a matter of the level alone.
    valid = np.logical_and.accumulate(trusted > 0) & (uniform > 0)
    data: dict[str, Any] = {
        "S": (
            ("level", "k"),
            np.stack(spectra),
            {"long_name": "structure factor of the state, mean removed", "units": "1"},
        ),
        "gain": (by_shell, gain, {"long_name": "mode gain averaged over states, real part", "units": "1"}),
        "drift_rate": (
            by_shell,
            rate,
            {"long_name": f"growth rate under the reverse drift ({process})", "units": "1/time"},
        ),
        "xi_drift": ("level", xi, {"long_name": "drift's equilibrium correlation length", "units": "length"}),
        "m": ("level", m, {"long_name": "mean of the state", "units": "1"}),
        "nonlinear_share": (
            "level",
            share,
            {"long_name": "share of var D that linear response does not explain", "units": "1"},
        ),
        "neglected": (
            "level",
            neglected,
            {"long_name": "power that the theory leaves out, relative to S, at most", "units": "1"},
        ),
        "valid": ("level", valid, {"long_name": "whether the theory holds"}),
    }
    coords: dict[str, Any] = {
        "level": ("level", levels, {"long_name": "noise level s = sigma/alpha", "units": "1"}),
        "k": ("k", grid.shell_k[shells], {"long_name": "wavenumber, mean over the shell", "units": "rad/length"}),
        "counts": ("k", grid.shell_modes[shells], {"long_name": "modes in the shell"}),
        "shell": ("shell", shells, {"long_name": "shell of wavenumbers"}),
        "shell_k": ("shell", grid.shell_k[shells], {"units": "rad/length"}),
    }
    attrs = {
        "lattice": list(closure.lattice),
        "spacing": 1.0,
        "data_std": std,
        "solver": closure.solver,
        "process": process,
        "method": closure.method,
        "conventions": "S = <|phi^ - <phi^>|^2>/N; k in rad per site",
    }
    return xr.Dataset(data, coords, attrs)


def find_instability(closure: Closure, high: float, low: float, std: float, process: str) -> float:
    """See `PatchTheory.instability_level`."""

    def rate(point: Point) -> float:
        return float(drift_rate(point.response.gain.real.max(), point.s, std, process))

    above = None
    for point in closure.march(np.geomspace(high, low, int(np.ceil(np.log(high / low) / _STEP_OF_ZERO)) + 1)):
        if not point.response.trusted:
            break
        if rate(point) >= 0:
            if above is None or not point.response.softest_is_uniform:
                break
            return _root_between(closure, above, point, rate)
        above = point
    return float("nan")


def _neglected(linear: Floats, even: float, unexplained: float, S: Floats) -> float:
    """Largest ratio of the unexplained power of D to S over modes.

    The autocorrelation of the order q of D in the overlaps is the q-th power of that of the linear part (exactly so if
    there is one overlap): q = 2 is the lowest order that is even in the state, q = 3 the lowest odd one left.
    """
    if unexplained <= 0:
        return 0.0
    correlation = np.fft.ifft2(linear).real
    if correlation[0, 0] <= 0:
        return float("inf")
    correlation /= correlation[0, 0]
    power = np.fft.fft2(even * correlation**2 + max(0.0, unexplained - even) * correlation**3).real
    return float((power / S).max())


def _root_between(closure: Closure, above: Point, below: Point, rate: Any) -> float:
    """The level of rate 0 among those that one step from ``above`` can reach."""
    width = np.log(below.s / above.s)

    def at(fraction: float) -> float:
        # Both ends are known, and have opposite signs whatever rounding would make of them.
        if fraction in (0.0, 1.0):
            return float(rate(below if fraction else above))
        return float(rate(closure.step(above, above.s * np.exp(fraction * width))))

    return float(above.s * np.exp(scipy.optimize.brentq(at, 0.0, 1.0, xtol=1e-7) * width))


def _rank(centred: Floats) -> int:
    size = np.linalg.svd(centred, compute_uv=False)
    return int((size > _NO_DIRECTION * size[0]).sum()) if size[0] > 0 else 0


def _normal_points(dimensions: int, seed: int) -> Floats:
    """Quasi-random normal numbers (points, dimensions), every point with its opposite."""
    generator = np.random.default_rng(seed)
    half = scipy.stats.norm.ppf(scipy.stats.qmc.Sobol(max(1, dimensions), seed=generator).random(_POINTS))
    return np.concatenate([half, -half[::-1]])[:, :dimensions]


def _patch_sites(n: int, lattice: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat lattice site of each pixel of the patch around site 0, (n^2,), and of each difference, (n^2, n^2)."""
    offset = np.arange(n) - n // 2
    rows, columns = (x.reshape(-1) for x in np.meshgrid(offset, offset, indexing="ij"))
    height, width = lattice
    pixel = rows % height * width + columns % width
    apart = (rows[:, None] - rows) % height * width + (columns[:, None] - columns) % width
    return pixel, apart


def _shell_means(values: Floats) -> Floats:
    """Averages over shells below Nyquist of values (H, W) that k and -k share."""
    grid = lattice_tables(values.shape)
    half = values[:, : values.shape[1] // 2 + 1].T.reshape(-1)
    sums = np.bincount(grid.shell_of_mode, grid.half_weights * half)
    return np.asarray((sums / grid.shell_modes)[: grid.shells_below_nyquist])
