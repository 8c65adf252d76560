"""What all views share: the opened runs, figures and tables with their downloads, text that stays text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from inrank_monitor.figures import (
    CAPTIONS,
    check_matplotlib,
    figure_csv,
    inches_of,
    natural_width,
    paper_figure_bytes,
)
from inrank_monitor.ranks import RankRule, buffer_rank_text, too_large_text
from inrank_monitor.report import missing_line
from inrank_monitor.runs import RunFolder, RunState, RunSummary, SharedRun, open_run
from views import charts

_OPEN_RUNS = 12
_folded: ContextVar[Any] = ContextVar("folded", default=None)
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$&^=])")


@dataclass
class Page:
    """The runs on the page, the first of which is the one that views of a single run show.

    Attributes:
        problems: runs that could not be opened, and why.
    """

    folder: RunFolder
    runs: dict[str, SharedRun]
    problems: dict[str, str] = field(default_factory=dict)
    rule: RankRule | None = None

    @classmethod
    def open(cls, folder: RunFolder, names: list[str]) -> Page:
        """Open runs by name; one that is refused or unreadable becomes a problem."""
        page = cls(folder, {})
        for name in names:
            try:
                page.runs[name] = opened(folder, name)
            except (OSError, ValueError) as error:
                page.problems[name] = str(error)
        page.update()
        return page

    def update(self, max_age: float | None = None) -> None:
        """Take up what live runs have added, as `SharedRun.update`."""
        for run in self.runs.values():
            run.update(max_age)

    def versions(self) -> list[tuple[str, int, str]]:
        """By what it is told whether there is something new to draw: of each run how much was read, and its status."""
        states = [run.tables(self.rule) for run in self.runs.values()]
        return [(state.name, state.version, state.status) for state in states]

    @property
    def run(self) -> SharedRun:
        """The run that is shown."""
        return next(iter(self.runs.values()))

    @property
    def state(self) -> RunState:
        """The run that is shown, as it is now."""
        return self.run.tables(self.rule)


def opened(folder: RunFolder, name: str) -> SharedRun:
    """A run of the folder, opened once for all pages and threads.

    Raises:
        OSError, ValueError: it is refused, missing or unreadable.
    """
    return _opened(folder.path_of(name), name)


@st.cache_resource(max_entries=_OPEN_RUNS, show_spinner="Reading the run …")
def _opened(path: Path, name: str) -> SharedRun:
    return SharedRun(path, name)


def summarised(folder: RunFolder, name: str) -> RunSummary:
    """A run in one line; a run that is not written now is read for it only once.

    Raises:
        OSError, ValueError: as `opened`.
    """
    summary = _summarised(folder.path, name, folder.stamp(name))
    if summary.status != "live":
        return summary
    run = opened(folder, name)
    run.update()
    return run.summary()


@st.cache_resource(max_entries=2000, show_spinner="Reading the runs …")
def _summarised(folder: Path, name: str, stamp: tuple[tuple[str, int, int], ...]) -> RunSummary:
    return open_run(RunFolder(folder).path_of(name)).summary()


def live_runs(page: Page, everything: bool = False) -> list[str]:
    """The chosen runs (or all in the folder) that are being written now."""
    if not everything:
        return [name for name, run in page.runs.items() if run.status == "live"]
    found = []
    for name in page.folder.names():
        try:
            if summarised(page.folder, name).status == "live":
                found.append(name)
        except (OSError, ValueError):
            continue
    return found


def refusals(folder: RunFolder) -> None:
    """Say which runs that the address asks for are not shown, and why."""
    for name in st.query_params.get_all("run"):
        if name not in folder.names():
            try:
                folder.path_of(name)
            except OSError as error:
                st.error(plain(f"Refused: {error}."), icon=":material/block:")


def show_state(page: Page, every: bool) -> None:
    """Which run (or every chosen run), how far it is, by which rule; and what could not be read."""
    for name, problem in page.problems.items():
        st.error(plain(f"{name} cannot be opened: {problem}"), icon=":material/error:")
    with st.container(key="state", gap="xxsmall"):
        for run in list(page.runs.values()) if every else [page.run]:
            _show_state(run.tables(page.rule))


def _show_state(state: RunState) -> None:
    words = {"live": ":green[● live]", "finished": "finished", "interrupted": ":orange[interrupted]"}
    parts = [f"{code(state.name)} {words[state.status]} at step {state.last_step}", f"{len(state.steps)} snapshots"]
    if state.diverged:
        parts.insert(1, f":red[**⚠ {plain(state.diverged.text)}**]")
    used = buffer_rank_text(state.matrices["buffer_rank"])
    parts.append(f"ranks at α = {state.rule.threshold:g}, {used}, {state.rule.definition}")
    if state.rule != state.logged_rule:
        logged = state.logged_rule
        b = "b that fits each matrix" if logged.buffer_rank is None else f"b = {logged.buffer_rank}"
        parts.append(f"recomputed (logged at α = {logged.threshold:g}, {b}, {logged.definition})")
    st.markdown(" · ".join(parts))
    if state.rule.buffer_rank is not None:
        shapes = state.matrices[["rows", "cols"]].itertuples()
        if hint := too_large_text(state.rule.buffer_rank, [(str(name), rows, cols) for name, rows, cols in shapes]):
            st.caption(plain(hint))
    if hint := missing_line(state):  # type: ignore[arg-type]
        st.caption(plain(hint))
    if state.too_few_points:
        st.info(plain(state.too_few_points), icon=":material/scatter_plot:")
    for problem in state.problems:
        st.warning(plain(problem), icon=":material/healing:")


def marked_name(state: RunState) -> str:
    """A run's name in a legend, marked if it diverged."""
    return f"{state.name} ({state.diverged.text.partition(':')[0]})" if state.diverged else state.name


def caption(key: str) -> None:
    """Two lines under a heading: what the reader sees, and what to conclude."""
    lines = CAPTIONS[key]
    explain(lines.look, lines.conclude)


def explain(look: str, conclude: str) -> None:
    """The two lines, folded into a "?": beside the page's title while the view is chosen for, else where they stand."""
    with _folded.get() or st.popover("?", type="tertiary", help="What you see, and what it tells"):
        st.caption(f"**What you see.** {plain(look)}  \n**What it tells.** {plain(conclude)}")


@contextmanager
def folded_into(place: Any) -> Iterator[None]:
    """Explanations go to a place, a popover, until the block ends."""
    before = _folded.set(place)
    try:
        yield
    finally:
        _folded.reset(before)


def show_figure(figure: go.Figure, key: str, alt: str, *, link: str = "", clicks: bool = False) -> list[Any] | None:
    """A figure with its downloads below: the page's own as HTML, and as a paper prints it.

    Returns:
        As `charts.draw`, what was just clicked.
    """
    name = file_name(key)
    clicked = charts.draw(figure, key, alt, name, link=link, clicks=clicks)
    with st.container(horizontal=True, vertical_alignment="center"):
        download("Figure as HTML", lambda: page_of(figure), f"{name}.html", "text/html", f"{key} html")
        paper = st.popover(
            "For a paper",
            type="tertiary",
            icon=":material/article:",
            key=f"paper {charts.digest(key)}",
            on_change="rerun",
        )
        if paper.open:  # what stands in it costs as much as a chart
            with paper:
                _for_a_paper(figure, name, key)
    return clicked


def _for_a_paper(figure: go.Figure, name: str, key: str) -> None:
    """Vectors and a picture at column width, and the numbers that are drawn."""
    width = natural_width(figure)
    try:
        check_matplotlib()
        st.caption(
            f"At {inches_of(width):g} inches; `inrank-monitor figure` draws other widths and panels side by side."
        )
        for kind, mime in (("pdf", "application/pdf"), ("svg", "image/svg+xml"), ("png", "image/png")):
            draw = partial(paper_figure_bytes, figure, kind, width=width)
            download(f"Figure as {kind.upper()}", draw, f"{name}.{kind}", mime, f"{key} {kind}")
    except ModuleNotFoundError as error:
        st.caption(plain(error))
    download("Numbers as CSV", lambda: figure_csv(figure), f"{name}.csv", "text/csv", f"{key} figure csv")


def page_of(figure: go.Figure) -> str:
    """The figure as one HTML file that opens offline, on white."""
    white = go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")
    return str(white.to_html(include_plotlyjs=True, full_html=True, config={"showSendToCloud": False}))


def show_table(table: pd.DataFrame, key: str, alt: str, **options: object) -> None:
    """A table and its CSV."""
    st.dataframe(table, key=key, alt=alt, **options)  # type: ignore[arg-type]
    download("Table as CSV", lambda: table.to_csv(), f"{file_name(key)}.csv", "text/csv", f"{key} csv")


def download(label: str, make: Callable[[], str | bytes], name: str, mime: str, key: str) -> None:
    """A button whose file is made when it is clicked, and that leaves the page as it is."""
    st.download_button(
        label,
        make,
        name,
        mime,
        key=f"download {key}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
        help=f"Save {name}",
    )


def plain(text: object) -> str:
    """Text for a place that reads Markdown: shown letter by letter."""
    flat = " ".join(str(text).split())
    # A word joiner after the colon keeps `:name:` from becoming a picture, and `:red[` a colour.
    return _PUNCTUATION.sub(r"\\\1", flat).replace(":", ":\u2060")


def code(text: object) -> str:
    """A name in Markdown, as code: nothing in it is interpreted."""
    flat = " ".join(str(text).split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", flat)), default=0))
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{pad}{flat}{pad}{fence}"


def file_name(text: str) -> str:
    """A name that is safe as a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "file"
