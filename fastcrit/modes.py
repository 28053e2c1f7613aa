"""Mode gains of a denoiser, measured through its derivatives, and the equilibrium correlation length they imply.

torch is loaded by `mode_response` alone.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_integer
from fastcrit._edge.extras import need
from fastcrit._estimates.dispersion import (
    collective_modes,
    dispersion_length,
    drift_rate,
    gaussian_bound,
    response_deficit,
)
from fastcrit._kernels.lattice import Lattice, lattice
from fastcrit._response.derivative import METHODS
from fastcrit._response.evaluation import as_written
from fastcrit._response.preparation import check_response, check_states, prepare
from fastcrit._response.probes import Measured, draw_waves, measure_random_phases, measure_waves

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

PROBES = ("waves", "random_phase")


@dataclass(frozen=True)
class ModeResponse:
    r"""Gains of plane waves at given states, shell by shell.

    Of several channels a shell has a matrix, :math:`G_{ab} = \mathrm{Re} \langle e_k \text{ in channel } a, J e_k
    \text{ in channel } b \rangle`, averaged over its modes (k and -k, so that the imaginary part cancels) and over
    states. What is called gain is that of the softest collective mode u, the leading eigenvalue of the Hermitian part
    of G: a network that answers with p times the mean of three channels has :math:`G = p\,11^T/3`, gain p along
    :math:`u = (1, 1, 1)/\sqrt 3`, and p/3 on the diagonal. Of one channel the matrix is the gain.

    Attributes
    ----------
    shells, k, k2 : (shells,)
        Numbers of the shells, mean |k| (rad per site) and mean lattice momentum of their modes.
    gain, stderr : (shells,)
        u^T G u; standard error over states, at this u (NaN for one state).
    eigenvector : (shells, C)
        u, of norm 1, its largest component positive.
    gain_matrix : (shells, C, C)
        G: output, then input channel. Symmetric on average for an exact posterior mean.
    diagonal_gain : (shells,)
        Mean of the diagonal of G: Re <e_k, J e_k> averaged over channels.
    drift : (shells,)
        Im <e_k, J e_k>: of waves that travel. Modes k and -k cancel unless one is told apart; reported as the root mean
        square over wavevectors, channels and states. NaN from random phases, which do not tell.
    leakage : (shells,)
        What of J e_k lies in other modes than k, ||J e_k - g_k e_k||/||J e_k||, averaged likewise, over waves in one
        channel: 0 where D is translation-equivariant and the state homogeneous. NaN from random phases.
    samples : (states, shells)
        u^T G u of every state, with the u of all: their mean is the gain.
    matrix_samples : (states, shells, C, C)
        G of every state, as `Recorder.update_gain` takes it.
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
    eigenvector: Floats
    gain_matrix: Floats
    diagonal_gain: Floats
    drift: Floats
    leakage: Floats
    samples: Floats
    matrix_samples: Floats
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
    probe: str = "waves",
    waves: int | None = None,
    probes: int = 1,
    seed: int = 0,
    first_sample: int = 0,
    method: str = "auto",
    step: float | None = None,
    memory: int = 1 << 30,
) -> ModeResponse:
    r"""Measure g_k = <e_k, J e_k>, J = dD/dy, wave by wave, or of all shells at once by tangents of random phase.

    Parameters
    ----------
    D : Denoiser
    y : tensor (states, C, H, W)
        States at which J is taken. Or (states, C, L), (states, C, T, H, W), where ``D.shape`` says so: see `Denoiser`.
    s : float
        Noise level.
    shells : sequence of int, optional
        Shells of wavenumbers, ascending, as in spectra. Default: the first six that the lattice has; with random
        phases, which have them all for one price, those below Nyquist.
    labels : optional
        As for D.
    probe : "waves" or "random_phase"
        Along cos and sin of the wavevectors of each shell: exact, if all are taken. Or along fields that hold all
        modes at random phase: unbiased, all shells at once.
    waves : int, optional
        Wavevectors (up to sign) of each shell that are drawn for each state, without repetition; default: all.
    probes : int
        Fields of random phase a state and channel.
    seed, first_sample : int
        Of those draws: the wavevectors or phases of state i are a function of seed and first_sample + i.
    method : "auto", "jvp", "vjp" or "central"
        Forward-mode derivatives; twice reverse mode; central differences of fourth order. "auto" takes the first of
        them that runs and, at the first state, agrees with central differences in every shell asked for: a network
        that detaches or rounds inside has derivatives that say nothing of it. Of a network whose modules change device
        or type as it runs (offloading, layerwise casting) it takes differences, which alone can go through it. "jvp"
        and "vjp" are held against differences once for each denoiser, and warned of where they say otherwise.
    step : float, optional
        Of central differences: largest change of a pixel. Default: of (1 + s)/4^n, n = 3 .. 10 (12 in float64), the one
        at which they change least at the first state; where the network rounds, one at which a state moves by less
        than s and rounding does not show.
    memory : int
        Bytes that the network's intermediate results may take together, estimated from one state.

    Returns
    -------
    ModeResponse

    Raises
    ------
    ValueError
        States, level or labels that D refuses; shells that are not there; another probe or method; ``waves`` with
        random phases, or ``probes`` with waves; "jvp" or "vjp" of a network whose modules move, or that has no such
        derivative; a network that answers one state otherwise each time (dropout in training mode).
    FloatingPointError
        A gain is NaN or infinite.

    Warns
    -----
    UserWarning
        The denoised image of a state depends on the others in its batch; "jvp" or "vjp" loses a part of the derivative;
        a part of the network is quantised by torch. (A lost part that is less than a tenth of the response of a shell
        is not seen.)

    Notes
    -----
    A field v of random phase has |<e_k, v>| = 1 at all k but 0, and independent uniform phases (signs at modes that are
    their own opposite), so that conj(v_k) (Jv)_k has the mean g_k. Its noise is what J brings in from other modes: none
    where D is translation-equivariant and the state homogeneous. The k = 0 shell is measured along the constant wave.
    For the same error of shells 1 to 5 of a shipped network, one such field took 1/7 (s = 8) to 1/1.2 (s = 1) of the
    time of one wave in each of six shells, four of them 1/15 to 1/2 (benches/probes.py).
    The largest eigenvalue of a matrix with errors is too large on average; average ``matrix_samples`` of many states.

    Scaled-dot-product attention runs under torch's MATH backend, since its fused kernels have no forward derivative.
    Fourth-order differences of step h err by h^4 |D^(5)|/30, plus rounding 1.5 eps |D|/h: both near eps^(4/5).

    Examples
    --------
    >>> import torch, fastcrit as fc
    >>> D = fc.diffusion.from_gaussian(fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=8))
    >>> y = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    >>> g = fc.mode_response(D, y, 2.0, shells=range(3))
    >>> round(float(g.gain[0]), 9), g.method
    (0.5, 'jvp')
    >>> fc.mode_response(D, y, 2.0, probe="random_phase").shells
    (0, 1, 2, 3, 4)
    """
    need("torch", "mode_response")
    if not hasattr(D, "check_level"):
        raise TypeError(f"D: expected a Denoiser, such as fc.diffusion.from_edm(net), got {type(D).__name__}")
    s = D.check_level(s)
    check_choice(method, ("auto", *METHODS), "method")
    check_states(y)
    _check_draws(probe, waves, probes)
    key = [check_integer(seed, "seed", 0), check_integer(first_sample, "first_sample", 0)]
    grid = lattice(tuple(int(n) for n in y.shape[2:]))
    chosen = _chosen_shells(shells, grid, 6 if probe == "waves" else None)
    y = y.detach().contiguous()  # forward derivatives take no expanded states
    prepared = D.prepare_labels(labels, len(y), y.device)
    with as_written():
        take, rows = prepare(D, y, s, prepared, chosen, method=method, step=step, memory=memory)
        if probe == "waves":
            measured = measure_waves(take, y, prepared, draw_waves(grid.shape, chosen, len(y), waves, key), rows)
        else:
            measured = measure_random_phases(take, y, prepared, chosen, probes, key, rows)
    check_response(measured.matrix, s)
    return _summary(measured, chosen, grid, s, take.method)


def _check_draws(probe: str, waves: int | None, probes: int) -> None:
    check_choice(probe, PROBES, "probe")
    if waves is not None:
        check_integer(waves, "waves", 1, expected="a positive integer or None for all")
    check_integer(probes, "probes", 1)
    if probe == "random_phase" and waves is not None:
        raise ValueError(f'waves: expected None with probe="random_phase", which draws none, got {waves}')
    if probe == "waves" and probes != 1:
        raise ValueError(f'probes: expected 1 with probe="waves", which has no random phases, got {probes}')


def _chosen_shells(shells: Any, grid: Lattice, default: int | None) -> list[int]:
    """The shells, or the first ``default`` of those below Nyquist (None: all)."""
    if not isinstance(shells, (Sequence, np.ndarray, type(None))):
        raise TypeError(f"shells: expected a sequence of shell numbers, got {shells!r}")
    if shells is None:
        return list(range(grid.shells_below_nyquist))[:default]
    chosen = [operator.index(k) for k in shells]
    if not chosen or chosen[0] < 0 or chosen[-1] >= len(grid.shell_k) or chosen != sorted(set(chosen)):
        raise ValueError(f"shells: expected ascending numbers below {len(grid.shell_k)}, got {chosen}")
    return chosen


def _summary(measured: Measured, shells: list[int], grid: Lattice, s: float, method: str) -> ModeResponse:
    """Averages over states, and the softest collective mode of each shell."""
    matrix = measured.matrix.mean(axis=0)
    mode = collective_modes(matrix[None])[1][0]
    samples = np.einsum("ka,nkab,kb->nk", mode, measured.matrix, mode)
    return ModeResponse(
        shells=tuple(shells),
        k=grid.shell_k[shells],
        k2=grid.shell_k2[shells],
        gain=samples.mean(axis=0),
        stderr=_standard_error(samples),
        eigenvector=mode,
        gain_matrix=matrix,
        diagonal_gain=np.diagonal(matrix, axis1=1, axis2=2).mean(axis=1),
        drift=np.sqrt(measured.drift2.mean(axis=0)),
        leakage=measured.leakage.mean(axis=0),
        samples=samples,
        matrix_samples=measured.matrix,
        s=s,
        method=method,
    )


def _standard_error(samples: Floats) -> Floats:
    n = len(samples)
    return np.asarray(samples.std(axis=0, ddof=1) / np.sqrt(n)) if n > 1 else np.full(samples.shape[1], np.nan)
