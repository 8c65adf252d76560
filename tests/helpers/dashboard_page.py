"""One page of the dashboard that a test uses, and what it has to draw."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from helpers.dashboard_browser import differences, drawn, open_view, place, settle
from helpers.expected_figures import Drawn

from inrank_monitor.runs.recomputation import RankRule


class DashboardPage:
    """A page that stays open from test to test; it is loaded anew only where a test left something chosen."""

    def __init__(self, page: Any, address: str, folder: Path) -> None:
        self.page = page
        self._address, self._folder = address, folder
        self._now: tuple[str, tuple[str, ...]] | None = None  # view and runs; None: something may be chosen
        self.run = cache(self._run)

    def _run(self, name: str, rule: RankRule | None = None) -> Drawn:
        return Drawn(self._folder / name, rule)

    def begin(self, view: str, runs: tuple[str, ...] = ("first",), *, anew: bool = False) -> None:
        """A view as it is at first: by a click where the page shows these runs, else from the address.

        Args:
            anew: from the address in any case, and once more for the next test.
        """
        if anew or self._now is None or self._now[1] != runs:
            self.page.goto(f"{self._address}/{place(view)}?" + "&".join(f"run={one}" for one in runs))
            settle(self.page, view)
            self.page.evaluate("window.notReloaded = true")
        elif self._now[0] != view:
            open_view(self.page, view)
        self._now = None if anew else (view, runs)

    def use(self, act: Callable[[Any], Any], before: Sequence[go.Figure], after: Sequence[go.Figure]) -> None:
        """Do something on the page that leads from some drawn figures to others."""
        now, self._now = self._now, None
        self.shows(before)
        assert differences(drawn(self.page), after), "the choice has to change something"
        act(self.page)
        self.shows(after)
        assert self.page.evaluate("window.notReloaded")
        assert self.page.errors == []
        self._now = now

    def shows(self, expected: Sequence[go.Figure], seconds: float = 15) -> None:
        """Wait until exactly these figures are drawn."""
        end = time.monotonic() + seconds
        while found := differences(drawn(self.page), expected):
            assert time.monotonic() < end, "\n".join(found[:8])
            time.sleep(0.15)
