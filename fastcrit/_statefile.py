"""Files of named arrays that know whether they are whole: safetensors with a format name, a version and a checksum."""

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

from fastcrit.errors import FileFormatError


def write_state(path: Any, kind: str, version: int, config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write ``arrays`` and ``config`` to ``path``: a temporary file beside it, moved into place when it is complete."""
    config = json.loads(json.dumps(config))  # as it will be read: JSON makes every key a string
    target = Path(path).resolve()  # through a link, to the file that it names
    if target.exists():
        _refuse_foreign(target, kind)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    metadata = {
        "format": kind,
        "version": str(version),
        "config": json.dumps(config),
        "sha256": _digest(config, arrays),
    }
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=metadata)
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


def read_state(path: Any, kind: str, version: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Configuration and arrays of a `write_state` file; FileFormatError, naming the file, if it is not one."""
    target = Path(path)
    if not target.exists():
        raise FileNotFoundError(f"{target}: no such file")
    try:
        with safe_open(str(target), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise FileFormatError(f"{target}: not a {kind} file (format {metadata.get('format')!r})")
            if metadata.get("version") != str(version):
                raise FileFormatError(
                    f"{target}: {kind} version {metadata.get('version')}; this fastcrit reads version {version}"
                )
            config = json.loads(metadata["config"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    except FileFormatError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FileFormatError(f"{target}: damaged, or not a {kind} file ({error})") from error
    if _digest(config, arrays) != metadata.get("sha256"):
        raise FileFormatError(f"{target}: damaged: the checksum does not match the contents")
    return config, arrays


def _digest(config: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
