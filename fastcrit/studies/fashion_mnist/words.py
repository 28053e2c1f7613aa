"""What is said of a network's run, and of several beside each other: tables, and gains above the bound."""

from __future__ import annotations

import itertools

import numpy as np
import xarray as xr

from fastcrit._estimates.attributes import config_of
from fastcrit.critical import INSTABILITY, WEAKENING, Signature
from fastcrit.studies import result
from fastcrit.studies.locality_words import lines_of_locality, rows_of_locality

DIRECTIONS = ("reverse", "forward")
# A gain this many standard errors above the bound is listed.
_VIOLATION = 2.0


def violations(ds: xr.Dataset) -> list[str]:
    """Levels and shells at which a measured gain exceeds the Gaussian bound by more than its error allows."""
    found = []
    for direction, i, j in _exceeding(ds):
        prefix = "" if direction == "reverse" else "forward_"
        bound, error = ds["gaussian_bound"].values[i, j], ds[f"{prefix}response_deficit_stderr"].values[i, j]
        found.append(
            f"{direction:<8} s = {float(ds['level'][i]):8.3f}  shell {int(ds['shell'][j])}: gain "
            f"{ds[f'{prefix}gain_on_trajectories'].values[i, j]:.4f} +- {error * bound:.4f}, bound {bound:.4f}"
        )
    return found


def _exceeding(ds: xr.Dataset) -> list[tuple[str, int, int]]:
    """Direction, level and column of each of them."""
    found = []
    for direction in DIRECTIONS:
        prefix = "" if direction == "reverse" else "forward_"
        deficit, error = (ds[f"{prefix}response_deficit{e}"].values for e in ("", "_stderr"))
        found += [(direction, int(i), int(j)) for i, j in np.argwhere(deficit < -_VIOLATION * error)]
    return found


def _violation_lines(ds: xr.Dataset) -> list[str]:
    """A line for each direction and level: which shells, and the gain that exceeds its bound by most."""
    lines = []
    for (direction, i), group in itertools.groupby(_exceeding(ds), lambda each: each[:2]):
        columns = [j for _, _, j in group]
        gain = ds["gain_on_trajectories" if direction == "reverse" else "forward_gain_on_trajectories"].values[i]
        bound = ds["gaussian_bound"].values[i]
        most = max(columns, key=lambda j: gain[j] - bound[j])
        shells = ", ".join(str(int(ds["shell"][j])) for j in columns)
        lines.append(
            f"{direction:<8} s = {float(ds['level'][i]):8.3f}  gain {gain[most]:.4f}, bound {bound[most]:.4f} in shell "
            f"{int(ds['shell'][most])}; shells {shells}"
        )
    return lines


def summary(ds: xr.Dataset) -> str:
    """The table of a finished study: signatures, the softest mode, where the bound is exceeded."""
    config = config_of(ds)
    n = int(ds["n_samples"].max())
    lines = [
        f"{ds.attrs['title']}; {n} trajectories each way, {config['levels']} levels, {config['solver']}, seed "
        f"{config['seed']}; gains of {int(ds['n_gains'].max())} states at {int((ds['n_gains'] > 0).sum())} levels",
        "",
        result.header(),
        *result.table(ds),
    ]
    measured = np.flatnonzero(ds["n_gains"].values > 0)
    above = violations(ds)
    total = 2 * len(measured) * ds.sizes["shell"]
    lines += [
        "",
        f"Gains above the Gaussian bound by more than {_VIOLATION:g} standard errors: {len(above)} of {total}",
        "(errors of both; where response is Gaussian, noise alone does that at 2 in 100):",
        *_violation_lines(ds),
    ]
    return "\n".join([*lines, *lines_of_locality(ds)])


def compare(datasets: dict[str, xr.Dataset]) -> str:
    """Signatures of several networks side by side, and by how much intervals that do not overlap lie apart."""
    found = {name: result.signatures(ds) for name, ds in datasets.items()}
    lines = [f"{'':24}" + "".join(f"{name:>24}" for name in found)]
    apart = []
    for signature in next(iter(found.values())):
        row = f"{signature:24}"
        for each in found.values():
            s = each[signature]
            cell = f"{s.level:.3f} [{s.low:.3f}, {s.high:.3f}]" if s.found else "no transition"
            row += f"{cell:>24}"
        lines.append(row)
        there = {name: each[signature] for name, each in found.items() if each[signature].found}
        if signature == INSTABILITY:
            lines += _beside_instability(found)
        names = list(there)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                gap = max(there[a].low, there[b].low) / min(there[a].high, there[b].high)
                if gap > 1:
                    apart.append(f"{signature}: the intervals of {a} and {b} lie {100 * (gap - 1):.1f} % apart in s")
    lines += rows_of_locality(datasets)
    return "\n".join([*lines, "", *(apart or ["All intervals overlap."])])


def _beside_instability(found: dict[str, dict[str, Signature]]) -> list[str]:
    """Rows below that of the drift: what kind, how deep, and what Gaussian data would do."""
    each = [s[INSTABILITY] for s in found.values()]
    kinds = "".join(f"{s.kind or '-':>24}" for s in each)
    depths = "".join(
        f"{f'{s.depth:.3f} [{s.depth_low:.3f}, {s.depth_high:.3f}]' if s.kind == WEAKENING else '-':>24}" for s in each
    )
    gaussian = "".join(
        f"{f'{s.gaussian:.3f} [{s.gaussian_low:.3f}, {s.gaussian_high:.3f}]' if s.gaussian > 0 else 'never':>24}"
        for s in each
    )
    return [f"{'  kind':24}{kinds}", f"{'  largest drift rate':24}{depths}", f"{'  Gaussian data':24}{gaussian}"]
