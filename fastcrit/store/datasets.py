"""Datasets as Zarr that know whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fastcrit._edge.extras import need
from fastcrit._edge.files.zarr_stores import check_store
from fastcrit._estimates.drift import with_drift
from fastcrit.errors import FileFormatError

FORMAT = "fastcrit.dataset"
FORMAT_VERSION = 1
# Names of the attributes that hold the format; load_dataset takes them off again.
_MARKS = ("fastcrit_format", "fastcrit_format_version", "fastcrit_sha256")


def save_dataset(ds: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a dataset to a new Zarr folder with a format version and a checksum; it appears when it is complete.

    Raises
    ------
    FileExistsError
        ``path`` exists.
    ModuleNotFoundError
        Zarr is not installed (the extra ``fastcrit[store]``).

    Examples
    --------
    >>> import tempfile, xarray as xr, fastcrit as fc
    >>> path = tempfile.mkdtemp() + "/result.zarr"
    >>> fc.store.save_dataset(xr.Dataset({"x": ("level", [1.0, 2.0])}), path)
    >>> fc.store.load_dataset(path).x.values.tolist()
    [1.0, 2.0]
    """
    need("zarr", "saving a dataset")
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target}: exists already")
    ds = _with_plain_nan(ds.drop_encoding())  # how another file stored it must not change the values here
    for variable_name, variable in ds.variables.items():
        if variable.dtype.kind not in "biufU":
            raise TypeError(f"ds: cannot store {variable_name!r} of type {variable.dtype}; expected numbers or strings")
    marked = ds.assign_attrs(dict(zip(_MARKS, (FORMAT, FORMAT_VERSION, _digest(ds)), strict=True)))
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        # Format 2: version 3 has no specification yet for fixed-length strings, which the flags are.
        marked.to_zarr(temporary / "zarr", mode="w", zarr_format=2, consolidated=True)
        os.rename(temporary / "zarr", target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset written by `save_dataset`, whole, into memory; where it has gains, with what follows from them.

    Raises
    ------
    FileNotFoundError
        No such folder.
    FileFormatError
        It is damaged, or fastcrit did not write it; the message names it.
    """
    target = Path(path)
    need("zarr", "loading a dataset")
    if not target.exists():
        raise FileNotFoundError(f"{target}: no such dataset")
    try:
        check_store(target)  # xarray decodes whatever is installed
        with xr.open_dataset(target, engine="zarr", chunks=None, consolidated=True) as file:
            ds = file.load()
    except Exception as error:  # whatever zarr and its codecs raise on a damaged store, the file is named
        raise FileFormatError(f"{target}: damaged, or not a Zarr dataset ({error})") from error
    if ds.attrs.get(_MARKS[0]) != FORMAT:
        raise FileFormatError(f"{target}: not a fastcrit dataset (format {ds.attrs.get(_MARKS[0])!r})")
    if ds.attrs.get(_MARKS[1]) != FORMAT_VERSION:
        raise FileFormatError(
            f"{target}: version {ds.attrs.get(_MARKS[1])}; this fastcrit reads version {FORMAT_VERSION}"
        )
    expected = ds.attrs.get(_MARKS[2])
    ds.attrs = {name: value for name, value in ds.attrs.items() if name not in _MARKS}
    if _digest(ds) != expected:
        raise FileFormatError(f"{target}: damaged: the checksum does not match the contents")
    return with_drift(ds)


def _with_plain_nan(ds: xr.Dataset) -> xr.Dataset:
    """NaN has many bit patterns, 0/0 another than np.nan, and a chunk of nothing but NaN comes back as np.nan."""
    plain = {
        name: variable.copy(data=np.where(np.isnan(variable.values), np.nan, variable.values))
        for name, variable in ds.variables.items()
        if variable.dtype.kind == "f"
    }
    inner = {name: plain[name] for name in plain if name in ds.data_vars}
    return ds.assign(inner).assign_coords({name: plain[name] for name in plain if name in ds.coords})


def _digest(ds: xr.Dataset) -> str:
    """sha256 over names, dims, types, values and attributes."""
    digest = hashlib.sha256()
    for name in sorted(map(str, ds.variables)):
        variable = ds.variables[name]
        values = np.ascontiguousarray(variable.values)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        # The width of strings, and the byte order, are the store's business.
        kind = values.dtype.kind + ("" if values.dtype.kind == "U" else str(values.dtype.itemsize))
        digest.update(f"{name}{variable.dims}{kind}{values.shape}".encode())
        digest.update(json.dumps(values.tolist()).encode() if values.dtype.kind == "U" else values.tobytes())
        digest.update(_as_json(variable.attrs))
    digest.update(_as_json(ds.attrs))
    return digest.hexdigest()


def _as_json(attrs: dict[str, Any]) -> bytes:
    # numpy's scalars and arrays are stored as the numbers they hold.
    return json.dumps({str(k): v for k, v in attrs.items()}, sort_keys=True, default=lambda v: v.tolist()).encode()
