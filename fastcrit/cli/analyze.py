"""What ``fastcrit analyze`` prints: of a run, a recorder, stored trajectories, or an ensemble of fields."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import fastcrit
from fastcrit import observe, store
from fastcrit._edge.dims import LEVEL, arrange, dims_of
from fastcrit._edge.plain import strict_json
from fastcrit._estimates.attributes import is_guidance
from fastcrit.analyze import cluster, named, table, table_json
from fastcrit.critical import stored_critical_point

# Larger files are read in blocks, from which not every length can be had; smaller ones whole.
_WHOLE = 128 << 20


def analyze_file(
    file: Path,
    *,
    name: str | None,
    ndim: int,
    spacing: float | None,
    as_json: bool,
    dims: str | None,
    levels: str | None,
    crop: bool,
    dask: str | None,
    workers: int | None,
    memory: str,
    out: Path | None,
) -> None:
    """Print it, as the command's options say."""
    if recorded := _recorded(file):
        _print_result(recorded(), as_json)
        return
    if out is not None and out.exists():  # said before what may take hours
        raise FileExistsError(f"out: {out} exists already; choose another name")
    array = store.open_array(file, name)
    in_blocks = any(a is not None for a in (dims, levels, dask, workers, out)) or LEVEL in array.dims
    if array.nbytes > _WHOLE and not in_blocks:
        in_blocks = True
        print(f"{file}: {array.nbytes >> 20} MiB, read in blocks", file=sys.stderr)
    if in_blocks:
        with cluster(dask, workers, memory):
            ds = fastcrit.analyze(
                array, ndim=ndim, spacing=spacing, dims=None if dims is None else dims.split(","),
                levels=None if levels is None else _numbers(levels), periodic=not crop,
            )  # fmt: skip
        if out is not None:
            store.save_dataset(ds, out)
        print(table_json(ds) if as_json else table(ds))
        return
    if dims_of(array):  # names that are not understood are refused with what to pass here
        array = named(array, None, None, ndim)
    fields, distance = arrange(array.load(), ndim, "field", spacing)
    _print_ensemble(file, fields, ndim, distance, crop, as_json)


def _print_ensemble(file: Path, fields: xr.DataArray, ndim: int, spacing: float, crop: bool, as_json: bool) -> None:
    """Spectrum and lengths of fields (samples, ..., lattice), the axes between averaged over."""
    S = fastcrit.structure_factor(fields, ndim=ndim, spacing=spacing)
    # Channels of one sample are not independent: their errors are averaged, not reduced.
    shells = {"S": S.S, "stderr": S.stderr}
    shells = {name: np.reshape(values, (-1, len(S.k))).mean(axis=0) for name, values in shells.items()}
    lengths = {
        method: fastcrit.correlation_length(fields, method=method, ndim=ndim, spacing=spacing, periodic=not crop)
        for method in fastcrit.METHODS
    }
    sides = fields.shape[fields.ndim - ndim :]
    if as_json:
        print(_ensemble_json(S, sides, shells, lengths))
        return
    channels = S.S.size // len(S.k)
    averaged = f", {channels} channels averaged" if channels > 1 else ""
    print(f"{file}: {S.n_samples} samples on {' x '.join(map(str, sides))} sites{averaged}")
    print(f"\n{'k (rad/length)':>14} {'S':>14} {'stderr':>12} {'modes':>7}")
    for row in zip(S.k, shells["S"], shells["stderr"], S.counts, strict=True):
        print("{:14.6f} {:14.6g} {:12.3g} {:7d}".format(*row))
    print("\ncorrelation lengths, in units of the distance between sites times the spacing:")
    for method, xi in lengths.items():
        print(f"{method:<20}{np.mean(xi.value):10.4f} +- {np.mean(xi.stderr):.4f}  {' '.join(xi.flags)}")


def _print_result(ds: xr.Dataset, as_json: bool) -> None:
    """Critical levels of a study, or the table of a guidance experiment."""
    if is_guidance(ds):
        from fastcrit.studies.guidance import verdict as guidance_verdict

        print(guidance_verdict.as_json(ds) if as_json else guidance_verdict.summary(ds))
        return
    found = stored_critical_point(ds) or fastcrit.critical_point(ds)
    print(found.to_json() if as_json else found)


def _ensemble_json(S: Any, sides: tuple[int, ...], table: dict[str, Any], lengths: dict[str, Any]) -> str:
    """What ``analyze`` prints of fields, as JSON."""

    def number(value: Any) -> float:
        return float(np.mean(value))

    found = {
        name: {"value": number(xi.value), "stderr": number(xi.stderr), "flags": list(xi.flags)}
        for name, xi in lengths.items()
    }
    columns = {name: list(map(number, values)) for name, values in {"k": S.k, **table}.items()}
    about = {"samples": S.n_samples, "lattice": list(sides), **columns, "modes": S.counts.tolist(), "lengths": found}
    return strict_json(about)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"levels: expected numbers such as 80,40,20, got {text!r}") from None


def _recorded(path: Path) -> Callable[[], xr.Dataset] | None:
    """How to load what a recorder made, or None for a file of fields. Damage is found on loading."""
    if (path / "dataset.zarr").exists():
        return lambda: store.load_dataset(path / "dataset.zarr")
    marks = path / ".zattrs"
    if marks.is_file() and store.FORMAT in marks.read_text(errors="replace"):
        return lambda: store.load_dataset(path)
    if path.is_file():
        with path.open("rb") as file:
            if observe.FORMAT.encode() in file.read(4096):  # in the header of a safetensors file
                return lambda: fastcrit.Recorder.load(path).dataset()
    return None
