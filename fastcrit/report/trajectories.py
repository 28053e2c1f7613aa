"""Figures of trajectories: spectra, gains, lengths, the order parameter, and how to read each."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from numpy.typing import NDArray
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from fastcrit._estimates.channels import averaged, each_channel
from fastcrit.plot.axes import MEASURED, OF_GAINS, OTHERS, THEORY, has, has_gains, where_valid, with_gains
from fastcrit.report.axes import COLOURS, NEUTRAL, Figures, Panel, curve, level_axis, mark_levels, positive, small
from fastcrit.report.locality import when_context_matters

_SHOWN_SHELLS = (0, 3, 5)  # the others are a click on the legend away
_MOST_SHELLS = 12


def panels(ds: xr.Dataset) -> list[Panel]:
    """Every figure that ``ds`` has the data for, in reading order."""
    return [draw(ds) for drawable, draw in FIGURES if drawable(ds)]


def spectra_map(ds: xr.Dataset) -> Panel:
    """S(k) over all levels as colours."""
    s, k, S, _ = _spectra(ds)
    figure = go.Figure(
        go.Heatmap(
            x=s, y=k, z=np.log10(np.where(S > 0, S, np.nan)).T, customdata=S.T, colorscale="Viridis",
            colorbar={"title": {"text": "log₁₀ S"}, "thickness": 12},
            hovertemplate="s = %{x:.3g}<br>k = %{y:.3g} rad/site<br>S = %{customdata:.3g}<extra></extra>",
        )
    )  # fmt: skip
    level_axis(figure, s)
    figure.update_yaxes(type="log", title="wavenumber k (rad per site)")
    alt = (
        f"Heat map of the structure factor, wavenumber {k.min():.2g} to {k.max():.2g} against noise level "
        f"{s.max():.3g} to {s.min():.2g}. From {S[0].mean():.3g} at all wavenumbers to {S[-1].max():.3g} at the lowest "
        f"and {S[-1].min():.2g} at the highest."
    )
    reading = (
        "Each column is one noise level; the reverse process runs to the right. Colour is the structure factor S(k): "
        "how strongly states vary at wavenumber k, from long waves (below) to short ones (above).",
        "A column of one colour is white noise. Where it splits into a bright lower and a dark upper part, a pattern "
        "has formed. k = 0 is left out of the logarithmic axis.",
    )
    return Panel("Structure factor over noise levels", alt, reading, figure)


def spectra(ds: xr.Dataset) -> Panel:
    """S(k), a curve for each level."""
    s, k, S, error = _spectra(ds)
    figure = go.Figure()
    # Noise levels span decades: colour by their logarithm.
    place = np.log(s / s.min()) / np.log(s.max() / s.min())
    for i, colour in enumerate(sample_colorscale("Viridis", place)):
        figure.add_scatter(
            x=k, y=small(S[i]), customdata=small(error[i]), mode="lines", line={"color": colour, "width": 1.2},
            hovertemplate=f"s = {s[i]:.3g}<br>k = %{{x:.3g}}<br>S = %{{y:.3g}} ± %{{customdata:.1g}}<extra></extra>",
            showlegend=False,
        )  # fmt: skip
    ticks = np.arange(np.ceil(np.log10(s.min())), np.floor(np.log10(s.max())) + 1)
    bar = {"title": {"text": "s"}, "thickness": 12, "tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks]}
    marker = {"color": [np.log10(s.min()), np.log10(s.max())], "colorscale": "Viridis", "colorbar": bar, "size": 0}
    figure.add_scatter(x=[None, None], y=[None, None], mode="markers", marker=marker, showlegend=False)
    figure.update_xaxes(type="log", title="wavenumber k (rad per site)")
    figure.update_yaxes(type="log", title="structure factor S(k)", exponentformat="power", dtick=1)
    alt = (
        f"Curves of the structure factor over wavenumber at {s.size} noise levels from {s.max():.3g} to {s.min():.2g}."
    )
    reading = (
        "The columns of the map as curves, bright for much noise, dark for little.",
        "White noise of level s is flat at s². The spectrum of the data rises out of it at the left, where patterns "
        "are coarse, while the right follows the noise down.",
    )
    return Panel("Structure factor, level by level", alt, reading, figure)


def lengths(ds: xr.Dataset) -> Panel:
    """Correlation lengths of the states and the equilibrium length."""
    channels = [positive(one) for one in each_channel(ds)]
    ds = positive(averaged(ds))
    s = ds["level"].values
    figure = go.Figure()
    said = []
    series = [
        ("xi_eq", "equilibrium, of the score", MEASURED),
        ("xi_drift", "equilibrium, of the drift", OTHERS[3]),
        ("xi_ornstein_zernike", "states, Ornstein-Zernike fit", OTHERS[0]),
        ("xi_efold", "states, 1/e of C(r)", OTHERS[1]),
        ("xi_binarized_denoised", "denoised images, 1/e of the sign's C(r)", OTHERS[2]),
    ]
    top = 0.0
    for name, label, colour in series:
        if name not in ds:
            continue
        taken = with_gains(ds) if name in OF_GAINS else slice(None)
        value, error = ds[name].values[taken], ds[f"{name}_stderr"].values[taken]
        known = np.isfinite(value) & (error < np.abs(value))
        curve(figure, s[taken], np.where(known, value, np.nan), error, label, colour)
        if known.any():
            # The drift's length diverges where it loses its stability: it does not set the scale.
            top = top if name == "xi_drift" else max(top, float((value + error)[known].max()))
            said.append(f"{label} up to {value[known].max():.2f} at s = {s[taken][np.argmax(known * value)]:.2f}")
        for one in channels if name not in OF_GAINS else ():
            alone = np.where(one[f"{name}_stderr"] < one[name], one[name], np.nan)
            about = f"{label}, channel {int(one['channel'])}"
            line = {"color": colour, "dash": "dot", "width": 0.8}
            figure.add_scatter(x=s, y=small(alone), mode="lines", line=line, name=about, showlegend=False)
            top = max(top, float(np.nanmax(alone, initial=0.0)))
    if "xi_eq_theory" in ds:
        above = s >= ds.attrs.get("theory_critical_level", 0.0)
        style = {"mode": "lines", "line": {"color": THEORY, "dash": "dash"}}
        figure.add_scatter(x=s[above], y=ds["xi_eq_theory"].values[above], name="theory at y = 0", **style)
    level_axis(figure, s)
    mark_levels(figure, ds)
    figure.update_yaxes(title="correlation length (sites)", range=[0, 1.08 * top or 1.0])
    alt = f"Correlation lengths against noise level: {'; '.join(said) or 'none is known to its own size'}."
    reading = (
        "ξ of the states is how far their pattern reaches, with the noise taken off; that of the denoised images what "
        "they already have of it while the state is noise to the eye. The equilibrium lengths are how far a "
        "disturbance would reach if the level were held: the score's peaks where modes are softest, the drift's where "
        "it pulls back least; it diverges at the drift's zero, and there is none while the drift is unstable.",
        "Points whose error exceeds the value are left out. Below about s = 1 on continuous data ξ_eq can rise again "
        "without meaning, since all gains go to 1 there.",
        "Dashed is theory for the homogeneous state; it diverges at the critical level."
        if "xi_eq_theory" in ds
        else "",
        "Of channels the mean, where all have a length, and dotted each of them." if channels else "",
    )
    return Panel("Correlation lengths", alt, reading, figure)


def drift_rates(ds: xr.Dataset) -> Panel:
    """Growth rates of modes under the reverse drift."""
    references = {
        "drift_rate_theory": "self-consistent theory", "drift_rate_gaussian": "Gaussian data of its spectrum",
        "drift_rate_at_symmetric_point": "theory at y = 0",
    }  # fmt: skip
    figure, ds = _shells(ds, "drift_rate", references)
    figure.add_hline(0.0, line={"color": NEUTRAL, "width": 1})
    figure.update_yaxes(title="growth rate μ = 1/2 − (1 − g)/σ²", range=[-1.0, 0.6])
    value = np.where(np.isfinite(ds["drift_rate"].values), ds["drift_rate"].values, -np.inf)
    i, j = np.unravel_index(np.argmax(value), value.shape)
    alt = (
        f"Growth rates of plane waves under the reverse drift against noise level. The largest is {value[i, j]:.2f}, "
        f"at s = {float(ds['level'][i]):.2f}, k = {float(ds['shell_k'][j]):.2f}."
    )
    reading = (
        "How fast the reverse process amplifies a plane wave (above 0) or pulls it back (below); −1/2 under noise "
        "alone. Where the first curve crosses zero, coming from the left, the drift loses its stability.",
        "A zero is no evidence of a transition by itself: Gaussian data of the same spectrum (dotted) may cross, too. "
        "What counts is by how much the two differ, and that a curve turns back where samples commit.",
        "Dashed is the self-consistent theory, drawn where it calls itself valid." if "drift_rate_theory" in ds else "",
    )
    return Panel("Reverse drift", alt, reading, figure)


def collective_mode(ds: xr.Dataset) -> Panel:
    """Which mixture of the channels is softest, over noise levels."""
    ds = positive(ds)
    ds = ds.isel(level=with_gains(ds), shell=0)
    s, vector = ds["level"].values, ds["gain_eigenvector"].transpose("level", "channel").values
    figure = go.Figure()
    names = ("red", "green", "blue") if vector.shape[1] == 3 else [f"channel {c}" for c in ds["channel"].values]
    lines = ("#D1495B", "#3B8E5A", MEASURED) if vector.shape[1] == 3 else COLOURS
    for c, name in enumerate(names):
        line = {"color": lines[c % len(lines)], "width": 1.6}
        figure.add_scatter(x=s, y=small(vector[:, c]), name=name, mode="lines+markers", line=line, marker={"size": 4})
    if vector.shape[1] == 3:
        # What adding the mode to grey looks like.
        shown = np.rint(255 * np.clip(0.5 + 0.45 * vector / np.abs(vector).max(axis=1, keepdims=True), 0, 1))
        colours = ["rgb({:.0f},{:.0f},{:.0f})".format(*c) for c in np.nan_to_num(shown)]
        patch = {"size": 14, "symbol": "square", "color": colours, "line": {"width": 0}}
        figure.add_scatter(
            x=s, y=np.full(len(s), 1.15), mode="markers", marker=patch, name="as a colour", hoverinfo="skip"
        )
    level_axis(figure, s)
    figure.update_yaxes(title="component of the unit vector", range=[-1.05, 1.25])
    middle = vector[len(s) // 2]
    said = ", ".join(f"{name} {x:.2f}" for name, x in zip(names, middle, strict=True))
    alt = f"Components of the softest collective mode of the channels; at s = {s[len(s) // 2]:.2f}: {said}."
    reading = (
        "The mixture of channels that responds most to a push, of the longest recorded wave; gains, softening and "
        "drift are those of this mixture. Of red, green and blue, equal components are brightness.",
    )
    return Panel("Softest mixture of channels", alt, reading, figure)


def softening(ds: xr.Dataset) -> Panel:
    """Stiffness of the modes of a few shells."""
    figure, ds = _shells(ds, "softening", {"softening_gaussian": "Gaussian data of this spectrum"})
    figure.update_yaxes(title="softening |λ| = (1 − g)/σ²", range=[0, 1.6])
    alt = f"Softening against noise level. {_lowest(ds, 'softening')}"
    reading = (
        "How stiff a plane wave is: 1 is the stiffness under noise alone, 0 would be critical (a mode that no force "
        "holds). Each curve is a shell of wavenumbers; click the legend for more of them.",
        "A dip is a transition on trajectories: modes soften while the states are undecided and stiffen once each has "
        "committed. Data without a transition follow the dashed Gaussian curve and never turn back."
        if "softening_gaussian" in ds
        else "A dip is a transition on trajectories: modes soften while the states are undecided and stiffen once each "
        "has committed.",
    )
    return Panel("Softening of modes", alt, reading, figure)


def gains(ds: xr.Dataset) -> Panel:
    """Mode gains with theory's or the Gaussian bound."""
    reference, label = "gaussian_bound", "Gaussian bound P/(P + s²)"
    if "gain_at_symmetric_point" in ds:
        reference, label = "gain_at_symmetric_point", "theory at y = 0"
    figure, ds = _shells(ds, "gain_on_trajectories", {reference: label})
    figure.add_hline(1.0, line={"color": NEUTRAL, "width": 1})
    figure.update_yaxes(title="mode gain g", range=[-0.1, 2.0])
    largest = float(np.nanmax(ds["gain_on_trajectories"].values))
    alt = f"Mode gains against noise level, measured and {label}. The largest measured gain is {largest:.3f}."
    reading = (
        "The gain is how much of a small plane wave the denoiser gives back. Above 1 the wave would grow as the noise "
        "falls: 1 is critical.",
        "At the symmetric point y = 0 theory's gain (dashed) does cross 1. On trajectories it cannot: the states "
        "commit to one pattern before."
        if reference == "gain_at_symmetric_point"
        else "An exact denoiser never exceeds the dashed bound on trajectories; where the curve does, by more than its "
        "error, the network errs.",
    )
    return Panel("Mode gains", alt, reading, figure)


def deficits(ds: xr.Dataset) -> Panel:
    """Response deficit on reverse and forward trajectories."""
    figure, ds = _shells(ds, "response_deficit", {"forward_response_deficit": "on forward trajectories"})
    figure.add_hline(0.0, line={"color": NEUTRAL, "width": 1})
    figure.update_yaxes(title="response deficit", range=[-1.0, 1.05])
    value = ds["response_deficit"].values
    alt = f"Response deficit against noise level; largest {np.nanmax(value):.2f}, smallest {np.nanmin(value):.2f}."
    reading = (
        "The distance of the gain to its Gaussian bound: 0 is the response of Gaussian data, 1 none at all. It rises "
        "where states commit.",
        "Below 0 by more than the error, the denoiser is not the mean of the posterior at that level. At high noise "
        "the gains are tiny and the deficit's errors large.",
    )
    return Panel("Response deficit", alt, reading, figure)


def order_parameter(ds: xr.Dataset) -> Panel:
    """Susceptibility and Binder cumulant of the site mean."""
    ds = positive(averaged(ds))
    s = ds["level"].values
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    for row, (name, label, colour) in enumerate(
        (("chi", "susceptibility χ", MEASURED), ("binder", "Binder cumulant U", OTHERS[0])), start=1
    ):
        curve(figure, s, ds[name].values, ds[f"{name}_stderr"].values, label, colour, row=row)
    level_axis(figure, s)
    figure.update_xaxes(title="", row=1)
    mark_levels(figure, ds)
    figure.update_yaxes(title="χ", type="log", exponentformat="power", row=1)
    figure.update_yaxes(title="U", row=2)
    chi = ds["chi"].values
    alt = f"Susceptibility from {chi[0]:.3g} to {chi[-1]:.3g}, and the Binder cumulant up to {ds['binder'].max():.2f}."
    reading = (
        "Both are of the site mean m, the order parameter of a uniform pattern. The susceptibility N(⟨m²⟩ − ⟨|m|⟩²) "
        "has a maximum at an equilibrium transition; here noise adds s² to it, so it often only falls.",
        "The Binder cumulant is 0 for a Gaussian m and 2/3 for two sharp values.",
    )
    return Panel("Order parameter", alt, reading, figure)


def _spectra(ds: xr.Dataset) -> tuple[NDArray[Any], ...]:
    """Levels above 0, wavenumbers without 0, S (levels, k) and its error."""
    ds = positive(averaged(ds)).isel(k=slice(1, None))
    return tuple(ds[name].values for name in ("level", "k", "S", "S_stderr"))


def _shells(ds: xr.Dataset, name: str, references: dict[str, str]) -> tuple[go.Figure, xr.Dataset]:
    """Curves of all shells with errors and, in dashes and dots, their references; and the dataset where gains are."""
    ds = positive(ds)
    ds = ds.isel(level=with_gains(ds))
    s = ds["level"].values
    figure = go.Figure()
    styles = zip(references, ("dash", "dot", "dashdot"), strict=False)
    dashes = {reference: dash for reference, dash in styles if reference in ds}
    for j in range(min(ds.sizes["shell"], _MOST_SHELLS)):
        colour = COLOURS[j % len(COLOURS)]
        group: dict[str, Any] = {"legendgroup": str(j), "visible": True if j in _SHOWN_SHELLS else "legendonly"}
        about = f"k = {float(ds['shell_k'][j]):.2f}"
        curve(figure, s, ds[name].values[:, j], ds[f"{name}_stderr"].values[:, j], about, colour, **group)
        for reference, dash in dashes.items():
            style = {"mode": "lines", "line": {"color": colour, "dash": dash, "width": 1.2}}
            value = small(where_valid(ds, reference)[:, j])
            about_it = f"{about}, {references[reference]}"
            figure.add_scatter(x=s, y=value, name=about_it, showlegend=False, **style, **group)
    for reference, dash in dashes.items():
        style = {"mode": "lines", "line": {"color": NEUTRAL, "dash": dash}}
        figure.add_scatter(x=[None], y=[None], name=references[reference], **style)
    level_axis(figure, s)
    mark_levels(figure, ds)
    return figure, ds


def _lowest(ds: xr.Dataset, name: str) -> str:
    value = ds[name].values
    i, j = np.unravel_index(np.nanargmin(value), value.shape)
    return (
        f"The lowest value is {value[i, j]:.2f}, at s = {float(ds['level'][i]):.2f}, k = {float(ds['shell_k'][j]):.2f}."
    )


FIGURES: Figures = (
    (has("S"), spectra_map),
    (has("S"), spectra),
    (has_gains, drift_rates),
    (has_gains, softening),
    (has_gains, gains),
    (has("gain_eigenvector"), collective_mode),
    (has("S"), lengths),
    (has("response_deficit"), deficits),
    (has("locality_gap"), when_context_matters),
    (has("chi"), order_parameter),
)
