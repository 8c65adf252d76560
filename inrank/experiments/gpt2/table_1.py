"""`table-1`: InRank-Efficient beside dense training, three sizes of GPT-2.

Settled before any number was seen: "comparable" is at most 2 % more perplexity (`gpt2_rows.COMPARABLE`), "at most
33 %" is the paper's own largest share of ranks, 254 of 768.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from inrank.experiments.gpt2.paper_tables import QUOTED_1, TABLE_1, as_number, paper_row
from inrank.experiments.gpt2.published_counts import count_reading, count_statements, count_table, quoted_table
from inrank.experiments.gpt2.rows import (
    COMPARABLE,
    MEMORY_NOTE,
    NEEDS_GPU,
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
from inrank.experiments.gpt2.trainings import MODELS, SIZES, Variant
from inrank.gpt2.models import parse_size
from inrank.reproduction.experiment import Experiment, Findings, Outcomes, Request, Statement, Training
from inrank.reproduction.verdicts import Sample, is_below, is_less, is_not_above

BASELINE = {model: Row(model, "baseline", "baseline") for model in MODELS}
EFFICIENT = {model: Row(model, "inrank-efficient", "InRank-Efficient") for model in MODELS}
VARIANTS = (
    Row("small", "inrank-efficient", "κ = 1: the literal W0 + U V", Variant(gain="1")),
    Row("small", "reference", "the published code: no W0"),
)
ROWS = tuple(row for model in MODELS for row in (BASELINE[model], EFFICIENT[model])) + VARIANTS
LARGEST_SHARE = max(100 * row.rank / paper_row(row.model, None).rank for row in TABLE_1 if row.threshold)  # 33.07 %
_BETTER = ("medium", "large")  # of which the paper says that InRank-Efficient is even superior
_EFFICIENCY = {
    "runtime": ("takes less time (s)", 1.0),
    "peak_memory": ("needs less memory (MB)", 1e6),
    "model_size": ("gives a smaller model (MB)", 1e6),
}


def trainings(request: Request) -> Sequence[Training]:
    """Two rows a model, and for the small one the paper's literal parametrization and the published code."""
    return trainings_of(request, ROWS)


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Exact counts at the paper's sizes, and the table trained at this scale."""
    measured = Measured(request, outcomes)
    trained = []
    if measured.is_trained:
        title = f"Table 1 at scale {request.scale}"
        pairs = {model: (BASELINE[model], EFFICIENT[model]) for model in MODELS}
        trained = [
            rows_table(measured, ROWS, BASELINE, title, "baseline"),
            changes_table(measured, pairs, _paper_changes(), "What InRank-Efficient changes against the baseline"),
        ]
    before_after = {model: (paper_row(model, None), paper_row(model, 0.9)) for model in MODELS}
    return Findings(
        reading=f"{count_reading(TABLE_1)} {_reading(measured)}",
        statements=[
            *count_statements(TABLE_1, "Table 1"),
            *(statement for model in MODELS for statement in _statements(measured, model)),
        ],
        tables=[
            *trained,
            count_table(TABLE_1, "Table 1: parameters and model sizes of the paper's models"),
            quoted_table(QUOTED_1, before_after),
        ],
    )


def _rank_share(measured: Measured, model: str) -> Statement:
    """The rank in per cent of the width, the null rank's beside it: the claim says little where noise keeps it too."""
    percent = parse_size(SIZES[measured.request.scale][model]).width / 100
    rank, null = (measured.sample(EFFICIENT[model], name, percent).values for name in ("rank", "null_rank"))
    noise = f"{fmean(null):.1f} %" if null else "–"
    keeps = "keeps it too" if null and fmean(null) <= LARGEST_SHARE else "does not keep it"
    return judge(
        partial(is_below, limit=LARGEST_SHARE, what="the paper's largest share"),
        Claim(
            f"Section 6.3: at most 33 % of the ranks are needed, GPT-{model}",
            paper=f"{100 * paper_row(model, 0.9).rank / paper_row(model, None).rank:.1f} %",
        ),
        Sample(f"rank in % of the width (noise: {noise})", rank),
        note=f"noise {keeps}",
    )


def _statements(measured: Measured, model: str) -> list[Statement]:
    row, base = EFFICIENT[model], BASELINE[model]
    ours, full = paper_row(model, 0.9), paper_row(model, None)
    perplexities = [measured.sample(one, "perplexity") for one in (row, base)]
    printed = f"{ours.perplexity} against {full.perplexity}"
    comparable = f"Table 1, section 6.3: InRank-Efficient's perplexity is comparable to the baseline's, GPT-{model}"
    found = [judge(partial(is_not_above, margin=COMPARABLE), Claim(comparable, printed), *perplexities)]
    if model in _BETTER:
        better = f"Section 6.3: InRank-Efficient's perplexity is even better than the baseline's, GPT-{model}"
        found.append(judge(is_less, Claim(better, printed), *perplexities))
    found.append(_rank_share(measured, model))
    printed_pairs = {
        "runtime": f"{ours.hours} h against {full.hours} h",
        "peak_memory": f"{ours.memory} GB against {full.memory} GB",
        "model_size": f"{ours.size} MB against {full.size} MB",
    }
    for name, (words, divisor) in _EFFICIENCY.items():
        samples = [measured.sample(one, name, divisor) for one in (row, base)]
        claim = Claim(f"Table 1: InRank-Efficient {words}, GPT-{model}", printed_pairs[name])
        note = RUNTIME_NOTE if name == "runtime" else ""
        undecided = MEMORY_NOTE if name == "peak_memory" and measured.on_cpu else ""
        found.append(judge(is_less, claim, *samples, note=note, undecided=undecided))
    return found


def _paper_changes() -> dict[tuple[str, str], float]:
    changes = {}
    for model in MODELS:
        ours, full = paper_row(model, 0.9), paper_row(model, None)
        for name, before, after in (
            ("perplexity", full.perplexity, ours.perplexity),
            ("rank", full.rank, ours.rank),
            ("runtime", full.hours, ours.hours),
            ("peak_memory", full.memory, ours.memory),
            ("model_size", as_number(full.size), as_number(ours.size)),
            ("parameters", as_number(full.params), as_number(ours.params)),
        ):
            changes[model, name] = after / before - 1
    return changes


def _reading(measured: Measured) -> str:
    if not measured.is_trained:
        return f"Its trained numbers: {NEEDS_GPU}."
    parts = []
    for model in MODELS:
        row = EFFICIENT[model]
        change = against(measured.sample(row, "perplexity"), measured.sample(BASELINE[model], "perplexity"))
        rank, null = (fmean(measured.sample(row, name).values) for name in ("rank", "null_rank"))
        parts.append(f"{change} for {measured.model_name(model)}, at rank {rank:.1f} (noise gets {null:.1f})")
    small = measured.sample(BASELINE["small"], "perplexity")
    variants = [f"{against(measured.sample(row, 'perplexity'), small)} with {row.label}" for row in VARIANTS]
    return (
        f"Trained at scale {measured.request.scale}, InRank-Efficient's perplexity against the baseline's is "
        f"{'; '.join(parts)}. For the small model it is {' and '.join(variants)}."
    )


EXPERIMENTS = {
    "table-1": Experiment(
        "table-1",
        "Table 1: InRank-Efficient beside dense training",
        "Perplexity, rank, runtime, memory, model size and parameters of GPT-2 small, medium and large on "
        "WikiText-103, dense and by InRank-Efficient: perplexity about the same with 33 % of the ranks or fewer, for "
        "less of all else.",
        trainings,
        analyse,
    )
}
