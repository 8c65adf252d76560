"""The tables of the experiment: all arms, the rates by which they were chosen, who got the budget."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from inrank.experiments.gpt2.rows import against
from inrank.experiments.worth_it.arms import DENSE, Arm
from inrank.experiments.worth_it.measured import Measured, Row
from inrank.gpt2.results_table import size, thousands
from inrank.gpt2.text import WIKITEXT
from inrank.reproduction.experiment import Outcome, Request, Table
from inrank.reproduction.verdicts import spread


def common_note(measured: Measured, first: Arm, second: Arm) -> str:
    """`, 2 of 4 rates`; nothing where all were tried."""
    common, planned = len(measured.common_rates(first, second)), len(measured.rates)
    return "" if common == planned else f", {common} of {planned} rates"


def arms_table(measured: Measured) -> Table:
    """Every arm: what it comes to, and what it costs."""
    dense = measured.rows.get(DENSE)
    lines = []
    for row in sorted(measured.rows.values(), key=lambda row: (-(row.arm.budget or 1), row.arm.kind)):
        beside = "–" if dense is None or row.arm == DENSE else _against_dense(measured, row.arm)
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
        "95 % interval leaves zero out; where sweeps are not finished, each at its best of the rates that both have. "
        "Rate: the best on the validation part with the first seed, which is among those shown; in brackets how many "
        "of the planned rates were tried, where not all were. MLP weights: the share that is left, W0 of InRank "
        "counted. Multiply-adds of the whole training over dense's, calibration, decompositions and the training that "
        "widths are planned on included. Seconds: "
        f"{seconds}. Memory: {'of the process, libraries included' if on_cpu else 'of the device'}, at its peak. "
        f"Text: {_text(measured.request)}."
    )
    return Table("All arms", (*heads, "seconds", "memory"), lines, note)


def _against_dense(measured: Measured, arm: Arm) -> str:
    """`+1.2 % ± 0.3 % (higher)`; by which rates, where both were not trained at all of them."""
    first, second = measured.pair(arm, DENSE)
    return against(first, second) + common_note(measured, arm, DENSE) if first.values else "not comparable yet"


def _rate(measured: Measured, row: Row) -> str:
    """The best rate, and how many were tried where some were not."""
    tried, planned = len(row.by_rate), len(measured.rates)
    return f"{row.rate:g}" + (f" ({tried} of {planned})" if tried < planned else "")


def _text(request: Request) -> str:
    """What is trained and tested on, by the names of the files."""
    if not request.text:
        return WIKITEXT if request.scale == "paper" else "Python's own help texts"
    names = ", ".join(Path(path).name for path in request.text)
    return f"{names}, tested on {Path(request.test_text).name if request.test_text else 'its last tenth'}"


def rates_table(measured: Measured) -> Table:
    """By which each learning rate was chosen."""
    rates = measured.rates
    lines = [
        [full_label(row), *(_validation(row.by_rate[rate]) if rate in row.by_rate else "" for rate in rates)]
        for row in measured.rows.values()
    ]
    note = f"By these the rate of each arm was chosen, with seed {measured.request.seeds[0]}. Empty: not trained."
    return Table("Validation PPL by learning rate", ("arm", *(f"{rate:g}" for rate in rates)), lines, note)


def _validation(outcome: Outcome) -> str:
    return f"{math.exp(outcome.numbers['validation']):.4g}"


def full_label(row: Row) -> str:
    """With the budget."""
    return f"{row.arm.label}, {row.arm.budget:.0%}" if row.arm.budget else row.arm.label


def layers_table(measured: Measured) -> Table:
    """Who got the budget."""
    lines = []
    for row in measured.rows.values():
        for what in ("rank", "units"):
            found = row.layers(what)
            if found and row.arm.kind != "dense":
                lines.append([full_label(row), what, " ".join(map(str, found.values()))])
    note = (
        f"Seed {measured.request.seeds[0]}. Ranks in the model's order, c_fc before c_proj in each block; "
        "hidden units of each block."
    )
    return Table("Ranks and hidden units", ("arm", "what", "from the first block to the last"), lines, note)
