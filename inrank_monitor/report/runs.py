"""Many runs as a table for the terminal, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from inrank_monitor.report.terminal import printable
from inrank_monitor.runs import RunSummary

_HEADS = (
    "run",
    "status",
    "created",
    "steps",
    "snapshots",
    "matrices",
    "loss",
    "mean rank",
    "rank/null",
    "cost",
    "tags",
)
_WORDS = ("run", "status", "created", "tags")  # the others are numbers


def runs_table(runs: Sequence[RunSummary]) -> str:
    """The runs in the order given; `cost` is the tracker's share of wall time. Tags only where a run has some."""
    rows = [_HEADS, *(_row(run) for run in runs)]
    if not any(run.notes.tags for run in runs):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [
            cell.ljust(width) if head in _WORDS else cell.rjust(width)
            for head, cell, width in zip(_HEADS, row, widths, strict=False)
        ]
        lines.append("  ".join(texts).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _row(run: RunSummary) -> tuple[str, ...]:
    def number(value: float | None, pattern: str) -> str:
        return "–" if value is None else pattern.format(value)

    return (
        printable(run.name),
        f"{run.status}, {run.diverged.partition(':')[0]}" if run.diverged else run.status,
        f"{datetime.fromtimestamp(run.created):%Y-%m-%d %H:%M}",
        str(run.step),
        str(run.snapshots),
        str(run.matrices),
        number(run.loss, "{:.4g}"),
        number(run.mean_rank, "{:.1f}"),
        number(run.mean_rank_over_null_rank, "{:.2f}"),
        number(run.overhead, "{:.1%}"),
        printable(", ".join(run.notes.tags)),
    )
