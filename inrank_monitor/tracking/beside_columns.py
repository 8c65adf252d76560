"""What was measured beside a snapshot's updates, as columns of its record batches, and its means for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inrank_monitor.ranks import metrics as rank_metrics
from inrank_monitor.ranks import tail_exponent
from inrank_monitor.runs import DIRECTION_METRICS, WEIGHT_METRICS
from inrank_monitor.spectra import Spectrum
from inrank_monitor.tracking.beside import Directions
from inrank_monitor.tracking.snapshot import Snapshot

_CONDITION_LIMIT = 1e7  # of the Gram matrix: below this share of σ₁ a singular value is rounding


def beside_columns(snapshot: Snapshot, short_sides: Mapping[int, int]) -> dict[str, dict[str, Any]]:
    """Columns by table, `weights` and `directions`; without a table of which nothing was measured.

    Args:
        snapshot: with what was measured.
        short_sides: min(rows, cols) by place.
    """
    found: dict[str, dict[str, Any]] = {}
    if weights := dict(sorted(snapshot.weights.items())):
        rows = [_weight_row(spectrum, short_sides[place]) for place, spectrum in weights.items()]
        columns = {name: [row[name] for row in rows] for name in (*WEIGHT_METRICS, "singular_values")}
        found["weights"] = _where(snapshot, list(weights)) | columns
    if directions := dict(sorted(snapshot.directions.items())):
        named = {name: [getattr(row, name) for row in directions.values()] for name in Directions._fields}
        found["directions"] = _where(snapshot, list(directions)) | named
    return found


def means(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The mean over the matrices of each number, by `mean/weights/stable_rank`; finite ones only."""
    names = {"weights": WEIGHT_METRICS, "directions": (*DIRECTION_METRICS, "intruder_dimensions")}
    found = {}
    for table, columns in tables.items():
        for name in names[table]:
            values = np.array([np.nan if value is None else value for value in columns[name]], dtype=float)
            if (finite := values[np.isfinite(values)]).size:
                found[f"mean/{table}/{name}"] = float(finite.mean())
    return found


def _where(snapshot: Snapshot, places: list[int]) -> dict[str, Any]:
    return {"step": [snapshot.step] * len(places), "time": [snapshot.time] * len(places), "matrix": places}


def _weight_row(spectrum: Spectrum, short_side: int) -> dict[str, Any]:
    """NaN and an empty spectrum where W_t is not finite; no condition and no tail of a spectrum that is cut."""
    values = spectrum.values.numpy()
    finite = bool(np.isfinite(values).all())
    whole = finite and len(values) == short_side and spectrum.error_bound == 0
    return {
        "spectral_norm": float(values[0]),
        "frobenius_norm": spectrum.frobenius_norm if finite else np.nan,
        "stable_rank": float(rank_metrics.stable_rank(values, np.array(spectrum.frobenius_norm))),
        "condition": _condition(values) if whole else np.nan,
        "tail_exponent": tail_exponent(values) if whole else np.nan,
        "singular_values": values.astype(np.float32) if finite else [],
    }


def _condition(values: np.ndarray) -> float:
    """σ₁ / σ_q; infinite above 1e7, NaN of a zero matrix."""
    if values[0] == 0:
        return float("nan")
    return float(values[0] / values[-1]) if values[-1] * _CONDITION_LIMIT >= values[0] else float("inf")
