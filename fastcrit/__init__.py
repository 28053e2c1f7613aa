"""fastcrit: how diffusion models turn noise into patterns, measured.

Spectra, structure factors, correlation lengths and mode gains along reverse-diffusion trajectories; the critical noise
level from theory and from data. ``import fastcrit`` loads neither torch nor numba: they come with what uses them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastcrit import _interpreter  # noqa: F401 (before anything compiled: it refuses subinterpreters)

# isort: split
from fastcrit import _core, errors, schedules
from fastcrit._estimates.lengths import METHODS
from fastcrit._version import __version__
from fastcrit.analyze import analyze
from fastcrit.correlation import CorrelationLength, correlation_length
from fastcrit.critical import CriticalPoint, critical_point
from fastcrit.errors import FileFormatError, NoTransitionError
from fastcrit.modes import ModeResponse, dispersion_length, mode_response
from fastcrit.observe import Recorder
from fastcrit.response import ResponseFunction, response_function
from fastcrit.spectra import (
    RadialCorrelation,
    RadialSpectrum,
    StructureFactor,
    autocorrelation,
    power_spectrum,
    structure_factor,
)

if TYPE_CHECKING:
    from fastcrit import alignment, data, diffusion, patch, plot, report, store, studies, theory

__all__ = [
    "METHODS",
    "CorrelationLength",
    "CriticalPoint",
    "FileFormatError",
    "ModeResponse",
    "NoTransitionError",
    "RadialCorrelation",
    "RadialSpectrum",
    "Recorder",
    "ResponseFunction",
    "StructureFactor",
    "alignment",
    "analyze",
    "autocorrelation",
    "core_info",
    "correlation_length",
    "critical_point",
    "data",
    "diffusion",
    "dispersion_length",
    "errors",
    "mode_response",
    "patch",
    "plot",
    "power_spectrum",
    "report",
    "response_function",
    "schedules",
    "set_num_threads",
    "store",
    "structure_factor",
    "studies",
    "theory",
]

_SUBMODULES = ("alignment", "data", "diffusion", "patch", "plot", "report", "store", "studies", "theory")


def core_info() -> dict[str, Any]:
    """Which instruction set the compiled core uses, which it could use, how many threads; whether it has CUDA kernels.

    Examples
    --------
    >>> import fastcrit as fc
    >>> "baseline" in fc.core_info()["available"]
    True
    """
    return {
        "version": __version__,
        "instruction_set": _core.instruction_set(),
        "available": _core.available_instruction_sets(),
        "threads": _core.num_threads(),
        "cuda_kernels": getattr(_core, "cuda_compiled", False) and not _core.cuda_host,
    }


def set_num_threads(threads: int) -> None:
    """Threads that kernels and samplers use (the start value is $FASTCRIT_NUM_THREADS, or the usable processors)."""
    _core.set_num_threads(threads)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"fastcrit.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
