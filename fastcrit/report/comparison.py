"""Figures that lay several runs beside each other."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from fastcrit._estimates.channels import averaged
from fastcrit.critical import SIGNATURES, stored_critical_point
from fastcrit.plot.axes import has_gains, with_gains
from fastcrit.report.axes import COLOURS, NEUTRAL, Panel, curve, level_axis, positive

_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")


def panels(runs: dict[str, xr.Dataset]) -> list[Panel]:
    """Critical levels of all runs, and their softest modes and equilibrium lengths; none for a single run."""
    runs = {name: ds for name, ds in runs.items() if "critical_point" in ds.attrs}
    if len(runs) < 2:
        return []
    made = [critical_levels(runs)]
    with_gain = {name: ds for name, ds in runs.items() if has_gains(ds)}
    if len(with_gain) > 1:
        made += [drifts(with_gain), softest(with_gain), equilibrium_lengths(with_gain)]
    return made


def critical_levels(runs: dict[str, xr.Dataset]) -> Panel:
    """The signatures of every run with their intervals."""
    figure = go.Figure()
    said = []
    for i, (run, ds) in enumerate(runs.items()):
        stored = stored_critical_point(ds)
        found = stored.found if stored else {}
        level = np.array([s.level for s in found.values()])
        ends = {
            "array": [s.high - s.level for s in found.values()],
            "arrayminus": [s.level - s.low for s in found.values()], "width": 4,
        }  # fmt: skip
        # Runs are set apart within a signature's row.
        height = [SIGNATURES.index(name) + 0.6 * ((i + 0.5) / len(runs) - 0.5) for name in found]
        figure.add_scatter(
            x=level, y=height, error_x=ends, mode="markers", name=run,
            customdata=[s.kind or name for name, s in found.items()],
            marker={"color": COLOURS[i % len(COLOURS)], "symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 9},
            hovertemplate="%{customdata}: s = %{x:.3g}",
        )  # fmt: skip
        words = ", ".join(f"{s.kind or name} {s.level:.2f}" for name, s in found.items())
        said.append(f"{run}: {words or 'no transition'}")
    level_axis(figure, np.concatenate([positive(ds)["level"].values for ds in runs.values()]))
    rows = {"tickvals": list(range(len(SIGNATURES))), "ticktext": list(SIGNATURES)}
    figure.update_yaxes(**rows, range=[len(SIGNATURES) - 0.5, -0.5], zeroline=False)
    alt = f"Critical levels of every run with 95 % intervals. {'; '.join(said)}."
    reading = (
        "One row for each signature of a transition, one mark for each run; bars are 95 % bootstrap intervals over "
        "trajectories. An empty row means that no run has that signature. In the first row a drift that only weakens "
        "is told from one that is unstable by its name under the mark.",
        "Runs agree where their bars overlap. A bar that spans decades says that the curve has two peaks of about the "
        "same height.",
    )
    return Panel("Critical levels of all runs", alt, reading, figure)


def drifts(runs: dict[str, xr.Dataset]) -> Panel:
    """Largest drift rate of every run."""
    figure = go.Figure()
    said = []
    for i, (run, ds) in enumerate(runs.items()):
        ds = positive(ds)
        ds = ds.isel(level=with_gains(ds))
        s, value = ds["level"].values, ds["drift_rate"].values
        softest = np.nanargmax(np.where(np.isfinite(value), value, -np.inf), axis=1)
        at = np.arange(len(s)), softest
        curve(figure, s, value[at], ds["drift_rate_stderr"].values[at], run, COLOURS[i % len(COLOURS)])
        said.append(f"{run} {value[at].max():.2f} at s = {s[value[at].argmax()]:.2f}")
    figure.add_hline(0.0, line={"color": NEUTRAL, "width": 1})
    level_axis(figure, np.concatenate([positive(ds)["level"].values for ds in runs.values()]))
    figure.update_yaxes(title="largest drift rate", range=[-1.0, 0.6])
    alt = f"Largest growth rate of the reverse drift against noise level. Highest values: {'; '.join(said)}."
    reading = (
        "The largest growth rate of any recorded wave under the reverse drift. Where it crosses zero, coming from high "
        "noise (left), the drift loses its stability; where it only comes near, it weakens.",
    )
    return Panel("Reverse drifts compared", alt, reading, figure)


def softest(runs: dict[str, xr.Dataset]) -> Panel:
    """Softening of k = 0, or the lowest recorded shell, in every run."""
    figure = go.Figure()
    said = []
    for i, (run, ds) in enumerate(runs.items()):
        ds = positive(ds).isel(shell=0)
        ds = ds.isel(level=with_gains(ds))
        s, value = ds["level"].values, ds["softening"].values
        curve(figure, s, value, ds["softening_stderr"].values, run, COLOURS[i % len(COLOURS)])
        said.append(f"{run} {np.nanmin(value):.2f} at s = {s[np.nanargmin(value)]:.2f}")
    level_axis(figure, np.concatenate([positive(ds)["level"].values for ds in runs.values()]))
    figure.update_yaxes(title="softening |λ| of the longest wave", range=[0, 1.6])
    alt = f"Softening of the longest wave against noise level. Lowest values: {'; '.join(said)}."
    reading = (
        "The longest wave of each run: the deeper its dip, the nearer to critical. Error bars: standard errors.",
    )
    return Panel("Softest modes compared", alt, reading, figure)


def equilibrium_lengths(runs: dict[str, xr.Dataset]) -> Panel:
    """Equilibrium length of every run."""
    figure = go.Figure()
    said = []
    top = 0.0
    for i, (run, ds) in enumerate(runs.items()):
        ds = positive(averaged(ds))
        ds = ds.isel(level=with_gains(ds))
        s, value, error = ds["level"].values, ds["xi_drift"].values, ds["xi_drift_stderr"].values
        known = np.isfinite(value) & (error < np.abs(value))
        curve(figure, s, np.where(known, value, np.nan), error, run, COLOURS[i % len(COLOURS)])
        if known.any():
            top = max(top, float((value + error)[known].max()))
            said.append(f"{run} up to {value[known].max():.2f}")
    level_axis(figure, np.concatenate([positive(ds)["level"].values for ds in runs.values()]))
    figure.update_yaxes(title="ξ of the drift (sites)", range=[0, 1.08 * top or 1.0])
    alt = f"Equilibrium correlation length against noise level: {'; '.join(said)} sites."
    reading = (
        "How far a disturbance would reach if the drift were held at that level: longest where the drift pulls the "
        "longest wave back least, and without an end where it is unstable.",
    )
    return Panel("Equilibrium lengths compared", alt, reading, figure)
