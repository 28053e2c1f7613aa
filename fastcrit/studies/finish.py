"""How every run ends: figures, summary.txt and, last, the dataset, which is there when the run is finished."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from fastcrit import store
from fastcrit._edge.extras import need
from fastcrit.errors import FileFormatError

# Name of the dataset in the folder of a run.
DATASET = "dataset.zarr"


def need_what_finishes() -> None:
    """ModuleNotFoundError, before the time is spent, where something is not installed that a run ends with."""
    need("zarr", "a study that writes its result")
    need("matplotlib", "a study that writes its figures")


def is_finished(folder: Path) -> bool:
    """Whether there is the result of a run."""
    return (folder / DATASET).exists()


def finished_already(
    folder: Path, config: dict[str, Any], partial: Sequence[Path] | None = None
) -> xr.Dataset | None:  # fmt: skip
    """What a run of this configuration has found; None where it has not come to its end.

    ``partial`` files, and the temporary ones of a run that one process makes, are what a kill at the very end can
    leave: they are removed.

    Raises
    ------
    ValueError
        The run is one of another configuration (the message says what differs).
    FileFormatError
        Its config.json, or its dataset, is damaged.
    """
    if not is_finished(folder) or not (folder / "config.json").exists():
        return None
    store.check_run(folder, config, finished=None)
    ds = store.load_dataset(folder / DATASET)
    if partial is not None:
        for file in partial:
            file.unlink(missing_ok=True)
        store.clear_run(folder)
    return ds


def finish(ds: xr.Dataset, folder: Path, table: str, partial: Iterable[Path] = ()) -> None:
    """Write what a run leaves, and remove the ``partial`` files from which it could have gone on.

    Raises
    ------
    FileFormatError
        Another run on this folder was faster, and has written something else.
    """
    from fastcrit import plot

    plot.save_figures(ds, folder)
    (folder / "summary.txt").write_text(table + "\n")
    target = folder / DATASET
    try:
        store.save_dataset(ds, target)
    except OSError:
        if not target.exists():
            raise
        # Another run on this folder was faster; what it wrote has to be the same.
        if not store.load_dataset(target).identical(ds):
            raise FileFormatError(f"{target}: not what the chunks of this run add up to") from None
    for file in partial:
        file.unlink(missing_ok=True)
