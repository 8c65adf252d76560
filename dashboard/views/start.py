"""Where the runs are, and the page that is shown when there are none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import streamlit as st

from inrank_monitor.console import RUNS_VARIABLE, typed
from inrank_monitor.runs import RunFolder
from views.page import code, plain

DEFAULT = "runs"
_EXAMPLE = """
from inrank_monitor import attach

tracker = attach(model, optimizer, "runs/first")   # before the loop
for batch in loader:
    loss = model(batch).loss
    loss.backward()
    optimizer.step()                               # the tracker counts here
    optimizer.zero_grad()
    tracker.log(loss=loss)
tracker.close()
"""


def given_folder() -> str | None:
    """The directory named on the command line or in the environment."""
    mine = Path(sys.argv[0]).name == "streamlit_app.py"  # else the arguments are those of another program
    arguments = [argument for argument in sys.argv[1:] if mine and not argument.startswith("-")]
    return arguments[0] if arguments else os.environ.get(RUNS_VARIABLE) or None


def find_folder() -> RunFolder | None:
    """The folder of runs: as given, else as typed into the page, else `runs` if it holds any."""
    given = given_folder() or str(st.session_state.get("folder") or "").strip()
    if given:
        try:
            return RunFolder(given)
        except ValueError as error:  # an address, say
            st.error(plain(f"{error}."), icon=":material/folder_off:")
            return None
    default = RunFolder(DEFAULT)
    return default if default.names() else None


def explain(folder: RunFolder | None) -> None:
    """How to make a run, and where to look for some."""
    st.title("InRank Monitor", anchor=False)
    st.markdown("How much of each weight matrix does a training really use? This page shows runs that log it.")
    if folder is not None:
        st.warning(f"There are no runs in {code(folder.path)}.", icon=":material/folder_off:")
        for problem in folder.refused().values():
            st.error(plain(f"Refused: {problem}."), icon=":material/block:")
    st.subheader("Make a run", anchor=False)
    st.markdown("Train a small GPT-2 on real text with the tracker attached (about two minutes):")
    st.code(typed("inrank-monitor", "demo"), language="bash")
    st.markdown("Or attach the tracker to your own training:")
    st.code(_EXAMPLE.strip(), language="python")
    st.subheader("Open runs", anchor=False)
    if given_folder():
        st.button("Look again", icon=":material/refresh:")
        return
    st.text_input("Folder of runs", key="folder_field", placeholder="runs", on_change=_take_typed)
    demo = RunFolder(DEFAULT)
    st.button(
        "Open the demo's folder",
        on_click=_take,
        args=(DEFAULT,),
        icon=":material/folder_open:",
        help=f"The demo writes {Path(DEFAULT) / 'demo'} below {demo.path.parent}",
    )


def _take_typed() -> None:
    _take(st.session_state["folder_field"])


def _take(folder: str) -> None:
    st.session_state["folder"] = folder
