"""Where noise's bulk ends, drawn into a density and into singular values over steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.style import CATEGORIES
from inrank_monitor.figures.tables import spectra, thin
from inrank_monitor.ranks import energy_share, noise_edge, signal_rank

_LINE = {"color": CATEGORIES[1], "width": 1.6, "dash": "dash"}
_MOST_POINTS = 300


def above_noise(values: np.ndarray, rows: int, cols: int) -> list[str]:
    """`53 directions above noise, 91 % of the energy` for each spectrum of (n, q); empty where it cannot be told."""
    ranks = signal_rank(values, rows, cols)
    return [
        f"{rank:.0f} direction{'' if rank == 1 else 's'} above noise, {share:.0%} of the energy" if rank >= 0 else ""
        for rank, share in zip(ranks, energy_share(values, ranks), strict=True)
    ]


def mark_noise_in_density(figure: go.Figure, singular_values: pd.DataFrame, shape: tuple[int, int]) -> go.Figure:
    """Add the edge to each row of `spectrum_density` (not of a profile), and say what lies above; the same figure."""
    found = spectra(singular_values)
    outlines = [trace for trace in figure.data if trace.meta is not None and len(trace.meta) == 3]
    for number, trace in enumerate(outlines):
        values = found[int(trace.meta[0])]
        edge = np.nan if values is None else float(noise_edge(values, *shape))
        if values is None or not np.isfinite(edge):
            continue
        x, low = edge / float(values.sum()), float(np.min(trace.y))
        (above,) = above_noise(values[None], *shape)
        figure.add_scatter(
            x=[x, x],
            y=[low, low + 0.94],
            mode="lines",
            line=_LINE,
            name="edge of noise",
            legendgroup="edge of noise",
            showlegend=number == 0,
            hovertemplate=f"edge of noise at %{{x:.3~g}}<br>{above}<extra></extra>",
        )
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=low + 0.97,
            yanchor="top",
            text=above.replace(", ", ",<br>"),  # a narrow page would cut one line
            align="left",
            showarrow=False,
            font_size=12,
        )
    return figure


def mark_noise_over_steps(figure: go.Figure, singular_values: pd.DataFrame, shape: tuple[int, int]) -> go.Figure:
    """Add the edge at each step to `spectrum_evolution`, and say what lies above it now; the same figure."""
    found = {step: values for step, values in spectra(singular_values).items() if values is not None}
    if not found or not figure.data:
        return figure
    steps, values = np.array(list(found)), np.stack(list(found.values()))
    edges = noise_edge(values, *shape)
    told = np.flatnonzero(np.isfinite(edges))
    if not len(told):
        return figure
    told = told[thin(edges[told], _MOST_POINTS)]
    texts = above_noise(values[told], *shape)
    figure.add_scatter(
        x=steps[told],
        y=edges[told],
        mode="lines" if len(told) > 1 else "markers",
        line=_LINE,
        name="edge of noise",
        showlegend=True,
        text=texts,
        hovertemplate="edge of noise %{y:.4~g}<br>step %{x}<br>%{text}<extra></extra>",
    )
    figure.add_annotation(
        x=1,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="right",
        yanchor="bottom",
        text=f"{texts[-1]} at step {steps[told[-1]]}".replace(", ", ",<br>"),
        align="right",
        showarrow=False,
        font_size=12,
    )
    return figure
