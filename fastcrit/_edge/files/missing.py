"""Missing values and packed numbers as netCDF's and CF's attributes say them, of netCDF, HDF5 and Zarr alike.

xarray and netCDF4 each know a part: xarray neither default fill values nor valid ranges, netCDF4 guesses a range from
the sign of ``_FillValue``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Decoding:
    """How stored numbers become values."""

    stored: Any  # dtype that the stored bytes have, unsigned where the file says so
    dtype: Any  # dtype of the values
    fills: tuple[Any, ...] = ()  # stored numbers that mean "missing"
    low: Any = None  # the least and the greatest that is valid: as stored, or scaled
    high: Any = None
    range_is_scaled: bool = False
    scale: float | None = None
    offset: float | None = None
    text: str = ""  # what is missing, in words

    def __call__(self, raw: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Values, and where they are missing."""
        raw = raw.view(self.stored) if raw.dtype != self.stored and raw.dtype.kind in "iu" else raw
        values = raw
        if self.scale is not None or self.offset is not None:
            values = raw.astype(self.dtype) * (1.0 if self.scale is None else self.scale)
            values += 0.0 if self.offset is None else self.offset
        missing: NDArray[np.bool_] | None = None
        checks = [raw == fill for fill in self.fills]
        of_range = values if self.range_is_scaled else raw
        checks += [] if self.low is None else [of_range < self.low]
        checks += [] if self.high is None else [of_range > self.high]
        for found in checks:
            if found.any():
                missing = found if missing is None else missing | found
        return values.astype(self.dtype, copy=False), missing


def decoding(attrs: Mapping[str, Any], dtype: Any, *, default_fill: Any = None, fill: Any = None) -> Decoding:
    """From the attributes of a variable of numbers.

    ``default_fill`` is what the library writes where nothing was written; ``fill`` what the container says is missing.
    """
    dtype = np.dtype(dtype)
    stored = dtype
    if str(attrs.get("_Unsigned", "")).lower() == "true" and dtype.kind == "i":
        stored = np.dtype(f"{dtype.byteorder}u{dtype.itemsize}")
    elif str(attrs.get("_Unsigned", "")).lower() == "false" and dtype.kind == "u":
        stored = np.dtype(f"{dtype.byteorder}i{dtype.itemsize}")
    told = [*_numbers(attrs.get("_FillValue")), *_numbers(attrs.get("missing_value")), *_numbers(fill)]
    # Declared fills, and a default only where none is declared: then "never written" would be the declared one.
    default = [] if _numbers(attrs.get("_FillValue")) else _numbers(default_fill)
    scale, offset = (next(iter(_numbers(attrs.get(n))), None) for n in ("scale_factor", "add_offset"))
    low, high = _range(attrs)
    packed = scale is not None or offset is not None
    # A range of another kind than packed integers is one of values (the netCDF users' guide).
    ends = [np.asarray(v).dtype.kind for v in (low, high) if v is not None]
    scaled = packed and stored.kind in "iu" and "f" in ends
    if not scaled:
        low, high = (None if v is None else _as_sign(v, stored) for v in (low, high))
    declared = bool(told) or low is not None or high is not None
    values: Any = dtype if stored.kind == "f" else stored
    if packed:
        values = np.result_type(stored, np.float32) if stored.kind == "f" else np.dtype(np.float64)
    elif declared and stored.kind in "iu":
        values = np.dtype(np.float32 if stored.itemsize <= 2 else np.float64)
    fills = tuple(dict.fromkeys(f for f in (_as_stored(v, stored) for v in (*told, *default)) if f is not None))
    words = [f"the fill value {told[0]:g}"] if told else []
    words += [f"values that were never written (netCDF's fill value {default[0]:g})"] if default else []
    words += ["values outside of its valid range"] if low is not None or high is not None else []
    scale, offset = (None if v is None else float(v) for v in (scale, offset))
    return Decoding(stored, values, fills, low, high, scaled, scale, offset, " or ".join(words))


def _range(attrs: Mapping[str, Any]) -> tuple[Any, Any]:
    both = _numbers(attrs.get("valid_range"))
    if len(both) == 2:
        return both[0], both[1]
    low, high = (next(iter(_numbers(attrs.get(n))), None) for n in ("valid_min", "valid_max"))
    return low, high


def _numbers(value: Any) -> list[Any]:
    """A number or an array of them as a list of numpy's numbers; [] for whatever else stands there."""
    if value is None or isinstance(value, (str, bytes)):
        return []
    array = np.asarray(value)
    return list(array.ravel()) if array.dtype.kind in "fiub" else []


def _as_stored(value: Any, stored: Any) -> Any:
    """A number as the stored type has it; None where that type cannot hold it, so that no value can equal it."""
    value = _as_sign(value, stored)
    if stored.kind in "iu":
        whole = bool(np.isfinite(value)) and float(value).is_integer()
        return stored.type(value) if whole and np.iinfo(stored).min <= value <= np.iinfo(stored).max else None
    with np.errstate(over="ignore"):
        return stored.type(value)


def _as_sign(value: Any, stored: Any) -> Any:
    """Of data that are to be taken as unsigned (or signed), the attribute's number likewise."""
    of = np.asarray(value).dtype
    if stored.kind in "iu" and of.kind in "iu" and of.kind != stored.kind and of.itemsize == stored.itemsize:
        return np.asarray(value).astype(of.newbyteorder("=")).view(stored.newbyteorder("=")).ravel()[0]
    return value
