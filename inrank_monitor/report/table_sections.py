"""The report page's tables: matrices, what is not watched, events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import pandas as pd

from inrank_monitor.report.digest import cells, shown_columns, skipped
from inrank_monitor.report.source import RunTables

ROWS_SHOWN_AT_ONCE = 60
EVENTS_AT_MOST = 200
_COLUMNS = {
    "buffer_rank": "b",
    "intrinsic_rank": "rank",
    "null_rank": "null rank",
    "rank_over_null_rank": "rank / null",
    "signal_rank": "signal",
    "peak_rank": "peak",
    "peak_step": "at step",
    "loss_rank": "by loss",
    "stable_rank": "stable",
    "effective_rank": "effective",
    "relative_norm": "‖ΔW‖/‖W0‖",
    "step": "step",
    "verdict": "verdict",
}
_CAPTION = (
    "Each at its last finite measurement, the verdict on the newest. Signal: directions above what noise reaches. "
    "Peak: highest rank after step 10, and where. A dash: it cannot be told."
)


def matrices_section(table: pd.DataFrame) -> str:
    """Every matrix, in a table that sorts; sixty at once, the others on request, or all where no script runs."""
    columns = shown_columns(_COLUMNS, table)
    heads = ["matrix", "shape", *columns.values()]
    rows = [[str(name), *row] for name, row in zip(table.index, cells(table, list(columns)), strict=True)]
    parts = [
        f"<h2>The {len(rows)} matrices</h2>",
        f'<p class="caption">{escape(_CAPTION)}</p>',
        html_table(heads, rows, text=(0, len(heads) - 1)),
    ]
    more = len(rows) - ROWS_SHOWN_AT_ONCE
    button = f'<button class="more" hidden>the other {more}</button>' if more > 0 else ""
    return "\n".join(parts) + button


def skipped_section(run: RunTables) -> str:
    """The parameters that are not watched, by reason."""
    left_out = skipped(run)
    parts = ["<h2>What is not watched, and why</h2>"]
    if left_out.empty:
        parts.append('<p class="caption">Every parameter is watched.</p>')
    else:
        lines = [
            [str(note), str(row["count"]), ", ".join(map(str, row["parameters"]))] for note, row in left_out.iterrows()
        ]
        parts.append(html_table(["reason", "parameters", "which"], lines, text=(0,), long=(2,)))
    return "\n".join(parts)


def events_section(run: RunTables) -> str:
    """The latest events, rank growth included."""
    events = run.events
    if events.empty:
        return ""
    rows = [
        [str(int(step)), str(kind), name if isinstance(name, str) else "", str(message)]
        for step, kind, name, message in zip(
            events["step"], events["kind"], events["matrix"], events["message"], strict=True
        )
    ][-EVENTS_AT_MOST:]
    note = f", the last {EVENTS_AT_MOST} of {len(events)}" if len(events) > EVENTS_AT_MOST else ""
    table = html_table(["step", "event", "matrix", "message"], rows, text=(1, 2), long=(3,))
    opened = " open" if len(rows) <= 12 else ""
    return f"<h2>Events{note}</h2><details{opened}><summary>{len(rows)} events</summary>{table}</details>"


def html_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    text: Sequence[int] = (0,),
    long: Sequence[int] = (),
) -> str:
    """An escaped table; columns in `text` are left-aligned, those in `long` also wrap."""

    def kind(column: int) -> str:
        if column in long:
            return ' class="text long"'
        return ' class="text"' if column in text else ""

    head = "".join(f"<th{kind(i)}>{escape(cell)}</th>" for i, cell in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(i)}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
