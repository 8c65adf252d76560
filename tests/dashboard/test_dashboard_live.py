"""A run that is being written, in a real browser: each view's figures gain the new snapshot and keep the zoom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from helpers.dashboard_browser import differences, drawn, serving, settle, streamlit, until, visit
from helpers.dashboard_controls import AT_FIRST
from helpers.dashboard_widgets import slide, toggle
from helpers.expected_figures import Drawn, comparison
from made_runs import append_steps, make_run

from inrank_monitor.run_log import Lock, RunLog

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


@pytest.fixture
def visited(browser: Any, address: str) -> Iterator[Callable[[str], Any]]:
    """Opens views, each in a page of its own; they are closed at the end."""
    pages = []

    def opened(view: str) -> Any:
        pages.append(visit(browser, f"{address}/?view={view.replace(' ', '+')}"))
        pages[-1].evaluate("window.notReloaded = true")
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


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


def test_every_view_gains_the_new_snapshot_without_a_reload_and_keeps_the_zoom(
    visited: Callable[[str], Any], growing: Growing
) -> None:
    pages = {view: visited(view) for view in AT_FIRST}
    zoomed = {}
    for view, page in pages.items():
        shows(page, expected(view, growing))
        whole = ranges(page)
        zoomed[view] = zoom(page)
        assert all(not np.allclose(one, other) for one, other in zip(zoomed[view], whole, strict=True))
    growing.grow()
    for view, page in pages.items():
        shows(page, expected(view, growing))
        np.testing.assert_allclose(np.array(ranges(page)), np.array(zoomed[view]), rtol=1e-9, err_msg=view)
        assert page.evaluate("window.notReloaded")
        assert page.errors == []


def test_a_page_that_does_not_follow_stays_as_it_is_until_it_follows_again(
    visited: Callable[[str], Any], growing: Growing
) -> None:
    page, other = visited("Rank evolution"), visited("Rank evolution")
    before = expected("Rank evolution", growing)
    shows(page, before)
    toggle("Follow live")(page)
    settle(page)
    growing.grow()
    after = expected("Rank evolution", growing)
    shows(other, after)  # which follows, and so has taken up what the first had time to take up
    assert not differences(drawn(page), before)
    toggle("Follow live")(page)
    shows(page, after)


def test_a_step_is_chosen_in_a_live_run_and_the_newest_is_followed_again(
    visited: Callable[[str], Any], growing: Growing
) -> None:
    density, ratio = visited("Spectrum density"), visited("Explained ratio")
    now = Drawn(growing.path)
    shows(density, now.density())
    slide("From step", "ArrowRight")(density)
    slide("From step", "ArrowRight")(density)
    shows(density, now.density(steps=[20, now.state.steps[-1]]))
    last = now.state.steps[-1]
    toggle("Newest step")(density)
    slide("From step to step", "ArrowLeft", 1)(density)
    shows(density, now.density(steps=[10, now.state.steps[-2]]))
    toggle("Newest step")(ratio)
    shows(ratio, now.explained())
    slide("Step", "ArrowLeft")(ratio)
    shows(ratio, now.explained(step=now.state.steps[-2]))
    growing.grow()
    then = Drawn(growing.path)
    shows(ratio, then.explained(step=now.state.steps[-2]))
    shows(density, then.density(steps=[10, now.state.steps[-2]]))
    toggle("Newest step")(ratio)
    shows(ratio, then.explained())
    toggle("Newest step")(density)
    shows(density, then.density())
    assert then.state.steps[-1] > last
