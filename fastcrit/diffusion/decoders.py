"""Decoders of latent models: from states to images, and how many pixels a site is."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

# What their configurations call the channels of each resolution.
_RESOLUTIONS = ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels")


def decode_by(decoder: Any, y: Tensor) -> Tensor:
    """Images of states without noise: scale and shift of its configuration, or means and widths of channels."""
    config, dtype = decoder.config, decoder.dtype
    scale, mean, std = (config.get(key) for key in ("scaling_factor", "latents_mean", "latents_std"))
    latents = y.float() / (scale or 1.0)
    if mean is not None and std is not None:
        mean, std = (torch.as_tensor(v, dtype=latents.dtype, device=y.device)[:, None, None] for v in (mean, std))
        latents = latents * std + mean
    latents = latents + (config.get("shift_factor") or 0.0)
    if not (dtype == torch.float16 and config.get("force_upcast")):
        images: Tensor = decoder.decode(latents.to(dtype)).sample
        return images.float()
    decoder.to(torch.float32)  # as its pipeline does: it overflows in half precision
    try:
        images = decoder.decode(latents).sample
    finally:
        decoder.to(dtype)
    return images


def pixels_per_site(kind: Any, config: dict[str, Any]) -> int | None:
    """Image pixels along a side to one of a latent, by a decoder's configuration or its class's defaults."""
    defaults = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
    known = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty} | config
    ratio = known.get("spatial_compression_ratio")
    if isinstance(ratio, int):
        return ratio
    channels = next((known[name] for name in _RESOLUTIONS if known.get(name)), None)
    # Every resolution but the last is halved.
    return 2 ** (len(channels) - 1) if isinstance(channels, (list, tuple)) else None
