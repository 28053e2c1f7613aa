"""Around a measurement of derivatives: checks of states and of results, and the way of taking them that is right."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_positive
from fastcrit._response.derivative import METHODS, Derivative
from fastcrit._response.evaluation import Survey, check_repeatable
from fastcrit._response.method_choice import choose_method, contradicted

if TYPE_CHECKING:
    from torch import Tensor

    from fastcrit.diffusion.denoiser import Denoiser


def check_states(y: Any) -> None:
    """ValueError for states that no derivative is taken at."""
    import torch

    fits = isinstance(y, torch.Tensor) and 3 <= y.ndim <= 5 and len(y) > 0
    if not fits or y.dtype not in (torch.float32, torch.float64):
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"y: expected a float32 or float64 tensor (states, C, H, W), got {got}")


def check_response(values: NDArray[np.float64], s: float) -> None:
    """FloatingPointError, of the first state whose row of ``values`` (states, ..) is not finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        raise FloatingPointError(f"y: the response of state {int(np.argmin(finite))} at s = {s:.6g} is NaN or infinite")


def prepare(
    D: Denoiser,
    y: Tensor,
    s: float,
    labels: Tensor | None,
    shells: list[int],
    *,
    method: str,
    step: float | None,
    memory: int,
    name: str = "method",
) -> tuple[Derivative, int]:
    """Products with J that are right in these shells, and how many fit in memory at once; under `as_written`.

    ``name`` is what the public function that calls this one calls ``method``, for errors and warnings.
    """
    take = Derivative(D, s, method, 0.0 if step is None else check_positive(step, "step"))
    few = None if labels is None else labels[:1]
    survey = Survey.of(lambda y: D(y, s, few), y[:1])
    rows = max(1, int(memory) // survey.bytes_a_row)
    check_repeatable(D, s, y[:1], few, survey.answer, batched=rows > 1)
    if survey.quantised:
        warnings.warn(
            f"D: a part of {D.name} computes in integers, which have no derivative and make differences noisy: "
            "gains are right to some tenth of the largest; measure the network before it was quantised",
            stacklevel=3,
        )
    if method == "auto" or (method == "central" and step is None):
        tried = METHODS[:2] if method == "auto" and not survey.moved else ()
        choose_method(take, y, labels, shells, tried, fixed=step is not None, rows=rows)
    elif method != "central" and survey.moved:
        raise ValueError(
            f"{name}: {method!r} cannot go through D, whose modules change device or type while it runs "
            '(offloading or layerwise casting); expected "central" or "auto", or a network without those hooks'
        )
    elif method != "central" and method not in D.borne_out:
        if contradicted(take, y, labels, shells, rows, name):
            warnings.warn(
                f"{name}: {method!r} says other than central differences of {D.name}, which loses a part of its "
                f'derivative on the way (a detached part, torch.no_grad inside, a compiled part); pass {name}="auto" '
                'or "central"',
                stacklevel=3,
            )
        D.borne_out.add(method)
    return take, rows
