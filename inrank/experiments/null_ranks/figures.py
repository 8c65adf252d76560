"""Figures of `null-ranks`: numbers in, Plotly figures with their two lines out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import plotly.graph_objects as go

from inrank.experiments.gpt2.rank_growth import mlp_matrices
from inrank.experiments.null_ranks.numbers import (
    IN_USE,
    PUBLISHED,
    UPDATES,
    NullRanks,
    PublishedRank,
    Sweep,
    TrainedRank,
    capped,
)
from inrank.reproduction.experiment import Figure
from inrank_monitor.figures import NEUTRAL, category, families, new_figure, rank_evolution
from inrank_monitor.runs import Run

_DASHES = ("dot", "dash", "solid")


def published_against_null(published: Sequence[PublishedRank]) -> Figure:
    """Table 3's ranks over null ranks, a colour a model."""
    figure = new_figure("", "null rank: the rule on factors that nobody trains", "rank in the paper's Table 3")
    end = 1.08 * max(max(one.paper, one.null_rank) for one in published)
    figure.add_scatter(x=[0, end], y=[0, end], mode="lines", name="equal", line={"dash": "dash", "color": NEUTRAL})
    for position, model in enumerate(dict.fromkeys(one.model for one in published)):
        rows = [one for one in published if one.model == model]
        figure.add_scatter(
            x=[one.null_rank for one in rows],
            y=[one.paper for one in rows],
            mode="markers",
            name=f"GPT-2 {model}",
            customdata=[one.threshold for one in rows],
            hovertemplate=f"GPT-2 {model}, α = %{{customdata}}: %{{y}}, null rank %{{x}}<extra></extra>",
            marker={"size": 11, "color": category(position)},
        )
    apart = max(abs(one.apart) for one in published)
    return Figure(
        title="The paper's ranks over null ranks",
        figure=figure,
        look="Each mark is a rank of Table 3, at the rank that the same rule reaches on untrained random factors.",
        conclude=f"On the dashed line training adds nothing to the rank; no mark is further than {apart:.3g} from it.",
    )


def null_over_buffer_rank(nulls: NullRanks, sweep: Sweep, threshold: float) -> Figure:
    """Null rank over b at one α, a line for each rule that somebody uses."""
    figure = new_figure("", "buffer rank b", "null rank")
    for position, rule in enumerate(IN_USE):
        _line(figure, nulls[rule, threshold], rule, _Look(category(position)))
    reached = capped(nulls, sweep, threshold)
    cap = f" At b = {', '.join(map(str, reached))} the published code's cap, min(p, q)/2 − b, decides."
    slopes = [rank / b for b, rank in nulls[UPDATES, threshold].items()]
    return Figure(
        title="Null rank over b",
        figure=figure,
        look=f"Ranks of untrained matrices, {sweep.shape_name}, α = {threshold:g}, by rule.{cap if reached else ''}",
        conclude=f"By eq. 7 a Gaussian matrix gets {min(slopes):.2f} b to {max(slopes):.2f} b.",
    )


def null_over_thresholds(nulls: NullRanks, sweep: Sweep) -> Figure:
    """Null rank over b, a line for each α, of the published code and of dense updates."""
    figure = new_figure("", "buffer rank b", "null rank")
    for position, rule in enumerate((PUBLISHED, UPDATES)):
        thresholds = [threshold for name, threshold in nulls if name == rule]
        for dash, threshold in zip(_DASHES, thresholds, strict=True):
            _line(figure, nulls[rule, threshold], f"{rule}, α = {threshold:g}", _Look(category(position), dash))
    ranks = [nulls[UPDATES, threshold][sweep.buffer_rank] for name, threshold in nulls if name == UPDATES]
    return Figure(
        title="Null rank over b and α",
        figure=figure,
        look=f"Null ranks, {sweep.shape_name}, for three α; the last, solid, is the paper's choice.",
        conclude=f"At b = {sweep.buffer_rank} the null rank of an update is {' / '.join(map(str, ranks))}, by α alone.",
    )


def trained_over_buffer_rank(trained: Sequence[TrainedRank], sizes: Mapping[str, str], threshold: float) -> Figure:
    """Rank of trained updates over b beside their null ranks, a colour a model; `sizes` names the models."""
    figure = new_figure("", "buffer rank b", "rank, mean over MLP matrices")
    figure.update_yaxes(rangemode="tozero")
    wanted = ("mlp", "paper", threshold)
    rows = [one for one in trained if (one.group, one.definition, one.threshold) == wanted]
    for position, model in enumerate(dict.fromkeys(one.model for one in rows)):
        ranks: dict[int, list[float]] = {}
        for one in (one for one in rows if one.model == model):
            ranks.setdefault(one.buffer_rank, []).append(one.rank)
        null = {one.buffer_rank: one.null_rank for one in rows if one.model == model}
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in ranks.values()]
        means = {b: fmean(values) for b, values in ranks.items()}
        _line(figure, means, f"{sizes[model]}, trained", _Look(category(position)), spread)
        _line(figure, null, f"{sizes[model]}, null", _Look(category(position), "dash"))
    shares = [one.rank_over_null_rank for one in rows]
    return Figure(
        title="Trained updates beside their null ranks",
        figure=figure,
        look=f"Eq. 7's rank of W_t − W0 at the end of ordinary training, α = {threshold:g}; bars: over seeds.",
        conclude=f"Trained updates have {min(shares):.2f} to {max(shares):.2f} of the null rank, over all b and seeds.",
    )


def ranks_during_training(run: Run, size: str) -> Figure:
    """Rank of each MLP matrix over steps with its null rank."""
    names = mlp_matrices(run)
    measured = run.measurements
    last = measured[(measured["step"] == measured["step"].max()) & measured["matrix"].isin(names)]
    shares = last["intrinsic_rank"] / last["null_rank"]
    return Figure(
        title=f"Rank of every MLP matrix while {size} trains",
        figure=rank_evolution(measured, "intrinsic_rank", names, groups=families(names)),
        look=f"Eq. 7's rank of W_t − W0 at b = {run.buffer_rank}, α = {run.threshold:g}; dashed: the null rank.",
        conclude=f"At the last step the ranks are {shares.min():.2f} to {shares.max():.2f} of the null rank.",
    )


class _Look(NamedTuple):
    """Of a line."""

    colour: str
    dash: str = "solid"


def _line(figure: go.Figure, points: Mapping[int, float], name: str, look: _Look, spread: Sequence[float] = ()) -> None:
    bars = {"error_y": {"array": list(spread), "thickness": 1.2}} if any(spread) else {}
    x, y = list(points), list(points.values())
    style = {"line": {"color": look.colour, "dash": look.dash}, "marker": {"size": 7}}
    figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", **style, **bars)
