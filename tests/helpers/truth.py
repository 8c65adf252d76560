"""A loop that keeps its own copies of the weights, to compare every logged row with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inrank_monitor import open_run


class TrueLoop:
    """Trains on random data and notes ‖W_t − W0‖ of every parameter as each step leaves it.

    Args:
        model: maps (8, width) to anything.
        optimizer: anything with `step` and `zero_grad`.
        width: of the inputs.
    """

    def __init__(self, model: nn.Module, optimizer: Any, width: int = 16) -> None:
        self.model, self.optimizer, self.width, self.step = model, optimizer, width, 0
        self.truth: dict[int, dict[str, float]] = {}
        self.begin()

    def begin(self) -> None:
        """W0 is what the weights are now."""
        self.start = self.weights()

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().double().clone() for name, value in self.model.named_parameters()}

    def run(self, steps: int, after: Callable[[], Any] | None = None) -> TrueLoop:
        """So many steps; `after` is called when each has been noted."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.backward()
            self.optimizer.step()
            self.note()
            if after is not None:
                after()
        return self

    def backward(self) -> None:
        inputs = torch.randn(8, self.width, generator=torch.Generator().manual_seed(self.step))
        self.model(inputs).square().mean().backward()

    def note(self) -> None:
        """A step has just ended."""
        self.step += 1
        now = self.weights()
        self.truth[self.step] = {
            name: float((now[name] - self.start[name]).norm()) for name in now if name in self.start
        }


def rows(path: Path, name: str = "0.weight") -> dict[int, float]:
    """‖ΔW‖ as logged, by step."""
    table = open_run(path).measurements
    table = table[table["matrix"] == name]
    return dict(zip(table["step"].astype(int), table["frobenius_norm"], strict=True))


def events(path: Path, kind: str) -> list[str]:
    """Messages of the events of a kind."""
    table = open_run(path).events
    return list(table.loc[table["kind"] == kind, "message"])


def assert_rows_are_true(path: Path, loop: TrueLoop, steps: list[int] | None = None) -> None:
    """Every logged norm is that of the loop's own copies; and, if given, these are the steps that have rows."""
    found = open_run(path).measurements
    for name, step, norm in zip(found["matrix"], found["step"], found["frobenius_norm"], strict=True):
        true = loop.truth[int(step)][name]
        assert abs(norm - true) <= 1e-5 * true + 1e-9, f"{name} at step {step}: logged {norm}, was {true}"
    if steps is not None:
        assert found["step"].unique().tolist() == steps
