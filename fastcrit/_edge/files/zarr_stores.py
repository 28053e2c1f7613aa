"""Zarr stores of both formats: arrays and groups, decoded by codecs of a list and no others."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.extras import need
from fastcrit._edge.files.missing import Decoding, decoding
from fastcrit._edge.files.stored import Stored, is_name, named_by_others
from fastcrit.errors import FileFormatError

# Codecs of numbers that turn bytes into bytes or numbers. What a store names is looked up among all codecs that are
# installed, pickle among them, so a name that is not here is refused before a chunk is read.
_OF_NUMBERS = frozenset({
    "blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "delta", "fixedscaleoffset", "quantize", "packbits",
    "bitround", "shuffle", "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "zfpy", "pcodec",
})  # fmt: skip
_OF_FORMAT_3 = frozenset({"bytes", "endian", "transpose", "sharding_indexed"})


def zarr_arrays(path: Path) -> dict[str, Stored]:
    """Of a store, by name, those in groups as "group/name"; of one that is an array, that one."""
    zarr = need("zarr", f"reading {path.name}")
    node = _open(str(path))
    if isinstance(node, zarr.Array):
        return {"array": _stored(path, "array", node, {})}
    nodes = {name: inner for name, inner in node.members(max_depth=None) if isinstance(inner, zarr.Array)}
    beside = named_by_others([dict(node.attrs), *(dict(inner.attrs) for inner in nodes.values())])
    return {
        name: _stored(path, name, inner, nodes)
        for name, inner in nodes.items()
        if inner.ndim and name not in beside and (_dims(inner) or (None,)) != (name.rpartition("/")[2],)
    }


def check_store(path: Path) -> None:
    """FileFormatError if an array of a store names a codec that is not on the list, or holds objects."""
    zarr = need("zarr", f"reading {path.name}")
    node = _open(str(path))
    found = [("array", node)] if isinstance(node, zarr.Array) else node.members(max_depth=None)
    for name, inner in found:
        if isinstance(inner, zarr.Array) and (why := _unsafe(inner) or ("objects" if inner.dtype.kind == "O" else "")):
            raise FileFormatError(f"{path}: {name!r} is not read: {why}")


def check_codecs(array: xr.DataArray, argument: str) -> None:
    """FileFormatError if an array that xarray opened, here or far away, is still to be decoded by a foreign codec."""
    if array.chunks is None and array.variable._in_memory:
        return
    said = array.encoding
    found = [said.get(name) for name in ("compressors", "filters", "compressor", "serializer")]
    codecs = [c for some in found if some is not None for c in (some if isinstance(some, (tuple, list)) else [some])]
    # A word such as "auto" is about what will be written.
    if refused := refused_codecs(c for c in codecs if not isinstance(c, str)):
        names = ", ".join(map(repr, refused))
        raise FileFormatError(f"{argument}: not read: its codecs {names} may run code, or are none of numbers")


def refused_codecs(codecs: Iterable[Any]) -> list[str]:
    """Names of the codecs among these, and inside of them, that are not on the list."""
    found = []
    for codec in codecs:
        about = codec if isinstance(codec, Mapping) else _as_mapping(codec)
        name = str(about.get("id") or about.get("name") or type(codec).__name__)
        known = name.removeprefix("numcodecs.") in _OF_NUMBERS or name in _OF_FORMAT_3
        inside = about.get("configuration")
        inner = [] if not isinstance(inside, Mapping) else [
            *(inside.get("codecs") or ()), *(inside.get("index_codecs") or ())
        ]  # fmt: skip
        found += ([] if known else [name]) + refused_codecs(inner)
    return found


def _as_mapping(codec: Any) -> Mapping[str, Any]:
    said = codec.get_config() if hasattr(codec, "get_config") else codec.to_dict() if hasattr(codec, "to_dict") else {}
    return said if isinstance(said, Mapping) else {}


@dataclass(frozen=True)
class _ChunkReader:
    path: str
    name: str  # "" of a store that is an array
    decode: Decoding | None

    def __call__(self, key: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        node = _open(self.path)
        array = node[self.name] if self.name else node
        if why := _unsafe(array):  # what is read now, not what was there when the store was listed
            raise FileFormatError(f"{self.path}: {self.name or 'array'!r} is not read: {why}")
        try:
            raw = np.asarray(array[key])
        except Exception:
            _settle()
            raise
        return (raw, None) if self.decode is None else self.decode(raw)


def _settle() -> None:
    """Wait for what zarr still reads after a chunk has failed.

    Left alone, it writes on standard error when the process ends, below the error that names the file.
    """
    from zarr.core.sync import sync

    async def others() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    with contextlib.suppress(TimeoutError):
        sync(others())


def _open(path: str) -> Any:
    """The store, to be read by one thread of zarr's unless its configuration says otherwise.

    Blocks are read side by side as it is; the heap of each further thread would keep a chunk of its own.
    """
    zarr = need("zarr", f"reading {path}")
    if zarr.config.get("threading.max_workers", None) is None:
        zarr.config.set({"threading.max_workers": 1})
    return zarr.open(path, mode="r")


def _unsafe(array: Any) -> str:
    """Why the chunks of an array must not be decoded; "" if they may."""
    about = array.metadata.to_dict()
    codecs = [*(about.get("codecs") or ()), *(about.get("filters") or ())]
    codecs += [about["compressor"]] if about.get("compressor") else []
    refused = refused_codecs(codecs)
    listed = ", ".join(sorted(_OF_NUMBERS))
    if not refused:
        return ""
    return f"its codecs {', '.join(map(repr, refused))} may run code, or are none of numbers; expected some of {listed}"


def _stored(path: Path, name: str, array: Any, nodes: dict[str, Any]) -> Stored:
    shape, in_group = tuple(array.shape), "/" in name
    kind = array.dtype
    if why := _unsafe(array):
        return Stored(name, shape, unreadable=why, numbers=kind.kind in "fiubc", in_group=in_group)
    if kind.kind not in "fiubc":
        return Stored(name, shape, unreadable=f"its type is {kind}, not numbers", numbers=False, in_group=in_group)
    dims = _dims(array)
    attrs = dict(array.attrs)
    fill = array.fill_value
    decode = None
    if kind.kind in "fiu":
        if array.metadata.zarr_format == 3:  # xarray's way to write it there
            attrs["_FillValue"] = _fill_of_xarray(attrs.get("_FillValue"), kind)
        # Format 2 has one entry for what is missing and for what was not written. 0, its default, is a number.
        missing = fill if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attrs and fill else None
        decode = decoding(attrs, kind, fill=missing)
    folder = name.rpartition("/")[0]

    def coords() -> dict[str, NDArray[Any]]:
        return {d: values for d in dims if d and (values := _coordinate(path, folder, d, nodes)) is not None}

    def check() -> None:
        absent = array.nchunks - array.nchunks_initialized
        if absent > 0:
            warnings.warn(
                f"{path}: {absent} of {array.nchunks} chunks of {name!r} are not there: they were never written, or "
                f"hold nothing but the fill value {fill}, as which they are read",
                UserWarning, stacklevel=2,
            )  # fmt: skip

    return Stored(
        name, shape, kind if decode is None else decode.dtype,
        _ChunkReader(str(path), name if nodes else "", decode), dims, tuple(array.shards or array.chunks), coords,
        missing="" if decode is None else decode.text, in_group=in_group, check=check,
    )  # fmt: skip


def _dims(array: Any) -> tuple[str | None, ...]:
    """Names of the axes as format 3 has them, or xarray's attribute, or netCDF's; () without."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if names is None and isinstance(said := array.attrs.get("_NCZARR_ARRAY"), Mapping):
        names = [str(reference).rpartition("/")[2] for reference in said.get("dimrefs", ())]
    if names is None:
        return ()
    if isinstance(names, str) or len(names) != array.ndim:
        raise ValueError(f"{array.name} has {array.ndim} axes, which are named {names}")
    return tuple(str(n) if is_name(n) else None for n in names)


def _coordinate(path: Path, folder: str, dim: str, nodes: dict[str, Any]) -> NDArray[Any] | None:
    """Numbers along a dim, from the group of the array or the next one out of it that has them."""
    while True:
        name = f"{folder}/{dim}" if folder else dim
        array = nodes.get(name)
        if array is not None and array.ndim == 1 and _dims(array) in ((dim,), (None,), ()):
            stored = _stored(path, name, array, nodes)
            if stored.unreadable or stored.read is None or array.dtype.kind not in "fiu":
                return None
            values, missing = stored.read((slice(None),))
            return values if missing is None else np.where(missing, np.nan, values)
        if not folder:
            return None
        folder = folder.rpartition("/")[0]


def _fill_of_xarray(said: Any, kind: Any) -> Any:
    """The number behind xarray's ``_FillValue``, which in format 3 it writes as the bytes of a float."""
    if isinstance(said, str) and kind.kind == "f":
        import base64

        try:
            return np.frombuffer(base64.standard_b64decode(said), "<f8")[0]
        except ValueError:
            return None
    return said
