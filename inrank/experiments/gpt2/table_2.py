"""`table-2`: ranks that grow beside the same ranks from the start.

The paper fixes "the rank as the number auto-determined by InRank-Efficient"; here each layer gets the rank that it
ended with in InRank-Efficient's training of the same seed.
"""

from __future__ import annotations

from collections.abc import Sequence

from inrank.experiments.gpt2.paper_tables import TABLE_2
from inrank.experiments.gpt2.rows import (
    NEEDS_GPU,
    Claim,
    Measured,
    Row,
    against,
    changes_table,
    judge,
    rows_table,
    trainings_of,
)
from inrank.experiments.gpt2.table_1 import EFFICIENT
from inrank.experiments.gpt2.trainings import MODELS, Variant
from inrank.reproduction.experiment import Experiment, Findings, Outcomes, Request, Training
from inrank.reproduction.verdicts import is_less

FIXED = {model: Row(model, "fixed-rank", "fixed at InRank-Efficient's ranks") for model in MODELS}
NULL = Row("small", "fixed-rank", "fixed at the null ranks (nothing to determine)", Variant(rank="null"))
_LOWER = "Table 2: InRank-Efficient's perplexity is lower than at the same ranks fixed from the start"
ROWS = (*(row for model in MODELS for row in (FIXED[model], EFFICIENT[model])), NULL)


def trainings(request: Request) -> Sequence[Training]:
    """Fixed ranks after InRank-Efficient's, which say what they are; the null ranks for the small model."""
    return trainings_of(request, ROWS)


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Perplexities, seed by seed."""
    measured = Measured(request, outcomes)
    statements = [
        judge(
            is_less,
            Claim(f"{_LOWER}, GPT-{model}", paper=f"{efficient} against {fixed}"),
            measured.sample(EFFICIENT[model], "perplexity"),
            measured.sample(FIXED[model], "perplexity"),
        )
        for model, (fixed, efficient) in TABLE_2.items()
    ]
    tables = []
    if measured.is_trained:
        pairs = {model: (FIXED[model], EFFICIENT[model]) for model in MODELS}
        paper = {(model, "perplexity"): efficient / fixed - 1 for model, (fixed, efficient) in TABLE_2.items()}
        tables = [
            rows_table(measured, ROWS, EFFICIENT, f"Table 2 at scale {request.scale}", "InRank-Efficient"),
            changes_table(measured, pairs, paper, "What growing changes against the same ranks from the start"),
        ]
    return Findings(reading=_reading(measured), statements=statements, tables=tables)


def _reading(measured: Measured) -> str:
    if not measured.is_trained:
        return f"Not trained: {NEEDS_GPU}."
    changes = ", ".join(
        f"{_change(measured, EFFICIENT[model], FIXED[model])} for {measured.model_name(model)}" for model in MODELS
    )
    null = _change(measured, NULL, EFFICIENT["small"])
    return (
        f"Perplexity of ranks that grow against the same ranks from the start: {changes} "
        "(the paper: -0.5 % to -1.9 %). "
        f"At the null ranks from the start, for which nothing has to be determined, it is {null} against "
        "InRank-Efficient's for the small model."
    )


def _change(measured: Measured, row: Row, base: Row) -> str:
    return against(measured.sample(row, "perplexity"), measured.sample(base, "perplexity"))


EXPERIMENTS = {
    "table-2": Experiment(
        "table-2",
        "Table 2: growing ranks beside fixed ones",
        "Perplexity of GPT-2 trained at the rank that InRank-Efficient determined, fixed from the start, beside "
        "InRank-Efficient's own, which is lower by 0.1 to 0.4: growing is said to regularize.",
        trainings,
        analyse,
    )
}
