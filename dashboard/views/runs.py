"""All runs of the folder in one table, newest first."""

from __future__ import annotations

from datetime import datetime

import pandas as pd
import streamlit as st

from inrank_monitor.runs import RunSummary
from views.navigation import open_view
from views.page import Page, code, download, explain, plain, summarised

_COLUMNS = {
    "run": "Run",
    "status": "Status",
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
}


def choose(page: Page) -> None:
    """Nothing to choose but in the table itself."""
    explain(
        "Every run in the folder, the newest first. Rank / null compares the mean rank of its matrices with the rank "
        "that the same rule gives noise.",
        "Choose one or several rows to look at them in the other views. A rank / null far below 1 means that the "
        "training used few directions; a tracker cost of a percent or so means that watching was cheap.",
    )


def show(page: Page, choice: None) -> None:
    """The table; its selection is the selection of the whole page."""
    table, problems = _table(page)
    for name, problem in {**page.folder.refused(), **problems}.items():
        st.warning(plain(f"{name}: {problem}"), icon=":material/healing:")
    names = list(table["run"])
    if st.session_state.get("runs_drawn", names) != names:  # places of rows have moved: select them anew
        st.session_state["runs_drawn"] = names
        st.session_state["runs_table"] = st.session_state.get("runs_table", 0) + 1
        st.rerun()
    st.session_state["runs_drawn"] = names
    key = f"runs {st.session_state.get('runs_table', 0)}"
    chosen = [names.index(name) for name in st.session_state.get("run", []) if name in names]
    event = st.dataframe(
        table,
        key=key,
        column_config=_COLUMNS,
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": chosen}},
        alt=f"Table of {len(names)} runs with status, steps, loss, ranks and cost",
    )
    selected = [names[row] for row in event.selection.rows if row < len(names)]
    if set(selected) != set(st.session_state.get("run", [])):
        st.session_state["wanted_runs"] = selected
        st.rerun()
    with st.container(horizontal=True):
        if st.button("Open the overview", disabled=not selected, type="primary"):
            open_view("Overview")
        if st.button("Compare", disabled=len(selected) < 2):
            open_view("Compare")
        download("Table as CSV", lambda: table.to_csv(index=False), "runs.csv", "text/csv", "runs")
    st.markdown(f"{len(names)} runs in {code(page.folder.path)}")


def _table(page: Page) -> tuple[pd.DataFrame, dict[str, str]]:
    rows, problems = [], {}
    for name in page.folder.names():
        try:
            rows.append(_row(name, summarised(page.folder, name)))
        except (OSError, ValueError) as error:
            problems[name] = f"cannot be opened: {error}"
    return pd.DataFrame(sorted(rows, key=lambda row: row["created"], reverse=True), columns=list(_COLUMNS)), problems


def _row(name: str, summary: RunSummary) -> dict[str, object]:
    return {
        "run": name,
        "status": {"live": "● live"}.get(summary.status, summary.status),
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
    }
