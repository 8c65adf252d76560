"""How the strength of one matrix's update is spread: the paper's Figure 1."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from inrank_monitor.figures import mark_noise_in_density, spectrum_density, spread
from inrank_monitor.runs import RunState
from views.choices import URL, choose_matrix, choose_step, choose_two_steps, control_row, switches
from views.page import Page, caption, code, show_figure
from views.spectra import null_spectrum, present_ranks, shape, spectrum_size

RIDGE_ROWS = 24  # more would be too flat to read
_WHEN = ("two steps", "one step", "all steps")
_KINDS = {"density": "by strength", "count": "by number", "profile": "by index"}


class Choice(NamedTuple):
    """Matrix, steps and look."""

    matrix: str
    when: str
    steps: tuple[int | None, ...]
    kind: str
    log: bool
    null: bool


def choose(page: Page) -> Choice:
    """Matrix, steps and look."""
    caption("spectrum_density")
    with control_row():
        matrix = choose_matrix(page.state)
        when = st.selectbox("At", _WHEN, key="when", **URL)
        steps = _choose_steps(page.state, when)
        kind = st.selectbox("Weigh values", list(_KINDS), format_func=_KINDS.__getitem__, key="weigh", **URL)
        with switches():
            log = st.toggle("Log σ", value=True, key="log_sigma", **URL)
            # Beside noise, which is all in one place, the rows of a ridge would be flat.
            ridge = when == "all steps"
            null = st.toggle("Beside noise", value=not ridge, key="noise_ridge" if ridge else "noise", **URL)
    return Choice(matrix, when, steps, kind, log, null)


def _choose_steps(state: RunState, when: str) -> tuple[int | None, ...]:
    if when == "all steps":
        return ()
    return choose_two_steps(state) if when == "two steps" else (choose_step(state),)


def show(page: Page, choice: Choice) -> None:
    """The density, its held part filled by the rank of the step."""
    state, rule = page.state, page.state.rule
    values = page.run.singular_values(choice.matrix)
    with_update = [int(step) for step in values.index[values.max(axis=1) > 0]] if len(values) else []
    steps: list[int] | None = None
    if with_update and choice.when == "all steps":
        steps = [with_update[place] for place in spread(len(with_update), RIDGE_ROWS)]
    elif with_update:
        ends = [with_update[0], with_update[-1]] if choice.when == "two steps" else [with_update[-1]]
        steps = [end if step is None else step for step, end in zip(choice.steps, ends, strict=True)]
    figure = spectrum_density(
        values,
        steps,
        present_ranks(state, choice.matrix),
        kind=choice.kind,
        log=choice.log,
        threshold=rule.threshold,
        buffer_rank=int(state.matrices["buffer_rank"][choice.matrix]),
        definition=rule.definition,
        null=null_spectrum(state, choice.matrix, state.leading) if choice.null else None,
        size=spectrum_size(state, choice.matrix),
        measured=state.measured,
    )
    if choice.null and choice.kind != "profile" and not state.matrices["in_factors"][choice.matrix]:
        mark_noise_in_density(figure, values, shape(state, choice.matrix))
    st.markdown(code(choice.matrix))
    show_figure(
        figure,
        f"density {state.name} {choice.matrix} {choice.kind}",
        f"Density of the singular values of {choice.matrix}, {choice.when}",
    )
