"""Pipelines of diffusers: their text encoders make prompts into classes, their decoders make states into images.

The one place that knows how classes of pipelines are called; how their networks are, diffusers.py says.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastcrit._edge.texts import different_texts
from fastcrit.diffusion.decoders import decode_by, pixels_per_site
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.diffusers import from_diffusers
from fastcrit.diffusion.network import unwrapped

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """A class of pipelines.

    Attributes
    ----------
    network, decoder : str
        Names of these components.
    prompt, negative : dict
        Name under which the network takes it, and place in what ``encode_prompt`` returns. No prompt: the pipeline
        reads no text. No negative: that is encoded as a prompt.
    told : callable or None
        (pipeline, image height and width, what was encoded) to what else the network is told, each (1, ..).
    """

    network: str = "unet"
    decoder: str = "vae"
    prompt: dict[str, int] = field(default_factory=dict)
    negative: dict[str, int] = field(default_factory=dict)
    told: Callable[[Any, tuple[int, int], Tensors], Tensors] | None = None


def _xl_sizes(pipe: Any, size: tuple[int, int], encoded: Tensors) -> Tensors:
    """SDXL's original size, crop and target size, as its pipeline writes them."""
    pooled, encoder = encoded["text_embeds"], pipe.text_encoder_2
    width = int(pooled.shape[-1]) if encoder is None else encoder.config.projection_dim
    corner = _default(pipe, "crops_coords_top_left")
    dtype = encoded["encoder_hidden_states"].dtype
    return {"time_ids": pipe._get_add_time_ids(size, corner, size, dtype=dtype, text_encoder_projection_dim=width)}


def _pixart_sizes(pipe: Any, size: tuple[int, int], encoded: Tensors) -> Tensors:
    """Resolution and aspect ratio, which PixArt's networks for 1024 x 1024 pixels are told."""
    if pipe.transformer.config.sample_size != 128:
        return {}
    dtype = encoded["encoder_hidden_states"].dtype
    ratio = torch.tensor([[float(size[0] / size[1])]])
    return {"resolution": torch.tensor([size]).to(dtype), "aspect_ratio": ratio.to(dtype)}


def _flux_guidance(pipe: Any, size: tuple[int, int], encoded: Tensors) -> Tensors:
    """The weight that networks distilled from guided ones are told: the pipeline's own."""
    if not pipe.transformer.config.guidance_embeds:
        return {}
    return {"guidance": torch.tensor([float(_default(pipe, "guidance_scale"))])}


_HIDDEN, _MASK, _POOLED = "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
_MASKED, _OTHER_MASKED = {_HIDDEN: 0, _MASK: 1}, {_HIDDEN: 2, _MASK: 3}
_KINDS = {
    "StableDiffusionPipeline": Kind(prompt={_HIDDEN: 0}, negative={_HIDDEN: 1}),
    "StableDiffusionXLPipeline": Kind(
        prompt={_HIDDEN: 0, "text_embeds": 2}, negative={_HIDDEN: 1, "text_embeds": 3}, told=_xl_sizes
    ),
    "StableDiffusion3Pipeline": Kind("transformer", prompt={_HIDDEN: 0, _POOLED: 2}, negative={_HIDDEN: 1, _POOLED: 3}),
    "PixArtAlphaPipeline": Kind("transformer", prompt=_MASKED, negative=_OTHER_MASKED, told=_pixart_sizes),
    "PixArtSigmaPipeline": Kind("transformer", prompt=_MASKED, negative=_OTHER_MASKED),
    "SanaPipeline": Kind("transformer", prompt=_MASKED, negative=_OTHER_MASKED),
    "Lumina2Pipeline": Kind("transformer", prompt=_MASKED, negative=_OTHER_MASKED),
    # Its masks have been multiplied into the embeddings.
    "AuraFlowPipeline": Kind("transformer", prompt={_HIDDEN: 0}, negative={_HIDDEN: 2}),
    "FluxPipeline": Kind("transformer", prompt={_HIDDEN: 0, _POOLED: 1}, told=_flux_guidance),
    "DiTPipeline": Kind("transformer"),
    "LDMPipeline": Kind(decoder="vqvae"),
    "DDPMPipeline": Kind(),
    "DDIMPipeline": Kind(),
}


def from_pipeline(
    pipe: Any,
    prompts: Sequence[str] | None = None,
    negative: str = "",
    *,
    null_label: int | None = None,
    shape: Sequence[int] | None = None,
) -> Denoiser:
    """The network of a pipeline of diffusers, with its scheduler and decoder; of text models, a prompt is a class.

    Prompts are encoded once, each alone, by the pipeline's own ``encode_prompt`` with the defaults of its own call.
    Label j is the j-th prompt, and no label the negative one: so guidance and all else that knows labels works. The
    pipeline itself is not kept, so that its text encoders can be freed.

    Parameters
    ----------
    pipe : pipeline of diffusers
        StableDiffusionPipeline, StableDiffusionXLPipeline, StableDiffusion3Pipeline, PixArtAlphaPipeline,
        PixArtSigmaPipeline, SanaPipeline, Lumina2Pipeline, AuraFlowPipeline, FluxPipeline; DiTPipeline, LDMPipeline,
        DDPMPipeline and DDIMPipeline, which read no text.
    prompts : sequence of str
        Of a text model: P of them, all different.
    negative : str
        The null condition. An empty one is what the pipeline takes where none is given: of SDXL, zeros.
    null_label : int, optional
        Of a class-conditional network: the class that stands for "no label", where its own configuration does not say.
    shape : (C, H, W), optional
        Of a state. Default: the network's own, or of FLUX the pipeline's.

    Returns
    -------
    Denoiser
        With P + 1 classes of a text model, the last of which is ``null_label``. ``decode`` is the pipeline's decoder
        with its scales and shifts; ``card`` has ``pixels_per_site``, and ``prompts``: their ``text``, the ``negative``
        one, and the ``sha256`` of the conditioning.

    Raises
    ------
    TypeError
        A class of pipelines that is not known here, or no pipeline; prompts that are no texts.
    ValueError
        No prompts for a text model, prompts for another; equal ones, or such that the text encoder reads as equal; a
        text encoder in training mode.

    Examples
    --------
    >>> import pytest, fastcrit as fc
    >>> diffusers = pytest.importorskip("diffusers")
    >>> net = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4,
    ...                             down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)).eval()
    >>> fc.diffusion.from_pipeline(diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()))
    <Denoiser: UNet2DModel, 1 x 8 x 8, no classes>
    """
    name = type(pipe).__name__
    kind = kind_of(name)
    if kind is None:
        raise TypeError(f"pipe: expected a pipeline of diffusers, got {unknown(name)}")
    texts = check_prompts(name, prompts, negative)
    network, decoder = getattr(pipe, kind.network), getattr(pipe, kind.decoder, None)
    if name == "FluxPipeline" and shape is None:  # nothing in its network says how large images are
        side = pipe.default_sample_size
        shape = (unwrapped(network).config.in_channels // 4, side, side)
    given: dict[str, Any] = {} if shape is None else {"shape": shape}
    if texts is None:
        D = from_diffusers(network, pipe.scheduler, null_label=null_label, **given)
    elif null_label is not None:
        raise ValueError("null_label: given with prompts, whose null condition is the negative one")
    else:
        conditioning, null = _encoded(pipe, kind, texts, negative, _image_size(pipe, network, shape))
        D = from_diffusers(network, pipe.scheduler, conditioning=conditioning, null=null, **given)
        about = {"text": list(texts), "negative": negative, "sha256": D.card["conditioning_sha256"]}
        D.card = {"prompts": about}
    D.card = {**D.card, "pixels_per_site": 1}
    if decoder is not None:
        D.decode = partial(decode_by, decoder)
        D.card["pixels_per_site"] = pixels_per_site(type(decoder), dict(decoder.config))
    elif kind.decoder in getattr(pipe, "components", {}):  # of latents, but left out
        D.card["pixels_per_site"] = None
    return D


def check_prompts(pipeline: str, prompts: Any, negative: Any) -> tuple[str, ...] | None:
    """Prompts for a class of pipelines; None where it reads none and none are given."""
    if not _KINDS[pipeline].prompt:
        if prompts is not None or negative:
            raise ValueError(
                f"prompts: {pipeline} reads no text; leave them out, and where it has classes pass their numbers as "
                "labels (those of names: pipe.get_label_ids([..]) of a DiTPipeline)"
            )
        return None
    if prompts is None:
        raise ValueError(f"prompts: {pipeline} is a text model; pass prompts=[..], each of which is a class")
    if not isinstance(negative, str):
        raise TypeError(f"negative: expected a text, got {negative!r}")
    return different_texts(prompts, "prompts")


def kind_of(name: str) -> Kind | None:
    """What is known of a class of pipelines."""
    return _KINDS.get(name)


def unknown(name: str) -> str:
    """What to do about a class of pipelines that is not known."""
    return (
        f"{name}, which is none of the pipelines known here ({', '.join(_KINDS)}); one that shares their parts is made "
        "into one by KNOWN.from_pipe(pipe), and of any other the network is wrapped by from_diffusers(network, "
        "scheduler, conditioning={..}, null={..})"
    )


def _default(pipe: Any, argument: str) -> Any:
    """What a pipeline's own call takes for an argument that is not given."""
    return inspect.signature(type(pipe).__call__).parameters[argument].default


def _image_size(pipe: Any, network: Any, shape: Sequence[int] | None) -> tuple[int, int]:
    """Height and width of the images, in pixels."""
    side = getattr(pipe, "default_sample_size", None) or unwrapped(network).config.sample_size
    height, width = shape[-2:] if shape is not None else side if isinstance(side, Sequence) else (side, side)
    return int(height) * pipe.vae_scale_factor, int(width) * pipe.vae_scale_factor


def _encoded(
    pipe: Any, kind: Kind, texts: tuple[str, ...], negative: str, size: tuple[int, int]
) -> tuple[Tensors, Tensors]:
    """What the network is told of every prompt, each tensor (P, ..), and of the negative one, (1, ..)."""
    for name, part in getattr(pipe, "components", {}).items():
        if name.startswith("text_encoder") and getattr(part, "training", False):
            raise ValueError(f"pipe: {name} is in training mode, where dropout makes prompts random; call .eval()")
    rows: list[Tensors] = []
    null: Tensors = {}
    with torch.no_grad():
        for text in texts:
            row, other = _encode(pipe, kind, text, None if null else negative)
            rows.append(row)
            null = null or other
        if not null:
            null, _ = _encode(pipe, kind, negative, None)
        for row in (*rows, null):
            told = {} if kind.told is None else kind.told(pipe, size, row)
            row |= {name: value.to(row[_HIDDEN].device) for name, value in told.items()}
    conditioning = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    _check_told_apart(texts, conditioning)
    return conditioning, null


def _check_told_apart(texts: tuple[str, ...], conditioning: Tensors) -> None:
    """ValueError for two prompts of which the network is told the same."""
    seen: dict[bytes, str] = {}
    for j, text in enumerate(texts):
        digest = hashlib.sha256()
        for value in conditioning.values():
            digest.update(value[j].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        same = seen.setdefault(digest.digest(), text)
        if same != text:
            raise ValueError(
                f"prompts: {same!r} and {text!r} are the same to the text encoder, which reads their beginnings alone "
                "or does not know their words"
            )


def _encode(pipe: Any, kind: Kind, text: str, negative: str | None) -> tuple[Tensors, Tensors]:
    """One prompt, and the negative one where it is given and is not encoded as a prompt."""
    takes = inspect.signature(pipe.encode_prompt).parameters
    call = inspect.signature(type(pipe).__call__).parameters
    # As its own call passes them: clean_caption, max_sequence_length, complex_human_instruction, ..
    given = {
        name: p.default for name, p in call.items()
        if name in takes and p.default is not inspect.Parameter.empty and not name.endswith(("embeds", "mask"))
    }  # fmt: skip
    with_negative = negative is not None and bool(kind.negative)
    given |= {"prompt": text, "device": pipe._execution_device, "num_images_per_prompt": 1}
    if kind.negative:
        given["do_classifier_free_guidance"] = with_negative
    if with_negative and negative:
        given["negative_prompt"] = negative
    found = pipe.encode_prompt(**given)
    one = {name: found[place] for name, place in kind.prompt.items()}
    return one, {name: found[place] for name, place in kind.negative.items()} if with_negative else {}
