"""Folders that text pipelines of diffusers wrote: network, scheduler, decoder, tokenizers and text encoders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fastcrit._edge.extras import need
from fastcrit._edge.placement import usable_device
from fastcrit._edge.statefile import digest_of_files
from fastcrit.diffusion.denoiser import Denoiser
from fastcrit.diffusion.network import built_plainly
from fastcrit.diffusion.pipelines import check_prompts, from_pipeline, kind_of, unknown
from fastcrit.errors import FileFormatError

# Parts and settings that are not asked here, and what a pipeline is told of them.
_LEFT_OUT = {
    "safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False
}  # fmt: skip
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")


def load_pipeline(
    folder: str | os.PathLike[str], prompts: Sequence[str], negative: str = "", *, device: str = "cpu"
) -> Denoiser:
    """`from_pipeline` of a folder that a text pipeline's save_pretrained wrote.

    Nothing is downloaded and no code of the folder is run; weights must be safetensors, and are computed in float32.

    Returns
    -------
    Denoiser
        ``card`` has the ``sha256`` of all files but the decoder's: network, scheduler, tokenizers, text encoders.

    Raises
    ------
    FileNotFoundError
        No folder of a whole pipeline.
    FileFormatError
        It is damaged, of a class that is not known, has parts that need code of their own, or weights that are pickles.
    ModuleNotFoundError
        Diffusers or transformers is not installed.
    TypeError, ValueError
        As for `from_pipeline`.
    """
    root = Path(folder)
    name, parts = _index(root)
    if kind_of(name) is None:
        raise FileFormatError(f"diffusers: {root} holds {unknown(name)}")
    check_prompts(name, prompts, negative)
    device = usable_device(device)
    diffusers: Any = need("diffusers", f"loading {root}")
    transformers: Any = need("transformers", f"the text encoders of {root}")
    left_out = {part: given for part, given in _LEFT_OUT.items() if part in parts}
    read = {part: given for part, given in parts.items() if part not in _LEFT_OUT and isinstance(given, list)}
    _check_read(root, read)
    with _quiet(diffusers.utils.logging), _quiet(transformers.utils.logging):
        try:
            with built_plainly():
                pipe = getattr(diffusers, name).from_pretrained(
                    root, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False,
                    variant=_variant(root, read), **left_out,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise FileFormatError(
                f"diffusers: {root}: damaged, or not the safetensors of a {name} ({error}); pickles of weights can run "
                f"code: if you trust where they come from, diffusers.{name}.from_pretrained(folder, "
                "use_safetensors=False).save_pretrained(folder) converts them"
            ) from error
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.float().eval().requires_grad_(False)
    D = from_pipeline(pipe.to(device), prompts, negative)
    folders = (root / part for part in sorted(read) if part != "vae")
    D.card["sha256"] = digest_of_files([p for each in folders for p in sorted(each.rglob("*")) if p.is_file()])
    return D


def text_pipeline(folder: str | os.PathLike[str]) -> str | None:
    """The class of the text pipeline that a folder holds; None for anything else."""
    root = Path(folder)
    if not (root / "model_index.json").is_file():
        return None
    name = _index(root)[0]
    kind = kind_of(name)
    return name if kind is not None and kind.prompt else None


def _index(root: Path) -> tuple[str, dict[str, Any]]:
    """Class of the pipeline in a folder, and its parts and settings: of a part its library and class."""
    file = root / "model_index.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"diffusers: {file}: no such file; prompts need a whole pipeline with its text encoders, as its "
            "save_pretrained writes it"
        )
    try:
        content = json.loads(file.read_text())
        name = content["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"diffusers: {file}: damaged ({error})") from error
    return str(name), {key: value for key, value in content.items() if not key.startswith("_")}


def _check_read(root: Path, parts: dict[str, Any]) -> None:
    """FileFormatError for a part of another library than these two, or one whose class its own files choose."""
    for part, given in parts.items():
        library, name = (*given, None, None)[:2]
        if given == [None, None]:
            continue
        if library not in ("diffusers", "transformers") or (library == "transformers" and str(name).startswith("Auto")):
            raise FileFormatError(
                f"diffusers: {root}/model_index.json: {part} is a {name} of {library}, and only classes that diffusers "
                "and transformers themselves have are read; load it with them, and pass it to "
                "fc.diffusion.from_pipeline"
            )


def _variant(root: Path, parts: dict[str, Any]) -> str | None:
    """Which weights are read: those without a variant where every part has some, or else of the only one there is."""
    found: set[str] = set()
    for part in parts:
        names = [m["variant"] for p in sorted((root / part).glob("*.safetensors")) if (m := _WEIGHTS.fullmatch(p.name))]
        if None not in names:
            found |= set(names)
    if len(found) > 1:
        raise FileFormatError(f"diffusers: {root}: weights of the variants {', '.join(sorted(found))}; leave one there")
    return next(iter(found), None)


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
