"""The report page's figures, with what to read from each."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from inrank_monitor import figures
from inrank_monitor.ranks import null_singular_values
from inrank_monitor.report.document import FigureStore
from inrank_monitor.report.source import RunTables
from inrank_monitor.runs import find_divergence, with_divergence

LINES_AT_MOST = 24
_OWN_SCALARS = ("tracker_seconds", "tracker_overhead")


def caption(key: str) -> str:
    """The two lines of a figure: what you look at, what to conclude."""
    lines = figures.CAPTIONS[key]
    return f'<p class="caption">{escape(lines.look)}</p><p class="caption">{escape(lines.conclude)}</p>'


def overview(run: RunTables, table: pd.DataFrame, store: FigureStore) -> str:
    """Heat map and lines of all ranks, and what the user logged."""
    measurements = run.measurements
    log_steps = spans_decades(measurements["step"].to_numpy())
    names = [str(name) for name in table.index]
    shown = figures.representative(names, LINES_AT_MOST, keep=telling_matrices(table))
    here = set(measurements["matrix"].astype(str))
    lines = figures.rank_evolution(
        measurements,
        matrices=[name for name in shown if name in here],
        events=run.events,
        groups=figures.families(names) if len(shown) > 8 else None,
        log_steps=log_steps,
    )
    figures.mark_events(lines, with_divergence(run.events.iloc[:0], find_divergence(run.scalars, measurements)))
    note = f" ({len(shown)} of {len(names)} matrices, spread over kinds and depth)" if len(shown) < len(names) else ""
    parts = [
        "<h2>Rank of every matrix, beside the rank of noise</h2>",
        caption("rank_heatmap"),
        store.place(figures.rank_heatmap(measurements, relative_to_null=True), "Heat map of rank over null rank"),
        f"<h2>Rank over steps{note}</h2>",
        caption("rank_evolution"),
        store.place(lines, "Rank of each matrix over steps"),
    ]
    scalars = run.scalars[~run.scalars["name"].isin(_OWN_SCALARS)]
    if len(scalars):
        kept = list(scalars["name"].unique())[:6]
        parts += ["<h2>What was logged</h2>", caption("loss_curve")]
        parts.append(store.place(figures.loss_curve(scalars, kept, log_steps=log_steps), "Logged scalars over steps"))
    return "\n".join(parts)


def close_ups(run: RunTables, table: pd.DataFrame, store: FigureStore) -> str:
    """The spectra of the matrices with the highest and the lowest rank over null rank, side by side."""
    names = telling_matrices(table)
    if not names:
        return ""
    drawn = {"spectrum_evolution": "", "spectrum_density": "", "explained_ratio_curve": ""}
    for name in names:
        for key, figure in _close_up(run, name).items():
            drawn[key] += f"<div><h3>{escape(name)}</h3>{store.place(figure, f'{key} of {name}')}</div>"
    heads = {
        "spectrum_evolution": "Strength of each direction over steps",
        "spectrum_density": "How the strength is spread",
        "explained_ratio_curve": "How many directions are enough",
    }
    which = "the highest and the lowest rank over null rank" if len(names) > 1 else "a measured rank"
    intro = f'<h2>Close-ups</h2><p class="caption">The spectra of the matrices with {which}.</p>'
    return intro + "".join(
        f'<h2 class="part">{heads[key]}</h2>{caption(key)}<div class="pair">{cells}</div>'
        for key, cells in drawn.items()
    )


def _close_up(run: RunTables, name: str) -> dict[str, go.Figure]:
    values = run.singular_values(name)
    rows, cols = run.matrices.loc[[name], ["rows", "cols"]].to_numpy(dtype=int)[0].tolist()
    size = min(rows, cols) if run.leading is None else None
    mine = run.measurements[run.measurements["matrix"].astype(str) == name]
    # The null of a layer held in factors is another one than that of a dense matrix, which is drawn here.
    null = null_singular_values(rows, cols) if mine["layer_rank"].isna().all() else None
    spectra = figures.spectrum_evolution(values)
    density = figures.spectrum_density(
        values,
        log=True,
        threshold=run.threshold,
        buffer_rank=run.buffer_rank,
        definition=run.definition,
        null=None if null is None else null[: run.leading],
        size=size,
        measured=run.measured,
    )
    ratio = figures.explained_ratio_curve(
        values,
        early_middle_late(values),
        run.threshold,
        run.buffer_rank,
        run.definition,
        null,
        size=size,
    )
    for figure in (spectra, density, ratio):
        figure.update_layout(height=360)
    return {"spectrum_evolution": spectra, "spectrum_density": density, "explained_ratio_curve": ratio}


def early_middle_late(values: pd.DataFrame) -> list[int] | None:
    """Three steps with an update: the first, that in the middle of the snapshots, the last."""
    if not values.shape[1]:
        return None
    updated = values.index[values.iloc[:, 0] > 0]
    if not len(updated):
        return None
    return sorted({int(updated[i]) for i in (0, len(updated) // 2, len(updated) - 1)})


def telling_matrices(table: pd.DataFrame) -> list[str]:
    """The matrix with the highest rank over null rank and that with the lowest, as far as there are any."""
    ratio = table["rank_over_null_rank"].dropna()
    return list(dict.fromkeys([str(ratio.idxmax()), str(ratio.idxmin())])) if len(ratio) else []


def spans_decades(steps: np.ndarray) -> bool:
    """Whether the measured steps reach so far that only a logarithmic axis shows the early ones."""
    positive = steps[steps > 0]
    return len(positive) > 0 and int(positive.max()) >= 50 * int(positive.min())
