"""The views as pages of their own: each has its path in the address, and the browser's Back leads to the last one.

The pages hold nothing. What a view shows is drawn by the app itself, so that its widgets belong to the app and not to
one page: a matrix or a filter chosen in one view is chosen in the next as well.
"""

from __future__ import annotations

from typing import NoReturn

import streamlit as st

VIEWS = (
    "Runs",
    "Overview",
    "Matrix",
    "Rank evolution",
    "Spectrum density",
    "Spectrum evolution",
    "Explained ratio",
    "Compare",
    "Advice",
)
_FIRST = "Overview"


def choose_view() -> str:
    """The menu of views; the one that the address names."""
    shown = st.navigation(list(_pages().values()))
    asked = st.query_params.get("view")  # an address from before views had paths
    if asked in VIEWS:
        open_view(asked)
    return str(shown.title)


def open_view(view: str) -> NoReturn:
    """Go to another view; what is chosen goes along.

    What a widget holds is in the session and comes into the new address by itself; of a widget that was not drawn yet
    only the address knows.
    """
    waiting = [name for name in st.query_params if name != "view" and name not in st.session_state]
    st.switch_page(_pages()[view], query_params={name: st.query_params.get_all(name) for name in waiting})


def open_matrix(name: str) -> NoReturn:
    """Go to the page of a matrix; of a glob for several, to the overview with them alone."""
    if "*" in name:
        st.session_state["wanted_filter"] = name
        st.rerun()
    st.session_state["wanted_matrix"] = name
    open_view("Matrix")


def _pages() -> dict[str, st.Page]:
    return {
        view: st.Page(_nothing, title=view, url_path=view.lower().replace(" ", "-"), default=view == _FIRST)
        for view in VIEWS
    }


def _nothing() -> None:
    """What a page holds of its own."""
