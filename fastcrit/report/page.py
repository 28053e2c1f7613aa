"""One HTML file of a finished run, or of several compared: words, tables, interactive figures, the data."""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
import os
import platform
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fastcrit import store
from fastcrit._edge.extras import need
from fastcrit._estimates.attributes import config_of
from fastcrit._version import __version__
from fastcrit.report import words

__all__ = ["Report", "write_report"]

_LIBRARIES = ("numpy", "scipy", "xarray", "torch", "plotly")
# Bytes of netCDF in a page, all runs together: with base64, plotly.js and tables up to ten networks stay below 8 MB.
_LARGEST_NETCDF = 2_600_000
# Sites of the strip, along a side.
_WIDEST = 128


@dataclass(frozen=True)
class Report:
    """What `write_report` wrote.

    Attributes
    ----------
    path : Path
    runs : tuple of str
        Names of the runs in it.
    unfinished : tuple of str
        Names of runs in the folder that are not finished, and left out.
    """

    path: Path
    runs: tuple[str, ...]
    unfinished: tuple[str, ...]


def write_report(
    run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, overwrite: bool = False
) -> Report:
    """Write a self-contained HTML page about a run: it opens offline and can be sent as it is.

    Parameters
    ----------
    run : path
        Folder of a finished study, or a folder of several, which are compared.
    out : path, optional
        File to write; default: report.html in ``run``.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        No finished study in ``run``.
    FileExistsError
        ``out`` exists and ``overwrite`` is False.
    FileFormatError
        A dataset is damaged.
    ModuleNotFoundError
        Plotly, Jinja or what reads datasets is not installed (the extra ``fastcrit[report]``).

    Examples
    --------
    >>> import tempfile
    >>> from fastcrit.report import write_report
    >>> from fastcrit.studies import PatchStudy
    >>> run = tempfile.mkdtemp() + "/run"
    >>> _ = PatchStudy(patterns=0, lattice=16, samples=16, levels=12).run(run)
    >>> write_report(run).path.name
    'report.html'
    """
    for module in ("plotly", "jinja2", "netCDF4"):
        need(module, "a report")
    folder = Path(run)
    target = folder / "report.html" if out is None else Path(out)
    folders, unfinished = _finished(folder)
    if target.exists() and not overwrite:
        raise FileExistsError(f"out: {target} exists already; --force (overwrite=True) replaces it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {target.parent}")
    datasets = {name: store.load_dataset(path / "dataset.zarr") for name, path in folders.items()}
    page = _render(_context(folder, folders, datasets, unfinished))
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=f".{target.name}.", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.chmod(file.name, 0o644)
        if overwrite:
            os.link(file.name, f"{file.name}.whole")
            os.replace(f"{file.name}.whole", target)
        else:
            os.link(file.name, target)  # refused where another report has appeared since
    return Report(target, tuple(folders), tuple(unfinished))


def _finished(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Folders of finished studies by name, and names of those that are not finished."""
    if (folder / "dataset.zarr").is_dir():
        return {folder.resolve().name: folder}, []
    if not folder.is_dir():
        raise FileNotFoundError(f"run: there is no folder {folder}")
    if (folder / "config.json").exists():
        raise FileNotFoundError(f"run: the study in {folder} is not finished; its command with --resume goes on")
    inner = sorted(p for p in folder.iterdir() if (p / "config.json").exists())
    done = {p.name: p for p in inner if (p / "dataset.zarr").is_dir()}
    if not done:
        raise FileNotFoundError(f"run: expected the folder of a finished study, or one that holds some, got {folder}")
    return done, [p.name for p in inner if p.name not in done]


def _context(
    folder: Path, folders: dict[str, Path], datasets: dict[str, xr.Dataset], unfinished: list[str]
) -> dict[str, Any]:
    """All that the page's template asks for."""
    from fastcrit.report import comparison, guidance, trajectories

    runs = []
    for name, ds in datasets.items():
        path = folders[name]
        summary = path / "summary.txt"
        runs.append(
            {
                "name": name,
                "title": ds.attrs.get("title", name),
                "facts": words.facts(ds),
                "verdict": words.verdict(ds),
                "critical": words.critical_rows(ds),
                "panels": [_panel(p) for p in (*trajectories.panels(ds), *guidance.panels(ds))],
                "strip": _strip(ds),
                "config": config_of(ds),
                "times": _times(path),
                "version": ds.attrs.get("fastcrit", "not recorded"),
                "conventions": ds.attrs.get("conventions"),
                "summary": summary.read_text() if summary.exists() else "",
                "downloads": _downloads(name, ds, _LARGEST_NETCDF // len(datasets)),
            }
        )
    compared = folder / "comparison.txt"
    return {
        "title": runs[0]["title"] if len(runs) == 1 else f"{len(runs)} runs compared",
        "runs": runs,
        "comparison_verdict": words.comparison(datasets),
        "comparison": [_panel(p) for p in comparison.panels(datasets)],
        "comparison_table": compared.read_text() if len(runs) > 1 and compared.exists() else "",
        "unfinished": unfinished,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "versions": _versions(),
        "plotly": _plotly(),
    }


def _render(context: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastcrit", "report"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(context)


def _panel(panel: Any) -> dict[str, Any]:
    return {
        "title": panel.title, "alt": panel.alt, "reading": [p for p in panel.reading if p],
        # The page's own template gives the colours, light or dark.
        "figure": panel.figure.update_layout(template="none").to_json().replace("</", "<\\/"),
    }  # fmt: skip


def _strip(ds: xr.Dataset) -> dict[str, Any] | None:
    """First trajectories at a few levels, in bytes: each state on its own scale, denoised images on one.

    Of three or more channels the first three are red, green and blue. Of large states every n-th site is shown. States
    on a line are no images, and are not shown.
    """
    if "states" not in ds or "y" not in ds["states"].dims:
        return None
    every = -(-max(ds.sizes["y"], ds.sizes["x"]) // _WIDEST)
    y, D = (ds[name].values[..., ::every, ::every] for name in ("states", "denoised"))
    if y.ndim == 4:
        y, D = y[:, :, None], D[:, :, None]
    colours = 3 if y.shape[2] >= 3 else 1
    y, D = y[:, :, :colours], D[:, :, :colours]
    low, high = (extreme(y, axis=(-3, -2, -1), keepdims=True) for extreme in (np.min, np.max))
    limit = float(np.abs(D).max()) or 1.0
    return {
        "levels": [float(f"{s:.3g}") for s in ds["strip_level"].values], "every": every, "colours": colours,
        "samples": y.shape[1], "height": y.shape[3], "width": y.shape[4], "limit": limit,
        "states": _bytes((y - low) / np.where(high > low, high - low, 1.0)),
        "denoised": _bytes((D + limit) / (2 * limit)),
    }  # fmt: skip


def _bytes(shares: Any) -> str:
    return base64.b64encode(np.round(255 * shares).astype(np.uint8).tobytes()).decode()


def _times(folder: Path) -> dict[str, str]:
    """When the run was begun and finished, by the dates of its files."""
    begun, finished = ((folder / name).stat().st_mtime for name in ("config.json", "dataset.zarr"))
    took = round(finished - begun)
    return {
        **{
            name: datetime.fromtimestamp(t).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
            for name, t in (("begun", begun), ("finished", finished))
        },
        "took": f"{took // 3600} h {took // 60 % 60} min {took % 60} s",
    }


def _versions() -> dict[str, str]:
    found = {"fastcrit": __version__, "Python": platform.python_version()}
    installed = {d.name.lower() for d in importlib.metadata.distributions() if d.name}
    return found | {name: importlib.metadata.version(name) for name in _LIBRARIES if name in installed}


def _downloads(name: str, ds: xr.Dataset, largest: int) -> list[dict[str, str]]:
    """The dataset as netCDF, and as CSV a table for each set of dimensions, without samples and jackknife blocks.

    A netCDF of more than ``largest`` bytes leaves out jackknife replicates and states.
    """
    content, about = _netcdf(ds), "everything, netCDF"
    if len(content) > largest:
        bulk = [v for v in ds.data_vars if {"block", "strip_level"} & set(ds[v].dims)]
        content, about = _netcdf(ds.drop_vars(bulk)), "without jackknife replicates and states, netCDF"
    files = [_download(f"{name}.nc", "application/x-netcdf", content, about)]
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for variable, values in ds.data_vars.items():
        if values.ndim and not {"block", "sample"} & set(values.dims):
            groups.setdefault(values.dims, []).append(variable)
    for dims, variables in groups.items():
        table = ds[variables].to_dataframe().to_csv(float_format="%.7g").encode()
        by = " and ".join(map(str, dims))
        files.append(_download(f"{name}-{'-'.join(map(str, dims))}.csv", "text/csv", table, f"by {by}, CSV"))
    return files


def _netcdf(ds: xr.Dataset) -> bytes:
    # Packing has a cost of some kB a variable, which small ones do not earn back.
    packed = {
        v: {"zlib": True, "complevel": 9} for v in ds.variables if ds[v].nbytes > 4000 and ds[v].dtype.kind != "U"
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset.nc"
        ds.to_netcdf(path, engine="netcdf4", encoding=packed)
        return path.read_bytes()


def _download(file: str, kind: str, content: bytes, about: str) -> dict[str, str]:
    size = f"{len(content) / 1000:.0f} kB"
    data = base64.b64encode(content).decode()
    return {"file": file, "about": about, "size": size, "href": f"data:{kind};base64,{data}"}


def _plotly() -> str:
    """plotly.js, packed: browsers unpack it, and the file is a third."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
