"""The dashboard: choose runs, a rule and a view; `views` shows it, `inrank_monitor` computes it.

streamlit run dashboard [-- DIRECTORY_OF_RUNS]
INRANK_RUNS=DIRECTORY_OF_RUNS streamlit run dashboard
inrank-monitor dashboard DIRECTORY_OF_RUNS
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import streamlit as st
from views import (
    advice,
    browser,
    compare,
    density,
    explained,
    matrix,
    navigation,
    overview,
    rank_evolution,
    runs,
    spectrum_evolution,
    start,
)
from views.choices import choose_rule, choose_runs
from views.page import Page, folded_into, live_runs, refusals, show_state

LOOK_SECONDS = 0.4  # between two looks for what is new, which cost little
REFRESH_SECONDS = 3  # of the list of runs, which is drawn anew each time
STYLE = Path(__file__).with_name("views") / "style.css"
MODULES = (runs, overview, matrix, rank_evolution, density, spectrum_evolution, explained, compare, advice)
VIEWS: dict[str, ModuleType] = dict(zip(navigation.VIEWS, MODULES, strict=True))


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="InRank Monitor", layout="wide")
    st.html(STYLE)
    browser.listen(restorable="folder" not in st.session_state)
    folder = start.find_folder()
    if folder is None or not folder.names():
        start.explain(folder)
        return
    refusals(folder)
    title = navigation.choose_view()
    view = VIEWS[title]
    with st.sidebar:
        names = choose_runs(folder)
        page = Page.open(folder, names)
        page.rule = choose_rule(page)
        paused = live_switch(page, view)
    with st.container(horizontal=True, vertical_alignment="center", key="heading"):
        st.header(title, anchor=False, width="content")
        help_place = st.popover("?", help="What you see, and what it tells")
    if not page.runs and view is not runs:
        st.info("Choose a run in the sidebar.", icon=":material/arrow_back:")
        return
    with folded_into(help_place), st.container(key="choices"):
        choice = view.choose(page)
    live = not paused and bool(live_runs(page, everything=view is runs))

    @st.fragment(run_every=REFRESH_SECONDS if live and view is runs else None)
    def body() -> None:
        page.update()
        if view is runs and live and not live_runs(page, everything=view is runs):
            st.rerun()  # all have ended: once more with everything, then no more asking
        if view not in (runs, compare):
            show_state(page, every=view is spectrum_evolution)
        view.show(page, choice)

    shown = page.versions()
    body()
    if live and view is not runs:
        watch(page, shown)


def watch(page: Page, shown: list[tuple[str, int, str]]) -> None:
    """Look for something new while the page stands; only where there is more than what is shown is it drawn again."""
    looks = 0

    @st.fragment(run_every=LOOK_SECONDS)
    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:  # the page is just being drawn
            return
        page.update(LOOK_SECONDS / 2)
        if page.versions() != shown:
            st.rerun()

    look()


def live_switch(page: Page, view: ModuleType) -> bool:
    """The pause switch, while there is something live; whether it is paused."""
    if not live_runs(page, everything=view is runs):
        return False
    return not st.toggle(
        "Follow live",
        value=True,
        key="live",
        bind="query-params",
        help="Draw new snapshots as they are written. Off: the page stays as it is.",
    )


main()
