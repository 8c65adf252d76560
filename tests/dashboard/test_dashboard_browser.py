"""The dashboard in a real browser, beside a training that is going on. Slow; needs Chromium and playwright."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers.dashboard_browser import drawn, open_view, place, serving, settle, streamlit, until, url, visit
from helpers.dashboard_widgets import select
from helpers.made_runs import make_run

from inrank_monitor import open_run
from inrank_monitor.advice import advise, lora_config
from inrank_monitor.console import app_directory

pytestmark = pytest.mark.slow
VIEWS = {
    "Overview": 2,
    "Matrix": 5,
    "Rank evolution": 1,
    "Spectrum density": 1,
    "Spectrum evolution": 2,
    "Explained ratio": 2,
    "Compare": 2,
    "Advice": 0,
    "Runs": 0,
}
TRAINING = """
import sys, time, torch
from pathlib import Path
from torch import nn
from inrank_monitor import attach
directory, go_on, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
inputs = torch.randn(256, 48)
with attach(model, optimizer, directory, every=every, buffer_rank=8, tensorboard=False) as tracker:
    while go_on.exists():
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :16].sin()).square().mean()
        loss.backward()
        optimizer.step()
        tracker.log(loss=loss)
        time.sleep(0.02)
"""


class Training:
    """A training process; it ends when its file is taken away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._go_on = directory.parent / f"{directory.name}.go"
        self._go_on.touch()
        arguments = [str(directory), str(self._go_on), "20"]
        self._process = subprocess.Popen([sys.executable, "-c", TRAINING, *arguments])
        until(lambda: (directory / "measurements-000.arrows").exists(), 60)
        until(lambda: len(open_run(directory).measurements["step"].unique()) >= 3, 60)

    def end(self) -> None:
        """Let it take its last snapshot and close."""
        self._go_on.unlink(missing_ok=True)
        assert self._process.wait(60) == 0


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Training]:
    (tmp_path / "runs").mkdir()
    training = Training(tmp_path / "runs" / "live")
    yield training
    training.end()


def snapshots(page: Any) -> int:
    """How many snapshots the page says it shows."""
    found = re.search(r"(\d+) snapshots", page.inner_text("[data-testid=stMain]"))
    return int(found.group(1)) if found else 0


def test_every_view_opens_by_a_click_and_nothing_outside_this_machine_is_asked(browser: Any, live: Training) -> None:
    with serving(*streamlit(), folder=str(live.directory.parent)) as address:
        page = visit(browser, address)
        for view, figures in VIEWS.items():
            open_view(page, view)
            until(lambda: page.locator(".js-plotly-plot").count() == figures)  # noqa: B023
            assert page.locator("[data-testid=stAlertContentError]").count() == 0
            assert urlsplit(url(page)).path == f"/{place(view)}"
        outside = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
        assert outside == []
        assert page.errors == []


def test_a_live_run_grows_without_a_reload_and_keeps_the_zoom_until_it_ends(browser: Any, live: Training) -> None:
    with serving(*streamlit(), folder=str(live.directory.parent)) as address:
        page = visit(browser, f"{address}/rank-evolution")
        page.evaluate("window.notReloaded = true")
        page.wait_for_selector(".js-plotly-plot .nsewdrag")
        zoom(page)
        before, range_ = snapshots(page), zoomed_range(page)
        top = page.locator(".js-plotly-plot").bounding_box()
        until(lambda: snapshots(page) > before and measured(page) > before)
        settle(page)
        assert zoomed_range(page) == range_
        assert page.locator(".js-plotly-plot").bounding_box() == top
        page.get_by_text("Follow live").click()
        until(lambda: stands_still(page))
        still = snapshots(page)
        assert len(open_run(live.directory).measurements["step"].unique()) > still + 4
        assert zoomed_range(page) == range_
        page.get_by_text("Follow live").click()
        until(lambda: snapshots(page) > still)
        live.end()
        until(lambda: "finished" in page.inner_text("[data-testid=stMain]"))
        until(lambda: page.get_by_text("Follow live").count() == 0)
        steps = len(open_run(live.directory).measurements["step"].unique())
        assert snapshots(page) == steps
        until(lambda: measured(page) == steps)
        assert page.evaluate("window.notReloaded")
        assert zoomed_range(page) == range_


def stands_still(page: Any) -> bool:
    """Whether the page goes on showing the same for five seconds; what was under way at a click may still come."""
    before = snapshots(page)
    time.sleep(5)
    return snapshots(page) == measured(page) == before


def test_a_chart_is_fitted_to_its_place_at_most_once_whatever_changes_around_it(browser: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with serving(*streamlit(), folder=str(tmp_path)) as address:
        page = visit(browser, f"{address}/rank-evolution")
        until(lambda: drawn(page))
        page.evaluate(
            "() => { const { Plots } = window.Plotly, { resize } = Plots; window.fitted = 0; "
            "Plots.resize = (chart) => { window.fitted++; return resize(chart); }; }"
        )
        open_view(page, "Overview")
        until(lambda: len(drawn(page)) == VIEWS["Overview"])
        width = page.locator(".js-plotly-plot").first.bounding_box()["width"]
        assert width != int(width)  # else nothing is told
        time.sleep(2)
        assert page.evaluate("window.fitted") <= VIEWS["Overview"]


def measured(page: Any) -> int:
    """How many steps the first line of the first figure goes through."""
    return len(drawn(page)[0]["traces"][0]["x"])


def zoom(page: Any) -> None:
    """Drag a rectangle over the figure."""
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.9, steps=5)
    page.mouse.up()
    until(lambda: page.evaluate("document.querySelector('.js-plotly-plot').layout.xaxis.autorange") is not True)


def zoomed_range(page: Any) -> list[float]:
    """The figure's step axis."""
    found = page.evaluate("document.querySelector('.js-plotly-plot').layout.xaxis.range")
    return [round(float(value), 6) for value in found]


def test_advice_is_downloaded_as_a_file_that_lora_takes(browser: Any, live: Training) -> None:
    live.end()
    with serving(*streamlit(), folder=str(live.directory.parent)) as address:
        page = visit(browser, f"{address}/advice")
        with page.expect_download() as waiting:
            page.get_by_role("button", name="LoraConfig for PEFT (JSON)").click()
        config = json.loads(Path(waiting.value.path()).read_text())
        assert config == lora_config(advise(open_run(live.directory)))
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Advice as CSV").click()
        assert Path(waiting.value.path()).read_text().startswith("matrix,parameter")
        open_view(page, "Rank evolution")
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Figure as HTML").click()
        assert "Plotly.newPlot" in Path(waiting.value.path()).read_text()


def test_a_shared_address_opens_the_same_view_with_the_same_choices(browser: Any, live: Training) -> None:
    live.end()
    with serving(*streamlit("--", str(live.directory.parent))) as address:
        page = visit(browser, f"{address}/rank-evolution")
        select("Colour by", "block")(page)
        settle(page)
        page.locator("[data-testid=stSlider] input").first.press("ArrowLeft")
        page.wait_for_url("**alpha=0.89**")
        assert "run=live" in url(page)
        assert "group=block" in url(page)
        again = visit(browser, url(page))
        assert "α = 0.89" in again.inner_text("[data-testid=stMain]")
        assert again.inner_text("h2") == "Rank evolution"


def test_choices_go_along_from_view_to_view_and_the_browsers_back_leads_to_the_last_one(
    browser: Any, live: Training
) -> None:
    live.end()
    with serving(*streamlit("--", str(live.directory.parent))) as address:
        page = visit(browser, f"{address}/?view=Spectrum+density&alpha=0.8&matrix=2.weight")  # as views were named once
        settle(page, "Spectrum density")
        page.wait_for_url("**/spectrum-density?**alpha=0.8**")
        until(lambda: "α = 0.8" in page.inner_text("[data-testid=stMain]"))
        page.wait_for_timeout(2000)  # the turn in which the widgets take the address over; nothing on the page tells it
        for view in ("Explained ratio", "Advice", "Explained ratio"):
            open_view(page, view)
            until(lambda: "alpha=0.8" in url(page))
            assert ("matrix=2.weight" in url(page)) == (view != "Advice")
            assert "α = 0.8" in page.inner_text("[data-testid=stMain]")
        for view in ("Advice", "Explained ratio", "Spectrum density"):
            page.go_back()
            until(lambda: urlsplit(url(page)).path == f"/{place(view)}")  # noqa: B023
            settle(page, view)
            assert "α = 0.8" in page.inner_text("[data-testid=stMain]")


def test_a_row_of_the_table_of_runs_is_chosen_for_all_views(browser: Any, live: Training) -> None:
    live.end()
    shutil.copytree(live.directory, live.directory.parent / "second")
    with serving(*streamlit("--", str(live.directory.parent))) as address:
        page = visit(browser, f"{address}/runs?run=live")
        page.wait_for_selector("[data-testid=stDataFrame] canvas")
        click_row(page, 1)
        until(lambda: "run=second" in url(page))
        click_row(page, 0)
        until(lambda: "run=live" not in url(page))
        page.get_by_role("button", name="Open the overview").click()
        settle(page, "Overview")
        assert "second" in page.inner_text("[data-testid=stMain]")


def click_row(page: Any, row: int) -> None:
    """Tick a row of the table, which is drawn on a canvas."""
    box = page.locator("[data-testid=stDataFrame]").bounding_box()
    page.mouse.click(box["x"] + 17, box["y"] + 53 + 35 * row)


@pytest.mark.parametrize("way", ["directory", "script", "inrank-monitor"])
def test_only_this_machine_is_served_however_it_is_started(way: str, tmp_path: Path) -> None:
    command = streamlit("--", str(tmp_path))
    if way == "script":
        command[4] = str(app_directory() / "streamlit_app.py")
    elif way == "inrank-monitor":
        command = [
            sys.executable,
            "-m",
            "inrank_monitor.cli",
            "dashboard",
            str(tmp_path),
            "--no-browser",
            "--port={port}",
        ]
    with serving(*command) as address:
        port = int(address.rpartition(":")[2])
        assert listening(port) == {"0100007F"}


def listening(port: int) -> set[str]:
    """Local addresses (hexadecimal) on which a TCP port is served."""
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found
