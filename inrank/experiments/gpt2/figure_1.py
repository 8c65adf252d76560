"""Figure 1: how strong the singular values are at an early and a late check, and what the rank explains of them.

Settled before any number was seen: the rule does what it says if at most one growth in a hundred ends below α short of
its limit. Planned before, but written down after one trial's numbers: the solid area is the share of the strength that
the rank holds, and is to exceed α.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

import numpy as np
import pandas as pd

from inrank.experiments.gpt2.figures import grown_ranks, not_trained, over_all
from inrank.experiments.gpt2.rank_growth import Grown, shape_of, untrained_draw, untrained_paths
from inrank.experiments.gpt2.rows import Claim, Measured, Row, judge, trainings_of
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Statement, Table, Training
from inrank.reproduction.verdicts import Sample, is_below
from inrank_monitor.figures import spectrum_density

INRANK = Row("small", "inrank", "InRank (Algorithm 2)")
SHORT = 0.01
TITLE = "Strength of the singular values, and what the rank explains"
RULE = "Figure 1, Algorithm 2 line 7: ranks are added until the explained ratio of eq. 7 reaches α"
AREA = "Figure 1: after a growth the solid area, which the rank explains of the strengths' total, exceeds α"


def trainings(request: Request) -> list[Training]:
    """Algorithm 2 to the end, which Figure 5 looks at too."""
    return trainings_of(request, [INRANK])


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Every growth of every matrix and seed; the figure is of the matrix of the first seed that grew most often."""
    measured = Measured(request, outcomes)
    if not measured.is_trained:
        return not_trained(TITLE, [RULE, AREA])
    seeds = grown_ranks(measured, INRANK)
    name = telling(seeds[0])
    noise = untrained_checks(seeds[0], name)
    held = seeds[0].explained(name, *noise[-1])[1]
    return Findings(
        _reading(seeds, name, held),
        [_rule_statement(seeds), _area_statement(seeds, held)],
        [_table(seeds[0], name, noise)],
        [_trained_figure(measured, seeds[0], name), _noise_figure(seeds[0], name, noise)],
    )


def telling(grown: Grown) -> str:
    """The matrix that grew most often; of several the one that grew most, then the first."""
    columns = [(name, [g for g in grown.growths if g.matrix == name]) for name in grown.ranks.columns]
    return max(columns, key=lambda one: (len(one[1]), sum(g.new_rank - g.old_rank for g in one[1])))[0]


def two_steps(grown: Grown, name: str) -> tuple[int, int]:
    """Steps t1 and t2: the first snapshot, and that of the last growth, or the last where none came later."""
    early = int(grown.ranks.index[1])
    late = max((g.step for g in grown.growths if g.matrix == name), default=early)
    return early, late if late > early else int(grown.ranks.index[-1])


def untrained_checks(grown: Grown, name: str) -> list[tuple[int, np.ndarray]]:
    """What the rule makes of untrained factors of a matrix's shape: each check's new rank, and what it saw.

    Of the draws that a null rank is the median of, the first that ends there.
    """
    rule, initial_rank = grown.settings.rank_rule, grown.settings.initial_rank
    rows, cols = shape_of(grown.run, name)
    paths = untrained_paths(rows, cols, rule, initial_rank)
    median = sorted(path[-1] for path in paths)[len(paths) // 2]
    seed = next(seed for seed, path in enumerate(paths) if path[-1] == median)
    checks = untrained_draw(rows, cols, rule, initial_rank, seed)
    ranks = [rank for rank, _ in checks[1:]] + [checks[-1][0]]
    return [(rank, values) for rank, (_, values) in zip(ranks, checks, strict=True)]


def _rule_statement(seeds: Sequence[Grown]) -> Statement:
    shares = [_mean([float(g.falls_short(one.settings.threshold)) for g in one.growths]) for one in seeds]
    count = sum(len(one.growths) for one in seeds)
    limit = sum(g.new_rank == g.limit for one in seeds for g in one.growths)
    return over_all(
        shares,
        RULE,
        lambda known: judge(
            partial(is_below, limit=SHORT, what="one in a hundred"),
            Claim(RULE),
            Sample("growths that end below α without having come to their limit", known, ".1%"),
            note=f"{count} growths over all seeds and matrices, {limit} of them to the limit of one check",
        ),
    )


def _area_statement(seeds: Sequence[Grown], noise: float) -> Statement:
    alpha = seeds[0].settings.threshold
    shares = [_mean([1 - g.held for g in one.growths]) for one in seeds]
    return over_all(
        shares,
        AREA,
        lambda known: judge(
            partial(is_below, limit=1 - alpha, what="1 − α"),
            Claim(AREA, paper=f"below {1 - alpha:.2g}"),
            Sample("share of Σσ that the rank does not hold after a growth", known, ".3g"),
            note=f"noise at rest: {1 - noise:.3g}; eq. 7 compares variances, which a few strong values make up",
        ),
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _table(grown: Grown, name: str, noise: Sequence[tuple[int, np.ndarray]]) -> Table:
    """Each growth of the matrix, and each check of noise."""
    initial = grown.settings.initial_rank
    rows = [
        ["trained", f"step {g.step}", f"{g.old_rank} → {g.new_rank}", f"{g.explained_ratio:.3f}", f"{g.held:.1%}"]
        for g in grown.growths
        if g.matrix == name
    ]
    before = [initial, *(rank for rank, _ in noise[:-1])]
    for check, (old, (rank, values)) in enumerate(zip(before, noise, strict=True), start=1):
        ratio, held = grown.explained(name, rank, values)
        rows.append(["untrained", f"check {check}", f"{old} → {rank}", f"{ratio:.3f}", f"{held:.1%}"])
    return Table(
        f"Growths of {name}",
        ("factors", "when", "rank", "g at the new rank", "strength that it holds"),
        rows,
        f"First seed. α = {grown.settings.threshold:g}, b = {grown.settings.buffer_rank}. The last check of the "
        "untrained factors adds nothing: there they rest, at the null rank.",
    )


def _trained_figure(measured: Measured, grown: Grown, name: str) -> Figure:
    steps, settings = two_steps(grown, name), grown.settings
    ranks = {step: int(grown.ranks[name].loc[step]) for step in steps}
    held = [grown.explained(name, ranks[step], grown.spectrum(name, step)) for step in steps]
    figure = spectrum_density(
        grown.run.singular_values(name),
        steps,
        ranks,
        name=name,
        threshold=settings.threshold,
        buffer_rank=settings.buffer_rank,
        definition=settings.rule_definition,
        size=min(shape_of(grown.run, name)),
    )
    say = ", ".join(
        f"step {step}: rank {ranks[step]}, g {ratio:.3f}, {share:.0%} of the strength"
        for step, (ratio, share) in zip(steps, held, strict=True)
    )
    return Figure(
        f"{TITLE}: GPT-{measured.model_name('small')}, trained",
        figure,
        "How the strength of U V is spread over its singular values; solid: what the first r of them hold.",
        f"{say[0].upper()}{say[1:]}.",
    )


def _noise_figure(grown: Grown, name: str, noise: Sequence[tuple[int, np.ndarray]]) -> Figure:
    checks = [1, len(noise)] if len(noise) > 1 else [1]
    spectra = [pd.Series(noise[check - 1][1], name=check) for check in checks]
    table = pd.DataFrame(spectra, index=pd.Index(checks, name="step"))
    ranks = {check: noise[check - 1][0] for check in checks}
    rows, cols = shape_of(grown.run, name)
    figure = spectrum_density(table, checks, ranks, name=f"untrained, {rows}×{cols}; step: number of the check")
    ratio, share = grown.explained(name, *noise[-1])
    return Figure(
        "The same for factors that nobody trains",
        figure,
        "Random factors of the same shape, grown by the same rule: its first check, and where it comes to rest.",
        f"It rests after {len(noise) - 1} growths at rank {noise[-1][0]}, where g is {ratio:.3f} and the rank holds "
        f"{share:.0%} of the strength: so much the rule fills where nothing was learned.",
    )


def _reading(seeds: Sequence[Grown], name: str, noise: float) -> str:
    count = sum(len(one.growths) for one in seeds)
    if not count:
        return f"No rank grew: every layer stayed at the initial rank {seeds[0].settings.initial_rank}."
    ratio, held = (
        fmean(getattr(g, what) for one in seeds for g in one.growths) for what in ("explained_ratio", "held")
    )
    alpha = seeds[0].settings.threshold
    short = sum(g.falls_short(alpha) for one in seeds for g in one.growths)
    less = ", less than α: g is a ratio of variances, not the filled area" if held < alpha else ""
    rank, rest = int(seeds[0].ranks[name].iloc[-1]), int(seeds[0].untrained[name].iloc[-1])
    return (
        f"{count} growths were seen; {short} of them ended below α = {alpha:g} without having come to the limit of one "
        f"check. After a growth g is {ratio:.2f} on average, and the rank holds {held:.0%} of the strength (noise at "
        f"rest: {noise:.0%}){less}. {name} ends at rank {rank}; the same "
        f"rule takes untrained factors of its shape to {rest}."
    )


EXPERIMENTS = {
    "figure-1": Experiment(
        "figure-1",
        "Figure 1: what the rank explains, before and after it grows",
        "A sketch: the density of the normalised singular values of a factored layer at two iterations, with the part "
        "that the current rank explains filled; between the two the rank grows until that part exceeds a threshold α.",
        trainings,
        analyse,
    )
}
