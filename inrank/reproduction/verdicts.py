"""From numbers over seeds to a verdict. Pure functions.

A difference counts if its 95 % interval over the seeds (Student's t; paired, since the same seed gives both sides the
same data and order) leaves zero out. So with three seeds it must exceed about 2.5 standard deviations: what does not is
within noise. One seed decides nothing.

References:
    Student 1908, The probable error of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from inrank.reproduction.experiment import Statement, Verdict

# 97.5 % quantile of Student's t by degrees of freedom; the normal one beyond
_STUDENT = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004),
    *(2.262157, 2.228139, 2.200985, 2.178813, 2.160369, 2.144787, 2.131450),
)
_NORMAL = 1.959964
ONE_SEED = "one seed: its spread over seeds is not known (--seeds 3)"


@dataclass(frozen=True)
class Sample:
    """One number over seeds.

    Attributes:
        name: what it is, as it is read in a sentence: "stable rank, GRU".
        values: a seed each, in the order of the seeds.
        form: how to write one value.
    """

    name: str
    values: Sequence[float]
    form: str = ".3g"

    @property
    def text(self) -> str:
        """`12.3 ± 0.4`."""
        return spread(self.values, self.form)

    @property
    def named(self) -> str:
        """With its name."""
        return f"{self.name} {self.text}"


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Mean ± standard deviation (n − 1); the mean alone for one seed, or where all seeds agree."""
    if not values:
        return "–"
    mean = format(fmean(values), form)
    return mean if min(values) == max(values) else f"{mean} ± {stdev(values):.2g}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, by Student's t; infinite for one value.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"values must be finite numbers, at least one, got {list(values)}")
    if len(values) == 1:
        return -math.inf, math.inf
    freedom = len(values) - 1
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
    half = quantile * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def is_below(claim: str, sample: Sample, limit: float, what: str, *, paper: str = "–") -> Statement:
    """The claim that a number lies below a limit, which `what` names ("half of noise's")."""
    evidence = _Evidence(sample.named, [value - limit for value in sample.values], [sample])
    return _judge(claim, paper, evidence, f"{what}, {limit:.3g}")


def is_less(claim: str, first: Sample, second: Sample, *, paper: str = "–") -> Statement:
    """The claim that the first is less than the second, compared seed by seed."""
    ours = f"{first.named}; {second.named}"
    return _judge(claim, paper, _Evidence(ours, _differences(first, second), [first, second]), "the other")


def is_not_above(claim: str, first: Sample, second: Sample, margin: float, *, paper: str = "–") -> Statement:
    """The claim that the first is no larger than the second by more than a share of it (0.02: two per cent)."""
    shares = [a / b - 1 for a, b in zip(first.values, second.values, strict=True)]
    ours = f"{first.named}; {second.named} ({_percent(fmean(shares))})"
    beyond = [share - margin for share in shares]
    return _judge(claim, paper, _Evidence(ours, beyond, [first, second]), f"the other by at most {margin:.0%}")


def is_within(claim: str, ours: Sequence[float], paper: Sequence[float], tolerance: float, what: str) -> Statement:
    """The claim that numbers without a spread (computed, not trained) equal the paper's up to a tolerance."""
    worst = max(abs(a - b) for a, b in zip(ours, paper, strict=True))
    verdict: Verdict = "agrees" if worst <= tolerance else "disagrees"
    written = ["/".join(f"{value:,.10g}" for value in values) for values in (paper, ours)]
    why = f"{what}: at most {worst:.3g} apart, allowed {tolerance:.3g}; computed, so there is no spread"
    return Statement(
        claim=claim, paper=written[0], ours=written[1], verdict=verdict, why=why, values={what: list(ours)}
    )


def all_of(claim: str, parts: Sequence[Statement], *, paper: str = "–") -> Statement:
    """A claim that holds where each of several does; their claims name them in a word. The worst verdict counts."""
    order: tuple[Verdict, ...] = ("disagrees", "not tested", "within noise", "agrees")
    verdict = min((part.verdict for part in parts), key=order.index)
    ours = "; ".join(part.ours for part in parts)
    why = "; ".join(f"{part.claim} {part.verdict}: {part.why}" for part in parts)
    values = {name: numbers for part in parts for name, numbers in part.values.items()}
    return Statement(claim=claim, paper=paper, ours=ours, verdict=verdict, why=why, values=values)


def not_tested(claim: str, why: str, *, paper: str = "–", ours: str = "–") -> Statement:
    """A claim that this scale or this machine cannot decide."""
    return Statement(claim=claim, paper=paper, ours=ours, verdict="not tested", why=why)


def _differences(first: Sample, second: Sample) -> list[float]:
    return [a - b for a, b in zip(first.values, second.values, strict=True)]


@dataclass(frozen=True)
class _Evidence:
    """What we found: in words; differences, a seed each, below zero where the claim holds; of which samples."""

    ours: str
    differences: Sequence[float]
    samples: Sequence[Sample]


def _judge(claim: str, paper: str, evidence: _Evidence, limit: str) -> Statement:
    """A statement that holds where the differences are below zero; `limit` names what they are from."""
    ours, differences = evidence.ours, evidence.differences
    values = {sample.name: list(sample.values) for sample in evidence.samples}
    if len(differences) < 2:
        return Statement(claim=claim, paper=paper, ours=ours, verdict="not tested", why=ONE_SEED, values=values)
    low, high = interval(differences)
    verdict: Verdict = "agrees" if high < 0 else "disagrees" if low > 0 else "within noise"
    where = {"agrees": "below", "disagrees": "above", "within noise": "not apart from"}[verdict]
    why = f"{where} {limit}: difference {fmean(differences):+.3g}, 95 % interval {low:+.3g} to {high:+.3g}"
    return Statement(
        claim=claim, paper=paper, ours=ours, verdict=verdict, why=f"{why} over {len(differences)} seeds", values=values
    )


def _percent(share: float) -> str:
    return f"{share:+.1%}"
