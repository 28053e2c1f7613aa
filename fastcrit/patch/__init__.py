"""The patch score model: a dictionary of local patterns, sampled and measured exactly (Kamb & Ganguli 2412.20292)."""

from __future__ import annotations

from typing import Any

from fastcrit.patch.dictionary import Dictionary

__all__ = ["Dictionary", "denoise", "response", "sample"]


def __getattr__(name: str) -> Any:
    # The sampler brings numba, which takes longer to import than the rest of fastcrit together.
    if name in ("denoise", "response", "sample"):
        from fastcrit.patch import sampler

        return getattr(sampler, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
