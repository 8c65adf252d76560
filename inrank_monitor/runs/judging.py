"""What the newest spectrum of each matrix says beside noise; see `inrank_monitor.ranks.verdict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from inrank_monitor.ranks import Verdict, dense_verdict, factors_verdict
from inrank_monitor.runs.divergence import DIVERGED, Divergence


def verdicts(matrices: pd.DataFrame, measurements: pd.DataFrame, diverged: Divergence | None = None) -> pd.Series:
    """The verdict on each matrix at its newest measurement, finite or not.

    Args:
        matrices: `run.matrices`.
        measurements: `run.measurements`, or recomputed.
        diverged: `run.diverged`; where the whole training did, that stands in place of what a spectrum looks like.

    Returns:
        Text by matrix, in model order; NA where nothing was measured.
    """
    newest = measurements.drop_duplicates("matrix", keep="last")
    rows = newest.set_index(newest["matrix"].astype(str)).reindex(columns=list(_NEEDED)).astype("Float64").astype(float)
    rows = rows.join(matrices.reindex(columns=["rows", "cols", "buffer_rank"]))
    found: dict[Any, str] = {name: _verdict(row) for name, row in zip(rows.index, rows.to_dict("records"), strict=True)}
    names = pd.Index([str(name) for name in matrices.index], name="matrix")
    if diverged is not None and diverged.everywhere:
        found = {name: verdict if verdict in _NO_UPDATE else DIVERGED for name, verdict in found.items()}
    return pd.Series(found, dtype=object, name="verdict").reindex(names)


_NO_UPDATE = ("not finite", "has not moved")
_NEEDED = ("spectral_norm", "stable_rank", "signal_rank", "numerical_rank", "error_bound", "layer_rank", "capacity")


def _verdict(row: Mapping[Any, Any]) -> Verdict:
    rows, cols = int(row["rows"]), int(row["cols"])
    norm, stable = row["spectral_norm"], row["stable_rank"]
    if pd.notna(row["layer_rank"]):
        # a layer that grows holds b columns beyond its rank, an adapter none: its capacity is its rank
        held = row["layer_rank"] + row["buffer_rank"]
        columns = int(held if pd.isna(row["capacity"]) else min(held, row["capacity"]))
        return factors_verdict(rows, cols, columns, spectral_norm=norm, stable_rank=stable)
    return dense_verdict(
        rows,
        cols,
        spectral_norm=norm,
        stable_rank=stable,
        signal_rank=row["signal_rank"],
        numerical_rank=row["numerical_rank"],
        error_bound=0.0 if pd.isna(row["error_bound"]) else row["error_bound"],
    )
