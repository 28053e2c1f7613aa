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
from fastcrit._dims import in_order
from fastcrit._extras import need
from fastcrit._files.netcdf import netcdf_arrays
from fastcrit._files.raw import check_npz, npy_arrays, npz_arrays, safetensors_arrays
from fastcrit._files.stored import Stored, chosen, data_array, guarded
from fastcrit._files.tensors import pt_arrays
from fastcrit._files.zarr_stores import check_store, zarr_arrays
from fastcrit.errors import FileFormatError

__all__ = ["create_run", "load_array", "load_dataset", "open_array", "save_dataset"]

FORMAT = "fastcrit.dataset"
FORMAT_VERSION = 1
# Names of the attributes that hold the format; load_dataset takes them off again.
_MARKS = ("fastcrit_format", "fastcrit_format_version", "fastcrit_sha256")


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
    except (ValueError, RecursionError) as error:
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


def load_array(path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Read one array of fields from a file of any common format.

    Parameters
    ----------
    path : .npy, .npz, .pt, .safetensors, .zarr, .nc or .h5
        Pickled objects are refused in every format, and in Zarr every codec but those of numbers.
    name : str, optional
        Which array, where the file holds several; "run/u" for ``u`` in the group ``run``.

    Returns
    -------
    numpy array
        Where the file names an axis "sample", in the order "level", "sample", "channel", then the others; otherwise as
        it is stored. bfloat16 becomes float32. Values that netCDF's or CF's attributes call
        missing, or that were never written, are NaN.

    Raises
    ------
    FileNotFoundError
        No such file.
    FileFormatError
        Truncated, damaged or of an unknown kind, or an array that cannot be read; the message names the file.
    ValueError
        Several arrays and no ``name``, or a ``name`` that is not there; integers that are missing.
    """
    target = Path(path).absolute()
    array = open_array(target, name)
    if target.suffix == ".npz":  # all of it is read anyway
        guarded(target, lambda: check_npz(target, str(array.name)))
    values = in_order(array).values
    return values if values.flags.writeable and values.flags.c_contiguous else np.array(values)


def open_array(path: str | os.PathLike[str], name: str | None = None) -> xr.DataArray:
    """The same array without reading it: values are read when they are asked for, dims are named where the file does.

    Memory is that of what is asked for; only a .pt file of torch's old format is read whole. Coordinates of the file
    come along. Raises what `load_array` raises.

    Warns
    -----
    UserWarning
        Chunks of a Zarr array that are not there, and count as its fill value.

    Examples
    --------
    >>> import tempfile, numpy as np, fastcrit as fc
    >>> path = tempfile.mkdtemp() + "/fields.npy"
    >>> np.save(path, np.ones((10, 8, 8)))
    >>> fc.store.open_array(path).sizes["dim_0"]
    10
    """
    target = Path(path).absolute()  # workers elsewhere have other working directories
    _check_kind(target)
    arrays = guarded(target, lambda: _LISTS[target.suffix](target))
    return data_array(target, chosen(target, name, arrays))


def _check_kind(target: Path) -> None:
    if not target.exists():
        raise FileNotFoundError(f"{target}: no such file")
    if target.suffix not in ARRAY_SUFFIXES:
        kinds = ", ".join(ARRAY_SUFFIXES)
        if target.is_dir():
            raise FileFormatError(f"{target}: {_kind_of_folder(target)}")
        raise FileFormatError(f"{target}: unknown kind of file; expected one of {kinds}")


def _kind_of_folder(folder: Path) -> str:
    """What a folder is that is no store of arrays, and what to do with it."""
    if (folder / "dataset.zarr").exists():
        return "a finished run; load_dataset(folder / 'dataset.zarr') reads its dataset, fastcrit analyze prints it"
    if (folder / "config.json").exists():
        states = "; its states so far are in states.zarr" if (folder / "states.zarr").exists() else ""
        return (
            "a run that is not finished, so there is no dataset to analyze; the command that began it goes on with it "
            f"if --resume is added{states}"
        )
    inner = sorted(p.parent.name for p in folder.glob("*/config.json"))
    if inner:
        done = [name for name in inner if (folder / name / "dataset.zarr").exists()]
        one = f"; {folder / done[0]}, for example" if done else "; none of them is finished"
        return (
            f"a folder of {len(inner)} runs ({', '.join(inner[:8])}{', ..' if len(inner) > 8 else ''}): analyze them "
            f"one by one{one}; fastcrit report compares those that are finished"
        )
    return f"a folder, but no run and no .zarr; expected a file of one of {', '.join(ARRAY_SUFFIXES)}"


_LISTS: dict[str, Callable[[Path], dict[str, Stored]]] = {
    ".npy": npy_arrays,
    ".npz": npz_arrays,
    ".pt": pt_arrays,
    ".pth": pt_arrays,
    ".safetensors": safetensors_arrays,
    ".zarr": zarr_arrays,
    ".nc": netcdf_arrays,
    ".h5": netcdf_arrays,
}
# Formats of load_array by suffix.
ARRAY_SUFFIXES = tuple(_LISTS)


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
