"""Which axis is which: one rule for names of axes, for everything that takes fields or files of them.

Names that are understood: "sample" (the ensemble), "level" (the noise level), "channel"; all others are the lattice.
Where an array names none of its axes, their order says it: samples first, then what is averaged over, the lattice last.
Where it names some, they have to say it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from fastcrit._edge.arrays import check_positive, is_tensor
from fastcrit._edge.files.stored import is_name
from fastcrit._edge.files.zarr_stores import check_codecs

LEVEL, SAMPLE, CHANNEL = "level", "sample", "channel"
ROLES = (LEVEL, SAMPLE, CHANNEL)
# Numbers of values that the last axis of an image has where it is the colours: grey, RGB, RGBA.
_COLOURS = (1, 3, 4)
# Largest deviation of coordinates from even ones, in distances between sites: of decimals that were cut.
_UNEVEN = 2e-3


def dims_of(x: object) -> tuple[str | None, ...]:
    """Names of the axes of an `xarray.DataArray` or a named tensor, None where an axis has none; () without any."""
    if is_tensor(x):
        names: Sequence[Any] = getattr(x, "names", ())  # until torch dropped them
    elif isinstance(x, (xr.DataArray, xr.Variable)):
        names = x.dims
    else:
        return ()
    found = tuple(str(n) if is_name(n) else None for n in names)
    return found if any(found) else ()


def arrange(x: Any, ndim: int, name: str, spacing: float | None, *, ensemble: bool = True) -> tuple[Any, float]:
    """An array with its axes in order (samples, levels, channels, lattice), and the distance between its sites.

    Without names it comes back as it is, unless it looks like images whose colours are their last axis. Distances are
    those of the coordinates, unless ``spacing`` is given. ValueError for names that do not say which axis is which,
    FileFormatError for an array of xarray's that a foreign codec is still to decode.
    """
    if isinstance(x, xr.DataArray):
        check_codecs(x, name)
    dims = dims_of(x)
    if not dims:
        if ndim in (1, 2, 3):  # others are refused by whoever reads the array
            refuse_channels_last(_shape(x), _kind(x), ndim, name)
        return x, 1.0 if spacing is None else check_positive(spacing, "spacing")
    what = f"{name}: expected dims {_expected(ndim, ensemble)}, got {_shown(x)}; "
    axes = order(dims, ndim, what + "rename them, or pass the plain array with its axes in that order", ensemble)
    if is_tensor(x):
        return x.rename(None).permute(axes), 1.0 if spacing is None else check_positive(spacing, "spacing")
    distance = spacing_of(x, [d for d in x.dims if d not in ROLES], spacing)
    return x.transpose(*[x.dims[i] for i in axes]), distance


def order(dims: Sequence[str | None], ndim: int, message: str, ensemble: bool = True) -> list[int]:
    """Axes in order: samples, levels and channels as they come, the lattice; ValueError(message) if it is not said."""
    lattice = [i for i, d in enumerate(dims) if d not in ROLES]
    if (ensemble and SAMPLE not in dims) or len(lattice) != ndim:
        raise ValueError(message)
    first = [i for i, d in enumerate(dims) if d == SAMPLE] if ensemble else []
    return first + [i for i in range(len(dims)) if i not in first and i not in lattice] + lattice


def in_order(array: xr.DataArray) -> xr.DataArray:
    """With the dims "level", "sample" and "channel" first, in this order, where there are samples by name."""
    if SAMPLE not in array.dims:
        return array
    known = [d for d in ROLES if d in array.dims]
    wanted = [*known, *[d for d in array.dims if d not in known]]
    return array if wanted == list(array.dims) else array.load().transpose(*wanted)


def spacing_of(array: xr.DataArray, lattice: Sequence[Any], spacing: float | None) -> float:
    """The distance between sites: ``spacing`` if given, else that of the coordinates, else 1.

    ValueError for coordinates that are not even, or differ from axis to axis.
    """
    if spacing is not None:
        return check_positive(spacing, "spacing")
    found = {}
    for dim in lattice:
        if dim in array.coords and array.sizes[dim] > 1 and array[dim].ndim == 1:
            step = _step(array[dim].values, str(dim))
            if step is not None:
                found[str(dim)] = step
    if not found:
        return 1.0
    steps = list(found.values())
    if max(steps) - min(steps) > _UNEVEN * max(steps):
        each = ", ".join(f"{step:.6g} along {dim!r}" for dim, step in found.items())
        raise ValueError(
            f"spacing: the coordinates have {each}, and one distance is expected for all axes; pass spacing= "
            "(--spacing), which counts the sites and leaves the coordinates aside"
        )
    if len(found) < sum(array.sizes[d] > 1 for d in lattice) and not np.isclose(steps[0], 1.0, rtol=_UNEVEN):
        raise ValueError(
            f"spacing: only {', '.join(map(repr, found))} of the axes {[str(d) for d in lattice]} have coordinates; "
            "pass spacing= (--spacing), the distance between sites on every axis"
        )
    return 1.0 if np.isclose(steps[0], 1.0, rtol=1e-6) else float(np.mean(steps))


def _step(values: Any, dim: str) -> float | None:
    """Distance between neighbours of even coordinates; None for names; ValueError for others."""
    way = "pass spacing= (--spacing), which counts the sites and leaves the coordinates aside"
    if values.dtype.kind in "USTOb":
        return None
    if values.dtype.kind not in "fiu":
        raise ValueError(f"spacing: the coordinates of {dim!r} are of type {values.dtype}, not numbers; {way}")
    at = values.astype(np.float64)
    step = (at[-1] - at[0]) / (len(at) - 1)
    rounding = np.finfo(values.dtype).eps * np.abs(at).max() if values.dtype.kind == "f" else 0.0
    with np.errstate(invalid="ignore"):
        off = np.abs(at - (at[0] + step * np.arange(len(at)))).max()
    if not (np.isfinite(step) and step != 0 and off <= _UNEVEN * abs(step) + 4 * rounding):
        raise ValueError(
            f"spacing: the coordinates of {dim!r} are not even ({at[0]:.6g}, {at[1]:.6g}, .. {at[-1]:.6g}); {way}"
        )
    return abs(float(step))


def refuse_channels_last(shape: Sequence[int], kind: str, ndim: int, name: str) -> None:
    """ValueError for a shape (.., H, W, C) without names: read as a lattice, W x C sites in H channels."""
    if len(shape) < ndim + 1 or shape[-1] not in _COLOURS or min(shape[-1 - ndim : -1]) <= max(_COLOURS):
        return
    # Samples of narrow strips, or one image: whole numbers, three colours and squares are images.
    if len(shape) == ndim + 1 and not (ndim == 2 and (kind in "iu" or shape[-1] == 3 or shape[-2] == shape[-3])):
        return
    sides = " x ".join(map(str, shape[-ndim:]))
    raise ValueError(
        f"{name}: shape {tuple(shape)} looks like images whose {shape[-1]} channels are the last axis, but the last "
        f"{ndim} axes are taken for the lattice, of {sides} sites; pass np.moveaxis({name}, -1, {-1 - ndim}), or name "
        "the axes (an xarray.DataArray, dims= of analyze, --dims sample,y,x,channel)"
    )


def _shape(x: Any) -> tuple[int, ...]:
    """Of an array, or of a sequence of arrays; () of what has none yet."""
    if isinstance(x, (list, tuple)) and x and hasattr(x[0], "shape"):
        return (len(x), *x[0].shape)
    return tuple(getattr(x, "shape", ()))


def _kind(x: Any) -> str:
    first = x[0] if isinstance(x, (list, tuple)) and x else x
    if is_tensor(first):
        return "f" if first.is_floating_point() else "i"
    return str(getattr(getattr(first, "dtype", None), "kind", "f"))


def _expected(ndim: int, ensemble: bool) -> str:
    more = "'level' and 'channel'" if ensemble else "'sample', 'level' and 'channel'"
    return ("'sample', " if ensemble else "") + f"{ndim} of the lattice, and perhaps {more}"


def _shown(x: Any) -> list[str]:
    return [str(d) for d in (x.names if is_tensor(x) else x.dims)]
