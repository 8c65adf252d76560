"""All matrices in one table: sorted by a click on a head, opened by a click on a row."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from inrank_monitor.runs import RunState
from views.browser import chosen_by_key
from views.navigation import open_matrix
from views.page import download, explain, file_name, plain

_NUMBER = st.column_config.NumberColumn
_COLUMNS = {
    "matrix": st.column_config.TextColumn("Matrix", pinned=True),
    "unusual": st.column_config.TextColumn("Unusual", help="What is far from the other matrices of its kind, and why."),
    "intrinsic_rank": _NUMBER("Rank", format="%d", help="Now, by the paper's rule: least r with explained ratio ≥ α."),
    "ranks": st.column_config.LineChartColumn("Over steps", help="The rank, from the first step to the newest."),
    "trend": _NUMBER("Trend", format="%+.1f", help="By how many ranks it rises over the later half of the steps."),
    "peak_rank": _NUMBER("Peak", format="%d", help="The highest rank after step 10."),
    "peak_step": _NUMBER("At step", format="%d", help="Where the peak was first reached."),
    "loss_rank": _NUMBER("By loss", format="%d", help="The newest rank that the loss has confirmed."),
    "signal_rank": _NUMBER("Signal", format="%d", help="Directions above what noise of the same shape reaches."),
    "signal_share": _NUMBER("Share", format="percent", help="The part of ‖ΔW‖² in these directions."),
    "energy_rank": _NUMBER("Energy", format="%d", help="The least rank that holds 90 % of ‖ΔW‖²."),
    "null_rank": _NUMBER("Null", format="%d", help="The rank that the paper's rule gives noise."),
    "rank_over_null_rank": _NUMBER("Rank / null", format="%.2f"),
    "verdict": st.column_config.TextColumn("Verdict", help="What the newest spectrum looks like beside noise."),
    "relative_norm": _NUMBER("ΔW/W0", format="%.3g", help="‖ΔW‖ / ‖W0‖: how far the weights have moved."),
    "stable_rank": _NUMBER("Stable", format="%.1f"),
    "effective_rank": _NUMBER("Effective", format="%.1f"),
    "depth": "Depth",
    "kind": "Kind",
    "shape": "Shape",
    "step": _NUMBER("Step", format="%d", help="Of the newest finite measurement."),
}
_WHOLE = ("intrinsic_rank", "peak_rank", "peak_step", "loss_rank", "signal_rank", "energy_rank", "null_rank", "step")
ROW, MOST_ROWS = 35, 14


def trend_text(table: pd.DataFrame) -> str:
    """How many ranks still grow: by at least one and a tenth of the rank over the later half of the steps."""
    trend = table["trend"].dropna()
    if trend.empty:
        return ""
    least = (table["intrinsic_rank"].reindex(trend.index) / 10).clip(lower=1)
    grow, fall = int((trend >= least).sum()), int((trend <= -least).sum())
    return f"Over the later half of the steps {grow} ranks grow, {len(trend) - grow - fall} are settled, {fall} fall."


def show_matrices(state: RunState, table: pd.DataFrame) -> None:
    """The table; a click on a cell opens its matrix."""
    shown = shown_table(table)
    odd = int((table["unusual"] != "").sum())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{len(shown)} matrices**, {odd} unusual. A click on a row opens the matrix, one on a head sorts."
        )
        explain(
            "Each matrix at its newest finite measurement, the verdict on its newest. Signal: directions above what "
            "noise reaches, and their share of ‖ΔW‖². Peak: the highest rank after step 10, and where. By loss: the "
            "newest ranks that the loss has confirmed, if any were taken.",
            "Structured: some directions stand out from noise. Like noise: none does. Flatter than noise: the strong "
            "directions are more alike than chance makes them. An empty cell cannot be told.",
        )
        act = st.container(width="content")
    turn = st.session_state.get("matrices_opened", 0)
    answer = st.dataframe(
        shown,
        key=f"matrices {turn}",
        column_config={name: _COLUMNS[name] for name in shown},
        hide_index=True,
        on_select="rerun",
        selection_mode="single-cell",
        height=38 + ROW * max(min(len(shown), MOST_ROWS), 1),
        alt=f"Table of {len(shown)} matrices with ranks, trends, peaks and verdicts",
    )
    download(
        "Table as CSV",
        lambda: shown.drop(columns="ranks").to_csv(index=False),
        f"{file_name(f'matrices {state.name}')}.csv",
        "text/csv",
        "matrices csv",
    )
    if cells := answer.selection.cells:
        chosen = str(shown["matrix"].iloc[int(cells[0][0])])
        if not chosen_by_key() or act.button(f"Open {plain(chosen)}", key="open_matrix"):
            st.session_state["matrices_opened"] = turn + 1  # a table of another key, of which nothing is chosen
            open_matrix(chosen)


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that are shown, in small types: of 10,000 matrices less than a megabyte and a half."""
    shape = table["rows"].astype(int).astype(str) + "×" + table["cols"].astype(int).astype(str)
    shown = table.assign(shape=pd.Categorical(shape)).reset_index(names="matrix")
    shown = shown[[column for column in _COLUMNS if column in shown]]
    whole = {name: "Int32" for name in _WHOLE if name in shown}
    rest = {str(name): "float32" for name in shown.select_dtypes("float64") if name not in whole}
    return shown.astype({**whole, **rest, "verdict": "category"})
