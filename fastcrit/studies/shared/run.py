"""A run that any number of processes share: rank 0 makes its folder, all make chunks, rank 0 adds them up.

Or Dask's workers make the chunks, and the process that has them made is rank 0.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import xarray as xr

from fastcrit import store
from fastcrit._edge.statefile import is_url
from fastcrit.errors import FileFormatError, IncompleteRunError
from fastcrit.studies.finish import DATASET, finish, finished_already, need_what_finishes
from fastcrit.studies.shared.chunks import Chunks, Log, clear_abandoned
from fastcrit.studies.shared.on_dask import OnDask, connected
from fastcrit.studies.shared.ranks import PATIENCE, Journal, Rank
from fastcrit.studies.shared.work import Job, Work

# A file that says where the chunks are, where they are not in the folder.
_ELSEWHERE = "chunks-are-at.txt"
# What a killed run may leave of its first second, before there is a config.json: no chunk, and no result.
_MADE_FIRST = (
    _ELSEWHERE, f".{_ELSEWHERE}.*", "chunks", "logs", "logs/rank-*.log", "progress", "progress/rank-*.json",
    "progress/.rank-*.json.*",
)  # fmt: skip
# Seconds after which a folder that rank 0 has not made is not one that it shares.
_SHARED_FOLDER = 30.0


def shared_run(
    job: Job, out: str | os.PathLike[str], *, chunks: str | None = None, resume: bool = False, rank: Rank | None = None,
    client: Any = None, progress: bool = False,
) -> xr.Dataset | None:  # fmt: skip
    """Make the chunks that are missing; rank 0 then writes RUN/dataset.zarr, figures, summary.txt.

    Arguments, result and errors are those of `ImageNetStudy.run`, which says what they are.
    """
    need_what_finishes()
    rank = Rank.of_environment() if rank is None else rank
    if client is not None:
        if rank.number != 0:
            raise ValueError(f"dask: expected one process, whose workers are the ranks; this is rank {rank.number}")
        rank = Rank()  # Dask's workers are the others
    folder = Path(out)
    if resume and (ds := finished_already(folder, job.config)) is not None:
        return ds if rank.number == 0 else None
    with connected(client) as cluster:
        return _run(job, folder, chunks, resume, rank, cluster, progress)


def _run(
    job: Job, folder: Path, chunks: str | None, resume: bool, rank: Rank, cluster: Any, progress: bool
) -> xr.Dataset | None:
    import torch

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
            _begin_elsewhere(job, folder, resume, chunks)
        else:
            _join(folder, job.config)
        place = chunks or place_of_chunks(folder)
        begun = True
        journal = Journal(folder, rank, progress)
        threads = torch.get_num_threads()
        torch.set_num_threads(job.threads)
        try:
            return _Shared(job, folder, place, rank, journal).run(resume, cluster)
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

    def run(self, resume: bool, cluster: Any) -> xr.Dataset | None:
        job, rank, journal = self.job, self.rank, self.journal
        chunks = chunks_of(job.config, self.place, job.count, journal.log)
        chunks.open()
        journal.log(f"rank {rank.number} of {rank.size}, {job}, {job.count} chunks in {self.place}", shown=False)
        if resume:
            for c in range(rank.number, job.count, rank.size):
                chunks.load(c)
        work: Work | OnDask
        if cluster is not None:
            work = OnDask(cluster, job, chunks, journal, self.folder)
        else:  # of a resumed run, another process of this number may be at work
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
    def prepare(folder: Path) -> None:
        job.prepare(folder)
        (folder / _ELSEWHERE).unlink(missing_ok=True)  # of a command that was killed before it had begun
        _say_where(folder, chunks)

    store.begin_run(
        folder, job.config, finished=None, resume=resume, prepare=prepare, made_first=(*_MADE_FIRST, *job.made_first),
        shared=True,
    )  # fmt: skip
    if resume:
        clear_abandoned(folder)
        _say_where(folder, chunks)


def _say_where(folder: Path, chunks: str | None) -> None:
    if chunks is not None:
        temporary = folder / f".{_ELSEWHERE}.{os.getpid()}"
        temporary.write_text(f"{chunks}\n")
        temporary.replace(folder / _ELSEWHERE)


def _begin_elsewhere(job: Job, folder: Path, resume: bool, chunks: str | None) -> None:
    """On another machine than rank 0's, with chunks that all see: join rank 0, or have a folder here."""
    try:
        _join(folder, job.config, _SHARED_FOLDER)
    except FileNotFoundError:
        _begin(job, folder, resume, chunks)


def _join(folder: Path, config: dict[str, Any], patience: float = PATIENCE) -> None:
    """Wait until rank 0 has made the folder."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return store.check_run(folder, config, finished=None)
        except (FileNotFoundError, FileFormatError):  # not there yet, or not whole where there are no links
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
