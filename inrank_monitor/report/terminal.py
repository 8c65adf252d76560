"""A run as a table for the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

import pandas as pd

from inrank_monitor.figures import representative, short_names
from inrank_monitor.report.digest import (
    cells,
    divergence_line,
    loss_line,
    matrix_table,
    remarks,
    rule_line,
    shown_columns,
    status_line,
    verdict,
)
from inrank_monitor.report.source import RunTables
from inrank_monitor.report.widths import width_table, widths_line

NARROWEST, USUAL, WIDEST = 80, 100, 200  # columns; the usual where no terminal is
_PROSE = 120
_WIDE = 120  # from here on there are the other numbers too
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
_ONLY_WIDE = {"stable_rank": "stable", "effective_rank": "effective", "relative_norm": "ΔW/W0", "step": "step"}
# What a narrow terminal does without, first to last, until a name has as many letters as it needs, at most these.
_LEFT_OUT = ("step", "relative_norm", "effective_rank", "stable_rank", "buffer_rank", "peak_step", "peak_rank", "shape")
_NAME = 24
_LEGEND = {
    "intrinsic_rank": "rank: least that explains the change W − W0 by the rule above",
    "null_rank": "null: what the rule gives noise of that shape",
    "rank_over_null_rank": "r/null: rank over null rank",
    "signal_rank": "signal: directions above what noise reaches",
    "peak_rank": "peak: highest rank after step 10",
    "peak_step": "at: the step of the peak",
    "relative_norm": "ΔW/W0: size of the change over that of W0",
    "verdict": "verdict: on the newest spectrum",
}


def report_table(run: RunTables, limit: int | None = 60, width: int | None = None) -> str:
    """A run as text: status, a line a matrix, what is worth knowing.

    Args:
        run: an open run.
        limit: at most so many matrices, picked evenly over kinds and depth, with the highest and the lowest
            rank over null rank among them. None: all.
        width: no line is longer, 80 to 200; the narrower, the fewer columns. None: as the terminal is, 100 where there
            is none.
    """
    width = terminal_width() if width is None else min(max(width, NARROWEST), WIDEST)
    table = matrix_table(run)
    shown = _selection(table, limit)

    def _wrap(text: str, first: str = "", rest: str = "") -> list[str]:
        return wrapped(text, min(width, _PROSE), first, rest)

    lines = [*_wrap(run.name), *_wrap(status_line(run)), *_wrap(rule_line(run))]
    if diverged := divergence_line(run):
        lines += _wrap(f"! {diverged}")
    lines.append("")
    rows, columns = _rows(table.loc[shown], list(table.index), width)
    lines += rows
    legend = "; ".join(text for column, text in _LEGEND.items() if column in columns) + "; -: cannot be told."
    if len(shown) < len(table):
        lines.append(f"... and {len(table) - len(shown)} more (--all shows them)")
    late = table["step"].notna() & (table["step"] < table["step"].max())
    if late.loc[shown].any():
        lines.append("* at an earlier step: no finite measurement since")
    lines += ["", *_wrap(verdict(table)), *_wrap(legend)]
    if said := loss_line(run):
        lines += _wrap(said)
    if said := widths_line(width_table(run.width_plans)):
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


def _rows(table: pd.DataFrame, names: list[str], width: int) -> tuple[list[str], list[str]]:
    """The table's lines, and the columns that there is room for."""
    newest = table["step"].max()
    heads = {column: head for column, head in _COLUMNS.items() if column != "verdict"}
    heads |= (_ONLY_WIDE if width > _WIDE else {}) | {"verdict": _COLUMNS["verdict"]}
    heads = shown_columns(heads, table)
    texts = pd.DataFrame(cells(table, list(heads)), columns=["shape", *heads], index=table.index, dtype=object)
    texts["intrinsic_rank"] += ["*" if step < newest else "" for step in table["step"]]
    heads = {"shape": "shape", **heads}
    widths = {column: max([len(head), *map(len, texts[column])]) for column, head in heads.items()}
    longest = max(len(label) for label in short_names(names, _NAME, "...").values())
    for column in _LEFT_OUT:
        if width - sum(widths.values()) - 2 * len(widths) < min(longest, _NAME):
            widths.pop(column, None)
    columns = list(widths)
    room = width - sum(widths.values()) - 2 * len(widths)
    labels = {name: printable(label) for name, label in short_names(names, max(room, 12), "...").items()}
    first = max([len(labels[str(name)]) for name in table.index] + [len("matrix")])
    lines = [_line(("matrix", *(heads[column] for column in columns)), first, list(widths.values()))]
    lines.append("-" * len(lines[0]))
    for name, *row in texts[columns].itertuples():
        lines.append(_line((labels[str(name)], *row), first, list(widths.values())))
    return lines, columns


def _line(texts: Sequence[str], first: int, widths: Sequence[int]) -> str:
    """Cells under each other: the first and the last, which are words, from the left."""
    middle = "".join(f"  {text.rjust(width)}" for text, width in zip(texts[1:-1], widths, strict=False))
    return f"{texts[0].ljust(first)}{middle}  {texts[-1].ljust(widths[-1])}"


def printable(text: str) -> str:
    """Text that cannot steer the terminal: control characters of names and messages become question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def terminal_width() -> int:
    """Columns of the terminal, 80 to 200; 100 where there is none."""
    return min(max(shutil.get_terminal_size((USUAL, 24)).columns, NARROWEST), WIDEST)


def wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    """The text in lines that are no longer than that."""
    return textwrap.wrap(printable(text), width, initial_indent=first, subsequent_indent=rest) or [first]
