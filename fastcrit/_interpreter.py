"""Imported first: an error in subinterpreters, where importing the core and scipy's transforms would never return."""

from __future__ import annotations

from importlib import import_module


def _is_main() -> bool:
    """Whether this is the main interpreter of its process; yes where Python cannot say, as other implementations."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # since 3.13, and before
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        current, main = (
            found[0] if isinstance(found, tuple) else found
            for found in (interpreters.get_current(), interpreters.get_main())
        )
        return bool(current == main)
    return True


if not _is_main():
    raise ImportError(
        "fastcrit: its compiled core and scipy's transforms run in the main interpreter of a process only, and this is "
        "a subinterpreter; use a process instead (for mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
    )
