"""The study of a patch model, beside theory."""

from __future__ import annotations

from fastcrit.studies.command import Command
from fastcrit.studies.patch.study import PatchStudy
from fastcrit.studies.patch.words import summary

__all__ = ["COMMAND", "PatchStudy", "summary"]

COMMAND = Command(PatchStudy, "Sample a patch model and compare its critical noise level with theory.", summary)
