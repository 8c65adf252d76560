"""The text that `summary()` gives, of a tracker that watches or of a closed one."""

from __future__ import annotations

from pathlib import Path

from inrank_monitor.console import plain_where_needed


def summary_of(directory: Path) -> str:
    """The run as a terminal table, in letters that standard output can show.

    Raises:
        OSError, ValueError, ...: whatever is wrong with the run.
    """
    from inrank_monitor.report import report_table
    from inrank_monitor.runs import open_run

    return plain_where_needed(report_table(open_run(directory)))


def no_summary(directory: Path, error: Exception) -> str:
    """What is said in place of it."""
    return plain_where_needed(f"there is no summary of {directory}: {type(error).__name__}: {error}\n")
