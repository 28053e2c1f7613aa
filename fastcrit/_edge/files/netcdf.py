"""netCDF and HDF5 by the netCDF library: what it lists and can read, never what would end the process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xarray.backends.locks import HDF5_LOCK, NETCDFC_LOCK, combine_locks

from fastcrit._edge.extras import need
from fastcrit._edge.files.missing import Decoding, decoding
from fastcrit._edge.files.stored import Stored, is_name, named_by_others

# The library is one for all threads; these are the locks that xarray takes for it.
_LOCK = combine_locks([NETCDFC_LOCK, HDF5_LOCK])
# The library calls types that it does not know text, and reading them as text ends the process.
_TEXT = (
    "it is text, or numbers of a type that netCDF does not have, such as float16 or long double; write it as float32 "
    "or float64"
)
_COMPOUND = "it is complex or of a type made of several; write its parts as arrays of float32 or float64"


def netcdf_arrays(path: Path) -> dict[str, Stored]:
    """Of a .nc or .h5 file, by name; those in groups as "group/name"."""
    library = need("netCDF4", f"reading {path.name}")
    with _LOCK, library.Dataset(str(path)) as file:
        file.set_auto_maskandscale(False)
        variables = list(_variables("", file))
        beside = named_by_others({n: v.getncattr(n) for n in v.ncattrs()} for _, v in variables)
        return {
            name: _stored(path, name, variable, library)
            for name, variable in variables
            if variable.ndim and not _is_coordinate(variable) and variable.name not in beside
        }


@dataclass(frozen=True)
class _VariableReader:
    path: str
    name: str
    decode: Decoding

    def __call__(self, key: Any) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        library = need("netCDF4", f"reading {self.path}")
        with _LOCK, library.Dataset(self.path) as file:
            variable = file[self.name]
            variable.set_auto_maskandscale(False)
            raw = np.asarray(variable[tuple(k if isinstance(k, slice) else slice(k, k + 1) for k in key)])
        return self.decode(raw[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)])


def _stored(path: Path, name: str, variable: Any, library: Any) -> Stored:
    shape, in_group = tuple(variable.shape), "/" in name
    kind = variable.datatype
    if isinstance(kind, library.EnumType):  # of which HDF5's booleans are one
        kind = kind.dtype
    if variable.dtype is str:
        return Stored(name, shape, unreadable=_TEXT, numbers=len(shape) > 1, in_group=in_group)
    if not isinstance(kind, np.dtype) or kind.kind not in "fiu":
        text = isinstance(kind, np.dtype)
        why = _TEXT if text else _COMPOUND
        return Stored(name, shape, unreadable=why, numbers=not text and len(shape) > 1, in_group=in_group)
    attrs = {n: variable.getncattr(n) for n in variable.ncattrs()}
    phony = all(d.startswith("phony_dim_") for d in variable.dimensions)
    dims = tuple(d if is_name(d) else None for d in variable.dimensions)
    labels = attrs.get("DIMENSION_LABELS")  # HDF5's other way to name axes
    if phony and labels is not None:
        dims = tuple(str(label) or None for label in np.atleast_1d(labels))
    # A file that netCDF did not write has no such fill values: there they are numbers like others.
    fill = None if phony or kind.itemsize == 1 else library.default_fillvals.get(f"{kind.kind}{kind.itemsize}")
    decode = decoding(attrs, kind, default_fill=fill)
    chunks = variable.chunking()
    values = {d: found for d in dims if d is not None and (found := _coordinate(variable.group(), d)) is not None}
    return Stored(
        name, shape, decode.dtype, _VariableReader(str(path), name, decode), dims,
        () if not isinstance(chunks, list) else tuple(chunks), lambda: values, missing=decode.text, in_group=in_group,
    )  # fmt: skip


def _variables(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, variable in group.variables.items():
        yield prefix + name, variable
    for name, inner in group.groups.items():
        yield from _variables(f"{prefix}{name}/", inner)


def _is_coordinate(variable: Any) -> bool:
    return bool(variable.ndim == 1 and variable.name == variable.dimensions[0])


def _coordinate(group: Any, dim: str) -> NDArray[Any] | None:
    """Numbers along a dim, from the group of the array or the next one out of it that has them."""
    for place in itertools.takewhile(lambda g: g is not None, _outwards(group)):
        variable = place.variables.get(dim)
        if variable is not None and variable.ndim == 1 and variable.dimensions == (dim,):
            kind = variable.datatype
            if variable.dtype is str or not isinstance(kind, np.dtype) or kind.kind not in "fiu":
                return None
            variable.set_auto_maskandscale(False)
            values, missing = decoding({n: variable.getncattr(n) for n in variable.ncattrs()}, kind)(variable[:])
            return values if missing is None else np.where(missing, np.nan, values)
    return None


def _outwards(group: Any) -> Iterator[Any]:
    while group is not None:
        yield group
        group = group.parent
