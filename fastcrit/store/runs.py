"""Run folders, which are never overwritten: made once, resumed by the configuration that made them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from fastcrit.errors import FileFormatError


def create_run(path: str | os.PathLike[str]) -> Path:
    """Make a new folder for a run.

    Raises
    ------
    FileExistsError
        Something of that name exists (an empty folder is accepted): finished results are never overwritten.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"out: {folder} exists already; choose another name, delete it, or resume it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin_run(path: str | os.PathLike[str], config: dict[str, Any], *, finished: str, resume: bool = False) -> Path:
    """The folder of a run: made, with its config.json, or with ``resume`` found to hold the same run, not finished.

    Parameters
    ----------
    path : path
    config : dict
        What the result follows from, as JSON holds it.
    finished : str
        Name of what lies in the folder once the run is finished.
    resume : bool

    Raises
    ------
    FileExistsError
        The folder exists and ``resume`` is False, or it holds a finished run.
    FileNotFoundError, ValueError
        ``resume`` without a run to resume, or one with another configuration (the message says what differs).
    FileFormatError
        config.json is damaged.
    """
    folder = Path(path)
    if not resume:
        create_run(folder)
        write_config(folder, config)
        return folder
    check_run(folder, config, finished=finished)
    for left_over in (p for p in folder.glob(".*.*") if p.is_dir()):
        shutil.rmtree(left_over, ignore_errors=True)  # of a save that was killed
    return folder


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, which must not be there: of two runs that begin at once, one is refused.

    It appears when it is whole, so that a kill cannot leave half of it.
    """
    temporary = folder / f".config.json.{os.getpid()}"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    try:
        os.link(temporary, folder / "config.json")  # unlike a rename, refused where there is one
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with (folder / "config.json").open("x") as new:
            new.write(temporary.read_text())
    finally:
        temporary.unlink()


def check_run(folder: Path, config: dict[str, Any], *, finished: str | None) -> None:
    """Raise unless the folder holds a run of this configuration, and no file of the name ``finished``.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, FileFormatError
        As for `begin_run`.
    """
    file = folder / "config.json"
    mine = json.loads(json.dumps(config))
    if finished is not None and (folder / finished).exists():
        raise FileExistsError(f"out: {folder} holds a finished run")
    if not file.exists():
        raise FileNotFoundError(f"out: no run to resume in {folder}")
    try:
        theirs = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{file}: damaged ({error})") from error
    if not isinstance(theirs, dict):
        raise FileFormatError(f"{file}: not the configuration of a run")
    different = [f"{k} = {theirs.get(k)!r} there, {v!r} here" for k, v in mine.items() if theirs.get(k) != v]
    if different:
        raise ValueError(f"out: {folder} was begun with another configuration: {'; '.join(different)}")
