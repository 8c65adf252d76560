"""Worth it: low-rank training beside dense, narrow and pruned models, at equal steps and equal multiply-adds."""

from __future__ import annotations

from statistics import fmean

from inrank.experiments.gpt2.rows import percent, shares
from inrank.experiments.worth_it.arms import Arm, cheaper_dense, low_rank, narrow
from inrank.experiments.worth_it.claims import claims
from inrank.experiments.worth_it.measured import Measured
from inrank.experiments.worth_it.plan import SCALES, budgets, trainings
from inrank.experiments.worth_it.tables import arms_table, common_note, full_label, layers_table, rates_table
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request
from inrank_monitor.figures import category, new_figure

NAME = "worth-it"
_KINDS = {
    "dense": "dense",
    "narrow": "narrow dense",
    "pruned": "dense, then pruned",
    "low-rank": "dense, then low rank",
    "fixed": "low rank from the start",
    "inrank": "InRank",
    "inrank-efficient": "InRank-Efficient",
}


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Verdicts, the table of all arms, of rates, of ranks and widths; perplexity over multiply-adds."""
    measured = Measured.of(request, outcomes)
    tables = [arms_table(measured), rates_table(measured), layers_table(measured)]
    return Findings(_reading(measured), claims(measured), tables, [_figure(measured)] if measured.rows else [])


def _reading(measured: Measured) -> str:
    """What low rank by demand comes to at each budget, and its rivals beside it."""
    best = measured.best_dense
    if best is None:
        return "Dense training is not finished: nothing to compare with yet."
    parts = []
    for budget in budgets(measured.request):
        rivals = {
            "low rank by demand": low_rank(budget),
            "with uniform ranks": low_rank(budget, "uniform"),
            "narrow dense by demand": narrow("demand", budget),
            "narrow dense, uniform": narrow("uniform", budget),
            "dense for as many multiply-adds": cheaper_dense(budget),
        }
        found = [f"{name} {_difference(measured, arm, best)}" for name, arm in rivals.items() if arm in measured]
        parts.append(f"At {budget:.0%}: {', '.join(found) or 'nothing trained'}")
    whole = measured.rows[best].perplexity()
    steps, tokens = (SCALES[measured.request.scale][name] for name in ("steps", "context"))
    batch = SCALES[measured.request.scale]["batch"]
    return (
        f"Perplexity against the best dense arm ({best.label}: {whole.text}), after {steps:,} steps of {batch} × "
        f"{tokens} tokens, by share of the MLP weights that is left. {'. '.join(parts)}."
    )


def _difference(measured: Measured, arm: Arm, other: Arm) -> str:
    """`+1.2 % ± 0.3 % (3 seeds)`; and by how many rates, where both were not trained at all of them."""
    first, second = measured.pair(arm, other)
    count = len(first.values)
    if not count:
        return "not comparable yet"
    basis = f"{count} seed{'s' * (count > 1)}{common_note(measured, arm, other)}"
    return f"{percent(shares(first.values, second.values))} ({basis})"


def _figure(measured: Measured) -> Figure:
    figure = new_figure("", "multiply-adds of the whole training", "test perplexity")
    figure.update_xaxes(type="log")
    for place, (kind, name) in enumerate(_KINDS.items()):
        rows = [row for row in measured.rows.values() if row.arm.kind == kind]
        if not rows:
            continue
        figure.add_scatter(
            x=[fmean(row.values("multiply_adds")) for row in rows],
            y=[fmean(row.perplexity().values) for row in rows],
            text=[full_label(row) for row in rows],
            name=name,
            mode="markers",
            marker={"size": 10, "color": category(place)},
            hovertemplate="%{text}<br>%{x:.3g} multiply-adds, perplexity %{y:.4g}<extra></extra>",
        )
    return Figure(
        "What each training costs, and what it comes to",
        figure,
        "Each point: an arm at a budget, mean over seeds; its name appears under the pointer.",
        "Lower and further left is better: a method is worth it where no dense point lies below and left of it.",
    )


EXPERIMENTS = {
    NAME: Experiment(
        name=NAME,
        title="Worth it: low-rank training and its rivals",
        paper="Tables 1 to 3: that InRank trains as well as dense, at fewer parameters. Narrow, pruned or shorter "
        "dense trainings are not compared.",
        trainings=trainings,
        analyse=analyse,
        partial=True,
        watched=False,
    )
}
