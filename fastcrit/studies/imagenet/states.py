"""All states of a run, where they are asked for: compressed Zarr in shards, which several ranks write at once."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fastcrit._edge.extras import need

# Samples that are compressed together and read together.
_TOGETHER = 16
STORE = "states.zarr"
# Patterns of all that there is in the folder of a run whose states are still to come: no shard of them.
EMPTY_STORE = (
    STORE, f"{STORE}/zarr.json", f"{STORE}/level", f"{STORE}/level/*", f"{STORE}/y", f"{STORE}/y/zarr.json",
    f".{STORE}.*",
)  # fmt: skip


def create_states(path: Path, levels: Any, samples: int, shape: tuple[int, ...], batch: int) -> None:
    """Make the store: states ``y`` (level, sample, *shape), channels first, float32; a shard for each level and batch.

    A shard is one file, and no two ranks write the same one. The store appears when it is whole; one without states,
    of a run that never began, is replaced unless it is the same.
    """
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        _create(temporary / "new", levels, samples, shape, batch)
        if path.exists() and _described(path) != _described(temporary / "new"):
            os.rename(path, temporary / "old")
        try:
            os.rename(temporary / "new", path)
        except OSError:
            if not path.exists():  # where it does, it is the same: of another process that begins this run
                raise
    finally:
        shutil.rmtree(temporary)


def _described(store: Path) -> dict[str, bytes]:
    """Files of a store but those of states."""
    files = (p for inner in ("", "y", "level", "level/c") for p in (store / inner).glob("*") if p.is_file())
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def _create(path: Path, levels: Any, samples: int, shape: tuple[int, ...], batch: int) -> None:
    zarr = need("zarr", "keeping states")
    root = zarr.create_group(path)
    dims = ["level", "sample", "channel", *("layer", "row", "column")[1 - len(shape) :]]
    y = root.create_array(
        "y", shape=(len(levels), samples, *shape), dtype="float32", chunks=(1, math.gcd(batch, _TOGETHER), *shape),
        shards=(1, batch, *shape), compressors=zarr.codecs.ZstdCodec(level=3), dimension_names=dims,
    )  # fmt: skip
    y.attrs["long_name"] = "state y = x0 + s noise"
    level = root.create_array("level", data=np.asarray(levels, dtype=np.float64), dimension_names=["level"])
    level.attrs["long_name"] = "noise level s"
    with warnings.catch_warnings():
        # Zarr warns that its format 3 does not specify this; xarray warns when it is not there.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(root.store)


def open_states(path: Path) -> Any:
    """The array ``y`` of a store that `create_states` made, to write to."""
    return need("zarr", "keeping states").open_group(path, mode="r+")["y"]
