"""The study of a large model, on any number of processes."""

from __future__ import annotations

from fastcrit.studies.command import Command
from fastcrit.studies.imagenet.study import ImageNetStudy, summary

__all__ = ["COMMAND", "ImageNetStudy", "summary"]

COMMAND = Command(
    ImageNetStudy,
    """Follow a large model from noise to image, on any number of processes: torchrun ... -m fastcrit study imagenet ...

    Ends with status 1 when chunks failed, while all others are saved.
    """,
    summary,
)
