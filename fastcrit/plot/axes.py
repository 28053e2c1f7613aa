"""What all figures share: colours, axes over noise levels, the marks of critical levels, and what there is to draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fastcrit._edge.extras import need
from fastcrit.critical import stored_critical_point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Curves that exist where gains were taken.
OF_GAINS = ("xi_eq", "xi_drift")
# Okabe and Ito's palette: what is measured, what theory says, and further series.
MEASURED, THEORY, OTHERS = "#0072B2", "#D55E00", ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Dashed is theory's. By the first word of what a table calls a signature.
SIGNATURE_STYLE: dict[str, Any] = {
    "instability": "-", "weakening": "-", "softening": (0, (6, 2)), "xi_eq": ":", "growth": "-.",
    "growth_denoised": (0, (3, 1, 1, 1)), "susceptibility": (0, (1, 4)),
}  # fmt: skip


def where_valid(ds: xr.Dataset, name: str) -> Any:
    """Values (level, shell) of a reference; the self-consistent theory's where it is valid."""
    values = ds[name].values
    return np.where(ds["theory_valid"].values[:, None], values, np.nan) if name.endswith("_theory") else values


def has(*names: str) -> Callable[[xr.Dataset], bool]:
    """Whether a dataset has all of these variables."""
    return lambda ds: all(name in ds for name in names)


def has_gains(ds: xr.Dataset) -> bool:
    """Whether any gain was measured."""
    return "gain_on_trajectories" in ds and bool(np.isfinite(ds["gain_on_trajectories"].values).any())


def with_gains(ds: xr.Dataset) -> Any:
    """Levels at which gains were taken: curves join these."""
    return np.flatnonzero(ds["n_gains"].values > 0) if "n_gains" in ds.coords else slice(None)


def figure_of(axes: Axes | None) -> tuple[Figure, Axes]:
    """The axes and their figure, made where there are none."""
    if axes is not None:
        return axes.figure.figure, axes  # a part of a figure says which it is part of
    need("matplotlib", "drawing a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def title(put: Callable[..., Any], ds: xr.Dataset, text: str) -> None:
    """What is shown, and of which study."""
    study = ds.attrs.get("title")
    put(f"{text}\n{study}" if study else text, fontsize="medium")


def legend(axes: Axes) -> None:
    """Beside the axes, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)


def level_axis(axes: Axes, s: Any) -> None:
    """Noise falls as time runs, so it falls from left to right."""
    axes.set_xscale("log")
    axes.set_xlim(s.max(), s[s > 0].min())
    axes.set_xlabel("noise level s (the reverse process runs to the right)")


def mark_levels(axes: Axes, ds: xr.Dataset) -> None:
    """Vertical lines at theory's critical level and at the signatures that were found, with their intervals."""
    if "theory_critical_level" in ds.attrs:
        s = ds.attrs["theory_critical_level"]
        axes.axvline(s, color=THEORY, linewidth=1, label=f"theory, y = 0: {s:.2f}")
    if "theory_instability_level" in ds.attrs:
        s = ds.attrs["theory_instability_level"]
        axes.axvline(s, color=THEORY, linewidth=1, linestyle=":", label=f"theory, trajectories: {s:.2f}")
    stored = stored_critical_point(ds)
    for name, found in stored.found.items() if stored else ():
        axes.axvspan(found.low, found.high, color="0.85", linewidth=0)
        label = f"{found.kind or name}: {found.level:.2f}"
        axes.axvline(found.level, color="0.3", linewidth=1, linestyle=SIGNATURE_STYLE[name], label=label)
