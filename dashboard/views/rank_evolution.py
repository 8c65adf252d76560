"""A line a matrix over steps, beside the rank of noise: the paper's Figures 5 to 7."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from inrank_monitor.figures import (
    column_title,
    mark_events,
    mark_events_on_heatmap,
    rank_evolution,
    rank_heatmap,
    representative,
)
from inrank_monitor.matrices.roles import matrix_groups
from inrank_monitor.runs import DIRECTION_METRICS, WEIGHT_METRICS, RunState
from views.choices import URL, choose_matrices, control_row, log_steps_switch
from views.page import Page, caption, explain, show_figure

MOST_LINES = 60
_COLUMNS = (
    "intrinsic_rank",
    "running_rank",
    "layer_rank",
    "stable_rank",
    "effective_rank",
    "signal_rank",
    "signal_share",
    "relative_norm",
)
_OF_WEIGHTS = tuple(f"weight_{name}" for name in WEIGHT_METRICS)
_OF_DIRECTIONS = (*DIRECTION_METRICS, "intruder_dimensions")
_LAYER_LOOK = (
    "The rank that each low-rank layer trains with, a triangle where it was made to grow. Dashed: the rank at which "
    "the same rule comes to rest on noise (the null rank)."
)
_LAYER_CONCLUSION = (
    "A line that ends far below its dashes was stopped by what the layer learns; one that reaches them would have "
    "grown as far untrained."
)
_BESIDE_LOOK = "A line a matrix: numbers of W itself, or of how the leading directions of ΔW lie and turn."
_BESIDE_CONCLUSION = (
    "Overlaps near 1 and small angles: the same directions go on. An overlap of k directions with random ones of n is "
    "k / n on average."
)
_LOOKS = ("lines", "heat map")
_GROUPS = {"kind": "role", "block": "block", "matrix": None}


class Choice(NamedTuple):
    """What is drawn and how it is coloured."""

    column: str
    group: str
    matrices: list[str]
    log_steps: bool
    look: str


def choose(page: Page) -> Choice:
    """Quantity, colours, filters."""
    lines = st.container()
    with control_row():
        look = st.selectbox("Draw", _LOOKS, key="draw", **URL)
        column = st.selectbox("Quantity", _columns(page.state), format_func=column_title, key="quantity", **URL)
        matrices = choose_matrices(page.state)
        group = st.selectbox("Colour by", list(_GROUPS), key="group", **URL)
        log_steps = log_steps_switch()
    with lines:
        if look == "heat map":
            caption("rank_heatmap")
        elif column == "layer_rank":
            explain(_LAYER_LOOK, _LAYER_CONCLUSION)
        elif column in _COLUMNS:
            caption("rank_evolution")
        else:
            explain(_BESIDE_LOOK, _BESIDE_CONCLUSION)
    return Choice(column, group, matrices, log_steps, look)


def _columns(state: RunState) -> tuple[str, ...]:
    """What this run has: W's own numbers and the directions only where they were asked for."""
    return (
        *_COLUMNS,
        *(_OF_WEIGHTS if len(state.weights) else ()),
        *(_OF_DIRECTIONS if len(state.directions) else ()),
    )


def _table(state: RunState, column: str) -> pd.DataFrame:
    """The table that has the column."""
    if column in _OF_WEIGHTS:
        return state.weights.rename(columns={name: f"weight_{name}" for name in WEIGHT_METRICS})
    return state.directions if column in _OF_DIRECTIONS else state.measurements


def show(page: Page, choice: Choice) -> None:
    """The lines, with growth events of the active mode."""
    state = page.state
    measured = _table(state, choice.column)
    here = set(measured["matrix"].astype(str).unique())
    names = [name for name in choice.matrices if name in here]
    if choice.look == "heat map":
        _show_heatmap(state, measured, choice.column, names)
        return
    shown = representative(names, MOST_LINES)
    if len(shown) < len(names):
        st.info(f"{len(shown)} of {len(names)} matrices are drawn, spread over kinds and depth: filter to see others.")
    level = _GROUPS[choice.group]
    groups = matrix_groups(state.matrices)[level].to_dict() if level else None
    figure = rank_evolution(
        measured, choice.column, shown, events=state.events, groups=groups, log_steps=choice.log_steps
    )
    figure.update_layout(height=560)
    show_figure(
        mark_events(figure, state.divergence_mark),
        f"rank evolution {state.name} {choice.column}",
        f"Lines of {column_title(choice.column)} over steps for {len(shown)} matrices, null ranks dashed",
    )


def _show_heatmap(state: RunState, measured: pd.DataFrame, column: str, names: list[str]) -> None:
    """A row a matrix, a column a snapshot; ranks over those of noise."""
    figure = rank_heatmap(measured, column, column in ("intrinsic_rank", "running_rank"), matrices=names or None)
    show_figure(
        mark_events_on_heatmap(figure, state.marked_events),
        f"rank heat map {state.name} {column}",
        f"Heat map of {column_title(column)} of {len(names)} matrices at {len(state.steps)} steps",
    )
