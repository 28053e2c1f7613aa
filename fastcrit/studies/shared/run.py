"""A run that any number of processes share: rank 0 makes its folder, all make chunks, rank 0 adds them up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from fastcrit import store
from fastcrit._edge.statefile import is_url
from fastcrit.errors import IncompleteRunError
from fastcrit.studies.finish import DATASET, finish, need_what_finishes
from fastcrit.studies.shared.chunks import Chunks, Log, clear_abandoned
from fastcrit.studies.shared.ranks import PATIENCE, Journal, Rank
from fastcrit.studies.shared.work import Sampler, Work

# A file that says where the chunks are, where they are not in the folder.
_ELSEWHERE = "chunks-are-at.txt"
# Seconds after which a folder that rank 0 has not made is not one that it shares.
_SHARED_FOLDER = 30.0


class Job(Protocol):
    """What a study has to say for a run of it to be shared."""

    @property
    def config(self) -> dict[str, Any]:
        """What the result follows from; its ``study`` names the kind of the chunks."""

    @property
    def count(self) -> int:
        """Number of chunks."""

    @property
    def threads(self) -> int:
        """Of torch."""

    def prepare(self, folder: Path) -> None:
        """Make what has to lie in the folder before others come to it."""

    def sampler(self, folder: Path) -> Sampler:
        """Who makes the chunks."""

    def result(self, chunks: Chunks) -> xr.Dataset | None:
        """Of all chunks, in the order of their numbers; None where one turns out to be damaged, and is then missing."""

    def summary(self, ds: xr.Dataset) -> str:
        """The table of the result."""


def shared_run(
    job: Job, out: str | os.PathLike[str], *, chunks: str | None = None, resume: bool = False, rank: Rank | None = None,
    progress: bool = False,
) -> xr.Dataset | None:  # fmt: skip
    """Make the chunks that are missing; rank 0 then writes RUN/dataset.zarr, figures, summary.txt.

    Arguments, result and errors are those of `ImageNetStudy.run`, which says what they are.
    """
    need_what_finishes()
    import torch

    rank = Rank.of_environment() if rank is None else rank
    folder = Path(out)
    if chunks is not None and not is_url(chunks):
        chunks = str(Path(chunks).resolve())
    place = chunks or place_of_chunks(folder)
    begun = False
    try:
        if chunks is not None:
            chunks_of(job.config, place, job.count, print).open()  # where that fails, nothing is begun
        if rank.number == 0:
            _begin(job, folder, resume, chunks)
        elif is_url(place) and rank.local == 0:
            _begin_elsewhere(job, folder, chunks)
        else:
            _join(folder, job.config)
        begun = True
        journal = Journal(folder, rank, progress)
        threads = torch.get_num_threads()
        torch.set_num_threads(job.threads)
        try:
            return _Shared(job, folder, place, rank, journal).run(resume)
        finally:
            torch.set_num_threads(threads)
            journal.close()
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        rest = "; what is written stays, --resume goes on" if begun else ""
        raise OSError(error.errno, f"out: {error.strerror} ({error.filename or place}){rest}") from error


def chunks_of(config: dict[str, Any], place: Any, count: int, log: Log) -> Chunks:
    """The chunks of a run with this configuration."""
    return Chunks(place, f"fastcrit.{config['study']}-chunk", 1, config, count, log)


class _Shared:
    """One rank's part of a run."""

    def __init__(self, job: Job, folder: Path, place: str, rank: Rank, journal: Journal) -> None:
        self.job, self.folder, self.place, self.rank, self.journal = job, folder, place, rank, journal

    def run(self, resume: bool) -> xr.Dataset | None:
        job, rank, journal = self.job, self.rank, self.journal
        chunks = chunks_of(job.config, self.place, job.count, journal.log)
        chunks.open()
        journal.log(f"rank {rank.number} of {rank.size}, {job}, {job.count} chunks in {self.place}", shown=False)
        if resume:
            for c in range(rank.number, job.count, rank.size):
                chunks.load(c)
        # Of a resumed run, another process of this number may be at work.
        work = Work(chunks, job.sampler(self.folder), rank, journal, self.folder, shuffled=resume)
        while True:
            work.go()
            if rank.number != 0 or work.finished:
                journal.progress("done", force=True, done=work.done)
                return None if rank.number != 0 else store.load_dataset(self.folder / DATASET)
            if missing := chunks.missing():
                if work.others_work():
                    continue
                journal.progress("failed", force=True, done=work.done)
                raise IncompleteRunError(
                    f"chunks {', '.join(map(str, missing))} failed; why is in {self.folder / 'logs'}; all others are "
                    "saved, and --resume tries these again"
                )
            ds = job.result(chunks)
            if ds is not None:
                break
        finish(ds, self.folder, job.summary(ds))
        journal.progress("done", force=True, done=work.done)
        return ds


def place_of_chunks(folder: Path) -> str:
    """Where a run keeps its chunks."""
    elsewhere = folder / _ELSEWHERE
    return elsewhere.read_text().strip() if elsewhere.is_file() else str(folder / "chunks")


def _begin(job: Job, folder: Path, resume: bool, chunks: str | None) -> None:
    if resume:
        store.check_run(folder, job.config, finished=DATASET)
        clear_abandoned(folder)
    else:
        store.create_run(folder)
        job.prepare(folder)
    if chunks is not None:
        (folder / _ELSEWHERE).write_text(f"{chunks}\n")
    if not resume:
        store.write_config(folder, job.config)


def _begin_elsewhere(job: Job, folder: Path, chunks: str | None) -> None:
    """On another machine than rank 0's, with chunks that all see: join rank 0, or have a folder here."""
    try:
        _join(folder, job.config, _SHARED_FOLDER)
    except FileNotFoundError:
        _begin(job, folder, False, chunks)


def _join(folder: Path, config: dict[str, Any], patience: float = PATIENCE) -> None:
    """Wait until rank 0 has made the folder."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return store.check_run(folder, config, finished=None)
        except FileNotFoundError:  # not there yet
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
