"""`table-5`: InRank-Efficient in 32 and in 16 bits. 16 bits are fp16 on a GPU, as in the paper, and bf16 on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from inrank.experiments.gpt2.paper_tables import QUOTED_5, TABLE_5, PaperRow
from inrank.experiments.gpt2.published_counts import count_reading, count_statements, count_table, quoted_table
from inrank.experiments.gpt2.rows import (
    COMPARABLE,
    MEMORY_NOTE,
    NEEDS_GPU,
    ON_CPU,
    RUNTIME_NOTE,
    Claim,
    Measured,
    Row,
    against,
    changes_table,
    judge,
    rows_table,
    trainings_of,
)
from inrank.experiments.gpt2.trainings import HALF, Variant
from inrank.reproduction.experiment import Experiment, Findings, Outcomes, Request, Statement, Training
from inrank.reproduction.verdicts import is_less, is_not_above, not_tested

MODELS = ("medium", "large")
FULL = {model: Row(model, "inrank-efficient", "InRank-Efficient, 32 bits") for model in MODELS}
HALVES = {model: Row(model, "inrank-efficient", "InRank-Efficient, 16 bits", Variant(half=True)) for model in MODELS}
ROWS = tuple(row for model in MODELS for row in (FULL[model], HALVES[model]))


def trainings(request: Request) -> Sequence[Training]:
    """Table 1's InRank-Efficient of the two larger models, and the same in 16 bits."""
    return trainings_of(request, ROWS)


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Exact sizes at the paper's ranks, and both precisions trained at this scale."""
    measured = Measured(request, outcomes)
    tables = []
    if measured.is_trained:
        pairs = {model: (FULL[model], HALVES[model]) for model in MODELS}
        tables = [
            rows_table(measured, ROWS, FULL, f"Table 5 at scale {request.scale}, 16 bits: {_half(request)}", "32 bits"),
            changes_table(measured, pairs, _paper_changes(), "What 16 bits change against 32"),
        ]
    return Findings(
        reading=f"{count_reading(TABLE_5)} {_reading(measured)}",
        statements=[
            *count_statements(TABLE_5, "Table 5"),
            *(statement for model in MODELS for statement in _statements(measured, model)),
            not_tested(
                "Appendix D: dense training of GPT-medium and GPT-large diverges in 16 bits, where InRank converges",
                "dense training in 16 bits is not part of this table",
            ),
        ],
        tables=[
            *tables,
            count_table(TABLE_5, "Table 5: parameters and model sizes of the paper's models"),
            quoted_table(QUOTED_5, {model: _paper_pair(model) for model in MODELS}),
        ],
    )


def _paper_pair(model: str) -> tuple[PaperRow, PaperRow]:
    full, half = (row for row in TABLE_5 if row.model == model)
    return full, half


def _half(request: Request) -> str:
    return HALF["cpu" if request.device == "cpu" else "cuda"]


def _statements(measured: Measured, model: str) -> list[Statement]:
    half, full = HALVES[model], FULL[model]
    paper_full, paper_half = _paper_pair(model)
    sizes = [measured.sample(one, "model_size", 1e6) for one in (half, full)]
    halved = replace(sizes[1], name=f"half of {sizes[1].name}", values=[value / 2 for value in sizes[1].values])
    times = [measured.sample(one, "runtime") for one in (half, full)]
    comparable = partial(is_not_above, margin=COMPARABLE)
    memories = [measured.sample(one, "peak_memory", 1e6) for one in (half, full)]
    lead = f"Table 5, appendix D: in 16 bits ({_half(measured.request)} here)"
    return [
        judge(
            comparable,
            Claim(
                f"{lead} perplexity is comparable to 32 bits, GPT-{model}",
                paper=f"{paper_half.perplexity} against {paper_full.perplexity}",
            ),
            *(measured.sample(one, "perplexity") for one in (half, full)),
        ),
        judge(
            is_less,
            Claim(
                f"{lead} training takes less time (s), GPT-{model}",
                paper=f"{paper_half.hours} h against {paper_full.hours} h",
            ),
            *times,
            note=RUNTIME_NOTE,
            undecided=ON_CPU if measured.on_cpu else "",
        ),
        judge(
            is_less,
            Claim(
                f"{lead} training needs less memory (MB), GPT-{model}",
                paper=f"{paper_half.memory:g} GB against {paper_full.memory:g} GB",
            ),
            *memories,
            undecided=MEMORY_NOTE if measured.on_cpu else "",
        ),
        judge(
            comparable,
            Claim(
                f"{lead} the model is half as large (MB; each training found its own ranks), GPT-{model}",
                paper=f"{paper_half.size} against {paper_full.size}",
            ),
            sizes[0],
            halved,
        ),
    ]


def _paper_changes() -> dict[tuple[str, str], float]:
    changes = {}
    for model in MODELS:
        full, half = _paper_pair(model)
        changes[model, "perplexity"] = half.perplexity / full.perplexity - 1
        changes[model, "rank"] = half.rank / full.rank - 1
        changes[model, "runtime"] = half.hours / full.hours - 1
        changes[model, "peak_memory"] = half.memory / full.memory - 1
        changes[model, "model_size"] = -0.5  # from 895 to 447 and from 1.8K to 891
    return changes


def _reading(measured: Measured) -> str:
    if not measured.is_trained:
        return f"Its trained numbers: {NEEDS_GPU}."

    def change(model: str, name: str) -> str:
        return against(measured.sample(HALVES[model], name), measured.sample(FULL[model], name))

    parts = "; ".join(
        f"perplexity {change(model, 'perplexity')} and rank {change(model, 'rank')} for {measured.model_name(model)}"
        for model in MODELS
    )
    speed = f" Time and memory: {ON_CPU}." if measured.on_cpu else ""
    return f"In 16 bits ({_half(measured.request)}) against 32, InRank-Efficient has {parts}.{speed}"


EXPERIMENTS = {
    "table-5": Experiment(
        "table-5",
        "Table 5: InRank-Efficient in 16 bits beside 32",
        "GPT-2 medium and large by InRank-Efficient in both precisions: perplexity higher by 0.1 in 16 bits, for 27 % "
        "less runtime, 38 % and 32 % less memory and half the model size. Dense training is said to diverge there.",
        trainings,
        analyse,
    )
}
