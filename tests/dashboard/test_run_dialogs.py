"""Tags, notes, another name and the end of a run, as a reader of the page gives them, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.dashboard_browser import serving, settle, streamlit, until, url, visit
from helpers.made_runs import make_run

from inrank_monitor.runs import RUN_FILE, Lock, RunNotes, read_notes

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_run(tmp_path / "sweep" / "a", created=2e9)
    make_run(tmp_path / "b")
    return tmp_path


def ask(page: Any, question: str) -> Any:
    """The dialog, once it is there."""
    page.get_by_role("button", name=question, exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    return dialog


def gone(page: Any) -> None:
    page.get_by_role("dialog").wait_for(state="hidden")
    settle(page, "Runs")


def test_a_run_is_annotated_renamed_and_deleted_in_the_browser(browser: Any, folder: Path) -> None:
    with serving(*streamlit(), folder=str(folder)) as address:
        page = visit(browser, f"{address}/runs?run=sweep/a")
        page.get_by_role("button", name="Tags and notes").wait_for()
        settle(page, "Runs")

        dialog = ask(page, "Tags and notes")
        field = dialog.get_by_label("Tags")
        field.fill("AdamW")
        field.press("Enter")
        dialog.get_by_label("Notes").fill("with warm-up")
        dialog.get_by_label("Notes").press("Control+Enter")
        dialog.get_by_role("button", name="Save").click()
        gone(page)
        assert read_notes(folder / "sweep" / "a") == RunNotes(("AdamW",), "with warm-up")

        search = page.get_by_placeholder("Words in names, tags and notes")
        search.fill("adamw warm")
        search.press("Enter")
        page.get_by_text("1 of 2 runs in").wait_for()
        search.fill("")
        search.press("Enter")
        page.get_by_text("2 runs in").wait_for()
        settle(page, "Runs")

        dialog = ask(page, "Rename")
        dialog.get_by_role("textbox").fill("b")
        dialog.get_by_role("textbox").press("Enter")
        dialog.get_by_role("button", name="Rename").click()
        dialog.get_by_text("already").wait_for()
        dialog.get_by_role("textbox").fill("kept/c")
        dialog.get_by_role("textbox").press("Enter")
        dialog.get_by_role("button", name="Rename").click()
        gone(page)
        assert (folder / "kept" / "c" / RUN_FILE).is_file()
        until(lambda: "run=kept%2Fc" in url(page) or "run=kept/c" in url(page))

        dialog = ask(page, "Delete")
        dialog.get_by_role("button", name="Cancel").click()
        gone(page)
        assert (folder / "kept" / "c" / RUN_FILE).is_file()
        lock = Lock(folder / "kept" / "c")
        dialog = ask(page, "Delete")
        dialog.get_by_role("button", name="Delete for good").click()
        dialog.get_by_text("is live").wait_for()
        lock.release()
        dialog.get_by_role("button", name="Delete for good").click()
        gone(page)
        until(lambda: not (folder / "kept" / "c").exists())
        page.get_by_text("1 runs in").wait_for()
        assert (folder / "b" / RUN_FILE).is_file()
        assert page.errors == []
        page.close()
