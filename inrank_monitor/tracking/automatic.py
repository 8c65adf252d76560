"""The default schedule: a curve from the first steps on, inside a budget that holds over ten minutes and more."""

from __future__ import annotations

from collections import deque
from math import log

SPENDABLE = 0.75
MINUTE, TWO_MINUTES, TEN_MINUTES = 60.0, 120.0, 600.0
EARLY_POINTS = 22
_AHEAD = 5.0  # where `max_overhead` is 1 %, 5 % of the time may be spent ahead of the ten minutes
_FIRM, _LEAST = 0.9, 0.8  # of the first minute's loan: what is spent beside the last snapshot, and on the first twelve
_NEAREST, _LATER, _FARTHEST = 1.05, 1.2, 1.5  # ratios of steps: at least, from two minutes on, in the early series
_RECENT, _TRIAL = 8, 4


class Automatic:
    """Geometric steps from the first one on, at a cost of at most `max_overhead` over ten minutes and more.

    Ranks move first, so early snapshots are worth most, when little has been earned to pay for them. They are lent what
    ten minutes will earn: in all 3 seconds in the first minute, and 5 % of the time so far up to the tenth (where
    `max_overhead` is 1 %; both grow with it). The early series is laid out in equal ratios of at most 1.5 (1, 2, 3, 5,
    8, 12, 18, 27, ...), so that two minutes hold 20 snapshots or more; in larger ones where that is too dear. What has
    been earned is spent at steps 5 % apart or more. A last snapshot at the end is always paid for, too, and a quarter
    of the budget is left for what the tracker cannot see of its own cost: caches that it empties, cores that its
    thread takes.

    A snapshot is expected to cost what the cheap ones among the last eight did, so that a slow one keeps no other from
    being taken; the dearest of all, which may hold start-up, counts as one of these in the early series, and attaching
    not at all. Later everything counts, and a cost that has risen twice is believed. The first step is always measured:
    it tells the cost. A resumed run has an early series only as far as its steps are early ones.

    Args:
        max_overhead: the tracker's share of wall time, in (0, 1].
    """

    def __init__(self, max_overhead: float = 0.01) -> None:
        if not isinstance(max_overhead, int | float) or not 0 < max_overhead <= 1:
            raise ValueError(f"max_overhead must be in (0, 1], got {max_overhead}")
        self.max_overhead = max_overhead
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._snapshots, self._cost, self._total, self._dearest = 0, 0.0, 0.0, 0.0
        self._own = self._likely = 0.0
        self._origin, self._last_step, self._nearest = 0, 0, 1.0
        self._minute = _AHEAD * max_overhead * MINUTE  # seconds lent to the early series
        self._loan = SPENDABLE * max_overhead * TEN_MINUTES  # seconds lent in all

    def due(self, step: int, elapsed: float, spent: float) -> bool:
        """Whether the step is far enough from the last measured one, and the budget allows it."""
        if self._snapshots == 0:
            return True
        if step < self._nearest:
            return False
        earned = self.max_overhead * elapsed * (SPENDABLE if self._snapshots > 1 else 1.0)
        if spent + 2 * self._likely <= earned:
            return True
        return elapsed < TEN_MINUTES and self._is_far(step, elapsed, spent) and self._is_lent(elapsed, spent)

    def measured(self, step: int, cost: float) -> None:
        """Learn what a snapshot costs, from the cheap side."""
        if self._snapshots == 0:
            self._origin = max(step - 1, 0)
        self._snapshots += 1
        self._last_step, self._nearest = max(step, 1), max(step * _NEAREST, step + 1)
        self._recent.append(cost)
        self._cost = max(sorted(self._recent)[(len(self._recent) - 1) // 4], 1e-9)
        self._likely = max(self._cost, min(cost, self._recent[-2]) if self._snapshots > 1 else cost)
        self._total += cost
        self._dearest = max(self._dearest, cost)
        self._own = self._total - self._dearest + self._cost

    def _is_far(self, step: int, elapsed: float, spent: float) -> bool:
        """Whether the step is where equal ratios put the next snapshot: the early series', or what the loan affords.

        With n to come until step S, it is if (step / last)ⁿ ≥ S / last.
        """
        last, cost, taken = self._last_step, self._cost, self._snapshots
        pace = (step - self._origin) / max(elapsed - spent, elapsed / 10, 1e-6)
        grown = log(step / last)

        def is_far(seconds: float, snapshots: float) -> bool:
            return grown * max(snapshots, 1) >= log(max(self._origin + pace * seconds, step) / last)

        if elapsed >= TWO_MINUTES:
            if step < last * _LATER:
                return False
        elif step < last * _FARTHEST:
            wanted = max(EARLY_POINTS, SPENDABLE * self.max_overhead * TWO_MINUTES / cost)
            if not is_far(TWO_MINUTES, wanted - taken):
                return False
        if self._is_promised(elapsed, spent) or (taken == 1 and step >= last * _TRIAL):
            return True
        minute = (min(_FIRM * self._minute, self._minute - cost) if taken > 1 else self._minute) - self._own
        affordable = is_far(TEN_MINUTES, 1 + max(self._loan - spent, minute) // cost)
        return affordable and (elapsed >= MINUTE or is_far(MINUTE, 1 + minute // cost))

    def _is_promised(self, elapsed: float, spent: float) -> bool:
        """Whether the next one is among those that any run has which can pay for them all.

        They are 12 in the first 200 steps and 20 in two minutes.
        """
        if elapsed >= MINUTE:
            missing, left = 20 - self._snapshots if elapsed < TWO_MINUTES else 0, self._loan - spent
        else:
            missing, left = 12 - self._snapshots if self._last_step <= 200 else 0, _LEAST * self._minute - self._own
        return self._snapshots > 1 and missing > 0 and missing * self._cost <= left

    def _is_lent(self, elapsed: float, spent: float) -> bool:
        """Whether a snapshot and a last one may be paid for ahead.

        The early series has its own share, that of the first minute, whatever attaching or one slow snapshot took. Of a
        first snapshot's cost much may be start-up: a second one is tried as soon as it fits by itself.
        """
        cost, own = self._cost, self._own
        ten = self.max_overhead * TEN_MINUTES
        lent = min(_AHEAD * self.max_overhead * max(elapsed, MINUTE), ten)
        if self._snapshots == 1:
            return 2 * cost <= lent and (elapsed < MINUTE or 3 * cost <= ten)
        if own + cost <= _FIRM * self._minute and own + 2 * cost <= self._minute:
            return True
        return spent + cost <= min(_FIRM * lent, self._loan) and spent + 2 * cost <= lent
