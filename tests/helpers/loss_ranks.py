"""Ranks by loss in a run, without a model to evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inrank_monitor.loss_ranks import LossRanks
from inrank_monitor.loss_ranks.result import CurvePoint
from inrank_monitor.loss_ranks.saving import saved_in


def write_loss_ranks(run: Path, ranks: Mapping[str, int], step: int, time: float = 2e9) -> None:
    """As if `ranks_by_loss` had found them at a step."""
    found = LossRanks(
        ranks=ranks,
        sizes={},
        loss=1.0,
        loss_at_ranks=1.005,
        tolerance=0.01,
        uniform_rank=None,
        evaluations=20,
        step=step,
        time=time,
        curve=tuple(CurvePoint(float(rank), rank, 1.0 + 0.05 / rank) for rank in (16, 1, 4, 2, 8)),
    )
    saved_in(run, found.columns(), found.curve_columns())
