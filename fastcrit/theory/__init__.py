"""What theory predicts: linear response of patch models, the exact Gaussian model, and the non-local pitchfork."""

from __future__ import annotations

from fastcrit.theory.gaussian import GaussianTheory
from fastcrit.theory.mixture import GaussianMixture
from fastcrit.theory.order_parameter import Pitchfork, pitchfork, speciation_level
from fastcrit.theory.patch import GinzburgLandau, PatchTheory

__all__ = [
    "GaussianMixture",
    "GaussianTheory",
    "GinzburgLandau",
    "PatchTheory",
    "Pitchfork",
    "pitchfork",
    "speciation_level",
]
