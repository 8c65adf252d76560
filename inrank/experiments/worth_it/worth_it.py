"""Worth it: low-rank training beside dense, narrow and pruned models, at equal steps and equal multiply-adds."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from inrank.experiments.gpt2.rows import against, percent, shares
from inrank.experiments.worth_it.arms import DENSE, Arm, cheaper_dense, low_rank, narrow
from inrank.experiments.worth_it.claims import claims
from inrank.experiments.worth_it.measured import Measured, Row
from inrank.experiments.worth_it.plan import SCALES, budgets, trainings
from inrank.gpt2.results_table import size, thousands
from inrank.gpt2.text import WIKITEXT
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Table
from inrank.reproduction.verdicts import spread
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
    tables = [_table(measured), _rates(measured), _layers(measured)]
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
    """`+1.2 % ± 0.3 % (3 seeds)`."""
    first, second = measured.pair(arm, other)
    count = len(first.values)
    return f"{percent(shares(first.values, second.values))} ({count} seed{'s' * (count > 1)})"


def _table(measured: Measured) -> Table:
    dense = measured.rows.get(DENSE)
    lines = []
    for row in sorted(measured.rows.values(), key=lambda row: (-(row.arm.budget or 1), row.arm.kind)):
        beside = "–" if dense is None or row.arm == DENSE else against(*measured.pair(row.arm, DENSE))
        budget = f"{row.arm.budget:.0%}" if row.arm.budget and not row.arm.is_cheaper_dense else "–"
        cost = fmean(row.values("multiply_adds"))
        relative = f"{cost / fmean(dense.values('multiply_adds')):.2f}" if dense else f"{cost:.3g}"
        lines.append(
            [
                *(row.arm.label, budget, row.perplexity().text, beside, str(len(row.by_seed)), _rate(measured, row)),
                *(thousands(fmean(row.values("parameters"))), f"{fmean(row.values('mlp_share')):.3f}", relative),
                *(spread(row.values("seconds"), ".0f"), size(fmean(row.values("memory")))),
            ]
        )
    heads = ("arm", "budget", "PPL", "against dense", "seeds", "rate", "parameters", "MLP weights", "multiply-adds")
    on_cpu = measured.request.device == "cpu"
    seconds = "the process's own work, others beside it" if on_cpu else "by the clock"
    note = (
        "PPL on the test part; mean ± standard deviation over seeds. Against dense: paired by seed; lower, higher: the "
        "95 % interval leaves zero out. Rate: the best on the validation part with the first seed, which is among "
        "those shown; in brackets how many of the planned rates were tried, where not all were. MLP weights: the share that is left, W0 of InRank counted. Multiply-adds of the whole training "
        "over dense's, calibration, decompositions and the training that widths are planned on included. Seconds: "
        f"{seconds}. Memory: {'of the process, libraries included' if on_cpu else 'of the device'}, at its peak. "
        f"Text: {_text(measured.request)}."
    )
    return Table("All arms", (*heads, "seconds", "memory"), lines, note)


def _rate(measured: Measured, row: Row) -> str:
    """The best rate, and how many were tried where some were not."""
    left = measured.rates_left(row.arm)
    return f"{row.rate:g}" + (f" ({len(row.by_rate)} of {len(row.by_rate) + left})" if left else "")


def _text(request: Request) -> str:
    """What is trained and tested on, by the names of the files."""
    if not request.text:
        return WIKITEXT if request.scale == "paper" else "Python's own help texts"
    names = ", ".join(Path(path).name for path in request.text)
    return f"{names}, tested on {Path(request.test_text).name if request.test_text else 'its last tenth'}"


def _rates(measured: Measured) -> Table:
    rates = SCALES[measured.request.scale]["rates"]
    lines = [
        [_full_label(row), *(f"{math.exp(row.by_rate[r]):.4g}" if r in row.by_rate else "" for r in rates)]
        for row in measured.rows.values()
    ]
    note = f"By these the rate of each arm was chosen, with seed {measured.request.seeds[0]}. Empty: not trained."
    return Table("Validation PPL by learning rate", ("arm", *(f"{rate:g}" for rate in rates)), lines, note)


def _full_label(row: Row) -> str:
    return f"{row.arm.label}, {row.arm.budget:.0%}" if row.arm.budget else row.arm.label


def _layers(measured: Measured) -> Table:
    lines = []
    for row in measured.rows.values():
        for what in ("rank", "units"):
            found = row.layers(what)
            if found and row.arm.kind != "dense":
                lines.append([_full_label(row), what, " ".join(map(str, found.values()))])
    note = (
        f"Seed {measured.request.seeds[0]}. Ranks in the model's order, c_fc before c_proj in each block; "
        "hidden units of each block."
    )
    return Table("Ranks and hidden units", ("arm", "what", "from the first block to the last"), lines, note)


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
            text=[_full_label(row) for row in rows],
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
