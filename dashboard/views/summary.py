"""The tables of matrices at their last step, by the page's rule; made once for a state of a run."""

from __future__ import annotations

from functools import lru_cache

import pandas as pd
import streamlit as st

from inrank_monitor import report
from inrank_monitor.matrices.places import depth_and_kind
from inrank_monitor.runs import RunState


@lru_cache(maxsize=4)
def matrix_table(state: RunState) -> pd.DataFrame:
    """As the reports have it; the state offers the tables that they read. Shared, as those: not to be changed."""
    return report.matrix_table(state)  # type: ignore[arg-type]


@lru_cache(maxsize=4)
def overview_table(state: RunState) -> pd.DataFrame:
    """The table of the overview. Shared: not to be changed."""
    return report.overview_table(state, places_of(state))  # type: ignore[arg-type]


def places_of(state: RunState) -> pd.DataFrame:
    """Depth and kind of each matrix; told once for all pages of a run."""
    return _places(tuple(state.matrices.index), tuple(state.matrices["part"]), tuple(state.matrices["kind"]))


@st.cache_resource(max_entries=12, show_spinner=False)  # not `cache_data`: that pickles
def _places(names: tuple[str, ...], parts: tuple[str | None, ...], kinds: tuple[str, ...]) -> pd.DataFrame:
    return depth_and_kind(pd.DataFrame({"part": parts, "kind": kinds}, list(names)))
