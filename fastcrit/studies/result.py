"""What a finished study says of itself: its configuration, its critical levels, and their table."""

from __future__ import annotations

from typing import Any

import xarray as xr

from fastcrit._edge.plain import strict_json
from fastcrit._estimates.attributes import growth_by_log_t
from fastcrit.critical import CLOCKS, GROWTHS, INSTABILITY, Signature, critical_point, stored_critical_point
from fastcrit.schedules import OrnsteinUhlenbeck

# Width of the first column of a study's table.
NAME = 26


def probing(probes: int, waves: int | None) -> dict[str, Any]:
    """Arguments of `mode_response` that say how a study of a network takes gains.

    Examples
    --------
    >>> from fastcrit.studies.result import probing
    >>> probing(1, None)
    {'probe': 'random_phase', 'probes': 1}
    """
    return {"probe": "random_phase", "probes": probes} if waves is None else {"probe": "waves", "waves": waves}


def find_critical(ds: xr.Dataset, seed: int) -> dict[str, str]:
    """Attributes of a study's dataset that hold its critical levels, of growth by both clocks."""
    again = critical_point(ds, clock=CLOCKS[1], seed=seed)
    return {
        "critical_point": critical_point(ds, seed=seed).to_json(),
        "growth_log_t": strict_json({name: vars(again[name]) for name in GROWTHS}),
    }


def signatures(ds: xr.Dataset) -> dict[str, Signature]:
    """All that a study looked for, by what its table calls them; growth by both clocks. Empty for other datasets."""
    found = stored_critical_point(ds)
    if found is None:
        return {}
    rows = {name: s for name, s in found.signatures.items() if name not in GROWTHS}
    log_t = growth_by_log_t(ds)
    for name in (name for name in GROWTHS if name in found.signatures):
        rows[f"{name} ({found[name].clock})" if found[name].clock else name] = found[name]
        if name in log_t:
            again = Signature.from_dict(log_t[name])
            rows[f"{name} ({again.clock})"] = again
    return rows


def table(ds: xr.Dataset) -> list[str]:
    """A line for every signature: level, interval, time, or why there is none; below instability, Gaussian data's."""
    lines = []
    for name, s in signatures(ds).items():
        label = s.kind if s.kind and s.kind != INSTABILITY else name
        if s.level > 0:
            about = f"  {s.reason or _about(s)}" if s.reason or _about(s) else ""
            lines.append(f"{row(label, s.level, f'[{s.low:.3f}, {s.high:.3f}]')}{about}")
        else:
            lines.append(f"{label:{NAME}}{s.reason if not s.recorded else f'no transition: {s.reason}'}")
        if s.gaussian > 0:
            beside = f"[{s.gaussian_low:.3f}, {s.gaussian_high:.3f}]"
            lines.append(row("  Gaussian, same spectrum", s.gaussian, beside))
        elif s.gaussian == 0:
            lines.append(f"{'  Gaussian, same spectrum':{NAME}}never unstable")
    return lines


def _about(s: Signature) -> str:
    if s.kind and s.kind != INSTABILITY:
        return f"largest drift rate {s.depth:.3f} [{s.depth_low:.3f}, {s.depth_high:.3f}]: {s.crossing}"
    return f"shell {s.shell}" if s.shell else ""


def row(label: str, level: float, interval: str) -> str:
    """A line of the table, with the time that belongs to a level."""
    return f"{label:{NAME}}{level:12.4f}   {interval:<20}{float(OrnsteinUhlenbeck().t(level)):14.4f}"


def header() -> str:
    """The line above the table."""
    return f"{'':{NAME}}{'noise level s':>12}   {'95 % interval':<20}{'t = log(1+s²)':>14}"
