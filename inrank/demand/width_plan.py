"""How wide the feed-forward blocks of a model shall be: the plan, its file, and its place in a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inrank.growth import process_number
from inrank_monitor.runs import RUN_FILE, add_tables, local_path, output_file, write_json
from inrank_monitor.tracking import SpectrumTracker

_FORMAT = 1


@dataclass(frozen=True)
class WidthPlan:
    """Hidden units of each feed-forward block under a budget.

    Attributes:
        widths: d_ff by the dotted name of the block, in the model's order.
        full: what they are now.
        units: of each block, which units a pruned model keeps: the most useful ones, ascending.
        unit_parameters: of each block, weights of one hidden unit, biases not counted.
    """

    widths: dict[str, int]
    full: dict[str, int]
    units: dict[str, Tensor]
    unit_parameters: dict[str, int]

    @property
    def share(self) -> float:
        """Weights of all blocks together at these widths over those now."""
        return self._parameters(self.widths) / self._parameters(self.full)

    @property
    def parameters_saved(self) -> int:
        """Weights of all blocks together that a model of these widths does without."""
        return self._parameters(self.full) - self._parameters(self.widths)

    def _parameters(self, widths: dict[str, int]) -> int:
        return sum(width * self.unit_parameters[name] for name, width in widths.items())

    def __str__(self) -> str:
        width = max(len(name) for name in self.widths)
        lines = [f"{name:<{width}}  {self.full[name]:>6} -> {kept}" for name, kept in self.widths.items()]
        return "\n".join([*lines, f"{self.share:.1%} of the weights"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """As a JSON file, for `load` and for `inrank train --d-ff`.

        Raises:
            FileNotFoundError, NotADirectoryError, IsADirectoryError: no file can be there.
        """
        blocks = [
            {
                "block": name,
                "width": width,
                "full_width": self.full[name],
                "unit_parameters": self.unit_parameters[name],
                "units": _as_ranges(self.units[name].tolist()),
            }
            for name, width in self.widths.items()
        ]
        write_json(output_file(path, "path"), {"width_plan": _FORMAT, "share": self.share, "blocks": blocks})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WidthPlan:
        """From a file that `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it holds no plan, or a damaged one.
        """
        try:
            blocks = json.loads(local_path(path, "path").read_text(encoding="utf-8"))["blocks"]
            units = {entry["block"]: torch.tensor(_from_ranges(entry["units"]), device="cpu") for entry in blocks}
            widths, full, parameters = (
                {entry["block"]: int(entry[name]) for entry in blocks}
                for name in ("width", "full_width", "unit_parameters")
            )
            whole = bool(blocks) and all(
                1 <= width == len(set(units[name].tolist()))
                and 0 <= units[name].min() <= units[name].max() < full[name]
                for name, width in widths.items()
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no plan that WidthPlan.save wrote ({error!r})") from None
        if not whole:
            raise ValueError(f"{path} holds a plan whose widths and units do not fit each other")
        return cls(widths, full, units, parameters)


def _as_ranges(units: Iterable[int]) -> str:
    """Ascending numbers as text: `0-3 5 8-11`.

    >>> _as_ranges([0, 1, 2, 3, 5, 8, 9])
    '0-3 5 8-9'
    """
    runs = [[unit for _, unit in run] for _, run in groupby(enumerate(units), lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _from_ranges(text: str) -> list[int]:
    found: list[int] = []
    for run in text.split():
        first, _, last = run.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def widths_from(given: Sequence[str], layers: int) -> list[int]:
    """Widths of so many blocks from what a command line gives: one number, one a block, or the file of a plan.

    Raises:
        ValueError: a width is no integer of at least 1, or there are not so many.
        FileNotFoundError: there is neither such a number nor such a file.
    """
    of = "widths"
    if len(given) == 1 and not given[0].lstrip("+-").isdecimal():
        if not Path(given[0]).is_file():
            raise FileNotFoundError(f"must be numbers, or the file of a plan, got {given[0]!r}, which is no file")
        widths, of = list(WidthPlan.load(given[0]).widths.values()), f"widths in {given[0]}"
    else:
        if wrong := [text for text in given if not (text.isdecimal() and int(text) >= 1)]:
            raise ValueError(f"must be at least 1, in whole numbers, or the file of a plan, got {wrong[0]}")
        widths = [int(text) for text in given] * (layers if len(given) == 1 else 1)
    if len(widths) != layers:
        raise ValueError(f"must be one width for all blocks or one for each of the {layers}, got {len(widths)} {of}")
    return widths


def place_in(run: Any) -> tuple[Path, int]:
    """Directory and step of a run.

    Args:
        run: a live tracker, a `Run`, or its directory.

    Raises:
        TypeError: it is none of these.
        FileNotFoundError: there is no run.
    """
    if isinstance(run, SpectrumTracker):
        return run.path, run.step_count
    from inrank_monitor.runs import Run, open_run  # pandas

    if not isinstance(run, Run | str | os.PathLike):
        raise TypeError(f"run must be a run, its directory, or a tracker, got {type(run).__name__}")
    path = run.path if isinstance(run, Run) else local_path(run, "run")
    if not (path / RUN_FILE).is_file():
        raise FileNotFoundError(f"run: {path} holds no {RUN_FILE}: it is no run")
    return path, open_run(path).summary().step


def keep_in(place: tuple[Path, int], plan: WidthPlan) -> None:
    """Add a plan to a run's table of plans, where Advice finds it; on the first process alone.

    Raises:
        OSError: it cannot be written.
    """
    if process_number() > 0:
        return
    count, (path, step) = len(plan.widths), place
    columns: dict[str, Sequence[Any]] = {
        "step": [step] * count,
        "time": [time.time()] * count,
        "block": list(plan.widths),
        "width": list(plan.widths.values()),
        "full_width": [plan.full[name] for name in plan.widths],
        "unit_parameters": [plan.unit_parameters[name] for name in plan.widths],
    }
    add_tables(path, {"width_plans": columns})
