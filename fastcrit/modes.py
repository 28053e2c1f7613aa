"""Mode gains of a denoiser, measured through its derivatives, and the equilibrium correlation length they imply.

torch is loaded by `mode_response` alone.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._arrays import check_choice, check_integer, check_positive
from fastcrit._derivative import METHODS, Derivative, forward_derivatives
from fastcrit._dispersion import dispersion_length, drift_rate, gaussian_bound, response_deficit
from fastcrit._extras import need
from fastcrit._lattice import lattice

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

__all__ = [
    "METHODS",
    "ModeResponse",
    "dispersion_length",
    "drift_rate",
    "gaussian_bound",
    "mode_response",
    "response_deficit",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModeResponse:
    """Gains of plane waves at given states, shell by shell.

    Attributes
    ----------
    shells, k, k2 : (shells,)
        Numbers of the shells, mean |k| (rad per site) and mean lattice momentum of their modes.
    gain, stderr : (shells,)
        Re <e_k, J e_k>, averaged over wavevectors, channels and states; standard error over states (NaN for one state).
    drift : (shells,)
        Im <e_k, J e_k>, likewise: of waves that travel. Modes k and -k cancel unless one is told apart; reported as
        the root mean square over wavevectors.
    leakage : (shells,)
        What of J e_k lies in other modes than k, ||J e_k - g_k e_k||/||J e_k||, averaged likewise: 0 where D is
        translation-equivariant and the state homogeneous.
    samples : (states, shells)
        Gain of every state, as `Recorder.update_gain` takes it.
    s : float
        Noise level.
    method : str
        How derivatives were taken: "jvp", "vjp" or "central".
    """

    shells: tuple[int, ...]
    k: Floats
    k2: Floats
    gain: Floats
    stderr: Floats
    drift: Floats
    leakage: Floats
    samples: Floats
    s: float
    method: str

    @property
    def softest(self) -> float:
        """|k| of the shell with the largest gain: k*, where patterns form first; 0 for domains."""
        return float(self.k[int(np.argmax(self.gain))])


def mode_response(
    D: Denoiser,
    y: Tensor,
    s: float,
    shells: Sequence[int] | None = None,
    labels: Any = None,
    *,
    waves: int | None = None,
    seed: int = 0,
    first_sample: int = 0,
    method: str = "auto",
    step: float | None = None,
    memory: int = 1 << 30,
) -> ModeResponse:
    r"""Measure g_k = <e_k, J e_k>, J = dD/dy, along cos and sin of the wavevectors of each shell.

    Parameters
    ----------
    D : Denoiser
    y : tensor (states, C, H, W)
        States at which J is taken.
    s : float
        Noise level.
    shells : sequence of int, optional
        Shells of wavenumbers, ascending, as in spectra. Default: the first six that the lattice has.
    labels : optional
        As for D.
    waves : int, optional
        Wavevectors (up to sign) of each shell that are drawn for each state, without repetition; default: all.
    seed, first_sample : int
        Of that draw: the wavevectors of state i are a function of seed and first_sample + i.
    method : "auto", "jvp", "vjp" or "central"
        Forward-mode derivatives; twice reverse mode; central differences of fourth order. "auto" takes the first of
        them that runs and, on one probe, agrees with central differences: a network that detaches or rounds inside has
        derivatives that say nothing of it.
    step : float, optional
        Of central differences: largest change of a pixel. Default: of eps^(1/5) (1 + s) / 4^n, eps the state's rounding
        and n = 0 .. 7, the one at which they change least on one probe.
    memory : int
        Bytes that the network's intermediate results may take together, estimated from one state.

    Returns
    -------
    ModeResponse

    Raises
    ------
    ValueError
        States, level or labels that D refuses; shells that are not there; another method.
    FloatingPointError
        A gain is NaN or infinite.

    Notes
    -----
    Scaled-dot-product attention runs under torch's MATH backend, since its fused kernels have no forward derivative.
    Fourth-order differences of step h err by h^4 |D^(5)|/30, plus rounding 1.5 eps |D|/h: both near eps^(4/5).

    Examples
    --------
    >>> import torch, fastcrit as fc
    >>> D = fc.diffusion.from_gaussian(fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8))
    >>> g = fc.mode_response(D, torch.zeros(1, 1, 8, 8, dtype=torch.float64), 2.0, shells=range(3))
    >>> round(float(g.gain[0]), 9), g.method
    (0.5, 'jvp')
    """
    torch = need("torch", "mode_response")
    if not hasattr(D, "check_level"):
        raise TypeError(f"D: expected a Denoiser, such as fc.diffusion.from_edm(net), got {type(D).__name__}")
    s = D.check_level(s)
    check_choice(method, ("auto", *METHODS), "method")
    if not isinstance(y, torch.Tensor) or y.ndim != 4 or not len(y) or y.dtype not in (torch.float32, torch.float64):
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"y: expected a float32 or float64 tensor (states, C, H, W), got {got}")
    if waves is not None and (isinstance(waves, bool) or not isinstance(waves, (int, np.integer)) or waves < 1):
        raise ValueError(f"waves: expected a positive integer or None for all, got {waves!r}")
    for name, value in (("seed", seed), ("first_sample", first_sample)):
        check_integer(value, name, 0)
    if not isinstance(shells, (Sequence, np.ndarray, type(None))):
        raise TypeError(f"shells: expected a sequence of shell numbers, got {shells!r}")
    grid = lattice(tuple(int(n) for n in y.shape[-2:]))
    chosen = list(range(min(6, grid.shells_below_nyquist))) if shells is None else [operator.index(k) for k in shells]
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(grid.shell_k) or chosen != sorted(set(chosen)):
        raise ValueError(f"shells: expected ascending numbers below {len(grid.shell_k)}, got {chosen}")
    y = y.detach()
    prepared = D.prepare_labels(labels, len(y), y.device)
    largest = float(torch.finfo(y.dtype).eps) ** 0.2 * (1.0 + s)
    take = Derivative(D, s, method, largest if step is None else check_positive(step, "step"))
    with forward_derivatives():
        if method == "auto" or (method == "central" and step is None):
            take.choose(y, prepared, method, fixed=step is not None)
        rows = max(1, int(memory) // take.bytes_a_row(y[:1], None if prepared is None else prepared[:1]))
        plan = _draw_plan(grid.shape, chosen, len(y), waves, [seed, first_sample])
        gain, drift, leakage = _respond_all(take, y, prepared, plan, rows)
    samples = plan.average(gain)
    if not np.isfinite(samples).all():
        bad = int(np.argmin(np.isfinite(samples).all(axis=1)))
        raise FloatingPointError(f"y: the response of state {bad} at s = {s:.6g} is NaN or infinite")
    return ModeResponse(
        shells=tuple(chosen),
        k=grid.shell_k[chosen],
        k2=grid.shell_k2[chosen],
        gain=samples.mean(axis=0),
        stderr=_standard_error(samples),
        drift=np.sqrt(plan.average(drift**2).mean(axis=0)),
        leakage=plan.average(leakage).mean(axis=0),
        samples=samples,
        s=s,
        method=take.method,
    )


@lru_cache(maxsize=64)
def _waves_of_shell(shape: tuple[int, ...], shell: int) -> tuple[Floats, NDArray[np.bool_]]:
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
class _Plan:
    """Waves to measure at every state."""

    column: NDArray[np.int64]  # (waves,): which of the chosen shells
    k: Floats  # (states, waves, 2)
    own: NDArray[np.bool_]  # (states, waves): k is its own opposite
    share: Floats  # (waves,): mean of the weights below over all waves of the shell

    def average(self, values: Floats) -> Floats:
        """Averages (states, shells) of values (channels, states, waves); a wave counts twice if for k and -k."""
        weight = np.where(self.own, 1.0, 2.0)
        total = weight * values.mean(axis=0)
        starts = np.flatnonzero(np.diff(self.column, prepend=-1))
        # Divided by the weight that a draw has on average, not by its own: that would favour modes of lesser weight.
        return np.asarray(np.add.reduceat(total / self.share, starts, axis=1) / np.bincount(self.column))


def _draw_plan(shape: tuple[int, ...], shells: list[int], states: int, waves: int | None, seed: list[int]) -> _Plan:
    found = [_waves_of_shell(shape, shell) for shell in shells]
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
    return _Plan(column, np.stack(k), np.stack(own), np.asarray(share)[column])


def _respond_all(
    take: Derivative, y: Tensor, labels: Tensor | None, plan: _Plan, rows: int
) -> tuple[Floats, Floats, Floats]:
    """Re and Im of <e_k, J e_k> and the leakage, (channels, states, waves) each, ``rows`` products at a time."""
    C, (states, waves) = y.shape[1], plan.own.shape
    together = max(1, min(waves, rows // 2))  # a wave is two tangents
    batch = max(1, rows // (2 * together))
    out = np.empty((3, C, states, waves))
    for c in range(C):
        for i in range(0, states, batch):
            some = slice(i, i + batch)
            for j in range(0, waves, together):
                part = slice(j, j + together)
                few = None if labels is None else labels[some]
                out[:, c, some, part] = _respond(take, y[some], few, c, plan.k[some, part], plan.own[some, part])
    return out[0], out[1], out[2]


def _respond(
    take: Derivative, y: Tensor, labels: Tensor | None, channel: int, k: Floats, own: NDArray[np.bool_]
) -> Floats:
    """Re, Im and leakage, (3, states, waves), of waves in one channel.

    With e = (c + i s)/sqrt 2 and waves c, s of norm 1 (2^(1/2) and 0 where k is its own opposite).
    """
    import torch

    H, W = y.shape[2:]
    k = np.moveaxis(k, 0, 1)[..., None, None]  # (waves, states, 2, 1, 1)
    phase = k[:, :, 0] * np.arange(H)[:, None] + k[:, :, 1] * np.arange(W)
    cosine, sine = np.cos(phase), np.where(own.T[..., None, None], 0.0, np.sin(phase))
    c, s = (torch.from_numpy(wave * np.sqrt(2.0 / (H * W))).to(y) for wave in (cosine, sine))
    tangents = y.new_zeros(2 * len(c), *y.shape)
    tangents[:, :, channel] = torch.cat([c, s])
    Jc, Js = take(y, tangents, labels).double().chunk(2)
    c, s = c.double()[:, :, None], s.double()[:, :, None]

    def dot(a: Tensor, b: Tensor) -> Tensor:  # (waves, states, channels, 1, 1)
        return (a * b).sum((3, 4), keepdim=True)

    re, im = (dot(c, Jc) + dot(s, Js)) / 2, (dot(c, Js) - dot(s, Jc)) / 2
    rest = ((Jc - re * c + im * s).square() + (Js - re * s - im * c).square()).sum((2, 3, 4))
    whole = (Jc.square() + Js.square()).sum((2, 3, 4)).clamp_min(torch.finfo(torch.float64).tiny)
    result = torch.stack([re[:, :, channel, 0, 0], im[:, :, channel, 0, 0], (rest / whole).sqrt()])
    return np.asarray(result.transpose(1, 2).cpu().numpy())


def _standard_error(samples: Floats) -> Floats:
    n = len(samples)
    return np.asarray(samples.std(axis=0, ddof=1) / np.sqrt(n)) if n > 1 else np.full(samples.shape[1], np.nan)
