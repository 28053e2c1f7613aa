"""How far a run on many processes is, read from its folder while it runs: chunks, time a sample, ranks, failures."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fastcrit._edge.arrays import check_integer
from fastcrit._edge.statefile import is_url
from fastcrit.errors import FileFormatError
from fastcrit.studies.finish import is_finished
from fastcrit.studies.shared.chunks import Chunks
from fastcrit.studies.shared.ranks import PATIENCE, read_progress
from fastcrit.studies.shared.run import chunks_of, place_of_chunks
from fastcrit.studies.shared.spans import number_of_chunks, span


def status(run: str | os.PathLike[str]) -> str:
    """Table of a run of `ImageNetStudy` or `GuidanceStudy`: what is there, what a sample took, what each rank does.

    Raises
    ------
    FileNotFoundError
        No run in this folder.
    FileFormatError
        Its config.json is damaged, or of another study.

    Examples
    --------
    >>> from fastcrit.studies.shared.status import status
    >>> status("no-such-run")
    Traceback (most recent call last):
    FileNotFoundError: run: no run in no-such-run
    """
    folder = Path(run)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"run: no run in {folder}")
    try:
        config = json.loads((folder / "config.json").read_text())
        samples, chunk = (check_integer(config[name], name, 1) for name in ("samples", "chunk"))
        # A guidance experiment has chunks of other things after those of samples.
        of_samples, others = number_of_chunks(samples, chunk), config.get("decision_chunks", 0)
        place = place_of_chunks(folder)
        chunks = chunks_of(config, place, of_samples + others, print)
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{folder / 'config.json'}: damaged, or of a study without chunks ({error})") from error
    files = sorted((folder / "progress").glob("rank-*.json"))
    told = {file: read_progress(file) for file in files}
    ranks = [said for said in told.values() if said]
    missing = set(chunks.missing())
    there = [c for c in range(chunks.count) if c not in missing]
    done = sum(len(span(c, samples, chunk)) for c in there if c < of_samples)
    finished = ", finished" if is_finished(folder) else ""
    lines = [f"{folder}: {len(there)} of {chunks.count} chunks, {done} of {samples} samples{finished}"]
    if each := {} if is_url(place) else _seconds(chunks, [c for c in there if c < of_samples]):
        lines.append(
            f"{sum(each.values()):.4g} s a sample: "
            + ", ".join(f"{name} {value:.3g} s" for name, value in each.items())
        )
        working = sum(_is_working(r) for r in ranks)
        if working and missing:
            lines.append(
                f"about {(samples - done) * sum(each.values()) / working / 3600:.2g} h left on {working} ranks"
            )
    lines += [_line(said) if said else f"{file}: cannot be read" for file, said in told.items()]
    return "\n".join(lines)


def _seconds(chunks: Chunks, there: list[int]) -> dict[str, float]:
    """Seconds a sample of each part, over all whole chunks, from their files' headers alone."""
    total: dict[str, float] = {}
    samples = 0
    for c in there:
        try:
            with safe_open(chunks.path(c), framework="numpy") as file:
                about = json.loads((file.metadata() or {})["config"])
        except (SafetensorError, OSError, KeyError, ValueError):
            continue  # damaged: the run will say so, and compute it again
        samples += about["samples"]
        for name, value in about["seconds"].items():
            total[name] = total.get(name, 0.0) + value
    return {name: value / samples for name, value in total.items()}


def _is_working(rank: dict[str, Any]) -> bool:
    return bool(rank["state"] == "working" and time.time() - rank["time"] < PATIENCE)


def _line(rank: dict[str, Any]) -> str:
    state, ago = rank["state"], time.time() - rank["time"]
    if state == "working":
        state = f"chunk {rank['chunk']}, {rank['where']}" + ("" if _is_working(rank) else ", SILENT")
    where = f"rank {rank['rank']:4d} on {rank['machine']}, process {rank['pid']}"
    return f"{where}: {state}; {rank['done']} chunks made; {ago:.0f} s ago"
