"""What a finished run's dataset says of itself in its attributes, which hold JSON: read here, and nowhere else."""

from __future__ import annotations

import json
from typing import Any

import xarray as xr


def config_of(ds: xr.Dataset) -> dict[str, Any]:
    """The configuration that a study wrote down; empty for other datasets.

    Examples
    --------
    >>> import xarray as xr
    >>> from fastcrit._estimates.attributes import config_of
    >>> config_of(xr.Dataset(attrs={"config": '{"seed": 1}'}))
    {'seed': 1}
    """
    return dict(json.loads(ds.attrs.get("config", "{}")))


def is_guidance(ds: xr.Dataset) -> bool:
    """Whether it is a guidance experiment, by its configuration; else a trajectory study, or a recorder's dataset."""
    return config_of(ds).get("study") == "guidance"


def pulses_of(ds: xr.Dataset) -> dict[str, list[int]]:
    """Of a guidance experiment: the sweep's, the random and the signatures' pulses, by first guided step."""
    return dict(json.loads(ds.attrs["pulses"]))


def sentences_of(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Of a guidance experiment: its verdict, sentence by sentence, each with the role of what it says.

    Of an older version, which kept the paragraph alone, that; empty for other datasets.
    """
    if "verdict" not in ds.attrs:
        return []
    kept = ds.attrs.get("verdict_sentences")
    return [("", ds.attrs["verdict"])] if kept is None else [(role, text) for role, text in json.loads(kept)]


def carried_levels(ds: xr.Dataset) -> dict[str, dict[str, float]]:
    """Of a guidance experiment: level, low and high of the signatures that its study has found; else empty."""
    return dict(json.loads(ds.attrs.get("critical", "{}")))


def growth_by_log_t(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Of a study: the growth signatures by the other clock, as `CriticalPoint.to_json` has them."""
    return dict(json.loads(ds.attrs.get("growth_log_t", "{}")))
