"""Optional dependencies: asked for where they are used, named with the extra that brings them when absent."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXTRA = {
    "matplotlib": "plot", "zarr": "store", "netCDF4": "store", "fsspec": "store", "sklearn": "images", "torch": "torch",
    "diffusers": "diffusers", "transformers": "judge", "dask": "dask", "distributed": "dask", "plotly": "report",
    "jinja2": "report",
}  # fmt: skip


def need(module: str, purpose: str) -> Any:
    """Import ``module``, or raise a ModuleNotFoundError that says what needs it and how to get it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        message = f"{purpose} needs {module}: pip install 'fastcrit[{_EXTRA[module]}]'"
        raise ModuleNotFoundError(message, name=module) from None
