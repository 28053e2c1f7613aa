"""One process of a run of many: its number, its log, and the file in which it says how far it is.

Launched by torchrun or srun, or alone. Ranks share a folder and nothing else: none waits for another, so none hangs
when another dies.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Seconds that a rank waits for the one that makes the folder, and after which one that says nothing is taken for dead:
# a rank that works says something at every level.
PATIENCE = 120.0
# Seconds between two writes of the progress file.
_EVERY = 1.0
# What a progress file says, whatever a rank does.
_SAID = ("rank", "of", "machine", "pid", "time", "state", "done")
# Where launchers say it: number of the process, how many there are, number on this machine.
_VARIABLES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))


@dataclass(frozen=True)
class Rank:
    """Number of this process, how many there are, and its number on this machine.

    Examples
    --------
    >>> from fastcrit.studies.shared.ranks import Rank
    >>> Rank(1, 4, 1).device("cuda"), Rank().device("cuda"), Rank(1, 4, 1).device("cpu")
    ('cuda:1', 'cuda', 'cpu')
    """

    number: int = 0
    size: int = 1
    local: int = 0

    @classmethod
    def of_environment(cls) -> Rank:
        """As torchrun or srun say; alone where neither does.

        Raises
        ------
        ValueError
            Numbers that make no sense.
        """
        for names in _VARIABLES:
            given = [os.environ.get(name, "").strip() for name in names]  # set to nothing is not set
            if not given[0] or not given[1]:
                continue
            try:
                rank = cls(int(given[0]), int(given[1]), int(given[2] or 0))
            except ValueError:
                raise ValueError(f"{', '.join(names)}: expected integers, got {', '.join(given)}") from None
            if not 0 <= rank.number < rank.size:
                raise ValueError(f"{names[0]}: expected a number below {names[1]}, got {given[0]} of {given[1]}")
            if rank.local < 0:
                raise ValueError(f"{names[2]}: expected 0 or more, got {given[2]}")
            return rank
        return cls()

    def device(self, name: str) -> str:
        """Of a run with a device for each process of a machine."""
        return f"cuda:{self.local}" if name == "cuda" and self.size > 1 else name


class Journal:
    """Log and progress of a rank in the folder of a run: RUN/logs/rank-0000.log and RUN/progress/rank-0000.json.

    OSError where they cannot be written: a run that cannot say what it does stops.
    """

    def __init__(self, folder: Path, rank: Rank, progress: bool) -> None:
        self._rank = rank
        self._shown = progress
        self._said = 0.0
        self._file = folder / "progress" / f"rank-{rank.number:04d}.json"
        for inner in ("logs", "progress"):
            (folder / inner).mkdir(exist_ok=True)
        self._log = (folder / "logs" / f"rank-{rank.number:04d}.log").open("a")

    def log(self, text: str, *, shown: bool = True) -> None:
        """A line with the time; on standard error, too, where progress was asked for."""
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", file=self._log, flush=True)
        if self._shown and shown:
            print(f"[rank {self._rank.number}] {text}" if self._rank.size > 1 else text, file=sys.stderr, flush=True)

    def progress(self, state: str, *, force: bool = False, **about: Any) -> None:
        """Say what this rank is doing, at most once a second unless forced."""
        now = time.time()
        if not force and now - self._said < _EVERY:
            return
        self._said = now
        said = {
            "rank": self._rank.number, "of": self._rank.size, "machine": platform.node(), "pid": os.getpid(),
            "time": now, "state": state, **about,
        }  # fmt: skip
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(said) + "\n")
        temporary.replace(self._file)

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def read_progress(file: Path) -> dict[str, Any] | None:
    """What a rank said last; None where that cannot be read, as a crash may leave it: nothing depends on it."""
    try:
        said = json.loads(file.read_text())
        needed = {*_SAID, *(("chunk", "where") if said["state"] == "working" else ())}
        return said if needed <= said.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
