"""How far a denoiser looks: its response by distance, from products with its Jacobian or from noise alone.

torch is loaded where derivatives or tensors are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice, check_integer, check_positive, is_tensor, to_real
from fastcrit._edge.extras import need
from fastcrit._estimates.response_function import ResponseFunction, summarise
from fastcrit._kernels.lattice import lattice
from fastcrit._response.derivative import METHODS
from fastcrit._response.distances import measure_distances
from fastcrit._response.evaluation import Survey, as_written, check_repeatable
from fastcrit._response.preparation import check_response, check_states, prepare
from fastcrit._response.stein import stein_samples

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser

__all__ = ["ResponseFunction", "response_function"]

Floats = NDArray[np.float64]

# The mean square of noise may be off 1 by so many standard deviations of that of independent normal numbers, or by 1 %.
_DEVIATIONS = 10.0
_ROUNDED = 0.01


def response_function(
    D: Denoiser | Callable[[Any, float], Any],
    y: Any,
    s: float,
    labels: Any = None,
    *,
    method: str = "jvp",
    noise: Any = None,
    probes: int = 1,
    columns: int = 1,
    asymmetry: bool = True,
    seed: int = 0,
    first_sample: int = 0,
    derivative: str = "auto",
    step: float | None = None,
    memory: int = 1 << 30,
) -> ResponseFunction:
    r"""Measure G(r), the average of dD_i/dy_(i+r) over sites and states, and the mean square of it, by distance.

    Parameters
    ----------
    D : Denoiser, or function of arrays
        A function ``D(y, s)`` takes and returns arrays, as `fastcrit.patch.denoise` with its dictionary does.
    y : tensor (states, C, H, W), or array
        States. Other lattices as for `Denoiser`. For a function of arrays (states, C, H, W) or (states, C, T, H, W), or
        of one channel (states, H, W) or (states, L). With ``method="stein"`` they must be forward states,
        y = x0 + s n, whose noise is given.
    s : float
        Noise level.
    labels : optional
        As for D.
    method : "jvp" or "stein"
        Products with J = dD/dy, at any states. Or Stein's lemma, E dD_i/dy_j = E[D_i n_j]/s: no derivative at all, for
        networks of any kind in any precision.
    noise : like y, optional
        Of "stein", and of nothing else: the n of each state, independent standard normal numbers.
    probes : int
        Of "jvp": fields of random phase a state and channel, which G is measured with.
    columns : int
        Of "jvp": sites drawn in each state, whose columns of J give ``square``; with 0 there is none.
    asymmetry : bool
        Of "jvp": take products with the transposed of J, too.
    seed, first_sample : int
        Of those draws: those of state i are a function of seed and first_sample + i.
    derivative : "auto", "jvp", "vjp" or "central"
        How products are taken: see ``method`` of `mode_response`, which chooses likewise.
    step : float, optional
        Of central differences, as there.
    memory : int
        Bytes that the network's intermediate results may take together, estimated from one state.

    Returns
    -------
    ResponseFunction

    Raises
    ------
    ValueError
        States, level or labels that D refuses; another method; noise that is missing, of another shape, not finite, not
        of variance 1 (s n, say), or given for "jvp"; options of "jvp" given for "stein"; more columns than sites; and
        what `mode_response` refuses.
    TypeError
        A D that is no function; a function of arrays that is given a tensor or labels.
    FloatingPointError
        The response to a state is NaN or infinite.

    Warns
    -----
    UserWarning
        As `mode_response`; reverse mode loses a part of the derivative, so that the asymmetry is NaN.

    Notes
    -----
    Cost a state: "stein" takes one evaluation. "jvp" takes (1 + probes + columns) C products, each of about one
    evaluation more (central differences: four), and (1 + probes) C reverse passes for the asymmetry; and once, to
    choose the derivative, about 30 evaluations of the first state.

    A field of random phase has :math:`\mathrm{E} v v^T = 1` and :math:`|\hat v_k| = 1`, so that :math:`\mathrm{corr}(J
    v, v)/N` is G on average, and without noise where J is a convolution. Stein's average has noise of about
    :math:`|D - \bar D|/(s\sqrt{N})` a lag and state. A constant and a convolution of y are taken off D, fitted to other
    states than those they are taken off, and their response is put back, which biases nothing as long as the noise is
    independent from state to state: no antithetic pairs. Gaussian data leave hardly anything.

    Distances are those of the torus. Of a network with padding, pairs at opposite edges count as near.

    N G(0) = mmse/s^2, of an exact posterior mean on forward states. Source of the definitions: see the page on
    conventions. By distance, the mean square is what others call an effective receptive field.

    Examples
    --------
    >>> import torch, fastcrit as fc
    >>> theory = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=32)
    >>> y = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    >>> measured = fc.response_function(fc.diffusion.from_gaussian(theory), y, 2.0)
    >>> round(measured.length, 3)  # 1/sqrt(1/xi^2 + 1/s^2)
    1.414

    Of a function of arrays, from the noise alone:

    >>> import numpy as np
    >>> pair = fc.patch.Dictionary.binary(size=3, random=0)
    >>> n = np.random.default_rng(0).standard_normal((64, 9, 9))
    >>> D = lambda y, s: fc.patch.denoise(pair, y, s)
    >>> g = fc.response_function(D, 1 + 2.0 * n, 2.0, method="stein", noise=n)  # x0 = 1 everywhere
    >>> bool(np.all(np.abs(g.G[g.r > 3]) < 4 * g.stderr[g.r > 3]))  # beyond the patch
    True
    """
    check_choice(method, ("jvp", "stein"), "method")
    key = [check_integer(seed, "seed", 0), check_integer(first_sample, "first_sample", 0)]
    _check_options(method, noise, probes, columns, derivative, step)
    model, y = _checked_model(D, y, labels, method)
    s = check_positive(s, "s") if isinstance(model, _OfArrays) else model.check_level(s)
    grid = lattice(tuple(int(n) for n in y.shape[2:]))
    if method == "stein":
        states = _on_host(y, "y")
        n = _checked_noise(noise, y, plain=isinstance(model, _OfArrays) and model.plain)
        denoised = model(y, s) if isinstance(model, _OfArrays) else _denoise(model, y, s, labels, memory)
        check_response(denoised, s)
        matrices, moments = stein_samples(grid, denoised, states, n, s)
        check_response(moments, s)
        return summarise(grid, s, method, matrices, moments, np.full(matrices.shape[:2], np.nan), float("nan"))
    check_integer(columns, "columns", 0, grid.sites + 1)
    if isinstance(model, _OfArrays):
        torch = need("torch", "response_function")
        network, y = model.as_network(y.shape[1:]), torch.from_numpy(y.copy())
    else:
        network, y = model, y.contiguous()  # forward derivatives take no expanded states
    prepared = network.prepare_labels(labels, len(y), y.device)
    shells = list(range(grid.shells_below_nyquist))
    with as_written():
        take, rows = prepare(
            network, y, s, prepared, shells, method=derivative, step=step, memory=memory, name="derivative"
        )
        found = measure_distances(
            take, y, prepared, grid, probes=probes, columns=columns, transposed=asymmetry, key=key, rows=rows
        )
    check_response(found.moments, s)
    if columns:
        check_response(found.squares, s)
    return summarise(grid, s, take.method, found.matrices, found.moments, found.squares, found.asymmetry)


def _check_options(method: str, noise: Any, probes: int, columns: int, derivative: str, step: float | None) -> None:
    check_choice(derivative, ("auto", *METHODS), "derivative")
    check_integer(probes, "probes", 1)
    check_integer(columns, "columns", 0)
    if method == "jvp":
        if noise is not None:
            raise ValueError('noise: expected None with method="jvp", which needs none')
        return
    if noise is None:
        raise ValueError('noise: expected the n of y = x0 + s n with method="stein", got None')
    given = {"probes": (probes, 1), "columns": (columns, 1), "derivative": (derivative, "auto"), "step": (step, None)}
    for name, (value, usual) in given.items():
        if value != usual:
            raise ValueError(
                f'{name}: expected {usual!r} with method="stein", which takes no derivatives, got {value!r}'
            )


def _checked_model(D: Any, y: Any, labels: Any, method: str) -> tuple[Denoiser | _OfArrays, Any]:
    """The model, and states (states, C, N1 .. Nd) of the kind that it takes."""
    if not callable(D):
        raise TypeError(f"D: expected a Denoiser or a function of arrays, got {type(D).__name__}")
    if hasattr(D, "check_level"):
        if method == "jvp":
            check_states(y)
        elif not is_tensor(y) or not y.is_floating_point() or not 3 <= y.ndim <= 5 or not len(y):
            got = f"{y.dtype} {tuple(y.shape)}" if is_tensor(y) else type(y).__name__
            raise ValueError(f"y: expected a floating-point tensor (states, C, H, W), got {got}")
        model: Denoiser = D
        return model, y.detach()
    if is_tensor(y):
        raise TypeError("D: expected a Denoiser with tensors, such as fc.diffusion.from_denoiser(f), got a function")
    if labels is not None:
        raise ValueError("labels: expected None for a function of arrays; bind them in it")
    array = to_real(y, "y")
    if not 2 <= array.ndim <= 5 or array.size == 0:
        raise ValueError(f"y: expected states (states, H, W) or (states, C, H, W), got shape {array.shape}")
    plain = array.ndim < 4
    return _OfArrays(D, plain), array[:, None] if plain else array


class _OfArrays:
    """A function of arrays, with a channel axis for states that have none (``plain``)."""

    def __init__(self, function: Callable[[Any, float], Any], plain: bool) -> None:
        self.function = function
        self.plain = plain

    def __call__(self, y: Any, s: float) -> Any:
        given = y[:, 0] if self.plain else y
        denoised = to_real(self.function(given, s), "D(y, s)")
        if denoised.shape != given.shape:
            raise ValueError(f"D: expected denoised images of the states' shape {given.shape}, got {denoised.shape}")
        return denoised.reshape(y.shape)

    def as_network(self, shape: tuple[int, ...]) -> Denoiser:
        """The same for tensors, through arrays: it has differences alone."""
        import torch

        from fastcrit.diffusion.denoiser import Denoiser

        def denoise(y: Tensor, s: Any, labels: Tensor | None) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(self(y.numpy(), float(s))))

        return Denoiser(denoise, name=getattr(self.function, "__name__", "function of arrays"), shape=shape)


def _denoise(D: Denoiser, y: Tensor, s: float, labels: Any, memory: int) -> Any:
    """D(y; s) on the host, as many states at a time as memory holds."""
    import torch

    prepared = D.prepare_labels(labels, len(y), y.device)

    def few(begin: int, end: int) -> Tensor:
        return D(y[begin:end], s, None if prepared is None else prepared[begin:end])

    with as_written():
        survey = Survey.of(lambda y: D(y, s, None if prepared is None else prepared[:1]), y[:1])
        rows = max(1, int(memory) // survey.bytes_a_row)
        check_repeatable(D, s, y[:1], None if prepared is None else prepared[:1], survey.answer, batched=rows > 1)
    with torch.no_grad():
        images = [few(begin, begin + rows).cpu() for begin in range(0, len(y), rows)]
    return to_real(torch.cat(images), "D(y, s)")


def _on_host(x: Any, name: str) -> Any:
    """A finite array (states, ..) of float32 or float64."""
    array = to_real(x.detach().cpu() if is_tensor(x) else x, name)
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1) if array.ndim and array.size else np.ones(1, bool)
    if not finite.all():
        raise ValueError(f"{name}: NaN or infinite values in that of state {int(np.argmin(finite))}")
    return array


def _checked_noise(noise: Any, y: Any, *, plain: bool) -> Any:
    """The noise of every state, (states, C, N1 .. Nd)."""
    n = _on_host(noise, "noise")
    wanted = tuple(y[:, 0].shape if plain else y.shape)
    if n.shape != wanted:
        raise ValueError(f"noise: expected the shape of y, {wanted}, got {n.shape}")
    found = float(np.mean(n.astype(np.float64) ** 2))
    if abs(found - 1.0) > max(_ROUNDED, _DEVIATIONS * np.sqrt(2.0 / n.size)):
        raise ValueError(
            "noise: expected independent normal numbers n of variance 1, those of y = x0 + s n, got a mean square of "
            f"{found:.4g}"
        )
    return n.reshape(tuple(y.shape))
