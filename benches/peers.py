"""The peers of a finished radial spectrum: what one would otherwise call.

``make(fields, ndim)`` prepares a peer for fields of shape (..., N1, .., Nd) and returns the call that is timed;
``check(fields, ndim, ours)`` fails unless what that call computes agrees with our spectra as far as definitions do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyfftw
import scipy.fft
import torch

from benches.batches import SITES, THREADS

Make = Callable[[np.ndarray, int], Callable[[], Any]]
Check = Callable[[np.ndarray, int, np.ndarray], None]


@dataclass(frozen=True)
class Peer:
    name: str
    does: str  # for the page: what exactly is timed
    make: Make
    check: Check
    sites: int = SITES  # how much of the batch it is timed on
    pairs: int = 25
    dims: tuple[int, ...] = (1, 2, 3)


def half_spectrum(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """Shell of every mode of the half spectrum, how many modes it stands for, and the number of shells up to Nyquist.

    From the definition and not from fastcrit, whose shells it checks: |k| over the fundamental, to the nearest.
    """
    side = min(shape)
    axes = [*(np.fft.fftfreq(n) for n in shape[:-1]), np.fft.rfftfreq(shape[-1])]
    k = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij"))) * side
    modes = np.broadcast_to(np.where(axes[-1] % 0.5 == 0, 1, 2), k.shape)
    return np.floor(k + 0.5).astype(int).ravel(), modes.ravel(), side // 2 + 1


def averaging_matrix(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """|phi^|^2 of the half spectrum times this matrix is the radial spectrum."""
    shell, modes, keep = half_spectrum(shape)
    matrix = np.zeros((shell.size, keep))
    inside = np.flatnonzero(shell < keep)
    matrix[inside, shell[inside]] = modes[inside]
    return (matrix / matrix.sum(axis=0) / np.prod(shape)).astype(dtype)


def last(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def fftw(fields, ndim):
    source = pyfftw.empty_aligned(fields.shape, fields.dtype)
    kind = np.result_type(fields.dtype, np.complex64)
    target = pyfftw.empty_aligned((*fields.shape[:-1], fields.shape[-1] // 2 + 1), kind)
    plan = pyfftw.FFTW(source, target, axes=last(ndim), threads=THREADS, flags=("FFTW_MEASURE",))
    source[:] = fields  # planning overwrites it

    def run():
        plan.execute()
        return target

    return run


def torch_transform(fields, ndim):
    x = torch.from_numpy(fields)
    return torch.inference_mode()(lambda: torch.fft.rfftn(x, dim=last(ndim)))


def torch_power(x, ndim):
    """The real and the imaginary part apart: twice as fast as abs(), which guards against overflow."""
    f = torch.fft.rfftn(x, dim=last(ndim))
    return (f.real.square() + f.imag.square()).flatten(-ndim)


def torch_matmul(fields, ndim):
    x = torch.from_numpy(fields)
    average = torch.from_numpy(averaging_matrix(fields.shape[-ndim:], fields.dtype))
    return torch.inference_mode()(lambda: torch_power(x, ndim) @ average)


def torch_index_add(fields, ndim):
    """What replaces the matrix where it grows large: half a million rows at 1024 x 1024."""
    shape = fields.shape[-ndim:]
    x = torch.from_numpy(fields)
    shell, modes, keep = half_spectrum(shape)
    target = torch.from_numpy(np.minimum(shell, keep))  # the last column collects what lies beyond Nyquist
    weight = torch.from_numpy((modes / np.prod(shape)).astype(fields.dtype))
    counts = torch.from_numpy(np.bincount(shell, modes)[:keep].astype(fields.dtype))

    @torch.inference_mode()
    def run():
        sums = torch.zeros(*fields.shape[:-ndim], keep + 1, dtype=x.dtype)
        return sums.index_add_(-1, target, torch_power(x, ndim) * weight)[..., :keep] / counts

    return run


def scipy_bincount(fields, ndim):
    shape = fields.shape[-ndim:]
    shell, modes, keep = half_spectrum(shape)
    counts = np.bincount(shell, modes)
    weight = (modes / np.prod(shape)).astype(fields.dtype)

    def run():
        f = scipy.fft.rfftn(fields, axes=last(ndim), workers=THREADS)
        power = (f.real**2 + f.imag**2).reshape(-1, shell.size) * weight
        spectra = np.stack([np.bincount(shell, p) / counts for p in power])[:, :keep]
        return spectra.reshape(*fields.shape[:-ndim], keep)

    return run


def powerbox(fields, ndim):
    from powerbox import get_power

    shape = fields.shape[-ndim:]
    edges = (np.arange(min(shape) // 2 + 2) - 0.5) * 2 * np.pi / min(shape)
    # A box as long as it has sites makes its power |phi^|^2 / N. (dimensionless is for points; fields ignore it.)
    options = {"boxlength": shape, "bins": edges, "dimensionless": False, "nthreads": THREADS}
    return lambda: np.stack([get_power(field, **options).power for field in fields])


def xrft(fields, ndim):
    import xarray as xr
    from xrft import isotropic_power_spectrum

    stack = xr.DataArray(fields, dims=("field", "y", "x"))
    return lambda: isotropic_power_spectrum(stack, dim=("y", "x"), truncate=True)


def rapsd(fields, ndim):
    from pysteps.utils.spectral import rapsd

    return lambda: np.stack([rapsd(field, fft_method=np.fft) for field in fields])


def same_transform(make: Make) -> Check:
    """The peer's modes, squared and averaged here, are our spectra."""

    def check(fields, ndim, ours):
        power = np.abs(np.asarray(make(fields, ndim)())) ** 2
        shells = averaging_matrix(fields.shape[-ndim:], np.float64)
        np.testing.assert_allclose(power.reshape(*power.shape[:-ndim], -1) @ shells, ours, rtol=1e-3)

    return check


def same_spectra(make: Make, missing: int = 0) -> Check:
    """The peer's spectra are ours, but for shells ``missing`` at the end."""

    def check(fields, ndim, ours):
        spectra = np.asarray(make(fields, ndim)())
        np.testing.assert_allclose(spectra, ours[..., : ours.shape[-1] - missing], rtol=1e-3)

    return check


def same_level_and_peak(fields, ndim, ours):
    """xrft bins otherwise: N / 4 bins of equal width up to the corner of the zone, and k times the average in each.

    It must have the level of white noise and the place of a plane wave in common with us.
    """
    spectra = xrft(fields, ndim)()
    level = float((spectra / spectra.freq_r).mean())
    np.testing.assert_allclose(level, ours[:, 1:].mean(), rtol=0.1)  # over 5 standard errors of the fewest modes
    side = fields.shape[-1]
    wave = np.cos(2 * np.pi * (side // 4) * np.arange(side) / side)
    peak = xrft(np.broadcast_to(wave, (1, side, side)), ndim)()
    bin_width = np.sqrt(0.5) / (side // 4)
    assert abs(float(peak.freq_r[int(peak.argmax())]) - (side // 4) / side) < bin_width


BATCHED = (
    Peer(
        "FFTW",
        "planned r2c transform (`FFTW_MEASURE`) of the batch from and to its own aligned arrays: the transform alone, "
        "neither power nor shells",
        fftw,
        same_transform(fftw),
    ),
    Peer(
        "torch.fft",
        "`torch.fft.rfftn` of the batch: again the transform alone",
        torch_transform,
        same_transform(torch_transform),
    ),
    Peer(
        "torch, matmul",
        "`torch.fft.rfftn`, \\|.\\|², product with a dense matrix that averages over shells",
        torch_matmul,
        same_spectra(torch_matmul),
    ),
    Peer(
        "torch, index_add",
        "`torch.fft.rfftn`, \\|.\\|², `index_add_` over shells",
        torch_index_add,
        same_spectra(torch_index_add),
    ),
    Peer(
        "scipy",
        f"`scipy.fft.rfftn(workers={THREADS})`, \\|.\\|², `numpy.bincount` of each field",
        scipy_bincount,
        same_spectra(scipy_bincount),
    ),
)

# A loop over fields takes the same time per field however many there are, so a part of the batch is enough. xrft takes
# a stack and gets enough of it for its own start to count little.
LOOP = {"sites": 2**16, "pairs": 15}
PACKAGES = (
    Peer(
        "powerbox",
        f"`powerbox.get_power` of each field, our shells as its bins, FFTW with {THREADS} threads",
        powerbox,
        same_spectra(powerbox),
        **LOOP,
    ),
    Peer(
        "pysteps",
        "`pysteps.utils.spectral.rapsd` of each field, `fft_method=numpy.fft`; the same shells but for the last",
        rapsd,
        same_spectra(rapsd, missing=1),
        **LOOP,
        dims=(2,),
    ),
    Peer(
        "xrft",
        "`xrft.isotropic_power_spectrum` of a stack of fields; N / 4 bins of its own",
        xrft,
        same_level_and_peak,
        sites=2**20,
        pairs=15,
        dims=(2,),
    ),
)
