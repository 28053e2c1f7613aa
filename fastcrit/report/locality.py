"""The figure "when context matters" of a study that measured locality."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from fastcrit._estimates.level_peak import peaks_of
from fastcrit.plot.axes import MEASURED, OTHERS
from fastcrit.report.axes import COLOURS, NEUTRAL, Panel, curve, level_axis, mark_levels, small
from fastcrit.studies.locality_words import sentences

_BANDS = {"gap": (MEASURED, "context matters"), "class": (OTHERS[2], "the class is decided")}


def when_context_matters(ds: xr.Dataset) -> Panel:
    """Response length and other lengths, gaps of windows, the class, and the drift, on one axis of noise levels."""
    measured = ds.isel(level=np.flatnonzero(np.isfinite(ds["locality_gap"].values).all(axis=1)))
    rows = [_lengths, _gaps, *([_classes] if "class_rate" in ds else []), *([_drift] if "drift_rate" in ds else [])]
    figure = make_subplots(rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for row, draw in enumerate(rows, start=1):
        draw(figure, measured, row)
    level_axis(figure, ds["level"].values)
    for row in range(1, len(rows)):
        figure.update_xaxes(title="", row=row)
    mark_levels(figure, ds)
    mark_windows(figure, ds)
    figure.update_layout(height=210 * len(rows))
    share = " and ".join(f"{x:.0%}" for x in _within(measured))
    near = " and ".join(str(r) for r in ds["radius"].values[:2].tolist())
    reading = (
        "Top: how far a disturbance of the state is felt in the denoised image (response length), beside the lengths "
        "of the patterns. Below it: by how much a denoised site changes, |ΔD|², when everything beyond a window of so "
        "many sites is another image's at the same noise. Where the curves rise, a network that saw no more than the "
        "window would fail: context matters.",
        "Dashed is what correlations alone explain: Gaussian data of the same spectrum. A maximum is no sign of a "
        "transition by itself; what lies above is."
        if "locality_gap_gaussian" in ds
        else "",
        "Then, how fast the class becomes known (nats per unit of log s; two evaluations, with label and without), and "
        "the drift's growth rate of its longest waves. Shaded are the levels at which a window of the middle size "
        "loses half of the most or more, and at which the class is decided at half of the highest rate or more. If "
        "labels explain what ties distant sites together, the first lies inside the second.",
        "What is replaced is not averaged over: the gap is an upper reading of what a window loses, not the "
        "posterior's loss. A network's own error adds to the class's rate at low noise, without bound.",
        f"Of the mean square of dD/dy, {share} lie within {near} sites at the level where the most is lost."
        if share
        else "",
    )
    return Panel("When context matters", " ".join(sentences(ds)), reading, figure)


def mark_windows(figure: go.Figure, ds: xr.Dataset) -> None:
    """Bands where context matters and where the class is decided; none for a run without locality."""
    for name, peak in peaks_of(ds).items():
        if peak.found:
            colour, label = _BANDS[name]
            figure.add_shape(
                type="rect", yref="paper", y0=0, y1=1, x0=peak.low, x1=peak.high, fillcolor=colour, opacity=0.12,
                line_width=0, layer="below", name=label, showlegend=True,
            )  # fmt: skip


def _within(ds: xr.Dataset) -> list[float]:
    """Shares of the mean square response within the two smaller radii, where a window loses most."""
    gap = peaks_of(ds).get("gap")
    if gap is None or not gap.found or "response_share" not in ds:
        return []
    near = int(np.abs(np.log(ds["level"].values / gap.level)).argmin())
    return [float(x) for x in ds["response_share"].values[near, :2]]


def _lengths(figure: go.Figure, ds: xr.Dataset, row: int) -> None:
    for name, label, colour in (
        ("response_length", "response length", MEASURED),
        ("xi_efold", "states, 1/e of C(r)", OTHERS[1]),
        ("xi_binarized_denoised", "denoised images, 1/e of the sign's C(r)", OTHERS[2]),
    ):
        if name in ds:
            mean = ds[[name, f"{name}_stderr"]]
            mean = mean.mean("channel") if "channel" in mean.dims else mean
            value, error = mean[name].values, mean[f"{name}_stderr"].values
            curve(figure, ds["level"].values, np.where(error < value, value, np.nan), error, label, colour, row=row)
    figure.update_yaxes(title="sites", row=row, rangemode="tozero")


def _gaps(figure: go.Figure, ds: xr.Dataset, row: int) -> None:
    gap, error = ds["locality_gap"].values, ds["locality_gap_stderr"].values
    for j, radius in enumerate(ds["radius"].values.tolist()):
        curve(
            figure, ds["level"].values, gap[:, j], error[:, j], f"window of {2 * radius + 1} sites", COLOURS[j], row=row
        )
        if "locality_gap_gaussian" in ds:
            figure.add_scatter(
                x=ds["level"].values, y=small(ds["locality_gap_gaussian"].values[:, j]), mode="lines", row=row, col=1,
                line={"color": COLOURS[j], "dash": "dash", "width": 1.2}, showlegend=j == 0,
                name="Gaussian data of this spectrum",
            )  # fmt: skip
    figure.update_yaxes(title="|ΔD|² a site", row=row, rangemode="tozero")


def _classes(figure: go.Figure, ds: xr.Dataset, row: int) -> None:
    value, error = ds["class_rate"].values, ds["class_rate_stderr"].values
    curve(figure, ds["level"].values, value, error, "class, nats per unit of log s", OTHERS[2], row=row)
    figure.update_yaxes(title="nats", row=row, rangemode="tozero")


def _drift(figure: go.Figure, ds: xr.Dataset, row: int) -> None:
    value, error = ds["drift_rate"].values[:, 0], ds["drift_rate_stderr"].values[:, 0]
    curve(figure, ds["level"].values, value, error, "drift, longest waves", OTHERS[3], row=row)
    figure.add_hline(0.0, line={"color": NEUTRAL, "width": 1}, row=row, col=1)
    figure.update_yaxes(title="μ", row=row, range=[-0.6, 0.6])
