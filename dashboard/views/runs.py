"""All runs of the folder in one table, newest first; what is noted of one, its name and its end are changed here."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
import streamlit as st

from inrank_monitor.runs import RunSummary, is_found
from views.choices import URL
from views.navigation import open_view
from views.page import Page, code, download, explain, plain, summarised
from views.run_dialogs import QUESTIONS, ask

_COLUMNS = {
    "run": "Run",
    "status": "Status",
    "tags": st.column_config.ListColumn("Tags"),
    "created": st.column_config.DatetimeColumn("Started", format="YYYY-MM-DD HH:mm"),
    "step": st.column_config.NumberColumn("Steps"),
    "snapshots": st.column_config.NumberColumn("Snapshots"),
    "matrices": st.column_config.NumberColumn("Matrices"),
    "parameters": st.column_config.NumberColumn("Parameters", format="compact"),
    "loss": st.column_config.NumberColumn("Last loss", format="%.4g"),
    "mean_rank": st.column_config.NumberColumn("Mean rank", format="%.1f"),
    "mean_rank_over_null_rank": st.column_config.NumberColumn(
        "Rank / null",
        format="%.2f",
        help="Mean over the matrices of rank over that of noise of the same shape: near 1, ranks say nothing.",
    ),
    "cost": st.column_config.NumberColumn("Tracker cost", format="percent", help="Share of the wall time."),
    "model": "Model",
    "notes": "Notes",
}


def choose(page: Page) -> str:
    """Words to search for."""
    explain(
        "Every run in the folder and in folders of it, the newest first. Rank / null compares the mean rank of its "
        "matrices with the rank that the same rule gives noise.",
        "Choose one or several rows to look at them in the other views; of one, tags and notes can be changed. A rank "
        "/ null far below 1 means that the training used few directions; of a run that diverged, ranks mean nothing.",
    )
    words = st.text_input(
        "Search",
        key="search",
        placeholder="Words in names, tags and notes",
        label_visibility="collapsed",
        **URL,
    )
    return str(words or "")


def show(page: Page, choice: str) -> None:
    """The table; its selection is the selection of the whole page."""
    everything, problems = _table(page)
    for name, problem in {**page.folder.refused(), **problems}.items():
        st.warning(plain(f"{name}: {problem}"), icon=":material/healing:")
    table = everything[[is_found(choice, *each) for each in zip(everything["run"], everything["about"], strict=True)]]
    table = table.drop(columns="about")
    names, before = list(table["run"]), list(st.session_state.get("run", []))
    if st.session_state.get("runs_drawn", names) != names:  # places of rows have moved: select them anew
        st.session_state["runs_drawn"] = names
        st.session_state["runs_table"] = st.session_state.get("runs_table", 0) + 1
        st.rerun()
    st.session_state["runs_drawn"] = names
    event = st.dataframe(
        table,
        key=f"runs {st.session_state.get('runs_table', 0)}",
        column_config=_COLUMNS,
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [names.index(name) for name in before if name in names]}},
        alt=f"Table of {len(names)} runs with status, tags, steps, loss, ranks and cost",
    )
    selected = [names[row] for row in event.selection.rows if row < len(names)]
    if set(selected) != set(before) & set(names):
        # what the search hides stays chosen
        st.session_state["wanted_runs"] = [*selected, *(name for name in before if name not in names)]
        st.rerun()
    _buttons(page, table, selected)
    found = f"{len(names)} of {len(everything)} runs" if choice.strip() else f"{len(names)} runs"
    st.markdown(f"{found} in {code(page.folder.path)}")


def _buttons(page: Page, table: pd.DataFrame, selected: list[str]) -> None:
    """What can be done with the runs that are chosen."""
    one = selected[0] if len(selected) == 1 else None
    with st.container(horizontal=True):
        if st.button("Open the overview", disabled=not selected, type="primary"):
            open_view("Overview")
        if st.button("Compare", disabled=len(selected) < 2):
            open_view("Compare")
        for question, icon in QUESTIONS.items():
            pressed = st.button(
                question,
                key=f"ask {question}",
                icon=f":material/{icon}:",
                disabled=one is None,
                help=None if one else "Choose one run",
            )
            if pressed and one:
                ask(question, page, one)
        download("Table as CSV", lambda: table.to_csv(index=False), "runs.csv", "text/csv", "runs")


def _table(page: Page) -> tuple[pd.DataFrame, dict[str, str]]:
    """A row a run, with its notes as they are kept in `about`; and what is wrong with others, or with notes."""
    rows, problems = [], {}
    for name in page.folder.names():
        try:
            summary = summarised(page.folder, name)
        except (OSError, ValueError) as error:
            problems[name] = f"cannot be opened: {error}"
            continue
        rows.append(_row(name, summary))
        if summary.notes.problem:
            problems[name] = summary.notes.problem
    rows.sort(key=lambda row: row["created"], reverse=True)
    return pd.DataFrame(rows, columns=[*_COLUMNS, "about"]), problems


def _row(name: str, summary: RunSummary) -> dict[str, object]:
    status = {"live": "● live"}.get(summary.status, summary.status)
    return {
        "run": name,
        "status": f"⚠ {summary.diverged.partition(':')[0]}, {status}" if summary.diverged else status,
        "tags": list(summary.notes.tags),
        "created": datetime.fromtimestamp(summary.created),
        "step": summary.step,
        "snapshots": summary.snapshots,
        "matrices": summary.matrices,
        "parameters": summary.parameters,
        "loss": summary.loss,
        "mean_rank": summary.mean_rank,
        "mean_rank_over_null_rank": summary.mean_rank_over_null_rank,
        "cost": summary.overhead,
        "model": summary.model,
        "notes": summary.notes.text,
        "about": summary.notes,
    }
