"""The study of a large model, on any number of processes."""

from __future__ import annotations

from fastcrit.studies.imagenet.study import ImageNetStudy, summary

__all__ = ["ImageNetStudy", "summary"]
