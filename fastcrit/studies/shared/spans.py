"""Which samples lie in which chunk."""

from __future__ import annotations


class InChunks:
    """A plan of ``samples``, of which ``chunk`` are made together."""

    samples: int
    chunk: int

    @property
    def chunks(self) -> int:
        """Number of chunks of samples."""
        return number_of_chunks(self.samples, self.chunk)

    def span(self, chunk: int) -> range:
        """Numbers of the samples of a chunk."""
        return span(chunk, self.samples, self.chunk)


def number_of_chunks(samples: int, chunk: int) -> int:
    """How many chunks hold all samples."""
    return -(-samples // chunk)


def span(number: int, samples: int, chunk: int) -> range:
    """Numbers of the samples of a chunk; the last has those that are left.

    Examples
    --------
    >>> from fastcrit.studies.shared.spans import span
    >>> span(2, samples=25, chunk=10)
    range(20, 25)
    """
    return range(number * chunk, min((number + 1) * chunk, samples))
