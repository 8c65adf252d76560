"""A run in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inrank_monitor.runs.log_files import Status
from inrank_monitor.runs.notes import RunNotes, read_notes

if TYPE_CHECKING:
    from inrank_monitor.runs.run import Run


@dataclass(frozen=True)
class RunSummary:
    """One line of a list of runs; None where nothing was measured or logged yet.

    Attributes:
        path: of the run directory.
        status: live, finished or interrupted.
        created: unix seconds.
        model: class name.
        matrices: how many are watched.
        parameters: of the whole model.
        step: the last one known.
        snapshots: how many.
        loss: the last one logged.
        mean_rank: over the matrices, at the last snapshot; None where a cut spectrum does not tell one of the ranks.
        mean_rank_over_null_rank: mean of rank / null rank there.
        overhead: the tracker's share of wall time.
        name: the directory's, or its path from the folder that was listed.
        diverged: how that is known, in a sentence; None: it is not.
        notes: tags and notes beside the run.
    """

    path: Path
    status: Status
    created: float
    model: str
    matrices: int
    parameters: int
    step: int
    snapshots: int
    loss: float | None
    mean_rank: float | None
    mean_rank_over_null_rank: float | None
    overhead: float | None
    name: str = ""
    diverged: str | None = None
    notes: RunNotes = field(default_factory=RunNotes)


def summarise(run: Run) -> RunSummary:
    """What a list of runs says of one."""
    measured, scalars = run.measurements, run.scalars
    last = measured[measured["step"] == measured["step"].max()]
    finite = last[np.isfinite(last["stable_rank"].astype(float))]

    def latest(*names: str) -> float | None:
        values = scalars.loc[scalars["name"].isin(names), "value"]
        return float(values.iloc[-1]) if len(values) else None

    def mean(values: pd.Series) -> float | None:
        """Over the finite updates; None of none, and where a cut spectrum does not tell one of them."""
        return None if values.empty or values.isna().any() else float(values.mean())

    known = [int(table["step"].max()) for table in (measured, scalars) if len(table)]
    return RunSummary(
        path=run.path,
        status=run.status,
        created=float(run.info["created"]),
        model=str(run.info["model"]["class"]),
        matrices=len(run.info["matrices"]),
        parameters=int(run.info["model"].get("parameters", 0)),
        step=max(known, default=0),
        snapshots=int(measured["step"].nunique()),
        loss=latest("loss", "train/loss", "train_loss"),
        mean_rank=mean(finite["intrinsic_rank"]),
        mean_rank_over_null_rank=mean(finite["rank_over_null_rank"]),
        overhead=latest("tracker_overhead"),
        name=run.name,
        diverged=run.diverged.text if run.diverged else None,
        notes=read_notes(run.path),
    )
