"""A run as a table for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import pandas as pd

from inrank_monitor.figures import representative, short_names
from inrank_monitor.report.digest import (
    cells,
    loss_line,
    matrix_table,
    remarks,
    rule_line,
    shown_columns,
    status_line,
    verdict,
)
from inrank_monitor.report.source import RunTables

WIDTH = 100
_COLUMNS = {
    "buffer_rank": "b",
    "intrinsic_rank": "rank",
    "null_rank": "null",
    "rank_over_null_rank": "r/null",
    "signal_rank": "signal",
    "peak_rank": "peak",
    "peak_step": "at",
    "loss_rank": "by loss",
    "verdict": "verdict",
}
_LEGEND = (
    "rank: least that explains the change W − W0 by the rule above; null: what the rule gives noise of that "
    "shape; r/null: rank over null rank; signal: directions above what noise reaches; peak: highest rank after step "
    "10, and the step; verdict: on the newest spectrum; -: cannot be told."
)


def report_table(run: RunTables, limit: int | None = 60) -> str:
    """A run as text: status, a line a matrix, what is worth knowing; at most 100 columns wide.

    Args:
        run: an open run.
        limit: at most so many matrices, picked evenly over kinds and depth, with the highest and the lowest
            rank over null rank among them. None: all.
    """
    table = matrix_table(run)
    shown = _selection(table, limit)
    lines = [printable(run.name), *_wrap(status_line(run)), rule_line(run), ""]
    lines += _rows(table.loc[shown], list(table.index))
    if len(shown) < len(table):
        lines.append(f"... and {len(table) - len(shown)} more (--all shows them)")
    late = table["step"].notna() & (table["step"] < table["step"].max())
    if late.loc[shown].any():
        lines.append("* at an earlier step: no finite measurement since")
    lines += ["", *_wrap(verdict(table)), *_wrap(_LEGEND)]
    if said := loss_line(run):
        lines += _wrap(said)
    notes = remarks(run)
    if notes:
        lines += ["", "Worth knowing:"]
        lines += [line for note in notes for line in _wrap(note, first="- ", rest="  ")]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _selection(table: pd.DataFrame, limit: int | None) -> list[str]:
    if limit is None or len(table) <= limit:
        return list(table.index)
    ratio = table["rank_over_null_rank"].dropna()
    extremes = [ratio.idxmax(), ratio.idxmin()] if len(ratio) else []
    return representative(list(table.index), limit, keep=[str(name) for name in extremes])


def _rows(table: pd.DataFrame, names: list[str]) -> list[str]:
    newest = table["step"].max()
    columns = shown_columns(_COLUMNS, table)
    rows = cells(table, list(columns))
    heads = ("matrix", "shape", *columns.values())
    for row, step in zip(rows, table["step"], strict=True):
        row[heads.index("rank") - 1] += "*" if step < newest else ""
    widths = [max(len(text) for text in column) for column in zip(heads[1:], *rows, strict=True)]
    room = WIDTH - sum(widths) - 2 * len(widths)
    labels = {name: printable(label) for name, label in short_names(names, max(room, 12), "...").items()}
    first = max([len(labels[str(name)]) for name in table.index] + [len(heads[0])])
    lines = [_line(heads, first, widths)]
    lines.append("-" * len(lines[0]))
    for name, row in zip(table.index, rows, strict=True):
        lines.append(_line((labels[str(name)], *row), first, widths))
    return lines


def _line(texts: Sequence[str], first: int, widths: Sequence[int]) -> str:
    """Cells under each other: the first and the last, which are words, from the left."""
    middle = "".join(f"  {text.rjust(width)}" for text, width in zip(texts[1:-1], widths, strict=False))
    return f"{texts[0].ljust(first)}{middle}  {texts[-1].ljust(widths[-1])}"


def printable(text: str) -> str:
    """Text that cannot steer the terminal: control characters of names and messages become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _wrap(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, initial_indent=first, subsequent_indent=rest) or [first]
