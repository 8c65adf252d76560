"""The numbers that a figure draws, as one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.paper.words import plain_words, whole_name


def figure_table(figures: go.Figure | Mapping[str, go.Figure]) -> pd.DataFrame:
    """What is drawn, a row a point: panel, series, and the axes' quantities under their titles.

    Curves that are thinned for drawing are as thinned here. Filled areas are left out (their outline is a series);
    a horizontal line has one row.

    Args:
        figures: one, or several by the title of their panel.
    """
    panels = {"": figures} if isinstance(figures, go.Figure) else dict(figures)
    titles = [_titles(figure) for figure in panels.values()]
    # where panels differ in what an axis is, their columns cannot have its name
    names = tuple(
        found.pop() if len(found := set(column)) == 1 else "xy"[i] for i, column in enumerate(zip(*titles, strict=True))
    )
    tables = [
        table.assign(panel=plain_words(title))
        for title, figure in panels.items()
        for table in _tables(figure, names or ("x", "y"))
    ]
    if not tables:
        return pd.DataFrame(columns=["series", *(names or ("x", "y"))])
    whole = pd.concat(tables, ignore_index=True)
    first = ["panel", "series"] if len(panels) > 1 else ["series"]
    return whole[[*first, *(name for name in whole.columns if name not in ("panel", "series"))]]


def figure_csv(figures: go.Figure | Mapping[str, go.Figure]) -> str:
    """`figure_table` as CSV, numbers to seven digits."""
    return str(figure_table(figures).to_csv(index=False, float_format="%.7g", lineterminator="\n"))


def _titles(figure: go.Figure) -> tuple[str, str]:
    """Of the two axes, in plain words."""
    axes = figure.layout.xaxis, figure.layout.yaxis
    if len({trace.yaxis or "y" for trace in figure.data}) > 1:  # each series has a quantity of its own
        return plain_words(axes[0].title.text) or "step", "value"
    x, y = (plain_words(axis.title.text).split("\n")[0] for axis in axes)
    return x or "x", y or ("row" if figure.layout.yaxis.ticktext is not None else "y")


def _tables(figure: go.Figure, names: tuple[str, ...]) -> Iterator[pd.DataFrame]:
    """A table a series."""
    x, y = names
    extra = (figure.layout.meta or {}).get("customdata") if isinstance(figure.layout.meta, dict) else None
    for trace in figure.data:
        series = plain_words(whole_name(trace))
        if trace.type == "heatmap":
            yield _grid(trace, names, plain_words(trace.colorbar.title.text) or "value")
        elif trace.x is None or getattr(trace, "fill", None) == "toself" or all(one is None for one in trace.x):
            continue
        else:
            columns = {"series": series, x: _column(trace.x), y: _column(trace.y)}
            if extra and trace.customdata is not None and np.ndim(trace.customdata) == 1:
                columns[str(extra)] = _column(trace.customdata)
            yield pd.DataFrame(columns)
    for shape in figure.layout.shapes:
        if shape.type == "line" and shape.y0 == shape.y1 and "domain" in str(shape.xref):
            yield pd.DataFrame({"series": [shape.name or "line"], x: [np.nan], y: [shape.y0]})


def _column(given: object) -> list[object]:
    return [plain_words(one) if isinstance(one, str) else one for one in np.asarray(given, dtype=object)]


def _grid(trace: go.Heatmap, names: tuple[str, ...], value: str) -> pd.DataFrame:
    """A row a cell."""
    z = np.array(trace.z, dtype=object)
    columns, rows = _column(trace.x), _column(trace.y)
    cells = {names[0]: columns * len(rows), names[1]: np.repeat(np.array(rows, dtype=object), len(columns))}
    return pd.DataFrame({"series": value, **cells, value: [one for row in z for one in row]})
