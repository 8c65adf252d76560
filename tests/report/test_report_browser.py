"""The report page in a real browser: figures are unpacked and drawn, tables sort and unfold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.made_runs import make_run

from inrank_monitor import open_run
from inrank_monitor.report import matrix_table, write_html


@pytest.mark.slow
def test_figures_are_drawn_and_the_table_sorts_by_a_click_or_a_key(browser: Any, tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", 70, shape=(80, 64)))
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1240, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(write_html(run, tmp_path / "report.html").as_uri())
    page.locator(".js-plotly-plot .nsewdrag").nth(8).wait_for(state="attached")  # the policy allows no polling script
    place = page.locator("table").first.locator("thead th").all_inner_texts().index("effective") + 1
    rows = page.locator("table").first.locator("tbody tr:visible")
    assert rows.count() == 60
    page.get_by_role("button", name="the other 10").click()
    assert rows.count() == 70
    head = page.get_by_role("button", name="effective", exact=True)
    expected = sorted(matrix_table(run)["effective_rank"].round(1))
    for press, order in ((head.click, expected[::-1]), (lambda: head.press("Enter"), expected)):
        press()
        cells = page.locator("table").first.locator(f"tbody td:nth-child({place})").all_inner_texts()
        shown = [float(text) for text in cells]
        assert shown == pytest.approx(order, abs=0.051)
    assert not errors
    page.close()
