"""The pages of `inrank reproduce` in a real browser: every figure is drawn, offline, without an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inrank.reproduction.experiment import Request
from inrank.reproduction.reproduce import reproduce

pytestmark = pytest.mark.slow
NAMES = ("figure-3", "figure-15")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reproduced")
    assert reproduce(Request(directory, "smoke", (0,)), NAMES, jobs=2, quiet=True) == 0
    return directory


@pytest.mark.parametrize("name", ["index.html", *(f"{name}/index.html" for name in NAMES)])
def test_every_figure_of_a_page_is_drawn(browser: Any, out: Path, name: str) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    errors, requests = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((out / name).as_uri())
    places = page.locator("[data-figure]").count()
    assert places == (len(NAMES) if name == "index.html" else 6)
    # the page's policy allows no polling script
    page.locator(".js-plotly-plot .nsewdrag").nth(places - 1).wait_for(state="attached")
    assert not errors
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    identifiers = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    own = [one for one in identifiers if one.startswith(("figure-", "experiment-"))]
    assert len(own) == len(set(own))
    assert page.evaluate("document.documentElement.scrollWidth") <= 1300
    page.close()


def test_a_link_of_the_collecting_page_leads_to_the_experiments_page(browser: Any, out: Path) -> None:
    page = browser.new_page()
    page.goto((out / "index.html").as_uri())
    page.get_by_text("its page").first.click()
    page.wait_for_selector("h1:has-text('Figure 3')")
    page.close()
