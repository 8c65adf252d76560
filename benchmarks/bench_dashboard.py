"""How fast the dashboard is: 48 matrices × 768 values × 1000 snapshots, a server that is warm, and a reader.

    python benchmarks/bench_dashboard.py [--matrices 48] [--values 768] [--snapshots 1000]

The server is warmed up by one page of another, tiny run, so that its libraries are loaded. Then in this process, as a
session of that server does it: the first figure of the big run, each other view, another α, and one new snapshot. For
each the seconds until the page's last element is there, and how many bytes of figures and tables it sends.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["STREAMLIT_LOG_LEVEL"] = "error"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.made_runs import append_steps, make_run  # noqa: E402
from streamlit.testing.v1 import AppTest  # noqa: E402

from inrank_monitor.console import RUNS_VARIABLE, app_directory  # noqa: E402
from inrank_monitor.runs import RunLog  # noqa: E402

VIEWS = (
    "Rank evolution",
    "Spectrum density",
    "Spectrum evolution",
    "Explained ratio",
    "Compare",
    "Advice",
    "Runs",
    "Overview",
)
FIRST, SWITCH, SNAPSHOT, BYTES = 2.0, 1.0, 0.3, 5_000_000


def timed(app: AppTest) -> float:
    """Seconds of one run of the page."""
    began = time.perf_counter()
    app.run()
    seconds = time.perf_counter() - began
    if app.exception:
        raise RuntimeError(app.exception[0].value)
    return seconds


def sent(app: AppTest) -> int:
    """Bytes of figures and tables on the page."""
    figures = sum(len(chart.proto.json) for chart in app.get("bidi_component"))
    return figures + sum(len(table.proto.SerializeToString()) for table in app.dataframe)


def line(what: str, seconds: float, limit: float, size: int) -> bool:
    """Print one result; whether it is within its limits."""
    good = seconds <= limit and size <= BYTES
    print(f"{what:<32} {seconds:7.3f} s  (at most {limit} s) {size / 1e6:7.2f} MB  {'' if good else 'TOO MUCH'}")
    return good


def main() -> int:
    """Run the benchmark; 1 if anything is over its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--matrices", type=int, default=48)
    parser.add_argument("--values", type=int, default=768)
    parser.add_argument("--snapshots", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        os.environ[RUNS_VARIABLE] = str(folder)
        shape = (options.values, options.values)
        make_run(folder / "tiny", created=1)
        page("Overview", "tiny")
        print(f"writing {options.matrices} × {options.values} × {options.snapshots}")
        big = make_run(folder / "big", options.matrices, range(0, 10 * options.snapshots, 10), shape, buffer_rank=100)
        return 0 if all([*views(), *growing(big, options.matrices, options.snapshots, shape)]) else 1


def page(view: str, run: str) -> tuple[AppTest, float]:
    """A new session, and the seconds until its page is there."""
    app = AppTest.from_file(str(app_directory() / "streamlit_app.py"), default_timeout=120)
    app.query_params["view"], app.query_params["run"] = view, run
    return app, timed(app)


def views() -> list[bool]:
    """The first figure, then every view, then another α."""
    app, seconds = page("Overview", "big")
    good = [line("first figure", seconds, FIRST, sent(app))]
    for view in VIEWS:
        app.query_params["view"] = view
        good.append(line(f"to {view}", timed(app), SWITCH, sent(app)))
    app.slider(key="alpha").set_value(0.8)
    good.append(line("to α = 0.8, first time", timed(app), FIRST, sent(app)))
    app.query_params["view"] = "Rank evolution"
    good.append(line("to Rank evolution, α = 0.8", timed(app), SWITCH, sent(app)))
    return good


def growing(big: Path, matrices: int, snapshots: int, shape: tuple[int, int]) -> list[bool]:
    """A new segment that goes on with the run, one snapshot at a time; the median of five."""
    app, _ = page("Rank evolution", "big")
    log = RunLog(big, 1)
    seconds = []
    steps = range(10 * snapshots, 10 * snapshots + 60, 10)
    for _ in append_steps(log, matrices, steps, shape, buffer_rank=100):
        time.sleep(0.6)  # a page does not look at the disk more often
        seconds.append(timed(app))
    log.close()
    return [line("a new snapshot (median)", statistics.median(seconds[1:]), SNAPSHOT, sent(app))]


if __name__ == "__main__":
    sys.exit(main())
