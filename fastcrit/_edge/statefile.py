"""Files of named arrays that know whether they are whole: safetensors with a format name, a version and a checksum.

A path, or a URL of any file system that fsspec knows (s3://.., gs://.., memory://..).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fastcrit._edge.extras import need
from fastcrit.errors import FileFormatError


def write_state(path: Any, kind: str, version: int, config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write ``arrays`` and ``config`` to ``path``: a temporary file beside it, moved into place when it is complete.

    A URL is written in one go: object stores show an object when it is whole, and elsewhere the checksum tells.
    """
    config = json.loads(json.dumps(config))  # as it will be read: JSON makes every key a string
    metadata = {
        "format": kind,
        "version": str(version),
        "config": json.dumps(config),
        "sha256": _digest(config, arrays),
    }
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=metadata)
    if is_url(path):
        files, name = remote(path)
        files.pipe_file(name, content)
        return
    target = Path(path).resolve()  # through a link, to the file that it names
    if target.exists():
        _refuse_foreign(target, kind)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    # A folder of its own, so that the file itself is made with the permissions every other file gets.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        temporary = Path(folder) / target.name
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)


def _refuse_foreign(target: Path, kind: str) -> None:
    """Only a file of the same kind may be replaced by a newer one."""
    if target.is_file():
        try:
            with safe_open(str(target), framework="numpy") as file:
                if (file.metadata() or {}).get("format") == kind:
                    return
        except (SafetensorError, OSError):
            pass  # damaged or of another kind, and refused below
    raise FileExistsError(f"{target}: exists and is not a {kind} file; it is left as it is")


def read_state(path: Any, kind: str, version: int | tuple[int, ...]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Configuration and arrays of a `write_state` file; FileFormatError, naming the file, if it is not one."""
    if is_url(path):
        files, name = remote(path)
        if not files.exists(name):
            raise FileNotFoundError(f"{path}: no such file")
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "state"
            local.write_bytes(files.cat_file(name))
            return _read(local, str(path), kind, version)
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    return _read(Path(path), str(path), kind, version)


def is_url(path: Any) -> bool:
    """Whether ``path`` is for fsspec; everything else is a local path."""
    return "://" in str(path)


def remote(url: Any) -> tuple[Any, str]:
    """The file system of a URL, and the name of the file or folder in it."""
    core = need("fsspec", f"{url}").core
    try:
        files, name = core.url_to_fs(str(url))
    except (ImportError, ValueError) as error:  # a client that is not installed, an unknown protocol
        raise ValueError(f"{url}: cannot be reached ({error})") from error
    return files, str(name)


def _read(
    path: Path, target: str, kind: str, version: int | tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Of the file at ``path``, which messages call ``target``."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise FileFormatError(f"{target}: not a {kind} file (format {metadata.get('format')!r})")
            known = [str(v) for v in (version if isinstance(version, tuple) else (version,))]
            if metadata.get("version") not in known:
                raise FileFormatError(
                    f"{target}: {kind} version {metadata.get('version')}; this fastcrit reads version "
                    f"{' and '.join(known)}"
                )
            config = json.loads(metadata["config"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except FileFormatError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{target}: damaged, or not a {kind} file ({error})") from error
    if _digest(config, arrays) != metadata.get("sha256"):
        raise FileFormatError(f"{target}: damaged: the checksum does not match the contents")
    return config, arrays


def digest_of_files(files: list[Path]) -> str:
    """sha256 of a file; of several, of their names too."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0".encode() if len(files) > 1 else b"")
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _digest(config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
