"""Several channels of a dataset, seen as one: their mean with its error, or each alone."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fastcrit._estimates.averages import errors_over_blocks

# What is of all channels together, although it has a dimension of channels.
_COLLECTIVE = ("gain_eigenvector",)


def averaged(ds: xr.Dataset) -> xr.Dataset:
    """The mean over channels, where there are any; NaN where one is, so that no level averages fewer than others.

    Its errors are those of the mean where the jackknife's replicates are kept, so that channels that go together count
    once; of S and C, whose replicates are not, the mean of the channels' errors, which is at least as large.

    Examples
    --------
    >>> import numpy as np, fastcrit as fc
    >>> rec = fc.Recorder([1.0], shape=(3, 8, 8))
    >>> rec.update(0, np.random.default_rng(0).normal(size=(32, 3, 8, 8)))
    >>> averaged(rec.dataset()).chi.dims
    ('level',)
    """
    if "channel" not in ds.dims:
        return ds
    one = _apart(ds).mean("channel", skipna=False, keep_attrs=True)
    for name in ("m", "abs_m", "chi", "binder", *(str(n) for n in one.data_vars if str(n).startswith("xi_"))):
        if f"{name}_jackknife" in one and f"{name}_stderr" in one:
            before = one[f"{name}_stderr"]
            # A block counts at a level where every channel has a value without it.
            replicates = one[f"{name}_jackknife"].transpose("block", ...).values
            errors = errors_over_blocks(replicates, np.isfinite(replicates))
            one[f"{name}_stderr"] = before.copy(data=errors).where(before.notnull())
    return one


def each_channel(ds: xr.Dataset) -> list[xr.Dataset]:
    """One dataset a channel; none where there are no channels."""
    if "channel" not in ds.dims:
        return []
    apart = _apart(ds)
    return [apart.isel(channel=c) for c in range(ds.sizes["channel"])]


def _apart(ds: xr.Dataset) -> xr.Dataset:
    """Without matrices and directions of channels, of which a mean or a row says nothing."""
    return ds.drop_dims("channel_in", errors="ignore").drop_vars(_COLLECTIVE, errors="ignore")
