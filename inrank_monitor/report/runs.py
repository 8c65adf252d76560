"""Many runs as a table for the terminal, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from inrank_monitor.report.terminal import printable
from inrank_monitor.runs import RunSummary

_HEADS = ("run", "status", "created", "steps", "snapshots", "matrices", "loss", "mean rank", "rank/null", "cost")


def runs_table(runs: Sequence[RunSummary]) -> str:
    """The runs in the order given; `cost` is the tracker's share of wall time."""
    rows = [_HEADS, *(_row(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = []
    for row in rows:
        texts = [
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _row(run: RunSummary) -> tuple[str, ...]:
    def number(value: float | None, pattern: str) -> str:
        return "–" if value is None else pattern.format(value)

    return (
        printable(run.path.name),
        run.status,
        f"{datetime.fromtimestamp(run.created):%Y-%m-%d %H:%M}",
        str(run.step),
        str(run.snapshots),
        str(run.matrices),
        number(run.loss, "{:.4g}"),
        number(run.mean_rank, "{:.1f}"),
        number(run.mean_rank_over_null_rank, "{:.2f}"),
        number(run.overhead, "{:.1%}"),
    )
