"""Widgets that several views share. Their keys are the names in the page's address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from inrank_monitor.figures import short_names
from inrank_monitor.matrices.roles import matrix_groups, select_matrices
from inrank_monitor.naming import filter_names, matching
from inrank_monitor.ranks import DEFINITIONS, RankRule
from inrank_monitor.runs import RunFolder, RunState
from views.page import Page, plain

URL: dict[str, Any] = {"bind": "query-params"}
DEFINITION_LABELS = {"paper": "paper, eq. 7", "reference": "published code"}


def choose_runs(folder: RunFolder) -> list[str]:
    """The runs to look at; the first is shown in views of one run. At first: the newest."""
    names = folder.names()
    wanted = st.session_state.pop("wanted_runs", None)  # rows chosen in the table of runs
    if wanted is not None:
        st.session_state["run"] = [name for name in names if name in wanted]
    if "run" not in st.session_state and not set(st.query_params.get_all("run")) & set(names):
        # In the address too, so that a shared view stays with this run.
        st.session_state["run"] = st.query_params["run"] = names[:1]
    return st.multiselect(
        "Runs",
        names,
        key="run",
        placeholder="Choose one or several",
        on_change=_forget_selection,
        help="Newest first. Views of one run show the first; Compare and Spectrum evolution show all.",
        **URL,
    )


def _forget_selection() -> None:
    """The table of runs is drawn anew with the selection made here."""
    st.session_state["runs_table"] = st.session_state.get("runs_table", 0) + 1


def choose_rule(page: Page) -> RankRule | None:
    """α, b and definition; None without a run. At first: as the run was logged."""
    if not page.runs:
        return None
    logged = page.run.logged_rule
    st.subheader("Rank rule", anchor=False, help="Ranks are recomputed from the stored spectra at once.")
    threshold = st.slider(
        "Threshold α",
        min(0.5, logged.threshold),
        1.0,
        logged.threshold,
        0.01,
        key="alpha",
        help="The rank is the least r whose explained ratio reaches α.",
        **URL,
    )
    buffer_rank = st.number_input(
        "Buffer rank b",
        0,
        100_000,
        logged.buffer_rank or 0,
        key="b",
        help="How many values beyond r the explained ratio looks at (eq. 7). 0: what fits each matrix, 100 where its "
        "short side is at least 768, else an eighth of that, at least 4.",
        **URL,
    )
    definition = st.radio(
        "Explained ratio",
        DEFINITIONS,
        DEFINITIONS.index(logged.definition),
        format_func=DEFINITION_LABELS.__getitem__,
        horizontal=True,
        key="definition",
        help="Equation 7 of the paper, or what its published code computes.",
        **URL,
    )
    rule = RankRule(round(float(threshold), 4), int(buffer_rank) or None, definition)
    if rule != logged:
        st.button("Back to the rule of the run", on_click=_set_rule, args=(logged,), icon=":material/undo:")
    return rule


def _set_rule(rule: RankRule) -> None:
    st.session_state.update(alpha=rule.threshold, b=rule.buffer_rank or 0, definition=rule.definition)


def control_row() -> Any:
    """A row for the controls of a view."""
    return st.container(horizontal=True, vertical_alignment="bottom", gap="small")


def switches() -> Any:
    """A place in that row for switches, one below the other."""
    return st.container(width="content", gap="xxsmall")


def filter_box() -> str:
    """A field for a filter of names."""
    if (wanted := st.session_state.pop("wanted_filter", None)) is not None:  # a cell of several that was clicked
        st.session_state["filter"] = st.query_params["filter"] = wanted
    return st.text_input(
        "Filter",
        key="filter",
        placeholder="h.*.mlp or layers\\.[0-3]\\.",
        help="Part of a name, with * and ? as wild cards, or a regular expression. Between slashes: a regular "
        "expression in any case.",
        **URL,
    )


def show_filtered(text: str, names: list[str]) -> list[str]:
    """The names that a filter leaves; all of them, and why, where it cannot be read or leaves none."""
    try:
        found = filter_names(text, names)
    except ValueError as error:
        st.warning(plain(error), icon=":material/filter_alt_off:")
        return names
    if names and not found:
        st.warning(plain(f"No matrix fits the filter {text!r}: all are shown."), icon=":material/filter_alt_off:")
        return names
    return found


def choose_matrices(state: RunState) -> list[str]:
    """Filters by block and by role; the names that are left, in model order."""
    groups = matrix_groups(state.matrices)
    blocks, roles = list(groups["block"].unique()), list(groups["role"].unique())
    chosen_blocks = st.multiselect("Blocks", blocks, key="block", placeholder="All blocks", **URL)
    chosen_roles = st.multiselect("Kinds of matrix", roles, key="role", placeholder="All kinds", **URL)
    return select_matrices(groups, chosen_blocks, chosen_roles)


def take_names(key: str, names: Sequence[str], several: bool = False) -> None:
    """Names in the address as tables print them become the full ones, before the widget of that key is made."""
    typed = st.query_params.get_all(key)
    if key in st.session_state or not set(typed) - set(names):
        return
    found = [matching(text, names) for text in typed]
    chosen = list(dict.fromkeys(meant[0] for meant in found if len(meant) == 1))
    if chosen:
        st.session_state[key] = st.query_params[key] = chosen if several else chosen[0]


def choose_matrix(state: RunState) -> str:
    """One matrix."""
    names = [str(name) for name in state.matrices.index]
    wanted = st.session_state.pop("wanted_matrix", None)  # a cell or a row that was clicked
    if wanted in names:
        st.session_state["matrix"] = st.query_params["matrix"] = wanted
    take_names("matrix", names)
    labels = short_names(names, 60)
    return st.selectbox("Matrix", names, format_func=labels.__getitem__, key="matrix", **URL)


def follow_newest(state: RunState) -> bool:
    """Whether the view moves on with a live run; of one that is not live: no."""
    return state.status == "live" and st.toggle("Newest step", value=True, key="newest", **URL)


def choose_step(state: RunState) -> int | None:
    """A measured step; None: the newest."""
    steps = state.steps
    if len(steps) < 2 or follow_newest(state):
        return None
    chosen = st.select_slider("Step", steps, steps[-1], key="step", **URL)
    return None if chosen == steps[-1] else int(chosen)


def choose_two_steps(state: RunState) -> tuple[int | None, int | None]:
    """Two measured steps; None: the first with an update, and the newest."""
    steps = state.steps
    if len(steps) < 2:
        return None, None
    if follow_newest(state):
        first, last = st.select_slider("From step", steps, steps[0], key="from_step", **URL), steps[-1]
    else:
        first, last = st.select_slider("From step to step", steps, (steps[0], steps[-1]), key="steps", **URL)
    return None if first == steps[0] else int(first), None if last == steps[-1] else int(last)


def log_steps_switch() -> bool:
    """A logarithmic step axis."""
    return st.toggle("Log steps", key="log_steps", help="Logarithmic step axis, which leaves out step 0.", **URL)
