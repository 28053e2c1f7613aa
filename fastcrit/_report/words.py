"""What a run found, in words and rows that its dataset's numbers give."""

from __future__ import annotations

import json
import re

import numpy as np
import xarray as xr

from fastcrit.critical import NOT_RECORDED, SIGNATURES
from fastcrit.schedules import OrnsteinUhlenbeck

_WHAT = {
    "softening": "modes are softest",
    "xi_eq": "the equilibrium correlation length is largest",
    "growth": "the correlation length of the states grows fastest",
    "susceptibility": "the site mean fluctuates most",
}


def verdict(ds: xr.Dataset) -> list[str]:
    """Sentences with numbers and intervals, the main one first."""
    if "verdict" in ds.attrs:
        said = re.split(r"(?<=\.) (?=At the level|Of the sweep|The study found)", ds.attrs["verdict"])
        # What the experiment asks comes first: a pulse at a critical level against random ones.
        return sorted(said, key=lambda sentence: not sentence.startswith("At the level"))
    critical = json.loads(ds.attrs.get("critical_point", "{}"))
    found = {name: s for name, s in critical.items() if not s["reason"]}
    lead = found.get("softening") or next(iter(found.values()), None)
    if lead:
        said = [
            f"On trajectories {_WHAT[lead['name']]} at noise level s = {lead['level']:.2f} (95 % interval "
            f"{lead['low']:.2f} to {lead['high']:.2f})."
        ]
        said += [f"{_sentence(_WHAT[s['name']])} at s = {_interval(s)}." for s in found.values() if s is not lead]
    else:
        said = ["No transition: no signature has an interior extremum that stands out of the noise."]
    none = [f"{name} ({s['reason']})" for name, s in critical.items() if s["reason"] not in ("", NOT_RECORDED)]
    if found and none:
        said.append(f"No transition shows in {' or in '.join(none)}.")
    if len(found) > 1:
        levels = [s["level"] for s in found.values()]
        together = max(s["low"] for s in found.values()) <= min(s["high"] for s in found.values())
        said.append(
            f"The levels found lie within a factor of {max(levels) / min(levels):.2f}, and their intervals "
            f"{'overlap' if together else 'do not all overlap'}."
        )
    if "theory_critical_level" in ds.attrs:
        s = ds.attrs["theory_critical_level"]
        said.append(
            f"Theory puts the loss of stability of the homogeneous state at s = {s:.3f}, time {_time(s):.3f} of an "
            "Ornstein-Uhlenbeck process: another question, since on trajectories the gain only comes close to 1."
        )
    elif "theory_no_transition" in ds.attrs:
        said.append(f"Theory has no transition either: {ds.attrs['theory_no_transition']}.")
    if "forward_response_deficit" in ds:
        from fastcrit.studies.fashion_mnist import violations

        total = 2 * int((ds["n_gains"] > 0).sum()) * ds.sizes["shell"]
        said.append(
            f"{len(violations(ds))} of {total} gains exceed the Gaussian bound by more than two standard errors, which "
            "an exact denoiser's never do."
        )
    return said


def comparison(runs: dict[str, xr.Dataset]) -> list[str]:
    """For every signature, where the runs have it and whether their intervals overlap; empty for a single run."""
    critical = [json.loads(ds.attrs["critical_point"]) for ds in runs.values() if "critical_point" in ds.attrs]
    if len(critical) < 2:
        return []
    said = []
    for name in SIGNATURES:
        found = [each[name] for each in critical if not each[name]["reason"]]
        if not found:
            said.append(f"{_sentence(name)}: no transition in any run.")
            continue
        levels = [s["level"] for s in found]
        text = f"{_sentence(name)}: in {len(found)} of {len(critical)} runs, at s = {min(levels):.2f}"
        if len(found) > 1:
            together = max(s["low"] for s in found) <= min(s["high"] for s in found)
            text += f" to {max(levels):.2f}; their 95 % intervals {'all' if together else 'do not all'} overlap"
        said.append(f"{text}.")
    return said


def critical_rows(ds: xr.Dataset) -> list[dict[str, str]]:
    """Rows of the table of critical levels: name, level, interval, time, and what it is or why there is none."""
    rows = []
    if "theory_critical_level" in ds.attrs:
        s, k = ds.attrs["theory_critical_level"], ds.attrs["theory_critical_mode"]
        where = "k = 0" if not any(k) else f"k = ({', '.join(f'{x:.3f}' for x in k)})"
        about = f"the homogeneous state loses its stability at {where}"
        rows.append(
            {"name": "theory", "level": f"{s:.3f}", "interval": "exact", "time": f"{_time(s):.3f}", "about": about}
        )
    # A guidance experiment carries only those that its study found.
    found = json.loads(ds.attrs.get("critical_point", ds.attrs.get("critical", "{}")))
    for name in (name for name in SIGNATURES if name in found):
        s = found[name]
        if reason := s.get("reason"):
            about = reason if reason == NOT_RECORDED else f"no transition: {reason}"
            rows.append({"name": name, "level": "–", "interval": "–", "time": "–", "about": about})
        else:
            interval = f"[{s['low']:.3f}, {s['high']:.3f}]"
            row = {"name": name, "level": f"{s['level']:.3f}", "interval": interval, "time": f"{_time(s['level']):.3f}"}
            rows.append({**row, "about": _WHAT[name]})
    return rows


def facts(ds: xr.Dataset) -> list[str]:
    """The run at a glance."""
    config = json.loads(ds.attrs.get("config", "{}"))
    said = []
    if "top1" in ds:
        said.append(f"{ds.sizes['sample']} samples in each of {ds.sizes['arm']} arms")
    if "n_samples" in ds.coords:
        said.append(f"{int(ds['n_samples'].max())} trajectories")
    if "lattice" in ds.attrs:
        said.append(" × ".join(str(int(n)) for n in np.atleast_1d(ds.attrs["lattice"])) + " sites")
    if "level" in ds:
        high, low = float(ds["level"].max()), float(ds["level"].min())
        said.append(f"{ds.sizes['level']} noise levels from {high:g} to {low:g}")
    return [*said, *(f"{key} {config[key]}" for key in ("solver", "seed") if key in config)]


def _interval(s: dict[str, float]) -> str:
    return f"{s['level']:.2f} [{s['low']:.2f}, {s['high']:.2f}]"


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _time(s: float) -> float:
    return float(OrnsteinUhlenbeck().t(s))
