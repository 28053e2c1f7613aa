"""What a run is made of, and what one rank of it does: missing chunks, until there is none that it has not tried."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import xarray as xr
from numpy.typing import NDArray

from fastcrit.studies.finish import is_finished
from fastcrit.studies.shared.chunks import Chunks
from fastcrit.studies.shared.ranks import PATIENCE, Journal, Rank, read_progress


class Sampler(Protocol):
    """Who makes the chunks of a study."""

    def make(self, number: int, keep_on: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """What a chunk's file holds: ``samples`` and ``seconds`` a part of the work, with whatever else; arrays.

        Now and then it says where it is by ``keep_on(where)``, which raises when the chunk is not needed any more.
        """


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

    @property
    def made_first(self) -> tuple[str, ...]:
        """Patterns of the paths in the folder that `prepare` makes, with those of its temporary files."""

    @property
    def again(self) -> Callable[[], Job]:
        """Makes this job in another process; it can be pickled."""

    def prepare(self, folder: Path) -> None:
        """Make what has to lie in the folder before others come to it; after a kill, again."""

    def sampler(self, folder: Path) -> Sampler:
        """Who makes the chunks."""

    def result(self, chunks: Chunks) -> xr.Dataset | None:
        """Of all chunks, in the order of their numbers; None where one turns out to be damaged, and is then missing."""

    def summary(self, ds: xr.Dataset) -> str:
        """The table of the result."""


class NotNeededError(Exception):
    """Another rank has made this chunk."""


class Work:
    """What one rank does: chunks that are missing, until none is left that it has not tried."""

    def __init__(
        self, chunks: Chunks, sampler: Sampler, rank: Rank, journal: Journal, folder: Path, shuffled: bool = False
    ) -> None:
        self.chunks, self.sampler, self.rank, self.journal, self.folder = chunks, sampler, rank, journal, folder
        self.done = 0
        # Seconds that writing the last chunk took: told with the next, since its own file cannot know them.
        self._spent_on_files = 0.0
        self._shuffled = shuffled
        self._failed: set[int] = set()
        self._news: dict[Path, tuple[int, float]] = {}

    @property
    def finished(self) -> bool:
        """Whether another run on this folder has written the result."""
        return is_finished(self.folder)

    def go(self) -> None:
        """Take chunks; one that fails is reported, and the rest goes on."""
        while not self.finished and (todo := self._todo()):
            number = todo[0]
            try:
                made = self.sampler.make(number, partial(self._keep_on, number))
            except NotNeededError:
                continue
            except OSError:
                raise  # the folder's trouble, not the chunk's
            except Exception:  # whatever a network raises: the other chunks may work
                self._failed.add(number)
                self.journal.log(f"chunk {number} failed:\n{traceback.format_exc()}")
            else:
                self._save(number, *made)

    def make(self, number: int) -> None:
        """Make one chunk and write it; NotNeededError when another process has."""
        self._save(number, *self.sampler.make(number, partial(self._keep_on, number)))

    def _todo(self) -> list[int]:
        """Missing chunks not tried yet, in the order of `Chunks.order`; at the end those that others have begun."""
        order = self.chunks.order(self.rank.number, self.rank.size, self._shuffled)
        begun = {said["chunk"] for _, said in self._others()}
        return sorted((c for c in order if c not in self._failed), key=lambda c: c in begun)

    def _others(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Other ranks that work, or died at it, by their progress files."""
        for file in (self.folder / "progress").glob("rank-*.json"):
            said = read_progress(file)
            if said and said["state"] == "working" and self.rank.number != said["rank"] < self.rank.size:
                yield file, said

    def others_work(self) -> bool:
        """Wait a little; False when no other rank has said anything for a while."""
        time.sleep(0.5)
        now = time.monotonic()
        alive = False
        for file, _ in self._others():
            stamp = file.stat().st_mtime_ns
            if self._news.get(file, (0, 0.0))[0] != stamp:
                self._news[file] = (stamp, now)
            alive |= now - self._news[file][1] < PATIENCE
        return alive

    def _keep_on(self, number: int, where: str) -> None:
        """Say where this rank is in a chunk; NotNeededError when another has made it meanwhile."""
        self.journal.progress("working", done=self.done, chunk=number, where=where)
        if self.chunks.exists(number):
            raise NotNeededError

    def _save(self, number: int, about: dict[str, Any], arrays: dict[str, Any]) -> None:
        about["seconds"]["store"] = about["seconds"].get("store", 0.0) + self._spent_on_files
        begin = time.perf_counter()
        self.chunks.save(number, {**about, "rank": self.rank.number}, arrays)
        self._spent_on_files = time.perf_counter() - begin
        self.done += 1
        each = {name: seconds / about["samples"] for name, seconds in about["seconds"].items()}
        there = self.chunks.count - len(self.chunks.missing())
        self.journal.log(
            f"chunk {number}, {about['samples']} samples: {sum(each.values()):.4g} s a sample ("
            + ", ".join(f"{name} {value:.3g}" for name, value in each.items())
            + f"); {there} of {self.chunks.count} chunks of all ranks"
        )
