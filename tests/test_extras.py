"""Without an optional dependency the message names what needs it and the extra that brings it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray as xr

import fastcrit as fc
from fastcrit import plot, store
from fastcrit.report import write_report
from fastcrit.studies import PatchStudy
from fastcrit.studies.shared.on_dask import connected


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("matplotlib", "plot", lambda path: plot.save_figures(xr.Dataset(), path)),
        ("zarr", "store", lambda path: store.save_dataset(xr.Dataset(), path / "d.zarr")),
        ("zarr", "store", lambda path: store.load_array(path / "a.zarr")),
        ("netCDF4", "store", lambda path: store.load_array(path / "a.nc")),
        ("torch", "torch", lambda path: store.load_array(path / "a.pt")),
        ("torch", "torch", lambda path: fc.Recorder([1.0], shape=(8, 8), device="cuda")),
        ("sklearn", "images", lambda path: fc.patch.Dictionary.from_images(np.ones((9, 9, 9)), 3, 2, method="kmeans")),
        ("plotly", "report", lambda path: write_report(path)),
        ("jinja2", "report", lambda path: write_report(path)),
        ("dask", "dask", lambda path: fc.analyze(np.ones((3, 8, 8)))),
        ("distributed", "dask", lambda path: connected("tcp://127.0.0.1:9").__enter__()),
        ("zarr", "store", lambda path: PatchStudy().run(path / "run")),
        ("matplotlib", "plot", lambda path: PatchStudy().run(path / "run")),
    ],
)
def test_is_named(module, extra, call, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)  # importing it now fails
    for name in ("a.zarr", "a.nc", "a.pt"):
        (tmp_path / name).touch()
    with pytest.raises(ModuleNotFoundError, match=rf"needs {module}: pip install 'fastcrit\[{extra}\]'"):
        call(tmp_path)
    assert not (tmp_path / "run").exists()
