# Stub of the compiled core (python/module.cpp). Arrays are C-contiguous and of exactly these dtypes.
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Real = TypeVar("_Real", bound=np.floating[Any])  # float32 or float64

class Spectrometer:
    """Lattice tables and kernels for fields of one shape; see csrc/include/fastcrit/spectra.hpp."""

    def __init__(self, shape: Sequence[int]) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def shell_width(self) -> float: ...
    @property
    def shells(self) -> int: ...
    @property
    def shells_below_nyquist(self) -> int: ...
    @property
    def orbit_k(self) -> NDArray[np.float64]: ...
    @property
    def orbit_k2_lattice(self) -> NDArray[np.float64]: ...
    @property
    def orbit_multiplicity(self) -> NDArray[np.int64]: ...
    @property
    def orbit_shell(self) -> NDArray[np.int64]: ...
    @property
    def orbit_of_mode(self) -> NDArray[np.int64]: ...
    @property
    def lag_shell_of_site(self) -> NDArray[np.int64]: ...
    @property
    def lag_r(self) -> NDArray[np.float64]: ...
    @property
    def lag_multiplicity(self) -> NDArray[np.int64]: ...
    @property
    def lag_shells_inside(self) -> int: ...
    def shell_power(self, fields: NDArray[_Real], out: NDArray[_Real]) -> int:
        """Fill out (count, shells) with mean powers; return the first field that is not finite, or count."""

    def power(
        self,
        fields: NDArray[_Real],
        bins: str,
        offset: NDArray[_Real] | None = None,
        selected: Selection | None = None,
    ) -> tuple[NDArray[_Real], NDArray[_Real]]: ...
    def record(
        self,
        fields: NDArray[np.floating[Any]],
        channels: int,
        first: int,
        selected: Selection,
        blocks: int,
        state: dict[str, NDArray[Any]],
    ) -> int:
        """Add a batch to the arrays of state, those of `record_rows` by name.

        Returns the first field that is not finite, or the number of fields.
        """

    def autocorrelation(self, fields: NDArray[_Real], offset: NDArray[_Real] | None = None) -> NDArray[_Real]: ...
    def add_fields(self, fields: NDArray[np.floating[Any]], to: NDArray[np.float64]) -> None:
        """Add every field to ``to`` (N1, .., Nd), in their order."""

    def first_modes(self, fields: NDArray[np.floating[Any]], out: NDArray[np.float64]) -> int:
        """Fill out (1 + 2 ndim, count): sum, re and im at 2 pi / L of each axis; return as shell_power does."""

class Selection:
    """Modes whose amplitudes are wanted: ascending indices into the half spectrum [kx][z][y]."""

    def __init__(self, spectrometer: Spectrometer, indices: Sequence[int]) -> None: ...
    def __len__(self) -> int: ...

cuda_compiled: bool
"""Whether `CudaSpectrometer` is there."""
cuda_host: bool
"""Whether its kernels were compiled for the processor: device pointers are then pointers to host memory."""

def cuda_launches() -> int:
    """Launches so far; where the kernels were compiled for the processor."""

def set_cuda_idle(idle: bool) -> None:
    """Whether launches are counted and do nothing; where the kernels were compiled for the processor."""

class CudaSpectrometer:
    """Tables and kernels for fields of one shape on one CUDA device; see csrc/include/fastcrit/cuda.hpp.

    Pointers are device addresses, ``stream`` is a cudaStream_t, 0 for the default one; both as integers. Arrays are
    C-contiguous, results are written whole. Nothing but the constructors, this one and CudaSelection's, allocates or
    synchronises; every other call only launches kernels on the stream. dtype is "float32", "float16" or "bfloat16"
    (results are float32, or float64 where said). A field's results are the same bits in every batch.
    """

    def __init__(self, shape: Sequence[int], device: int) -> None: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> int: ...
    @property
    def fused(self) -> bool:
        """Whether `power` serves it: an even height, sides without a prime factor above 7, as far as they fit."""

    def power(
        self,
        fields: int,
        dtype: str,
        count: int,
        offset: int,
        bins: str,
        sums: int,
        selected: CudaSelection | None,
        modes: int,
        totals: int,
        stream: int,
        signs: bool = False,
    ) -> None:
        """Bin sums of ``|phi^|^2 / N``, phi = field - offset, straight from fields. RuntimeError unless `fused`.

        offset float32 (sites,), or 0. sums float32 (count, bins). modes float32 (count, len(selected), 2): phi^; 0
        when selected is None. totals float64 (count,), or 0: sums over sites, NaN where any result of the field is
        not finite. signs: measure the signs of the values (+1 for >= 0, else -1) instead.
        """

    def power_from_half_spectrum(
        self,
        spectrum: int,
        count: int,
        bins: str,
        sums: int,
        selected: CudaSelection | None,
        modes: int,
        totals: int,
        stream: int,
    ) -> None:
        """Likewise from spectrum complex64 (count, N1, .., Nd/2 + 1), torch.fft.rfftn of real fields; any shape.

        totals float64 (count,), or 0: here it is read-modify-write. Entries become NaN where a sum of the field is not
        finite and stay as they are elsewhere: pass the first row of `first_modes`, which holds sums over sites.
        """

    def first_modes_scratch(self, count: int) -> int:
        """Bytes of device memory (8-byte aligned) that `first_modes` needs; may be 0."""

    def first_modes(self, fields: int, dtype: str, count: int, out: int, scratch: int, stream: int) -> None:
        """Fill out float64 (1 + 2 ndim, count): sum over sites, re and im of phi^ at 2 pi / L of each axis."""

    def lag_sums(self, correlation: int, count: int, sums: int, stream: int) -> None:
        """Sums over the lags of each shell, float32 (count, lag shells), of correlation float32 (count, N1, .., Nd).

        With correlation = irfftn(abs(rfftn(phi)) ** 2) / N the result is that of `Spectrometer.autocorrelation`.
        """

    def shell_means(self, fields: int, dtype: str, count: int, means: int, kept: int, bad: int, stream: int) -> None:
        """Means of ``|phi^|^2 / N`` over the first shells' modes, float32 (count, kept). RuntimeError unless `fused`.

        The number of the first field with a result that is not finite, or whose square is too small for float32 to hold
        to its last digit, lowers bad, one int64 that the caller sets to 2^63 - 1.
        """

    def average_scratch(self, count: int, center: str, selected: CudaSelection) -> int:
        """Bytes of device memory (16-byte aligned) that `average` needs for ``count`` fields."""

    def average(
        self,
        fields: int,
        dtype: str,
        samples: int,
        channels: int,
        blocks: int,
        center: str,
        selected: CudaSelection,
        means: int,
        kept: int,
        power: int,
        first: int,
        note: int,
        scratch: int,
        stream: int,
    ) -> None:
        """Averages over samples of ``|phi^|^2 / N`` of fields (samples, channels, N1, .., Nd), centred, in 3 launches.

        center: "ensemble", "sample" or "none", as in `structure_factor`; 2 launches where nothing is subtracted.
        ``selected`` has k = 0 and the modes at 2 pi / L of each axis. means float64 (2, channels, kept): of the first
        shells, and their standard errors. power float64 (blocks, channels, orbits) and first (blocks, channels, ndim)
        are sums over samples, sample j in block j mod blocks. note, (1 + channels (1 + shells)) words in memory of the
        host that the device writes to: an int64, which the caller sets to 2^63 - 1, lowered as by `shell_means`; then
        float64 of each channel: the mean square of the first sample, with "sample" that of all samples' means, and sums
        over samples by shell. RuntimeError unless `fused`.
        """

class CudaSelection:
    """As `Selection`, on the device of a spectrometer: the only one that takes it. The constructor synchronises."""

    def __init__(self, spectrometer: CudaSpectrometer, indices: Sequence[int]) -> None: ...
    def __len__(self) -> int: ...

class CudaChannelProducts:
    """Which of the selected modes make up shells: of shell s at[begin[s]] to at[begin[s + 1] - 1], with weights."""

    def __init__(
        self, selected: CudaSelection, begin: Sequence[int], at: Sequence[int], weight: Sequence[float]
    ) -> None: ...

class CudaRecording:
    """The sums of one level of a record, and what adds batches of samples (samples, channels, N1, .., Nd) to them.

    state: addresses of the arrays of `record_rows` by name, of the signs all or none, and of "offset" (channels) and
    "cross" (blocks, shells, channels, channels), which ``products`` need. Sample j goes to block (first + j) mod
    blocks. A sample with a result that is not finite is left out, and the number (first + j) * channels + channel of
    its first such field lowers bad, one int64 that the caller sets to 2^63 - 1. The same batches give the same bits.
    """

    def __init__(
        self,
        spectrometer: CudaSpectrometer,
        selected: CudaSelection,
        channels: int,
        blocks: int,
        state: dict[str, int],
        products: CudaChannelProducts | None,
        bad: int,
    ) -> None: ...
    def workspace(self, dtype: str, samples: int) -> int:
        """Bytes of device memory (16-byte aligned) that `add` and `add_measured` need."""

    def fix_offset(self, fields: int, dtype: str, samples: int, stream: int) -> None:
        """Set the offsets of a level without samples from the first of a batch; one launch. See offset.py."""

    def add(self, fields: int, dtype: str, samples: int, first: int, workspace: int, stream: int) -> None:
        """Measure a batch and add it; RuntimeError unless the spectrometer is `fused`. Two launches, with signs three.

        One more for a batch so large that it is summed in pieces.
        """

    def add_measured(
        self,
        fields: int,
        dtype: str,
        samples: int,
        first: int,
        sums: int,
        modes: int,
        totals: int,
        sign_sums: int,
        workspace: int,
        stream: int,
    ) -> None:
        """Add a batch of which `power_from_half_spectrum` found sums (orbits) and modes; sign_sums of the signs, or 0.

        totals: the first row of `first_modes`, NaN for fields that are to be left out.
        """

def record_rows() -> list[tuple[str, tuple[str | int, ...], np.dtype[Any], str]]:
    """The arrays that `record` adds to: name, sides, dtype, and when one is there; csrc/include/fastcrit/record.hpp.

    A side is a number, or one of "blocks", "channels", "orbits", "selected" (modes), "ndim" and "sites". An array is
    there "always", with all others of the "signs" or none of them, or where it is "given" (offsets, which are read).
    """

def instruction_set() -> str: ...
def available_instruction_sets() -> list[str]: ...
def use_instruction_set(name: str) -> None: ...
def set_largest_block(size: int) -> None: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
