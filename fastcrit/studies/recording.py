"""A run in one process: its recorder is saved after every chunk of samples, from where a stopped run goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

from fastcrit import store
from fastcrit.errors import FileFormatError
from fastcrit.observe import Recorder
from fastcrit.studies.finish import finished_already


def finished_or_begun(
    folder: Path, config: dict[str, Any], saved: Sequence[Path], *, resume: bool
) -> xr.Dataset | None:  # fmt: skip
    """What the run in ``folder`` has found; None where it now is one that has begun, and goes on from ``saved`` files.

    Raises
    ------
    FileExistsError, ValueError, FileFormatError
        As for `begin_run` of `fastcrit.store`.
    """
    if resume and (ds := finished_already(folder, config, saved)) is not None:
        return ds
    store.begin_run(folder, config, finished=None, resume=resume)
    return None


def resumed(recorder: Recorder, file: Path | None) -> Recorder:
    """The recorder that a run like this one has saved in ``file``; ``recorder`` where there is none.

    Raises
    ------
    FileFormatError
        It is damaged, or of another run.
    """
    if file is None or not file.exists():
        return recorder
    saved = Recorder.load(file, device=recorder.device)
    if saved.config() != recorder.config():
        raise FileFormatError(f"{file}: the recorder of another run")
    return saved


def record(
    recorder: Recorder, file: Path | None, samples: int, make: Callable[[int, int], None], *, chunk: int, about: str,
    of: str, progress: bool,
) -> None:  # fmt: skip
    """Record samples that are not there yet, by ``make(first, n)``, and save after each chunk of them.

    ``about`` and what the chunks are ``of`` stand on the bar of the progress.
    """
    done = int(recorder.n_samples[-1])
    for first in tqdm(
        range(done, samples, chunk), about, disable=None if progress else True, unit=f"{chunk} {of}"
    ):  # fmt: skip
        make(first, min(chunk, samples - first))
        if file is not None:
            recorder.save(file)
