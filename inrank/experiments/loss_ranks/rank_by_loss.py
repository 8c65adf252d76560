"""Rank by loss: how many directions of the update a training needs, and whether a rule on the spectrum finds them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go

from inrank.experiments.loss_ranks.tasks import KINDS
from inrank.experiments.loss_ranks.training import (
    BEST_UNIFORM,
    BY_LOSS,
    RULES,
    TOLERANCE,
    UNIFORM,
    trainings,
    uniform_name,
)
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Statement, Table
from inrank.reproduction.verdicts import Sample, is_below, spread
from inrank_monitor.figures import NEUTRAL, new_figure

NAME = "rank-by-loss"
SAVES = 0.6  # of the best uniform rank: what an allocation over matrices must at least save to be worth its evaluations
_CLAIMS = {
    "paper": "The explained-ratio rank is enough (the paper's rule, eq. 7, section 4)",
    "peak": "Ours: its highest rank over the run is enough",
    "energy": "Ours: the rank of 90 % of the energy is enough",
    "signal": "Ours: the signal rank is enough",
    "stable": "Ours: the stable rank is enough",
}


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """A statement a rule and model; a table of ranks and rises; a figure a model."""
    rises = {
        (rule, kind): _is_enough(f"{claim}: {KINDS[kind]}", _sample(request, outcomes, kind, f"rise {rule}"))
        for rule, claim in _CLAIMS.items()
        for kind in KINDS
    }
    saves = [_saves(request, outcomes, kind) for kind in KINDS]
    tables = [_table(request, outcomes, kind) for kind in KINDS]
    figures = [_figure(request, outcomes, kind) for kind in KINDS]
    return Findings(
        _reading(request, outcomes, rises), [*rises.values(), *saves], [_losses(request, outcomes), *tables], figures
    )


def _numbers(request: Request, outcomes: Outcomes, kind: str, name: str) -> list[float]:
    names = [training.name for training in trainings(request, [kind])]
    return [float(outcomes[one].numbers[name]) for one in names]


def _sample(request: Request, outcomes: Outcomes, kind: str, name: str) -> Sample:
    return Sample(f"{KINDS[kind]}, {name}", _numbers(request, outcomes, kind, name))


def _is_enough(claim: str, rise: Sample) -> Statement:
    return is_below(claim, rise, TOLERANCE, "the tolerance")


def _saves(request: Request, outcomes: Outcomes, kind: str) -> Statement:
    ours, uniform = (_numbers(request, outcomes, kind, f"rank {name}") for name in (BY_LOSS, BEST_UNIFORM))
    shares = [a / b for a, b in zip(ours, uniform, strict=True)]
    claim = f"Ours: ranks by loss need at most {SAVES:g} of the best uniform rank's mean: {KINDS[kind]}"
    return is_below(claim, Sample("mean rank over uniform's", shares), SAVES, "the promised share")


def _reading(request: Request, outcomes: Outcomes, rises: dict[tuple[str, str], Statement]) -> str:
    parts = []
    for rule, what in RULES.items():
        enough = [KINDS[kind] for kind in KINDS if rises[rule, kind].verdict == "agrees"]
        rise = [spread(_numbers(request, outcomes, kind, f"rise {rule}"), ".3f") for kind in KINDS]
        parts.append(f"{what}: {len(enough)} of {len(KINDS)} ({', '.join(rise)})")
    needed = [spread(_numbers(request, outcomes, kind, f"rank {BY_LOSS}"), ".1f") for kind in KINDS]
    full = [f"{fmean(_numbers(request, outcomes, kind, 'full_rank')):.0f}" for kind in KINDS]
    need = ", ".join(f"{KINDS[kind]} {rank} of {most}" for kind, rank, most in zip(KINDS, needed, full, strict=True))
    return (
        f"To keep the held-out loss within {TOLERANCE:g} nats the updates need a mean rank of: {need}. "
        f"Models for which a rule's ranks are enough, and what the loss rises by ({', '.join(KINDS.values())}): "
        f"{'; '.join(parts)}."
    )


def _rows() -> dict[str, str]:
    """Names of numbers, and what stands in the table."""
    uniform = {uniform_name(share): f"uniform, {uniform_name(share)}" for share in UNIFORM}
    return {**RULES, BY_LOSS: f"ranks by loss, {TOLERANCE:g}", BEST_UNIFORM: "best uniform rank for that", **uniform}


def _table(request: Request, outcomes: Outcomes, kind: str) -> Table:
    rows = []
    for name, what in _rows().items():
        ranks, *rises = (
            _numbers(request, outcomes, kind, f"{number} {name}") for number in ("rank", "rise", "elsewhere")
        )
        rows.append([what, spread(ranks, ".1f"), *(spread(rise, ".4f") for rise in rises)])
    full = fmean(_numbers(request, outcomes, kind, "full_rank"))
    evaluations = spread(_numbers(request, outcomes, kind, "evaluations"), ".0f")
    note = (
        f"Mean over the matrices, whose short sides are {full:.4g} in the mean; rise of the held-out loss in nats, "
        f"and of that of other held-out data, by which nothing was chosen. Ranks by loss: {evaluations} evaluations. "
        "± is the standard deviation over seeds."
    )
    return Table(
        f"{KINDS[kind]}: ranks, and what the loss rises by", ["rule", "mean rank", "rise", "rise elsewhere"], rows, note
    )


def _losses(request: Request, outcomes: Outcomes) -> Table:
    rows = [
        [
            KINDS[kind],
            *(spread(_numbers(request, outcomes, kind, name), ".3f") for name in ("loss_before", "loss_after")),
        ]
        for kind in KINDS
    ]
    return Table("Held-out loss, in nats", ["model", "when watching began", "trained"], rows)


def _figure(request: Request, outcomes: Outcomes, kind: str) -> Figure:
    def point(name: str) -> tuple[float, float]:
        rank, rise = (fmean(_numbers(request, outcomes, kind, f"{number} {name}")) for number in ("rank", "rise"))
        return rank, rise

    figure = new_figure("", "mean rank", "rise of the held-out loss, nats")
    curve = [point(uniform_name(share)) for share in UNIFORM]
    _trace(figure, "uniform ranks", curve, "lines+markers", color=NEUTRAL)
    for name, what in {**RULES, BY_LOSS: "ranks by loss"}.items():
        _trace(figure, what, [point(name)], "markers", size=11)
    figure.add_hline(y=TOLERANCE, line={"dash": "dot", "color": NEUTRAL})
    return Figure(
        f"{KINDS[kind]}: what the loss rises by at the ranks of each rule",
        figure,
        "Each point: all matrices at once cut to a rule's ranks; the line: the same share of each matrix's short side. "
        f"Dotted: the tolerance, {TOLERANCE:g}. Means over seeds.",
        "Below the line a rule chooses better than evenly; above the dotted one its ranks are not enough.",
    )


def _trace(figure: go.Figure, name: str, points: Sequence[tuple[float, float]], mode: str, **marker: object) -> None:
    ranks, rises = zip(*points, strict=True)
    figure.add_scatter(x=ranks, y=rises, name=name, mode=mode, marker=marker)


EXPERIMENTS = {
    NAME: Experiment(
        name=NAME,
        title="Rank by loss: how many directions of the update a training needs",
        paper="That the rank by eq. 7 at α = 0.9 explains the update well enough to train in it; no loss is measured.",
        trainings=trainings,
        analyse=analyse,
    )
}
