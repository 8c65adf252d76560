"""One run for many readers: read once, refreshed by appending, its tables kept for every rule asked for.

A dashboard serves several pages from several threads. Each asks for `tables`, gets the same frames as long as nothing
was added to the run, and must not change them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import pandas as pd

from inrank_monitor.ranks import RankRule
from inrank_monitor.runs.configuration import Configuration, configuration_of
from inrank_monitor.runs.curve import too_few_points
from inrank_monitor.runs.divergence import Divergence, with_divergence
from inrank_monitor.runs.log_files import Status
from inrank_monitor.runs.recomputation import Recomputation, factored_matrices, logged_rule, null_ranks
from inrank_monitor.runs.run import Run, buffer_ranks, open_run
from inrank_monitor.runs.summary import RunSummary
from inrank_monitor.runs.timeline import Timeline, timeline_of

MAX_AGE = 0.5  # seconds between two looks at the disk, however many pages ask
Result = TypeVar("Result")
_RULES_KEPT = 4
_SPECTRA_KEPT = 32


@dataclass(frozen=True, eq=False)  # one state is only like itself: what is made of it can be kept by it
class RunState:
    """A run as it is at one moment, by one rule. The frames are shared: do not change them.

    Attributes:
        version: grows whenever something new was read.
        matrices: with the buffer ranks and null ranks of this rule, and whether the matrix is held in factors.
        diverged: since when, and how it is known; None: it is not.
        problems: what could not be read, in sentences.
        leading: how many singular values were kept; None: all.
        measured: how many of them were measured, where the others are estimates; None: all.
        too_few_points: a sentence or two if it is too sparsely measured for a curve.
        configuration: what it was trained with, as far as that is known.
        timeline: where its steps lie in time, tokens and its training.
    """

    name: str
    version: int
    status: Status
    rule: RankRule
    logged_rule: RankRule
    matrices: pd.DataFrame
    coverage: pd.DataFrame
    measurements: pd.DataFrame
    weights: pd.DataFrame
    directions: pd.DataFrame
    scalars: pd.DataFrame
    events: pd.DataFrame
    diverged: Divergence | None
    loss_ranks: pd.DataFrame
    loss_curve: pd.DataFrame
    width_plans: pd.DataFrame
    problems: list[str]
    leading: int | None
    measured: int | None
    too_few_points: str | None
    configuration: Configuration
    timeline: Timeline

    @property
    def steps(self) -> list[int]:
        """The measured steps."""
        return [int(step) for step in self.measurements["step"].unique()]

    @property
    def marked_events(self) -> pd.DataFrame:
        """The events, and that the run diverged: for figures over steps."""
        return with_divergence(self.events, self.diverged)

    @property
    def divergence_mark(self) -> pd.DataFrame:
        """Of `marked_events` that alone."""
        return with_divergence(self.events.iloc[:0], self.diverged)

    @property
    def last_step(self) -> int:
        """The last step known, measured or logged."""
        known = [int(table["step"].max()) for table in (self.measurements, self.scalars) if len(table)]
        return max(known, default=0)


class SharedRun:
    """A run that several threads read; see `RunState`.

    Args:
        path: of its directory.
        name: what it is called; default: as its directory.

    Raises:
        FileNotFoundError, ValueError: as `open_run`.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._run: Run = open_run(path)
        self._recomputed: OrderedDict[RankRule, Recomputation] = OrderedDict()
        self._tables: dict[RankRule, RunState] = {}
        self._spectra: OrderedDict[tuple[str, str], pd.DataFrame] = OrderedDict()
        self._version = 0
        self._problem: str | None = None
        self._looked = time.monotonic()

    @property
    def logged_rule(self) -> RankRule:
        """The rule that the run was logged with."""
        with self._lock:
            return logged_rule(self._run)

    @property
    def status(self) -> Status:
        """Live, finished or interrupted; interrupted too if the directory is gone."""
        with self._lock:
            try:
                return self._run.status
            except (OSError, ValueError):
                return "interrupted"

    def update(self, max_age: float | None = None) -> bool:
        """Read what was added since; whether there was anything.

        Args:
            max_age: seconds; no look at the disk if the last one was more recent. Default: half a second.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked < (MAX_AGE if max_age is None else max_age):
                return False
            self._looked = now
            identity, before = self._run.info.get("id"), (self._run.status, self._problem)
            try:
                changed = self._run.refresh()
                if self._run.info.get("id") != identity:  # another run was written in its place
                    self._run, changed = open_run(self._run.path), True
                    self._recomputed.clear()
                self._problem = None
            except (OSError, ValueError) as error:
                self._problem, changed = f"{error}; what was read before is shown.", False
            changed |= (self.status, self._problem) != before
            if changed:
                self._version += 1
                self._tables.clear()
                self._spectra.clear()
            return changed

    def tables(self, rule: RankRule | None = None) -> RunState:
        """The run's tables, ranks by `rule` (default: as logged)."""
        with self._lock:
            rule = rule or logged_rule(self._run)
            if rule not in self._tables:
                self._tables[rule] = self._make(rule)
            return self._tables[rule]

    def _make(self, rule: RankRule) -> RunState:
        run = self._run
        if rule not in self._recomputed:
            self._recomputed[rule] = Recomputation(run, rule)
        self._recomputed.move_to_end(rule)
        while len(self._recomputed) > _RULES_KEPT:
            forgotten, _ = self._recomputed.popitem(last=False)
            self._tables.pop(forgotten, None)
        factored = factored_matrices(run)
        matrices = run.matrices.assign(
            buffer_rank=buffer_ranks(run.matrices, rule), null_rank=null_ranks(run, rule, factored), in_factors=factored
        )
        try:
            problems = list(run.problems)
        except OSError:
            problems = []
        trained_with = configuration_of(run.path, run.info)
        return RunState(
            name=self._name or run.name,
            version=self._version,
            status=self.status,
            rule=rule,
            logged_rule=logged_rule(run),
            matrices=matrices,
            coverage=run.coverage,
            measurements=self._recomputed[rule].table(),
            weights=run.weights,
            directions=run.directions,
            scalars=run.scalars,
            events=run.events,
            diverged=run.diverged,
            loss_ranks=run.loss_ranks,
            loss_curve=run.loss_curve,
            width_plans=run.width_plans,
            problems=problems + ([self._problem] if self._problem else []),
            leading=run.leading,
            measured=run.measured,
            too_few_points=too_few_points(self.status, run.options, run.measurements, run.scalars),
            configuration=trained_with,
            timeline=timeline_of(run, trained_with),
        )

    def singular_values(self, name: str, of: Literal["update", "weight"] = "update") -> pd.DataFrame:
        """Spectra of one matrix; see `Run.singular_values`.

        Raises:
            KeyError: there is no such matrix.
        """
        with self._lock:
            if (name, of) not in self._spectra:
                self._spectra[name, of] = self._run.singular_values(name, of)
            self._spectra.move_to_end((name, of))
            while len(self._spectra) > _SPECTRA_KEPT:
                self._spectra.popitem(last=False)
            return self._spectra[name, of]

    def summary(self) -> RunSummary:
        """The run in one line."""
        return self.read(Run.summary)

    def read(self, function: Callable[[Run], Result]) -> Result:
        """What a function of the run returns; nobody refreshes the run meanwhile."""
        with self._lock:
            return function(self._run)
