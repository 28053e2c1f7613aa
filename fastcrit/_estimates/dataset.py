"""From a recorder's sums to a labelled dataset: centring, shells, correlations, lengths, moments, gains, errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fastcrit._edge.arrays import check_choice
from fastcrit._estimates.averages import ModeAverages, errors_over_blocks, fewest_for_errors
from fastcrit._estimates.dispersion import collective_modes
from fastcrit._estimates.drift import with_drift
from fastcrit._estimates.lags import radial_correlation
from fastcrit._estimates.lengths import FINITE_SIZE, METHODS, estimate
from fastcrit._estimates.rounding import rounding_of_sums
from fastcrit._kernels.lattice import Lattice
from fastcrit._kernels.layout import DENOISED, Layout
from fastcrit._kernels.record import HostRecord

Floats = NDArray[np.float64]

DEFAULT_LENGTHS = ("ornstein_zernike", "second_moment", "efold")
# Of fields cut from larger ones: fitted to the expected power of a crop, which needs no more than sums of power.
OF_CROPS = ("ornstein_zernike", "second_moment")


@dataclass(frozen=True)
class Recorded:
    """What a dataset is made of: a recorder's sums on the host, and what they are sums of."""

    levels: Floats
    spacing: float
    data_std: float
    k_max: float
    has_channels: bool
    record: HostRecord

    @property
    def layout(self) -> Layout:
        """What is kept."""
        return self.record.layout

    @property
    def grid(self) -> Lattice:
        """The lattice."""
        return self.record.layout.grid

    @property
    def channels(self) -> NDArray[np.int64]:
        """Numbers of the channels."""
        return np.arange(self.record.layout.channels)

    @property
    def sums(self) -> dict[str, Any]:
        """Sums by name."""
        return self.record.sums


_UNITS = {"S": "1", "C": "1", "xi": "length", "m": "1", "abs_m": "1", "chi": "1", "binder": "1"}


def build_dataset(rec: Recorded, lengths: tuple[str, ...] | None, periodic: bool = True) -> xr.Dataset:
    """See `Recorder.dataset`."""
    if lengths is None:
        lengths = DEFAULT_LENGTHS if periodic else OF_CROPS
    for method in lengths:
        check_choice(method, METHODS, "lengths")
        if not periodic and method not in OF_CROPS:
            raise ValueError(
                f"lengths: {method!r} of crops is read off pairs of sites inside them, which a recorder does not keep; "
                f"expected {' or '.join(map(repr, OF_CROPS))} with periodic=False, or "
                f"correlation_length(fields, method={method!r}, periodic=False)"
            )
    if "binarized" in lengths and not rec.layout.signs:
        raise ValueError("lengths: 'binarized' needs a recorder made with binarized=True")
    also = ("binarized",) if periodic else ()
    if rec.layout.signs and "binarized" not in lengths:
        lengths = (*lengths, *also)
    grid = rec.grid
    keep = grid.shells_below_nyquist
    data = _of_fields(rec, lengths, "", periodic)
    if f"{DENOISED}count" in rec.sums:
        data |= _of_fields(rec, (*(m for m in lengths if m != "binarized"), *also), DENOISED, periodic)
    coords: dict[str, Any] = {
        "level": ("level", rec.levels, {"long_name": "noise level s = sigma/alpha", "units": "1"}),
        "k": (
            "k",
            grid.shell_k[:keep] / rec.spacing,
            {"long_name": "wavenumber, mean over the shell", "units": "rad/length"},
        ),
        "r": (
            "r",
            grid.lag_r[: grid.lags_inside] * rec.spacing,
            {"long_name": "distance, mean over the shell", "units": "length"},
        ),
        "block": ("block", np.arange(rec.layout.blocks), {"long_name": "jackknife block"}),
        "counts": ("k", grid.shell_modes[:keep], {"long_name": "modes in the shell"}),
        "pairs": ("r", grid.lag_pairs[: grid.lags_inside], {"long_name": "lattice vectors in the shell"}),
        "n_samples": ("level", rec.sums["count"].sum(axis=1), {"long_name": "samples recorded"}),
    }
    if f"{DENOISED}count" in rec.sums:
        n_denoised = rec.sums[f"{DENOISED}count"].sum(axis=1)
        coords["n_denoised"] = ("level", n_denoised, {"long_name": "denoised images recorded"})
    if rec.has_channels:
        coords["channel"] = rec.channels
    if rec.layout.cross is not None and np.isfinite(rec.sums["cross"]).all():
        data |= _cross_spectra(rec)
        shells = rec.layout.cross.count
        coords["cross_shell"] = ("cross_shell", np.arange(shells), {"long_name": "shell of cross-spectra"})
        coords["channel_in"] = rec.channels
    if rec.layout.gain_shells:
        data |= _gains(rec)
        coords |= {"channel_in": rec.channels} if rec.has_channels else {}
        coords["n_gains"] = ("level", rec.sums["gain_count"].sum(axis=1), {"long_name": "states with gains"})
        coords["shell"] = ("shell", list(rec.layout.gain_shells), {"long_name": "shell of wavenumbers"})
        coords["shell_k"] = ("shell", grid.shell_k[list(rec.layout.gain_shells)] / rec.spacing, {"units": "rad/length"})
    attrs = {
        "lattice": list(grid.shape),
        "spacing": rec.spacing,
        "data_std": rec.data_std,
        "blocks": rec.layout.blocks,
        "k_max": rec.k_max,
        "conventions": "S = <|phi^ - <phi^>|^2>/N; k in rad per unit length; lengths with background s^2 removed"
        + ("" if periodic else ", of crops of larger fields"),
    }
    ds = xr.Dataset(data, coords, attrs)
    return with_drift(ds) if rec.layout.gain_shells else ds


def _of_fields(rec: Recorded, lengths: tuple[str, ...], prefix: str, periodic: bool) -> dict[str, Any]:
    """Variables of the states, or with the prefix of the denoised images: of these S, C and lengths."""
    suffix = "_denoised" if prefix else ""
    rows: dict[str, list[Floats]] = {}
    flags: dict[str, list[list[str]]] = {}
    for i, s in enumerate(rec.levels):
        level, level_flags = _one_level(rec, i, float(s), lengths, prefix, periodic)
        for name, values in level.items():
            rows.setdefault(name, []).append(values)
        for name, words in level_flags.items():
            flags.setdefault(name, []).append(words)

    channel = ["channel"] if rec.has_channels else []
    dims = {"S": ["level", *channel, "k"], "C": ["level", *channel, "r"]}
    data: dict[str, Any] = {}
    for name, per_level in rows.items():
        all_rows = np.stack(per_level)  # (level, 1 + blocks, channel, ...)
        if not rec.has_channels:
            all_rows = all_rows[:, :, 0]
        shape = dims.get(name, ["level", *channel])
        value, replicates = all_rows[:, 0], np.moveaxis(all_rows[:, 1:], 1, 0)
        units = _UNITS.get("xi" if name.startswith("xi") else name, "1")
        about = _LONG_NAMES[name] + (", of the denoised image D(y; s)" if prefix else "")
        attrs: dict[str, Any] = {"long_name": about, "units": units}
        full = name + suffix
        data[full] = (shape, value, attrs)
        # A length without an answer, or at the bound 0, has no error either, although its replicates may agree.
        without = np.isnan(value) | ((value == 0) & name.startswith("xi_"))
        errors = np.where(without, np.nan, _errors(replicates, rec.sums[f"{prefix}count"]))
        data[f"{full}_stderr"] = (shape, errors, {**attrs, "long_name": f"jackknife error of {full}"})
        if name not in ("S", "C"):
            data[f"{full}_jackknife"] = (["block", *shape], replicates, {"long_name": f"{full} without each block"})
    for name, rows_of_words in flags.items():
        table = np.array(rows_of_words)
        data[f"{name}{suffix}_flags"] = (["level", *channel], table if rec.has_channels else table[:, 0])
    return data


_LONG_NAMES = {
    "S": "structure factor, ensemble mean removed",
    "C": "radially averaged autocorrelation, ensemble mean removed",
    "m": "mean of the order parameter (site mean)",
    "abs_m": "mean absolute order parameter",
    "chi": "susceptibility N(<m^2> - <|m|>^2)",
    "binder": "Binder cumulant 1 - <m^4>/(3 <m^2>^2)",
    **{f"xi_{method}": f"correlation length, {method}" for method in METHODS},
}


def _one_level(
    rec: Recorded, i: int, s: float, lengths: tuple[str, ...], prefix: str, periodic: bool
) -> tuple[dict[str, Floats], dict[str, list[str]]]:
    """Estimates and replicates, (1 + blocks, channels, ...) each, and flags of the lengths per channel."""
    grid = rec.grid
    counts = rec.sums[f"{prefix}count"][i]
    n = int(counts.sum())
    if n == 1 and prefix:
        n = 0  # a single image has no ensemble
    if n == 1:
        raise ValueError(f"level {i} (s = {s:.6g}) has a single sample; the ensemble mean needs at least 2")
    used = counts > 0
    full = 1 + rec.layout.blocks
    keep = grid.shells_below_nyquist

    def spread(rows: Floats) -> Floats:
        """Replicates of blocks without samples are NaN, so that every level has the same shape."""
        out = np.full((full, *rows.shape[1:]), np.nan)
        if n:
            out[0] = rows[0]
        if n >= fewest_for_errors("ensemble"):
            out[1:][used] = rows[1:]
        return out

    if n == 0:
        empty = np.full((1, rec.layout.channels), np.nan)
        level = {f"xi_{m}": spread(empty) for m in lengths}
        level |= {} if prefix else {name: spread(empty) for name in ("m", "abs_m", "chi", "binder")}
        level["S"] = spread(np.full((1, rec.layout.channels, keep), np.nan))
        level["C"] = spread(np.full((1, rec.layout.channels, grid.lags_inside), np.nan))
        return level, {f"xi_{m}": ["no_samples"] * rec.layout.channels for m in lengths}

    modes = _centred(rec, i, used, prefix)
    S = modes.mean_and_replicates(modes.power)
    level = {
        "S": spread(grid.to_shells(S * grid.orbit_modes)[..., :keep] / grid.shell_modes[:keep]),
        "C": spread(radial_correlation(grid, S)),
    }
    flags: dict[str, list[str]] = {}
    for method in lengths:
        source = modes
        if method == "binarized":  # what does not fluctuate may have signs that do, where it is 0 but for rounding
            source = _centred(rec, i, used, prefix, signs=True)
            still = S[0] @ grid.orbit_modes / grid.sites <= modes.rounding
            source = replace(source, rounding=np.where(still, np.inf, source.rounding))
        # Neither the sign of a field nor a denoised image carries the noise of the state.
        background = 0.0 if method == "binarized" or prefix else s**2
        rows, words = estimate(source, method, background, k_max=rec.k_max, periodic=periodic)
        level[f"xi_{method}"] = spread(rows * rec.spacing)
        large = rows[0] / grid.side > FINITE_SIZE
        flags[f"xi_{method}"] = [
            " ".join([*w, *(["finite_size"] if big else [])]) for w, big in zip(words, large, strict=True)
        ]
    if not prefix:
        moments = _moments(rec.sums["moments"][i][used], counts[used], grid, rec.record.offsets[""][i])
        level |= {name: spread(rows) for name, rows in moments.items()}
    return level, flags


def _centred(rec: Recorded, i: int, used: NDArray[np.bool_], prefix: str = "", signs: bool = False) -> ModeAverages:
    """Block sums of power with the ensemble mean removed.

    |a - mu|^2 summed over a block is P_b - n_b |mu|^2 - 2 Re (A_b - n_b mu)* mu. The last term sums to zero over all
    blocks; it is kept for the low modes, whose block sums A_b are known one by one, and dropped elsewhere, where it
    would only make leave-one-out errors smaller.
    """
    grid = rec.grid
    name = prefix + ("sign_" if signs else "")
    counts = rec.sums[f"{prefix}count"][i][used]
    n = counts.sum()
    power = rec.sums[f"{name}power"][i][used]
    mean = rec.sums[f"{name}field"][i].reshape(rec.layout.channels, *grid.shape) / n
    offset = np.zeros(rec.layout.channels) if signs else rec.record.offsets[prefix][i]
    mean -= offset.reshape(-1, *[1] * grid.ndim)
    half = np.moveaxis(np.fft.rfftn(mean, axes=tuple(range(1, 1 + grid.ndim))), -1, 1).reshape(rec.layout.channels, -1)
    if offset.any():  # k = 0 from the sums about it, which have more digits
        half[:, 0] = np.where(offset != 0, rec.sums[f"{prefix}low"][i][..., 0, 0].sum(axis=0) / n, half[:, 0])
    weight = grid.half_weights
    square = np.stack([np.bincount(grid.orbit_of_mode, weight * np.abs(h) ** 2, len(grid.orbit_k)) for h in half])
    power = power - counts[:, None, None] * square / grid.sites
    first = rec.sums[f"{prefix}first"][i][used]
    if not signs:
        index = np.array([grid.mode_index(wavenumber) for wavenumber in rec.layout.low])
        amplitude = rec.sums[f"{prefix}low"][i][used]
        mu = half[:, index]
        deviation = amplitude[..., 0] + 1j * amplitude[..., 1] - counts[:, None, None] * mu
        cross = -2.0 * np.real(np.conj(deviation) * mu) * weight[index] / grid.sites
        where: Any = (slice(None), slice(None), grid.orbit_of_mode[index])  # Any: numpy's stub of at() knows no slices
        np.add.at(power, where, cross)
        axes = [rec.layout.low.index(n) for n in grid.axis_wavenumbers]
        first = (
            first
            - counts[:, None, None] * np.abs(mu[:, axes]) ** 2 / grid.sites
            - 2.0 * np.real(np.conj(deviation[..., axes]) * mu[:, axes]) / grid.sites
        )
    mean_square = np.square(rec.sums[f"{name}field"][i] / n).mean(axis=-1)
    rounding = rounding_of_sums(square.sum(axis=1) / grid.sites**2, mean_square, float(rec.record.eps[i]))
    return ModeAverages(grid, rec.spacing, "ensemble", counts, power / grid.orbit_modes, first, rounding)


def _moments(sums: Floats, counts: NDArray[np.int64], grid: Lattice, offset: Floats) -> dict[str, Floats]:
    """m, <|m|>, chi and the Binder cumulant, (1 + blocks, channels), from block sums (blocks, channels, 4).

    These are of m - c, |m| - |c|, its square and m^4, with the offsets c of the channels.
    """
    total = sums.sum(axis=0)
    left = np.concatenate([total[None], total - sums])
    n = np.concatenate([[counts.sum()], counts.sum() - counts]).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        m, abs_m, square, m4 = np.moveaxis(left / n[:, None, None], -1, 0)
        c = np.abs(offset)
        m2 = c**2 + 2.0 * c * abs_m + square
        return {
            "m": offset + m,
            "abs_m": c + abs_m,
            "chi": grid.sites * (square - abs_m**2),
            "binder": 1.0 - m4 / (3.0 * m2**2),
        }


def _errors(replicates: Floats, counts: NDArray[np.int64]) -> Floats:
    """Jackknife error over the blocks that hold samples, level by level; replicates (blocks, level, ...)."""
    return errors_over_blocks(replicates, counts.T > 0)


def _cross_spectra(rec: Recorded) -> dict[str, Any]:
    """P_ab(k) of the states' channels in the lowest shells, the ensemble mean removed, with its error."""
    assert rec.layout.cross is not None
    sums, counts = rec.sums["cross"], rec.sums["count"]
    shape = (1 + rec.layout.blocks, len(rec.levels), *sums.shape[2:])
    rows = np.full(shape, np.nan)
    for i, per_block in enumerate(counts):
        n = per_block.sum()
        if n < fewest_for_errors("ensemble"):
            continue
        low, used = rec.sums["low"][i], per_block > 0
        products, amplitudes = sums[i].sum(axis=0), low.sum(axis=0)
        rows[0, i] = rec.layout.cross.covariance(products[None], np.array([n]), amplitudes[None])[0]
        left = n - per_block[used]
        rows[1:, i][used] = rec.layout.cross.covariance(products - sums[i][used], left, amplitudes - low[used])
    dims = ["level", "cross_shell", "channel", "channel_in"]
    return {
        "cross_spectrum": (dims, rows[0], {"long_name": "P_ab(k) = Re <phi_a^ phi_b^*>/N, ensemble mean removed"}),
        "cross_spectrum_stderr": (dims, _errors(rows[1:], counts)),
    }


def _gains(rec: Recorded) -> dict[str, Any]:
    """Gains on trajectories; of matrices the softest collective mode."""
    counts = rec.sums["gain_count"]
    dims = ["level", "shell"]
    if rec.record.matrices:
        matrix, left = _means(rec.sums["gain_matrix"], counts)
        errors = _errors(left, counts)
        gain, vector = collective_modes(matrix, errors)
        # Along the same direction without each block, which differs from its own by the second order.
        left_gain = np.einsum("lsc,blscd,lsd->bls", vector, left, vector)
        channels = ["channel", "channel_in"]
        data: dict[str, Any] = {
            "gain_matrix": ([*dims, *channels], matrix, {"long_name": "G_ab(k) = <e_k in a, J e_k in b>"}),
            "gain_matrix_stderr": ([*dims, *channels], errors),
            "gain_eigenvector": ([*dims, "channel"], vector, {"long_name": "softest collective mode"}),
            "diagonal_gain": (
                dims,
                np.einsum("lscc->ls", matrix) / rec.channels.size,
                {"long_name": "mean of channels"},
            ),
        }
        about = "gain of the softest collective mode of the channels, averaged over states"
    else:
        gain, left_gain = _means(rec.sums["gain"], counts)
        data, about = {}, "mode gain <e_k, J e_k> averaged over states"
    return data | {
        "gain_on_trajectories": (dims, gain, {"long_name": about}),
        "gain_on_trajectories_stderr": (dims, _errors(left_gain, counts)),
        "gain_on_trajectories_jackknife": (["block", *dims], left_gain),
    }


def _means(sums: Floats, counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Mean (level, ..) of sums (level, block, ..), and (block, level, ..) without each block that holds samples."""
    with np.errstate(over="ignore"):
        total, n = sums.sum(axis=1), counts.sum(axis=1)
    tail = (1,) * (sums.ndim - 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / n.reshape(-1, *tail)
        left = (total[:, None] - sums) / (n[:, None] - counts).reshape(*counts.shape, *tail)
    return mean, np.moveaxis(np.where((counts > 0).reshape(*counts.shape, *tail), left, np.nan), 1, 0)
