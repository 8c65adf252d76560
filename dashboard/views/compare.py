"""The same matrix in several runs."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from inrank_monitor.figures import column_title, loss_comparison, run_comparison, short_names
from views.choices import URL, log_steps_switch, take_names
from views.page import Page, explain, marked_name, show_figure

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
_ALIGN = {"step": "step", "share": "share of training"}


class Choice(NamedTuple):
    """What is compared, and how runs are laid over each other."""

    matrix: str
    column: str
    align: str
    log_steps: bool
    scalar: str | None


def choose(page: Page) -> Choice:
    """Matrix, quantity, alignment, and a logged value to set beside."""
    explain(
        "One line a run, for the same matrix or the mean over all. Dashed is the rank of noise (the null rank).",
        "Runs that differ in optimizer, initialisation or learning rate may reach the same loss with different ranks: "
        "the lower line uses fewer directions. Align by share of training to compare runs of different lengths.",
    )
    names = list(
        dict.fromkeys(str(name) for run in page.runs.values() for name in run.tables(page.rule).matrices.index)
    )
    take_names("compared", [MEAN, *names])
    labels = {MEAN: MEAN, **short_names(names, 60)}
    left, middle, right = st.columns(3)
    with left:
        matrix = st.selectbox("Matrix", [MEAN, *names], format_func=labels.__getitem__, key="compared", **URL)
    with middle:
        column = st.selectbox("Quantity", _COLUMNS, format_func=column_title, key="quantity_compared", **URL)
    with right:
        align = st.radio("Align by", list(_ALIGN), format_func=_ALIGN.__getitem__, horizontal=True, key="align", **URL)
        log_steps = log_steps_switch()
    scalars = list(dict.fromkeys(str(n) for run in page.runs.values() for n in run.tables().scalars["name"].unique()))
    scalar = st.selectbox("Logged value beside it", scalars, key="scalar", **URL) if scalars else None
    return Choice(matrix, column, align, log_steps, scalar)


def show(page: Page, choice: Choice) -> None:
    """Both comparisons, in the same colours."""
    if len(page.runs) < 2:
        st.info("Choose more runs in the sidebar to compare them.", icon=":material/arrow_back:")
    states = {marked_name(run.tables()): run.tables(page.rule) for run in page.runs.values()}
    left, right = st.columns([3, 2])
    with left:
        figure = run_comparison(
            {name: state.measurements for name, state in states.items()},
            choice.column,
            None if choice.matrix == MEAN else choice.matrix,
            align=choice.align,
            log_steps=choice.log_steps,
        )
        alt = f"{column_title(choice.column)} of {choice.matrix} in {len(states)} runs"
        show_figure(figure, f"compare {choice.column} by {choice.align}", alt)
    if choice.scalar is not None:
        with right:
            figure = loss_comparison(
                {name: state.scalars for name, state in states.items()}, choice.scalar, align=choice.align
            )
            show_figure(figure, f"compare {choice.scalar} by {choice.align}", f"{choice.scalar} in {len(states)} runs")
