"""What the finished trainings say of each arm: best rate, seeds, numbers; also where only some are there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        by_rate: the first seed's finished trainings by learning rate.
    """

    arm: Arm
    by_seed: Mapping[int, Outcome]
    by_rate: Mapping[float, Outcome]

    @property
    def rate(self) -> float:
        """The best."""
        return best_rate(self.by_rate)

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
        """Perplexities of the seeds that both have; of the first seed, each at its best of the rates that both have.

        So an arm that was tried at one rate only is not beside another's best of four.
        """
        one, other = (self._among(arm, self.common_rates(first, second)) for arm in (first, second))
        seeds = [seed for seed in one if seed in other]
        samples = [
            Sample(arm.label, [math.exp(found[seed].numbers["loss"]) for seed in seeds], ".4g")
            for arm, found in ((first, one), (second, other))
        ]
        return samples[0], samples[1]

    def common_rates(self, first: Arm, second: Arm) -> list[float]:
        """At which the first seed of both is finished."""
        return [rate for rate in self.rows[first].by_rate if rate in self.rows[second].by_rate]

    def _among(self, arm: Arm, rates: Sequence[float]) -> dict[int, Outcome]:
        """By seed, the first one at the best of some rates; it is missing where there are none."""
        row, (first, *_) = self.rows[arm], self.request.seeds
        found = dict(row.by_seed)
        tried = {rate: row.by_rate[rate] for rate in rates}
        if not tried:
            return {seed: outcome for seed, outcome in found.items() if seed != first}
        return found | {first: tried[best_rate(tried)]}

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

    @property
    def rates(self) -> Sequence[float]:
        """At which each arm is to be trained."""
        return tuple(SCALES[self.request.scale]["rates"])


def _row(request: Request, outcomes: Outcomes, arm: Arm) -> Row | None:
    first, *others = (Seed(request, seed) for seed in request.seeds)
    there = [outcomes[one.name] for one in first.trainings(arm) if one.name in outcomes]
    if not there:
        return None
    tried = {float(one.numbers["rate"]): one for one in there}
    later = {seed.seed: outcomes.get(seed.trainings(arm)[0].name) for seed in others}
    return Row(
        arm,
        {first.seed: tried[best_rate(tried)]} | {seed: one for seed, one in later.items() if one is not None},
        tried,
    )


def best_rate(tried: Mapping[float, Outcome]) -> float:
    """That of the lowest loss on the validation part."""
    return min(tried, key=lambda rate: tried[rate].numbers["validation"])
