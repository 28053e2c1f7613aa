"""What the figures of a report share: the panel, colours, curves with errors, the axis of levels, critical levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from numpy.typing import NDArray

from fastcrit._estimates.attributes import carried_levels
from fastcrit.critical import SIGNATURES, WEAKENING, stored_critical_point
from fastcrit.plot.axes import MEASURED, OTHERS, THEORY

# Readable on white and on black alike.
NEUTRAL = "#808080"
COLOURS = (MEASURED, *OTHERS[:4], NEUTRAL)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdashdot", "longdash")
# By the first word of what a table calls a signature.
_SIGNATURE_DASH = dict(zip(SIGNATURES, _DASHES, strict=True)) | {WEAKENING: "solid"}


@dataclass(frozen=True)
class Panel:
    """A figure, its title, what a reader who cannot see it is told, and how to read it, by paragraph."""

    title: str
    alt: str
    reading: tuple[str, ...]
    figure: go.Figure


# Rows of a table of figures, in reading order: whether a dataset has the data for one, and what draws it.
Figures = tuple[tuple[Callable[[xr.Dataset], bool], Callable[[xr.Dataset], Panel]], ...]


def curve(
    figure: go.Figure, s: Any, value: Any, error: Any, name: str, colour: str, row: int | None = None, **more: Any
) -> None:
    """Draw values over noise levels with their errors."""
    figure.add_scatter(
        x=s, y=small(value), name=name, mode="lines+markers", row=row, col=row and 1, marker={"size": 4},
        line={"color": colour, "width": 1.6}, error_y={"array": small(error), "width": 2, "thickness": 1}, **more,
    )  # fmt: skip


def small(values: Any) -> NDArray[np.float32]:
    """Seven digits are enough for a figure, and half the file."""
    return np.asarray(values, dtype=np.float32)


def positive(ds: xr.Dataset) -> xr.Dataset:
    """Without a last level 0, which a logarithmic axis does not have."""
    return ds.isel(level=ds["level"].values > 0)


def level_axis(figure: go.Figure, s: NDArray[Any]) -> None:
    """Noise falls as time runs, so it falls from left to right."""
    low, high = np.log10(s.min()), np.log10(s.max())
    margin = 0.02 * (high - low)
    about = {"type": "log", "range": [high + margin, low - margin], "dtick": 1, "tickformat": "~g"}
    figure.update_xaxes(title="noise level s (time runs to the right)", **about)
    figure.update_traces(xhoverformat=".3g", yhoverformat=".4g", selector={"type": "scatter"})


def mark_levels(figure: go.Figure, ds: xr.Dataset) -> None:
    """Lines at the critical levels with bands for their intervals, and at theory's."""
    for name, (level, low, high) in levels_of(ds).items():
        band = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        figure.add_shape(x0=low, x1=high, fillcolor=NEUTRAL, opacity=0.14, line_width=0, **band)
        line = {"color": NEUTRAL, "width": 1.4, "dash": _SIGNATURE_DASH[name.split()[0]]}
        _vertical(figure, level, line, f"{name} {level:.2f}")
    for name, where, dash in (
        ("theory_critical_level", "y = 0", "solid"), ("theory_instability_level", "trajectories", "dot")
    ):  # fmt: skip
        if name in ds.attrs:
            s = ds.attrs[name]
            _vertical(figure, s, {"color": THEORY, "width": 1.4, "dash": dash}, f"theory, {where} {s:.2f}")


def levels_of(ds: xr.Dataset) -> dict[str, tuple[float, float, float]]:
    """Critical levels found, with their intervals: a study's own, or those that a guidance experiment carries."""
    carried = carried_levels(ds)
    if carried:
        return {name: (s["level"], s["low"], s["high"]) for name, s in carried.items()}
    stored = stored_critical_point(ds)
    return {s.kind or name: (s.level, s.low, s.high) for name, s in stored.found.items()} if stored else {}


def _vertical(figure: go.Figure, s: float, line: dict[str, Any], name: str) -> None:
    about = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "name": name, "showlegend": True}
    figure.add_shape(x0=s, x1=s, line=line, **about)
