"""What a run found, in words and rows that its dataset's numbers give."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fastcrit._estimates.attributes import config_of, is_guidance, sentences_of
from fastcrit._estimates.extrema import WITHIN_NOISE
from fastcrit.critical import (
    INSTABILITY,
    SIGNATURES,
    UNSTABLE_FROM_START,
    WEAKENING,
    CriticalPoint,
    Signature,
    stored_critical_point,
)
from fastcrit.report.axes import levels_of
from fastcrit.schedules import OrnsteinUhlenbeck
from fastcrit.studies.guidance.verdict import AT_LEVELS
from fastcrit.studies.locality_words import sentences
from fastcrit.studies.result import signatures

_WHAT = {
    "instability": "the reverse drift loses its stability",
    "softening": "modes are softest",
    "xi_eq": "the equilibrium correlation length is largest",
    "growth": "the correlation length of the states grows fastest",
    "growth_denoised": "the correlation length of the denoised images grows fastest",
    "susceptibility": "the site mean fluctuates most",
}


def verdict(ds: xr.Dataset) -> list[str]:
    """Sentences with numbers and intervals, the main one first."""
    if by_role := sentences_of(ds):
        # What the experiment asks comes first: a pulse at a critical level against random ones.
        return [text for _, text in sorted(by_role, key=lambda sentence: sentence[0] != AT_LEVELS)]
    stored = stored_critical_point(ds) or CriticalPoint({}, 0.95)
    found = stored.found
    others = [s for s in found.values() if s.name != INSTABILITY]
    said = []
    if INSTABILITY in stored.signatures and stored[INSTABILITY].recorded:
        said += _drift(ds, stored[INSTABILITY])
    if others:
        before = f"On trajectories {_WHAT[others[0].name]}" if not said else _sentence(_WHAT[others[0].name])
        said.append(
            f"{before} at noise level s = {others[0].level:.2f} (95 % interval {others[0].low:.2f} to "
            f"{others[0].high:.2f})."
        )
        said += [f"{_sentence(_WHAT[s.name])} at s = {_interval(s)}{_by_clock(s)}." for s in others[1:]]
    if not found:
        said.append("No transition: no signature has an interior extremum that stands out of the noise.")
    none = [f"{s.name} ({s.reason})" for s in stored.signatures.values() if not s.found and s.recorded]
    if found and none:
        said.append(f"No transition shows in {' or in '.join(none)}.")
    if len(found) > 1:
        together = max(s.low for s in found.values()) <= min(s.high for s in found.values())
        said.append(
            f"The levels found lie within a factor of {stored.spread:.2f}, and their intervals "
            f"{'overlap' if together else 'do not all overlap'}."
        )
    if "theory_critical_level" in ds.attrs:
        s = ds.attrs["theory_critical_level"]
        said.append(
            f"At the symmetric point y = 0 theory has the score of the homogeneous state unstable from s = {s:.3f} on, "
            f"time {_time(s):.3f}; on trajectories the gain only comes close to 1."
        )
    elif "theory_no_transition" in ds.attrs:
        said.append(f"Theory has no transition either: {ds.attrs['theory_no_transition']}.")
    if "forward_response_deficit" in ds:
        from fastcrit.studies.fashion_mnist.words import violations

        total = 2 * int((ds["n_gains"] > 0).sum()) * ds.sizes["shell"]
        said.append(
            f"{len(violations(ds))} of {total} gains exceed the Gaussian bound by more than two standard errors; noise "
            f"alone would lift some {0.023 * total:.0f} of an exact denoiser's."
        )
    return said + sentences(ds)


def _drift(ds: xr.Dataset, s: Signature) -> list[str]:
    """What became of the reverse drift, what theory says, and what Gaussian data would do."""
    if s.kind == WEAKENING:
        said = [
            f"The reverse drift weakens at noise level s = {_interval(s)}, {s.crossing}: its largest growth rate there "
            f"is {s.depth:.3f} [{s.depth_low:.3f}, {s.depth_high:.3f}], against −0.5 under noise alone."
        ]
    elif s.kind == INSTABILITY:
        said = [
            f"The reverse drift loses its stability at noise level s = {s.level:.3f} (95 % interval {s.low:.3f} to "
            f"{s.high:.3f}), Ornstein-Uhlenbeck time {_time(s.level):.3f}."
        ]
    elif s.reason == UNSTABLE_FROM_START:
        said = [
            "The reverse drift is unstable already at the highest recorded level: its zero lies above, start higher."
        ]
    else:
        why = "its largest rate does not stand out of the noise" if s.reason == WITHIN_NOISE else s.reason
        said = [f"The reverse drift shows neither an instability nor a weakening: {why}."]
    if "theory_instability_level" in ds.attrs:
        predicted = ds.attrs["theory_instability_level"]
        apart = f", {100 * abs(predicted / s.level - 1):.1f} % away" if s.level > 0 else ""
        said.append(f"The self-consistent theory predicts s = {predicted:.3f}, time {_time(predicted):.3f}{apart}.")
    elif "theory_valid" in ds:
        valid = bool(ds["theory_valid"].values.all())
        said.append(
            "The self-consistent theory has no instability at any level either."
            if valid
            else "The self-consistent theory stops being valid before the drift turns, and says so."
        )
    if s.gaussian > 0:
        beside = f"{s.gaussian:.2f} [{s.gaussian_low:.2f}, {s.gaussian_high:.2f}]"
        compared = (
            f", {max(s.gaussian / s.level, s.level / s.gaussian):.2f} times as "
            f"{'high' if s.gaussian > s.level else 'low'}"
            if s.level > 0
            else ""
        )
        same = ": an instability that is no evidence of a transition" if s.kind == INSTABILITY and not s.found else ""
        said.append(f"Gaussian data of the same spectrum would lose their stability at s = {beside}{compared}{same}.")
    elif s.gaussian == 0 and s.kind:
        said.append("Gaussian data of the same spectrum would keep their stability at every level.")
    return said


def _by_clock(s: Signature) -> str:
    return f" by the clock {s.clock}" if s.clock else ""


def comparison(runs: dict[str, xr.Dataset]) -> list[str]:
    """For every signature, where the runs have it and whether their intervals overlap; empty for a single run."""
    critical = [stored for ds in runs.values() if (stored := stored_critical_point(ds))]
    if len(critical) < 2:
        return []
    said = []
    for name in (n for n in SIGNATURES if any(n in each.signatures for each in critical)):
        found = [each.found[name] for each in critical if name in each.found]
        if not found:
            said.append(f"{_sentence(name)}: no transition in any run.")
            continue
        levels = [s.level for s in found]
        text = f"{_sentence(name)}: in {len(found)} of {len(critical)} runs, at s = {min(levels):.2f}"
        if len(found) > 1:
            together = max(s.low for s in found) <= min(s.high for s in found)
            text += f" to {max(levels):.2f}; their 95 % intervals {'all' if together else 'do not all'} overlap"
        weak = sum(s.kind == WEAKENING for s in found)
        said.append(f"{text}{f' ({weak} of them weaken only)' if weak else ''}.")
    return said


def critical_rows(ds: xr.Dataset) -> list[dict[str, str]]:
    """Rows of the table of critical levels: name, level, interval, time, and what it is or why there is none."""
    rows = []
    if "theory_instability_level" in ds.attrs:
        s = ds.attrs["theory_instability_level"]
        about = "self-consistent: the drift loses its stability on trajectories"
        rows.append(_row("theory, trajectories", s, "deterministic", about))
    if "theory_critical_level" in ds.attrs:
        s, k = ds.attrs["theory_critical_level"], ds.attrs["theory_critical_mode"]
        where = "k = 0" if not any(k) else f"k = ({', '.join(f'{x:.3f}' for x in k)})"
        about = f"the score of the homogeneous state loses its stability at {where}"
        rows.append(_row("theory, y = 0", s, "exact", about))
    # A guidance experiment carries only those that its study found.
    if "critical" in ds.attrs:
        for name, (level, low, high) in levels_of(ds).items():
            about = _WHAT.get(name.split()[0], "the reverse drift is weakest")
            rows.append(_row(name, level, f"[{low:.3f}, {high:.3f}]", about))
        return rows
    for name, s in signatures(ds).items():
        if not s.level > 0:
            about = f"no level: {s.reason}" if s.reason == UNSTABLE_FROM_START else f"no transition: {s.reason}"
            about = about if s.recorded else s.reason
            rows.append({"name": name, "level": "–", "interval": "–", "time": "–", "about": about})
        else:
            weak = s.kind == WEAKENING
            about = f"the reverse drift is weakest: rate {s.depth:.3f}, {s.crossing}" if weak else _WHAT[s.name]
            about += f"; {s.reason}" if s.reason else ""
            rows.append(_row(s.kind or name, s.level, f"[{s.low:.3f}, {s.high:.3f}]", about))
        if s.gaussian > 0:
            beside = f"[{s.gaussian_low:.3f}, {s.gaussian_high:.3f}]"
            rows.append(_row("Gaussian data", s.gaussian, beside, "of the same spectrum, would lose their stability"))
    return rows


def _row(name: str, level: float, interval: str, about: str) -> dict[str, str]:
    return {"name": name, "level": f"{level:.3f}", "interval": interval, "time": f"{_time(level):.3f}", "about": about}


def facts(ds: xr.Dataset) -> list[str]:
    """The run at a glance."""
    config = config_of(ds)
    said = []
    if is_guidance(ds):
        said.append(f"{ds.sizes['sample']} samples in each of {ds.sizes['arm']} arms")
    if "prompts" in config:
        n = len(config["prompts"])
        said.append(f"{n} prompt{'s' * (n > 1)}")
    if "n_samples" in ds.coords:
        said.append(f"{int(ds['n_samples'].max())} trajectories")
    if "lattice" in ds.attrs:
        said.append(" × ".join(str(int(n)) for n in np.atleast_1d(ds.attrs["lattice"])) + " sites")
    if "level" in ds:
        high, low = float(ds["level"].max()), float(ds["level"].min())
        said.append(f"{ds.sizes['level']} noise levels from {high:g} to {low:g}")
    return [*said, *(f"{key} {config[key]}" for key in ("solver", "seed") if key in config)]


def _interval(s: Signature) -> str:
    return f"{s.level:.2f} [{s.low:.2f}, {s.high:.2f}]"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _time(s: float) -> float:
    return float(OrnsteinUhlenbeck().t(s))
