"""What the page needs of the browser beside Streamlit's own: `page.js` says what, and why."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_PAGE = st.components.v2.component(
    "inrank_page", js=Path(__file__).with_name("page.js").read_text(encoding="utf-8"), isolate_styles=False
)


def listen(restorable: bool) -> None:
    """Begin, before anything is drawn that a reader can change.

    Args:
        restorable: whether the address says all that is needed to load the page again, as the browser's Back may do.
    """
    with st.container(key="page"):
        answer = _PAGE(
            key="page listener",
            data={"restorable": restorable},
            default={"by_key": False},
            on_by_key_change=lambda: None,
        )
    st.session_state["by_key"] = bool(answer.get("by_key"))


def chosen_by_key() -> bool:
    """Whether the cells of tables are walked through by key now, and not clicked."""
    return bool(st.session_state.get("by_key"))
