"""How a run on the command line ends: what is left out, or how to go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fastcrit.errors import IncompleteRunError


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Ctrl-C says how to go on; chunks that failed make the exit status 1."""
    try:
        yield
    except IncompleteRunError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print(f"\nstopped: {_how_to_go_on(out)}", file=sys.stderr)
        raise typer.Exit(130) from None


def _how_to_go_on(out: Path) -> str:
    if any(out.glob("config.json")) or any(out.glob("*/config.json")):
        return f"the same command with --resume goes on in {out}"
    left = out.is_dir() and any(out.iterdir())
    return "before anything was begun" + (f"; the same command with --resume begins in {out}" if left else "")
