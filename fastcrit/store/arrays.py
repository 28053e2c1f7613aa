"""Arrays of files of any kind, read or opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fastcrit._edge.dims import in_order
from fastcrit._edge.files.netcdf import netcdf_arrays
from fastcrit._edge.files.raw import check_npz, npy_arrays, npz_arrays, safetensors_arrays
from fastcrit._edge.files.stored import Stored, chosen, data_array, guarded
from fastcrit._edge.files.tensors import pt_arrays
from fastcrit._edge.files.zarr_stores import zarr_arrays
from fastcrit.errors import FileFormatError


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
