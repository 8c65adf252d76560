"""A sheet of panels at a column's width, saved as SVG, PDF or PNG."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from inrank_monitor.figures.names import shorten
from inrank_monitor.figures.paper.axes import (
    axis_of,
    draw_note,
    draw_shape,
    finish_axis,
    set_scales,
    with_notes_in_rows,
)
from inrank_monitor.figures.paper.data import figure_csv
from inrank_monitor.figures.paper.legend import LETTER, add_legend
from inrank_monitor.figures.paper.traces import draw_trace
from inrank_monitor.figures.paper.words import TEXT, plain_words
from inrank_monitor.files import replaced

WIDTHS = {"single": 3.25, "double": 6.75}  # inches: one column, and a page of two
TITLE_LETTER = 0.066  # inches a letter, with what the axis beside the panel takes of its width
FORMATS = ("svg", "pdf", "png")
_STYLE = {
    "font.size": 7,
    "font.family": "DejaVu Sans",  # comes with Matplotlib and has Greek, ‖ and subscripts: the same sheet anywhere
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.edgecolor": "#444444",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.2,
    "ytick.major.size": 2.2,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text, to be searched and edited
    "svg.hashsalt": "inrank",  # the same figure, the same file
    "pdf.fonttype": 42,  # whole letters, which publishers ask for
}
_DRAWING = threading.Lock()
_WITHOUT_DATE: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}


def check_matplotlib() -> None:
    """Raise a ModuleNotFoundError that says what to install, where Matplotlib is missing."""
    if find_spec("matplotlib") is None:
        needed = "figures for a paper are drawn by Matplotlib: pip install 'inrank-monitor[figures]'"
        raise ModuleNotFoundError(needed, name="matplotlib")


def save_figure(
    figures: go.Figure | Mapping[str, go.Figure],
    file: str | os.PathLike[str],
    *,
    width: str | float = "single",
    columns: int | None = None,
    height: float | None = None,
) -> Path:
    """Save a figure, or panels side by side, as a paper prints it; its suffix says how: .svg, .pdf, .png or .csv.

    Text is near-black on white and 6.5 to 7.5 points high. Panels of the same quantity share the y axis; a series that
    several have is in the one legend once. PNG has 300 dots an inch; CSV is what is drawn, by `figure_csv`.

    Args:
        figures: from `inrank_monitor.figures`, or several by the title of their panel.
        file: replaced in one step.
        width: `"single"` (3.25 in), `"double"` (6.75 in), or inches.
        columns: panels in a row. Default: what fits.
        height: inches. Default: what the panels need.

    Returns:
        The file.

    Raises:
        ValueError: an unknown suffix or width, or a trace that cannot be drawn.
        ModuleNotFoundError: Matplotlib is missing; a CSV needs none.
    """
    path = Path(file)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in (*FORMATS, "csv"):
        raise ValueError(f"file must end in .svg, .pdf, .png or .csv, got {path.name!r}")
    content = (
        figure_csv(figures).encode()
        if kind == "csv"
        else paper_figure_bytes(figures, kind, width=width, columns=columns, height=height)
    )
    with replaced(path, path.with_name(f".{path.name}.{os.getpid()}.tmp")) as temporary:
        temporary.write_bytes(content)
    return path


def paper_figure_bytes(
    figures: go.Figure | Mapping[str, go.Figure],
    kind: str,
    *,
    width: str | float = "single",
    columns: int | None = None,
    height: float | None = None,
) -> bytes:
    """What `save_figure` writes as `"svg"`, `"pdf"` or `"png"`."""
    if kind not in FORMATS:
        raise ValueError(f"kind must be one of {FORMATS}, got {kind!r}")
    panels = {"": figures} if isinstance(figures, go.Figure) else dict(figures)
    if not panels:
        raise ValueError("figures must hold at least one figure")
    inches = inches_of(width)
    check_matplotlib()
    content = io.BytesIO()
    with _style():
        sheet = _drawn(panels, inches, columns, height)
        sheet.savefig(content, format=kind, dpi=300, metadata=_WITHOUT_DATE[kind])
    return content.getvalue()


def inches_of(width: str | float) -> float:
    """A width in inches.

    Raises:
        ValueError: no known word and no number that a page could have.
    """
    given = WIDTHS.get(width) if isinstance(width, str) else float(width)
    if given is None or not 1 <= given <= 40:
        raise ValueError(f"width must be 'single', 'double' or from 1 to 40 inches, got {width!r}")
    return given


def natural_width(figure: go.Figure) -> str:
    """`"double"` for what a single column would crush: a heat map, or panels side by side."""
    wide = any(trace.type == "heatmap" for trace in figure.data) or any(cell.column for cell in cells_of(figure))
    return "double" if wide else "single"


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib as it is without anybody's settings, and then ours; one sheet at a time, as its settings are one."""
    import matplotlib as mpl

    with _DRAWING, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def _margin(figure: go.Figure) -> float:
    """Inches that the words at a panel's rows take."""
    axis = figure.layout.yaxis
    words = axis.ticktext if axis.ticktext is not None and axis.type != "log" else ()
    return LETTER * max((len(line) for text in words for line in plain_words(text).split("\n")), default=0)


def _columns(panels: int, inches: float, margin: float) -> int:
    most = max(int(inches // (1.6 + margin)), 1)
    rows = -(-panels // most)
    return -(-panels // rows)  # rows as even as they can be


@dataclass(frozen=True)
class Cell:
    """One pair of axes of a Plotly figure: row and column among that figure's own, and the names of its axes."""

    row: int
    column: int
    x: str
    y: str


def cells_of(figure: go.Figure) -> list[Cell]:
    """The pairs of axes that a figure draws on, from its traces and where they lie; at least one."""
    pairs = list(dict.fromkeys((trace.xaxis or "x", _under(figure, trace.yaxis or "y")) for trace in figure.data))
    pairs = pairs or [("x", "y")]

    def start(name: str) -> float:
        domain = axis_of(figure, name).domain
        return round(domain[0], 3) if domain else 0.0

    lefts = sorted({start(x) for x, _ in pairs})
    bottoms = sorted({start(y) for _, y in pairs}, reverse=True)
    return [Cell(bottoms.index(start(y)), lefts.index(start(x)), x, y) for x, y in pairs]


def _under(figure: go.Figure, name: str) -> str:
    """The axis that an axis lies over, or itself."""
    return str(axis_of(figure, name).overlaying or name)


def _drawn(panels: Mapping[str, go.Figure], inches: float, columns: int | None, height: float | None) -> Any:
    """The sheet; without pyplot, which would keep it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {title: with_notes_in_rows(figure) for title, figure in panels.items()}
    margin = max(map(_margin, panels.values()))
    columns = columns or _columns(len(panels), inches, margin)
    titles = [_title(title or one.layout.title.text, inches / columns - margin) for title, one in panels.items()]
    rows = -(-len(panels) // columns)
    sheet = Figure(figsize=(inches, 1))
    FigureCanvasAgg(sheet)
    legend = add_legend(sheet, list(panels.values()), inches)
    tall = 0.12 * max(words.count("\n") for words in titles) + max(
        _panel_height(figure, inches / columns) for figure in panels.values()
    )
    sheet.set_size_inches(inches, height or rows * tall + legend)
    shares = _shares_y(list(panels.values()))
    grid = sheet.add_gridspec(rows, columns)
    first = None
    drawn: list[tuple[Any, go.Figure]] = []
    for place, figure in enumerate(panels.values()):
        axes = _draw_panel(sheet, grid[place // columns, place % columns], figure, shares, first if shares else None)
        axes.set_title(titles[place], loc="left", pad=4 + 8 * _lines_above(figure))
        first = first or axes
        drawn.append((axes, figure))
    for place, (axes, figure) in enumerate(drawn):
        if shares:
            finish_axis(axes, "y", [other.layout.yaxis for other in panels.values()])
        if shares and place % columns:
            axes.tick_params(labelleft=False)
            axes.set_ylabel("")
        _draw_notes(axes, figure, cells_of(figure)[0])
    _add_scales([axes for axes, _ in drawn], columns)
    sheet.align_labels()
    return sheet


def _title(text: str | None, inches: float) -> str:
    """A panel's title in its width: a line for the run and one for the matrix where both do not fit in one."""
    room = max(int(inches / TITLE_LETTER), 8)
    words = plain_words(text)
    lines = words.split("\n") if len(words) <= room else words.replace(": ", ":\n").split("\n")
    return "\n".join(shorten(line, room) for line in lines)


def _shares_y(figures: list[go.Figure]) -> bool:
    """Whether panels are of one quantity on one scale, by numbers and not by words."""
    if len(figures) < 2 or any(len(cells_of(figure)) > 1 for figure in figures):
        return False
    axes = [figure.layout.yaxis for figure in figures]
    alike = len({(one.title.text, one.type, one.visible) for one in axes}) == 1
    return alike and not any(one.type == "category" or (one.ticktext is not None and one.type != "log") for one in axes)


def _panel_height(figure: go.Figure, inches: float) -> float:
    """Inches: wider than tall, but with room for rows of words."""
    cells = cells_of(figure)
    axis = figure.layout.yaxis
    if figure.layout.xaxis.visible is False:
        return 0.8
    if max(cell.row for cell in cells):
        return 0.4 + 0.95 * (1 + max(cell.row for cell in cells))
    maps = [len(trace.z) for trace in figure.data if trace.type == "heatmap" and trace.z is not None]
    if maps:  # by its rows: a few need no page
        return float(min(max(0.65 + 0.16 * max(maps), 1.45), 8.0))
    lines = sum(1 + str(text).count("<br>") for text in axis.ticktext or ()) if axis.type != "log" else 0
    return float(min(max(0.72 * inches, 1.45, 0.65 + 0.12 * lines), 8.0))


def _draw_panel(sheet: Any, place: Any, figure: go.Figure, shares: bool, shared: Any) -> Any:
    """One figure at its place, all but the first pair's y axis and notes finished; the first of its axes."""
    cells = cells_of(figure)
    if len(cells) == 1:  # not in a grid of its own, so that a scale can stand beside a whole row
        axes = sheet.add_subplot(place, sharey=shared, label=str(len(sheet.axes) + 1))
        _draw_cell(axes, figure, cells[0], shared_y=shares)
        return axes
    inner = place.subgridspec(max(c.row for c in cells) + 1, max(c.column for c in cells) + 1)
    first: Any = None
    for cell in cells:
        across = first if first is not None and cell.x == cells[0].x else None
        axes = sheet.add_subplot(inner[cell.row, cell.column], sharex=across, label=str(len(sheet.axes) + 1))
        _draw_cell(axes, figure, cell)
        if first is not None:
            _draw_notes(axes, figure, cell)
        if any(other.x == cell.x and other.row > cell.row for other in cells):
            axes.tick_params(labelbottom=False)
            axes.set_xlabel("")
        first = first if first is not None else axes
    return first


def _draw_cell(axes: Any, figure: go.Figure, cell: Cell, *, shared_y: bool = False) -> None:
    """Traces and lines of a cell, and its axes; one that is shared is finished when all panels are drawn."""
    x, y = axis_of(figure, cell.x), axis_of(figure, cell.y)
    set_scales(axes, x, y)
    before = None
    for place, trace in enumerate(figure.data):
        name = trace.yaxis or "y"
        if (trace.xaxis or "x", _under(figure, name)) == (cell.x, cell.y):
            draw_trace(axes if name == cell.y else _over(axes, axis_of(figure, name)), trace, place, before)
            before = trace
    for shape in figure.layout.shapes:
        if _is_on(shape, cell):
            draw_shape(axes, shape)
    finish_axis(axes, "x", [x])
    if not shared_y:
        finish_axis(axes, "y", [y])


def _draw_notes(axes: Any, figure: go.Figure, cell: Cell) -> None:
    for note in figure.layout.annotations:
        if _is_on(note, cell):
            draw_note(axes, note)


def _lines_above(figure: go.Figure) -> int:
    """How many lines of notes stand between the panel and its title."""
    notes = [note for note in figure.layout.annotations if note.yanchor == "bottom" and note.yref == "paper"]
    return max((1 + str(note.text).count("<br>") for note in notes if note.y == 1), default=0)


def _is_on(one: Any, cell: Cell) -> bool:
    """Whether a shape or a note belongs to a cell; what is placed on the whole sheet, to the first."""
    x, y = (str(ref or name).split(" ")[0] for ref, name in ((one.xref, "x"), (one.yref, "y")))
    first = cell.row == 0 and cell.column == 0
    return (x == cell.x or (x == "paper" and (first or y == cell.y))) and (y == cell.y or (y == "paper" and first))


def _over(axes: Any, given: Any) -> Any:
    """Axes over others, with a y axis of their own that nobody sees."""
    over = axes.twinx()
    over.set_label(axes.get_label())
    over.set_axis_off()
    if given.range is not None:
        over.set_ylim(*given.range)
    return over


def _add_scales(panels: list[Any], columns: int) -> None:
    """A scale of colours that belongs to lines, once a row of panels."""
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        if scale := next((found for axes in row if (found := getattr(axes, "inrank_scale", None))), None):
            scale(row)
