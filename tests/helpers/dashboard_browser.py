"""The dashboard's server, its pages in Chromium, and what Plotly has drawn there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import plotly.graph_objects as go

from inrank_monitor.console import RUNS_VARIABLE, app_directory

# Of every figure what a reader can tell apart: points, names, colours, rows of text, scales and marks.
_READ = """() => {
  const plain = one => ArrayBuffer.isView(one) ? Array.from(one) : one;
  const list = value => value == null ? null : Array.from(value, plain);
  const axis = one => one && ({
    title: one.title?.text ?? null, type: one.type, text: list(one.ticktext), range: one.range, auto: !!one.autorange,
  });
  return [...document.querySelectorAll('.js-plotly-plot')].filter(one => one._fullData).map(one => ({
    traces: one._fullData.map(trace => ({
      type: trace.type, name: trace.name, group: trace.legendgroup, visible: trace.visible,
      colour: trace.line?.color ?? null, dash: trace.line?.dash ?? null,
      x: list(trace.x), y: list(trace.y), z: list(trace.z), meta: trace.meta ?? null,
      scale: trace.colorbar?.title?.text ?? null,
    })),
    xaxis: axis(one._fullLayout.xaxis), yaxis: axis(one._fullLayout.yaxis),
    marks: (one._fullLayout.shapes ?? []).map(shape => shape.y0),
    notes: (one._fullLayout.annotations ?? []).map(note => note.text),
  }));
}"""


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


@contextmanager
def serving(*command: str, folder: str | None = None) -> Iterator[str]:
    """A server started by a command that gets its port appended; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != RUNS_VARIABLE}
    if folder:
        environment[RUNS_VARIABLE] = folder
    command = tuple(part.format(port=port) for part in command)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _healthy(address), 60)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the command may have started the server as a process of its own
        server.wait(20)


def _healthy(address: str) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def streamlit(*arguments: str) -> list[str]:
    """`streamlit run dashboard`, as in the README."""
    options = ["--server.headless=true", "--server.port={port}"]
    return [sys.executable, "-m", "streamlit", "run", str(app_directory()), *options, *arguments]


def visit(browser: Any, address: str) -> Any:
    """A page that keeps a note of every request and every error."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.requests, page.errors = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    settle(page)
    return page


def place(view: str) -> str:
    """A view's path in the address."""
    return "" if view == "Overview" else view.lower().replace(" ", "-")


def settle(page: Any, heading: str | None = None) -> None:
    """Wait until the page is drawn."""
    page.wait_for_selector("h2" if heading is None else f"h2:has-text('{heading}')", timeout=60_000)
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=60_000)
    assert page.locator("[data-testid=stException]").count() == 0


def url(page: Any) -> str:
    """The address as it is now; `page.url` lags behind while nothing else is asked of the page."""
    return str(page.evaluate("location.href"))


def open_view(page: Any, view: str) -> None:
    """Choose a view as a reader does."""
    page.locator("[data-testid=stSidebarNav]").get_by_text(view, exact=True).click()
    settle(page, view)


def drawn(page: Any) -> list[dict[str, Any]]:
    """The figures of the page as Plotly has them, from top to bottom."""
    return list(page.evaluate(_READ))


def differences(figures: Sequence[dict[str, Any]], expected: Sequence[go.Figure]) -> list[str]:
    """In what the drawn figures are not the expected ones."""
    if len(figures) != len(expected):
        return [f"{len(figures)} figures are drawn, not {len(expected)}"]
    found = []
    for place, (figure, wanted) in enumerate(zip(figures, expected, strict=True)):
        found += [f"figure {place}: {what}" for what in _differences(figure, wanted)]
    return found


def _differences(figure: dict[str, Any], wanted: go.Figure) -> Iterator[str]:
    for name in ("xaxis", "yaxis"):
        axis, want = figure[name], wanted.layout[name]
        if axis and (axis["title"] or None) != (want.title.text or None) and want.visible is not False:
            yield f"{name} says {axis['title']}, not {want.title.text}"
        if axis and axis["type"] != (want.type or "linear"):
            yield f"{name} is {axis['type']}, not {want.type or 'linear'}"
        if axis and want.ticktext is not None and name == "yaxis" and axis["text"] != list(want.ticktext):
            yield f"{name} is labelled {axis['text']}, not {list(want.ticktext)}"
    if not _equal(figure["marks"], [shape.y0 for shape in wanted.layout.shapes]):
        yield f"marks at {figure['marks']}, not {[shape.y0 for shape in wanted.layout.shapes]}"
    if figure["notes"] != [note.text for note in wanted.layout.annotations]:
        yield f"notes {figure['notes']}, not {[note.text for note in wanted.layout.annotations]}"
    if len(figure["traces"]) != len(wanted.data):
        yield f"{len(figure['traces'])} traces, not {len(wanted.data)}"
        return
    for number, (trace, want) in enumerate(zip(figure["traces"], wanted.data, strict=True)):
        line = want.line if want.type == "scatter" else None
        scale = want.colorbar.title.text if want.type == "heatmap" else None
        words = {
            "type": (trace["type"], want.type),
            "name": (trace["name"], want.name or trace["name"]),
            "group": (trace["group"] or None, want.legendgroup or None),
            "colour": (trace["colour"], line.color if line is not None and line.color else trace["colour"]),
            "dash": (trace["dash"], line.dash if line is not None and line.dash else trace["dash"]),
            "scale": (trace["scale"], scale or trace["scale"]),
        }
        yield from (f"{what} of trace {number} is {is_}, not {to}" for what, (is_, to) in words.items() if is_ != to)
        for part in ("x", "y", "z"):
            is_, to = trace[part], getattr(want, part, None)
            if not _equal(is_, to):
                yield f"{part} of trace {number} ({trace['name']}) is {is_!s:.200}, not {to!s:.200}"


def _equal(is_: Any, to: Any) -> bool:
    """Numbers or words, in the precision that is drawn."""
    if is_ is None or to is None:
        return is_ is None and to is None
    is_, to = list(is_), list(to)
    if len(is_) != len(to) or any(isinstance(one, str) for one in (*is_, *to)):
        return is_ == to
    rows = [np.array(one, dtype=float) for one in (is_, to)]  # None becomes NaN
    return rows[0].shape == rows[1].shape and np.allclose(*rows, rtol=1e-6, equal_nan=True)
