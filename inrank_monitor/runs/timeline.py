"""Where the steps of a run lie on an axis: by step, share of the training, wall-clock or tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from inrank_monitor.runs.configuration import Configuration

if TYPE_CHECKING:
    from inrank_monitor.runs.run import Run

Axis = Literal["step", "share", "time", "tokens"]
AXES: tuple[Axis, ...] = ("step", "share", "time", "tokens")
_TOKENS = re.compile(
    r"(^|[/.])((train|num|n|total|consumed|processed)_)*(input_)?tokens(_(seen|processed|consumed|total))?$"
)
_PLANNED = re.compile(
    r"(^|[/.])((max|num|n|total|train|training)_)*(steps|iters|iterations)$|(^|[/.])max_(step|iter|iteration)$"
)
_UNITS = (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172800.0), ("days", 86400.0, np.inf))
Known = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Timeline:
    """What is known of a run's steps.

    Attributes:
        last_step: the last one measured or logged.
        finished: whether that is the training's last.
        planned: how many the training is to have; None: not known, or it has ended, or went beyond.
        seconds: steps, and the seconds of training up to each; None: the rows were not written while it trained.
        tokens: steps, and the tokens seen up to each; None: not logged.
    """

    last_step: int
    finished: bool
    planned: int | None
    seconds: Known | None
    tokens: Known | None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Which axes it has."""
        known = {"step": True, "share": True, "time": self.seconds is not None, "tokens": self.tokens is not None}
        return tuple(axis for axis in AXES if known[axis])

    def place(self, axis: Axis, steps: np.ndarray) -> np.ndarray:
        """Where steps lie on an axis, float64; NaN where that is not known.

        Raises:
            ValueError: the run has no such axis.
        """
        steps = np.asarray(steps, dtype=np.float64)
        if axis == "step":
            return steps
        if axis == "share":
            return np.asarray(steps / max(self.planned or self.last_step, 1))
        known = self.seconds if axis == "time" else self.tokens if axis == "tokens" else None
        if known is None:
            raise ValueError(f"axis must be one of {self.axes}, got {axis!r}")
        return np.asarray(np.interp(steps, *known, left=np.nan, right=np.nan))


def timeline_of(run: Run, configuration: Configuration) -> Timeline:
    """What is known of a run's steps; see `Timeline`."""
    both = pd.concat([table[["step", "time"]] for table in (run.measurements, run.scalars)])
    last = int(both["step"].max()) if len(both) else 0
    finished = run.status == "finished"
    training = run.options.initial_weights != "checkpoint"  # a scan's rows are as old as the scan
    return Timeline(
        last_step=last,
        finished=finished,
        planned=None if finished else planned_steps(configuration.values, last),
        seconds=_seconds(both, run.info) if len(both) and training else None,
        tokens=_tokens(run.scalars),
    )


def planned_steps(configuration: Mapping[str, Any], last_step: int) -> int | None:
    """How many steps a training was to have; None: it does not say, says several, or was trained beyond."""
    found = {value for name, value in configuration.items() if _PLANNED.search(name) and type(value) is int}
    planned = found.pop() if len(found) == 1 else 0
    return planned if planned >= max(last_step, 1) else None


def _seconds(rows: pd.DataFrame, info: Mapping[str, Any]) -> Known:
    """Steps and seconds since the beginning; the time between an interruption and its resumption does not count.

    A step's time is that of the first row which was written of it. Clocks are put back now and then: time stands still
    until they have caught up.
    """
    times = rows.groupby("step")["time"].min()
    steps, at = times.index.to_numpy(dtype=np.float64), times.to_numpy(dtype=np.float64)
    begin = min(float(info["created"]), at[0])
    pauses = np.zeros(len(at))
    for start, step in _resumptions(info["segments"]):
        before = at[steps <= step]
        pauses[steps > step] += max(start - (before.max() if len(before) else begin), 0.0)
    elapsed = np.maximum.accumulate(np.maximum(at - begin - pauses, 0.0))
    return (steps, elapsed) if steps[0] == 0 else (np.append(0.0, steps), np.append(0.0, elapsed))


def _resumptions(segments: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """When and at which step the run was taken up, as far as it was not taken back to an earlier step later on."""
    kept: list[tuple[float, float]] = []
    for segment in segments:
        if segment["resume_step"] is not None and "time" in segment:
            step = float(segment["resume_step"])
            kept = [*(one for one in kept if one[1] < step), (float(segment["time"]), step)]
    return kept


def _tokens(scalars: pd.DataFrame) -> Known | None:
    """Steps and tokens so far: the first logged value that is named so and only grows."""
    for name in scalars["name"].unique():
        if not _TOKENS.search(str(name).lower()):
            continue
        rows = scalars[scalars["name"] == name].sort_values("step", kind="stable").drop_duplicates("step", keep="last")
        steps, counts = rows["step"].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)
        if len(steps) > 1 and np.isfinite(counts).all() and counts[0] >= 0 and (np.diff(counts) > 0).all():
            return (steps, counts) if steps[0] == 0 else (np.append(0.0, steps), np.append(0.0, counts))
    return None


@dataclass(frozen=True)
class Alignment:
    """Several runs laid over each other on one axis.

    Attributes:
        title: of the axis, with its unit.
    """

    title: str
    axis: Axis
    timelines: Mapping[str, Timeline]
    unit: float = 1.0

    def place(self, run: str, steps: np.ndarray) -> np.ndarray:
        """Where the steps of a run lie on the axis."""
        return self.timelines[run].place(self.axis, steps) / self.unit


def common_axes(timelines: Mapping[str, Timeline]) -> list[Axis]:
    """The axes that all of the runs have."""
    return [axis for axis in AXES if all(axis in one.axes for one in timelines.values())]


def align(timelines: Mapping[str, Timeline], axis: Axis) -> Alignment:
    """Lay runs over each other.

    Args:
        timelines: run name -> its own.
        axis: one that all have.

    Raises:
        ValueError: one of the runs does not have it; the message names the run.
    """
    for name, one in timelines.items():
        if axis not in one.axes:
            raise ValueError(f"axis must be one that all runs have: {name} has {one.axes}, not {axis!r}")
    if axis == "time":
        longest = max((one.seconds[1][-1] for one in timelines.values() if one.seconds), default=0.0)
        unit, length = next((unit, length) for unit, length, most in _UNITS if longest < most)
        return Alignment(f"wall-clock of the training ({unit})", axis, timelines, length)
    if axis == "share":
        known = all(one.finished or one.planned for one in timelines.values())
        return Alignment("share of training" if known else "share of training so far", axis, timelines)
    return Alignment({"step": "step", "tokens": "tokens"}[axis], axis, timelines)
