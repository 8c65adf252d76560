"""Each singular value over steps, for several matrices and runs: the paper's Figures 3 and 8 to 15."""

from __future__ import annotations

from typing import Literal, NamedTuple

import streamlit as st

from inrank_monitor.figures import mark_events, mark_noise_over_steps, short_names, spectrum_evolution
from inrank_monitor.report import telling_matrices
from views.choices import URL, control_row, log_steps_switch, switches, take_names
from views.page import Page, caption, code, show_figure
from views.spectra import shape
from views.summary import matrix_table

MOST_PANELS = 8
_OF: dict[Literal["update", "weight"], str] = {"update": "the update ΔW", "weight": "the weight W"}


class Choice(NamedTuple):
    """Matrices and look."""

    matrices: list[str]
    of: Literal["update", "weight"]
    count: int
    log: bool
    log_steps: bool


def choose(page: Page) -> Choice:
    """Matrices and look."""
    caption("spectrum_evolution")
    names = [str(name) for name in page.state.matrices.index]
    take_names("matrices", names, several=True)
    labels = short_names(names, 60)
    of: Literal["update", "weight"] = "update"
    with control_row():
        if any(len(run.tables(page.rule).weights) for run in page.runs.values()):
            of = st.selectbox("Spectrum of", _OF, format_func=_OF.__getitem__, key="of", **URL)
        matrices = st.multiselect(
            "Matrices",
            names,
            format_func=labels.__getitem__,
            key="matrices",
            max_selections=MOST_PANELS,
            placeholder="The highest and the lowest rank over null rank",
            **URL,
        )
        count = st.number_input("Lines a panel", 1, 256, 32, key="lines", width=130, **URL)
        with switches():
            log = st.toggle("Log σ", key="log", **URL)
            log_steps = log_steps_switch()
    return Choice(matrices, of, int(count), log, log_steps)


def show(page: Page, choice: Choice) -> None:
    """A panel for each matrix of each run, two in a row."""
    matrices = choice.matrices or telling_matrices(matrix_table(page.state)) or list(page.state.matrices.index[:2])
    panels = [
        (name, matrix)
        for matrix in matrices
        for name, run in page.runs.items()
        if matrix in run.tables(page.rule).matrices.index
    ]
    if len(panels) > MOST_PANELS:
        st.info(f"{MOST_PANELS} of {len(panels)} panels are drawn: choose fewer matrices or runs.")
    wide = 3 if len(page.runs) == 3 else 2  # a row a matrix where it fits
    for start in range(0, min(len(panels), MOST_PANELS), wide):
        for column, (name, matrix) in zip(st.columns(wide), panels[start : start + wide], strict=False):
            with column:
                _panel(page, name, matrix, choice)


def _panel(page: Page, name: str, matrix: str, choice: Choice) -> None:
    values = page.runs[name].singular_values(matrix, choice.of)
    st.markdown(code(matrix) + (f" in {code(name)}" if len(page.runs) > 1 else ""))
    figure = spectrum_evolution(values, count=choice.count, log=choice.log, log_steps=choice.log_steps)
    state = page.runs[name].tables(page.rule)
    if choice.of == "update" and not state.matrices["in_factors"][matrix]:
        mark_noise_over_steps(figure, values, shape(state, matrix))
    mark_events(figure, state.divergence_mark)
    show_figure(figure, f"spectrum {name} {matrix}", f"Singular values of {matrix} in {name} over {len(values)} steps")
