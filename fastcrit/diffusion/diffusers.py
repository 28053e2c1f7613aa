"""Networks of diffusers with their schedulers: one call, D(y, s, labels)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastcrit._edge.arrays import check_integer
from fastcrit.diffusion.adapters import _check_callable, _name, _scheduled, tensor_of
from fastcrit.diffusion.conditioning import Conditioning, describe, nested
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.network import device_of, dtype_of, unwrapped
from fastcrit.diffusion.network_classes import Config, NetworkClass, row_of
from fastcrit.diffusion.schedulers import CONSISTENCY, convention_of
from fastcrit.errors import ConventionWarning

# How a network that is in no table is called: (model, x, t, labels, conditions).
Call = Callable[[Any, Tensor, Tensor, "Tensor | None", dict[str, Any]], Any]


def from_diffusers(
    model: Callable[..., Any],
    scheduler: Any,
    *,
    classes: int | None = None,
    null_label: int | None = None,
    time_map: ArrayLike | None = None,
    shape: Sequence[int] | None = None,
    conditioning: Mapping[str, Any] | None = None,
    null: Mapping[str, Any] | None = None,
    call: Call | None = None,
) -> Denoiser:
    """A network of diffusers, such as UNet2DModel or DiT, or any ``model(x, t).sample``, with its scheduler.

    How a network is called, which time it wants and what it returns is looked up by the name of its class:
    UNet2DModel, UNet1DModel, UNet2DConditionModel (SD, SDXL), DiT, PixArt, SD3, Sana, Flux, AuraFlow, Lumina2, and of
    remote code SiT, LightningDiT and EDM2. Classes of diffusers that are not there are refused; ``call`` says how.

    For others, and for U-Nets, the scheduler says what the network predicts (epsilon, sample, v_prediction, the
    velocity of flow matching, or what EDM's preconditioning is put around) and at which time a noise level lies,
    interpolated in log s and passed as a float tensor (batch,); as an integer to a network with a learned time
    embedding, which knows no others. Its ``step`` is never called, and its clipping and thresholding are not applied.
    Below the lowest level of its table the network is asked at that level. Channels of a learned variance are dropped.
    A table that ends on zero terminal SNR is capped at its last step with a finite level; where the scheduler puts a
    finite level there, it is that one's.

    Parameters
    ----------
    model : callable
    scheduler : diffusers scheduler
        With ``config`` and ``alphas_cumprod``, a FlowMatch one, EDM's, or that of consistency models.
    classes : int, optional
        Number of classes, "no label" among them, of a network that is called as ``model(x, t, class_labels=..)``.
        Default: what the model's config says.
    null_label : int, optional
        The class that stands for "no label", where the network was trained with one. Default: none, or what its class
        has (DiT, SiT: one behind the others).
    time_map : sequence of float, optional
        The network's own time at each entry of the scheduler's table, where that is a respaced one.
    shape : (C, H, W), optional
        Default: what the model's config says.
    conditioning : dict of tensor (P, ...), optional
        A prompt is a class: label j takes row j of every tensor, by the names of the network's call, and of the entries
        of its dictionaries (``text_embeds`` or ``added_cond_kwargs.text_embeds``). Makes P classes. Rows are moved to
        the network's device and type once.
    null : dict of tensor (1, ...), optional
        The same of "no prompt", for guidance: label P, which is what D takes without labels.
    call : callable, optional
        ``call(model, x, t, labels, conditions)`` returns what the scheduler says the network predicts, of x's shape.
        ``x`` and ``t`` (batch,) are the scheduler's: t is 1000 sigma of flow matching. ``labels`` are class numbers
        (batch,) or None, ``conditions`` the rows of ``conditioning`` by the names given there.

    Returns
    -------
    Denoiser
        With conditioning, ``card["conditioning_sha256"]`` is the checksum of names, shapes and bytes.

    Raises
    ------
    TypeError
        ``model`` is not callable, or a class of diffusers that is not in the table, or one with a config that asks for
        another call (inpainting, image prompts); the scheduler is of a kind that this adapter does not know.
    ValueError
        An unknown prediction type, or one that the class does not have; a null label without classes or outside them; a
        time map that does not fit; conditioning that is missing, not known or of another shape.

    Warns
    -----
    fastcrit.errors.ConventionWarning
        The scheduler is that of consistency models, which return the end of the flow and not the posterior mean. The
        network ignores the attention mask that it is given, which is looked at once, at a cost of two evaluations.

    Examples
    --------
    A network of one's own that is in no table, with two prompts:

    >>> import pytest, torch, fastcrit as fc
    >>> diffusers = pytest.importorskip("diffusers")
    >>> D = fc.diffusion.from_diffusers(
    ...     lambda x, t, bias: x + bias[:, :, None, None], diffusers.DDIMScheduler(), shape=(1, 4, 4),
    ...     conditioning={"bias": torch.tensor([[1.0], [2.0]])}, null={"bias": torch.zeros(1, 1)},
    ...     call=lambda model, x, t, labels, conditions: model(x, t, conditions["bias"]),
    ... )
    >>> D.classes, D.null_label
    (3, 2)
    """
    _check_callable(model, "model")
    convention = convention_of(scheduler, time_map)
    inner = unwrapped(model)
    config = getattr(inner, "config", None) or {}
    if not hasattr(config, "get"):
        config = {}
    if call is not None:
        _check_callable(call, "call")
    row = None if call is not None else row_of(inner, config)
    name = _name(inner)
    if row is not None:
        convention = row.convention(convention, config, name, type(scheduler).__name__)
    if config.get("time_embedding_type") == "learned":
        convention = replace(convention, steps_only=True)
    prompts = _prompts(model, name, row, config, conditioning, null)
    classes, null_label = _classes(row, config, prompts, classes, null_label, plain=call is None)
    if shape is None and call is None:
        shape = _PLAIN.shape(config) if row is None else row.shape(config)

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Any:
        if classes and labels is None:
            labels = torch.full((len(x),), -1 if null_label is None else null_label, device=x.device)
            if row is not None and row.one_hot:
                labels = torch.nn.functional.one_hot(labels, classes).float()
        conditions: dict[str, Any] = {}
        if prompts is not None and labels is not None:
            conditions = prompts.rows(labels)
        if call is not None:
            return call(model, x, t, labels, conditions)
        if prompts is not None:
            return model(x, t, **nested(conditions)) if row is None else row.call(model, x, t, None, conditions)
        if row is not None:
            return row.call(model, x, t, labels, {})
        return model(x, t, class_labels=labels) if classes else model(x, t)

    D = Denoiser(
        _scheduled(predict, convention, dtype_of(model)),
        name=_name(model),
        shape=shape,
        classes=classes,
        one_hot=row is not None and row.one_hot,
        unlabelled=classes == 0 or null_label is not None,
        highest=getattr(convention.schedule, "highest", float("inf")),
        network=model,
    )
    D.null_label = null_label
    D.flow = str(convention) if convention.kind == "velocity" else None
    if prompts is not None:
        D.card = {"conditioning_sha256": prompts.sha256}
        if row is not None and D.shape is not None:
            _check_masks(D, row, inner, prompts)
    if type(scheduler).__name__ == CONSISTENCY:
        warnings.warn(
            f"{name} with {CONSISTENCY} returns where the flow ends, and no posterior mean: gains and spectra of its D "
            "are those of that map",
            ConventionWarning,
            stacklevel=2,
        )
    return D


# What is no class of diffusers, and has a config that reads like one: called as model(x, t), or with class_labels=.
_PLAIN = NetworkClass(("",), "", labels="class_labels", classes="num_class_embeds")


def _prompts(
    model: Any, name: str, row: NetworkClass | None, config: Config, conditioning: Mapping[str, Any] | None,
    null: Mapping[str, Any] | None,
) -> Conditioning | None:  # fmt: skip
    """What came as conditioning; ValueError where a class of the table needs it and has none."""
    needs = None if row is None else row.needs(config)
    if conditioning is None:
        if null is not None:
            raise ValueError("null: given without conditioning")
        if needs:
            raise ValueError(
                f"conditioning: {name} needs {describe(needs, config)}, with P prompts; pass conditioning={{..}}, and "
                "null={..} with one row for guidance"
            )
        return None
    return Conditioning(
        conditioning, null, name=name, needs=needs, config=config, device=device_of(model), dtype=dtype_of(model)
    )


def _check_masks(D: Denoiser, row: NetworkClass, net: Any, prompts: Conditioning) -> None:
    """Warns of attention that takes no mask: tokens that are hidden then change the answer. Two evaluations."""
    assert D.shape is not None
    hidden = prompts.with_hidden_tokens()
    if hidden is None or not isinstance(net, torch.nn.Module):
        return
    given, (mask, other) = hidden
    x = torch.linspace(-1.0, 1.0, math.prod(D.shape), device=D.device, dtype=D.dtype).reshape(1, *D.shape)
    t = torch.full((1,), 0.5, device=D.device)
    with torch.no_grad():
        one, two = (tensor_of(row.call(net, x, t, None, rows)) for rows in (given, given | other))
    # Weights of -10 000 are 0 in every type.
    if float((one - two).abs().max()) > 1e-2 * float(one.abs().max()):
        warnings.warn(
            f"{D.name}: {mask} is ignored: tokens that it hides change the answer. Its attention backend or its "
            "attention processors take no mask; set others, such as model.set_attention_backend('native')",
            ConventionWarning,
            stacklevel=3,
        )


def _classes(
    row: NetworkClass | None, config: Config, prompts: Conditioning | None, classes: int | None,
    null_label: int | None, *, plain: bool,
) -> tuple[int, int | None]:  # fmt: skip
    """Number of classes and the one that stands for none, of prompts, as they were given, or by the config."""
    if prompts is not None:
        if classes is not None or null_label is not None:
            raise ValueError(
                f"classes, null_label: prompts are the classes, {prompts.classes} of them, and null=.. is the one of "
                f"none; got classes={classes!r}, null_label={null_label!r}"
            )
        return prompts.classes, prompts.null_label
    known, known_null = (row or _PLAIN).classes_of(config) if plain else (0, None)
    if classes is not None:
        known = check_integer(classes, "classes", 0)
        if known and row is not None and row.labels is None:
            raise ValueError(f"classes: {row.names[0]} takes no labels, got {classes!r}")
    if null_label is None and known_null is not None and known_null < known:
        null_label = known_null
    if null_label is not None and not known:
        raise ValueError(
            f"null_label: the network takes no labels, as far as its config says, got {null_label!r}; pass classes= if "
            "it does"
        )
    if null_label is not None and not 0 <= null_label < known:
        raise ValueError(f"null_label: expected a class from 0 to {known - 1}, got {null_label!r}")
    return known, null_label
