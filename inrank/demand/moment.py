"""When a dense training goes on in factors: at a step, at a share of the steps, or when measured ranks have settled.

Pure: it is told steps and ranks, and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LEAST_SNAPSHOTS = 3


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Ranks have settled where they stayed within a tenth of each other over the last tenth of the training.

    The rank is the energy rank of ΔW, how many singular values hold 90 % of ‖ΔW‖²_F, averaged over the weights that are
    to be factorized. It falls as the update gathers in few directions, fast at first, and moves in small steps even
    where the paper's intrinsic rank is 2 or 3 and moves by halves. The rule is ours; the paper has none.

    Attributes:
        within: (largest − smallest) / largest of the mean ranks in the window may be at most this, in (0, 1).
        window: how far back, as a share of all steps, in (0, 1); at least three snapshots must lie in it, or one before
            it, so that it is looked at whole.
        earliest: share of the steps before which nothing happens, in [0, 1).
        latest: share of the steps at which it happens though nothing has settled, in (0, 1). None: then it does not
            happen, and the log says so when training ends.

    Raises:
        ValueError: an option out of range, or `latest` before `earliest`.
    """

    within: float = 0.1
    window: float = 0.1
    earliest: float = 0.1
    latest: float | None = 0.5

    def __post_init__(self) -> None:
        for name in ("within", "window"):
            _check_share(name, getattr(self, name))
        if self.earliest != 0:
            _check_share("earliest", self.earliest)
        if self.latest is not None:
            _check_share("latest", self.latest)
            if self.latest < self.earliest:
                raise ValueError(f"latest must not be before earliest, {self.earliest:g}, got {self.latest:g}")

    def spread(self, steps: Sequence[int], ranks: Sequence[float], total_steps: int) -> float | None:
        """(largest − smallest) / largest of the ranks in the window that ends with the last snapshot.

        Args:
            steps: of the snapshots, ascending.
            ranks: the mean rank at each.
            total_steps: of the training.

        Returns:
            None where the snapshots do not reach back over the whole window, or are fewer than three. 0 where nothing
            has been learnt.
        """
        if not steps:
            return None
        begins = steps[-1] - self.window * total_steps
        before = [place for place, step in enumerate(steps) if step <= begins]
        if not before:
            return None
        seen = ranks[before[-1] :]
        if len(seen) < LEAST_SNAPSHOTS:
            return None
        return (max(seen) - min(seen)) / max(seen) if max(seen) > 0 else 0.0

    def is_settled(self, steps: Sequence[int], ranks: Sequence[float], total_steps: int) -> bool:
        """Whether they have; see `spread`.

        >>> Settled().is_settled([60, 70, 80], [25.0, 24.0, 23.0], total_steps=200)
        True
        """
        spread = self.spread(steps, ranks, total_steps)
        return spread is not None and spread <= self.within


At = int | float | Literal["settled"] | Settled


@dataclass(frozen=True)
class Moment:
    """When it happens.

    Attributes:
        at: an integer: after this step; a share in (0, 1) of `total_steps`; `"settled"`, or a `Settled` of one's own.
        total_steps: of the training; needed for everything but a step.
        every: steps between looks at the ranks.

    Raises:
        ValueError: an argument out of range, or missing; a step that lies behind the end of training.
    """

    at: At
    total_steps: int | None = None
    every: int = 25

    def __post_init__(self) -> None:
        check_at(self.at)
        for name, value in (("total_steps", self.total_steps), ("every", self.every)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.total_steps is None and not isinstance(self.at, int):
            raise ValueError(f"at={self.at!r} counts from the length of training: give total_steps")
        if self.step is not None and self.total_steps is not None and self.step >= self.total_steps:
            raise ValueError(f"at must lie before the end of training at step {self.total_steps}, got {self.at!r}")

    @property
    def rule(self) -> Settled | None:
        """What decides where no step is known beforehand."""
        if isinstance(self.at, Settled):
            return self.at
        return Settled() if self.at == "settled" else None

    @property
    def step(self) -> int | None:
        """After which it happens; None where ranks decide."""
        if isinstance(self.at, float):
            return self._step_of(self.at)
        return self.at if isinstance(self.at, int) else None

    @property
    def latest(self) -> int | None:
        """The step at which it happens whatever the ranks; None: never."""
        if self.rule is None:
            return self.step
        return None if self.rule.latest is None else self._step_of(self.rule.latest)

    def is_look(self, step: int) -> bool:
        """Whether the ranks are looked at after this step."""
        if self.rule is None:
            return False
        begun = self.rule.earliest == 0 or step >= self._step_of(self.rule.earliest)
        return begun and (step % self.every == 0 or step == self.latest)

    def _step_of(self, share: float) -> int:
        assert self.total_steps is not None
        return max(1, round(share * self.total_steps))


def check_at(at: object) -> None:
    """Raise a ValueError unless it says when."""
    if isinstance(at, Settled) or at == "settled":
        return
    if isinstance(at, bool) or not isinstance(at, int | float):
        raise ValueError(f"at must be a step, a share of the steps in (0, 1), 'settled' or a Settled, got {at!r}")
    if isinstance(at, int) and at < 1:
        raise ValueError(f"at must be a step of at least 1, or a share of the steps in (0, 1), got {at!r}")
    if isinstance(at, float) and not 0 < at < 1:
        raise ValueError(f"at must be a share of the steps in (0, 1), or a step as an integer, got {at!r}")


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ValueError(f"{name} must be a share in (0, 1), got {value!r}")
