"""Mode gains of a denoiser, measured through its derivatives, and the equilibrium correlation length they imply.

torch is loaded by `mode_response` alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._arrays import check_choice, check_integer, check_positive
from fastcrit._extras import need
from fastcrit._lattice import lattice

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

Floats = NDArray[np.float64]

METHODS = ("jvp", "vjp", "central")

# Errors below this are rounding: weights made of them would be noise, and all shells count alike.
_EXACT = 1e-9


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


def dispersion_length(k2: Any, gain: Any = None, stderr: Any = None, *, points: int = 4) -> Any:
    r"""Equilibrium correlation length from the low-k dispersion of the gain.

    Weighted least squares of :math:`(1 - g_k)/(1 - g_0) = 1 + \xi_{eq}^2 \hat k^2` through the lowest shells.

    Parameters
    ----------
    k2 : ModeResponse, or (shells,)
        A response, which brings gain and stderr with it; or the lattice momentum
        :math:`\hat k^2 = \sum_i 4\sin^2(k_i/2)` of each shell (mean over its modes),
        ascending from k = 0. Lengths come out in the unit of 1/k, normally sites.
    gain, stderr : (..., shells)
        Mode gains, and their standard errors as weights (equal weights when left out or as small as rounding).
    points : int
        Shells used, k = 0 among them.

    Returns
    -------
    float or array (...)
        :math:`\xi_{eq}`; NaN where the slope is negative (the softest mode is then at k != 0) or g_0 >= 1 (the
        homogeneous state is unstable and there is no equilibrium length).

    Raises
    ------
    ValueError
        Fewer than two shells, shapes that do not match, or a first shell that is not k = 0.

    Notes
    -----
    Source: arXiv:2603.20092, equilibrium correlation length.

    Examples
    --------
    >>> import numpy as np
    >>> from fastcrit.modes import dispersion_length
    >>> k2 = np.array([0.0, 0.1, 0.2, 0.4])
    >>> round(float(dispersion_length(k2, 1 - 0.3 * (1 + 4.0 * k2))), 9)
    2.0
    """
    if isinstance(k2, ModeResponse):
        k2, gain, stderr = k2.k2, k2.gain, k2.stderr
    k2 = np.asarray(k2, dtype=np.float64)
    gain = np.asarray(gain, dtype=np.float64)
    if k2.ndim != 1 or gain.ndim < 1 or gain.shape[-1] != k2.size:
        raise ValueError(f"gain: expected shape (..., {k2.size}) to match k2, got {gain.shape}")
    if points < 2 or k2.size < 2:
        raise ValueError(f"k2: a dispersion needs at least two shells, got {min(points, k2.size)}")
    if k2[0] != 0:
        raise ValueError(f"k2: the first shell must be k = 0, got {k2[0]}")
    use = slice(1, min(points, k2.size))
    gap = 1.0 - gain
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = gap[..., use] / gap[..., :1] - 1.0
        weight = np.ones_like(rise)
        if stderr is not None:
            error = np.broadcast_to(np.asarray(stderr, dtype=np.float64), gain.shape)[..., use] / gap[..., :1]
            known = (error > _EXACT).all(axis=-1, keepdims=True)
            weight = np.where(known, 1.0 / np.where(error > 0, error, 1.0) ** 2, 1.0)
        x = k2[use]
        # Through the origin: at k = 0 the ratio is 1 by definition.
        square = (weight * x * rise).sum(axis=-1) / (weight * x * x).sum(axis=-1)
        xi = np.where((square >= 0) & (gap[..., 0] > 0), np.sqrt(np.maximum(square, 0.0)), np.nan)
    return xi if gain.ndim > 1 else float(xi)


def gaussian_bound(power: Any, s: Any) -> Any:
    r"""Gain that Gaussian data of this spectrum would have, P/(P + s^2): above every exact denoiser's on trajectories.

    The linear estimator's error bounds the posterior's: E g_k = mmse_k/s^2 <= P_k/(P_k + s^2), for the average over
    states y = x0 + s noise. It holds mode by mode; average over a shell's modes after this, not before.

    Parameters
    ----------
    power : array
        Structure factor P_k of the data.
    s : float or array that broadcasts against ``power``
        Noise level.

    Examples
    --------
    >>> import fastcrit as fc
    >>> float(fc.modes.gaussian_bound(4.0, 2.0))
    0.5
    """
    power = np.asarray(power, dtype=np.float64)
    return power / (power + np.square(np.asarray(s, dtype=np.float64)))


def response_deficit(gain: Any, bound: Any) -> Any:
    r"""Distance of a gain on trajectories to the Gaussian bound, 1 - g/bound: 0 for Gaussian response, 1 for none.

    It rises where states commit. Below 0 by more than its error, the denoiser is not the posterior's mean. The standard
    error is that of the gain over the bound.

    Parameters
    ----------
    gain : array
        Mode gains, averaged over trajectories.
    bound : array that broadcasts against ``gain``
        `gaussian_bound`, averaged over the same modes.

    Examples
    --------
    >>> import fastcrit as fc
    >>> float(fc.modes.response_deficit(0.25, fc.modes.gaussian_bound(4.0, 2.0)))
    0.5
    """
    return 1.0 - np.asarray(gain, dtype=np.float64) / np.asarray(bound, dtype=np.float64)


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
    take = _Derivative(D, s, method, largest if step is None else check_positive(step, "step"))
    with _forward_derivatives():
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


class _Derivative:
    """J times tangents, row by row, by one of the methods."""

    def __init__(self, D: Denoiser, s: float, method: str, step: float) -> None:
        self.D = D
        self.s = s
        self.method = method
        self.step = step
        self.vectorised = True

    def __call__(self, y: Tensor, tangents: Tensor, labels: Tensor | None) -> Tensor:
        """J at states (batch, ..) times tangents (n, batch, ..)."""
        out: Tensor = getattr(self, f"_{self.method}")(lambda y: self.D(y, self.s, labels), y, tangents)
        return out

    def choose(self, y: Tensor, labels: Tensor | None, method: str, fixed: bool) -> None:
        """The step of central differences, unless it is fixed, and the first method that is right on one probe."""
        import torch

        y, labels = y[:1], None if labels is None else labels[:1]
        side = y.shape[-1]
        wave = torch.cos(2 * torch.pi * torch.arange(side, device=y.device, dtype=y.dtype) / side + 0.5)
        # A long wave and noise: low and high modes alike.
        rough = torch.randn(y.shape[-2:], generator=torch.Generator().manual_seed(0), dtype=y.dtype).to(y.device)
        tangent = (wave.expand(y.shape) + 0.5 * rough)[None]
        self.method = "central"
        # From steps too long for the curvature of D to steps so short that rounding shows: least change between them.
        steps = [self.step / 4**n for n in range(2 if fixed else 8)]
        results = []
        for self.step in steps:
            results.append(self(y, tangent, labels))
        changes = [float((a - b).norm()) for a, b in pairwise(results)]
        best = int(np.argmin([c if np.isfinite(c) else np.inf for c in changes]))
        self.step = steps[0] if fixed else steps[best + 1]
        expected = results[best + 1]
        allowed = _PROBE_TOLERANCE * expected.norm() + changes[best]
        for self.method in METHODS[:2] if method == "auto" else ():
            try:
                found = self(y, tangent, labels)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError):
                continue  # an operation without that derivative
            if bool((found - expected).norm() <= allowed):
                return
        self.method = "central"

    def bytes_a_row(self, y: Tensor, labels: Tensor | None) -> int:
        """What one state's intermediate results take, all together, and once more for their derivatives."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        total = 0

        class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                nonlocal total
                out = func(*args, **(kwargs or {}))
                total += sum(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
                return out

        with torch.no_grad(), Count():  # type: ignore[no-untyped-call]  # likewise
            self.D(y, self.s, labels)
        return 2 * max(total, 1)

    def _jvp(self, f: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> Tensor:
        import torch

        def product(tangent: Tensor) -> Tensor:
            out: Tensor = torch.func.jvp(f, (y,), (tangent,))[1]
            return out

        with torch.no_grad():
            if self.vectorised:
                # All tangents of a state share one evaluation of the network itself.
                try:
                    return torch.func.vmap(product)(tangents)
                except torch.OutOfMemoryError:
                    raise
                except (RuntimeError, NotImplementedError, ValueError):
                    self.vectorised = False
            return torch.stack([product(t) for t in tangents])

    @staticmethod
    def _vjp(f: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> Tensor:
        import torch

        # u -> J^T u is linear, and its transposed product with a tangent is J times it.
        with torch.inference_mode(False), torch.enable_grad():
            at = y.clone().requires_grad_(True)
            out = f(at)
            u = torch.zeros_like(out, requires_grad=True)
            (transposed,) = torch.autograd.grad(out, at, u, create_graph=True)
            products = [torch.autograd.grad(transposed, u, t, retain_graph=True)[0] for t in tangents]
        return torch.stack(products).detach()

    def _central(self, f: Callable[[Tensor], Tensor], y: Tensor, tangents: Tensor) -> Tensor:
        import torch

        products = []
        with torch.no_grad():
            for t in tangents:
                largest = t.abs().amax(dim=(1, 2, 3), keepdim=True)
                h = self.step / torch.where(largest > 0, largest, 1.0)
                near = f(y + h * t) - f(y - h * t)
                far = f(y + 2 * h * t) - f(y - 2 * h * t)
                products.append((8 * near - far) / (12 * h))
        return torch.stack(products)


# The derivative of a network in half precision is right to a few per cent; one that is cut off is wrong by its size.
_PROBE_TOLERANCE = 0.1


@contextmanager
def _forward_derivatives() -> Iterator[None]:
    """Two operations that torch has forward derivatives for, but not along every path."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.overrides import TorchFunctionMode

    class Contiguous(TorchFunctionMode):
        """group_norm's rule takes views of the tangent, which attention leaves transposed: a copy puts it in order."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.group_norm, torch.nn.functional.group_norm):
                args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
            return func(*args, **(kwargs or {}))

    with sdpa_kernel(SDPBackend.MATH), Contiguous():
        yield


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
    take: _Derivative, y: Tensor, labels: Tensor | None, plan: _Plan, rows: int
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
    take: _Derivative, y: Tensor, labels: Tensor | None, channel: int, k: Floats, own: NDArray[np.bool_]
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
