"""Results on disk: run folders that are never overwritten, datasets as Zarr that know whether they are whole."""

from __future__ import annotations

from fastcrit.store.arrays import ARRAY_SUFFIXES, load_array, open_array
from fastcrit.store.datasets import FORMAT, FORMAT_VERSION, load_dataset, save_dataset
from fastcrit.store.runs import begin_run, check_run, create_run, write_config

__all__ = [
    "ARRAY_SUFFIXES",
    "FORMAT",
    "FORMAT_VERSION",
    "begin_run",
    "check_run",
    "create_run",
    "load_array",
    "load_dataset",
    "open_array",
    "save_dataset",
    "write_config",
]
