"""Folders that save_pretrained of diffusers wrote: a U-Net, its scheduler, and of latent models the decoder."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastcrit._edge.extras import need
from fastcrit._edge.placement import usable_device
from fastcrit._edge.statefile import digest_of_files
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.diffusers import from_diffusers
from fastcrit.diffusion.network import built_plainly
from fastcrit.errors import FileFormatError

_STEM = "diffusion_pytorch_model"
# A variant's name, such as fp16, in the names of its files: whole ones, shards, and what lists these.
_VARIANT = re.compile(
    rf"{_STEM}(?:\.(?P<one>\w+)(?:-\d+-of-\d+)?\.safetensors|\.safetensors\.index\.(?P<many>\w+)\.json)"
)
# Where pipelines keep their decoders, and what their configurations call the channels of each resolution.
_DECODERS = ("vae", "vqvae")
_RESOLUTIONS = ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels")


def load_diffusers(folder: str | os.PathLike[str], *, null_label: int | None = None, device: str = "cpu") -> Denoiser:
    """A UNet2DModel with its scheduler: a folder with unet/ and scheduler/, as a pipeline's save_pretrained writes it.

    Parameters
    ----------
    folder : path
        On disk; nothing is downloaded. Weights must be safetensors; of those in half precision ("fp16") it is computed
        in float32.
    null_label : int, optional
        The class that stands for "no label", where the network was trained with one.
    device : str

    Returns
    -------
    Denoiser
        ``card`` has the ``sha256`` of all its files, and ``pixels_per_site``: 1, or where there is a vae/ or vqvae/
        what the decoder's own configuration says (None where it does not). ``decode`` is that decoder.

    Raises
    ------
    FileNotFoundError
        A part of the folder is missing.
    FileFormatError
        It holds a network of another class, or weights that are pickles; diffusers cannot read it.

    Examples
    --------
    >>> import fastcrit as fc
    >>> fc.diffusion.load_diffusers("no-such-folder")
    Traceback (most recent call last):
    FileNotFoundError: diffusers: no-such-folder/unet/config.json: no such file; expected a folder that save_pretrained
    wrote
    """
    root = Path(folder)
    for part in ("unet/config.json", "scheduler/scheduler_config.json"):
        if not (root / part).is_file():
            raise FileNotFoundError(f"diffusers: {root / part}: no such file; {_what_else(root)}")
    device = usable_device(device)
    library: Any = need("diffusers", f"loading {root}")
    settings = root / "scheduler/scheduler_config.json"
    name = _config(settings).get("_class_name")
    kind: Any = getattr(library, str(name), None)
    if not hasattr(kind, "set_timesteps"):
        raise FileFormatError(f"diffusers: {settings}: expected the name of a scheduler as _class_name, got {name!r}")
    said = _config(root / "unet/config.json").get("_class_name", "UNet2DModel")
    if said != "UNet2DModel":
        raise FileFormatError(
            f"diffusers: {root}/unet: holds a {said}, and only a UNet2DModel, called as model(x, t), is read from a "
            f"folder; load it by diffusers.{said}.from_pretrained and say how it is called: "
            "fc.diffusion.from_diffusers(lambda x, t: ..)"
        )
    net = _loaded(library.UNet2DModel, root / "unet", "a UNet2DModel").to(device)
    with built_plainly():
        scheduler = kind.from_pretrained(root / "scheduler")
    D = from_diffusers(net, scheduler, null_label=null_label)
    files = sorted(p for part in ("unet", "scheduler") for p in (root / part).rglob("*") if p.is_file())
    D.card = {"sha256": digest_of_files(files), "pixels_per_site": 1}
    for part in _DECODERS:
        if (root / part).is_dir():
            D.decode, D.card["pixels_per_site"] = _decoder(library, root / part, device)
            break
    return D


def _what_else(root: Path) -> str:
    """What a folder is instead of what is read here."""
    others = [p.parent for p in sorted(root.glob("*/config.json")) if p.parent.name in ("transformer", "prior", "unet")]
    if others and others[0].name != "unet":
        kind = _config(others[0] / "config.json").get("_class_name", "another network")
        return (
            f"{others[0].name}/ holds a {kind}, and only a UNet2DModel is read from a folder; load it with diffusers "
            "and wrap it by fc.diffusion.from_diffusers or from_velocity"
        )
    return "expected a folder that save_pretrained wrote"


def _config(file: Path) -> dict[str, Any]:
    """The object in a JSON file; FileFormatError for anything else."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise FileFormatError(f"diffusers: {file}: damaged ({error})") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"diffusers: {file}: damaged (expected an object, got {type(content).__name__})")
    return content


def _loaded(kind: Any, folder: Path, what: str) -> Any:
    """A network of a class of diffusers from its folder, in float32, ready to be evaluated."""
    variant = _variant(folder, what)
    try:
        with built_plainly():
            net = kind.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, variant=variant,
                torch_dtype=torch.float32,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FileFormatError(f"diffusers: {folder}: damaged, or not {what} ({error})") from error
    return net.eval().requires_grad_(False)


def _variant(folder: Path, what: str) -> str | None:
    """Which of the safetensors in a folder are read: those without a variant, or of the only one there is."""
    names = sorted(p.name for p in folder.iterdir())
    plain = re.compile(rf"{_STEM}(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    if any(plain.fullmatch(name) for name in names):
        return None
    found = {m["one"] or m["many"] for name in names if (m := _VARIANT.fullmatch(name))}
    if len(found) == 1:
        return found.pop()
    if found:
        raise FileFormatError(
            f"diffusers: {folder}: weights of the variants {', '.join(sorted(found))}; leave one there"
        )
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        raise FileFormatError(
            f"diffusers: {folder}: the weights are in {pickles[0]}, a pickle, which can run code, and are read from "
            "safetensors alone; if you trust where it comes from, convert it: "
            f"diffusers.{what.split()[-1]}.from_pretrained(folder, use_safetensors=False).save_pretrained(folder)"
        )
    if others := [name for name in names if name != "config.json"]:
        raise FileFormatError(f"diffusers: {folder}: no {_STEM}.safetensors, only {', '.join(others[:3])}")
    raise FileFormatError(f"diffusers: {folder}: damaged, or not {what} (no {_STEM}.safetensors)")


def _decoder(library: Any, folder: Path, device: str) -> tuple[Callable[[torch.Tensor], torch.Tensor], int | None]:
    """From the states of a latent model to images, loaded when first needed, and image pixels to a site."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"diffusers: {folder}/config.json: no such file; expected a folder that save_pretrained wrote"
        )
    try:
        config = _config(folder / "config.json")
    except FileFormatError as error:
        raise FileFormatError(f"diffusers: {folder}: damaged, or not an AutoencoderKL ({error})") from error
    name = str(config.get("_class_name", "VQModel" if folder.name == "vqvae" else "AutoencoderKL"))
    kind: Any = getattr(library, name, None)
    if not callable(getattr(kind, "decode", None)):
        raise FileFormatError(f"diffusers: {folder}: expected the name of a decoder as _class_name, got {name!r}")
    loaded: list[Any] = []

    def decode(y: torch.Tensor) -> torch.Tensor:
        if not loaded:
            loaded.append(_loaded(kind, folder, f"an {name}").to(device))
        settings = loaded[0].config
        scale, mean, std = (settings.get(key) for key in ("scaling_factor", "latents_mean", "latents_std"))
        latents = y.float() / (scale or 1.0)
        if mean is not None and std is not None:
            mean, std = (torch.as_tensor(v, dtype=latents.dtype, device=y.device)[:, None, None] for v in (mean, std))
            latents = latents * std + mean
        images: torch.Tensor = loaded[0].decode(latents + (settings.get("shift_factor") or 0.0)).sample
        return images

    return decode, _pixels_per_site(kind, config)


def _pixels_per_site(kind: Any, config: dict[str, Any]) -> int | None:
    """Image pixels along a side to one of a latent, by a decoder's configuration or its class's defaults."""
    defaults = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items()}
    known = {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty} | config
    ratio = known.get("spatial_compression_ratio")
    if isinstance(ratio, int):
        return ratio
    channels = next((known[name] for name in _RESOLUTIONS if known.get(name)), None)
    # Every resolution but the last is halved.
    return 2 ** (len(channels) - 1) if isinstance(channels, (list, tuple)) else None
