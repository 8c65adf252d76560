"""The documentation as its reader opens it: built strictly, from file://, in a real browser, without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCHEMES = ("light", "dark")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a warning of mkdocs, a link or an anchor that leads nowhere, a cell that raises: no site."""
    for module in ("mkdocs", "material", "mkdocstrings", "jupytext"):
        pytest.importorskip(module, reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Sources(HTMLParser):
    """What a page loads: scripts, styles, pictures, frames; not where its links lead."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.found.append(given.get("href") or "")
        elif tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.found.append(given["src"] or "")


@pytest.mark.timeout(1000)
def test_no_page_names_anything_from_elsewhere(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 25
    for page in pages:
        for source in Sources(page.read_text(encoding="utf-8")).found:
            place = urlparse(source)
            assert not place.netloc, f"{page.name} loads {source}"
            if place.scheme != "data":
                assert (page.parent / unquote(place.path)).exists(), f"{page.name} loads {source}, which is missing"


@pytest.fixture
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of the browser that keeps what it asked for, and what went wrong in it."""
    tab = browser.new_page(viewport={"width": 1300, "height": 900}, color_scheme="light")
    tab.asked, tab.errors = [], []
    tab.on("request", lambda asked: tab.asked.append(asked.url))
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    yield tab
    tab.close()


def pages_of(site: Path) -> list[str]:
    return sorted(str(page.relative_to(site)) for page in site.rglob("*.html") if page.name != "404.html")


@pytest.mark.timeout(1000)
def test_no_request_leaves_the_machine(site: Path, tab: Any) -> None:
    for page in pages_of(site):
        tab.goto((site / page).as_uri(), wait_until="load")
    assert len(tab.asked) > 100
    assert {urlparse(url).scheme for url in tab.asked} <= {"file", "data", "blob", "about"}
    assert tab.errors == []


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("width", [400, 1300])
def test_no_page_is_wider_than_the_window(site: Path, tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 900})
    for page in pages_of(site):
        tab.goto((site / page).as_uri(), wait_until="load")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, page


@pytest.mark.timeout(1000)
def test_the_search_finds_from_file(site: Path, tab: Any) -> None:
    tab.goto((site / "index.html").as_uri())
    query = tab.locator("[data-md-component=search-query]")
    query.click()  # the index is read when the reader comes to the field
    ready = "() => !document.querySelector('.md-search-result__meta').textContent.includes('Initializing')"
    tab.wait_for_function(ready, timeout=20_000)  # what is typed before that may not be heard
    query.press_sequentially("null rank")
    tab.wait_for_selector(".md-search-result__item", timeout=20_000)
    assert "null rank" in tab.locator(".md-search-result__list").inner_text().lower()
    assert all(url.startswith(("file:", "data:", "about:")) for url in tab.asked)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_tutorials_figures_are_live(site: Path, tab: Any, scheme: str) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.goto((site / "tutorial.html").as_uri())
    places = tab.locator("[data-figure]")
    assert places.count() >= 5
    for number in range(places.count()):
        places.nth(number).scroll_into_view_if_needed()
        places.nth(number).locator(".main-svg").first.wait_for(timeout=20_000)
    drawn = tab.evaluate("[...document.querySelectorAll('[data-figure]')].map(place => place.data.length)")
    assert min(drawn) >= 1
    ink = tab.evaluate("getComputedStyle(document.querySelector('[data-figure] .xtick text')).fill")
    page = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert contrast(ink, page) >= 3, (ink, page)
    assert tab.errors == []


def contrast(ink: str, page: str) -> float:
    """WCAG's ratio of the two, the ink laid on the page by its opacity."""

    def channels(colour: str) -> list[float]:
        numbers = [float(number) for number in re.findall(r"[\d.]+", colour)]
        return [*numbers, 1.0][:4]

    def luminance(colour: list[float]) -> float:
        linear = [(c / 255 / 12.92) if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    over, under = channels(ink), channels(page)
    mixed = [over[3] * one + (1 - over[3]) * other for one, other in zip(over[:3], under[:3], strict=True)]
    light, dark = sorted((luminance(mixed), luminance(under[:3])), reverse=True)
    return (light + 0.05) / (dark + 0.05)
