"""The numbers behind `null-ranks`: what the growth rule gives untrained matrices, and what it gives trained updates.

No rule is written here: null ranks are `inrank_monitor.null_model`'s, as the dashboard shows them, and ranks of trained
updates are drawn from the stored spectra of ordinary runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, NamedTuple

from inrank.experiments.gpt2 import paper_tables
from inrank.experiments.gpt2.rank_growth import mlp_matrices
from inrank.gpt2.models import PAPER_SIZES, TARGETS
from inrank_monitor.ranks import Definition, Kind, RankRule, null_rank
from inrank_monitor.runs import Run, recompute

Group = Literal["mlp", "all"]
TABLE_3 = {  # rank by model and α
    model: {row.threshold: row.rank for row in paper_tables.TABLE_3 if row.model == model and row.threshold is not None}
    for model in PAPER_SIZES
}
BUFFER_RANK, ALPHA = 100, 0.9  # the paper's, section 6
PUBLISHED, EQUATION, UPDATES = "published code, factors", "eq. 7, factors", "eq. 7, Gaussian"
RULES: dict[str, tuple[Definition, Kind]] = {
    PUBLISHED: ("reference", "factors"),  # what the published code does to U V
    EQUATION: ("paper", "factors"),  # Algorithm 2 as it is written
    UPDATES: ("paper", "gaussian"),  # what a dense update D_t is held against
    "published code, Gaussian": ("reference", "gaussian"),  # nobody's; for comparison
}
IN_USE = (PUBLISHED, EQUATION, UPDATES)
_DEFINITIONS: tuple[Definition, ...] = ("paper", "reference")
MULTIPLES = (0.25, 0.5, 1.0, 2.0)  # of a run's own b: 25, 50, 100, 200 where b is the paper's 100
NullRanks = Mapping[tuple[str, float], Mapping[int, int]]  # by rule and α, then by b


class Sweep(NamedTuple):
    """Which b and r₀ are tried on untrained matrices of one shape.

    Attributes:
        shape: (out, in).
        shape_name: as it is read in a sentence.
        buffer_ranks: ascending.
        compared: two of them, one eight times the other, whose ranks are set against each other.
        buffer_rank: b where r₀ is varied.
        initial_ranks: r₀, all below the fixed points, since no rank ever shrinks; 2 is one of them.
    """

    shape: tuple[int, int]
    shape_name: str
    buffer_ranks: tuple[int, ...]
    compared: tuple[int, int]
    buffer_rank: int
    initial_ranks: tuple[int, ...]


class PublishedRank(NamedTuple):
    """A rank of Table 3, at α `threshold`, beside its null rank; `width` is the total rank of the model's matrices."""

    model: str
    threshold: float
    width: int
    paper: int
    null_rank: float

    @property
    def apart(self) -> float:
        """The paper's rank minus the null rank."""
        return self.paper - self.null_rank


class TrainedRank(NamedTuple):
    """Ranks of cumulative updates at the end of a run, beside their null ranks, means over a group of matrices.

    Attributes:
        model: which.
        seed: of the run.
        multiple: `buffer_rank` over the run's own, one of `MULTIPLES`.
        buffer_rank: b.
        threshold: α.
        definition: of the explained ratio.
        group: `mlp` (`inrank.gpt2.models.TARGETS`) or `all`.
        rank: intrinsic rank.
        highest: the running maximum over the whole run.
        null_rank: of Gaussian matrices.
        rank_over_null_rank: mean of the matrices' ratios.
        highest_over_null: likewise.
    """

    model: str
    seed: int
    multiple: float
    buffer_rank: int
    threshold: float
    definition: Definition
    group: Group
    rank: float
    highest: float
    null_rank: float
    rank_over_null_rank: float
    highest_over_null: float


def published_ranks(models: Sequence[str]) -> list[PublishedRank]:
    """Table 3's ranks beside what the published rule grows untrained factors to, averaged as the paper averages.

    >>> [one.null_rank for one in published_ranks(["small"])]
    [152.0, 192.0, 254.5]
    """
    found = []
    for size in (PAPER_SIZES[model] for model in models):
        for threshold, rank in TABLE_3[size.name].items():
            rule = (threshold, BUFFER_RANK, *RULES[PUBLISHED])
            mean = fmean(null_rank(*shape, *rule) for shape in size.mlp_shapes.values())
            found.append(PublishedRank(size.name, threshold, size.width, rank, mean))
    return found


def over_buffer_ranks(sweep: Sweep, thresholds: Sequence[float]) -> NullRanks:
    """Null ranks by each of `RULES`, α and b."""
    return {
        (name, threshold): {b: null_rank(*sweep.shape, threshold, b, *rule) for b in sweep.buffer_ranks}
        for name, rule in RULES.items()
        for threshold in thresholds
    }


def over_initial_ranks(sweep: Sweep, rule: str, threshold: float) -> list[int]:
    """Where untrained factors end that start at each of the sweep's r₀."""
    options = (threshold, sweep.buffer_rank, *RULES[rule])
    return [null_rank(*sweep.shape, *options, initial_rank=initial) for initial in sweep.initial_ranks]


def growth(nulls: NullRanks, sweep: Sweep, rule: str) -> float:
    """Null rank at the larger of the compared b over that at the smaller, at the paper's α."""
    low, high = sweep.compared
    ranks = nulls[rule, ALPHA]
    return ranks[high] / ranks[low]


def capped(nulls: NullRanks, sweep: Sweep, threshold: float) -> list[int]:
    """The b at which the published code's cap decides and not α: it looks at ranks below min(p, q)/2 − b only."""
    return [b for b, rank in nulls[PUBLISHED, threshold].items() if rank >= min(sweep.shape) // 2 - b - 1]


def trained_ranks(run: Run, model: str, seed: int, thresholds: Sequence[float]) -> list[TrainedRank]:
    """Ranks at the end of a run for each of `MULTIPLES`, each α and both definitions and groups.

    A matrix whose update was not finite at the end is left out.

    Args:
        run: finished.
        model: its name.
        seed: its seed.
        thresholds: α.

    Raises:
        ValueError: no matrix is one of an MLP, or none of these is finite at the end.
    """
    names = [str(name) for name in run.matrices.index]
    mlp = mlp_matrices(run)
    if not mlp:
        raise ValueError(f"a matrix of {run.name} must match {TARGETS}, got {', '.join(names)}")
    groups: dict[Group, list[str]] = {"mlp": mlp, "all": names}
    own = run.buffer_rank
    if own is None:
        raise ValueError(f"the matrices of {run.name} must have one buffer_rank, got several")
    found = []
    for multiple in MULTIPLES:
        b = max(1, round(own * multiple))
        for threshold in thresholds:
            for definition in _DEFINITIONS:
                ranks = _last_ranks(run, RankRule(threshold, b, definition))
                if not any(name in ranks for name in mlp):
                    raise ValueError(f"the updates of {run.name} must be finite at its end, got none in {TARGETS}")
                found += [
                    TrainedRank(model, seed, multiple, b, threshold, definition, group, *_means(ranks, members))
                    for group, members in groups.items()
                ]
    return found


def _last_ranks(run: Run, rule: RankRule) -> dict[str, tuple[int, int, int]]:
    """Intrinsic, running and null rank of each matrix with a finite update at the last snapshot."""
    table = recompute(run, rule)
    last = table[(table["step"] == table["step"].max()) & table["intrinsic_rank"].notna()]
    columns = (last[name].astype(int) for name in ("intrinsic_rank", "running_rank", "null_rank"))
    return dict(zip(last["matrix"].astype(str), zip(*columns, strict=True), strict=True))


def _means(ranks: Mapping[str, tuple[int, int, int]], members: Sequence[str]) -> tuple[float, ...]:
    """Of `TrainedRank`'s last five numbers."""
    chosen = [ranks[name] for name in members if name in ranks]
    rank, highest, null = (fmean(values) for values in zip(*chosen, strict=True))
    return rank, highest, null, fmean(a / n for a, _, n in chosen), fmean(a / n for _, a, n in chosen)
