"""Figures of the experiment `glrl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank.experiments.glrl.numbers import Numbers, starts_of
from inrank.experiments.glrl.training import descent_name, greedy_name
from inrank.reproduction.experiment import Figure, Outcomes
from inrank_monitor.figures import INK, category, logarithmic, more_ink, new_figure


def figures(numbers: Numbers) -> list[Figure]:
    """Cost with growths, singular values, distance from the critical points, and what the start decides.

    Single paths are those of the first seed.
    """
    return [_cost(numbers), _paths(numbers), _distances(numbers), _starts(numbers)]


def _series(outcomes: Outcomes, training: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a logged number; the start is drawn at step 1, which a logarithmic axis has."""
    table: pd.DataFrame = outcomes[training].tables.scalars
    rows = table[table["name"] == name]
    return np.maximum(rows["step"].to_numpy(), 1), rows["value"].to_numpy()


def _cost(numbers: Numbers) -> Figure:
    rank, seed = numbers.rank, numbers.seeds[0]
    figure = new_figure("", "step", "C(A) / C(0)")
    for place, depth in enumerate(numbers.depths):
        training = greedy_name("completion", depth, seed)
        steps, cost = _series(numbers.outcomes, training, "loss")
        figure.add_scatter(x=steps, y=cost, mode="lines", name=f"depth {depth}", line_color=category(place))
        found = numbers.outcomes[training].numbers
        grown = [found[f"growth_{width}"] for width in range(2, int(found["width"]) + 1)]
        figure.add_scatter(
            x=grown,
            y=np.interp(grown, steps, cost),
            mode="markers",
            marker={"color": category(place), "size": 10, "symbol": "triangle-up"},
            showlegend=False,
            hovertemplate=f"depth {depth}: one unit more at step %{{x}}<extra></extra>",
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(**logarithmic(np.array([1e-9, 1.0])))
    return Figure(
        "Algorithm 1 on matrix completion",
        figure,
        "Cost over steps, first seed; at a triangle the width had stopped improving and one unit was added.",
        f"The last fall begins at width {rank} if the target's rank was found: then nothing more is added.",
    )


def _paths(numbers: Numbers) -> Figure:
    depths, rank, seed = numbers.depths, numbers.rank, numbers.seeds[0]
    shown = sorted({numbers.smallest, numbers.starts[1], numbers.usual})
    titles = ["Algorithm 1", *(f"gradient descent from {start:g}" for start in shown)]
    figure = _panels(titles, [f"depth {depth}" for depth in depths], "singular value")
    for row, depth in enumerate(depths, 1):
        names = [greedy_name("completion", depth, seed)]
        names += [descent_name("completion", depth, start, seed) for start in shown]
        for col, training in enumerate(names, 1):
            for place in reversed(range(rank + 2)):
                steps, values = _series(numbers.outcomes, training, f"sigma_{place + 1}")
                ink = more_ink(place / (rank + 2))
                figure.add_scatter(
                    x=steps, y=values, mode="lines", line_color=ink, name=f"σ{place + 1}", row=row, col=col
                )
            for true in range(1, rank + 1):
                figure.add_hline(y=true / rank, line_dash="dash", line_color=INK, line_width=1, row=row, col=col)
    figure.update_layout(showlegend=False)
    return Figure(
        "Singular values of the product, matrix completion",
        figure,
        f"The {rank + 2} largest singular values of A, darker is stronger, first seed; dashed: the target's.",
        "Values that rise one after the other, with flat stretches between, are the greedy path.",
    )


def _distances(numbers: Numbers) -> Figure:
    depths, rank, seed = numbers.depths, numbers.rank, numbers.seeds[0]
    figure = _panels([f"depth {depth}" for depth in depths], [""], "‖A − A_r‖ / ‖A_r‖")
    for col, depth in enumerate(depths, 1):
        for start, dash in ((numbers.smallest, "solid"), (numbers.usual, "dot")):
            for place in range(rank):
                steps, values = _series(
                    numbers.outcomes, descent_name("completion", depth, start, seed), f"distance_{place + 1}"
                )
                figure.add_scatter(
                    x=steps,
                    y=values,
                    mode="lines",
                    line={"color": category(place), "dash": dash},
                    name=f"A{place + 1}, start {start:g}",
                    showlegend=col == 1,
                    row=1,
                    col=col,
                )
    figure.update_yaxes(type="log", exponentformat="power")
    return Figure(
        "Distance of gradient descent from the points where Algorithm 1 stopped at rank 1, 2, …",
        figure,
        "Completion, first seed, relative to the point's norm; solid: the smallest start, dotted: the usual one.",
        "Lines that dip one after the other are saddles visited in turn; one that does not dip goes past.",
    )


def _starts(numbers: Numbers) -> Figure:
    panels: dict[str, Callable[[int, float], list[float]]] = {
        "error of hidden entries": lambda depth, start: numbers.descent("completion", depth, start, "error"),
        "effective rank of the product": lambda depth, start: numbers.descent(
            "completion", depth, start, "effective_rank"
        ),
        "distance from the critical points": lambda depth, start: numbers.farthest(depth, start, ["completion"]),
    }
    figure = _panels(list(panels), [""], "", "start")
    for place, depth in enumerate(numbers.depths):
        starts = starts_of(numbers.scale, "completion", depth)
        for col, values_at in enumerate(panels.values(), 1):
            values = [values_at(depth, start) for start in starts]
            figure.add_scatter(
                x=starts,
                y=[fmean(one) for one in values],
                error_y={"array": [stdev(one) if len(one) > 1 else 0.0 for one in values]},
                mode="lines+markers",
                line_color=category(place),
                name=f"depth {depth}",
                showlegend=col == 1,
                row=1,
                col=col,
            )
    figure.add_hline(y=numbers.null_rank, line_dash="dash", line_color=INK, row=1, col=2)
    figure.update_xaxes(dtick=3)
    figure.update_yaxes(type="log", exponentformat="power")
    return Figure(
        "What the start decides, matrix completion",
        figure,
        "Gradient descent, over the product's strength at the start; mean and spread over seeds; dashed: noise. "
        "Right: the smallest distance of the path from the point of Algorithm 1, below the target's rank, that it "
        "misses most.",
        "Lines that rise to the right mean that the low-rank bias is lost with a larger start.",
    )


def _panels(titles: Sequence[str], row_titles: Sequence[str], y_title: str, x_title: str = "step") -> go.Figure:
    """Panels with a logarithmic step axis: a column a title, a row a row title."""
    rows, cols = len(row_titles), len(titles)
    figure = new_figure("", "", "", height=360 if rows == 1 else 230 * rows + 60)
    figure.set_subplots(rows, cols, column_titles=list(titles), horizontal_spacing=0.06, vertical_spacing=0.08)
    for row in range(1, rows + 1):
        label = ", ".join(part for part in (row_titles[row - 1], y_title) if part)
        figure.update_yaxes(title_text=label, row=row, col=1)
    figure.update_layout(margin_t=76)  # the titles of the columns below the buttons
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", tickangle=0)
    figure.update_xaxes(title_text=x_title, row=rows)
    return figure
