"""`null-ranks`: the paper's ranks beside what its rule gives factors that nobody trains.

The rule of eq. 7 gives a rank to noise too. So every rank of Table 3 is set beside its null rank, the dependence on b
and r₀ is measured where nothing is trained, and the ranks of really trained updates are set beside theirs.

What counts was settled before any number was seen: `NULL_TOLERANCE`, `INSENSITIVE` and `concentration.LOW_RANK`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inrank.experiments.gpt2.trainings import MODELS, SIZES, THRESHOLDS, over_seeds
from inrank.experiments.null_ranks import figures, tables
from inrank.experiments.null_ranks.numbers import (
    ALPHA,
    EQUATION,
    IN_USE,
    MULTIPLES,
    PUBLISHED,
    Group,
    NullRanks,
    PublishedRank,
    Sweep,
    TrainedRank,
    capped,
    growth,
    over_buffer_ranks,
    over_initial_ranks,
    published_ranks,
    trained_ranks,
)
from inrank.reproduction.concentration import LOW_RANK
from inrank.reproduction.experiment import Experiment, Figure, Findings, Outcomes, Request, Statement, Training
from inrank.reproduction.verdicts import Sample, is_below, is_within, not_tested, spread

NULL_TOLERANCE = 2.0  # ranks: the scatter of a draw
SHARE_TOLERANCE = 1.0  # per cent of the width
INSENSITIVE = 1.5  # eight times the b may change the rank by half at most; in proportion it would be 8
_GPT2_SMALL = Sweep(
    (3072, 768), "c_fc of GPT-2 small", (10, 25, 50, 100, 150, 200), (25, 200), 100, (1, 2, 10, 50, 100)
)
_SWEEPS = {"smoke": Sweep((384, 96), "a 384×96 matrix", (3, 6, 12, 24), (3, 24), 12, (1, 2, 4, 8))}
_COMPARED = {"smoke": ("small",)}  # models whose ranks of Table 3 are looked at; elsewhere all of them
_TRAINED = {"smoke": ("small",), "tiny": MODELS, "small": MODELS, "paper": ("small",)}
_NOT_HERE = "GPT-2 of this size cannot be trained without a GPU (--device cuda, or --scale tiny)"


def trainings(request: Request) -> Sequence[Training]:
    """Ordinary dense training of GPT-2: the baselines of Table 1."""
    return [one for model in _TRAINED[request.scale] for one in over_seeds(request, model, "baseline")]


def analyse(request: Request, outcomes: Outcomes) -> Findings:
    """Compute the null ranks, draw the trained ones from the runs."""
    sweep = _SWEEPS.get(request.scale, _GPT2_SMALL)
    published = published_ranks(_COMPARED.get(request.scale, MODELS))
    nulls = over_buffer_ranks(sweep, THRESHOLDS)
    starts = {rule: over_initial_ranks(sweep, rule, ALPHA) for rule in (PUBLISHED, EQUATION)}
    trained = _trained(request, outcomes)
    sizes = SIZES[request.scale]
    size = sizes[_TRAINED[request.scale][-1]]
    return Findings(
        reading=reading(published, nulls, sweep, trained, size),
        statements=[
            *published_statements(published),
            *_sweep_statements(nulls, sweep),
            *_start_statements(starts, sweep),
            *trained_statements(trained, size),
        ],
        tables=[
            tables.published_table(published, NULL_TOLERANCE),
            tables.sweep_table(nulls, sweep),
            tables.start_table(starts, sweep, ALPHA),
            *([tables.trained_table(trained, sizes)] if trained else []),
        ],
        figures=[
            figures.published_against_null(published),
            figures.null_over_buffer_rank(nulls, sweep, ALPHA),
            figures.null_over_thresholds(nulls, sweep),
            *(_trained_figures(request, outcomes, trained) if trained else []),
        ],
    )


def published_statements(published: Sequence[PublishedRank]) -> list[Statement]:
    """That Table 3 is noise's, and so is the share of the total rank."""
    models = "/".join(dict.fromkeys(one.model for one in published))
    chosen = [one for one in published if one.threshold == ALPHA]
    return [
        is_within(
            "Beyond the paper: the ranks of Table 3 are those that its rule gives random factors without data or "
            f"training (GPT-2 {models}, α = .8/.85/.9 each)",
            [one.null_rank for one in published],
            [one.paper for one in published],
            NULL_TOLERANCE,
            "ranks",
        ),
        is_within(
            "Beyond the paper: the share of the total rank that is said to be enough (abstract, section 6.3: at most "
            f"33 %) is that of untrained factors (GPT-2 {models}, α = 0.9, per cent of the width)",
            [round(100 * one.null_rank / one.width, 1) for one in chosen],
            [round(100 * one.paper / one.width, 1) for one in chosen],
            SHARE_TOLERANCE,
            "per cent of the width",
        ),
    ]


def _sweep_statements(nulls: NullRanks, sweep: Sweep) -> list[Statement]:
    low, high = sweep.compared
    what = f"ratio, 1 if b had no part, {high // low} if the rank went with b"
    cut = f"; at b = {high} the published code's cap, min(p, q)/2 − b, cuts the rank"
    return [
        is_within(
            f"Section 6: how InRank performs hardly depends on b; ours: null rank at b = {high} over that at "
            f"b = {low} ({rule}, α = 0.9, {sweep.shape_name})",
            [round(growth(nulls, sweep, rule), 2)],
            [1.0],
            INSENSITIVE - 1,
            what + (cut if rule == PUBLISHED and high in capped(nulls, sweep, ALPHA) else ""),
        )
        for rule in IN_USE
    ]


def _start_statements(starts: Mapping[str, Sequence[int]], sweep: Sweep) -> list[Statement]:
    tried = ", ".join(map(str, sweep.initial_ranks))
    return [
        is_within(
            f"Section 6: how InRank performs hardly depends on r0; ours: null ranks from r0 = {tried}, against that "
            f"from 2 ({rule}, α = 0.9, b = {sweep.buffer_rank}, {sweep.shape_name})",
            ranks,
            [ranks[sweep.initial_ranks.index(2)]] * len(ranks),
            NULL_TOLERANCE,
            "ranks",
        )
        for rule, ranks in starts.items()
    ]


def trained_statements(trained: Sequence[TrainedRank], size: str) -> list[Statement]:
    """That b matters little to a trained update's rank, and that this lies far below noise's.

    Args:
        trained: of several models; the last one's are judged, the others stand in the table.
        size: of the last one.
    """
    b_claim = (
        "Section 6: how InRank performs hardly depends on b; ours: rank of W_t − W0 after training at 2 b over that at "
        f"b/4, MLP matrices of {size}"
    )
    claims: dict[Group, str] = {
        "mlp": f"Beyond the paper: updates of training have far lower ranks than noise, MLP matrices of {size}",
        "all": f"Beyond the paper: updates of training have far lower ranks than noise, all watched matrices of {size}",
    }
    if not trained:
        return [not_tested(claim, _NOT_HERE) for claim in (b_claim, *claims.values())]
    high, low = (_judged(trained, "mlp", multiple) for multiple in (MULTIPLES[-1], MULTIPLES[0]))
    ratio = Sample("ratio", [a.rank / b.rank for a, b in zip(high, low, strict=True)])
    limit = f"half as much again (its null rank: {high[0].null_rank / low[0].null_rank:.3g} times)"
    found = [is_below(b_claim, ratio, INSENSITIVE, limit)]
    for group, claim in claims.items():
        sample = Sample("rank / null rank", [one.rank_over_null_rank for one in _judged(trained, group)])
        found.append(is_below(claim, sample, LOW_RANK, "half of the null rank"))
    return found


def _judged(trained: Sequence[TrainedRank], group: Group, multiple: float = 1.0) -> list[TrainedRank]:
    """The last model's at eq. 7 and the paper's α, a seed each."""
    wanted = (trained[-1].model, group, multiple, "paper", ALPHA)
    return [one for one in trained if (one.model, one.group, one.multiple, one.definition, one.threshold) == wanted]


def _trained(request: Request, outcomes: Outcomes) -> list[TrainedRank]:
    """Of every run, model by model and seed by seed; empty where nothing was trained."""
    found = []
    for model in _TRAINED[request.scale]:
        for training in over_seeds(request, model, "baseline"):
            found += trained_ranks(outcomes[training.name].tables, model, training.settings["seed"], THRESHOLDS)
    return found


def _trained_figures(request: Request, outcomes: Outcomes, trained: Sequence[TrainedRank]) -> list[Figure]:
    sizes, largest = SIZES[request.scale], trained[-1].model
    run = outcomes[over_seeds(request, largest, "baseline")[0].name].tables
    return [
        figures.trained_over_buffer_rank(trained, sizes, ALPHA),
        figures.ranks_during_training(run, sizes[largest]),
    ]


def reading(
    published: Sequence[PublishedRank], nulls: NullRanks, sweep: Sweep, trained: Sequence[TrainedRank], size: str
) -> str:
    """What the numbers mean, whichever they are."""
    same = sum(abs(one.apart) <= NULL_TOLERANCE for one in published)
    farthest = max(abs(one.apart) for one in published)
    low, high = sweep.compared
    times = {rule: growth(nulls, sweep, rule) for rule in IN_USE}
    moved = sum(value > INSENSITIVE for value in times.values())
    parts = [
        f"{same} of {len(published)} ranks of Table 3 are, to within {NULL_TOLERANCE:g}, what the paper's rule gives "
        f"random factors without data or training (the farthest is {farthest:g} away)"
        + ("; those cannot be told from noise." if same else "."),
        f"From b = {low} to {high} the null rank becomes "
        + ", ".join(f"{value:.1f} times as large ({rule})" for rule, value in times.items())
        + f": b matters under {moved} of {len(times)} rules.",
    ]
    if trained:
        judged = _judged(trained, "mlp")
        where = {
            "agrees": "less than half of it",
            "disagrees": "more than half of it",
            "within noise": "about half of it, within noise",
            "not tested": "one seed only",
        }[trained_statements(trained, size)[1].verdict]
        parts.append(
            f"Updates of ordinary training ({size}, b = {judged[0].buffer_rank}, MLP matrices) have rank "
            f"{spread([one.rank for one in judged])} where noise has {judged[0].null_rank:g}: {where}."
        )
    return " ".join([*parts, "A rank means nothing without its null rank."])


EXPERIMENTS = {
    "null-ranks": Experiment(
        name="null-ranks",
        title="The paper's ranks beside what its rule gives noise",
        paper="Table 3 gives the ranks at which InRank-Efficient ends, for three sizes of GPT-2 and three thresholds "
        "α, as what training needs. Section 6 calls b = 100 and r0 = 2 insensitive choices. No rank of noise is shown.",
        trainings=trainings,
        analyse=analyse,
    )
}
