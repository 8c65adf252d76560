"""What the paper says about Theorem 2 and Figure 2, with verdicts. Limits were chosen before any number was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from inrank.experiments.theorem_2.flows import agreement, beyond_capacity, growth_rates, random_sets, residual
from inrank.experiments.theorem_2.order import drawn, misfit, negative_share, update_rank
from inrank.reproduction.experiment import Statement
from inrank.reproduction.verdicts import Sample, is_below, is_less, is_not_above, is_within
from inrank.theory import learning_time

Cells = Mapping[tuple[float, float], Sequence[Mapping[str, float]]]
SLOPES = tuple(i / 10 for i in range(1, 11))  # a: the paper's 0.1 to 1.0
SPREADS = (0.01, 0.1, 1.0)  # b: the paper says only that it varies
SMALL_START = 0.1  # u0 ≪ s: b is at most this part of the weakest s, which is a
IN_ORDER = -0.9  # rank correlation below which modes are said to be learned strongest first
ONE_BY_ONE = 0.5  # effective rank of D_t at the strongest mode's half, over the final: ranks are added
RANK_MARGIN = 0.5  # D_t may have half more effective rank than the target
FLOW_TOLERANCE, RESIDUAL_TOLERANCE = 1e-3, 1e-8


@dataclass(frozen=True)
class Scale:
    """What differs between scales. The paper has 10 modes and no training; a small η makes descent nearly flow.

    Attributes:
        modes: of the target, and hidden units.
        inputs: N_x.
        outputs: N_y.
        rate: η.
        steps: of the training.
        snapshots: about so many.
        sets: integrated and compared.
        draws: of u0, for each a and b.
    """

    modes: int
    inputs: int
    outputs: int
    rate: float
    steps: int
    snapshots: int
    sets: int
    draws: int


def exact(scale: Scale) -> list[Statement]:
    """What needs no seeds: the theorem itself."""
    sets = random_sets(scale.sets, scale.modes, seed=0)
    kept, beyond = beyond_capacity(scale.modes, seed=0)
    rates, expected = growth_rates(scale.modes)
    return [
        is_within(
            f"Theorem 2: every mode of D_t follows eq. 4 (balanced start, {scale.sets} random sets of s and u0)",
            _rounded(agreement(sets)["balanced"]),
            [0.0],
            FLOW_TOLERANCE,
            "largest difference of the integrated flow (eq. 8) from eq. 4, over s",
        ),
        is_within(
            "Eq. 4 solves eq. 12 (appendix A)",
            _rounded(residual(sets)),
            [0.0],
            RESIDUAL_TOLERANCE,
            "largest residual of eq. 12 by automatic differentiation, over s²",
        ),
        is_within(
            "Eq. 3: of more modes than hidden units the strongest are learned, the others never (these start at 0)",
            _rounded(kept, beyond),
            [0.0, 0.0],
            FLOW_TOLERANCE,
            "largest error of a mode with a hidden unit, and largest strength of one without, over s",
        ),
        is_within(
            "Section 4: a stronger mode gains on a weaker one exponentially, as long as u ≪ s",
            _rounded(float((rates / expected - 1).abs().max())),
            [0.0],
            0.01,
            "largest deviation of a mode's rate of growth in the integrated flow from 2s/τ, as a share of it",
        ),
    ]


def _rounded(*values: float) -> list[float]:
    """For print: three digits."""
    return [float(f"{value:.3g}") for value in values]


def trained(trained: Sequence[Mapping[str, float]]) -> list[Statement]:
    """Gradient descent with a tracker, one network a seed; what is allowed is first order in its step size."""
    allowed = trained[0]["allowed"]
    return [
        is_below(
            "Theorem 2 in gradient descent, where τ = 1/η: the product's modes follow eq. 4",
            Sample("largest difference from eq. 4, over s", [one["modes"] for one in trained]),
            allowed,
            "2 η s of the strongest",
        ),
        is_below(
            "The same seen layer by layer, as the tracker sees it: σ of each layer's update is √u − √u0",
            Sample("largest difference, over the largest √s", [one["layers"] for one in trained]),
            allowed,
            "2 η s of the strongest",
        ),
        is_below(
            "Gradient descent learns strong modes first (b a tenth of the weakest s)",
            Sample("rank correlation of a mode's time to half with s", [one["order"] for one in trained]),
            IN_ORDER,
            "nearly in order (chance: 0)",
        ),
    ]


def ordered(cells: Cells) -> list[Statement]:
    """Figure 2, where u0 ≪ s and everywhere: the worst cell of each seed."""
    small = [cell for cell in cells if cell[1] <= SMALL_START * cell[0] * (1 + 1e-9)]
    found = []
    for which, where in (
        (small, "where u0 ≪ s (b at most a tenth of the weakest s)"),
        (list(cells), "for all a and b"),
    ):
        for number, name, limit, what in (
            ("order", "rank correlation of time to half with s", IN_ORDER, "nearly in order (chance: 0)"),
            ("increment", "effective rank at the strongest mode's half, over the final", ONE_BY_ONE, "half of it"),
        ):
            claim = {"order": "strong modes are learned first", "increment": "ranks are added one after the other"}
            found.append(
                is_below(
                    f"Figure 2: {claim[number]}, {where}",
                    Sample(f"{name}, worst of {len(which)} pairs of a and b", _worst(cells, which, number)),
                    limit,
                    what,
                )
            )
    return found


def _worst(cells: Cells, which: Sequence[tuple[float, float]], number: str) -> list[float]:
    seeds = range(len(cells[which[0]]))
    return [max(cells[cell][seed][number] for cell in which) for seed in seeds]


def speed(scale: Scale, seeds: Sequence[int]) -> list[Statement]:
    """What "exponentially faster" and "a larger u0 is faster" mean for the time that a mode takes."""
    misfits = []
    for seed in seeds:
        s, u0 = drawn(1.0, SPREADS[0], scale.modes, scale.draws, seed)
        misfits.append(misfit(s, learning_time(s, u0)))
    power, exponential = zip(*misfits, strict=True)
    s, u0 = torch.meshgrid(
        torch.linspace(0.1, 10, 100, dtype=torch.float32, device="cpu"),
        torch.logspace(-4, 1, 100, dtype=torch.float32, device="cpu"),
        indexing="ij",
    )
    times = learning_time(s, u0)
    return [
        is_less(
            "Introduction: a mode with a larger s is learned exponentially faster: its time to half falls "
            "exponentially with s, rather than as a power of it",
            Sample("misfit of an exponential law (of ln time, a = 1, b = 0.01)", exponential),
            Sample("misfit of a power law", power),
        ),
        is_within(
            "Section 4: a larger u0 makes a mode faster",
            [float((times.diff(dim=1) < 0).double().mean())],
            [1.0],
            0.0,
            "share of neighbouring u0 (1e-4 to 10, each of 100 s) of which the larger one has the shorter time to half",
        ),
    ]


def needed(scale: Scale, seeds: Sequence[int]) -> list[Statement]:
    """What the theorem needs and does not say, or says and does not hold."""
    unbalanced = [agreement(random_sets(scale.sets, scale.modes, seed, balanced=False)) for seed in seeds]
    return [
        is_below(
            "Theorem 2: eq. 4 holds for any diagonal M¹ and M² (here independent of each other)",
            Sample(
                "largest difference of the integrated flow from eq. 4, over s", [one["balanced"] for one in unbalanced]
            ),
            FLOW_TOLERANCE,
            "the tolerance",
        ),
        is_below(
            "Figure 2: with u0 ~ N(0, b²), signs and all, every mode is learned",
            Sample(
                "share of modes not half learned at three times the time that eq. 4 gives for |u0|",
                [negative_share(SPREADS[0], scale.modes, scale.draws, seed) for seed in seeds],
            ),
            0.01,
            "one in a hundred",
        ),
        *(_low_rank(b, scale, seeds) for b in (SPREADS[0], SPREADS[-1])),
    ]


def _low_rank(b: float, scale: Scale, seeds: Sequence[int]) -> Statement:
    ranks = [update_rank(b, scale.modes, scale.draws, seed) for seed in seeds]
    updates, targets = zip(*ranks, strict=True)
    return is_not_above(
        "Abstract: D_t stays low-rank from any orthogonal start: for a target of rank 3 (s = "
        f"{scale.modes - 2}..{scale.modes}) and b = {b:g}, D_t's effective rank at the end is about the target's",
        Sample("effective rank of D_t", updates),
        Sample("of the target, and of A_t", targets),
        RANK_MARGIN,
    )
