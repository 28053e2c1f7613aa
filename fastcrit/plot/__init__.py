"""Figures of a study, each a function of its dataset: matplotlib, in colours for colour-blind readers too."""

from __future__ import annotations

from fastcrit.plot import figures
from fastcrit.plot.figures import *  # noqa: F403 (a new figure is named once, in the list of figures.py)
from fastcrit.plot.locality import locality

__all__ = [*figures.__all__, "locality"]
