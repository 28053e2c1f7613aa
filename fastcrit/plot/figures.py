"""Figures of a study, each a function of its dataset: matplotlib, in colours that colour-blind readers can tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fastcrit._edge.extras import need
from fastcrit._estimates.attributes import carried_levels, is_guidance, pulses_of
from fastcrit._estimates.channels import averaged, each_channel
from fastcrit.plot.axes import (
    MEASURED,
    OF_GAINS,
    OTHERS,
    SIGNATURE_STYLE,
    THEORY,
    figure_of,
    has,
    has_gains,
    legend,
    level_axis,
    mark_levels,
    title,
    where_valid,
    with_gains,
)
from fastcrit.plot.locality import locality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "alignment",
    "deficits",
    "drift_rates",
    "gains",
    "lengths",
    "order_parameter",
    "save_figures",
    "softening",
    "states",
    "structure_factors",
]


def structure_factors(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """S(k) at every level, coloured by the level; k = 0 is left out of the logarithmic axis.

    Parameters
    ----------
    ds : xarray.Dataset
        From `Recorder.dataset` or a study. Channels are averaged.
    axes : matplotlib.axes.Axes, optional
        Where to draw, here and in every function below but `states` and `alignment`, which lay out panels of their own;
        default: a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        That of ``axes``.

    Raises
    ------
    ModuleNotFoundError
        Matplotlib is not installed (the extra ``fastcrit[plot]``).

    Examples
    --------
    >>> import fastcrit as fc
    >>> from matplotlib.figure import Figure
    >>> rec = fc.Recorder(fc.schedules.log_levels(12, high=20, low=0.2), shape=(16, 16))
    >>> _ = fc.theory.GaussianTheory.ornstein_zernike(xi=2.0, lattice=16).sample(rec.levels, 64, recorder=rec)
    >>> figure = Figure(figsize=(10, 4), layout="constrained")
    >>> left, right = figure.subplots(1, 2)
    >>> fc.plot.structure_factors(rec.dataset(), axes=left) is figure
    True
    >>> _ = fc.plot.lengths(rec.dataset(), axes=right)
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    ds = averaged(ds)
    figure, axes = figure_of(axes)
    s = ds["level"].values
    lowest = s[s > 0].min()
    norm = LogNorm(lowest, s.max())
    colours = ScalarMappable(norm, "viridis")
    for i in range(len(s)):
        axes.loglog(ds["k"][1:], ds["S"][i, 1:], color=colours.to_rgba(np.maximum(s[i], lowest)), linewidth=1)
    axes.set(xlabel="wavenumber k (rad per site), without k = 0", ylabel="structure factor S(k)")
    title(axes.set_title, ds, "From white noise to a pattern")
    figure.colorbar(colours, ax=axes, label="noise level s")
    return figure


def lengths(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Correlation lengths over levels: of the states, and the equilibrium length with theory's.

    Of channels the mean where all of them have a length, and dotted each of them.
    """
    channels = each_channel(ds)
    ds = averaged(ds)
    figure, axes = figure_of(axes)
    s = ds["level"].values
    series = [
        ("xi_eq", "equilibrium, of the score", MEASURED),
        ("xi_drift", "equilibrium, of the drift", OTHERS[3]),
        ("xi_ornstein_zernike", "states, Ornstein-Zernike", OTHERS[0]),
        ("xi_efold", "states, e-fold of C(r)", OTHERS[1]),
        ("xi_binarized_denoised", "denoised images, e-fold of the sign", OTHERS[2]),
    ]
    top = 0.0
    for name, label, colour in series:
        if name not in ds:
            continue
        value, error = ds[name].values, ds[f"{name}_stderr"].values
        # A length that is not known to its own size would only fill the figure with its error bar.
        known = np.isfinite(value) & (error < np.abs(value))
        value, error = (np.where(known, a, np.nan) for a in (value, error))  # gaps stay gaps
        taken = with_gains(ds) if name in OF_GAINS else slice(None)
        # The drift's length diverges where it loses its stability: it does not set the scale.
        if name != "xi_drift" and known.any():
            top = max(top, float(np.nanmax(value + error)))
        style: dict[str, Any] = {"linewidth": 1, "capsize": 2, "marker": ".", "markersize": 3}
        axes.errorbar(s[taken], value[taken], error[taken], color=colour, label=label, **style)
        for one in channels if name not in OF_GAINS else ():
            alone = np.where(one[f"{name}_stderr"] < one[name], one[name], np.nan)
            axes.plot(s, alone, color=colour, linestyle=":", linewidth=0.8)
            top = max(top, float(np.nanmax(alone, initial=0.0)))
    if "xi_drift_theory" in ds:
        label = "of the drift, self-consistent theory"
        axes.plot(s, np.where(ds["theory_valid"], ds["xi_drift_theory"], np.nan), "--", color=OTHERS[3], label=label)
    if "xi_eq_theory" in ds:
        # It diverges at the critical level; below, y = 0 is not where the states are.
        above = s >= ds.attrs.get("theory_critical_level", 0.0)
        axes.plot(s[above], ds["xi_eq_theory"].values[above], color=THEORY, linestyle="--", label="theory at y = 0")
    if top > 0:
        axes.set_ylim(0, 1.05 * top)
    mark_levels(axes, ds)
    level_axis(axes, s)
    axes.set_ylabel("correlation length (sites)")
    title(axes.set_title, ds, "Correlation lengths")
    legend(axes)
    return figure


def gains(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Mode gains on trajectories with theory's at the symmetric point, or the Gaussian bound; 1 is critical."""
    references = {"gain_at_symmetric_point": "theory at y = 0", "gaussian_bound": "Gaussian bound P/(P + s²)"}
    figure, axes = _shells_over_levels(ds, "gain_on_trajectories", references, axes)
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.set_ylim(-0.1, 2.0)
    axes.set_ylabel("mode gain g")
    title(axes.set_title, ds, "Mode gains: 1 is critical")
    return figure


def drift_rates(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Growth rates of modes under the reverse drift, with theory's and Gaussian data's; above 0 a wave grows."""
    references = {
        "drift_rate_theory": "self-consistent theory, where valid",
        "drift_rate_gaussian": "Gaussian data of this spectrum",
        "drift_rate_at_symmetric_point": "theory at y = 0",
    }
    figure, axes = _shells_over_levels(ds, "drift_rate", references, axes)
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    axes.set_ylim(-1.0, _top(ds["drift_rate"].values, 0.6))
    axes.set_ylabel("growth rate (per unit of OU time)")
    title(axes.set_title, ds, "Reverse drift: above 0 it amplifies")
    return figure


def softening(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Softening (1 - g)/sigma^2, sigma^2 = s^2/(s^2 + data variance): the stiffness of a mode; 0 is critical."""
    figure, axes = _shells_over_levels(ds, "softening", {"softening_gaussian": "Gaussian data of this spectrum"}, axes)
    axes.set_ylim(-_top(-ds["softening"].values, 0.0), 2.0)
    axes.set_ylabel("softening (1 - g)/sigma^2")
    title(axes.set_title, ds, "Softening: modes are softest at its minimum")
    return figure


def deficits(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Response deficit 1 - g (P + s^2)/P: 0 is Gaussian response, below 0 the network is not the posterior's mean."""
    figure, axes = _shells_over_levels(
        ds, "response_deficit", {"forward_response_deficit": "on forward trajectories"}, axes
    )
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    axes.set_ylim(-1.0, 1.05)
    axes.set_ylabel("response deficit")
    title(axes.set_title, ds, "Response deficit: it rises where states commit")
    return figure


def order_parameter(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Susceptibility and Binder cumulant of the site mean over levels."""
    ds = averaged(ds)
    figure, axes = figure_of(axes)
    s = ds["level"].values
    style: dict[str, Any] = {"linewidth": 1, "capsize": 2}
    axes.errorbar(s, ds["chi"], ds["chi_stderr"], color=MEASURED, label="susceptibility", **style)
    axes.set(yscale="log", ylabel="susceptibility N(<m²> - <|m|>²)")
    right = axes.twinx()
    right.errorbar(s, ds["binder"], ds["binder_stderr"], color=OTHERS[0], **style)
    right.set_ylabel("Binder cumulant 1 - <m⁴>/(3<m²>²)", color=OTHERS[0])
    axes.plot([], [], color=OTHERS[0], label="Binder cumulant")
    mark_levels(axes, ds)
    level_axis(axes, s)
    title(axes.set_title, ds, "Order parameter: the site mean")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.12, 1.0), frameon=False)
    return figure


def states(ds: xr.Dataset, axes: Any = None) -> Figure:
    """First trajectory from noise to pattern: the state, each level on its own scale, above its denoised image.

    Three channels or more are drawn in colours, the first three; states on a line as lines, one a channel.

    ``axes``, where they are given, are an array (2, strip levels) of them, as ``figure.subplots`` makes it.
    """
    n = ds.sizes["strip_level"]
    if axes is None:
        need("matplotlib", "drawing a figure")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1.5 * n, 3.8), layout="constrained")
        panels = figure.subplots(2, n, squeeze=False)
    else:
        panels = np.asarray(axes)
        if panels.shape != (2, n):
            raise ValueError(f"axes: expected an array (2, {n}) of them, got {panels.shape}")
        figure = panels[0, 0].figure.figure
    limit = float(np.abs(ds["denoised"].values).max())
    for j in range(n):
        y, D = (ds[name].values[j, 0] for name in ("states", "denoised"))
        if "y" not in ds["states"].dims:
            panels[0, j].plot(y.T, linewidth=1)
            panels[1, j].plot(D.T, linewidth=1)
            panels[1, j].set_ylim(-limit, limit)
        else:
            y, D = _picture(y), _picture(D)
            panels[0, j].imshow((y - y.min()) / (np.ptp(y) or 1.0), cmap="gray")
            panels[1, j].imshow((D + limit) / (2 * limit), cmap="gray", vmin=0, vmax=1)
        panels[0, j].set_title(f"s = {float(ds['strip_level'][j]):.3g}", fontsize="small")
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    panels[0, 0].set_ylabel("state y")
    panels[1, 0].set_ylabel("denoised D")
    scales = f"states, each on its own scale; denoised images from {-limit:.2g} to {limit:.2g}"
    if axes is None:
        title(figure.suptitle, ds, f"One trajectory: {scales}")
    return figure


def alignment(ds: xr.Dataset, axes: Axes | None = None) -> Figure:
    """Alignment of pulses over their level, with what the other arms reach; below, where the class is decided.

    Into ``axes``, where they are given, goes the first of the two alone.
    """
    decided = axes is None and "retained" in ds
    if decided:
        need("matplotlib", "drawing a figure")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 6.6), layout="constrained")
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    else:
        figure, top = figure_of(axes)
    n = ds.sizes["sample"]
    arms = {str(name): i for i, name in enumerate(ds["arm"].values)}
    value = ds["top1"].values.mean(axis=1)
    error = ds["top1"].values.std(axis=1, ddof=1) / np.sqrt(n)
    pulses = pulses_of(ds)
    for role, style in (("sweep", {"fmt": "o-"}), ("random", {"fmt": "x", "zorder": 1})):
        at = [arms[f"pulse {i}"] for i in pulses[role]]
        colour = MEASURED if role == "sweep" else "0.45"
        top.errorbar(
            ds["center"].values[at], value[at], error[at], color=colour, label=f"pulses, {role}", linewidth=1,
            capsize=2, **style,
        )  # fmt: skip
    plain = [name for name in arms if not name.startswith("pulse ")]
    for name, colour, dash in zip(plain, (*OTHERS[:4], THEORY), ("-", ":", "--", "-.", "-"), strict=True):
        top.axhline(value[arms[name]], color=colour, linewidth=1, linestyle=dash, label=name)
    top.set_ylabel("share of samples with their class")
    if decided:
        _decision(ds, below)
    panels = (top, below) if decided else (top,)
    for panel in panels:
        panel.spines["top"].set_visible(False)
        for name, found in carried_levels(ds).items():
            panel.axvspan(found["low"], found["high"], color="0.9", linewidth=0, zorder=0)
            label = f"{name}: {found['level']:.2f}" if panel is top else None
            panel.axvline(
                found["level"], color="0.3", linewidth=1, linestyle=SIGNATURE_STYLE[name.split()[0]], label=label
            )
        panel.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.12, 1.0), frameon=False)
    level_axis(panels[-1], ds["level"].values if decided else ds["center"].dropna("arm").values)
    if decided:
        title(figure.suptitle, ds, "Where guidance works, and where the class is decided")
    else:
        title(top.set_title, ds, "Where guidance works")
    return figure


def _decision(ds: xr.Dataset, axes: Axes) -> None:
    """Class-entropy rate, and the share of images that keep their class."""
    axes.plot(ds["level"], ds["entropy_rate"], color=MEASURED, label="class-entropy rate")
    axes.fill_between(ds["level"], ds["entropy_rate_low"], ds["entropy_rate_high"], color=MEASURED, alpha=0.2)
    axes.set_ylabel("nats per unit of log s")
    right = axes.twinx()
    kept = ds["retained"].values
    bars = np.abs(np.stack([ds["retained_low"].values, ds["retained_high"].values]) - kept)
    right.errorbar(ds["back_level"], kept, bars, color=OTHERS[0], linewidth=1, capsize=2)
    right.set(ylabel="share that keeps its class", ylim=(0, 1.05))
    right.yaxis.label.set_color(OTHERS[0])
    axes.plot([], [], color=OTHERS[0], label="noised and denoised: class kept")


def save_figures(ds: xr.Dataset, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every figure that ``ds`` has the data for to ``folder`` as PNG and SVG; returns the paths."""
    matplotlib = need("matplotlib", "drawing a figure")
    paths = []
    # Without these the SVG would differ from run to run in its identifiers and its date.
    with matplotlib.rc_context({"svg.hashsalt": "fastcrit"}):
        for name, (drawable, draw) in _FIGURES.items():
            if not drawable(ds):
                continue
            figure = draw(ds)
            for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
                path = Path(folder) / f"{name}{suffix}"
                figure.savefig(path, **options)
                paths.append(path)
    return paths


def _picture(field: Any) -> Any:
    """Grey (y, x), or the first three channels as colours (y, x, 3)."""
    if field.ndim == 2:
        return field
    return np.moveaxis(field[:3], 0, -1) if len(field) >= 3 else field[0]


def _shells_over_levels(
    ds: xr.Dataset, name: str, references: dict[str, str], axes: Axes | None
) -> tuple[Figure, Axes]:
    """Curves of a few shells over the levels, in dashes and dots the references, and the critical levels."""
    figure, axes = figure_of(axes)
    s = ds["level"].values
    taken = with_gains(ds)
    styles = zip(references, ("--", ":", (0, (1, 4))), strict=False)
    lines = {reference: style for reference, style in styles if reference in ds}
    shown = [j for j in range(ds.sizes["shell"]) if j in (0, 3, 5)]
    for colour, j in zip((MEASURED, *OTHERS), shown, strict=False):
        value = ds[name].values[taken, j]
        error = ds[f"{name}_stderr"].values[taken, j] if f"{name}_stderr" in ds else None  # a theory's has none
        label = f"on trajectories, k = {float(ds['shell_k'][j]):.2f} rad/site"
        axes.errorbar(s[taken], value, error, color=colour, label=label, linewidth=1, capsize=2)
        for reference, style in lines.items():
            axes.plot(s[taken], where_valid(ds, reference)[taken, j], color=colour, linestyle=style, linewidth=1)
    for reference, style in lines.items():
        axes.plot([], [], color="0.3", linestyle=style, label=references[reference])
    mark_levels(axes, ds)
    level_axis(axes, s)
    legend(axes)
    return figure, axes


def _top(values: Any, usual: float) -> float:
    """End of an axis: the usual one, or where the data need it."""
    return max(usual, 1.1 * float(np.nanmax(values, initial=usual)))


# What `save_figures` writes, by the files' names: whether a dataset has the data for it, and what draws it.
_FIGURES: dict[str, tuple[Callable[[xr.Dataset], bool], Callable[[xr.Dataset], Figure]]] = {
    "structure_factors": (has("S"), structure_factors),
    "lengths": (has("S"), lengths),
    "alignment": (is_guidance, alignment),
    "drift_rates": (has_gains, drift_rates),
    "gains": (has_gains, gains),
    "softening": (has_gains, softening),
    "order_parameter": (has("chi"), order_parameter),
    "response_deficit": (has("response_deficit"), deficits),
    "locality": (has("locality_gap"), locality),
    "states": (has("states"), states),
}
