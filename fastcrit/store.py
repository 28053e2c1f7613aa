"""Results on disk: run folders that are never overwritten, datasets as Zarr that know whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fastcrit._dataset import with_drift
from fastcrit._extras import need
from fastcrit.errors import FileFormatError

__all__ = ["create_run", "load_array", "load_dataset", "open_array", "save_dataset"]

FORMAT = "fastcrit.dataset"
FORMAT_VERSION = 1
# Names of the attributes that hold the format; load_dataset takes them off again.
_MARKS = ("fastcrit_format", "fastcrit_format_version", "fastcrit_sha256")
# Formats of load_array by suffix.
ARRAY_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors", ".zarr", ".nc", ".h5")


def create_run(path: str | os.PathLike[str]) -> Path:
    """Make a new folder for a run.

    Raises
    ------
    FileExistsError
        Something of that name exists (an empty folder is accepted): finished results are never overwritten.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"out: {folder} exists already; choose another name, delete it, or resume it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def begin_run(path: str | os.PathLike[str], config: dict[str, Any], *, finished: str, resume: bool = False) -> Path:
    """The folder of a run: made, with its config.json, or with ``resume`` found to hold the same run, not finished.

    Parameters
    ----------
    path : path
    config : dict
        What the result follows from, as JSON holds it.
    finished : str
        Name of what lies in the folder once the run is finished.
    resume : bool

    Raises
    ------
    FileExistsError
        The folder exists and ``resume`` is False, or it holds a finished run.
    FileNotFoundError, ValueError
        ``resume`` without a run to resume, or one with another configuration (the message says what differs).
    FileFormatError
        config.json is damaged.
    """
    folder = Path(path)
    if not resume:
        create_run(folder)
        write_config(folder, config)
        return folder
    check_run(folder, config, finished=finished)
    for left_over in (p for p in folder.glob(".*.*") if p.is_dir()):
        shutil.rmtree(left_over, ignore_errors=True)  # of a save that was killed
    return folder


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json, which must not be there: of two runs that begin at once, one is refused.

    It appears when it is whole, so that a kill cannot leave half of it.
    """
    temporary = folder / f".config.json.{os.getpid()}"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    try:
        os.link(temporary, folder / "config.json")  # unlike a rename, refused where there is one
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with (folder / "config.json").open("x") as new:
            new.write(temporary.read_text())
    finally:
        temporary.unlink()


def check_run(folder: Path, config: dict[str, Any], *, finished: str | None) -> None:
    """Raise unless the folder holds a run of this configuration, and no file of the name ``finished``.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, FileFormatError
        As for `begin_run`.
    """
    file = folder / "config.json"
    mine = json.loads(json.dumps(config))
    if finished is not None and (folder / finished).exists():
        raise FileExistsError(f"out: {folder} holds a finished run")
    if not file.exists():
        raise FileNotFoundError(f"out: no run to resume in {folder}")
    try:
        theirs = json.loads(file.read_text())
    except ValueError as error:
        raise FileFormatError(f"{file}: damaged ({error})") from error
    if not isinstance(theirs, dict):
        raise FileFormatError(f"{file}: not the configuration of a run")
    different = [f"{k} = {theirs.get(k)!r} there, {v!r} here" for k, v in mine.items() if theirs.get(k) != v]
    if different:
        raise ValueError(f"out: {folder} was begun with another configuration: {'; '.join(different)}")


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


def load_array(path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Read one array of fields from a file of any common format.

    Parameters
    ----------
    path : .npy, .npz, .pt, .safetensors, .zarr, .nc or .h5
        Pickled objects are refused in every format.
    name : str, optional
        Which array, where the file holds several.

    Returns
    -------
    numpy array

    Raises
    ------
    FileNotFoundError
        No such file.
    FileFormatError
        Truncated, damaged or of an unknown kind; the message names the file.
    ValueError
        Several arrays and no ``name``, or a ``name`` that is not there.
    """
    target = Path(path)
    _check_kind(target)
    return _chosen(target, name, _reading(target, lambda: _READERS[target.suffix](target)))


def open_array(path: str | os.PathLike[str], name: str | None = None) -> xr.DataArray:
    """The same array without reading it: values are read when they are asked for, dims are named where the file does.

    (A compressed .npz is read whole.) Raises what `load_array` raises.

    Examples
    --------
    >>> import tempfile, numpy as np, fastcrit as fc
    >>> path = tempfile.mkdtemp() + "/fields.npy"
    >>> np.save(path, np.ones((10, 8, 8)))
    >>> fc.store.open_array(path).sizes["dim_0"]
    10
    """
    from fastcrit._lazy import lazy_array

    target = Path(path)
    _check_kind(target)
    array: xr.DataArray = _chosen(target, name, _reading(target, lambda: lazy_array(target, name)))
    return array


def _check_kind(target: Path) -> None:
    if not target.exists():
        raise FileNotFoundError(f"{target}: no such file")
    if target.suffix not in _READERS:
        raise FileFormatError(f"{target}: unknown kind of file; expected one of {', '.join(ARRAY_SUFFIXES)}")


def _reading(target: Path, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read()
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each format's library has errors of its own; all mean that the file cannot be read
        raise FileFormatError(
            f"{target}: damaged, truncated, or not a {target.suffix} file of arrays ({error})"
        ) from error


def _chosen(target: Path, name: str | None, arrays: dict[str, Any]) -> Any:
    if not arrays:
        raise ValueError(f"{target}: holds no arrays of numbers at its top level")
    if name is None:
        if len(arrays) != 1:
            raise ValueError(f"name: {target} holds {len(arrays)} arrays ({', '.join(arrays)}); say which")
        return next(iter(arrays.values()))
    if name not in arrays:
        raise ValueError(f"name: {target} holds no {name!r}, only {', '.join(arrays)}")
    return arrays[name]


def _read_npy(path: Path) -> dict[str, Any]:
    return {"array": np.load(path, allow_pickle=False)}


def _read_npz(path: Path) -> dict[str, Any]:
    # Opened here, because numpy leaves a file that it cannot read open.
    with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_pt(path: Path) -> dict[str, Any]:
    torch = need("torch", f"reading {path.name}")
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = content if isinstance(content, dict) else {"tensor": content}
    return {
        str(name): (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
        for name, t in tensors.items()
        if isinstance(t, torch.Tensor)
    }


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _read_xarray(path: Path) -> dict[str, Any]:
    if path.suffix == ".zarr":
        zarr = need("zarr", f"reading {path.name}")
        if isinstance(node := zarr.open(path, mode="r"), zarr.Array):
            return {"array": node[...]}
        engine = "zarr"
    else:
        need("netCDF4", f"reading {path.name}")
        engine = None
    with xr.open_dataset(path, engine=engine, chunks=None) as file:
        return {str(name): variable.values for name, variable in file.data_vars.items()}


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".safetensors": _read_safetensors,
    ".zarr": _read_xarray,
    ".nc": _read_xarray,
    ".h5": _read_xarray,
}


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
