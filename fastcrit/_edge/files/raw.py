"""Files that hold arrays byte by byte: .npy, .npz and .safetensors, read where a slice lies and nowhere else."""

from __future__ import annotations

import json
import struct
import threading
import weakref
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastcrit._edge.files.stored import Stored

# Read at a time where a slice is scattered over the file.
_PIECE = 4 << 20
# Read at a time on the way to it.
_SKIPPED = 1 << 20
_OBJECTS = "it holds Python objects, and pickles are never read; save it as an array of numbers"


@dataclass(frozen=True)
class _Plain:
    """Bytes of a file from ``base`` on."""

    path: str
    base: int

    def read(self, offset: int, count: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.base + offset)
            return file.read(count)


class _Inflated:
    """Bytes of a compressed member of a zip file, which can only be read onwards: each thread has its own stream."""

    def __init__(self, path: str, member: str, base: int) -> None:
        self.path, self.member, self.base = path, member, base
        self._mine = threading.local()
        self._open: list[Any] = []
        weakref.finalize(self, _close, self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Inflated, (self.path, self.member, self.base)

    def __dask_tokenize__(self) -> tuple[str, str, int]:
        return self.path, self.member, self.base

    def read(self, offset: int, count: int) -> bytes:
        stream: IO[bytes] | None = getattr(self._mine, "stream", None)
        if stream is None:
            archive = zipfile.ZipFile(self.path)
            stream = self._mine.stream = archive.open(self.member)
            self._open += [stream, archive]
        at = self.base + offset
        if stream.tell() > at:
            stream.seek(0)
        while (left := at - stream.tell()) > 0:  # zipfile's own seek holds 16 MiB of what it passes over
            if not stream.read(min(left, _SKIPPED)):
                return b""
        return stream.read(count)


def _close(files: list[Any]) -> None:
    for file in files:
        file.close()


@dataclass(frozen=True)
class _RawReader:
    """Slices of an array that lies in C order, or in Fortran's, in ``source``."""

    source: Any
    shape: tuple[int, ...]
    dtype: Any
    fortran: bool = False
    bfloat16: bool = False

    def __call__(self, key: Any) -> tuple[NDArray[Any], None]:
        picked = [k if isinstance(k, slice) else slice(k, k + 1) for k in key]
        ranges = [range(n)[k] for k, n in zip(picked, self.shape, strict=True)]
        if self.fortran:  # a transposed array in C order
            values = _read(self.source, self.shape[::-1], self.dtype, ranges[::-1]).T
        else:
            values = _read(self.source, self.shape, self.dtype, ranges)
        values = values[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)]
        if self.bfloat16:  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values, None


def _read(source: Any, shape: tuple[int, ...], dtype: Any, ranges: list[range]) -> NDArray[Any]:
    """What these ranges pick, which step forwards, by pieces of _PIECE: rows of the first axis with rows so small."""
    out = np.empty([len(r) for r in ranges], dtype)
    if out.size == 0:
        return out
    if not shape:
        out[...] = np.frombuffer(_exactly(source, 0, dtype.itemsize), dtype)[0]
        return out
    rows = [dtype.itemsize * int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
    axis = next(i for i, size in enumerate(rows) if size <= _PIECE or i == len(rows) - 1)
    inner = tuple(slice(r.start, r.stop, r.step) for r in ranges[axis + 1 :])
    many = max(1, _PIECE // (rows[axis] * ranges[axis].step))
    for lead in np.ndindex(*out.shape[:axis]):
        start = sum(r[i] * size for r, i, size in zip(ranges, lead, rows, strict=False))
        for begin in range(0, len(ranges[axis]), many):
            wanted = ranges[axis][begin : begin + many]
            count = wanted[-1] + 1 - wanted[0]
            piece = np.frombuffer(_exactly(source, start + wanted[0] * rows[axis], count * rows[axis]), dtype)
            out[(*lead, slice(begin, begin + len(wanted)))] = piece.reshape(count, *shape[axis + 1 :])[
                (slice(None, None, wanted.step), *inner)
            ]
    return out


def _exactly(source: Any, offset: int, count: int) -> bytes:
    found: bytes = source.read(offset, count)
    if len(found) != count:
        raise EOFError(f"ends after {offset + len(found)} bytes of the array")
    return found


def npy_arrays(path: Path) -> dict[str, Stored]:
    """Of an .npy file, one."""
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file)
        base = file.tell()
    if not dtype.hasobject and path.stat().st_size < base + dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise EOFError(f"ends after {path.stat().st_size} bytes")
    return {"array": _stored("array", shape, dtype, fortran, _Plain(str(path), base), True)}


def npz_arrays(path: Path) -> dict[str, Stored]:
    """Of an .npz file, by name."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                continue
            name = info.filename.removesuffix(".npy")
            with archive.open(info) as member:
                shape, fortran, dtype = _header(member)
                base = member.tell()
            source: Any = _Inflated(str(path), info.filename, base)
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                source = _Plain(str(path), _begin(path, info) + base)
            # What has an array of objects beside the one that is asked for is no less readable.
            found[name] = _stored(name, shape, dtype, fortran, source, dtype.kind in "fiubc")
    return found


def check_npz(path: Path, name: str) -> None:
    """Raise unless the checksum of a member is right."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        while member.read(_PIECE):
            pass


def safetensors_arrays(path: Path) -> dict[str, Stored]:
    """Of a .safetensors file, by name; the library checks the header and what it says of the file."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy"):
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    found = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        shape, kind = tuple(about["shape"]), about["dtype"]
        source = _Plain(str(path), 8 + length + about["data_offsets"][0])
        if kind in _SAFETENSORS:
            dtype, bfloat16 = np.dtype(_SAFETENSORS[kind]), kind == "BF16"
            read = _RawReader(source, shape, dtype, bfloat16=bfloat16)
            found[name] = Stored(name, shape, np.dtype(np.float32) if bfloat16 else dtype, read)
        else:
            why = f"its type is {kind}, which numpy does not have; save it as F32 or BF16"
            found[name] = Stored(name, shape, unreadable=why)
    return found


def _stored(name: str, shape: Any, dtype: Any, fortran: bool, source: Any, numbers: bool) -> Stored:
    if dtype.hasobject:
        return Stored(name, shape, unreadable=_OBJECTS, numbers=False)
    return Stored(name, shape, dtype, _RawReader(source, shape, dtype, fortran), numbers=numbers)


def _header(file: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether in Fortran's order, and dtype of an .npy file, read up to its data."""
    major, _ = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    return shape, fortran, dtype


def _begin(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member of a zip file begin."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # of its own header of 30 bytes: the lengths of its name and of what follows
        of_name, of_rest = struct.unpack("<HH", file.read(4))
        return int(info.header_offset + 30 + of_name + of_rest)


_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2",
    "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "C64": "<c8",
}  # fmt: skip
