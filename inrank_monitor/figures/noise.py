"""Where noise's bulk ends, drawn into a density and into singular values over steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor.figures.style import CATEGORIES
from inrank_monitor.figures.tables import spectra
from inrank_monitor.ranks import noise_edge, signal_rank, signal_share

_LINE = {"color": CATEGORIES[1], "width": 1.6, "dash": "dash"}


def above_noise(values: np.ndarray, rows: int, cols: int) -> str:
    """`53 directions above noise, 91 % of the energy`; empty where it cannot be told."""
    rank = float(signal_rank(values, rows, cols))
    if not np.isfinite(rank):
        return ""
    share = float(signal_share(values, rows, cols))
    return f"{rank:.0f} direction{'' if rank == 1 else 's'} above noise, {share:.0%} of the energy"


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
        figure.add_scatter(
            x=[x, x],
            y=[low, low + 0.94],
            mode="lines",
            line=_LINE,
            name="edge of noise",
            legendgroup="edge of noise",
            showlegend=number == 0,
            hovertemplate=f"edge of noise at %{{x:.3~g}}<br>{above_noise(values, *shape)}<extra></extra>",
        )
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=low + 0.97,
            yanchor="top",
            text=above_noise(values, *shape).replace(", ", ",<br>"),  # a narrow page would cut one line
            align="left",
            showarrow=False,
            font_size=12,
        )
    return figure


def mark_noise_over_steps(figure: go.Figure, singular_values: pd.DataFrame, shape: tuple[int, int]) -> go.Figure:
    """Add the edge at each step to `spectrum_evolution`, and say what lies above it now; the same figure."""
    found = {step: values for step, values in spectra(singular_values).items() if values is not None}
    edges = {step: float(noise_edge(values, *shape)) for step, values in found.items()}
    told = [step for step, edge in edges.items() if np.isfinite(edge)]
    if not told or not figure.data:
        return figure
    figure.add_scatter(
        x=told,
        y=[edges[step] for step in told],
        mode="lines" if len(told) > 1 else "markers",
        line=_LINE,
        name="edge of noise",
        showlegend=True,
        text=[above_noise(found[step], *shape) for step in told],
        hovertemplate="edge of noise %{y:.4~g}<br>step %{x}<br>%{text}<extra></extra>",
    )
    figure.add_annotation(
        x=1,
        y=1,
        xref="paper",
        yref="paper",
        xanchor="right",
        yanchor="bottom",
        text=f"{above_noise(found[told[-1]], *shape)} at step {told[-1]}".replace(", ", ",<br>"),
        align="right",
        showarrow=False,
        font_size=12,
    )
    return figure
