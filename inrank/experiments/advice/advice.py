"""Advice: whether a LoRA at the advised ranks ends better than one of the same size at one rank for all."""

from __future__ import annotations

import math
from statistics import fmean

from inrank.experiments.advice.plan import ARMS, RULES, SCALES, Seed, trainings
from inrank.experiments.advice.training import ADVISED, UNIFORM
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Statement, Table
from inrank.reproduction.verdicts import Sample, interval, is_less, not_tested, spread
from inrank_monitor.advice import RankSource
from inrank_monitor.figures import NEUTRAL, category, new_figure

NAME = "advice"


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """A statement a rule, the table of sizes and losses, the figure of both."""
    found = {rule: _statement(request, outcomes, rule) for rule in RULES}
    tables = [_table(request, outcomes), _settings(request)]
    return Findings(_reading(request, outcomes, found), list(found.values()), tables, [_figure(request, outcomes)])


def _numbers(request: Request, outcomes: Outcomes, rule: RankSource, arm: str, name: str) -> list[float]:
    return [float(outcomes[Seed(request, seed).lora(rule, arm).name].numbers[name]) for seed in request.seeds]


def _losses(request: Request, outcomes: Outcomes, rule: RankSource, arm: str) -> Sample:
    return Sample(arm, _numbers(request, outcomes, rule, arm, "loss"), ".4f")


def _was_trained(request: Request, outcomes: Outcomes, rule: RankSource) -> bool:
    return all(math.isfinite(loss) for arm in ARMS for loss in _losses(request, outcomes, rule, arm).values)


def _statement(request: Request, outcomes: Outcomes, rule: RankSource) -> Statement:
    claim = f"Ours: LoRA at {RULES[rule]} ends at a lower held-out loss than uniform LoRA of the same size"
    if not _was_trained(request, outcomes, rule):
        return not_tested(claim, "the rule advised on no layer in at least one seed, so nothing was trained")
    return is_less(claim, *(_losses(request, outcomes, rule, arm) for arm in ARMS))


def _reading(request: Request, outcomes: Outcomes, found: dict[RankSource, Statement]) -> str:
    words = {
        "agrees": "better than uniform",
        "disagrees": "worse than uniform",
        "within noise": "not to be told from uniform",
        "not tested": "not tested",
    }
    parts = []
    for rule, statement in found.items():
        text = f"{RULES[rule]}: {words[statement.verdict]}"
        if _was_trained(request, outcomes, rule):
            text += f" ({fmean(_differences(request, outcomes, rule)):+.4f} nats)"
        parts.append(text)
    better = sum(statement.verdict == "agrees" for statement in found.values())
    return (
        f"LoRA at advised ranks was better than uniform LoRA of the same size by {better} of {len(found)} rules: "
        f"{'; '.join(parts)}."
    )


def _differences(request: Request, outcomes: Outcomes, rule: RankSource) -> list[float]:
    advised, uniform = (_losses(request, outcomes, rule, arm).values for arm in ARMS)
    return [a - b for a, b in zip(advised, uniform, strict=True)]


def _table(request: Request, outcomes: Outcomes) -> Table:
    seeds = [Seed(request, seed) for seed in request.seeds]
    rows = []
    for what, names in (
        ("as pre-trained", [seed.pretrained.name for seed in seeds]),
        ("all weights trained", [seed.full.name for seed in seeds]),
    ):
        rows.append([what, "", "", "", "", spread([outcomes[name].numbers["loss"] for name in names], ".4f"), ""])
    for rule, what in RULES.items():
        for arm in ARMS:
            label = f"LoRA at {what}" if arm == ADVISED else "uniform LoRA of that size"
            rows.append([label, *_cells(request, outcomes, rule, arm)])
    heads = ["training", "mean rank", "layers", "trained parameters", "learning rate", "held-out loss", "difference"]
    note = (
        "Mean rank over all layers, those that are left out counted as 0. Trained parameters of the uniform LoRA come "
        "as near as an integer rank can. Difference: advised less uniform, with its 95 % interval over the seeds; "
        "below zero the advice is better. One scale, α/r, for all layers; each LoRA at its own best rate, chosen on "
        "another seed and another part of the held-out text."
    )
    return Table("LoRA at advised ranks and at one rank for all", heads, rows, note)


def _cells(request: Request, outcomes: Outcomes, rule: RankSource, arm: str) -> list[str]:
    columns = {name: _numbers(request, outcomes, rule, arm, name) for name in _FORMS}
    cells = [spread([value for value in columns[name] if math.isfinite(value)], form) for name, form in _FORMS.items()]
    if arm == UNIFORM or not _was_trained(request, outcomes, rule):
        return [*cells, ""]
    differences = _differences(request, outcomes, rule)
    low, high = interval(differences)
    spans = f" ({low:+.4f} to {high:+.4f})" if len(differences) > 1 else ""
    return [*cells, f"{fmean(differences):+.4f}{spans}"]


_FORMS = {"mean_rank": ".1f", "modules": ".3g", "parameters": ",.0f", "rate": "g", "loss": ".4f"}


def _settings(request: Request) -> Table:
    scale = SCALES[request.scale]
    shown = {
        "size": "GPT-2, layers × width",
        "vocabulary": "vocabulary",
        "context": "tokens at once",
        "batch": "batch",
        "pretraining_steps": "steps of pre-training",
        "steps": "steps of fine-tuning, full and LoRA",
        "rates": "learning rates that LoRA was tried at",
    }
    rows = [[text, ", ".join(f"{one:g}" for one in scale[name])] if name == "rates" else [text, str(scale[name])]
            for name, text in shown.items()]  # fmt: skip
    return Table("Settings", ["setting", "value"], rows, "AdamW, warm-up over a twentieth, then to zero on a line.")


def _figure(request: Request, outcomes: Outcomes) -> Figure:
    figure = new_figure("", "trained parameters", "held-out loss, nats a token")
    for place, (rule, what) in enumerate(RULES.items()):
        for arm, symbol in zip(ARMS, ("circle", "circle-open"), strict=True):
            figure.add_scatter(
                x=_numbers(request, outcomes, rule, arm, "parameters"),
                y=_numbers(request, outcomes, rule, arm, "loss"),
                mode="markers",
                name=f"{what}, {arm}",
                marker={"color": category(place), "symbol": symbol, "size": 9},
            )
    full = fmean(outcomes[Seed(request, seed).full.name].numbers["loss"] for seed in request.seeds)
    figure.add_hline(y=full, line={"dash": "dot", "color": NEUTRAL}, annotation_text="all weights trained")
    return Figure(
        "Held-out loss against size",
        figure,
        "Each point is a LoRA of one seed: filled at the ranks of a rule, open at one rank for all of the same size.",
        "Where a filled point lies below its open one, the rule's ranks are better than an even distribution.",
    )


EXPERIMENTS = {
    NAME: Experiment(
        name=NAME,
        title="Advice: LoRA at the ranks that a watched full fine-tuning advises",
        paper="Nothing: the paper trains from scratch, without LoRA. That the ranks which our advice reads off a run "
        "are a better choice than one rank for all layers is our claim, tested here.",
        trainings=trainings,
        analyse=analyse,
    )
}
