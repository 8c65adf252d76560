"""The same quantities in several runs, the loss first; runs that differ in their seed alone as mean and spread."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import streamlit as st

from inrank_monitor.figures import column_title, loss_comparison, run_comparison, short_names
from inrank_monitor.runs import (
    Axis,
    RunGroup,
    RunState,
    align,
    caveats,
    common_axes,
    common_matrices,
    comparison_table,
    group_runs,
    lacking,
    lacking_scalar,
    scalar_choices,
    scalar_rows,
)
from views.choices import URL, control_row, switches, take_names
from views.page import Page, explain, marked_name, plain, show_figure, show_state, show_table

MEAN = "mean over all matrices"
_COLUMNS = (
    "intrinsic_rank",
    "running_rank",
    "explained_ratio",
    "stable_rank",
    "effective_rank",
    "energy_rank",
    "signal_rank",
    "signal_share",
    "rank_over_null_rank",
    "relative_norm",
)
_AXES: dict[Axis, str] = {"step": "step", "share": "share of training", "time": "wall-clock", "tokens": "tokens"}
_LINES = ("mean ± spread", "single runs")


class Choice(NamedTuple):
    """What is compared, and how runs are laid over each other."""

    scalar: str | None
    column: str
    matrix: str
    axis: Axis
    log_x: bool
    log_y: bool
    smoothing: float
    grouped: bool


def choose(page: Page) -> Choice:
    """Logged value, quantity and matrix; axes, smoothing, and whether seeds are put together."""
    explain(
        "Left what was logged, right a quantity of the same matrix or the mean over all. Runs that differ in nothing "
        "but their seed are one line, their mean, in a band of one standard deviation. Dashed: the rank of noise.",
        "Runs that differ in optimizer, initialisation or learning rate may reach the same loss with different ranks: "
        "the lower line uses fewer directions. Where bands overlap, the seeds alone may make the difference.",
    )
    states = _states(page)
    scalars = scalar_choices({name: state.scalars for name, state in states.items()})
    with control_row():
        scalar = st.selectbox("Logged value", scalars, key="scalar", **URL) if scalars else None
        column = st.selectbox("Quantity", _COLUMNS, format_func=column_title, key="quantity_compared", **URL)
        matrix = _choose_matrix(states)
        axes = common_axes({name: state.timeline for name, state in states.items()})
        axis = st.selectbox("x axis", axes, format_func=_AXES.__getitem__, key="align", **URL)
        grouped = False
        if any(len(group.runs) > 1 for group in _groups(states)):
            grouped = st.selectbox("Draw", _LINES, key="seeds", **URL) == _LINES[0]
        smoothing = st.slider("Smoothing", 0.0, 0.99, 0.0, 0.01, key="smoothing", width=130, help=_SMOOTHING, **URL)
        with switches():
            log_x = st.toggle("Log x", key="log_x", help="Logarithmic x axis, which leaves out 0.", **URL)
            log_y = st.toggle("Log y", key="log_y", help="Logarithmic y axes, which leave out 0.", **URL)
    return Choice(scalar, column, matrix, axis, log_x, log_y, smoothing, grouped)


_SMOOTHING = (
    "Weight of the exponential mean of what was logged, as TensorBoard draws it; what was logged stays lightly behind. "
    "Ranks are never smoothed."
)


def _choose_matrix(states: Mapping[str, RunState]) -> str:
    names = list(dict.fromkeys(str(name) for state in states.values() for name in state.matrices.index))
    take_names("compared", [MEAN, *names])
    labels = {MEAN: MEAN, **short_names(names, 60)}
    return st.selectbox("Matrix", [MEAN, *names], format_func=labels.__getitem__, key="compared", **URL)


def _states(page: Page) -> dict[str, RunState]:
    """By name, a diverged one marked: so they stand in the legends."""
    return {marked_name(run.tables()): run.tables(page.rule) for run in page.runs.values()}


def _groups(states: Mapping[str, RunState]) -> list[RunGroup]:
    return group_runs({name: state.configuration for name, state in states.items()})


def show(page: Page, choice: Choice) -> None:
    """Loss and ranks in the same colours, what is to be minded, and in what the groups differ."""
    states = _states(page)
    if len(states) < 2:
        st.info("Choose more runs in the sidebar to compare them.", icon=":material/arrow_back:")
    groups = _groups(states)
    lines = {group.label: group.runs for group in groups} if choice.grouped else {name: (name,) for name in states}
    timelines = {name: state.timeline for name, state in states.items()}
    axis = choice.axis if choice.axis in common_axes(timelines) else "step"  # a live run may lose one
    laid = align(timelines, axis)
    look = {"align": laid, "groups": lines, "log_x": choice.log_x, "log_y": choice.log_y}
    matrix = None if choice.matrix == MEAN else choice.matrix
    told = [*caveats(states), *lacking(states, matrix)]
    if choice.scalar is not None:
        told += lacking_scalar({name: state.scalars for name, state in states.items()}, choice.scalar)
    if told:
        titles = ", ".join(one.title for one in told)
        with st.expander(f"To mind: {titles}", icon=":material/warning:"):
            st.markdown("\n".join(f"- {plain(one.text)}" for one in told))
    left, right = st.columns(2)
    if choice.scalar is not None:
        with left:
            figure = loss_comparison(
                {name: state.scalars for name, state in states.items()},
                partial(scalar_rows, wanted=choice.scalar),
                title=choice.scalar,
                smoothing=choice.smoothing,
                **look,
            )
            show_figure(figure, f"compare {choice.scalar} by {axis}", f"{choice.scalar} in {len(states)} runs")
    with right if choice.scalar is not None else st.container():
        figure = run_comparison(
            {name: state.measurements for name, state in states.items()},
            choice.column,
            matrix or common_matrices(states) or None,
            **look,
        )
        alt = f"{column_title(choice.column)} of {choice.matrix} in {len(states)} runs"
        show_figure(figure, f"compare {choice.column} by {axis}", alt)
    table = comparison_table(groups, states, choice.scalar)
    show_table(table, "compare groups", "What the groups of runs came to, and in what they differ", height="content")
    trouble = bool(page.problems) or any(state.problems for state in states.values())
    with st.expander(f"The {len(states)} runs", expanded=trouble):
        show_state(page, every=True)
