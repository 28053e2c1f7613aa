"""JSON as the standard has it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def strict_json(value: Any) -> str:
    """JSON, which knows neither NaN nor infinities: null in their place."""
    return json.dumps(_without_nan(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
