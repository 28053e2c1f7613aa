"""Figures of a guidance experiment: where guidance works, what it costs, when the class is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from fastcrit._estimates.attributes import is_guidance, pulses_of
from fastcrit._estimates.level_peak import peaks_of
from fastcrit.plot.axes import MEASURED, OTHERS, has
from fastcrit.report.axes import COLOURS, NEUTRAL, Figures, Panel, level_axis, mark_levels
from fastcrit.report.locality import mark_windows
from fastcrit.studies.guidance.verdict import CONSTANT, DOSE, INTERVAL, NONE


def panels(ds: xr.Dataset) -> list[Panel]:
    """Its figures in reading order; none for another dataset."""
    return [draw(ds) for drawable, draw in FIGURES if drawable(ds)] if is_guidance(ds) else []


def alignment(ds: xr.Dataset) -> Panel:
    """Share of samples with their class over the level of the pulse."""
    value, error, arms, pulses = _arms(ds)
    figure = go.Figure()
    for role, colour, mode, symbol in (
        ("sweep", MEASURED, "lines+markers", "circle"), ("random", NEUTRAL, "markers", "x")
    ):  # fmt: skip
        at = [arms[f"pulse {i}"] for i in pulses[role]]
        figure.add_scatter(
            x=ds["center"].values[at], y=value[at], mode=mode, name=f"pulses, {role}",
            error_y={"array": error[at], "width": 2, "thickness": 1},
            line={"color": colour}, marker={"color": colour, "symbol": symbol},
        )  # fmt: skip
    s = _axis(ds)
    for name, colour in zip((NONE, CONSTANT, DOSE, INTERVAL), OTHERS, strict=False):
        about = {"mode": "lines", "line": {"color": colour, "dash": "dash", "width": 1.2}, "name": name}
        figure.add_scatter(x=[s.max(), s.min()], y=[value[arms[name]]] * 2, **about)
    level_axis(figure, s)
    mark_levels(figure, ds)
    mark_windows(figure, ds)
    figure.update_yaxes(title="samples with their class", tickformat=".0%")
    sweep = [arms[f"pulse {i}"] for i in pulses["sweep"]]
    best = max(sweep, key=lambda i: float(value[i]))
    alt = (
        f"Alignment against the level of the pulse: best {100 * value[best]:.1f} % at s = "
        f"{float(ds['center'][best]):.2f}; without guidance {100 * value[arms[NONE]]:.1f} %."
    )
    reading = (
        "Each point is a whole run whose guidance is strong for a few steps around that level and absent elsewhere. "
        "All runs share seeds and labels and cost the same.",
        "Grey bands are the critical levels of the study, measured before and without guidance. The question is "
        "whether pulses there beat those at random levels (crosses). Error bars: one standard error over samples.",
        "Coloured bands are where context matters and where the class is decided, as the study measured them."
        if peaks_of(ds)
        else "",
    )
    return Panel("Where guidance works", alt, reading, figure)


def trade(ds: xr.Dataset) -> Panel:
    """Alignment of every arm against its diversity."""
    value, error, arms, _ = _arms(ds)
    names = list(arms)
    pulse = np.array([name.startswith("pulse ") for name in names])
    spread, centre = ds["diversity"].values, ds["center"].values
    figure = go.Figure()
    bar = {"title": {"text": "s of pulse"}, "thickness": 12, "tickvals": [-1, 0, 1], "ticktext": ["0.1", "1", "10"]}
    # The markers' colours are numbers, which bars do not take.
    about = {"error_x": {"array": ds["diversity_stderr"].values[pulse], "thickness": 1, "width": 2, "color": NEUTRAL}}
    figure.add_scatter(
        x=spread[pulse], y=value[pulse], mode="markers", name="pulses", customdata=centre[pulse], **about,
        marker={"color": np.log10(centre[pulse]), "colorscale": "Viridis", "colorbar": bar, "size": 8},
        hovertemplate="s = %{customdata:.3g}<br>diversity %{x:.3f}<br>aligned %{y:.1%}<extra></extra>",
    )  # fmt: skip
    for i in np.flatnonzero(~pulse):
        figure.add_scatter(
            x=[spread[i]], y=[value[i]], mode="markers", name=names[i],
            marker={"color": COLOURS[1 + i % 5], "symbol": "diamond", "size": 10},
            error_y={"array": [error[i]], "thickness": 1, "width": 2},
        )  # fmt: skip
    figure.update_xaxes(title="diversity: distance within a class")
    figure.update_yaxes(title="samples with their class", tickformat=".0%")
    alt = (
        f"Scatter of alignment against diversity for {len(names)} arms: {100 * value.min():.0f} % at diversity "
        f"{spread[value.argmin()]:.2f} to {100 * value.max():.0f} % at {spread[value.argmax()]:.2f}."
    )
    reading = (
        "Guidance buys alignment with diversity. Up and to the right is better: more samples look like their label, "
        "and they still differ from each other.",
        "Diamonds are the arms without a pulse; circles are pulses, coloured by their level.",
    )
    return Panel("What guidance costs", alt, reading, figure)


def decision(ds: xr.Dataset) -> Panel:
    """Class-entropy rate and the share that keeps its class, over levels."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    s, back = ds["level"].values, ds["back_level"].values
    for level, name, label, colour, row in (
        (s, "entropy_rate", "class-entropy rate", MEASURED, 1), (back, "retained", "class kept", OTHERS[0], 2)
    ):  # fmt: skip
        value = ds[name].values
        bars = {
            "array": ds[f"{name}_high"].values - value, "arrayminus": value - ds[f"{name}_low"].values,
            "width": 2, "thickness": 1,
        }  # fmt: skip
        figure.add_scatter(x=level, y=value, error_y=bars, name=label, line={"color": colour}, row=row, col=1)
    level_axis(figure, s)
    figure.update_xaxes(title="", row=1)
    mark_levels(figure, ds)
    figure.update_yaxes(title="nats per log s", row=1)
    figure.update_yaxes(title="share", tickformat=".0%", range=[0, 1.05], row=2)
    decided = float(ds["class_decided"])
    peak = "no interior maximum" if np.isnan(decided) else f"its maximum at s = {decided:.2f}"
    alt = f"The class-entropy rate has {peak}; the share of images that keep their class rises as the noise falls."
    reading = (
        "Without guidance. Above: how fast the class is decided as the noise falls. Below: the share of images "
        "that keep their class when noised to that level and denoised again.",
        "Bars are 95 % intervals over images: normal above, Wilson's below.",
    )
    return Panel("When the class is decided", alt, reading, figure)


def _axis(ds: xr.Dataset) -> NDArray[Any]:
    """Noise levels of the figure: of the rate, or of the pulses where there is none."""
    return np.asarray(ds["level"].values if "level" in ds else ds["center"].dropna("arm").values)


def _arms(ds: xr.Dataset) -> tuple[NDArray[Any], NDArray[Any], dict[str, int], dict[str, list[int]]]:
    """Alignment of every arm, its error, the arms' places by name, the pulses by role."""
    top1 = ds["top1"].values
    arms = {str(name): i for i, name in enumerate(ds["arm"].values)}
    return top1.mean(axis=1), top1.std(axis=1, ddof=1) / top1.shape[1] ** 0.5, arms, pulses_of(ds)


FIGURES: Figures = ((has("top1"), alignment), (has("top1"), trade), (has("retained"), decision))
