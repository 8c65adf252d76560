"""Seconds to a first chart and to a new point in one Chromium: this page, TensorBoard and trackio on the same numbers.

    python benchmarks/bench_beside.py [--points 3] [--only page tensorboard trackio]

Each is given the ranks of 24 matrices and the loss of 25 snapshots, and then one snapshot after another. The clocks are
the same for all: a first chart is there when the picture of its place has coloured lines, a new point when that picture
has changed; pictures are taken as fast as the browser makes them, a tenth of a second or so. Servers are warm, and each
page opens with an empty cache. TensorBoard reloads as often as it can be told: its server each second, its page, which
by itself never does, each 15 seconds. What is not installed is left out: `pip install tensorboard trackio`. Needs
Chromium and playwright.
"""

from __future__ import annotations

import argparse
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.chromium import chromium  # noqa: E402
from helpers.dashboard_browser import serving, streamlit  # noqa: E402
from helpers.made_runs import Snapshots, append_steps, make_run, names_of  # noqa: E402

from inrank_monitor.runs.lock import Lock  # noqa: E402
from inrank_monitor.runs.log import RunLog  # noqa: E402

MATRICES, SNAPSHOTS, SHAPE = 24, 25, (256, 256)
COLOUR = 25  # of 255, between the parts of a line's pixel; the bluish greys of axes and words have less
_RELOADS = """localStorage.setItem('_tb_global_settings', JSON.stringify(
  {autoReload: true, autoReloadPeriodInMs: 15000}))"""
_WRITER = """
import json, sys, trackio
run = trackio.init(project="beside", name="run")
for line in sys.stdin:
    step, values = json.loads(line)
    run.log(values, step=step)
    print(step, flush=True)
run.finish()
"""


class Tool(NamedTuple):
    """A page that draws the run.

    Attributes:
        address: where it is.
        chart: selects the element that holds a chart.
        append: puts one snapshot more on disk.
        script: run in each page before anything else.
    """

    address: str
    chart: str
    append: Callable[[], object]
    script: str = ""


def numbers() -> Iterator[tuple[int, dict[str, float]]]:
    """Steps, and what is logged at each: the same as the made run holds."""
    snapshots, names = Snapshots(MATRICES, min(SHAPE)), names_of(MATRICES)
    step = 0
    while True:
        ranks = snapshots.at(step)["intrinsic_rank"]
        values = {f"rank/{name}": float(rank) for name, rank in zip(names, ranks, strict=True)}
        yield step, values | {"loss": 5 / (1 + step / 20)}
        step += 10


@contextmanager
def our_page(folder: Path) -> Iterator[Tool]:
    """The dashboard, on a run that this process holds as its writer."""
    path = make_run(folder / "ours" / "run", MATRICES, range(0, 10 * SNAPSHOTS, 10), SHAPE, ended=None)
    lock, log = Lock(path), RunLog(path, 1)
    more = append_steps(log, MATRICES, range(10 * SNAPSHOTS, 100_000, 10), SHAPE, seed=3)
    with serving(*streamlit(), folder=str(path.parent)) as address:
        yield Tool(f"{address}/rank-evolution?run=run", ".js-plotly-plot", lambda: next(more))
    log.close()
    lock.release()


@contextmanager
def tensorboard(folder: Path) -> Iterator[Tool]:
    """TensorBoard, on the same ranks as scalars."""
    from torch.utils.tensorboard import SummaryWriter

    source, writer = numbers(), SummaryWriter(str(folder / "tensorboard"))

    def append() -> None:
        step, values = next(source)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    for _ in range(SNAPSHOTS):
        append()
    port = free_port()
    command = ["-m", "tensorboard.main", "--logdir", str(folder / "tensorboard"), "--port", str(port)]
    with started(port, *command, "--host", "127.0.0.1", "--reload_interval", "1"):
        yield Tool(f"http://127.0.0.1:{port}/#timeseries", "line-chart", append, _RELOADS)
    writer.close()


@contextmanager
def trackio(folder: Path) -> Iterator[Tool]:
    """Trackio, on the same ranks; a process of its own writes."""
    import json

    port = free_port()
    own = {"TRACKIO_DIR": str(folder / "trackio"), "GRADIO_SERVER_PORT": str(port), "BROWSER": "true"}
    source = numbers()
    quiet: dict[str, Any] = {"stderr": subprocess.DEVNULL, "env": os.environ | own, "text": True}
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1, **quiet
    )
    assert writer.stdin is not None
    assert writer.stdout is not None

    def append() -> None:
        step, values = next(source)
        writer.stdin.write(json.dumps([step, values]) + "\n")  # type: ignore[union-attr]
        while (line := writer.stdout.readline()).strip() != str(step):  # type: ignore[union-attr]
            if not line:
                raise RuntimeError("trackio's writer has ended")

    for _ in range(SNAPSHOTS):
        append()
    show = f"import trackio; trackio.show('beside', open_browser=False, block_thread=True, server_port={port})"
    with started(port, "-c", show, **own):
        yield Tool(f"http://127.0.0.1:{port}/?project=beside", ".plot-container canvas", append)
    writer.stdin.close()
    writer.wait(30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(port: int, *arguments: str, **environment: str) -> Iterator[None]:
    """A server of Python's, until it answers; ended afterwards."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, *arguments], env=os.environ | environment, **quiet)
    try:
        end = time.monotonic() + 90
        while not answers(port):
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no server: {' '.join(arguments)}")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait(20)


def answers(port: int) -> bool:
    """Whether somebody serves pages there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def picture(page: Any, chart: str) -> np.ndarray | None:
    """What is seen of the first chart, (height, width, 3); None while it has no place yet."""
    from PIL import Image

    found = page.locator(chart).first
    if not found.count() or not (box := found.bounding_box()) or box["width"] < 20 or box["height"] < 20:
        return None
    shot = page.screenshot(clip=box)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.int16)


def coloured(seen: np.ndarray | None) -> bool:
    """Whether there are lines: what all three write and rule in is grey."""
    return seen is not None and int((np.ptp(seen, axis=2) > COLOUR).sum()) > 60


def until(true: Callable[[], bool], began: float, seconds: float = 90) -> float:
    """Seconds from a beginning until something is true.

    Raises:
        TimeoutError: it did not come true.
    """
    while not true():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"nothing was drawn in {seconds} s")
    return time.perf_counter() - began


def timed(browser: Any, tool: Tool, points: int) -> tuple[list[float], list[float]]:
    """Seconds to the first chart of a page, several times, and to new points."""
    first, new = [], []
    for _ in range(points + 1):  # the first one warms the server
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        context.add_init_script(tool.script)
        page = context.new_page()
        began = time.perf_counter()
        page.goto(tool.address, wait_until="commit")
        first.append(until(lambda page=page: coloured(picture(page, tool.chart)), began))  # type: ignore[misc]
        last = context
        if len(first) <= points:
            context.close()
    for _ in range(points):
        time.sleep(1.5)  # until what the last point has moved stands still
        before = picture(page, tool.chart)
        tool.append()
        began = time.perf_counter()
        new.append(until(lambda before=before: differs(before, picture(page, tool.chart)), began))  # type: ignore[misc]
    last.close()
    return first[1:], new


def differs(before: np.ndarray | None, now: np.ndarray | None) -> bool:
    """Whether a chart looks another way, with its lines drawn."""
    return coloured(now) and before is not None and now is not None and not np.array_equal(before, now)


def main() -> int:
    """Run the benchmark."""
    tools = {"page": our_page, "tensorboard": tensorboard, "trackio": trackio}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--points", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(tools), default=list(tools))
    options = parser.parse_args()
    print(f"{'':<14}{'first chart':>14}{'new point':>14}   seconds, median of {options.points}, and from least to most")
    with chromium() as browser:
        for name in options.only:
            if name != "page" and find_spec(name) is None:
                print(f"{name:<14}not installed: pip install {name}")
                continue
            with tempfile.TemporaryDirectory() as directory, tools[name](Path(directory)) as tool:
                parts = [
                    f"{statistics.median(seconds):14.2f}   ({min(seconds):.2f} to {max(seconds):.2f})"
                    for seconds in timed(browser, tool, options.points)
                ]
            print(f"{name:<14}{''.join(parts)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
