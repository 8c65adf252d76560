"""The explained ratio: against the rank at chosen steps, and over steps."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from inrank_monitor.figures import explained_ratio_curve, explained_ratio_evolution, mark_events, representative
from inrank_monitor.matrices.roles import matrix_groups
from views.choices import URL, choose_matrices, choose_matrix, choose_step, control_row, log_steps_switch, switches
from views.page import Page, caption, code, show_figure
from views.spectra import null_spectrum, spectrum_size

MOST_LINES = 60


class Choice(NamedTuple):
    """Matrix and step of the curve; matrices of the lines."""

    matrix: str
    step: int | None
    null: bool
    log_rank: bool
    matrices: list[str]
    log_steps: bool


def choose(page: Page) -> Choice:
    """Matrix, step and look."""
    state = page.state
    for key in ("explained_ratio_curve", "explained_ratio_evolution"):
        caption(key)
    with control_row():
        matrix = choose_matrix(state)
        step = choose_step(state)
        matrices = choose_matrices(state)
        with switches():
            null = st.toggle("Beside noise", value=True, key="noise", **URL)
            log_rank = st.toggle("Log rank", value=True, key="log_rank", **URL)
        log_steps = log_steps_switch()
    return Choice(matrix, step, null, log_rank, matrices, log_steps)


def show(page: Page, choice: Choice) -> None:
    """G against r, then g over steps."""
    state, rule = page.state, page.state.rule
    left, right = st.columns(2)
    with left:
        st.markdown(f"At {'the newest step' if choice.step is None else f'step {choice.step}'}: {code(choice.matrix)}")
        curve = explained_ratio_curve(
            page.run.singular_values(choice.matrix),
            choice.step,
            rule.threshold,
            int(state.matrices["buffer_rank"][choice.matrix]),
            rule.definition,
            null_spectrum(state, choice.matrix) if choice.null else None,
            size=spectrum_size(state, choice.matrix),
            log_rank=choice.log_rank,
        )
        show_figure(
            curve,
            f"explained ratio {state.name} {choice.matrix}",
            f"Explained ratio against rank for {choice.matrix}, α and rank marked",
        )
    with right:
        here = set(state.measurements["matrix"].astype(str).unique())
        names = representative([name for name in choice.matrices if name in here], MOST_LINES)
        st.markdown(f"Over steps: {len(names)} matrices by kind")
        lines = explained_ratio_evolution(
            state.measurements,
            rule.threshold,
            names,
            groups=matrix_groups(state.matrices)["role"].to_dict(),
            log_steps=choice.log_steps,
        )
        mark_events(lines, state.divergence_mark)
        show_figure(
            lines, f"explained ratio over steps {state.name}", f"Explained ratio over steps for {len(names)} matrices"
        )
