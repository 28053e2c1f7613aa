"""Exceptions and warnings that callers may want to catch by name."""


class NoTransitionError(ValueError):
    """A critical level was asked for where the data or the theory has none."""


class FileFormatError(ValueError):
    """A file is damaged, or was not written by fastcrit; the message names it."""


class IncompleteRunError(RuntimeError):
    """Parts of a run failed; the message names them, and everything else is saved."""


class ConventionWarning(UserWarning):
    """A network answers as one of the opposite time or sign would, or as one that has learned nothing."""
