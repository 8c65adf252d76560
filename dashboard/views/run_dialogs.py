"""Questions about one run: its tags and notes, another name, whether to delete it. `inrank_monitor.runs` does it."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from inrank_monitor.runs import contents, delete_run, read_notes, rename_run, write_notes
from views.page import Page, code, plain, summarised

QUESTIONS = {"Tags and notes": "sell", "Rename": "edit", "Delete": "delete"}  # and their icons


def ask(question: str, page: Page, name: str) -> None:
    """Put a question in front of the page."""
    {"Tags and notes": _notes, "Rename": _rename, "Delete": _delete}[question](page, name)


@st.dialog("Tags and notes")
def _notes(page: Page, name: str) -> None:
    st.markdown(f"{code(name)}. They are kept beside the run, and its log is left as it is.")
    try:
        before = read_notes(page.folder.path_of(name))
    except OSError as error:
        st.error(plain(error), icon=":material/error:")
        return
    if before.problem:
        st.error(plain(f"{before.problem}: it is left as it is"), icon=":material/healing:")
        return
    tags = st.multiselect(
        "Tags",
        sorted({*before.tags, *_tags_of_others(page)}),
        list(before.tags),
        key=f"tags of {name}",
        accept_new_options=True,
        placeholder="Choose, or type a new one",
    )
    text = st.text_area("Notes", before.text, key=f"notes of {name}", height=160)

    def save() -> str:
        write_notes(page.folder.path_of(name), tags, text)
        return name

    _answer("Save", save, page, name)


def _tags_of_others(page: Page) -> set[str]:
    """What can be chosen: the tags of all runs in the folder."""
    found: set[str] = set()
    for name in page.folder.names():
        try:
            found |= set(summarised(page.folder, name).notes.tags)
        except (OSError, ValueError):
            continue
    return found


@st.dialog("Rename")
def _rename(page: Page, name: str) -> None:
    new = st.text_input(
        f"New name of {code(name)}",
        name,
        key=f"new name of {name}",
        help="With / between folders: a folder that is not there yet is made.",
    )
    _answer("Rename", lambda: rename_run(page.folder, name, new), page, name, disabled=new.strip() == name)


@st.dialog("Delete")
def _delete(page: Page, name: str) -> None:
    try:
        inside = contents(page.folder, name)
    except (OSError, ValueError) as error:
        st.error(plain(error), icon=":material/error:")
        return
    st.markdown(f"Delete {code(name)} from the disk, {_size(inside.size)}? This cannot be undone.")
    everything = False
    if inside.others:
        listed = ", ".join(code(other) for other in inside.others[:6]) + (" …" if len(inside.others) > 6 else "")
        st.markdown(f"The tracker has not written all of it: {listed}.")
        everything = st.checkbox("Delete these as well", key=f"everything of {name}")

    def delete() -> None:
        delete_run(page.folder, name, everything=everything)

    _answer("Delete for good", delete, page, name)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _answer(label: str, act: Callable[[], str | None], page: Page, name: str, disabled: bool = False) -> None:
    """Yes or no; after a yes the page follows the run to its new name, or goes on without it."""
    with st.container(horizontal=True):
        yes = st.button(label, type="primary", key=f"yes {label} {name}", disabled=disabled)
        if st.button("Cancel", key=f"no {label} {name}"):
            st.rerun()
    if not yes:
        return
    try:
        now = act()
    except (OSError, ValueError) as error:
        st.error(plain(error), icon=":material/error:")
        return
    if now != name:
        chosen = [now if each == name else each for each in st.session_state.get("run", [])]
        st.session_state["wanted_runs"] = [each for each in chosen if each]
    st.rerun()
