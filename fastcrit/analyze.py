"""Statistics of stored fields and trajectories of any size: read in blocks through Dask, once, and added up as a tree.

A block becomes a `Recorder`'s sums where it is read; only sums travel. Memory is that of a few blocks and of the sums.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_integer, is_tensor, to_array, to_numbers
from fastcrit._edge.dims import CHANNEL, LEVEL, ROLES, SAMPLE, dims_of, order, refuse_channels_last, spacing_of
from fastcrit._edge.extras import need
from fastcrit._edge.files.zarr_stores import check_codecs
from fastcrit._edge.plain import strict_json
from fastcrit._estimates.averages import DEFAULT_BLOCKS
from fastcrit._kernels.offset import added
from fastcrit.critical import critical_point
from fastcrit.observe import Recorder

if TYPE_CHECKING:
    import dask.array

State = dict[str, NDArray[Any]]

# Bytes of a block: large beside the sums that it leaves, small beside the memory of a worker.
_BLOCK = 64 << 20
# Sums that are added in one task.
_BRANCHES = 8


def analyze(
    data: Any,
    *,
    dims: Sequence[str] | None = None,
    name: str | None = None,
    levels: Any = None,
    ndim: int = 2,
    blocks: int = DEFAULT_BLOCKS,
    spacing: float | None = None,
    data_std: float = 1.0,
    low_modes: int | None = None,
    lengths: Sequence[str] | None = None,
    periodic: bool = True,
    block_bytes: int = _BLOCK,
) -> xr.Dataset:
    """What a `Recorder` would have recorded of stored fields: structure factors, correlations, lengths, errors.

    Runs on the Dask scheduler that is in force: threads of this process, or the cluster of an active
    ``dask.distributed.Client``. The result does not depend on which, nor on workers that die.

    Parameters
    ----------
    data : xarray.DataArray, array, or path
        Fields, or a path as `fastcrit.store.open_array` reads it: .zarr, .nc, .h5, .npy, .npz, .safetensors, .pt. The
        ``ndim`` dims other than those below are the lattice.
    dims : sequence of str, optional
        Names of all dims of ``data``, in order, where they are not named already. "level" is the noise level,
        "channel" a channel, "sample" the ensemble, in any order. Default without names: axis 0 is "sample", and an axis
        between it and the lattice "channel".
    name : str, optional
        Which array of a file that holds several.
    levels : sequence of float, optional
        Noise levels, strictly decreasing, where ``data`` brings none as its coordinate "level".
    ndim : int
    blocks : int
        As for `Recorder`. Sample j is in jackknife block j mod ``blocks``.
    spacing : float, optional
        Distance between sites. Default: that of the lattice's coordinates, where ``data`` has them, otherwise 1.
    data_std
        As for `Recorder`.
    low_modes : int, optional
        As for `Recorder`, and 8 by default. Given, it also limits the fit of fields without a level.
    lengths, periodic
        As for `Recorder.dataset`: ``periodic=False`` for fields that were cut from larger ones.
    block_bytes : int
        About the size of what is read and transformed at a time.

    Returns
    -------
    xarray.Dataset
        As `Recorder.dataset` has it; without dim "level" where ``data`` has none. The lengths of fields without a level
        are those of `correlation_length`: without a background, and ``xi_ornstein_zernike`` fitted to all modes
        unless ``low_modes`` is given.

    Raises
    ------
    ValueError
        Dims that do not fit, uneven coordinates, no levels for a dim "level", values that are missing or not finite
        (the message says in which sample).
    TypeError
        Complex values, strings.
    FileNotFoundError, FileFormatError
        As for `fastcrit.store.open_array`.
    ModuleNotFoundError
        Dask is not installed (the extra ``fastcrit[dask]``).

    Examples
    --------
    >>> import numpy as np, xarray as xr, fastcrit as fc
    >>> noise = np.random.default_rng(0).normal(size=(2, 100, 16, 16)) * np.array([3.0, 1.0])[:, None, None, None]
    >>> y = xr.DataArray(noise, dims=("level", "sample", "y", "x"), coords={"level": [3.0, 1.0]})
    >>> ds = fc.analyze(y)
    >>> bool(abs(ds.S.sel(level=3.0)[4] / 9 - 1) < 0.1)
    True
    """
    dask = need("dask", "analyze")
    need("dask.array", "analyze")
    array = named(data, dims, name, ndim)
    grid = _levels(array, levels)
    trajectory = LEVEL in array.dims
    distance = spacing_of(array, [d for d in array.dims if d not in ROLES], spacing)
    why_missing = str(array.encoding.get("missing", ""))
    fields = _blocks(array, check_integer(block_bytes, "block_bytes", 1))
    options = {
        "shape": fields.shape[2:], "ndim": ndim, "blocks": blocks, "spacing": distance, "data_std": data_std,
        "low_modes": 8 if low_modes is None else low_modes,
    }  # fmt: skip
    whole = Recorder(grid, **options)
    record, add = dask.delayed(_record, pure=True), dask.delayed(added, pure=True)
    sides = whole.grid.shape
    firsts = np.cumsum([0, *fields.chunks[1]])[:-1]
    begins = np.cumsum([0, *fields.chunks[0]])
    sums = []
    delayed: Any = fields.to_delayed()  # type: ignore[no-untyped-call]  # dask types a part of its methods only
    for row, begin, end in zip(delayed, begins[:-1], begins[1:], strict=True):
        parts = [
            record(block, grid[begin:end] if trajectory else None, int(first), options, why_missing)
            for block, first in zip(row.reshape(len(firsts)), firsts, strict=True)
        ]
        while len(parts) > 1:
            parts = [add(parts[i : i + _BRANCHES], sides) for i in range(0, len(parts), _BRANCHES)]
        sums.append(parts[0])
    for begin, end, state in zip(begins[:-1], begins[1:], dask.compute(*sums), strict=True):
        whole.set_sums(state, slice(begin, end))
    ds = whole.dataset(lengths, periodic=periodic, k_max=np.inf if low_modes is None and not trajectory else None)
    return ds if trajectory else ds.isel(level=0).drop_vars("level")


@contextmanager
def cluster(address: str | None, workers: int | None, memory: str = "2GB") -> Iterator[None]:
    """Within it, `analyze` runs on the Dask scheduler at an address, on workers of our own, or on threads.

    ValueError for both; ModuleNotFoundError without dask.distributed.

    Examples
    --------
    >>> from fastcrit.analyze import cluster
    >>> with cluster(None, None):
    ...     pass  # threads of this process
    """
    if address is not None and workers is not None:
        raise ValueError("dask, workers: expected one of them")
    if address is None and workers is None:
        yield
        return
    distributed = need("distributed", "a Dask cluster")
    if address is not None:
        with distributed.Client(address):
            yield
        return
    # Dask sets OMP_NUM_THREADS and its like for its workers in our own environment, where later processes inherit them.
    before = dict(os.environ)
    local = distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=memory, dashboard_address=None,
        scheduler_kwargs={"dashboard_address": ":0"},  # its HTTP server: any free port, for several clusters at once
    )  # fmt: skip
    try:
        with local, distributed.Client(local):
            yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def table(ds: xr.Dataset) -> str:
    """Of what `analyze` returns: a line for each level, channels averaged, and the critical levels."""
    rows = _rows(ds)
    lengths = list(rows[0]["lengths"])
    lines = [f"{'level s':>12} {'samples':>9} {'S(0)':>12} {'S(k1)':>12}" + "".join(f"{n:>30}" for n in lengths)]
    for row in rows:
        line = f"{row['level']:12.5g} {row['samples']:9d} {row['S'][0]:12.5g} {row['S'][1]:12.5g}"
        for xi in row["lengths"].values():
            line += f"{xi['value']:18.4f} +- {xi['stderr']:8.4f}"
        lines.append(line)
    if _has_levels(ds):
        lines += ["", str(critical_point(ds))]
    return "\n".join(lines)


def table_json(ds: xr.Dataset) -> str:
    """The same as one JSON object; what has no value is null."""
    found = {"k": ds["k"].values.tolist(), "levels": _rows(ds)}
    if _has_levels(ds):
        found["critical"] = json.loads(critical_point(ds).to_json())
    return strict_json(found)


def _rows(ds: xr.Dataset) -> list[dict[str, Any]]:
    """Of each level: how many samples, S and the lengths, channels averaged."""
    ds = ds if "level" in ds.dims else ds.expand_dims("level").assign_coords(level=[0.0])
    ds = ds.mean("channel") if "channel" in ds.dims else ds
    names = [str(n) for n in ds.data_vars if str(n).startswith("xi_") and f"{n}_stderr" in ds]
    samples, S = ds["n_samples"].values.reshape(-1), ds["S"].values
    lengths = {n: (ds[n].values, ds[f"{n}_stderr"].values) for n in names}
    return [
        {
            "level": float(s),
            "samples": int(samples[i]),
            "S": S[i].tolist(),
            "lengths": {n: {"value": float(xi[i]), "stderr": float(error[i])} for n, (xi, error) in lengths.items()},
        }
        for i, s in enumerate(ds["level"].values)
    ]


def _has_levels(ds: xr.Dataset) -> bool:
    """Enough of them to look for critical ones."""
    return bool((np.atleast_1d(ds["level"].values) > 0).sum() >= 5) if "level" in ds.coords else False


def named(data: Any, dims: Sequence[str] | None, name: str | None, ndim: int) -> xr.DataArray:
    """The fields with dims "sample", perhaps "level" and "channel", and ``ndim`` others."""
    check_integer(ndim, "ndim", 1)
    if isinstance(data, (str, Path)):
        from fastcrit.store import open_array

        data = open_array(data, name)
    elif name is not None:
        raise ValueError("name: given without a path")
    if isinstance(data, xr.Dataset):
        raise TypeError(f"data: expected one array, got a dataset of {', '.join(map(str, data.data_vars))}; pick one")
    names = dims_of(data)
    if isinstance(data, (Sequence, np.ndarray)) or is_tensor(data):
        data = to_array(data, "data")
    array = data if isinstance(data, xr.DataArray) else xr.DataArray(data)
    check_codecs(array, "data")
    if dims is not None:
        if len(dims) != array.ndim or len(set(dims)) != array.ndim:
            raise ValueError(f"dims: expected {array.ndim} different names for shape {array.shape}, got {list(dims)}")
        array = array.rename(dict(zip(array.dims, dims, strict=True)))
    elif not names:
        between = array.ndim - ndim - 1
        if between not in (0, 1):
            raise ValueError(
                f"dims: expected names, 'sample' among them, for axes {list(array.dims)} of shape {array.shape}"
            )
        refuse_channels_last(array.shape, array.dtype.kind, ndim, "data")
        array = array.rename(dict(zip(array.dims[: 1 + between], (SAMPLE, CHANNEL), strict=False)))
    order(
        tuple(map(str, array.dims)), ndim,
        f"dims: expected 'sample', {ndim} of the lattice, and perhaps 'level' and 'channel', got {list(array.dims)}; "
        "say what they are, in their order, by dims= (--dims sample,y,x)",
    )  # fmt: skip
    if 0 in array.shape:
        raise ValueError(f"data: empty array of shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"data: expected real numbers, got dtype {array.dtype}")
    return array


def _levels(array: xr.DataArray, levels: Any) -> NDArray[np.float64]:
    if LEVEL not in array.dims:
        if levels is not None:
            raise ValueError(f"levels: given for data without a dim 'level', whose dims are {list(array.dims)}")
        return np.zeros(1)
    if levels is None:
        if LEVEL not in array.coords:
            raise ValueError("levels: expected noise levels, since data has a dim 'level' without a coordinate")
        levels = array[LEVEL].values
    found = to_numbers(levels, "levels")
    if found.shape != (array.sizes[LEVEL],):
        raise ValueError(f"levels: expected {array.sizes[LEVEL]} noise levels, as data has, got shape {found.shape}")
    return found


def _blocks(array: xr.DataArray, block_bytes: int) -> dask.array.Array:
    """The fields (level, sample, ...) in blocks of whole fields of about so many bytes, along what is stored together.

    What is lazy is cut where it will be read, before its axes are turned: then no more is read at a time, and what goes
    to other processes is where it lies, not what it holds.
    """
    stored = array.chunksizes or array.encoding.get("preferred_chunks", {})
    known = [d for d in ROLES if d in array.dims]
    together = {d: int(np.max(stored.get(d, 1))) for d in (LEVEL, SAMPLE)}
    lattice = [d for d in array.dims if d not in (LEVEL, SAMPLE)]
    field_bytes = int(np.prod([array.sizes[d] for d in lattice])) * array.dtype.itemsize
    levels = min(together[LEVEL], max(1, block_bytes // field_bytes))
    samples = max(1, block_bytes // (field_bytes * levels))
    if samples > together[SAMPLE]:
        samples -= samples % together[SAMPLE]
    sizes = {d: array.sizes[d] for d in lattice} | {LEVEL: levels, SAMPLE: samples}
    cut: dask.array.Array = array.chunk({d: sizes[d] for d in array.dims}).data
    axes = [array.dims.index(d) for d in (*known, *[d for d in array.dims if d not in known])]
    cut = cut.transpose(axes)  # type: ignore[no-untyped-call]  # dask types a part of its methods only
    return cut if LEVEL in known else cut[None]


def _record(
    block: Any, levels: NDArray[np.float64] | None, first: int, options: dict[str, Any], why_missing: str
) -> State:
    """A recorder's sums of a block (level, sample, ...) whose first sample is number ``first``."""
    recorder = Recorder(np.zeros(1) if levels is None else levels, **options)
    for i, fields in enumerate(to_array(block, "data")):
        try:
            recorder.update(i, fields, sample=first)
        except (ValueError, OverflowError) as error:
            where = "data" if levels is None else f"data, level {levels[i]:g}"
            finite = np.isfinite(fields).reshape(len(fields), -1).all(axis=1)
            if not finite.all():
                bad = int(np.argmin(finite))
                what = "NaN" if np.isnan(fields[bad]).any() else "an infinite value"
                also = f" (which is what {why_missing} are read as)" if why_missing and what == "NaN" else ""
                raise ValueError(f"{where}: {what} in sample {first + bad}{also}") from error
            raise type(error)(f"{where}, from sample {first} on: {error}") from error
    return recorder.sums()
