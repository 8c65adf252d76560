"""Writing a result into a run that is on disk: see `inrank_monitor.runs.add_tables`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inrank_monitor.runs import add_tables

TABLE, CURVE = "loss_ranks", "loss_curve"


def step_of(path: Path) -> int:
    """The last step that is known of a run."""
    from inrank_monitor.runs import open_run  # pandas

    return open_run(path).summary().step


def saved_in(path: Path, columns: Mapping[str, Sequence[Any]], curve: Mapping[str, Sequence[Any]]) -> None:
    """Add the rows to the run's tables, ranks and what was evaluated for them.

    Raises:
        OSError: it cannot be written.
    """
    add_tables(path, {TABLE: columns, CURVE: curve})
