"""Figures of a study, each a function of its dataset: matplotlib, in colours for colour-blind readers too."""

from __future__ import annotations

from fastcrit.plot.figures import (
    alignment,
    deficits,
    drift_rates,
    gains,
    lengths,
    order_parameter,
    save_figures,
    softening,
    states,
    structure_factors,
)

__all__ = [
    "alignment",
    "deficits",
    "drift_rates",
    "gains",
    "lengths",
    "order_parameter",
    "save_figures",
    "softening",
    "states",
    "structure_factors",
]
