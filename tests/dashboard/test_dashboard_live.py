"""A run that is being written, in a real browser: each view's figures gain the new snapshot and keep the zoom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from helpers.dashboard_browser import differences, drawn, open_view, serving, settle, streamlit, until, url, visit
from helpers.dashboard_controls import AT_FIRST
from helpers.dashboard_widgets import add, clear, slide, toggle
from helpers.expected_figures import Drawn, comparison
from helpers.made_runs import append_steps, make_run

from inrank_monitor.runs.lock import Lock
from inrank_monitor.runs.log import RunLog

pytestmark = pytest.mark.slow
MATRICES, SHAPE = 10, (24, 16)


class Growing:
    """A run that this process holds as its writer, and grows by a snapshot when told to."""

    def __init__(self, path: Path) -> None:
        self.path = make_run(path, MATRICES, range(0, 50, 10), SHAPE, ended=None)
        self._lock, self._log = Lock(path), RunLog(path, 1)
        self._snapshots = append_steps(self._log, MATRICES, range(50, 1000, 10), SHAPE, seed=3)

    def grow(self) -> int:
        """One snapshot more; its step."""
        return next(self._snapshots)

    def close(self) -> None:
        """Nobody writes it any longer."""
        self._log.close()
        self._lock.release()


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Growing]:
    run = Growing(tmp_path_factory.mktemp("runs") / "live")
    yield run
    run.close()


@pytest.fixture(scope="module")
def address(growing: Growing) -> Iterator[str]:
    with serving(*streamlit(), folder=str(growing.path.parent)) as served:
        yield served


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Any]:
    opened = visit(browser, address)
    opened.evaluate("window.notReloaded = true")
    yield opened
    opened.close()


def expected(view: str, run: Growing) -> list[go.Figure]:
    """What a view at its first choices has to draw of the run as it is now."""
    now = Drawn(run.path)
    return comparison({"live": now}) if view == "Compare" else AT_FIRST[view](now)


def shows(page: Any, figures: list[go.Figure], seconds: float = 20) -> None:
    """Wait until exactly these figures are drawn."""
    end = time.monotonic() + seconds
    while found := differences(drawn(page), figures):
        assert time.monotonic() < end, "\n".join(found[:8])
        time.sleep(0.1)


def zoom(page: Any) -> list[Any]:
    """Drag a rectangle over each figure; the ranges of their axes afterwards."""
    for area in page.locator(".js-plotly-plot .nsewdrag").all():
        area.scroll_into_view_if_needed()
        box = area.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.3)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.8, steps=5)
        page.mouse.up()
    until(lambda: not any(figure["xaxis"]["auto"] or figure["yaxis"]["auto"] for figure in drawn(page)))
    return ranges(page)


def ranges(page: Any) -> list[Any]:
    """What each figure shows of its axes."""
    return [figure[axis]["range"] for figure in drawn(page) for axis in ("xaxis", "yaxis")]


@pytest.mark.parametrize("view", AT_FIRST)
def test_every_view_gains_the_new_snapshot_without_a_reload_and_keeps_the_zoom(
    page: Any, growing: Growing, view: str
) -> None:
    open_view(page, view)
    shows(page, expected(view, growing))
    whole, zoomed = ranges(page), zoom(page)
    assert all(not np.allclose(one, other) for one, other in zip(zoomed, whole, strict=True))
    growing.grow()
    shows(page, expected(view, growing))
    np.testing.assert_allclose(np.array(ranges(page)), np.array(zoomed), rtol=1e-9)
    assert page.evaluate("window.notReloaded")
    assert page.errors == []


def test_lines_hidden_in_the_legend_stay_hidden_whatever_comes_or_goes_before_them(page: Any, growing: Growing) -> None:
    open_view(page, "Rank evolution")
    shows(page, expected("Rank evolution", growing))
    page.locator(".js-plotly-plot .legendtoggle").nth(1).click()
    until(lambda: hidden(page))
    lines = hidden(page)
    growing.grow()
    shows(page, expected("Rank evolution", growing))
    assert hidden(page) == lines
    add("Blocks", "block 1")(page)
    now = Drawn(growing.path)
    shows(page, now.evolution(names=now.group("block", "block 1")))
    assert hidden(page) == [name for name in lines if "h.0." not in name]
    clear("Blocks")(page)
    shows(page, expected("Rank evolution", growing))


def hidden(page: Any) -> list[str]:
    """Names of the lines that are only in the legend."""
    return [trace["name"] for trace in drawn(page)[0]["traces"] if trace["visible"] == "legendonly"]


def test_a_page_that_does_not_follow_stays_as_it_is_until_it_follows_again(page: Any, growing: Growing) -> None:
    open_view(page, "Rank evolution")
    before = expected("Rank evolution", growing)
    shows(page, before)
    toggle("Follow live")(page)
    until(lambda: "live=false" in url(page))
    time.sleep(1)  # what had begun before is drawn
    settle(page)
    growing.grow()
    time.sleep(4)  # a page that follows looks twice a second
    assert not differences(drawn(page), before)
    toggle("Follow live")(page)
    shows(page, expected("Rank evolution", growing))


def test_of_two_steps_the_first_is_chosen_and_the_second_is_the_newest(page: Any, growing: Growing) -> None:
    open_view(page, "Spectrum density")
    shows(page, Drawn(growing.path).density())
    for _ in range(2):
        slide("From step", "ArrowRight")(page)
    now = Drawn(growing.path)
    shows(page, now.density(steps=[20, now.state.steps[-1]]))
    growing.grow()
    now = Drawn(growing.path)
    shows(page, now.density(steps=[20, now.state.steps[-1]]))
    slide("From step", "Home")(page)
    shows(page, now.density())


@pytest.mark.parametrize(
    ("view", "slider", "handle"), [("Spectrum density", "From step to step", 1), ("Explained ratio", "Step", 0)]
)
def test_a_step_is_kept_while_the_run_grows_until_the_newest_is_wanted_again(
    page: Any, growing: Growing, view: str, slider: str, handle: int
) -> None:
    open_view(page, view)
    shows(page, expected(view, growing))
    toggle("Newest step")(page)
    slide(slider, "ArrowLeft", handle)(page)
    chosen = Drawn(growing.path).state.steps[-2]
    shows(page, at_step(view, growing, chosen))
    growing.grow()
    shows(page, at_step(view, growing, chosen))
    toggle("Newest step")(page)
    shows(page, expected(view, growing))


def at_step(view: str, run: Growing, step: int) -> list[go.Figure]:
    """What a view has to draw of the run as it is now, up to a step or at it."""
    now = Drawn(run.path)
    return now.density(steps=[10, step]) if view == "Spectrum density" else now.explained(step=step)
