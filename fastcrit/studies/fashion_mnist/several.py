"""Several networks, a run in a folder each, beside each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastcrit import store
from fastcrit.studies.command import Command
from fastcrit.studies.fashion_mnist.study import FashionMnistStudy
from fastcrit.studies.fashion_mnist.words import compare, summary
from fastcrit.studies.finish import is_finished

# Table of several networks, in the folder of their runs.
_COMPARISON = "comparison.txt"


def run_all(
    studies: dict[str, FashionMnistStudy], out: str | os.PathLike[str], *, resume: bool = False, device: str = "cpu",
    progress: bool = False,
) -> str:  # fmt: skip
    """Run studies in RUN/<name> each, write RUN/comparison.txt, return all tables. Finished ones are kept on resuming.

    Raises
    ------
    FileExistsError
        ``out`` exists and ``resume`` is False, or holds something that is no run.
    ValueError, FileNotFoundError, FileFormatError
        As for `FashionMnistStudy.run`.
    """
    from fastcrit import diffusion

    folder = Path(out)
    if len({_folder_name(name) for name in studies}) < len(studies):
        raise ValueError(f"net: these names make the same folder: {', '.join(studies)}")
    for study in studies.values():
        diffusion.pretrained(study.net)  # a misspelt one is found before the first has run
    store.begin_runs(folder, [_folder_name(name) for name in studies], resume=resume)
    datasets = {}
    for name, study in studies.items():
        own = folder / _folder_name(name)
        datasets[own.name] = study.run(own, resume=resume, device=device, progress=progress)
    tables = [summary(ds) for ds in datasets.values()]
    if len(datasets) > 1:
        tables.append(compare(datasets))
        if not _is_compared(folder, tables[-1]):
            (folder / _COMPARISON).write_text(tables[-1] + "\n")
    return "\n\n".join(tables)


def _is_compared(folder: Path, table: str) -> bool:
    file = folder / _COMPARISON
    return file.exists() and file.read_text() == table + "\n"


def _folder_name(net: str) -> str:
    """Of a network's run: its name; for a net.safetensors, the name of the folder that it lies in."""
    path = Path(net)
    if path.suffix != ".safetensors":
        return path.name
    return path.resolve().parent.name if path.stem == "net" else path.stem


class NetworksCommand(Command):
    """A run for each network that is named, or that ships with fastcrit."""

    def run(self, values: dict[str, Any], out: Path, **how: Any) -> str:
        """Run them; the tables of all."""
        from fastcrit.diffusion import SHIPPED

        nets = values.pop("net") or SHIPPED
        finished = all(is_finished(out / _folder_name(net)) for net in nets)
        already = finished and (len(nets) == 1 or (out / _COMPARISON).exists())
        tables = run_all({net: FashionMnistStudy(net=net, **values) for net in nets}, out, **how)
        if already:
            return f"{out}: finished already; datasets, figures and tables are there"
        return f"{tables}\n\ndatasets, figures and these tables: {out}"
