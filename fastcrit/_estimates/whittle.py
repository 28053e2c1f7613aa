"""Maximum-likelihood fit of S = A / (1 + q k^2) + B to unbinned modes, for many spectra at once.

Modes of a Gaussian field are independent and exponentially distributed about S, so minus twice the log-likelihood is
sum_modes [log S + S_measured / S] (Whittle 1953); k and -k are one mode, which is the factor 1/2 in the errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST_STEPS = 200
# A step that moves every logarithm by less than this has converged: lengths are then good to a part in 10^9.
_CONVERGED = 1e-9
# Search range of xi^2 in sites^2: from a thousandth of a site to a hundred times the side.
_SMALLEST_Q = 1e-6
_LARGEST_Q_IN_SIDES = 1e4
# The amplitude above a background counts as measured when it exceeds three standard errors.
_WORST_LOG_AMPLITUDE_ERROR = 1.0 / 3.0


@dataclass(frozen=True)
class WhittleFit:
    """Rows of fits: xi in sites, and what went wrong with the first row (the estimate; the others are replicates)."""

    xi: Floats
    amplitude: Floats
    background: Floats
    flags: tuple[str, ...]


class Form(Protocol):
    """What stands for 1 / (1 + q k^2) at the modes that are fitted: itself, or its expected power on a crop."""

    @property
    def k2(self) -> Floats:
        """Lattice momentum of the modes (K,)."""

    @property
    def low(self) -> float:
        """From where log q is searched."""

    @property
    def high(self) -> float:
        """And to where."""

    def __call__(self, log_q: Floats) -> tuple[Floats, Floats, Floats]:
        """The form (rows, K) and its first two derivatives by log q, for log q (rows, 1)."""


class TorusForm:
    """1 / (1 + q k^2) itself, at lattice momenta ``k2`` (K,) of a lattice whose smallest side is ``side``."""

    def __init__(self, k2: Floats, side: int) -> None:
        self.k2 = k2
        self.low, self.high = float(np.log(_SMALLEST_Q)), float(np.log(_LARGEST_Q_IN_SIDES * side**2))

    def __call__(self, log_q: Floats) -> tuple[Floats, Floats, Floats]:
        """See `Form`."""
        h = 1.0 / (1.0 + np.exp(log_q) * self.k2)
        slope = -h * (1.0 - h)
        return h, slope, -slope * (1.0 - 2.0 * h)


def fit_ornstein_zernike(
    form: Form, modes: NDArray[np.int64], S: Floats, background: float | None, samples: int, side: int
) -> WhittleFit:
    """Fit rows of ``S`` (rows, K) with ``modes`` lattice modes at each place of ``form``.

    ``background`` is B, or None to fit it. ``samples`` spectra were averaged; ``side`` is the smallest side in sites.
    Rows start from the solution of the first.
    """
    weights = modes.astype(np.float64)
    # Fitted in units of its own size, so that no product of two powers leaves the range of a double.
    unit = float(np.abs(S).max())
    S = S / unit
    if background is not None:
        background = background / unit
    low, high = form.low, form.high
    theta = _start(form, weights, S[:1], background, side)
    theta, converged = _maximise(theta, form, weights, S[:1], background, low, high)
    error = _log_amplitude_error(theta, form, weights, background, samples)
    if len(S) > 1:
        rest, _ = _maximise(np.repeat(theta, len(S) - 1, axis=0), form, weights, S[1:], background, low, high)
        theta = np.concatenate([theta, rest])
    xi = np.exp(0.5 * theta[:, 1])
    fitted = np.exp(theta[:, 2]) if background is None else np.full(len(theta), background)

    flags = []
    has_background = background is None or background > 0
    if has_background and error > _WORST_LOG_AMPLITUDE_ERROR:
        flags.append("background_dominates")
    elif not converged[0]:
        flags.append("no_convergence")
    elif theta[0, 1] >= high:
        flags.append("unbounded")
    elif theta[0, 1] <= low:
        flags.append("uncorrelated")
    xi[theta[:, 1] <= low] = 0.0
    if flags and flags[0] != "uncorrelated":
        xi[0] = np.nan
    return WhittleFit(xi=xi, amplitude=unit * np.exp(theta[:, 0]), background=unit * fitted, flags=tuple(flags))


def _model(theta: Floats, form: Form, background: float | None) -> tuple[Floats, Floats]:
    """S (rows, K) and its derivatives (rows, parameters, K) by log A, log q and, when it is fitted, log B."""
    A = np.exp(theta[:, :1])
    h, by_log_q, _ = form(theta[:, 1:2])
    signal = A * h
    slope = A * by_log_q
    if background is not None:
        return signal + background, np.stack([signal, slope], axis=1)
    B = np.exp(theta[:, 2:])
    return signal + B, np.stack([signal, slope, np.broadcast_to(B, signal.shape)], axis=1)


def _deviance(theta: Floats, form: Form, weights: Floats, S: Floats, background: float | None) -> Floats:
    model, _ = _model(theta, form, background)
    return np.asarray((weights * (np.log(model) + S / model)).sum(axis=1))


def _maximise(
    theta: Floats, form: Form, weights: Floats, S: Floats, background: float | None, low: float, high: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """Newton's method with Levenberg damping, row by row in step; returns parameters and which rows converged."""
    theta = theta.copy()
    damping = np.full(len(theta), 1e-3)
    deviance = _deviance(theta, form, weights, S, background)
    done = np.zeros(len(theta), dtype=bool)
    # Below 1e-10 of the spectrum an amplitude is zero: it must not run off to minus infinity in the logarithm.
    faintest = np.log(1e-10 * np.abs(S).max(axis=1) + np.finfo(float).tiny)
    for _ in range(_MOST_STEPS):
        rows = np.flatnonzero(~done)
        if rows.size == 0:
            break
        score, information = _score_and_information(theta[rows], form, weights, S[rows], background)
        # A parameter that its bound stops stays there; the others must not step as if it moved.
        stopped = np.zeros(score.shape, dtype=bool)
        stopped[:, 0] = (theta[rows, 0] <= faintest[rows]) & (score[:, 0] < 0)
        stopped[:, 1] = ((theta[rows, 1] <= low) & (score[:, 1] < 0)) | ((theta[rows, 1] >= high) & (score[:, 1] > 0))
        score[stopped] = 0.0
        information[stopped[:, :, None] | stopped[:, None, :]] = 0.0
        diagonal = np.einsum("rpp->rp", information)
        # The floors keep parameters that have lost all influence (a signal that is not there) from making it singular.
        largest = diagonal.max(axis=1, keepdims=True)
        ridge = damping[rows, None] * diagonal + 1e-12 * largest + np.where(largest > 0, 0.0, 1.0)
        damped = information + ridge[:, :, None] * np.eye(diagonal.shape[1])
        # The pseudo-inverse: an ensemble without scatter can leave a matrix that is singular to the last bit.
        step = (np.linalg.pinv(damped, hermitian=True) @ score[..., None])[..., 0]
        trial = theta[rows] + np.clip(step, -2.0, 2.0)
        trial[:, 0] = np.maximum(trial[:, 0], faintest[rows])
        trial[:, 1] = np.clip(trial[:, 1], low, high)
        new = _deviance(trial, form, weights, S[rows], background)
        moved = np.abs(trial - theta[rows])
        # Equal up to rounding of a sum of K terms counts as no worse: the last steps are below what it resolves.
        better = new <= deviance[rows] + 1e-13 * np.abs(deviance[rows])
        theta[rows[better]] = trial[better]
        deviance[rows[better]] = new[better]
        damping[rows] = np.where(better, damping[rows] / 5, np.minimum(damping[rows] * 10, 1e12))
        # An amplitude that has vanished, or whose length is free, may go on drifting without changing the fit.
        small = (moved < _CONVERGED).all(axis=1)
        done[rows[small & (better | (damping[rows] >= 1e12))]] = True
    return theta, done


def _score_and_information(
    theta: Floats, form: Form, weights: Floats, S: Floats, background: float | None
) -> tuple[Floats, Floats]:
    """Gradient of the log-likelihood (rows, p) and its negative second derivatives (rows, p, p).

    Where those are not positive definite, far from the maximum, their expectation (Fisher's information) stands in for
    them. That alone would do, but where the model fits badly its steps overshoot and hundreds of them are needed.
    """
    model, d = _model(theta, form, background)
    w = weights / model**2
    residual = w * (S - model)
    fisher = np.einsum("rk,rpk,rqk->rpq", w, d, d)
    observed = np.einsum("rk,rpk,rqk->rpq", w + 2.0 * residual / model, d, d)
    # Second derivatives of the model: by (log A)^2 d_A, by log A log q d_q, by (log q)^2 A times the form's, by
    # (log B)^2 d_B.
    curvature = np.exp(theta[:, :1]) * form(theta[:, 1:2])[2]
    observed[:, 0, 0] -= (residual * d[:, 0]).sum(axis=1)
    cross = (residual * d[:, 1]).sum(axis=1)
    observed[:, 0, 1] -= cross
    observed[:, 1, 0] -= cross
    observed[:, 1, 1] -= (residual * curvature).sum(axis=1)
    if background is None:
        observed[:, 2, 2] -= (residual * d[:, 2]).sum(axis=1)
    definite = np.linalg.eigvalsh(observed)[:, 0] > 0
    return np.einsum("rk,rpk->rp", residual, d), np.where(definite[:, None, None], observed, fisher)


def _start(form: Form, weights: Floats, S: Floats, background: float | None, side: int) -> Floats:
    """The best of a coarse grid of lengths and backgrounds, with the amplitude by weighted least squares."""
    tail = float(np.average(S[0], weights=weights * (form.k2 >= np.median(form.k2))))
    grounds = [background] if background is not None else [f * tail for f in (0.02, 0.3, 0.8, 0.97)]
    # Weights 1/S^2 with S smoothed to its running scale; only a starting point depends on them.
    scale = np.maximum(S[0], 0.1 * S[0].mean())
    floor = 1e-9 * float(np.abs(S[0]).max()) + np.finfo(float).tiny
    best = (np.inf, np.zeros(3))
    for xi in np.geomspace(0.05, 2.0 * side, 24):
        log_q = float(np.clip(2.0 * np.log(xi), form.low, form.high))
        h = form(np.array([[log_q]]))[0][0]
        for B in grounds:
            A = max(float((weights * h * (S[0] - B) / scale**2).sum() / (weights * h**2 / scale**2).sum()), floor)
            theta = np.array([np.log(A), log_q, np.log(max(B, floor))])
            shown = theta[None, : 2 if background is not None else 3]
            deviance = float(_deviance(shown, form, weights, S, background)[0])
            if deviance < best[0]:
                best = (deviance, theta)
    return best[1][None, : 2 if background is not None else 3]


def _log_amplitude_error(theta: Floats, form: Form, weights: Floats, background: float | None, samples: int) -> float:
    """Standard error of log A at the fitted length, from the Fisher information; infinite when that is singular.

    At the fitted length: without k = 0, A and the length are degenerate in long fields, however strong the signal.
    """
    model, d = _model(theta, form, background)
    information = 0.5 * samples * np.einsum("k,pk,qk->pq", weights / model[0] ** 2, d[0], d[0])
    information = np.delete(np.delete(information, 1, axis=0), 1, axis=1)
    try:
        variance = np.linalg.inv(information)[0, 0]
    except np.linalg.LinAlgError:
        return float("inf")
    return float(np.sqrt(variance)) if variance > 0 else float("inf")
