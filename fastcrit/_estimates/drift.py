"""What follows from the gains of a dataset: softening, rates of the reverse drift and the lengths that they imply."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from fastcrit._estimates.averages import errors_over_blocks
from fastcrit._estimates.dispersion import dispersion_length, drift_rate, softening_scale
from fastcrit._kernels.lattice import lattice


def with_drift(ds: xr.Dataset) -> xr.Dataset:
    """What follows from a dataset's gains, its levels and ``data_std``: softening, drift rates, both lengths, errors.

    A run of an older version gets it so, without being sampled again.
    """
    name = "gain_on_trajectories"
    complete = all(f"{name}{end}" in ds for end in ("", "_stderr", "_jackknife"))
    if "drift_rate" in ds or not complete or not {"data_std", "lattice", "spacing"} <= ds.attrs.keys():
        return ds
    gain, stderr, left = (ds[f"{name}{end}"].transpose(..., "level", "shell") for end in ("", "_stderr", "_jackknife"))
    s, std = ds["level"].values, float(ds.attrs["data_std"])
    scale = softening_scale(s, std)[:, None]
    dims, all_dims = gain.dims, left.dims
    data: dict[str, Any] = {
        "softening": (dims, (1 - gain.values) * scale, {"long_name": "-lambda_k = (1 - g_k)/sigma^2"}),
        "softening_stderr": (dims, stderr.values * scale),
        "softening_jackknife": (all_dims, (1 - left.values) * scale),
        "drift_rate": (
            dims, drift_rate(gain.values, s[:, None], std),
            {"long_name": "growth rate under the reverse drift, 1/2 - (1 - g_k)/sigma^2", "units": "1/time"},
        ),
        "drift_rate_stderr": (dims, stderr.values * scale),
        "drift_rate_jackknife": (all_dims, drift_rate(left.values, s[:, None], std)),
    }  # fmt: skip
    grid, shells = lattice(tuple(int(n) for n in np.atleast_1d(ds.attrs["lattice"]))), ds["shell"].values
    k2 = grid.shell_k2[shells]
    if len(k2) >= 2 and shells[0] == 0:
        spacing = float(ds.attrs["spacing"])
        recorded = np.isfinite(left.values).all(axis=2)
        for xi, of, about in (("xi_eq", "score", "equilibrium"), ("xi_drift", "drift", "drift's equilibrium")):
            options: dict[str, Any] = {"of": of, "data_std": std}
            value = dispersion_length(k2, gain.values, stderr.values, s=s, **options) * spacing
            replicates = dispersion_length(k2, left.values, stderr.values, s=s, **options) * spacing
            data[xi] = ("level", value, {"long_name": f"{about} correlation length", "units": "length"})
            data[f"{xi}_stderr"] = ("level", errors_over_blocks(replicates, recorded))
            data[f"{xi}_jackknife"] = (["block", "level"], replicates)
    return ds.assign(data)
