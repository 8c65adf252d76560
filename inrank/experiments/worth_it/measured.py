"""What the finished trainings say of each arm: best rate, seeds, numbers; also where only some are there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from inrank.experiments.worth_it.arms import DENSE, DENSE_SCHEDULED, Arm
from inrank.experiments.worth_it.plan import SCALES, Seed, arms_of
from inrank.reproduction.experiment import Outcome, Outcomes, Request
from inrank.reproduction.verdicts import Sample


@dataclass(frozen=True)
class Row:
    """One arm.

    Attributes:
        arm: which.
        by_seed: its finished training of each seed; of the first seed that at the best rate.
        by_rate: loss on the validation part of the first seed, by learning rate.
    """

    arm: Arm
    by_seed: Mapping[int, Outcome]
    by_rate: Mapping[float, float]

    @property
    def rate(self) -> float:
        """The best."""
        return min(self.by_rate, key=self.by_rate.__getitem__)

    def values(self, name: str) -> list[float]:
        """A number of `training.train`, a seed each."""
        return [float(one.numbers[name]) for one in self.by_seed.values()]

    def perplexity(self) -> Sample:
        """On the test part."""
        return Sample(self.arm.label, [math.exp(loss) for loss in self.values("loss")], ".4g")

    def layers(self, what: str) -> dict[str, int]:
        """`rank` or `units` by layer, of the first seed."""
        numbers = next(iter(self.by_seed.values())).numbers
        return {name.split(" ", 1)[1]: int(value) for name, value in numbers.items() if name.startswith(f"{what} ")}


@dataclass(frozen=True)
class Measured:
    """All arms of a request of which at least the first seed is there."""

    request: Request
    rows: Mapping[Arm, Row]

    @classmethod
    def of(cls, request: Request, outcomes: Outcomes) -> Measured:
        """From what is finished."""
        found = {arm: _row(request, outcomes, arm) for arm in arms_of(request)}
        return cls(request, {arm: row for arm, row in found.items() if row is not None})

    def __contains__(self, arm: Arm) -> bool:
        return arm in self.rows

    def pair(self, first: Arm, second: Arm) -> tuple[Sample, Sample]:
        """Perplexities of the seeds that both have."""
        rows = self.rows[first], self.rows[second]
        seeds = [seed for seed in rows[0].by_seed if seed in rows[1].by_seed]
        one, other = (
            Sample(row.arm.label, [math.exp(row.by_seed[seed].numbers["loss"]) for seed in seeds], ".4g")
            for row in rows
        )
        return one, other

    @property
    def best_dense(self) -> Arm | None:
        """The dense arm with the lower loss on the validation part, over the seeds that both have; None without any."""
        there = [arm for arm in (DENSE, DENSE_SCHEDULED) if arm in self.rows]
        if not there:
            return None
        seeds = set.intersection(*(set(self.rows[arm].by_seed) for arm in there))

        def loss(arm: Arm) -> float:
            return fmean(self.rows[arm].by_seed[seed].numbers["validation"] for seed in seeds)

        return min(there, key=loss)

    def rates_left(self, arm: Arm) -> int:
        """How many learning rates the arm has not been trained at."""
        return len(SCALES[self.request.scale]["rates"]) - len(self.rows[arm].by_rate)


def _row(request: Request, outcomes: Outcomes, arm: Arm) -> Row | None:
    first, *others = (Seed(request, seed) for seed in request.seeds)
    tried = [outcomes[one.name] for one in first.trainings(arm) if one.name in outcomes]
    if not tried:
        return None
    best = min(tried, key=lambda outcome: outcome.numbers["validation"])
    later = {seed.seed: outcomes.get(seed.trainings(arm)[0].name) for seed in others}
    return Row(
        arm,
        {first.seed: best} | {seed: outcome for seed, outcome in later.items() if outcome is not None},
        {float(one.numbers["rate"]): float(one.numbers["validation"]) for one in tried},
    )
