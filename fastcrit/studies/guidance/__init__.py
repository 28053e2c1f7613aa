"""The guidance experiment: arms, what judges them, and the verdict."""

from __future__ import annotations

from fastcrit.studies.guidance.study import GuidanceStudy
from fastcrit.studies.guidance.verdict import summary

__all__ = ["GuidanceStudy", "summary"]
