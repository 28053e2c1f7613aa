"""What a file holds, as every format's module lists it, and the lazy `xarray.DataArray` made of one array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from fastcrit.errors import FileFormatError

# A slice or an integer of each axis in, values and where they are missing (None: nowhere) out. Goes to other processes.
Reader = Callable[[Any], tuple[NDArray[Any], NDArray[np.bool_] | None]]


@dataclass(frozen=True)
class Stored:
    """One array of a file, not read."""

    name: str
    shape: tuple[int, ...]
    dtype: Any = None  # of what `read` returns
    read: Reader | None = None
    dims: tuple[str | None, ...] = ()  # names; () if the file has none
    chunks: tuple[int, ...] = ()  # what is stored together, () if that does not matter
    coords: Callable[[], dict[str, NDArray[Any]]] = dict  # of dims that are named
    unreadable: str = ""  # why it is not read
    numbers: bool = True  # False for text and objects: nobody means them who names no array
    missing: str = ""  # which values count as missing
    in_group: bool = False
    check: Callable[[], None] = field(default=lambda: None)  # once it is chosen: warnings, whole files

    def unnamed(self) -> bool:
        """Whether the file names none of its axes."""
        return all(name is None for name in self.dims)


def chosen(target: Path, name: str | None, arrays: dict[str, Stored]) -> Stored:
    """The array of this name, or the only one that may be meant.

    ValueError where there are several, or none of the name; FileFormatError for one that cannot be read.
    """
    if name is None:
        fields = {n: a for n, a in arrays.items() if a.numbers}
        if not fields and len(arrays) == 1:
            fields = arrays  # and is refused below, which says what it is
        if not fields:
            beside = f", only {', '.join(arrays)}, which are not numbers" if arrays else ""
            raise ValueError(f"{target}: holds no arrays of numbers{beside}")
        if len(fields) != 1:
            raise ValueError(f"name: {target} holds {len(fields)} arrays ({', '.join(fields)}); say which")
        array = next(iter(fields.values()))
        if array.in_group:
            raise ValueError(f"name: {target} holds no array but in groups ({array.name}); say name={array.name!r}")
    elif name.strip("/") in arrays:
        array = arrays[name.strip("/")]
    elif name in arrays:
        array = arrays[name]
    else:
        raise ValueError(f"name: {target} holds no {name!r}, only {', '.join(arrays) or 'nothing that is an array'}")
    if array.unreadable or array.read is None:
        raise FileFormatError(f"{target}: {array.name!r} cannot be read: {array.unreadable}")
    return array


def data_array(target: Path, array: Stored) -> xr.DataArray:
    """An array that reads what it is asked for, with the names and coordinates of the file."""
    array.check()
    dims = _distinct([name or f"dim_{i}" for i, name in enumerate(array.dims or [None] * len(array.shape))])
    data = indexing.LazilyIndexedArray(_Slices(str(target), array, dims.index("sample") if "sample" in dims else 0))
    coords = {n: (n, values) for n, values in guarded(target, array.coords).items() if n in dims}
    made = xr.DataArray(xr.Variable(dims, data), coords=coords, name=array.name)
    if array.chunks:
        made.encoding["preferred_chunks"] = dict(zip(dims, array.chunks, strict=True))
    if array.missing:
        made.encoding["missing"] = array.missing
    return made


def guarded(target: str | Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; FileFormatError, naming the file, for whatever its library raises."""
    try:
        return read()
    except (ModuleNotFoundError, FileFormatError, MemoryError):
        raise
    except Exception as error:  # each format's library has errors of its own; all mean that the file cannot be read
        if not Path(target).exists():  # as where a worker on another machine looks for it
            raise FileNotFoundError(f"{target}: no such file") from error
        kind = Path(target).suffix
        raise FileFormatError(f"{target}: damaged, truncated, or not a {kind} file of arrays ({error})") from error


class _Slices(BackendArray):
    """An array of a file that xarray and Dask may slice, here or in another process."""

    def __init__(self, path: str, array: Stored, sample_axis: int) -> None:
        self.path, self.name, self.shape, self.dtype = path, array.name, array.shape, np.dtype(array.dtype)
        self.read, self.missing, self.sample_axis = array.read, array.missing, sample_axis

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._slice)

    def _slice(self, key: Any) -> Any:
        assert self.read is not None
        values, missing = guarded(self.path, lambda: self.read(key))  # type: ignore[misc]
        if missing is None or not missing.any():
            return values
        if self.dtype.kind == "f":
            return np.where(missing, np.array(np.nan, values.dtype), values)
        raise ValueError(
            f"{self.path}: {self.name!r} has NaN, that is, {self.missing}, in sample {self._sample_of(missing, key)}"
        )

    def _sample_of(self, missing: NDArray[np.bool_], key: Any) -> int:
        """Number of the first sample with a missing value."""
        ranges = [range(n)[k] if isinstance(k, slice) else k for k, n in zip(key, self.shape, strict=True)]
        at = ranges[self.sample_axis]
        if isinstance(at, int):
            return at
        axis = sum(isinstance(r, range) for r in ranges[: self.sample_axis])
        others = tuple(i for i in range(missing.ndim) if i != axis)
        return int(at[int(np.argmax(missing.any(axis=others)))])


def named_by_others(attributes: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names that the attributes of other arrays say are their coordinates, bounds and the like."""
    of = ("coordinates", "bounds", "grid_mapping", "ancillary_variables")
    said = (about.get(name) for about in attributes for name in of)
    return {name for names in said if isinstance(names, str) for name in names.split()}


def _distinct(names: list[str]) -> list[str]:
    """Names of dims, of which no two may be equal: a second "x" becomes "x_1"."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.append(f"{name}_{count}" if count else name)
    return found


# What libraries call axes that have no name: xarray, and netCDF for HDF5 without scales.
_NO_NAME = re.compile(r"(phony_)?dim_\d+(_\d+)?\Z")


def is_name(dim: object) -> bool:
    """Whether a dim has a name of its own."""
    return isinstance(dim, str) and bool(dim) and not _NO_NAME.match(dim)
