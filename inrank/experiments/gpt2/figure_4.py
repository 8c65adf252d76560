"""Figure 4: perplexity over fixed ranks, with the rank that InRank finds, and the one that it gives noise.

Settled before any number was seen: the intrinsic rank of a sweep is the least fixed rank whose perplexity is at most
one per cent above the sweep's best, seed by seed; a rank is aligned with it if it is less than a factor of two away.
Settled after the smoke scale had shown a flat sweep: where the intrinsic rank is the sweep's least or largest rank, the
sweep bounds it on one side only, and "near it" decides nothing. The tiny sweep was taken on to the full width after it
had ended at its best rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean, stdev
from typing import Any

import plotly.graph_objects as go

from inrank.experiments.gpt2.figures import not_trained
from inrank.experiments.gpt2.rows import Claim, Measured, Row, against, judge, trainings_of, written
from inrank.experiments.gpt2.table_1 import BASELINE
from inrank.experiments.gpt2.trainings import SIZES, THRESHOLDS, Variant
from inrank.gpt2.models import parse_size
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Statement, Table, Training
from inrank.reproduction.verdicts import Sample, is_below, spread
from inrank_monitor.figures import NEUTRAL, category, new_figure, symbol

RANKS = {
    "smoke": (2, 4),
    "tiny": (1, 2, 4, 8, 16, 32, 64),
    "small": (8, 16, 32, 64, 128, 256),
    "paper": (25, 50, 100, 150, 200, 300, 400),  # it says from 25 to 400, and not which between
}
MARGIN, FACTOR = 0.01, 2.0
MODEL, ALPHA = "small", max(THRESHOLDS)
DENSE = replace(BASELINE[MODEL], label="dense")
NULL = Row(MODEL, "fixed-rank", "fixed at the null rank", Variant(rank="null"))
GROWN = {
    threshold: Row(MODEL, "inrank-efficient", f"InRank-Efficient, α = {threshold:g}", Variant(threshold=threshold))
    for threshold in THRESHOLDS
}
TITLE = "Perplexity over fixed ranks"
CLAIM = "Section 6.1, Figure 4: the rank that InRank finds aligns with the intrinsic rank that a sweep finds"


def sweep(request: Request) -> dict[int, Row]:
    """The fixed ranks of this scale."""
    return {rank: Row(MODEL, "fixed-rank", f"rank {rank}", Variant(rank=rank)) for rank in RANKS[request.scale]}


def trainings(request: Request) -> list[Training]:
    """The sweep, a dense model, InRank-Efficient with each α of Table 3, and the null rank fixed."""
    return trainings_of(request, [*sweep(request).values(), DENSE, *GROWN.values(), NULL])


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Intrinsic rank of the sweep, seed by seed, and how far from it other ranks lie."""
    measured = Measured(request, outcomes)
    if not measured.is_trained:
        return not_trained(TITLE, [CLAIM])
    rows = sweep(request)
    perplexities = {rank: measured.sample(row, "perplexity").values for rank, row in rows.items()}
    intrinsic = intrinsic_ranks(perplexities)
    return Findings(
        _reading(measured, perplexities, intrinsic),
        [_statement(measured, intrinsic)],
        [_table(measured, rows, intrinsic)],
        [_figure(measured, rows, intrinsic)],
    )


def intrinsic_ranks(perplexities: Mapping[int, Sequence[float]]) -> list[int]:
    """Per seed, the least rank of a sweep whose perplexity is at most `MARGIN` above the sweep's best.

    >>> intrinsic_ranks({1: [30.0, 20.0], 2: [20.1, 20.1], 4: [20.0, 22.0]})
    [2, 1]

    Args:
        perplexities: by rank, a seed each.
    """
    found = []
    for values in zip(*perplexities.values(), strict=True):
        by_rank = dict(zip(perplexities, values, strict=True))
        found.append(min(rank for rank, value in by_rank.items() if value <= (1 + MARGIN) * min(values)))
    return found


def distances(ranks: Sequence[float], intrinsic: Sequence[int]) -> list[float]:
    """By what factor each rank lies above or below the intrinsic one of its seed, at least 1."""
    return [2 ** abs(math.log2(rank / other)) for rank, other in zip(ranks, intrinsic, strict=True)]


def _ranks(measured: Measured, threshold: float = ALPHA) -> Sequence[float]:
    return measured.sample(GROWN[threshold], "rank").values


def _null(measured: Measured, threshold: float = ALPHA) -> Sequence[float]:
    return measured.sample(GROWN[threshold], "null_rank").values


def _statement(measured: Measured, intrinsic: Sequence[int]) -> Statement:
    """On the logarithm, where a half and a double are equally far."""
    factors, control = (distances(one(measured), intrinsic) for one in (_ranks, _null))
    logarithms = Sample("log₂ of InRank's rank over the sweep's, without its sign", list(map(math.log2, factors)))
    note = (
        f"the sweep's intrinsic rank is {spread(intrinsic)}, InRank's {spread(_ranks(measured))}: a factor of "
        f"{fmean(factors):.2g}; the null rank {spread(_null(measured))} lies a factor of {fmean(control):.2g} away, so "
        f"it {'would align as well' if _aligned(control) else 'would not align'}"
        f"{_edge(measured, intrinsic)}{_full(measured, intrinsic)}"
    )
    found = judge(
        partial(is_below, limit=math.log2(FACTOR), what=f"a factor of {FACTOR:g}, in log₂"),
        Claim(CLAIM, paper="aligns"),
        logarithms,
        note=note,
    )
    if found.verdict == "agrees" and _edge(measured, intrinsic):
        found = replace(found, verdict="not tested")
    return replace(found, ours=f"InRank's rank {spread(_ranks(measured))}; the sweep's {spread(intrinsic)}")


def _aligned(factors: Sequence[float]) -> bool:
    return fmean(map(math.log2, factors)) < math.log2(FACTOR)


def _edge(measured: Measured, intrinsic: Sequence[int]) -> str:
    """What must be said where the sweep does not enclose its intrinsic rank; there is none above the full width."""
    ranks = RANKS[measured.request.scale]
    if max(intrinsic) == max(ranks) < _width(measured):
        return f"; the sweep ends at its intrinsic rank, {max(ranks)}: more might be better still"
    if min(intrinsic) == min(ranks):
        return f"; the sweep begins at its intrinsic rank, {min(ranks)}: less might do"
    return ""


def _full(measured: Measured, intrinsic: Sequence[int]) -> str:
    """What must be said where no rank below the full one is enough."""
    width = _width(measured)
    return f"; that is the full width, {width}: no lower rank is enough" if min(intrinsic) == width else ""


def _width(measured: Measured) -> int:
    return parse_size(SIZES[measured.request.scale][MODEL]).width


def _table(measured: Measured, rows: Mapping[int, Row], intrinsic: Sequence[int]) -> Table:
    dense = measured.sample(DENSE, "perplexity")
    lines = []
    for row in (DENSE, *rows.values(), NULL, *GROWN.values()):
        perplexity, ranks = measured.sample(row, "perplexity"), measured.sample(row, "rank").values
        away = "–" if row is DENSE else f"{fmean(distances(ranks, intrinsic)):.2g}"
        null = written("null_rank", measured.sample(row, "null_rank").values) if row in GROWN.values() else "–"
        beside = "–" if row is DENSE else against(perplexity, dense)
        lines.append([row.label, written("rank", ranks), null, written("perplexity", perplexity.values), beside, away])
    heads = ("method", "rank", "null rank", "PPL", "PPL against dense", "factor from the sweep's intrinsic rank")
    note = (
        f"GPT-{measured.model_name(MODEL)}. The sweep's intrinsic rank is {spread(intrinsic)}: the least rank whose "
        f"perplexity is at most {MARGIN:.0%} above the sweep's best. Null rank: what the same rule gives factors that "
        "nobody trains."
    )
    return Table("Fixed ranks, and those that InRank finds", heads, lines, note)


def _figure(measured: Measured, rows: Mapping[int, Row], intrinsic: Sequence[int]) -> Figure:
    """The sweep as a line; crosses where InRank ended; the null rank dashed."""
    figure = new_figure("", "rank", "perplexity")
    null = fmean(_null(measured))
    swept: dict[float, Sequence[float]]
    swept = {rank: measured.sample(row, "perplexity").values for rank, row in rows.items()}
    _add(figure, swept, "fixed rank", category(0))
    for threshold in THRESHOLDS:
        grown = {fmean(_ranks(measured, threshold)): measured.sample(GROWN[threshold], "perplexity").values}
        look = {"symbol": "x", "size": 13, "opacity": 1.0 if threshold == ALPHA else 0.5}
        _add(figure, grown, GROWN[threshold].label, category(1), look)
    look = {"symbol": symbol(2 * 6), "size": 12}
    _add(figure, {null: measured.sample(NULL, "perplexity").values}, NULL.label, NEUTRAL, look)
    figure.add_vline(
        x=null, line={"color": NEUTRAL, "dash": "dash", "width": 1.5}, name=f"null rank {null:.3g}", showlegend=True
    )
    dense = fmean(measured.sample(DENSE, "perplexity").values)
    figure.add_hline(y=dense, line={"color": NEUTRAL, "dash": "dot", "width": 1.5}, name="dense", showlegend=True)
    figure.update_xaxes(type="log", tickvals=list(rows), ticktext=[str(rank) for rank in rows])
    return Figure(
        f"{TITLE}: GPT-{measured.model_name(MODEL)}",
        figure,
        "Each point is a model trained at one rank of its MLP matrices (bars: standard deviation over seeds); crosses "
        "lie where InRank-Efficient ended, dashes where its rule takes noise.",
        f"Perplexity stops falling by more than {MARGIN:.0%} at rank {spread(intrinsic)}; InRank ends at "
        f"{spread(_ranks(measured))}, noise at {spread(_null(measured))}.",
    )


def _add(
    figure: go.Figure,
    perplexities: Mapping[float, Sequence[float]],
    name: str,
    color: str,
    marker: Mapping[str, Any] | None = None,
) -> None:
    """Perplexities by rank, a seed each."""
    spreads = [stdev(one) if len(one) > 1 else 0.0 for one in perplexities.values()]
    figure.add_scatter(
        x=list(perplexities),
        y=[fmean(one) for one in perplexities.values()],
        error_y={"array": spreads, "visible": any(spreads)},
        mode="markers" if marker else "lines+markers",
        name=name,
        line={"color": color},
        marker={"color": color, **(marker or {})},
    )


def _reading(measured: Measured, perplexities: Mapping[int, Sequence[float]], intrinsic: Sequence[int]) -> str:
    factors, control = (distances(one(measured), intrinsic) for one in (_ranks, _null))
    means = {rank: fmean(values) for rank, values in perplexities.items()}
    best = min(means, key=lambda rank: means[rank])
    others = ", ".join(f"{fmean(_ranks(measured, threshold)):.3g} at α = {threshold:g}" for threshold in THRESHOLDS)
    base = measured.sample(NULL, "perplexity")
    return (
        f"The sweep's best mean perplexity is {means[best]:.4g}, at rank {best}; the least rank within {MARGIN:.0%} of "
        f"the best is {spread(intrinsic)}{_edge(measured, intrinsic)}{_full(measured, intrinsic)}. InRank ends at "
        f"{spread(_ranks(measured))}, a factor of {fmean(factors):.2g} away"
        f"{'' if _aligned(factors) else ' and so not aligned'}; the rank that its "
        f"rule gives noise, {spread(_null(measured))}, is a factor of {fmean(control):.2g} away"
        f"{' and would have passed as well' if _aligned(control) else ''}. The rank hangs on α: {others}. "
        f"Against a model fixed at the null rank, InRank's perplexity is "
        f"{against(measured.sample(GROWN[ALPHA], 'perplexity'), base)}."
    )


EXPERIMENTS = {
    "figure-4": Experiment(
        "figure-4",
        "Figure 4: does InRank find the intrinsic rank?",
        "GPT-2 small trained at fixed ranks from 25 to 400; a cross marks the rank that InRank determines, which is "
        "said to align with the intrinsic rank of this sweep.",
        trainings,
        analyse,
    )
}
