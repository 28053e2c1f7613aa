"""Results on disk: run folders that are never overwritten, datasets as Zarr that know whether they are whole."""

from __future__ import annotations

from fastcrit.store.arrays import ARRAY_SUFFIXES as ARRAY_SUFFIXES
from fastcrit.store.arrays import load_array, open_array
from fastcrit.store.datasets import FORMAT as FORMAT
from fastcrit.store.datasets import load_dataset, save_dataset
from fastcrit.store.runs import begin_run as begin_run  # of studies: not among the public names
from fastcrit.store.runs import begin_runs as begin_runs
from fastcrit.store.runs import check_run as check_run
from fastcrit.store.runs import clear_run as clear_run
from fastcrit.store.runs import create_run
from fastcrit.store.runs import differences as differences
from fastcrit.store.runs import write_config as write_config

__all__ = ["create_run", "load_array", "load_dataset", "open_array", "save_dataset"]
