"""A study as ``fastcrit study NAME``: what the command line makes a command of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from fastcrit.studies.finish import is_finished


@dataclass(frozen=True)
class Command:
    """A study that the command line runs.

    Attributes
    ----------
    study : type
        Its fields are the options, as `fastcrit.studies.options` has them; ``resume``, ``device``,
        ``chunks`` and ``client`` are more of them where its ``run`` takes them.
    about : str
        What the command's help says.
    summary : callable
        The table of a finished run.
    """

    study: Any
    about: str
    summary: Callable[[xr.Dataset], str]

    def run(self, values: dict[str, Any], out: Path, **how: Any) -> str | None:
        """Run the study with these values of its fields; what is to be printed, or None where another rank says it."""
        already = is_finished(out)
        ds = self.study(**values).run(out, **how)
        if ds is None:
            return None
        if already:
            return f"{out}: finished already; dataset, figures and table are there"
        return f"\n{self.summary(ds)}\n\ndataset, figures and this table: {out}"
