"""Small models, loops and processes that several test files share."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from inrank_monitor import SpectrumTracker, attach


def mlp(*sizes: int, seed: int = 0) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between; matrices `0.weight`, `2.weight`, ..."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sgd(model: nn.Module, lr: float = 0.1) -> SGD:
    """SGD with momentum: an optimizer without a step counter of its own."""
    return SGD(model.parameters(), lr=lr, momentum=0.9)


def train(model: nn.Sequential, optimizer: Optimizer, steps: int, first: int = 0) -> None:
    """`steps` optimizer steps on random data that depends on the step's number alone."""
    width = model[0].in_features
    for step in range(first, first + steps):
        inputs = torch.randn(16, int(width), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(inputs) - 1).square().mean().backward()
        optimizer.step()


def start(directory: Path, *sizes: int, **options: Any) -> tuple[nn.Sequential, SGD, SpectrumTracker]:
    """A model, its optimizer and a tracker that measures every step, without TensorBoard unless asked for."""
    model = mlp(*(sizes or (6, 8, 5)))
    optimizer = sgd(model)
    defaults: dict[str, Any] = {"tensorboard": False}
    if not {"every", "schedule", "max_overhead"} & set(options):
        defaults["every"] = 1
    return model, optimizer, attach(model, optimizer, directory, **defaults | options)


def record(directory: Path, steps: int = 5, *sizes: int, **options: Any) -> Path:
    """A finished run of `steps` steps."""
    model, optimizer, tracker = start(directory, *sizes, **options)
    with tracker:
        train(model, optimizer, steps)
    return directory


def python(code: str, *arguments: object) -> list[str]:
    """Command line of a fresh interpreter that runs `code` and can import these helpers."""
    path = str(Path(__file__).parent)
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}", *map(str, arguments)]


def run_script(code: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own and wait for it."""
    return subprocess.run(python(code, *arguments), capture_output=True, text=True, timeout=timeout, check=False)
