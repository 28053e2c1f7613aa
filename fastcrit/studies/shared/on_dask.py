"""Missing chunks of a shared run as tasks of a Dask cluster: a task a chunk, which its worker makes and writes itself.

Workers take the place of ranks: each process loads the model once, makes one chunk at a time, and says how far it is in
the run's folder. What travels is the study, the number of a chunk, and what went wrong.
"""

from __future__ import annotations

import os
import platform
import secrets
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fastcrit import store
from fastcrit._edge.extras import need
from fastcrit._edge.statefile import is_url
from fastcrit.studies.finish import is_finished
from fastcrit.studies.options import described
from fastcrit.studies.shared.chunks import Chunks, config_hash
from fastcrit.studies.shared.ranks import Journal, Rank
from fastcrit.studies.shared.work import Job, NotNeededError, Work

Study = TypeVar("Study", bound=Any)

# Numbers of workers that come after the run has begun follow from their names, from here on: they name files alone.
_LATER = 1000


@contextmanager
def connected(client: Any) -> Iterator[Any]:
    """A client of Dask for one, or for the address of a scheduler; None for None.

    Raises
    ------
    ModuleNotFoundError
        dask.distributed is not installed (the extra ``fastcrit[dask]``).
    TypeError
        ``client`` is neither.
    OSError
        There is no scheduler at the address.
    """
    if client is None:
        yield None
        return
    distributed = need("distributed", "a study on Dask")
    if isinstance(client, str):
        with distributed.Client(client) as own:
            yield own
    elif isinstance(client, distributed.Client):
        yield client
    else:
        raise TypeError(f"client: expected a dask.distributed.Client or the address of a scheduler, got {client!r}")


class OnDask:
    """What a cluster does for a run: the part of `Work`, by tasks."""

    def __init__(self, client: Any, job: Job, chunks: Chunks, journal: Journal, folder: Path) -> None:
        self.client, self.chunks, self.journal, self.folder = client, chunks, journal, folder
        self.done = 0
        self._failed: set[int] = set()
        numbers = {name: i for i, name in enumerate(sorted(client.run(_name).values()), start=1)}
        journal.log(f"{len(numbers)} Dask workers of {client.scheduler.address}", shown=not numbers)
        place = chunks.place if is_url(chunks.place) else str(Path(chunks.place).resolve())
        self._task = _Task(job.again, job.config, chunks.kind, chunks.count, place, folder.resolve(), numbers)

    @property
    def finished(self) -> bool:
        """Whether another run on this folder has written the result."""
        return is_finished(self.folder)

    def go(self) -> None:
        """Have the missing chunks made; one that fails, or whose workers die again and again, is reported."""
        # A worker that dies costs its chunk, which the scheduler gives to another one. What a network raises it would
        # raise again: no retries.
        futures = {
            self.client.submit(self._task, number, key=f"chunk-{number}-{secrets.token_hex(8)}", retries=0): number
            for number in self.chunks.missing()
            if number not in self._failed
        }
        self._say()
        try:
            for future in need("distributed", "a study on Dask").as_completed(list(futures)):
                number = futures[future]
                error = future.exception()
                if error is None:
                    self._made(number, future.result())
                elif isinstance(error, (OSError, UnfitWorkerError)):
                    raise error  # the folder's trouble, or the cluster's, not the chunk's
                else:
                    self._failed.add(number)
                    told = "".join(traceback.format_exception(type(error), error, future.traceback()))
                    self.journal.log(f"chunk {number} failed:\n{told}")
        finally:
            self.client.cancel(list(futures))  # of Ctrl-C, too: what is being made is then made for the next time

    def others_work(self) -> bool:
        """No rank works beside the cluster."""
        return False

    def _made(self, number: int, where: str | None) -> None:
        if where is not None:
            self.done += 1
            there = self.chunks.count - len(self.chunks.missing())
            self.journal.log(f"chunk {number}, by worker {where}; {there} of {self.chunks.count} chunks")
        self._say()

    def _say(self) -> None:
        self.journal.progress("gives chunks to Dask workers", force=True, done=self.done)


def with_absolute_paths(study: Study) -> Study:
    """The same study for a process with another working directory."""
    kind: Any = type(study)
    named = {each.name: getattr(study, each.name) for each in described(kind) if each.option.path}
    there = {name: str(Path(value).resolve()) for name, value in named.items() if _is_path(value)}
    return replace(study, **there)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and Path(value).exists()


class UnfitWorkerError(ValueError):
    """A worker cannot make chunks of this run: it sees other files, or another device."""


@dataclass(frozen=True)
class _Task:
    """Makes a chunk on a worker, by its number."""

    again: Callable[[], Job]
    config: dict[str, Any]
    kind: str
    count: int
    place: str
    folder: Path
    numbers: dict[str, int]

    def __call__(self, number: int) -> str | None:
        """The name of the worker that has made it; None where another process has."""
        import torch
        from distributed import get_worker

        worker = get_worker()
        with _ONE:
            job, work = self._at_work(worker)
            threads = torch.get_num_threads()
            torch.set_num_threads(job.threads)
            try:
                work.make(number)
            except NotNeededError:
                return None
            finally:
                torch.set_num_threads(threads)
                work.journal.progress("waits for chunks", force=True, done=work.done)
        return str(worker.name)

    def _at_work(self, worker: Any) -> tuple[Job, Work]:
        """The job of this process and its part of it: made by the first task, kept until one of another run comes."""
        key = f"{config_hash(self.config)} {self.place} {self.folder}"
        if key not in _KEPT:
            for _, work in _KEPT.values():
                work.journal.close()
            _KEPT.clear()
            _KEPT[key] = self._begin(worker)
        return _KEPT[key]

    def _begin(self, worker: Any) -> tuple[Job, Work]:
        where = f"worker {worker.name} on {platform.node()}"
        if not is_url(self.place) and not Path(self.place).is_dir():
            raise UnfitWorkerError(f"dask: {where} does not see {self.place}; expected a folder or URL that all see")
        try:
            job = self.again()
        except Exception as error:  # whatever a file that is not there, or a device, raises
            raise UnfitWorkerError(f"dask: {where} cannot load the model: {error}") from error
        if different := store.differences(job.config, self.config):
            raise UnfitWorkerError(f"dask: {where} has another configuration: {different}")
        folder = self.folder
        if not folder.is_dir():  # another machine's, with chunks at a URL
            folder = Path(worker.local_directory) / "fastcrit"
            folder.mkdir(exist_ok=True)
        name = str(worker.name)
        number = self.numbers.get(name, _LATER + zlib.crc32(name.encode()) % (10 * _LATER))
        rank = Rank(number, len(self.numbers) + 1)
        journal = Journal(folder, rank, progress=False)
        journal.log(f"Dask worker {name}, {job}, chunks in {self.place}")
        chunks = Chunks(self.place, self.kind, 1, self.config, self.count, journal.log)
        return job, Work(chunks, job.sampler(folder), rank, journal, folder)


def _name(dask_worker: Any) -> str:
    return str(dask_worker.name)


# Threads and forward-mode derivatives of torch are a process's: it makes one chunk at a time, whatever its worker's
# threads are.
_ONE = threading.Lock()
# Of a worker's process: the job of the run that it is at, and its part of it.
_KEPT: dict[str, tuple[Job, Work]] = {}
