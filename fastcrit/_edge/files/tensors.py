"""Tensors that torch saved: loaded without running anything that the file holds, mapped where the format allows it."""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.extras import need
from fastcrit._edge.files.stored import Stored
from fastcrit.errors import FileFormatError

# Before it, torch.load(weights_only=True) could be made to run code (CVE-2025-32434).
_SAFE_TORCH = (2, 6)


def pt_arrays(path: Path) -> dict[str, Stored]:
    """Tensors of a .pt file by name; those of dictionaries and lists inside as "outer/inner"."""
    return {name: _stored(str(path), name, tensor) for name, tensor in _tensors(str(path)).items()}


@dataclass(frozen=True)
class _TensorReader:
    path: str
    name: str

    def __call__(self, key: Any) -> tuple[NDArray[Any], None]:
        return np.asarray(_plain(_tensors(self.path)[self.name][key])), None


def _stored(path: str, name: str, tensor: Any) -> Stored:
    torch = need("torch", f"reading {path}")
    shape = tuple(tensor.shape)
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
        kind = "sparse, nested or quantized" if tensor.device.type == "cpu" else f"on the device {tensor.device.type!r}"
        return Stored(name, shape, unreadable=f"the tensor is {kind}; save a dense one on the CPU", numbers=bool(shape))
    try:
        dtype = _plain(torch.zeros(0, dtype=tensor.dtype)).dtype
    except TypeError:
        why = f"its type is {tensor.dtype}, which numpy does not have; save it as float32 or bfloat16"
        return Stored(name, shape, unreadable=why, numbers=bool(shape))
    return Stored(name, shape, dtype, _TensorReader(path, name), numbers=bool(shape))


def _plain(tensor: Any) -> Any:
    """As numpy has it: without a graph, a sign or a conjugation that is still to be done; bfloat16 as float32."""
    torch = need("torch", "reading a tensor")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def _tensors(path: str) -> dict[str, Any]:
    """Every tensor of a file by name. A file of the old format cannot be mapped; the last one is kept."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise FileFormatError(f"{path}: a network that TorchScript saved, not a .pt file of tensors")
        return _load(path, mmap=True)
    about = os.stat(path)
    return _load_old(path, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=1)
def _load_old(path: str, changed: int, size: int) -> dict[str, Any]:
    return _load(path, mmap=False)


def _load(path: str, *, mmap: bool) -> dict[str, Any]:
    torch = need("torch", f"reading {path}")
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_TORCH:
        raise FileFormatError(
            f"{path}: not read by torch {torch.__version__}, in which a .pt file can run code whatever it is told; "
            "update torch to 2.6 or later, or save the tensors as .safetensors"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # What torch says here ends in advice to let the file run code.
        text = str(error)
        asks = re.search(r"GLOBAL (\S+)", text)
        holds = f"it asks for {asks[1]}" if asks else text.split("\n")[0].split(". ")[0] or type(error).__name__
        if "weights_only" in holds or "Weights only" in holds:
            holds = "it holds more than tensors"
        raise FileFormatError(
            f"{path}: damaged, truncated, or not a {Path(path).suffix} file of tensors alone ({holds}); objects are "
            "never unpickled, since that runs what they hold: save a tensor, or a dictionary of tensors"
        ) from error
    return dict(_flat("", content))


def _flat(name: str, content: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(content, "is_nested") and hasattr(content, "layout"):
        yield name or "tensor", content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(f"{name}/{key}" if name else str(key), value)
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from _flat(f"{name}/{i}" if name else str(i), value)
