"""Arrays of files, read slice by slice: lazy `xarray.DataArray` whose source is a path that any process can read."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from fastcrit._extras import need

Reader = Callable[[str, str, Any], Any]


def lazy_array(path: Path, name: str | None) -> dict[str, xr.DataArray]:
    """The arrays of a file by name, none of them read; whatever its library raises on what it cannot read.

    A compressed .npz is the exception: its arrays are read whole.
    """
    if path.suffix in (".zarr", ".nc", ".h5"):
        return _open_xarray(path)
    if path.suffix == ".npz" and _is_compressed(path):
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            names = file.files if name is None or name not in file.files else [name]
            return {key: xr.DataArray(file[key]) for key in names}
    found, read = _OPENERS[path.suffix](path)
    return {key: _array(str(path), key, shape, dtype, read) for key, (shape, dtype) in found.items()}


def _open_xarray(path: Path) -> dict[str, xr.DataArray]:
    if path.suffix == ".zarr":
        zarr = need("zarr", f"reading {path.name}")
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            array = _array(str(path), "array", node.shape, node.dtype, _read_zarr)
            array.encoding["preferred_chunks"] = dict(zip(array.dims, node.shards or node.chunks, strict=True))
            return {"array": array}
        consolidated = None if node.metadata.consolidated_metadata else False
        ds = xr.open_dataset(path, engine="zarr", chunks=None, consolidated=consolidated)
    else:
        need("netCDF4", f"reading {path.name}")
        ds = xr.open_dataset(path, chunks=None, cache=False)
    return {str(name): ds[name] for name in ds.data_vars}


class _Slices(BackendArray):
    """An array of a file, read by ``read(path, name, key)``."""

    def __init__(self, path: str, name: str, shape: tuple[int, ...], dtype: Any, read: Reader) -> None:
        self.path, self.name, self.shape, self.dtype, self.read = path, name, shape, np.dtype(dtype), read

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._slice)

    def _slice(self, key: Any) -> Any:
        return np.asarray(self.read(self.path, self.name, key))


def _array(path: str, name: str, shape: tuple[int, ...], dtype: Any, read: Reader) -> xr.DataArray:
    data = indexing.LazilyIndexedArray(_Slices(path, name, shape, dtype, read))
    return xr.DataArray(xr.Variable([f"dim_{i}" for i in range(len(shape))], data))


def _open_npy(path: Path) -> tuple[dict[str, Any], Reader]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"array": (array.shape, array.dtype)}, _read_npy


def _is_compressed(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())


def _open_npz(path: Path) -> tuple[dict[str, Any], Reader]:
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    arrays = {name: _mapped(str(path), name) for name in names}
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}, _read_npz


def _mapped(path: str, name: str) -> Any:
    """An array of an uncompressed .npz, mapped from the file: an .npy file lies in it as it is."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        at = archive.getinfo(f"{name}.npy").header_offset
        file.seek(at + 26)  # of a zip member's own header of 30 bytes: the lengths of its name and of what follows it
        file.seek(at + 30 + sum(struct.unpack("<HH", file.read(4))))
        major, _ = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{name}: pickled objects are refused")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def _open_safetensors(path: Path) -> tuple[dict[str, Any], Reader]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        found = {}
        for name in file.keys():  # noqa: SIM118 (safe_open is no dict)
            part = file.get_slice(name)
            if part.get_dtype() in _SAFETENSORS:
                found[name] = (tuple(part.get_shape()), _SAFETENSORS[part.get_dtype()])
        return found, _read_safetensors


def _open_pt(path: Path) -> tuple[dict[str, Any], Reader]:
    torch = need("torch", f"reading {path.name}")
    content = _load_pt(str(path))
    return {
        name: (tuple(t.shape), np.float32 if t.dtype == torch.bfloat16 else t[:0].numpy().dtype)
        for name, t in content.items()
        if isinstance(t, torch.Tensor) and t.ndim
    }, _read_pt


def _read_npy(path: str, name: str, key: Any) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)[key]


def _read_npz(path: str, name: str, key: Any) -> Any:
    return _mapped(path, name)[key]


def _read_zarr(path: str, name: str, key: Any) -> Any:
    return need("zarr", f"reading {path}").open(path, mode="r")[key]


def _read_safetensors(path: str, name: str, key: Any) -> Any:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return file.get_slice(name)[key]


def _read_pt(path: str, name: str, key: Any) -> Any:
    torch = need("torch", f"reading {path}")
    part = _load_pt(path)[name][key].detach()
    return (part.float() if part.dtype == torch.bfloat16 else part).numpy()


def _load_pt(path: str) -> dict[str, Any]:
    """Tensors by name, mapped from the file."""
    content = need("torch", f"reading {path}").load(path, map_location="cpu", weights_only=True, mmap=True)
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {"tensor": content}


_SAFETENSORS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "U8": np.uint8, "I8": np.int8, "I16": np.int16,
    "I32": np.int32, "I64": np.int64,
}  # fmt: skip
_OPENERS: dict[str, Callable[[Path], tuple[dict[str, Any], Reader]]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".pt": _open_pt,
    ".pth": _open_pt,
    ".safetensors": _open_safetensors,
}
