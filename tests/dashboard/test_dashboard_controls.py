"""Every control of every view, used in a real browser without a reload; judged by the figure that Plotly has drawn.

What has to be drawn is what the package's own figures hold for the choice. Each test waits for the view as it is at
first, uses the control, waits for the figures of the choice, takes the choice back, and waits for the first again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.dashboard_browser import open_view, serving, settle, streamlit, until, visit
from helpers.dashboard_controls import AT_FIRST, COMPARED, CONTROLS, Control
from helpers.dashboard_page import DashboardPage
from helpers.dashboard_widgets import Act, add, clear, number, press, radio, select, slide
from helpers.expected_figures import comparison
from helpers.loss_ranks import write_loss_ranks
from helpers.made_runs import make_run, names_of

from inrank_monitor.advice import advise, lora_config, savings
from inrank_monitor.runs.recomputation import RankRule

pytestmark = pytest.mark.slow
BOTH = ("first", "second")
PAPER = 3  # column of the advice


@pytest.fixture(scope="module")
def dashboard(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardPage]:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", matrices=10, created=2e9, not_finite=lambda step: [3] if step == 30 else [])
    write_loss_ranks(folder / "first", {name: 1 + place for place, name in enumerate(names_of(10))}, 40)
    make_run(folder / "second", matrices=10, steps=range(0, 90, 15), seed=1)
    with serving(*streamlit(), folder=str(folder)) as address:
        page = visit(browser, address)
        yield DashboardPage(page, address, folder)
        page.close()


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{control.view}: {control.name}")
def test_a_view_draws_what_its_control_says(dashboard: DashboardPage, control: Control) -> None:
    dashboard.begin(control.view)
    first = dashboard.run("first")
    before, after = AT_FIRST[control.view](first), control.then(first)
    dashboard.use(control.act, before, after)
    dashboard.use(control.back, after, before)


@pytest.mark.parametrize("name", COMPARED)
def test_two_runs_are_compared_as_the_control_says(dashboard: DashboardPage, name: str) -> None:
    act, then, back = COMPARED[name]
    dashboard.begin("Compare", BOTH)
    both = {name: dashboard.run(name) for name in BOTH}
    before, after = comparison(both), then(both)
    dashboard.use(act, before, after)
    dashboard.use(back, after, before)


@pytest.mark.parametrize("view", AT_FIRST)
def test_every_view_draws_the_ranks_of_the_threshold(dashboard: DashboardPage, view: str) -> None:
    dashboard.begin(view)
    before, after = (AT_FIRST[view](dashboard.run("first", rule)) for rule in (None, RankRule(0.5, 8)))
    dashboard.use(slide("Threshold α", "Home"), before, after)
    dashboard.use(press("Back to the rule of the run"), after, before)


RULES: dict[str, tuple[Act, RankRule]] = {
    "Buffer rank b": (number("Buffer rank b", 3), RankRule(0.9, 3)),
    "Buffer rank b, what fits": (number("Buffer rank b", 0), RankRule(0.9)),
    "Explained ratio": (radio("Explained ratio", "published code"), RankRule(0.9, 8, "reference")),
}


@pytest.mark.parametrize("view", ["Overview", "Explained ratio"])
@pytest.mark.parametrize("control", RULES)
def test_the_rule_is_the_rule_of_the_figures(dashboard: DashboardPage, control: str, view: str) -> None:
    act, rule = RULES[control]
    dashboard.begin(view)
    before, after = AT_FIRST[view](dashboard.run("first")), AT_FIRST[view](dashboard.run("first", rule))
    dashboard.use(act, before, after)
    dashboard.use(press("Back to the rule of the run"), after, before)


@pytest.mark.parametrize("view", AT_FIRST)
def test_another_run_takes_the_place_of_the_first(dashboard: DashboardPage, view: str) -> None:
    dashboard.begin(view)
    if view == "Compare":
        first, second = (comparison({name: dashboard.run(name)}) for name in BOTH)
    else:
        first, second = (AT_FIRST[view](dashboard.run(name)) for name in BOTH)
    dashboard.use(exchange("second"), first, second)
    dashboard.use(exchange("first"), second, first)


def exchange(run: str) -> Act:
    """Look at another run."""

    def act(page: Any) -> None:
        clear("Runs")(page)
        page.get_by_text("Choose a run in the sidebar.").wait_for()
        add("Runs", run)(page)

    return act


def test_views_are_changed_by_a_click_and_each_draws_its_own_figures(dashboard: DashboardPage) -> None:
    dashboard.begin("Overview")
    first = dashboard.run("first")
    views = list(AT_FIRST)
    for view, other in zip(views, views[1:] + views[:1], strict=True):
        dashboard.use(partial(open_view, view=other), AT_FIRST[view](first), AT_FIRST[other](first))


def test_the_advice_is_by_the_loss_and_the_cap_that_is_chosen(dashboard: DashboardPage) -> None:
    page = dashboard.page
    dashboard.begin("Advice", anew=True)
    table = dashboard.run("first").run.read(advise)
    until(lambda: column(page, 2) == list(range(1, 11)) == list(table["rank"]))
    assert metrics(page)[1] == f"{savings(table)['trainable_saved']:,}"
    config = lora_config(table)
    assert downloaded(page, "LoraConfig for PEFT (JSON)") == config
    cap = config["r"] - 1
    number("Highest LoRA rank (0: no limit)", cap)(page)
    page.wait_for_url(f"**max_rank={cap}**")
    settle(page)
    assert downloaded(page, "LoraConfig for PEFT (JSON)") == lora_config(table, cap) != config


@pytest.mark.parametrize("control", ["Threshold α", *RULES])
def test_the_papers_rank_in_the_advice_is_by_the_rule(dashboard: DashboardPage, control: str) -> None:
    act, rule = {"Threshold α": (slide("Threshold α", "Home"), RankRule(0.5, 8)), **RULES}[control]
    page = dashboard.page
    dashboard.begin("Advice", anew=True)
    states = [dashboard.run("first", one).state for one in (None, rule)]
    newest = [one.measurements.drop_duplicates("matrix", keep="last") for one in states]
    before, after = (list(rows["intrinsic_rank"]) for rows in newest)
    assert before != after
    until(lambda: column(page, PAPER) == before)
    act(page)
    until(lambda: column(page, PAPER) == after)
    press("Back to the rule of the run")(page)
    until(lambda: column(page, PAPER) == before)


def test_rows_of_the_table_of_runs_are_what_the_views_draw(dashboard: DashboardPage) -> None:
    page = dashboard.page
    dashboard.begin("Runs", anew=True)
    until(lambda: cells(page, 0) == list(BOTH))
    tick(page, 1)
    until(lambda: "second" in page.inner_text("[data-testid=stSidebar] [data-testid=stMultiSelect]"))
    settle(page)
    press("Compare")(page)
    dashboard.shows(comparison({name: dashboard.run(name) for name in BOTH}))
    open_view(page, "Runs")
    until(lambda: cells(page, 0) == list(BOTH))
    tick(page, 0)
    until(lambda: "first" not in page.inner_text("[data-testid=stSidebar] [data-testid=stMultiSelect]"))
    settle(page)
    press("Open the overview")(page)
    dashboard.shows(dashboard.run("second").overview())


def test_a_figure_is_downloaded_as_it_is_drawn(dashboard: DashboardPage) -> None:
    dashboard.begin("Overview", anew=True)
    first = dashboard.run("first")
    dashboard.shows(first.overview())
    assert "stable rank" not in download(dashboard.page, "Figure as HTML")
    select("Colour", "stable rank")(dashboard.page)
    dashboard.shows(first.overview("stable_rank"))
    assert "stable rank" in download(dashboard.page, "Figure as HTML")
    dashboard.page.get_by_role("button", name="For a paper").first.click()
    svg = download(dashboard.page, "Figure as SVG")
    assert svg.startswith("<?xml")
    assert "stable rank" in svg
    assert "stable rank" in download(dashboard.page, "Numbers as CSV").splitlines()[0]


def cells(page: Any, place: int) -> list[str]:
    """A column of the table, from what it tells to screen readers."""
    rows = page.locator("[data-testid=stDataFrame] tbody tr").all()
    return [row.locator("[role=gridcell]").nth(place).inner_text() for row in rows]


def column(page: Any, place: int) -> list[int]:
    """A column of whole numbers."""
    return [int(text) for text in cells(page, place)]


def metrics(page: Any) -> list[str]:
    """The large figures above a table."""
    return list(page.locator("[data-testid=stMetricValue]").all_inner_texts())


def tick(page: Any, row: int) -> None:
    """Tick a row of the table, which is drawn on a canvas."""
    box = page.locator("[data-testid=stDataFrame]").bounding_box()
    page.mouse.click(box["x"] + 17, box["y"] + 53 + 35 * row)


def download(page: Any, button: str) -> str:
    """The text behind the first button of a name."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).first.click()
    return Path(waiting.value.path()).read_text(encoding="utf-8")


def downloaded(page: Any, button: str) -> Any:
    """The JSON behind a button."""
    return json.loads(download(page, button))
