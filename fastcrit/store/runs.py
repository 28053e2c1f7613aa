"""Run folders, which are never overwritten: made once, resumed by the configuration that made them.

A folder holds a run from when its config.json is there. What a run that was killed before that has left behind is no
run: ``resume`` begins in it.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from fastcrit.errors import FileFormatError

_CONFIG = "config.json"
# What every run can leave before that is there.
_FIRST = (f".{_CONFIG}.*",)


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


def begin_run(
    path: str | os.PathLike[str], config: dict[str, Any], *, finished: str | None, resume: bool = False,
    prepare: Callable[[Path], None] | None = None, made_first: Iterable[str] = (), shared: bool = False,
) -> Path:  # fmt: skip
    """The folder of a run: made, with its config.json; with ``resume`` one that holds the same run will do.

    With ``resume`` the call is the same for a run that goes on and for one that was killed before it had begun.

    Parameters
    ----------
    path : path
    config : dict
        What the result follows from, as JSON holds it.
    finished : str, optional
        Name of what lies in the folder once the run is finished; None where a finished one will do.
    resume : bool
    prepare : callable, optional
        Makes in the folder what has to be there before config.json is. It may find what it left when it was killed.
    made_first : patterns
        Paths in the folder of what a run makes before its config.json, as fnmatch has them. With ``resume`` a folder
        that holds no more than that counts as empty.
    shared : bool
        Whether other processes may be at work on this run: their temporary files are then left alone.

    Raises
    ------
    FileExistsError
        The folder exists and ``resume`` is False, or it holds what no run makes, or a finished run.
    ValueError
        ``resume`` with another configuration than the run's (the message says what differs).
    FileFormatError
        config.json is damaged.
    """
    folder = Path(path)
    if not resume:
        create_run(folder)
    elif _is_begun(folder, config, tuple(made_first)):
        check_run(folder, config, finished=finished)
        if not shared:
            clear_run(folder)
        return folder
    else:
        folder.mkdir(parents=True, exist_ok=True)
    if prepare is not None:
        prepare(folder)
    try:
        write_config(folder, config)
    except FileExistsError:
        if not resume:
            raise
        check_run(folder, config, finished=finished)  # another process that begins this run was faster
    return folder


def begin_runs(path: str | os.PathLike[str], names: Iterable[str], *, resume: bool = False) -> Path:
    """The folder of several runs, which lie inside by these names: made; with ``resume`` one that holds some will do.

    Raises
    ------
    FileExistsError
        The folder exists and ``resume`` is False, or it, or a folder of these names in it, holds something that is no
        run.
    """
    folder = Path(path)
    if not resume:
        return create_run(folder)
    own = list(names)
    if not any(folder.glob(f"*/{_CONFIG}")):
        _check_empty(folder, tuple(f"{escape(name)}{inside}" for name in own for inside in ("", "/*")))
    for inner in (folder / name for name in own):
        if not (inner / _CONFIG).exists():
            _check_empty(inner, _FIRST)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def clear_run(folder: Path) -> None:
    """Remove the temporary files and folders of a run that one process makes: what a kill has left."""
    for left_over in folder.glob(".*.*"):
        if left_over.is_dir():
            shutil.rmtree(left_over, ignore_errors=True)
        elif left_over.match(f".{_CONFIG}.*"):
            left_over.unlink(missing_ok=True)


def _is_begun(folder: Path, config: dict[str, Any], made_first: tuple[str, ...]) -> bool:
    """Whether a folder holds a run; FileExistsError, naming a file, where it holds something else."""
    file, first = folder / _CONFIG, (*_FIRST, *made_first)
    if file.exists():
        # Half a file beside the work of a run is a damaged one.
        return not _is_half(file, _text(config)) or _foreign(folder, (_CONFIG, *first)) is not None
    _check_empty(folder, first)
    return False


def _check_empty(folder: Path, known: tuple[str, ...]) -> None:
    """FileExistsError where there is more than what matches the ``known`` patterns."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"out: {folder} is no folder; choose another name")
    foreign = _foreign(folder, known) if folder.exists() else None
    if foreign is not None:
        raise FileExistsError(f"out: {folder} holds no run to resume, but {foreign}; choose another name, or delete it")


def _foreign(folder: Path, known: tuple[str, ...], inside: str = "") -> str | None:
    """The first path in a folder that matches none of the ``known`` ones."""
    for path in sorted(folder.iterdir()):
        name = f"{inside}{path.name}"
        if not any(fnmatchcase(name, each) for each in known):
            return name
        if path.is_dir() and (found := _foreign(path, known, f"{name}/")):
            return found
    return None


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2) + "\n"


def _is_half(file: Path, text: str) -> bool:
    """Whether a file is what a kill leaves of writing ``text`` to it in place."""
    there = file.read_bytes()
    return len(there) < len(text.encode()) and text.encode().startswith(there)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, which must not be there: of two runs that begin at once, one is refused.

    It appears when it is whole, so that a kill cannot leave half of it.
    """
    # A name of its own: processes of two machines can have the same number.
    temporary = folder / f".{_CONFIG}.{os.getpid()}-{secrets.token_hex(4)}"
    target, text = folder / _CONFIG, _text(config)
    try:
        temporary.write_text(text)
        try:
            os.link(temporary, target)  # unlike a rename, refused where there is one
        except FileExistsError:
            raise
        except OSError:  # a file system without links, where a kill can leave half of it
            with target.open("x") as new:
                new.write(text)
    except FileExistsError:
        if not _is_half(target, text):
            raise
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def check_run(folder: Path, config: dict[str, Any], *, finished: str | None) -> None:
    """Raise unless the folder holds a run of this configuration, and no file of the name ``finished``.

    Raises
    ------
    FileNotFoundError
        There is no config.json.
    FileExistsError, ValueError, FileFormatError
        As for `begin_run`.
    """
    file = folder / _CONFIG
    mine = json.loads(json.dumps(config))
    if finished is not None and (folder / finished).exists():
        raise FileExistsError(f"out: {folder} holds a finished run")
    if not file.exists():
        raise FileNotFoundError(f"out: no run in {folder}")
    try:
        theirs = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{file}: damaged ({error})") from error
    if not isinstance(theirs, dict):
        raise FileFormatError(f"{file}: not the configuration of a run")
    if different := differences(theirs, mine):
        raise ValueError(f"out: {folder} was begun with another configuration: {different}")


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """What of my configuration another one has otherwise, in words; empty where nothing is."""
    return "; ".join(f"{k} = {theirs.get(k)!r} there, {v!r} here" for k, v in mine.items() if theirs.get(k) != v)
