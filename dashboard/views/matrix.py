"""One matrix on one page: its spectrum, how that has grown, what every rule makes of it, and what happened to it."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from inrank_monitor.figures import (
    explained_ratio_curve,
    mark_events,
    mark_noise_in_density,
    mark_noise_over_steps,
    rank_evolution,
    spectrum_density,
    spectrum_evolution,
)
from inrank_monitor.runs import RunState
from views.choices import URL, choose_matrix, choose_step, control_row, log_steps_switch, switches
from views.page import Page, caption, code, explain, plain, show_figure, show_table
from views.rules import show_rules
from views.spectra import null_spectrum, present_ranks, shape, spectrum_size
from views.summary import overview_table

_LINK = "steps of a matrix"


class Choice(NamedTuple):
    """The matrix, the step of its spectrum, and the scales."""

    matrix: str
    step: int | None
    log: bool
    log_steps: bool


def choose(page: Page) -> Choice:
    """The matrix and the step."""
    shown = ("spectrum_density", "spectrum_evolution", "explained_ratio_curve", "spectrum_with_ranks")
    for key in (*shown, *(["loss_against_rank"] if len(page.state.loss_curve) else [])):
        caption(key)
    with control_row():
        matrix = choose_matrix(page.state)
        step = choose_step(page.state)
        with switches():
            log = st.toggle("Log σ", value=True, key="log_sigma", **URL)
            log_steps = log_steps_switch()
    return Choice(matrix, step, log, log_steps)


def show(page: Page, choice: Choice) -> None:
    """Density and ranks of all rules at a step; spectrum and ranks over steps; events."""
    _line(page.state, choice.matrix)
    left, right = st.columns(2)
    for place, part in ((left, _density), (right, _ratio), (left, _evolution), (right, _ranks)):
        with place:  # the upper row first: it is what is seen
            part(page, choice)
    show_rules(page, choice.matrix, choice.step)
    _events(page.state, choice.matrix)


def _line(state: RunState, name: str) -> None:
    """The matrix in a line of numbers."""
    row = overview_table(state).loc[name]
    parts = [code(name), f"{int(row['rows'])}×{int(row['cols'])}", f"{code(row['kind'])} at depth {code(row['depth'])}"]
    parts.append(plain(row["verdict"]))
    if row["unusual"]:
        parts.append(plain(f"unusual: {row['unusual']}"))
    st.markdown(" · ".join(parts))


def _density(page: Page, choice: Choice) -> None:
    state, name = page.state, choice.matrix
    figure = spectrum_density(
        page.run.singular_values(name),
        choice.step,
        present_ranks(state, name),
        log=choice.log,
        threshold=state.rule.threshold,
        buffer_rank=int(state.matrices["buffer_rank"][name]),
        definition=state.rule.definition,
        null=null_spectrum(state, name, state.leading),
        size=spectrum_size(state, name),
        measured=state.measured,
    )
    if not state.matrices["in_factors"][name]:
        mark_noise_in_density(figure, page.run.singular_values(name), shape(state, name))
    show_figure(figure, f"matrix density {state.name} {name}", f"Density of the singular values of {name}")


def _evolution(page: Page, choice: Choice) -> None:
    figure = spectrum_evolution(page.run.singular_values(choice.matrix), log=choice.log, log_steps=choice.log_steps)
    if not page.state.matrices["in_factors"][choice.matrix]:
        values, sides = page.run.singular_values(choice.matrix), shape(page.state, choice.matrix)
        mark_noise_over_steps(figure, values, sides)
    show_figure(
        mark_events(figure, _own_events(page.state, choice.matrix)),
        f"matrix spectrum {page.state.name} {choice.matrix}",
        f"Singular values of {choice.matrix} over steps",
        link=_LINK,
    )


def _ratio(page: Page, choice: Choice) -> None:
    state, name = page.state, choice.matrix
    figure = explained_ratio_curve(
        page.run.singular_values(name),
        choice.step,
        state.rule.threshold,
        int(state.matrices["buffer_rank"][name]),
        state.rule.definition,
        null_spectrum(state, name),
        size=spectrum_size(state, name),
    )
    show_figure(figure, f"matrix ratio {state.name} {name}", f"Explained ratio of {name} against rank")


def _ranks(page: Page, choice: Choice) -> None:
    state, name = page.state, choice.matrix
    if not (state.measurements["matrix"] == name).any():
        return
    figure = rank_evolution(
        state.measurements, "intrinsic_rank", [name], events=state.events, log_steps=choice.log_steps
    )
    mark_events(figure, state.divergence_mark)
    show_figure(figure, f"matrix ranks {state.name} {name}", f"Rank of {name} over steps", link=_LINK)


def _own_events(state: RunState, name: str) -> pd.DataFrame:
    """What happened to a matrix, and to the whole run."""
    events = state.marked_events
    owner = events["matrix"]
    return events[(owner == name) | owner.isna() | (owner == "")]


def _events(state: RunState, name: str) -> None:
    events = _own_events(state, name)
    with st.expander(f"{len(events)} events"):
        explain("What happened to this matrix, and to the run.", "A mark in the figures is at the step of an event.")
        table = events.assign(time=pd.to_datetime(events["time"], unit="s"))
        show_table(table, f"events {name}", "Table of events of this matrix and of the run", hide_index=True)
