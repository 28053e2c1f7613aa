"""Prompts as the classes of a study: read from a file, encoded, and said in its configuration and its table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcrit._edge.texts import different_texts
from fastcrit.errors import FileFormatError

if TYPE_CHECKING:
    from fastcrit.diffusion.denoiser import Denoiser

# Prompts that a table lists.
_LISTED = 20


def prompts(value: Any, name: str) -> tuple[str, ...]:
    """Different texts: those of a list, or the lines of a file, without empty ones.

    Raises
    ------
    FileNotFoundError, FileFormatError
        No such file, or it is not text in UTF-8.
    ValueError, TypeError
        None of them, equal ones, or no texts.
    """
    if not isinstance(value, (str, os.PathLike)):
        return different_texts(value, name)
    file = Path(value)
    if not file.is_file():
        raise FileNotFoundError(f"{name}: {file}: no such file; expected one with a prompt a line")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name}: {file}: not text in UTF-8 ({error})") from error
    return different_texts([line.strip() for line in lines if line.strip()], f"{name}: {file}")


def text(value: Any, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a text, got {value!r}")
    return value


def load_prompted(folder: str | None, texts: Any, negative: str, threads: int, device: str) -> Denoiser:
    """The denoiser of a folder's pipeline, with its prompts encoded by as many threads of torch as the study has.

    Raises
    ------
    ValueError
        No folder; a pipeline that reads no text, or to which two prompts are the same.
    FileNotFoundError, FileFormatError, ModuleNotFoundError
        As for `fastcrit.diffusion.pipeline_folders.load_pipeline`.
    """
    import torch

    from fastcrit.diffusion.pipeline_folders import load_pipeline

    if folder is None:
        raise ValueError("diffusers: prompts need the folder of their pipeline, got None")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return load_pipeline(folder, texts, negative, device=device)
    finally:
        torch.set_num_threads(before)


def check_without_prompts(folder: str | None) -> None:
    """ValueError for the folder of a text model, which has no classes without prompts."""
    from fastcrit.diffusion.pipeline_folders import text_pipeline

    kind = None if folder is None else text_pipeline(folder)
    if kind is not None:
        raise ValueError(
            f"prompts: {folder} holds a {kind}, a text model; give a file with a prompt a line, each of which is a "
            "class (--prompts FILE)"
        )


def config_of_prompts(D: Denoiser) -> dict[str, Any]:
    """What a configuration says of a denoiser's prompts; nothing where there are none."""
    if "prompts" not in D.card:
        return {}
    about = D.card["prompts"]
    return {"prompts": list(about["text"]), "negative": about["negative"], "conditioning": about["sha256"]}


def lines_of_prompts(config: dict[str, Any]) -> list[str]:
    """What a run's table says of its prompts, by label; empty where there are none."""
    texts = config.get("prompts")
    if not texts:
        return []
    away = repr(config["negative"]) if config["negative"] else "none"
    head = f"{len(texts)} prompts, negative {away}, embeddings' sha256 {config['conditioning']}:"
    more = [f"  .. and {len(texts) - _LISTED} more, in config.json"] if len(texts) > _LISTED else []
    return ["", head, *(f"  {j:<4d}{text}" for j, text in enumerate(texts[:_LISTED])), *more]
