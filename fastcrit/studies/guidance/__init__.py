"""The guidance experiment: arms, what judges them, and the verdict."""

from __future__ import annotations

from fastcrit.studies.command import Command
from fastcrit.studies.guidance.study import GuidanceStudy
from fastcrit.studies.guidance.verdict import summary

__all__ = ["COMMAND", "GuidanceStudy", "summary"]

COMMAND = Command(
    GuidanceStudy,
    """Guide at the critical levels of a study, at random levels, always and never, and compare what it gives and costs.

    Every arm has the same seeds, labels and number of network evaluations. Runs on any number of processes, as study
    imagenet does.
    """,
    summary,
)
