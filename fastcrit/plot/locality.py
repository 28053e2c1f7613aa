"""When context matters: what windows lose, what is known of the class and how far the network looks, over levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fastcrit._edge.extras import need
from fastcrit._estimates.level_peak import peaks_of
from fastcrit.plot.axes import MEASURED, OTHERS, legend, level_axis, mark_levels, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of the stretch in which a window loses half of the most or more, and in which the class is decided.
_BANDS = {"gap": MEASURED, "class": OTHERS[2]}


def locality(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """When context matters: response length, gaps at three radii and the class's rate over levels, with both windows.

    Of a study with ``locality=True``. Shaded is where a window of the middle radius loses half of the most or more
    (blue), and where the class is decided at half of the highest rate or more (orange). Dashed is Gaussian data. Into
    ``axes``, where they are given, go the gaps alone.
    """
    levels = ds["level"].values
    ds = ds.isel(level=np.flatnonzero(np.isfinite(ds["locality_gap"].values).all(axis=1)))
    rows = [_gaps] if axes is not None else [_length, _gaps, *([_rate] if "class_rate" in ds else [])]
    if axes is not None:
        figure, panels = axes.figure.figure, [axes]  # a part of a figure says which it is part of
    else:
        need("matplotlib", "drawing a figure")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 2.3 * len(rows)), layout="constrained")
        panels = list(np.ravel(figure.subplots(len(rows), 1, sharex=True)))
    for panel, draw in zip(panels, rows, strict=True):
        panel.spines[["top", "right"]].set_visible(False)
        draw(panel, ds)
        own = list(panel.containers)
        mark_levels(panel, ds)
        for name, peak in peaks_of(ds).items():
            if peak.found:
                panel.axvspan(peak.low, peak.high, color=_BANDS[name], alpha=0.2, linewidth=0)
        level_axis(panel, levels)  # of the run, as in its other figures
        panel.set_ylim(bottom=0)
        if panel is panels[0]:
            legend(panel)
        else:  # the critical levels are named once
            panel.set_xlabel("" if panel is not panels[-1] else panel.get_xlabel())
            panel.legend(handles=own, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    if len(panels) > 1:
        panels[0].set_xlabel("")
    title(panels[0].set_title, ds, "When context matters")
    return figure


def _length(axes: Axes, ds: xr.Dataset) -> None:
    if "response_length" in ds:
        _curve(axes, ds, "response_length", OTHERS[0], "response length")
    axes.set_ylabel("sites")


def _gaps(axes: Axes, ds: xr.Dataset) -> None:
    for j, radius in enumerate(ds["radius"].values.tolist()):
        colour = (MEASURED, *OTHERS)[j]
        _curve(axes, ds.isel(radius=j), "locality_gap", colour, f"window of {2 * radius + 1}")
        if "locality_gap_gaussian" in ds:
            gap = ds["locality_gap_gaussian"].values[:, j]
            axes.plot(ds["level"].values, gap, color=colour, linestyle="--", linewidth=0.9)
    axes.set_ylabel("gap |ΔD|² a site")


def _rate(axes: Axes, ds: xr.Dataset) -> None:
    _curve(axes, ds, "class_rate", OTHERS[2], "class, nats per log s")
    axes.set_ylabel("nats per log s")


def _curve(axes: Any, ds: xr.Dataset, name: str, colour: str, label: str) -> None:
    axes.errorbar(
        ds["level"].values, ds[name].values, ds[f"{name}_stderr"].values, color=colour, label=label, marker=".",
        linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip
