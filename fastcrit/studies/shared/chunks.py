"""Work as numbered chunks in a folder that many processes share: which are missing, whether one is whole, who takes it.

No process waits for another or holds a lock. A chunk's content follows from its number and the configuration alone, so
two processes that make the same one write the same; a file appears when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fastcrit._edge import statefile as _statefile
from fastcrit.errors import FileFormatError

Log = Callable[[str], None]

_SUFFIX = ".safetensors"
# A temporary file this old, in seconds, is what a killed process left.
_ABANDONED = 3600.0


class Chunks:
    """Chunks 0 .. count - 1 of one configuration.

    Parameters
    ----------
    place : path or str
        A folder, or the URL of one on any file system that fsspec knows.
    kind, version : str, int
        Of the files, as `write_state` has them.
    config : dict
        What the chunks follow from.
    count : int
    log : callable
        Told of files that are damaged or foreign.
    """

    def __init__(self, place: Any, kind: str, version: int, config: dict[str, Any], count: int, log: Log) -> None:
        self.place = str(place).rstrip("/")
        self.kind, self.version, self.count = kind, version, count
        self.study = config_hash(config)
        self._log = log

    def open(self) -> None:
        """Make the folder, and clear away what processes that were killed long ago left.

        ValueError for a place that is no folder or cannot be reached.
        """
        if _statefile.is_url(self.place):
            try:
                files, name = _statefile.remote(self.place)
            except ValueError as error:
                raise ValueError(f"chunks: {error}") from error
            files.makedirs(name, exist_ok=True)
            return
        folder = Path(self.place)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"chunks: expected a folder, {folder} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder)

    def path(self, number: int) -> str:
        """Path or URL of a chunk."""
        return f"{self.place}/chunk-{number:06d}{_SUFFIX}"

    def missing(self) -> list[int]:
        """Numbers of the chunks without a file."""
        if _statefile.is_url(self.place):
            files, name = _statefile.remote(self.place)
            files.invalidate_cache()
            there = {str(path).rsplit("/", 1)[-1] for path in files.ls(name, detail=False)}
        else:
            there = {path.name for path in Path(self.place).glob(f"*{_SUFFIX}")}
        return [c for c in range(self.count) if self.path(c).rsplit("/", 1)[-1] not in there]

    def exists(self, number: int) -> bool:
        """Whether a chunk has a file."""
        if _statefile.is_url(self.place):
            files, name = _statefile.remote(self.path(number))
            files.invalidate_cache()
            return bool(files.exists(name))
        return Path(self.path(number)).exists()

    def save(self, number: int, about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
        """Write a chunk; OSError where there is no room or no right to."""
        config = {**about, "chunk": number, "study": self.study}
        _statefile.write_state(self.path(number), self.kind, self.version, config, arrays)

    def load(self, number: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
        """What `save` wrote, or None where there is nothing; what is damaged or foreign is named and set aside."""
        try:
            about, arrays = _statefile.read_state(self.path(number), self.kind, self.version)
            if (about.get("chunk"), about.get("study")) != (number, self.study):
                raise FileFormatError(
                    f"{self.path(number)}: chunk {about.get('chunk')} of configuration {about.get('study')}, expected "
                    f"chunk {number} of {self.study}"
                )
        except FileNotFoundError:
            return None
        except FileFormatError as error:
            self._log(f"chunk {number} is computed again: {error}")
            self._set_aside(number)
            return None
        return about, arrays

    def order(self, rank: int, size: int, shuffled: bool = False) -> list[int]:
        """Missing chunks in the order in which a rank takes them: its own, then those of others from the last on.

        The others take theirs from the first on, so that two meet at one chunk only. ``shuffled``: its own by chance,
        so that independent processes of the same number seldom meet.
        """
        missing = self.missing()
        own = [c for c in missing if c % size == rank]
        if shuffled:
            random.SystemRandom().shuffle(own)
        return own + [c for c in reversed(missing) if c % size != rank]

    def _set_aside(self, number: int) -> None:
        path = self.path(number)
        try:
            if _statefile.is_url(path):
                files, name = _statefile.remote(path)
                files.mv(name, f"{name}.damaged")
            else:
                Path(path).replace(f"{path}.damaged")
        except FileNotFoundError:
            self._log(f"chunk {number}: another process has set it aside")


def clear_abandoned(folder: Path) -> None:
    """Remove temporary folders of processes that were killed long ago; younger ones may be in use."""
    for left_over in folder.glob(".*.*"):
        if left_over.is_dir() and time.time() - left_over.stat().st_mtime > _ABANDONED:
            shutil.rmtree(left_over, ignore_errors=True)


def config_hash(config: dict[str, Any]) -> str:
    """sha256 of a configuration, shortened to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
