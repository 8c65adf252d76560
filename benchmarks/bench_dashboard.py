"""How fast the dashboard is in Chromium: seconds from a click to drawn, and how much is sent for it.

    python benchmarks/bench_dashboard.py [--rounds 5] [--only demo] [--snapshots 1000]

Three runs, written here: one as the demo's (24 matrices of 256 values at 25 steps), one of 561 matrices (a Llama of
80 blocks), one of 1000 snapshots. For each: a cold page (and before it Streamlit's own part), the page loaded again,
then every view by its link in the menu, five times in turn.
"Drawn" is when the heading is the view's, Streamlit has ended and nothing has changed for a while. The seconds are up
to the last change within the window of 1400 × 1000; behind them, where it is later, up to the last below it. Then a run
that is being written: from a snapshot's being on disk to its point's being drawn. Bytes are what the server sends for a
view, unpacked. The server is warm: a page of another, tiny run has loaded its libraries. Needs Chromium and playwright.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.chromium import chromium  # noqa: E402
from helpers.dashboard_browser import place, serving, streamlit  # noqa: E402
from helpers.made_runs import append_steps, make_run  # noqa: E402

from inrank_monitor.console import app_directory  # noqa: E402
from inrank_monitor.runs.lock import Lock  # noqa: E402
from inrank_monitor.runs.log import RunLog  # noqa: E402

COLD, LIVE, BYTES = 2.0, 1.0, 2_000_000
OVERVIEW = 2  # figures of the first view
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# Notes the last change of the page, once of what is within the window and once of all, until it is what was asked for
# and nothing in it changes more.
_DRAWN = """([heading, quiet, figures]) => new Promise((resolve, reject) => {
  const began = performance.now(), last = [began, began], before = ['', ''];
  const parts = '[role=figure], [data-testid], [data-testid=stDataFrame] canvas, [data-stale=true]';
  const chart = one => one.getAttribute('role') === 'figure';
  const told = one => chart(one) && one.querySelectorAll('path').length + ' ' + (one._fullData?.length ?? -1);
  const look = () => {
    const now = performance.now();
    const all = [...document.querySelectorAll(parts)], charts = all.filter(chart);
    const waits = charts.some(one => !one._fullData || !one.querySelector('.main-svg'));
    const settled = !waits && charts.length >= figures
      && document.querySelector('[data-testid=stApp]')?.getAttribute('data-test-script-state') === 'notRunning'
      && (heading === null || document.querySelector('h2')?.innerText === heading)
      && !document.querySelector('[data-stale=true]');
    [all.filter(one => one.getBoundingClientRect().top < innerHeight), all].forEach((group, i) => {
      const shown = group.length + group.map(told).filter(Boolean).join();
      if (shown !== before[i]) { before[i] = shown; last[i] = now; }
    });
    if (!settled) last[1] = now;
    if (settled && now - last[1] > quiet) resolve(last.map(one => (one - window.clicked) / 1000));
    else if (now - began > 60000) reject(new Error(`not drawn after a minute: ${before}`));
    else requestAnimationFrame(look);
  };
  look();
})"""
_CLICK = """view => {
  const links = [...document.querySelectorAll('[data-testid=stSidebarNav] a')];
  window.clicked = performance.now();
  links.find(one => one.innerText.trim() === view).click();
}"""
_POINT = """step => [...document.querySelectorAll('.js-plotly-plot')].some(one =>
  one._fullData?.some(trace => trace.x?.length && Math.max(...Array.from(trace.x, Number)) >= step))"""
QUIET = 250  # milliseconds without a change


class Drawn(NamedTuple):
    """Seconds until what can be seen stands, and until all does."""

    seen: float
    all: float


class Timed(NamedTuple):
    """What one view took: seconds of each round, to what can be seen and to all, and the most bytes sent for it."""

    seconds: list[Drawn]
    size: int


class Sent:
    """Counts what the server sends to a page."""

    def __init__(self, page: Any) -> None:
        self.size = 0
        page.on("websocket", lambda socket: socket.on("framereceived", self._add))

    def _add(self, payload: Any) -> None:
        self.size += len(payload)


def drawn(page: Any, heading: str | None, figures: int = 0) -> Drawn:
    """Seconds from the click (or the start of the page) until so many figures are there and nothing changes more."""
    return Drawn(*page.evaluate(_DRAWN, [heading, QUIET, figures]))


@contextmanager
def opened(browser: Any, address: str, figures: int = 0) -> Iterator[tuple[Any, Sent, Drawn]]:
    """A page in a browser that has nothing in its cache; the seconds until it is drawn."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.add_init_script("window.clicked = 0")
    page = context.new_page()
    sent = Sent(page)
    page.goto(address, wait_until="commit")
    page.wait_for_selector("h2", timeout=60_000)
    yield page, sent, drawn(page, None, figures)
    context.close()


def views_of(page: Any) -> list[str]:
    """As the menu has them."""
    links = page.locator("[data-testid=stSidebarNav] a").all_inner_texts()
    return [text.strip() for text in links]


def every_view(page: Any, sent: Sent, rounds: int) -> dict[str, Timed]:
    """Each view by its link, in turn, so that it is drawn anew each time."""
    timed = {view: Timed([], 0) for view in views_of(page)}
    for _ in range(rounds):
        for view, before in timed.items():
            sent.size = 0
            page.evaluate(_CLICK, view)
            seconds = drawn(page, view)
            timed[view] = Timed([*before.seconds, seconds], max(before.size, sent.size))
    return timed


def line(what: str, drawn: list[Drawn], limit: float, size: int | None = None) -> bool:
    """Print one result; whether it is within its limits."""
    seconds = [one.seen for one in drawn]
    median, whole = statistics.median(seconds), statistics.median(one.all for one in drawn)
    good = median <= limit and (size or 0) <= BYTES
    sent = f"{f', all {whole:.2f}' if whole > median + 0.005 else '':<12}" + (
        "" if size is None else f"{size / 1e6:5.2f} MB"
    )
    word = "" if good else "TOO MUCH"
    print(f"{what:<34}{median:7.2f} s  (at most {limit:g})  {min(seconds):.2f} to {max(seconds):.2f}{sent}  {word}")
    return good


def pages(browser: Any, address: str, run: str, rounds: int) -> list[bool]:
    """A page in a browser that has nothing in its cache, and the same page loaded again."""
    cold, again = [], []
    for _ in range(rounds):
        with opened(browser, address, OVERVIEW) as (page, sent, seconds):
            cold.append(seconds)
            size = sent.size
            page.reload(wait_until="commit")
            page.wait_for_selector("h2", timeout=60_000)
            again.append(drawn(page, None, OVERVIEW))
    return [line(f"{run}: cold page", cold, COLD, size), line(f"{run}: loaded again", again, COLD)]


def bare(browser: Any, rounds: int) -> None:
    """What of a cold page is Streamlit's own: one that has a heading and nothing else. No limit."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory, "bare.py")
        script.write_text("import streamlit\nstreamlit.header('bare')\n")
        command = [script.as_posix() if part == str(app_directory()) else part for part in streamlit()]
        with serving(*command) as address:
            seconds = []
            for _ in range(rounds):
                with opened(browser, address) as (_, _, one):
                    seconds.append(one)
    line("a Streamlit page of one heading", seconds, float("inf"))


def one_run(browser: Any, address: str, run: str, limit: float, rounds: int) -> list[bool]:
    """A cold page, then every view."""
    good = pages(browser, f"{address}/?run={run}", run, rounds)
    with opened(browser, f"{address}/?run={run}") as (page, sent, _):
        timed = every_view(page, sent, rounds)
    return good + [line(f"{run}: {view}", one.seconds, limit, one.size) for view, one in timed.items()]


def live(browser: Any, address: str, path: Path, rounds: int) -> list[bool]:
    """From a snapshot's being on disk to its being drawn, in the view of ranks over steps."""
    lock, log = Lock(path), RunLog(path, 1)
    seconds = []
    with opened(browser, f"{address}/{place('Rank evolution')}?run={path.name}") as (page, _, _):
        for step in append_steps(log, 24, range(250, 250 + 10 * (rounds + 1), 10), (256, 256), seed=3):
            began = time.perf_counter()
            page.wait_for_function(_POINT, arg=step, polling="raf", timeout=60_000)
            seconds.append(Drawn(*2 * [time.perf_counter() - began]))
            time.sleep(0.37)  # so that it is not always the same time since the page last looked
    log.close()
    lock.release()
    return [line("a live snapshot", seconds[1:], LIVE)]


def llama_names(blocks: int = 80) -> list[str]:
    """The 561 matrices of a Llama of 80 blocks."""
    return [
        f"model.layers.{block}.{'self_attn' if part[0] in 'qkvo' else 'mlp'}.{part}.weight"
        for block in range(blocks)
        for part in PARTS
    ] + ["lm_head.weight"]


def write_runs(folder: Path, snapshots: int, wanted: list[str]) -> None:
    """The runs that are drawn."""
    make_run(folder / "tiny", created=1)
    square = (256, 256)
    if "demo" in wanted:
        make_run(folder / "demo", 24, range(0, 500, 20), square, buffer_rank=32)
    if "wide" in wanted:
        make_run(folder / "wide", steps=range(0, 300, 10), shape=square, names=llama_names(), buffer_rank=32)
    if "long" in wanted:
        make_run(folder / "long", 24, range(0, 10 * snapshots, 10), square, buffer_rank=32)
    if "live" in wanted:
        make_run(folder / "live", 24, range(0, 250, 10), square, ended=None)


def main() -> int:
    """Run the benchmark; 1 if anything is over its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    limits = {"demo": 0.5, "wide": 1.0, "long": 1.0}
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--snapshots", type=int, default=1000, help="of the long run")
    parser.add_argument("--only", nargs="+", choices=[*limits, "live"], default=[*limits, "live"])
    options = parser.parse_args()
    good: list[bool] = []
    with tempfile.TemporaryDirectory() as directory, chromium() as browser:
        folder = Path(directory)
        write_runs(folder, options.snapshots, options.only)
        with serving(*streamlit(), folder=directory) as address:
            with opened(browser, f"{address}/?run=tiny"):
                pass
            bare(browser, options.rounds)
            for run, limit in limits.items():
                if run in options.only:
                    good += one_run(browser, address, run, limit, options.rounds)
            if "live" in options.only:
                good += live(browser, address, folder / "live", options.rounds)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
