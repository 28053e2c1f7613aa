"""What other packages return for the same field, and the factor between: the table of docs/conventions.md.

``python -m benches.conventions`` measures every factor, refuses one that is not what the table says, and writes the
table into the page. tests/test_conventions.py holds the rows of the packages that it finds to the same.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import scipy.signal

import fastcrit as fc

PAGE = Path(__file__).parent.parent / "docs" / "conventions.md"
MARKS = ("<!-- factors: python -m benches.conventions -->", "<!-- end of factors -->")
LENGTH_MARKS = ("<!-- lengths: python -m benches.conventions -->", "<!-- end of lengths -->")
CROP_MARKS = ("<!-- crops: python -m benches.conventions -->", "<!-- end of crops -->")

# A field with a mean, on a lattice with a spacing: whatever a convention divides by, it shows.
SIDE, SPACING, MEAN = 64, 0.5, 3.0
SITES = SIDE * SIDE
# One shell, and its plane wave; below Nyquist, so that one-sided spectra count it twice.
SHELL = 9


@dataclass(frozen=True)
class Row:
    package: str
    call: str  # as the page prints it, code in backticks
    says: str  # the factor as a formula
    expected: float
    measured: Callable[[], float]
    note: str
    rtol: float = 1e-6


def noise(count: int = 1, side: int = SIDE, ndim: int = 2) -> np.ndarray:
    return MEAN + np.random.default_rng(0).normal(scale=1.5, size=(count, *(side,) * ndim))


def waves() -> np.ndarray:
    """A plane wave along the last axis, on the mean: its power is in shell ``SHELL`` and in k = 0 alone."""
    x = np.arange(SIDE)
    return np.broadcast_to(MEAN + np.cos(2 * np.pi * SHELL * x / SIDE), (SIDE, SIDE)).copy()


def ours(field: np.ndarray, shell: int = SHELL) -> float:
    return float(fc.power_spectrum(field, spacing=SPACING).power[shell])


def our_mode(field: np.ndarray) -> float:
    """|phi^|^2 / N of the one mode (0, SHELL): half of what the shell's wave has, since -k is the other half."""
    return ours(field) * fc.power_spectrum(field).counts[SHELL] / 2


def scipy_fft(norm: str) -> Callable[[], float]:
    def measured() -> float:
        field = waves()
        return float(np.abs(scipy.fft.rfft2(field, norm=norm)[0, SHELL]) ** 2) / our_mode(field)

    return measured


def periodogram() -> float:
    line = noise(ndim=1)[0]
    spectrum = fc.power_spectrum(line, ndim=1, spacing=SPACING)
    return float(scipy.signal.periodogram(line, fs=1 / SPACING)[1][SHELL] / spectrum.power[SHELL])


def periodogram_zero() -> float:
    line = noise(ndim=1)[0]
    return float(scipy.signal.periodogram(line, fs=1 / SPACING)[1][0] / fc.power_spectrum(line, ndim=1).power[0])


def welch() -> float:
    lines = noise(count=4000, ndim=1)
    level = scipy.signal.welch(lines, fs=1 / SPACING, nperseg=32)[1][:, 4:-4].mean()
    return float(level / fc.power_spectrum(lines, ndim=1).power[:, 4:-4].mean())


def correlate() -> float:
    line = noise(ndim=1)[0] - MEAN
    lag = 5
    found = scipy.signal.correlate(line, line)[len(line) - 1 + lag]
    unbiased = fc.autocorrelation(line[None], ndim=1, center="none", periodic=False)
    return float(found / unbiased.C[lag]) / (SIDE - lag)


def xarray_of(field: np.ndarray) -> Any:
    import xarray as xr

    x = SPACING * np.arange(SIDE)
    return xr.DataArray(field, dims=("y", "x"), coords={"y": x, "x": x})


def xrft_power() -> float:
    import xrft

    field = waves()
    found = xrft.power_spectrum(xarray_of(field), dim=["y", "x"])
    return float(found.sel(freq_y=0, freq_x=SHELL / (SIDE * SPACING), method="nearest")) / our_mode(field)


def xrft_isotropic() -> float:
    import xrft

    field = noise()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = xrft.isotropic_power_spectrum(xarray_of(field), dim=["y", "x"], nfactor=4, truncate=True)
    # Its bins are not our shells; the modes of its second bin, averaged by hand, are what it has to be compared with.
    f = np.fft.fftfreq(SIDE, SPACING)
    radius = np.hypot(f[:, None], f)
    edges = np.linspace(0, radius.max(), SIDE // 4 + 1)
    inside = (radius > edges[1]) & (radius <= edges[2])
    mean = (np.abs(np.fft.fft2(field)) ** 2 / SITES)[inside].mean()
    return float(found[1]) / (mean * radius[inside].mean())


def powerbox() -> float:
    from powerbox import get_power

    field = noise()[0]
    fundamental = 2 * np.pi / (SIDE * SPACING)
    edges = (np.arange(SIDE // 2 + 2) - 0.5) * fundamental
    return float(get_power(field, SIDE * SPACING, bins=edges, nthreads=1).power[SHELL]) / ours(field)


def pysteps() -> float:
    from pysteps.utils.spectral import rapsd

    field = noise()[0]
    return float(rapsd(field, fft_method=np.fft)[SHELL]) / ours(field)


def pysteps_not_square() -> float:
    from pysteps.utils.spectral import rapsd

    short, long, index = 32, 64, 4
    wave = np.broadcast_to(np.cos(2 * np.pi * index * np.arange(short) / short)[:, None], (short, long))
    power, frequency = rapsd(wave, fft_method=np.fft, return_freq=True)
    return float(frequency[np.argmax(power)] / (index / short))


ROWS = (
    Row("scipy", "`abs(scipy.fft.rfft2(x))**2`", "N", SITES, scipy_fft("backward"), "of one mode, not a shell"),
    Row("scipy", '`abs(scipy.fft.rfft2(x, norm="ortho"))**2`', "1", 1.0, scipy_fft("ortho"), "of one mode"),
    Row(
        "scipy", "`scipy.signal.periodogram(x, fs=1/a)`", "2 a", 2 * SPACING, periodogram,
        "one axis; one-sided (1 a at Nyquist), per cycle per unit length",
    ),
    Row(
        "scipy", "the same at k = 0", "0", 0.0, periodogram_zero,
        'it removes the mean of x unless `detrend=False`, then a',
    ),
    Row(
        "scipy", "`scipy.signal.welch(x, fs=1/a)`", "2 a", 2 * SPACING, welch,
        "on average over white noise; windowed segments, other k", rtol=0.01,
    ),
    Row(
        "scipy", "`scipy.signal.correlate(x, x)[lag]`", "L - lag", 1.0, correlate,
        "a sum over pairs, where `autocorrelation(periodic=False)` is their mean (measured: factor over L - lag)",
    ),
    Row(
        "xrft", "`xrft.power_spectrum(x)`", "a^2", SPACING**2, xrft_power,
        "of one mode, per (cycle per unit length)^2",
    ),
    Row(
        "xrft", "`xrft.isotropic_power_spectrum(x)`", "a^2 k / 2 pi", SPACING**2, xrft_isotropic,
        "times its radial frequency: white noise rises like k (measured: factor over k / 2 pi)",
    ),
    Row(
        "powerbox", "`get_power(x, L a)`", "a^2", SPACING**2, powerbox,
        "our shells given as `bins`; its own begin with one that has k = 0 in it. `dimensionless` is for points only",
    ),
    Row(
        "pysteps", "`rapsd(x, fft_method=numpy.fft)`", "1", 1.0, pysteps,
        "k in cycles per site; the last shell is left out",
    ),
    Row(
        "pysteps", "the k of `rapsd` on 32 x 64 sites", "0.5", 0.5, pysteps_not_square,
        "of a wave along the short side: it bins by the index, not by k",
    ),
)  # fmt: skip


def check(row: Row) -> float:
    """The measured factor; AssertionError unless it is the expected one."""
    found = row.measured()
    # Zero is an absolute statement: what is left of a mean that was subtracted.
    np.testing.assert_allclose(found, row.expected, rtol=row.rtol, atol=1e-20, err_msg=f"{row.package}: {row.call}")
    return found


def installed(row: Row) -> bool:
    return importlib.util.find_spec(row.package) is not None


def table() -> str:
    lines = ["| package | call | factor | measured | remark |", "| --- | --- | --- | ---: | --- |"]
    for row in ROWS:
        lines.append(f"| {row.package} | {row.call} | {row.says} | {round(check(row), 12):.6g} | {row.note} |")
    packages = dict.fromkeys(row.package for row in ROWS)
    return "\n".join([*lines, "", "Versions: " + ", ".join(f"{name} {version(name)}" for name in packages) + "."])


def lengths_table() -> str:
    """Every estimator on exact Gaussian fields, S = 1 / (xi^-2 + k^2), side 28, 4000 samples, seed 1."""
    lengths = (1.0, 2.0, 4.0, 8.0, 16.0)
    found: dict[str, list[float]] = {}
    for xi in lengths:
        fields = fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=28).sample_data(4000, seed=1)
        noisy = fields + np.random.default_rng(2).normal(scale=1.5, size=fields.shape)
        for name, call in {
            "`ornstein_zernike`": lambda x=fields: fc.correlation_length(x),
            "the same without k = 0": lambda x=fields: fc.correlation_length(x, include_zero=False),
            "the same, noise of variance 2.25 added, B free": lambda x=noisy: fc.correlation_length(
                x, background="free"
            ),
        }.items():
            found.setdefault(name, []).append(call().value)
        for method in fc.METHODS:
            if method != "ornstein_zernike":
                found.setdefault(f"`{method}`", []).append(fc.correlation_length(fields, method=method).value)
    lines = ["| true xi | " + " | ".join(f"{xi:g}" for xi in lengths) + " |", "| --- |" + " ---: |" * len(lengths)]
    lines += [f"| {name} | " + " | ".join(f"{value:.3g}" for value in values) + " |" for name, values in found.items()]
    return "\n".join(lines)


def crops_table() -> str:
    """Lengths of 4000 crops of side 32, four of each of 1000 exact fields of side 128, and of these fields; seed 1."""
    lengths, side, whole = (2.0, 4.0, 8.0), 32, 128
    found: dict[str, list[float]] = {method: [] for method in fc.METHODS}
    for xi in lengths:
        fields = fc.theory.GaussianTheory.ornstein_zernike(xi=xi, lattice=whole).sample_data(1000, seed=1)
        corners = [(y, x) for y in (0, whole // 2) for x in (0, whole // 2)]
        crops = np.concatenate([fields[:, y : y + side, x : x + side] for y, x in corners])
        for method, row in found.items():
            row += [
                fc.correlation_length(fields, method=method).value,
                fc.correlation_length(crops, method=method).value,
                fc.correlation_length(crops, method=method, periodic=False).value,
            ]
    head = " | ".join(f"xi = {xi:g}, whole | torus | `periodic=False`" for xi in lengths)
    lines = [f"| `method` | {head} |", "| --- |" + " ---: |" * 3 * len(lengths)]
    lines += [f"| `{name}` | " + " | ".join(f"{x:.3g}" for x in row) + " |" for name, row in found.items()]
    return "\n".join(lines)


def between(page: str, marks: tuple[str, str], text: str) -> str:
    begin, end = (page.index(mark) for mark in marks)
    return page[: begin + len(marks[0])] + "\n" + text + "\n" + page[end:]


def main() -> int:
    page = between(PAGE.read_text(), MARKS, table())
    page = between(page, LENGTH_MARKS, lengths_table())
    PAGE.write_text(between(page, CROP_MARKS, crops_table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
