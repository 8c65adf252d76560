"""Rows of the paper's tables, trained: their numbers over seeds, how they differ from another row, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from inrank.experiments.gpt2.trainings import SIZES, USUAL, Variant, can_train, number, over_seeds
from inrank.gpt2.results_table import duration, size, thousands
from inrank.reproduction.experiment import Outcomes, Request, Statement, Table, Training, Verdict
from inrank.reproduction.verdicts import Sample, is_less, not_tested, spread

NEEDS_GPU = "needs a CUDA device: GPT-2 of the paper's sizes is not trained on a CPU (--device cuda, or --scale tiny)"
ON_CPU = "on a CPU this says little of the paper's claim, which is of GPUs"
MEMORY_NOTE = f"peak memory of the whole process, libraries included: {ON_CPU}"
RUNTIME_NOTE = "several trainings may have run at a time, which slows each"
COMPARABLE = 0.02  # "comparable" perplexity: the paper's own largest loss is 1.6 % (Table 1, GPT-small)
_SAY: dict[Verdict, str] = {
    "agrees": "lower",
    "disagrees": "higher",
    "within noise": "within noise",
    "not tested": "one seed",
}
_FORMS: dict[str, Callable[[float], str]] = {"runtime": duration, "peak_memory": size, "model_size": size}
NUMBERS = ("perplexity", "rank", "null_rank", "runtime", "peak_memory", "model_size", "parameters")
_HEADS = ("PPL", "rank", "null rank", "runtime", "memory", "model size", "params")


@dataclass(frozen=True)
class Row:
    """One row of a table: trainings that differ in their seed alone.

    Attributes:
        model: `small`, `medium`, `large`: the paper's, or what stands for it at this scale.
        method: of `inrank train`.
        label: of the row.
        variant: in what they differ from the method's usual ones.
    """

    model: str
    method: str
    label: str
    variant: Variant = USUAL


def trainings_of(request: Request, rows: Iterable[Row]) -> list[Training]:
    """A training for every row and seed; none where they cannot be trained here."""
    return [one for row in rows for one in over_seeds(request, row.model, row.method, row.variant)]


@dataclass(frozen=True)
class Measured:
    """Finished trainings of a request."""

    request: Request
    outcomes: Outcomes

    @property
    def is_trained(self) -> bool:
        """Whether there are any."""
        return can_train(self.request)

    @property
    def on_cpu(self) -> bool:
        """Whether memory is the process's, and runtime a CPU's."""
        return self.request.device == "cpu"

    def sample(self, row: Row, name: str, divisor: float = 1.0, form: str = ".4g") -> Sample:
        """One of `NUMBERS` of a row, a value a seed, divided by something; no values where nothing was trained."""
        found = number(self.outcomes, trainings_of(self.request, [row]), name, row.label, form)
        return replace(found, values=[value / divisor for value in found.values])

    def model_name(self, model: str) -> str:
        """`small`, and what stands for it: `small (2x64)`."""
        standing = SIZES[self.request.scale][model]
        return model if standing == model else f"{model} ({standing})"


@dataclass(frozen=True)
class Claim:
    """What the paper says, in words and, where it gives one, as a number."""

    text: str
    paper: str = "–"


def judge(
    verdict: Callable[..., Statement], claim: Claim, *samples: Sample, note: str = "", undecided: str = ""
) -> Statement:
    """A statement by one of `verdicts`, or `not tested` where nothing was trained.

    Args:
        verdict: such as `is_less`; takes the claim's text, the samples and `paper`. What else it asks for is bound.
        claim: what the paper says.
        samples: ours; without values where nothing was trained.
        note: that a reader needs to judge the numbers; goes behind how it was decided.
        undecided: why this machine cannot decide the claim; the numbers are shown all the same.
    """
    text, paper = claim.text, claim.paper
    if not all(sample.values for sample in samples):
        return not_tested(text, NEEDS_GPU, paper=paper)
    if undecided:
        return not_tested(text, undecided, paper=paper, ours="; ".join(sample.named for sample in samples))
    found = verdict(text, *samples, paper=paper)
    return replace(found, why=f"{found.why}; {note}") if note else found


def shares(values: Sequence[float], of: Sequence[float]) -> list[float]:
    """By what share each value differs from the other of its seed."""
    return [a / b - 1 for a, b in zip(values, of, strict=True)]


def percent(values: Sequence[float]) -> str:
    """Shares as text: `+1.6 % ± 0.3 %`."""
    mean = f"{100 * fmean(values):+z.1f} %"
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f} %"


def against(first: Sample, second: Sample) -> str:
    """How the first differs from the second, and whether seeds alone would do that: `-3.1 % ± 0.4 % (lower)`."""
    same = list(first.values) == list(second.values)
    word = "equal" if same else _SAY[is_less("", first, second).verdict]
    return f"{percent(shares(first.values, second.values))} ({word})"


def written(name: str, values: Sequence[float]) -> str:
    """One of `NUMBERS` over seeds: mean ± standard deviation; the mean alone where all seeds agree."""
    if values[0] != values[0]:  # NaN: the null rank of a dense model
        return "–"
    if name == "perplexity":
        return spread(values, ".4g")
    form = _FORMS.get(name, thousands if name == "parameters" else _rank)
    if len(set(values)) == 1:
        return form(values[0])
    return f"{form(fmean(values))} ± {form(stdev(values))}"


def _rank(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def rows_table(measured: Measured, rows: Sequence[Row], base: Mapping[str, Row], title: str, base_name: str) -> Table:
    """The rows as the paper's tables have them, with the null rank, and the perplexity against another row's.

    Args:
        measured: finished trainings.
        rows: of the table.
        base: by model, the row to compare perplexities with.
        title: of the table.
        base_name: what that row is called.
    """
    lines = []
    for row in rows:
        perplexity, other = (measured.sample(one, "perplexity") for one in (row, base[row.model]))
        numbers = [written(name, measured.sample(row, name).values) for name in NUMBERS]
        beside = "–" if row == base[row.model] else against(perplexity, other)
        lines.append([measured.model_name(row.model), row.label, numbers[0], beside, *numbers[1:]])
    heads = ("model", "method", _HEADS[0], f"PPL against {base_name}", *_HEADS[1:])
    seeds = len(measured.request.seeds)
    note = (
        f"Mean ± standard deviation over {seeds} seed{'s' * (seeds > 1)}; no ± where all seeds agree. Rank: mean over "
        "the MLP matrices; null rank: what the same rule gives factors that nobody trains. Params and model size "
        f"without the buffer rank. Runtime: {RUNTIME_NOTE}."
    )
    return Table(
        title=title, heads=heads, rows=lines, note=f"{note} Memory: {MEMORY_NOTE}." if measured.on_cpu else note
    )


def changes_table(
    measured: Measured, pairs: Mapping[str, tuple[Row, Row]], paper: Mapping[tuple[str, str], float], title: str
) -> Table:
    """What the second row of each pair changes against the first, beside the change in the paper.

    Args:
        measured: finished trainings.
        pairs: by model: the row to compare with, and the other.
        paper: the paper's change, as a share, by model and one of `NUMBERS`.
        title: of the table.
    """
    lines = [
        [
            measured.model_name(model),
            _HEADS[NUMBERS.index(name)],
            f"{100 * change:+z.1f} %",
            against(measured.sample(pairs[model][1], name), measured.sample(pairs[model][0], name)),
        ]
        for (model, name), change in paper.items()
    ]
    note = "Paired by seed. Lower, higher: the 95 % interval over the seeds leaves zero out."
    return Table(title=title, heads=("model", "number", "the paper's change", "ours"), rows=lines, note=note)
