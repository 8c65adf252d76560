"""What a plan is made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from inrank_monitor.plan.models import PlannedModel
from inrank_monitor.plan.quantities import Layout

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scenario:
    """A training that is to be watched: of what, by whom, where and within what budget.

    Attributes:
        model: from `models`.
        layout: who trains.
        counts: numbers of leading values to plan for, besides all of them.
        device: where the weights will be.
        directory: of the run to come; the nearest folder above it that is there must be writable.
        budget: share of wall time.
    """

    model: PlannedModel
    layout: Layout
    counts: Sequence[int] = (64, 256)
    device: torch.device = CPU
    directory: Path = Path("runs/first")
    budget: float = 0.01

    @property
    def choices(self) -> list[int | None]:
        """How many values may be measured; None: all."""
        return [None, *self.counts]

    @property
    def disk(self) -> Path:
        """The nearest folder that is there, in whose file system the run will be."""
        return next(path for path in (self.directory, *self.directory.absolute().parents) if path.is_dir())
