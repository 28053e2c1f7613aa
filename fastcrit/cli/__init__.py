"""The command line: ``fastcrit study``, ``train``, ``analyze``. Errors a user can mend are one line."""

from __future__ import annotations

from fastcrit.cli.commands import app, main

__all__ = ["app", "main"]
