"""Folders that save_pretrained of diffusers wrote: a network, its scheduler, and of latent models the decoder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastcrit._edge.extras import need
from fastcrit._edge.placement import usable_device
from fastcrit._edge.statefile import digest_of_files
from fastcrit.diffusion.decoders import decode_by, pixels_per_site
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.diffusers import from_diffusers
from fastcrit.diffusion.network import built_plainly
from fastcrit.diffusion.network_classes import TABLE
from fastcrit.errors import FileFormatError

_STEM = "diffusion_pytorch_model"
# A variant's name, such as fp16, in the names of its files: whole ones, shards, and what lists these.
_VARIANT = re.compile(
    rf"{_STEM}(?:\.(?P<one>\w+)(?:-\d+-of-\d+)?\.safetensors|\.safetensors\.index\.(?P<many>\w+)\.json)"
)
# Where pipelines keep their networks.
_NETWORKS = ("unet", "transformer")
# What older folders call by another name, as diffusers tells the two apart.
_BY_NORM = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
# Where pipelines keep their decoders.
_DECODERS = ("vae", "vqvae")


def load_diffusers(
    folder: str | os.PathLike[str],
    *,
    null_label: int | None = None,
    device: str = "cpu",
    conditioning: Mapping[str, Any] | None = None,
    null: Mapping[str, Any] | None = None,
    shape: Sequence[int] | None = None,
) -> Denoiser:
    """A network with its scheduler: a folder with unet/ or transformer/ and scheduler/, as save_pretrained writes it.

    Parameters
    ----------
    folder : path
        On disk; nothing is downloaded. Weights must be safetensors; of those in half precision ("fp16") it is computed
        in float32. The network is one of diffusers' own classes that `from_diffusers` knows.
    null_label : int, optional
        The class that stands for "no label", where the network was trained with one and its class does not say.
    device : str
    conditioning, null : dict of tensor, optional
        As for `from_diffusers`: what text models need.
    shape : (C, H, W), optional
        Default: what the network's config says (nothing, of Flux).

    Returns
    -------
    Denoiser
        ``card`` has the ``sha256`` of all its files, ``pixels_per_site``: 1 of a U-Net and None of a transformer, or
        where there is a vae/ or vqvae/ what the decoder's own configuration says (None where it does not), and the
        checksum of what it is conditioned on. ``decode`` is that decoder.

    Raises
    ------
    FileNotFoundError
        A part of the folder is missing.
    FileFormatError
        It holds a network of a class that is not known or of remote code, or weights that are pickles; diffusers cannot
        read it.
    TypeError, ValueError
        As for `from_diffusers`.

    Examples
    --------
    >>> import fastcrit as fc
    >>> fc.diffusion.load_diffusers("no-such-folder")
    Traceback (most recent call last):
    FileNotFoundError: diffusers: no-such-folder/unet/config.json: no such file; expected a folder that save_pretrained
    wrote
    """
    root = Path(folder)
    part = next((p for p in _NETWORKS if (root / p / "config.json").is_file()), _NETWORKS[0])
    for needed in (f"{part}/config.json", "scheduler/scheduler_config.json"):
        if not (root / needed).is_file():
            raise FileNotFoundError(f"diffusers: {root / needed}: no such file; {_what_else(root)}")
    device = usable_device(device)
    library: Any = need("diffusers", f"loading {root}")
    settings = root / "scheduler/scheduler_config.json"
    name = _config(settings).get("_class_name")
    kind: Any = getattr(library, str(name), None)
    if not hasattr(kind, "set_timesteps"):
        raise FileFormatError(f"diffusers: {settings}: expected the name of a scheduler as _class_name, got {name!r}")
    net = _network(library, root / part).to(device)
    with built_plainly():
        scheduler = kind.from_pretrained(root / "scheduler")
    D = from_diffusers(net, scheduler, null_label=null_label, conditioning=conditioning, null=null, shape=shape)
    files = sorted(p for each in (part, "scheduler") for p in (root / each).rglob("*") if p.is_file())
    D.card |= {"sha256": digest_of_files(files), "pixels_per_site": 1 if part == "unet" else None}
    for decoder in _DECODERS:
        if (root / decoder).is_dir():
            D.decode, D.card["pixels_per_site"] = _decoder(library, root / decoder, device)
            break
    return D


def _network(library: Any, folder: Path) -> Any:
    """The network in a folder, if its class is one of diffusers' own whose call is known."""
    config = _config(folder / "config.json")
    said = str(config.get("_class_name", "UNet2DModel"))
    if said == "Transformer2DModel":
        said = _BY_NORM.get(str(config.get("norm_type")), said)
    known = [name for row in TABLE if not row.remote for name in row.names]
    if said in known:
        article = "an" if said[0] in "AEIO" else "a"
        return _loaded(getattr(library, said), folder, f"{article} {said}")
    remote = any(said in row.names for row in TABLE)
    why = "which is code that came with it" if remote else f"which is none of those that are known ({', '.join(known)})"
    how = "scheduler)" if remote else "scheduler, call=..)"
    raise FileFormatError(
        f"diffusers: {folder}: holds a {said}, {why}; load it yourself, by its own from_pretrained, and wrap it: "
        f"fc.diffusion.from_diffusers(model, {how}"
    )


def _what_else(root: Path) -> str:
    """What a folder is instead of what is read here."""
    if (root / "prior/config.json").is_file():
        kind = _config(root / "prior/config.json").get("_class_name", "another network")
        return (
            f"prior/ holds a {kind}, and a network is read from {' or '.join(_NETWORKS)}; load it with diffusers and "
            "wrap it by fc.diffusion.from_diffusers or from_velocity"
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
        return decode_by(loaded[0], y)

    return decode, pixels_per_site(kind, config)
