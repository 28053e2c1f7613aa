"""One HTML file of a finished run, or of several compared: words, tables, interactive figures, the data."""

from __future__ import annotations

from fastcrit.report.page import Report, write_report

__all__ = ["Report", "write_report"]
