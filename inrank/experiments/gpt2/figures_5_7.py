"""Figures 5 to 7: how the rank of each MLP layer grows, and how the same rule grows layers that nobody trains.

Settled before any verdict, but after the ranks of one trial training were seen (one seed, GPT-small): growth is "mostly
early" if four fifths of a layer's growth is done, on average, in the first half of the phase in which ranks may grow
(InRank-Efficient), or in the first part (`EARLY`) of a training that may grow to its end (Algorithm 2); and the first
phase is "sufficiently large" if ranks that may go on growing end at most a tenth above what they were at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import pandas as pd

from inrank.experiments.gpt2.figures import grown_ranks, not_trained, over_all
from inrank.experiments.gpt2.rank_growth import Grown, done_by_step, step_when_done
from inrank.experiments.gpt2.rows import Claim, Measured, Row, judge, trainings_of
from inrank.experiments.gpt2.table_1 import EFFICIENT
from inrank.experiments.gpt2.trainings import MODELS
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Statement, Table, Training
from inrank.reproduction.verdicts import Sample, is_below, is_not_above, spread
from inrank_monitor.figures import NEUTRAL, category, families, new_figure, rank_evolution, rgba

SHARE = 0.8
HALF = 0.5  # of the growing phase
EARLY = {"smoke": 0.25, "tiny": 0.25, "small": 0.25, "paper": 0.05}  # the paper's figures end at 5 % of its 100 epochs
SETTLED = 0.1
WHOLE = Row("small", "inrank", "InRank (Algorithm 2)")
NUMBER = dict(zip(MODELS, (5, 6, 7), strict=True))


@dataclass(frozen=True)
class Seeds:
    """The trainings of one row, a seed each, and how long their ranks could grow.

    Attributes:
        row: of the trainings.
        grown: their ranks.
        end: the last step at which ranks could grow.
    """

    row: Row
    grown: Sequence[Grown]
    end: int

    @property
    def is_whole(self) -> bool:
        """Whether ranks may grow to the end of the training."""
        return self.row == WHOLE

    @property
    def early(self) -> list[float | None]:
        """At what share of the time in which they could grow `SHARE` of the growth was done; None if none was."""
        steps = [step_when_done(one.ranks, SHARE) for one in self.grown]
        return [None if step is None else step / self.end for step in steps]

    @property
    def noise(self) -> float:
        """The same share for factors that nobody trains, checked as often."""
        first = self.grown[0]
        checks = step_when_done(first.untrained, SHARE)
        return (checks or 0.0) * first.settings.steps_between_checks / self.end

    @property
    def rank(self) -> Sample:
        """Mean over the layers at the end."""
        return Sample("rank", [float(one.ranks.iloc[-1].mean()) for one in self.grown])

    @property
    def null_rank(self) -> float:
        """Mean of what the rule gives untrained factors of the layers' shapes."""
        return float(self.grown[0].untrained.iloc[-1].mean())


def _seeds(measured: Measured, row: Row) -> Seeds:
    grown = grown_ranks(measured, row)
    return Seeds(row, grown, grown[0].settings.steps if row == WHOLE else grown[0].settings.phase_steps)


def _rows(model: str) -> list[Row]:
    """InRank-Efficient, and for the small model Algorithm 2 to the end."""
    return [EFFICIENT[model], *([WHOLE] if model == WHOLE.model else [])]


def trainings(request: Request, model: str) -> list[Training]:
    """Those of one of the three figures."""
    return trainings_of(request, _rows(model))


def analyse(request: Request, outcomes: Outcomes, model: str) -> Findings:
    """When the ranks of one model grew."""
    measured = Measured(request, outcomes)
    if not measured.is_trained:
        return not_trained(f"Ranks of GPT-{model} while it trains", [_claim(model, WHOLE)])
    every = [_seeds(measured, row) for row in _rows(model)]
    statements = [_early_statement(request, model, seeds) for seeds in every]
    if every[-1].is_whole:
        statements.append(_settled_statement(every[-1]))
    figures = [*(_ranks_figure(measured, model, seeds) for seeds in every), _pace_figure(measured, model, every)]
    return Findings(" ".join(map(_reading, every)), statements, [_table(seeds) for seeds in every], figures)


def _claim(model: str, row: Row) -> str:
    where = "the whole training" if row == WHOLE else "the growing phase"
    return f"Appendix E, Figure {NUMBER[model]}: ranks grow mostly in the early stage (of {where}), GPT-{model}"


def _early_statement(request: Request, model: str, seeds: Seeds) -> Statement:
    claim = _claim(model, seeds.row)
    limit = EARLY[request.scale] if seeds.is_whole else HALF
    what = "of the training" if seeds.is_whole else "of the growing phase"
    return over_all(
        seeds.early,
        claim,
        lambda known: judge(
            partial(is_below, limit=limit, what=f"the first part {what}"),
            Claim(claim),
            Sample(f"share {what} after which {SHARE:.0%} of the growth is done", known, ".2g"),
            note=_beside_noise(seeds, known),
        ),
    )


def _settled_statement(seeds: Seeds) -> Statement:
    """With Algorithm 2 to the end: what would InRank-Efficient have missed by stopping at T?"""
    phase = seeds.grown[0].settings.phase_steps
    before = [float(one.ranks.loc[:phase].iloc[-1].mean()) for one in seeds.grown]
    return judge(
        partial(is_not_above, margin=SETTLED),
        Claim("Section 6.2, appendix C: the first phase (T steps) is long enough for ranks to come to rest"),
        Sample("rank at the end of a training that may grow throughout", seeds.rank.values, ".3g"),
        Sample(f"its rank at T = {phase}", before, ".3g"),
        note=f"noise comes to rest at {seeds.null_rank:.3g}",
    )


def _ranks_figure(measured: Measured, model: str, seeds: Seeds) -> Figure:
    """Ranks of the first seed's layers over the steps at which they could grow."""
    first = seeds.grown[0]
    names = list(first.ranks.columns)
    table = first.run.measurements
    table = table[table["matrix"].isin(names) & (table["step"] <= seeds.end)]
    start = table[table["step"] == table["step"].min()].assign(step=0, layer_rank=first.settings.initial_rank)
    figure = rank_evolution(
        pd.concat([start.astype(table.dtypes.to_dict()), table], ignore_index=True),
        "layer_rank",
        names,
        events=first.run.events,
        groups=families(names),
    )
    end = first.ranks.iloc[-1]
    return Figure(
        f"{seeds.row.label}, GPT-{measured.model_name(model)}: ranks of the MLP layers",
        figure,
        f"The rank of each MLP matrix over the {seeds.end} steps in which it could grow (first seed); triangles: where "
        "it grew; dashed: where the same rule takes factors that nobody trains.",
        f"Ranks end between {end.min()} and {end.max()}; noise would end between {first.untrained.iloc[-1].min()} and "
        f"{first.untrained.iloc[-1].max()}.",
    )


def _pace_figure(measured: Measured, model: str, every: Sequence[Seeds]) -> Figure:
    """Share of the growth done over checks: every seed, and noise."""
    figure = new_figure("", "checks of the ranks so far", "share of the growth done")
    for position, seeds in enumerate(every):
        for number, one in enumerate(seeds.grown):
            done = done_by_step(one.ranks)
            figure.add_scatter(
                x=done.index / one.settings.steps_between_checks,
                y=done,
                mode="lines",
                line={"shape": "hv", "color": rgba(category(position), 0.9 if number == 0 else 0.4)},
                name=seeds.row.label,
                legendgroup=seeds.row.label,
                showlegend=number == 0,
            )
    noise = done_by_step(every[0].grown[0].untrained)
    look = {"shape": "hv", "color": NEUTRAL, "dash": "dash"}
    figure.add_scatter(x=noise.index, y=noise, mode="lines+markers", line=look, name="factors that nobody trains")
    figure.add_hline(y=SHARE, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    checks = step_when_done(every[0].grown[0].untrained, SHARE)
    return Figure(
        f"How fast they grow beside noise, GPT-{measured.model_name(model)}",
        figure,
        f"Share of all layers' growth that is done after so many checks, a line a seed; dotted: {SHARE:.0%}.",
        f"The rule has done {SHARE:.0%} of its work on noise after {checks or 0:.3g} checks: so fast it "
        "begins where nothing is learned.",
    )


def _table(seeds: Seeds) -> Table:
    """Each layer: first, at T and at the end, beside noise."""
    first = seeds.grown[0]
    rows = []
    for name in first.ranks.columns:
        ends = [float(one.ranks[name].iloc[-1]) for one in seeds.grown]
        after = [float(one.ranks[name].iloc[1]) for one in seeds.grown]
        steps = [step for one in seeds.grown if (step := step_when_done(one.ranks[[name]], SHARE)) is not None]
        noise = " → ".join(str(rank) for rank in dict.fromkeys(first.untrained[name]))
        rows.append(
            [name, spread(after), spread(ends), spread(steps, ".3g"), str(first.untrained[name].iloc[-1]), noise]
        )
    heads = ("layer", "rank at the first snapshot", "rank at the end", f"step of {SHARE:.0%}", "null rank", "noise")
    note = (
        f"Ranks could grow up to step {seeds.end}, a check every {first.settings.steps_between_checks} steps, from "
        f"rank {first.settings.initial_rank}. Step of {SHARE:.0%}: when that share of the growth was done, over the "
        "seeds in which the layer grew. Noise: ranks of untrained factors from check to check."
    )
    return Table(f"{seeds.row.label}: layer by layer", heads, rows, note)


def _reading(seeds: Seeds) -> str:
    where = "the training" if seeds.is_whole else "the growing phase"
    ended = f"ranks end at {seeds.rank.text} on average (null rank {seeds.null_rank:.3g})"
    known = [share for share in seeds.early if share is not None]
    if not known:
        return f"{seeds.row.label}: no rank grew; {ended}."
    return (
        f"{seeds.row.label}: {SHARE:.0%} of the growth is done after {spread(known, '.2g')} of {where}; "
        f"{_beside_noise(seeds, known)}. The {ended}."
    )


def _beside_noise(seeds: Seeds, early: Sequence[float]) -> str:
    noise = f"factors that nobody trains are there after {seeds.noise:.2g}"
    if fmean(early) < seeds.noise:
        return f"{noise}: the ranks grew earlier than noise's"
    return f"{noise}: noise is no later, so early growth alone is no sign of learning"


def _experiment(model: str) -> Experiment:
    name = f"figure-{NUMBER[model]}"
    return Experiment(
        name,
        f"Figure {NUMBER[model]}: ranks of GPT-2 {model}'s MLP layers while InRank grows them",
        f"The rank of several MLP layers of GPT-2 {model} over the first 5 % of the iterations: it rises steeply at "
        "first, and hardly afterwards.",
        lambda request: trainings(request, model),
        lambda request, outcomes: analyse(request, outcomes, model),
    )


EXPERIMENTS = {f"figure-{NUMBER[model]}": _experiment(model) for model in MODELS}
