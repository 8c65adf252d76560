"""Tables of `null-ranks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inrank.experiments.null_ranks.numbers import NullRanks, PublishedRank, Sweep, TrainedRank
from inrank.reproduction.experiment import Table
from inrank.reproduction.verdicts import spread

_DEFINITIONS = {"paper": "eq. 7", "reference": "published code"}


def published_table(published: Sequence[PublishedRank], tolerance: float) -> Table:
    """Which rank of Table 3 says anything about training."""
    rows = []
    for one in published:
        says = "no: noise gets it too" if abs(one.apart) <= tolerance else f"yes: {one.apart:+g} from noise"
        shares = [f"{rank / one.width:.1%}" for rank in (one.paper, one.null_rank)]
        ranks = [str(one.paper), f"{one.null_rank:g}", f"{one.apart:+g}"]
        rows.append([f"GPT-2 {one.model}", f"{one.threshold:g}", *ranks, *shares, says])
    return Table(
        "Which rank of the paper's Table 3 says anything about training",
        ["model", "α", "Table 3", "null rank", "difference", "of the width", "null, of the width", "says anything"],
        rows,
        "Null rank: the published rule at b = 100 on random factors without data or training, from rank 2 until it "
        "asks for no more; the median of five draws, averaged over the MLP matrices as the paper's ranks are.",
    )


def sweep_table(nulls: NullRanks, sweep: Sweep) -> Table:
    """Null rank over b."""
    at = sweep.buffer_rank
    rows = [
        [rule, f"{threshold:g}", *map(str, ranks.values()), f"{ranks[at] / at:.2f}"]
        for (rule, threshold), ranks in nulls.items()
    ]
    return Table(
        f"Null rank over b, {sweep.shape_name}",
        ["rule, matrix", "α", *(f"b = {b}" for b in sweep.buffer_ranks), f"rank / b at b = {at}"],
        rows,
        "The published code takes the variance over all min(p, q) values, so for a whole Gaussian matrix b has no part "
        "in it; on factors of rank + b columns it has, and the rank stays below min(p, q)/2 − b.",
    )


def start_table(starts: Mapping[str, Sequence[int]], sweep: Sweep, threshold: float) -> Table:
    """Null rank over r₀."""
    return Table(
        f"Null rank over the initial rank r0, {sweep.shape_name}, α = {threshold:g}, b = {sweep.buffer_rank}",
        ["rule, matrix", *(f"r0 = {initial}" for initial in sweep.initial_ranks)],
        [[rule, *map(str, ranks)] for rule, ranks in starts.items()],
        "The rank of a dense update, the least r that explains it, has no r0.",
    )


def trained_table(trained: Sequence[TrainedRank], sizes: Mapping[str, str]) -> Table:
    """Ranks of trained updates at the b of their run beside their null ranks; `sizes` names the models."""
    cells: dict[tuple[str, str, float], dict[str, list[TrainedRank]]] = {}
    for one in trained:
        if one.multiple == 1:
            groups = cells.setdefault((one.model, one.definition, one.threshold), {"mlp": [], "all": []})
            groups[one.group].append(one)
    rows = []
    for (model, definition, threshold), groups in cells.items():
        mlp, every = groups["mlp"], groups["all"]
        numbers = [
            *([one.rank for one in mlp], [one.highest for one in mlp], [one.null_rank for one in mlp]),
            *([one.rank_over_null_rank for one in mlp], [one.rank for one in every], [one.null_rank for one in every]),
            *([one.rank_over_null_rank for one in every], [one.highest_over_null for one in every]),
        ]
        rule = [sizes[model], _DEFINITIONS[definition], f"{threshold:g}", str(mlp[0].buffer_rank)]
        rows.append([*rule, *map(spread, numbers)])
    mlp_heads = ["MLP: rank", "highest", "null rank", "rank / null"]
    all_heads = ["all: rank", "null rank", "rank / null", "highest / null"]
    return Table(
        "Ranks of W_t − W0 after ordinary training",
        ["model", "explained ratio", "α", "b", *mlp_heads, *all_heads],
        rows,
        "Means over the MLP matrices, and over all watched ones. Highest: over the whole training, what a rank that "
        "never shrinks would have reached. Null rank: of a Gaussian matrix of the same shape.",
    )
