"""One run in one look: all matrices by depth and kind, the loss beside them, a table to filter, sort and open."""

from __future__ import annotations

from html import unescape
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from inrank_monitor.figures import column_title, depth_map, loss_curve, mark_events
from inrank_monitor.report import standing_out, verdict
from inrank_monitor.runs import RunState
from views.choices import URL, choose_matrices, choose_step, control_row, filter_box, show_filtered
from views.matrix_table import show_matrices, trend_text
from views.navigation import open_matrix
from views.page import Page, caption, explain, plain, show_figure, show_table
from views.summary import overview_table

OVER_NULL = "rank over null rank"
_COLUMNS = (
    "intrinsic_rank",
    "running_rank",
    "signal_rank",
    "signal_share",
    "energy_rank",
    "explained_ratio",
    "stable_rank",
    "effective_rank",
    "relative_norm",
)
_OF_STEP = {OVER_NULL: "rank_over_null_rank", **{column_title(column): column for column in _COLUMNS}}
_OF_RUN = {"rank by loss (newest)": "loss_rank", "trend of the rank": "trend", "peak rank": "peak_rank"}


class Choice(NamedTuple):
    """What the map shows, at which step, and which matrices map and table show."""

    quantity: str
    step: int | None
    matrices: list[str]


def choose(page: Page) -> Choice:
    """The quantity, the step and the filters, in one row."""
    caption("depth_map")
    state = page.state
    with control_row():
        offered = [*_OF_STEP, *(name for name in _OF_RUN if name != "rank by loss (newest)" or len(state.loss_ranks))]
        quantity = st.selectbox("Colour", offered, key="colour", **URL)
        step = choose_step(state)
        text = filter_box()
        matrices = choose_matrices(state)
    return Choice(quantity, step, show_filtered(text, matrices))


def show(page: Page, choice: Choice) -> None:
    """Map and loss side by side, then the table, coverage and events."""
    state = page.state
    table = overview_table(state)
    table = table.loc[[name for name in choice.matrices if name in table.index]]
    left, right = st.columns([9, 5])
    with left:
        if opened := _map(state, choice, table):
            open_matrix(opened)
    with right:
        show_figure(
            mark_events(loss_curve(state.scalars), state.marked_events),
            f"loss {state.name}",
            "Logged values over steps, with events",
        )
    st.markdown(plain(f"{verdict(table)} {trend_text(table)}"))
    show_matrices(state, table)
    _coverage(state)
    _events(state)


def _map(state: RunState, choice: Choice, table: pd.DataFrame) -> str | None:
    """The map; the matrix, or the glob for several, whose cell was just clicked."""
    places = table[["depth", "kind"]]
    column = {**_OF_STEP, **_OF_RUN}[choice.quantity]
    title = column_title(column) if choice.quantity in _OF_STEP else choice.quantity
    step, told = choice.step, ""
    values = table[column] if choice.quantity in _OF_RUN else _at_step(state, column, step)
    if step is None and choice.quantity in _OF_STEP and not _finite(values).any():
        step = _last_finite(state, column)
    if step != choice.step:
        values, told = _at_step(state, column, step), f", the last that is finite: at step {state.last_step} nothing is"
        st.caption(f"The map is of step {step}{told}.")
    figure = depth_map(
        values,
        places,
        title,
        relative=choice.quantity == OVER_NULL,
        marked=standing_out(table),
    )
    when = "the newest step" if step is None else f"step {step}{told}"
    clicked = show_figure(
        figure,
        f"overview {state.name}",
        f"Map of {choice.quantity} of {len(places)} matrices by depth and kind at {when}",
        clicks=True,
    )
    return unescape(str(clicked[3])) if clicked else None


def _last_finite(state: RunState, column: str) -> int | None:
    """The last step at which a matrix has a finite value."""
    steps = state.measurements["step"][_finite(state.measurements[column])]
    return int(steps.max()) if len(steps) else None


def _finite(values: pd.Series) -> pd.Series:
    return np.isfinite(values.astype("Float64").astype(float))


def _at_step(state: RunState, column: str, step: int | None) -> pd.Series:
    """A column of a step, or of each matrix's newest measurement."""
    rows = state.measurements
    rows = rows.drop_duplicates("matrix", keep="last") if step is None else rows[rows["step"] == step]
    values: pd.Series = rows.set_index(rows["matrix"].astype(str))[column]
    return values


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
