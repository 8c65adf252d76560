"""What a figure shows, as numbers."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np


def numbers(value: Any) -> np.ndarray:
    """A trace's array, which Plotly packs where it can."""
    if isinstance(value, dict):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"]).astype(float)
        return flat.reshape([int(n) for n in value["shape"].split(",")]) if "shape" in value else flat
    return np.array([np.nan if entry is None else entry for entry in value], dtype=float)
