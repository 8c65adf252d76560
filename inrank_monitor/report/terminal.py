"""A run as a table for the terminal."""

from __future__ import annotations

import textwrap

import pandas as pd

from inrank_monitor.figures import representative, short_names
from inrank_monitor.report.digest import (
    cells,
    loss_line,
    matrix_table,
    one_buffer_rank,
    remarks,
    rule_line,
    status_line,
    verdict,
)
from inrank_monitor.report.source import RunTables

WIDTH = 100
_HEADS = ("matrix", "shape", "b", "rank", "null", "rank/null", "peak", "by loss", "stable", "effective", "ΔW/W0")
_LEGEND = (
    "rank: least that explains the change W − W0 by the rule above; null: what the rule gives noise of that "
    "shape; peak: highest rank so far, without the first steps; ΔW/W0: size of the change over that of W0."
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
    ratio = table["rank_over_null"].dropna()
    extremes = [ratio.idxmax(), ratio.idxmin()] if len(ratio) else []
    return representative(list(table.index), limit, keep=[str(name) for name in extremes])


def _rows(table: pd.DataFrame, names: list[str]) -> list[str]:
    newest = table["step"].max()
    rows = cells(table)
    absent = {"b": one_buffer_rank(table), "by loss": "loss_rank" not in table}
    heads = tuple(head for head in _HEADS if not absent.get(head))
    if "loss_rank" in table:  # a line has no room for both
        place = heads.index("effective")
        heads = heads[:place] + heads[place + 1 :]
        for row in rows:
            del row[place - 1]
    for row, step in zip(rows, table["step"], strict=True):
        row[heads.index("rank") - 1] += "*" if step < newest else ""
    widths = [max(len(text) for text in column) for column in zip(heads[1:], *rows, strict=True)]
    room = WIDTH - sum(widths) - 2 * len(widths)
    labels = {name: printable(label) for name, label in short_names(names, max(room, 12), "...").items()}
    first = max([len(labels[str(name)]) for name in table.index] + [len(heads[0])])
    lines = [heads[0].ljust(first) + "".join(f"  {h.rjust(w)}" for h, w in zip(heads[1:], widths, strict=True))]
    lines.append("-" * len(lines[0]))
    for name, row in zip(table.index, rows, strict=True):
        lines.append(
            labels[str(name)].ljust(first) + "".join(f"  {c.rjust(w)}" for c, w in zip(row, widths, strict=True))
        )
    return lines


def printable(text: str) -> str:
    """Text that cannot steer the terminal: control characters of names and messages become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _wrap(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(printable(text), WIDTH, initial_indent=first, subsequent_indent=rest) or [first]
