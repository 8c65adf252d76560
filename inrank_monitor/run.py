"""A run directory as pandas tables: the name that this had before it became the room `runs`."""

from __future__ import annotations

from inrank_monitor.runs import Run, open_run

__all__ = ["Run", "open_run"]
