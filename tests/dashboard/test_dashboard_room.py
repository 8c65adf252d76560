"""Every view in a real browser, wide and on a phone, light and dark: the chart is seen, and all of its words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.dashboard_browser import place, serving, settle, streamlit, until
from helpers.dashboard_room import background, covered, figures, lower_edges_of_controls, poorly_seen
from helpers.loss_ranks import write_loss_ranks
from helpers.made_runs import make_run, names_of

pytestmark = pytest.mark.slow
VIEWS = {
    "Overview": 2,
    "Matrix": 6,
    "Rank evolution": 1,
    "Spectrum density": 1,
    "Spectrum evolution": 2,
    "Explained ratio": 2,
    "Compare": 2,
    "Advice": 0,
    "Runs": 0,
}
PLACES = {"desk": (1100, 800, "light"), "phone": (390, 844, "dark")}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", matrices=10, created=2e9, not_finite=lambda step: [3] if step == 30 else [])
    write_loss_ranks(folder / "first", {name: 1 + place for place, name in enumerate(names_of(10))}, 40)
    make_run(folder / "deep", matrices=120, created=1e9)
    with serving(*streamlit(), folder=str(folder)) as served:
        yield served


@pytest.mark.parametrize("where", PLACES)
def test_the_first_chart_is_above_the_fold_and_no_word_is_cut_covered_or_faint(
    browser: Any, address: str, where: str, tmp_path: Path
) -> None:
    width, height, scheme = PLACES[where]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    faults = []
    for view, count in VIEWS.items():
        page.goto(f"{address}/{place(view)}?run=first")
        settle(page, view)
        until(lambda: page.locator(".js-plotly-plot .modebar").count() == count)  # noqa: B023
        page.wait_for_timeout(300)  # fonts, and the labels that are thinned after them
        drawn = figures(page)
        top = drawn[0]["box"][1] if drawn else page.locator("[data-testid=stDataFrame]").bounding_box()["y"]
        if top > height * 0.5:
            faults.append(f"{view}: what it shows begins {top:.0f} pixels down")
        if len({round(edge / 30) for edge in lower_edges_of_controls(page)}) > 1:
            faults.append(f"{view}: controls end at {lower_edges_of_controls(page)}")
        for number, figure in enumerate(drawn):
            found = covered(figure) + poorly_seen(figure, background(page))
            found += [f"the legend repeats {c}" for c in set(figure["legend"]) if figure["legend"].count(c) > 1]
            faults += [f"{view}, figure {number}: {fault}" for fault in found]
    page.close()
    assert faults == [], "\n".join(faults)


def test_a_deep_models_labels_are_thinned_on_a_phone_and_stay_even(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(f"{address}/?run=deep")
    settle(page, "Overview")
    until(lambda: page.locator(".js-plotly-plot .modebar").count() == 2)
    until(lambda: not covered(figures(page)[0]))
    depths = [int(one["text"]) for one in figures(page)[0]["texts"] if one["text"].isdigit()][:-1]  # the scale's 0 last
    steps = np.diff(depths)
    assert depths[0] == 0
    assert len(depths) >= 4
    assert set(steps) == {steps[0]}
    page.close()
