"""What is said of a patch study: predicted against measured critical levels."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fastcrit._estimates.attributes import config_of
from fastcrit.studies import result

# What is said of a theory without a zero: by whether it is valid at every level.
_WITHOUT_ZERO = {True: "no instability at any level", False: "no level: it stops being valid before the drift turns"}


def summary(ds: xr.Dataset) -> str:
    """The table of a finished study: predicted against measured critical levels."""
    config = config_of(ds)
    lines = [
        f"{ds.attrs['title']}; periodic lattice of {config['lattice']} x {config['lattice']}; "
        f"{int(ds['n_samples'].max())} samples, {config['solver']}, seed {config['seed']}",
        "",
        result.header(),
    ]
    if "theory_instability_level" in ds.attrs:
        lines.append(result.row("theory (trajectories)", ds.attrs["theory_instability_level"], "self-consistent"))
    else:
        lines.append(f"{'theory (trajectories)':{result.NAME}}{_WITHOUT_ZERO[bool(ds['theory_valid'].values.all())]}")
    if "theory_critical_level" in ds.attrs:
        k = ds.attrs["theory_critical_mode"]
        where = "k = 0" if not any(k) else f"k = ({k[0]:.3f}, {k[1]:.3f})"
        lines.append(result.row("theory (symmetric point)", ds.attrs["theory_critical_level"], where))
    else:
        lines.append(f"{'theory (symmetric point)':{result.NAME}}no transition: {ds.attrs['theory_no_transition']}")
    lines += [
        *result.table(ds),
        "",
        "instability: where the largest growth rate of the reverse drift becomes positive on trajectories (weakening:",
        "where it comes nearest), which theory's first line predicts. softening: where the score is least stiff.",
        "growth: where lengths grow fastest, by either clock. Theory's second line: where the gain at y = 0 is 1.",
    ]
    mean = ds.attrs["dictionary_mean"]
    if config["dictionary"] == "binary" and abs(mean) > 1e-9:
        lines.append(
            f"The patterns predict {mean:+.3g} on average: one sign is preferred, and lattices may end uniform."
        )
    if config["dictionary"] == "binary":
        n = config["size"]
        lines += [f"(The pair of uniform patterns alone: s = {n}, time log {1 + n * n} = {np.log1p(n * n):.4f}.)"]
    return "\n".join(lines)
