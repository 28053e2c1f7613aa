"""What a study says of locality: when context matters, when the class is decided, and where the drift is critical."""

from __future__ import annotations

import textwrap

import numpy as np
import xarray as xr

from fastcrit._estimates.attributes import config_of
from fastcrit._estimates.level_peak import LevelPeak, peaks_of
from fastcrit.critical import INSTABILITY, stored_critical_point
from fastcrit.studies.locality import biased_below

_NOTHING = (
    "Of locality nothing was measured: in no chunk were two samples or more drawn for it. Raise gain_share, or chunk."
)


def sentences(ds: xr.Dataset) -> list[str]:
    """Sentences with numbers and intervals; none for a run without locality, one where no image was drawn."""
    peaks = peaks_of(ds)
    if "gap" not in peaks:
        return [_NOTHING] if config_of(ds).get("locality") else []
    gap, radius = peaks["gap"], int(ds["radius"][ds.sizes["radius"] // 2])
    side = " x ".join([str(2 * radius + 1)] * len(np.atleast_1d(ds.attrs["lattice"])))
    if gap.found:
        said = [
            f"Context matters most at noise level s = {_interval(gap)}: there a window of {side} sites changes the "
            f"denoised image by {np.sqrt(gap.value):.3g} a site (root mean square), and by half of that in the square "
            f"or more from s = {gap.high:.2f} to {gap.low:.2f}."
        ]
    else:
        said = [f"At no level does what a window of {side} sites loses stand out."]
    said += _gaussian(ds)
    if "class" not in peaks:
        return said + _drift(ds, {"context matters": gap})
    rate = peaks["class"]
    if rate.found:
        said.append(
            f"The class is decided fastest at s = {_interval(rate)}, {rate.value:.2f} +- {rate.stderr:.2f} nats per "
            f"unit of log s, and at half of that or more from s = {rate.high:.2f} to {rate.low:.2f}."
        )
    else:
        said.append("At no level does the rate at which the class is decided stand out.")
    if gap.found and rate.found:
        said.append(_together(gap, rate))
    said += _drift(ds, {"context matters": gap, "the class is decided": rate})
    above = biased_below(ds)
    if np.isfinite(above):
        said.append(
            f"From s = {above:.2f} down more than the {ds.attrs['class_entropy']:.2f} nats that there are seem to be "
            "known of the class: the network's own error, which the rate holds there."
        )
    return said


def lines_of_locality(ds: xr.Dataset) -> list[str]:
    """The sentences as the end of a table; none for a run without locality."""
    said = sentences(ds)
    return ["", *(line for text in said for line in textwrap.wrap(text, 110, subsequent_indent="  "))] if said else []


def rows_of_locality(datasets: dict[str, xr.Dataset]) -> list[str]:
    """Rows of a table of several runs: levels at which a window loses most, and the class is decided fastest."""
    each = [peaks_of(ds) for ds in datasets.values()]
    rows = []
    for name, label in (("gap", "context matters"), ("class", "class is decided")):
        if any(name in peaks for peaks in each):
            cells = (
                f"{p.level:.3f} [{p.level_low:.3f}, {p.level_high:.3f}]" if (p := peaks.get(name)) and p.found else "-"
                for peaks in each
            )
            rows.append(f"{label:24}" + "".join(f"{cell:>24}" for cell in cells))
    return rows


def _gaussian(ds: xr.Dataset) -> list[str]:
    """Where Gaussian data of the spectrum would lose most, and how much: what correlations alone explain."""
    if "locality_gap_gaussian" not in ds:
        return []
    gap = ds["locality_gap_gaussian"].values[:, ds.sizes["radius"] // 2]
    top = int(gap.argmax())
    return [
        f"Gaussian data of the same spectrum would lose most, {np.sqrt(gap[top]):.3g} a site, at s = "
        f"{float(ds['level'][top]):.2f}."
    ]


def _together(gap: LevelPeak, rate: LevelPeak) -> str:
    if not gap.overlaps(rate):
        return "The two windows do not overlap: what context decides is not the class."
    inside = rate.low <= gap.low and gap.high <= rate.high
    within = max(gap.level_low, rate.level_low) <= min(gap.level_high, rate.level_high)
    how = "The first window lies inside the second" if inside else "The two windows overlap"
    return f"{how}, and the intervals of their peaks {'overlap' if within else 'do not'}."


def _drift(ds: xr.Dataset, peaks: dict[str, LevelPeak]) -> list[str]:
    """Where the drift's critical level lies, of what was found; nothing where no window was."""
    stored = stored_critical_point(ds)
    found = stored.signatures.get(INSTABILITY) if stored else None
    windows = {name: peak for name, peak in peaks.items() if peak.found}
    if found is None or not found.level > 0 or not windows:
        return []
    inside = [name for name, peak in windows.items() if peak.low <= found.level <= peak.high]
    what = "is weakest" if found.kind != INSTABILITY else "loses its stability"
    outside = "outside both" if len(windows) > 1 else f"outside the levels where {next(iter(windows))}"
    where = f"where {' and where '.join(inside)}" if inside else outside
    return [f"The reverse drift {what} at s = {found.level:.2f}, {where}."]


def _interval(peak: LevelPeak) -> str:
    return f"{peak.level:.2f} [{peak.level_low:.2f}, {peak.level_high:.2f}]"
