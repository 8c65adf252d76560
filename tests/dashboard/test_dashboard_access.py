"""The page for who has no mouse or little sight, in a real browser: reached by Tab, judged by axe-core; and Back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.dashboard_browser import drawn, place, serving, settle, streamlit, until, url, visit
from helpers.dashboard_widgets import select, write
from helpers.made_runs import make_run, names_of

pytestmark = pytest.mark.slow
VIEWS = ("Overview", "Matrix", "Spectrum evolution", "Explained ratio", "Compare", "Advice", "Runs")
_NAME = """() => {
  const one = document.activeElement;
  if (!one || one === document.body) return null;
  const label = one.getAttribute('aria-label') || one.labels?.[0]?.textContent || one.textContent
    || one.dataset.testid || '';
  const figure = one.closest('.js-plotly-plot');
  const figures = [...document.querySelectorAll('.js-plotly-plot')];
  return [one.tagName, label.trim(), figure ? figures.indexOf(figure) : null];
}"""
_CONTROLS = """() => [...document.querySelectorAll('.st-key-choices input')].filter(one => one.tabIndex >= 0)
  .map(one => one.getAttribute('aria-label') || one.labels?.[0]?.textContent.trim())"""
_BUTTONS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(
  plot => [...plot.querySelectorAll('.modebar-btn')].map(one => one.getAttribute('aria-label')))"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", matrices=10)
    with serving(*streamlit(), folder=str(folder)) as served:
        yield served


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_any_view(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    page, faults = visit(browser, address), []
    page.emulate_media(color_scheme=scheme)
    for view in VIEWS:
        page.goto(f"{address}/{place(view)}?run=first")
        settle(page, view)
        until(lambda: page.locator("[data-stale=true]").count() == 0)
        page.wait_for_timeout(1000)  # what is faint while it is drawn anew has become clear
        bright = page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
        assert (bright == "rgb(255, 255, 255)") == (scheme == "light"), bright
        found = axe.run(page).response
        assert len(found["passes"]) > 15, "it has looked"
        faults += [
            f"{view}: {fault['help']}: {node['html'][:200]}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]
    page.close()
    assert faults == [], "\n".join(faults)


def test_tab_reaches_every_control_and_every_button_of_a_figure(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/?run=first")
    until(lambda: page.locator(".modebar").count() == 2)
    wanted, buttons = page.evaluate(_CONTROLS), page.evaluate(_BUTTONS)
    assert len(wanted) == 5
    assert all(len(row) == 7 for row in buttons)
    page.evaluate("document.querySelector('[data-testid=stSidebarNav] a').focus()")
    reached: list[Any] = []
    for _ in range(90):
        now = page.evaluate(_NAME)
        if now is not None:
            reached.append(now)
        if now is not None and now[1] == "data-grid-canvas":
            break
        page.keyboard.press("Tab")
    named = [label for _, label, _ in reached]
    missing = [label for label in wanted if label not in named]
    missing += [
        f"{label} of figure {place}"
        for place, row in enumerate(buttons)
        for label in row
        if ["BUTTON", label, place] not in reached
    ]
    assert missing == [], named
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).visibility") == "visible"
    page.close()


def test_a_figure_is_zoomed_by_a_key_on_its_button(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/rank-evolution?run=first")
    page.wait_for_selector(".modebar-btn")
    axis = "document.querySelector('.js-plotly-plot')._fullLayout.xaxis.range.map(Number)"
    low, high = page.evaluate(axis)
    page.get_by_role("button", name="Zoom in").press("Enter")
    until(lambda: (now := page.evaluate(axis))[1] - now[0] < 0.6 * (high - low))
    page.close()


def test_keys_walk_through_the_table_and_enter_opens_what_is_chosen(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/?run=first")
    until(lambda: drawn(page))
    settle(page)
    table = page.locator("[data-testid=stDataFrame] canvas").first
    for name in names_of(10)[1:3]:
        settle(page)
        table.press("ArrowDown")
        page.get_by_role("button", name=f"Open {name}").wait_for(timeout=60_000)
        assert page.inner_text("h2") == "Overview"
    page.get_by_role("button", name=f"Open {name}").press("Enter")
    settle(page, "Matrix")
    until(lambda: "matrix=h.0" in url(page))
    page.go_back()
    settle(page, "Overview")
    page.close()


def test_back_undoes_one_change_of_a_control_after_the_other(browser: Any, address: str) -> None:
    page = visit(browser, f"{address}/?run=first")
    coloured_by(page, "rank over null rank")
    select("Colour", "stable rank")(page)
    coloured_by(page, "stable rank")
    select("Colour", "effective rank")(page)
    coloured_by(page, "effective rank")
    write("Filter", "h.1*")(page)
    until(lambda: "filter=" in url(page))
    settle(page)
    page.go_back()
    page.wait_for_function("document.querySelector('[data-testid=stTextInput] input')?.value === ''")
    coloured_by(page, "effective rank")
    page.go_back()
    coloured_by(page, "stable rank")
    page.go_back()
    coloured_by(page, "rank over null rank")
    page.close()


def coloured_by(page: Any, quantity: str) -> None:
    """Wait until the map shows a quantity."""
    page.wait_for_function(
        "title => document.querySelector('.js-plotly-plot')?._fullData?.[0]?.colorbar?.title?.text === title",
        arg=quantity,
    )
