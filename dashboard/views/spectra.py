"""What the views of one matrix's spectrum look up in the run's tables."""

from __future__ import annotations

import numpy as np

from inrank_monitor.ranks import null_singular_values
from inrank_monitor.runs import RunState


def shape(state: RunState, matrix: str) -> tuple[int, int]:
    """Rows and columns."""
    rows, cols = state.matrices.loc[[matrix], ["rows", "cols"]].to_numpy(dtype=int)[0].tolist()
    return rows, cols


def spectrum_size(state: RunState, matrix: str) -> int | None:
    """min(rows, cols) where zeros beyond what is stored are part of the spectrum."""
    whole = bool(state.matrices["in_factors"][matrix]) and state.leading is None
    return min(shape(state, matrix)) if whole else None


def null_spectrum(state: RunState, matrix: str, leading: int | None = None) -> np.ndarray | None:
    """Expected spectrum of noise, or its leading values; None for a layer in factors, whose noise is another."""
    if state.matrices["in_factors"][matrix]:
        return None
    return np.asarray(null_singular_values(*shape(state, matrix))[:leading])


def present_ranks(state: RunState, matrix: str) -> dict[int, int]:
    """Rank at each finite step."""
    rows = state.measurements[state.measurements["matrix"] == matrix]
    rows = rows[rows["intrinsic_rank"].notna()]
    return dict(zip(rows["step"].astype(int), rows["intrinsic_rank"].astype(int), strict=True))
