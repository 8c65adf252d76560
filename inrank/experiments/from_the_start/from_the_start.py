"""From the start: why factors from the first step end above dense training, one difference at a time."""

from __future__ import annotations

import math
from statistics import fmean

from inrank.experiments.from_the_start.arms import (
    ADDED,
    ARMS,
    BUDGET,
    CUT,
    CUT_ONCE,
    DENSE,
    FACTORS,
    FIRST,
    FIRST_CUT_ONCE,
    FULL,
    LATER_FACTORS,
    OTHERS,
    RANDOM,
    RATES,
    UNEVEN,
    UNIT_GAIN,
    Start,
)
from inrank.experiments.from_the_start.starting import EARLY
from inrank.experiments.from_the_start.training import steps_of, trainings, trainings_of
from inrank.experiments.gpt2.rows import against, percent, shares
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcome, Outcomes, Request, Table
from inrank.reproduction.verdicts import Sample, is_less, spread
from inrank_monitor.figures import category, new_figure

NAME = "from-the-start"
# the claim that the first arm ends at a lower perplexity than the second
_CLAIMS = (
    ("factors from the first step end above dense training", DENSE, FACTORS),
    ("rank: dense training, cut to the rank after each step, ends above dense", DENSE, CUT),
    ("descent in factors: they end above dense training that is cut to their rank after each step", CUT, FACTORS),
    ("descent in factors: of full rank, they end above dense", DENSE, FULL),
    ("start: dense training that was cut to the rank once, before the first step, ends above dense", DENSE, CUT_ONCE),
    ("start: dense training of which only the first block was cut so ends above dense", DENSE, FIRST_CUT_ONCE),
    ("start: random factors end below those of the SVD of W0", RANDOM, FACTORS),
    ("start: factors beside W0, W0 + U V, end below factors of the whole", ADDED, FACTORS),
    ("learning rate: the gain lets factors end below those without", FACTORS, UNIT_GAIN),
    *((f"learning rate: {arm.label} ends below the usual one", arm, FACTORS) for arm in RATES),
    ("place: factors in the first block alone end above dense", DENSE, FIRST),
    ("place: with the first block dense, factors in the others end below factors in all", OTHERS, FACTORS),
    ("place: factors with two thirds of the budget in the first block end below equal ranks", UNEVEN, FACTORS),
    ("moment: factors after a quarter of the steps end below those from the first", LATER_FACTORS, FACTORS),
)


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """A verdict a cause; a table and a figure of what each arm leaves of the gap."""
    measured = {arm: _of_arm(request, outcomes, arm) for arm in ARMS}
    statements = [
        is_less(f"Ours: {text}", _perplexity(measured, low), _perplexity(measured, high)) for text, low, high in _CLAIMS
    ]
    rank, steps = round(100 * BUDGET), steps_of(request)
    reading = (
        f"U V of {rank} % of the MLP weights, one rank for all, {steps} steps, all at dense training's best learning "
        f"rate, {measured[DENSE][0].numbers['rate']:g}. {_reading(measured)}"
    )
    return Findings(reading, statements, [_table(measured, steps)], [_figure(measured)])


Measured = dict[Start, list[Outcome]]


def _of_arm(request: Request, outcomes: Outcomes, arm: Start) -> list[Outcome]:
    """A training a seed; of several learning rates that with the lowest loss on the validation part."""
    found = ([outcomes[one.name] for one in trainings_of(request, arm, seed)] for seed in request.seeds)
    return [min(several, key=lambda one: one.numbers["validation"]) for several in found]


def _perplexity(measured: Measured, arm: Start) -> Sample:
    return Sample(arm.label, [math.exp(one.numbers["loss"]) for one in measured[arm]], ".4g")


def gaps(measured: Measured, arm: Start) -> list[float]:
    """By what share of the gap between dense and factors, in nats, an arm ends above dense: 0 dense, 1 factors."""
    losses = ([one.numbers["loss"] for one in measured[each]] for each in (arm, DENSE, FACTORS))
    return [(found - dense) / (factors - dense) for found, dense, factors in zip(*losses, strict=True)]


def _reading(measured: Measured) -> str:
    values = {arm: _perplexity(measured, arm).values for arm in measured}
    beside = {arm: percent(shares(values[arm], values[DENSE])) for arm in ARMS}
    kept = {arm: spread([100 * one for one in gaps(measured, arm)], ".0f") for arm in ARMS}
    best = min(RATES, key=lambda arm: fmean(values[arm]))
    return (
        f"They end at {beside[FACTORS]} against dense ({spread(values[DENSE], '.4g')}). Of this gap, in nats, stays: "
        f"{kept[CUT]} % where the same rank is kept by cutting dense weights after each step; {kept[CUT_ONCE]} % where "
        f"they are cut once, before the first, and {kept[FIRST_CUT_ONCE]} % where that is done to the first block "
        f"alone; {kept[FULL]} % with factors of full rank; {kept[RANDOM]} % with random ones at the norm of W0; "
        f"{kept[ADDED]} % with W0 beside them; {kept[UNIT_GAIN]} % without the gain, {kept[best]} % at "
        f"{best.factor_rate:g} × the learning rate; {kept[FIRST]} % with factors in the first block alone, "
        f"{kept[OTHERS]} % in all others, {kept[UNEVEN]} % with two thirds of the budget in the first; "
        f"{kept[LATER_FACTORS]} % after a quarter of the steps."
    )


def _table(measured: Measured, steps: int) -> Table:
    dense = _perplexity(measured, DENSE)
    lines = []
    for arm, outcomes in measured.items():
        early = [
            one.numbers["early"] - other.numbers["early"] for one, other in zip(outcomes, measured[DENSE], strict=True)
        ]
        ranks = (
            spread([one.numbers[name] for one in outcomes], ".3g")
            for name in ("effective_rank", "first_effective_rank")
        )
        sample = _perplexity(measured, arm)
        beside = "–" if arm == DENSE else against(sample, dense)
        gap = "–" if arm == DENSE else spread(gaps(measured, arm), ".2f")
        lines.append([arm.label, sample.text, beside, gap, "–" if arm == DENSE else spread(early, "+.3f"), *ranks])
    heads = ("arm", "PPL", "against dense", "of the gap", "early", "effective rank", "of the first")
    note = (
        "PPL on the test part; mean ± standard deviation over seeds; against dense paired by seed. Of the gap: between "
        f"dense (0) and U V from the first step (1), in nats. Early: validation loss after {round(EARLY * steps)} of "
        f"{steps} steps above dense's. Effective rank of the trained matrices of the MLPs, the mean, and of the first "
        "block's c_fc."
    )
    return Table("One difference at a time", heads, lines, note)


def _figure(measured: Measured) -> Figure:
    figure = new_figure("", "share of the gap between dense and U V from the first step", "")
    arms = [arm for arm in reversed(ARMS) if arm not in (DENSE, FACTORS)]
    for place in range(len(measured[DENSE])):
        figure.add_scatter(
            x=[gaps(measured, arm)[place] for arm in arms],
            y=[arm.label for arm in arms],
            mode="markers",
            name=f"seed {measured[DENSE][place].training.settings['seed']}",
            marker={"size": 9, "color": category(place)},
        )
    figure.add_vline(x=0, annotation_text="dense")
    figure.add_vline(x=1, annotation_text="U V")
    figure.update_layout(height=560, margin={"l": 300})
    return Figure(
        "How much of the gap each arm leaves",
        figure,
        "Each point: a training, by its test loss between that of dense (0) and that of U V from the first step (1).",
        "What brings a point to the left is a cause of the gap; what leaves it at 1 is none.",
    )


EXPERIMENTS = {
    NAME: Experiment(
        name=NAME,
        title="From the start: why factors from the first step end above dense",
        paper="That low-rank training ends where dense training does (Tables 1 to 3); what it loses otherwise is not "
        "taken apart.",
        trainings=trainings,
        analyse=analyse,
        watched=False,
    )
}
