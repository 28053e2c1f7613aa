"""When context matters: what windows lose, what is known of the class and how far the network looks, over levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fastcrit._edge.extras import need
from fastcrit._estimates.level_peak import peaks_of
from fastcrit.plot.axes import MEASURED, OTHERS, legend, level_axis, mark_levels, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the stretch in which a window loses half of the most or more, and in which the class is decided.
_BANDS = {"gap": MEASURED, "class": OTHERS[2]}


def locality(ds: xr.Dataset) -> Figure:
    """When context matters: response length, gaps at three radii and the class's rate over levels, with both windows.

    Of a study with ``locality=True``. Shaded is where a window of the middle radius loses half of the most or more
    (blue), and where the class is decided at half of the highest rate or more (orange). Dashed is Gaussian data.
    """
    need("matplotlib", "drawing a figure")
    from matplotlib.figure import Figure

    ds = ds.isel(level=np.flatnonzero(np.isfinite(ds["locality_gap"].values).all(axis=1)))
    s = ds["level"].values
    rows = 3 if "class_rate" in ds else 2
    figure = Figure(figsize=(8.4, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, 1, sharex=True)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        mark_levels(each, ds)
        for name, peak in peaks_of(ds).items():
            if peak.found:
                each.axvspan(peak.low, peak.high, color=_BANDS[name], alpha=0.2, linewidth=0)
    if "response_length" in ds:
        _curve(axes[0], ds, "response_length", OTHERS[0], "response length")
    axes[0].set_ylabel("sites")
    for j, radius in enumerate(ds["radius"].values.tolist()):
        colour = (MEASURED, *OTHERS)[j]
        _curve(axes[1], ds.isel(radius=j), "locality_gap", colour, f"window of {2 * radius + 1}")
        if "locality_gap_gaussian" in ds:
            axes[1].plot(s, ds["locality_gap_gaussian"].values[:, j], color=colour, linestyle="--", linewidth=0.9)
    axes[1].set_ylabel("gap |ΔD|² a site")
    if rows == 3:
        _curve(axes[2], ds, "class_rate", OTHERS[2], "class, nats per log s")
        axes[2].set_ylabel("nats per log s")
    for each in axes:
        level_axis(each, s)
        each.set_xlabel("" if each is not axes[-1] else each.get_xlabel())
        each.set_ylim(bottom=0)
    for each in axes[1:]:  # the critical levels are named once
        each.legend(
            handles=each.containers, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False
        )
    legend(axes[0])
    title(figure.suptitle, ds, "When context matters")
    return figure


def _curve(axes: Any, ds: xr.Dataset, name: str, colour: str, label: str) -> None:
    axes.errorbar(
        ds["level"].values, ds[name].values, ds[f"{name}_stderr"].values, color=colour, label=label, marker=".",
        linewidth=1.2, elinewidth=0.8,
    )  # fmt: skip
