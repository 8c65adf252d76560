"""One run in one look: every matrix at every step, the loss beside it, what is tracked, what happened."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from inrank_monitor.figures import column_title, loss_curve, mark_events, mark_events_on_heatmap, rank_heatmap
from inrank_monitor.report import verdict
from inrank_monitor.runs import RunState
from views.choices import URL, choose_matrices
from views.page import Page, caption, explain, plain, show_figure, show_table
from views.summary import matrix_table

OVER_NULL = "rank over null rank"
_COLUMNS = (
    "intrinsic_rank",
    "running_rank",
    "explained_ratio",
    "stable_rank",
    "effective_rank",
    "signal_rank",
    "signal_share",
    "relative_norm",
)
_QUANTITIES = {OVER_NULL: "intrinsic_rank", **{column_title(column): column for column in _COLUMNS}}


_TABLE = {
    "matrix": st.column_config.TextColumn("Matrix", pinned=True),
    "shape": "Shape",
    "verdict": "Verdict",
    "intrinsic_rank": st.column_config.NumberColumn("Rank", format="%d"),
    "null_rank": st.column_config.NumberColumn("Null", format="%d"),
    "rank_over_null_rank": st.column_config.NumberColumn("Rank / null", format="%.2f"),
    "loss_rank": st.column_config.NumberColumn("By loss", format="%d"),
    "signal_rank": st.column_config.NumberColumn("Signal", format="%d"),
    "peak_rank": st.column_config.NumberColumn("Peak", format="%d"),
    "peak_step": st.column_config.NumberColumn("At step", format="%d"),
    "stable_rank": st.column_config.NumberColumn("Stable", format="%.1f"),
    "effective_rank": st.column_config.NumberColumn("Effective", format="%.1f"),
    "relative_norm": st.column_config.NumberColumn("‖ΔW‖/‖W0‖", format="%.3g"),
    "step": st.column_config.NumberColumn("Step", format="%d"),
}
_LOOK = "Each row is a weight matrix, each column a measured step. The colour is the matrix's"
_CONCLUSIONS = {
    "intrinsic_rank": "The rank needed at that step, which may shrink again when few directions take over. Before you "
    "trust it, choose rank over null rank.",
    "running_rank": "The highest rank needed so far, the first steps included.",
    "explained_ratio": "How well the rank reached before explains the change. Below α new directions have come up.",
    "stable_rank": "About how many directions are as strong as the strongest; near 1, one direction is nearly all.",
    "signal_rank": "How many directions stand above what noise reaches; 0 is noise's. Blank: it cannot be told.",
    "signal_share": "Which part of the change lies in the directions above noise: 1 is all.",
    "effective_rank": "How many directions take part, weak ones too; it stays high where a long tail of weak ones is.",
    "relative_norm": "How far the weights have moved, against their first size: bright rows learn most.",
}


class Choice(NamedTuple):
    """What the heat map shows."""

    quantity: str
    matrices: list[str]


def choose(page: Page) -> Choice:
    """The quantity and the filters."""
    lines = st.container()
    left, right = st.columns([1, 2])
    with left:
        quantity = st.selectbox("Colour", list(_QUANTITIES), key="colour", **URL)
    with lines:
        if quantity == OVER_NULL:
            caption("rank_heatmap")
        else:
            explain(f"{_LOOK} {quantity}.", _CONCLUSIONS[_QUANTITIES[quantity]])
    with right:
        matrices = choose_matrices(page.state)
    return Choice(quantity, matrices)


def show(page: Page, choice: Choice) -> None:
    """Heat map and loss side by side, then coverage and events."""
    state = page.state
    st.markdown(plain(verdict(matrix_table(state))))
    left, right = st.columns([9, 5])
    with left:
        measured = state.measurements
        names = [name for name in choice.matrices if name in set(measured["matrix"].astype(str).unique())]
        figure = rank_heatmap(
            measured, _QUANTITIES[choice.quantity], choice.quantity == OVER_NULL, matrices=names or None
        )
        figure.update_xaxes(tickvals=(figure.layout.xaxis.tickvals or ())[::2])  # half the page is too narrow for all
        show_figure(
            mark_events_on_heatmap(figure, state.events),
            f"overview {state.name}",
            f"Heat map of {choice.quantity} of {len(names)} matrices at {len(state.steps)} steps",
        )
    with right:
        show_figure(
            mark_events(loss_curve(state.scalars), state.events),
            f"loss {state.name}",
            "Logged values over steps, with events",
        )
    _matrices(state)
    _coverage(state)
    _events(state)


def _matrices(state: RunState) -> None:
    table = matrix_table(state)
    shape = table["rows"].astype(int).astype(str) + "×" + table["cols"].astype(int).astype(str)
    shown = table.assign(shape=shape).reset_index(names="matrix")
    shown = shown[[column for column in _TABLE if column in shown]]  # ranks by loss are not every run's
    with st.expander(f"{len(table)} matrices, each with a verdict"):
        explain(
            "Each matrix at its last finite measurement, the verdict on its newest. Signal: directions above what "
            "noise reaches. Peak: the highest rank after step 10, and where. By loss: the newest ranks that the loss "
            "has confirmed, if any were taken.",
            "Structured: some directions stand out from noise. Like noise: none does. Flatter than noise: the strong "
            "directions are more alike than chance makes them. An empty cell cannot be told.",
        )
        show_table(
            shown,
            f"matrices {state.name}",
            "Table of all matrices with ranks, peaks and verdicts",
            column_config=_TABLE,
            hide_index=True,
        )


def _coverage(state: RunState) -> None:
    coverage = state.coverage
    watched = coverage["watched"].astype(bool)
    with st.expander(f"{int(watched.sum())} parameters tracked, {int((~watched).sum())} skipped"):
        explain(
            "Every parameter of the model: which matrices it is watched as, or why it is not.",
            "What is skipped has no rank here; vectors (biases, scales) never have one.",
        )
        show_table(coverage, "coverage", "Table of all parameters and whether they are watched", hide_index=True)


def _events(state: RunState) -> None:
    events = state.events
    with st.expander(f"{len(events)} events"):
        table = events.assign(time=pd.to_datetime(events["time"], unit="s"))
        show_table(table, "events", "Table of events: growth, values that are not finite, errors", hide_index=True)
