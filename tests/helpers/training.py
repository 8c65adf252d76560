"""Small models, loops and processes that several test files share."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from inrank_monitor import SpectrumTracker, attach
from inrank_monitor.tracking.optimizer_steps import _listening

if TYPE_CHECKING:
    import pytest


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


def step_hooks(optimizer: Optimizer) -> int:
    """Hooks of the optimizer's own, and ours that listen to all optimizers."""
    return sum(map(len, (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, _listening)))


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
    """Command line of a fresh interpreter that runs `code`."""
    return [sys.executable, "-c", f"import sys\n{code}", *map(str, arguments)]


def run_script(code: str, *arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own and wait for it."""
    return subprocess.run(python(code, *arguments), capture_output=True, text=True, timeout=timeout, check=False)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the tracker said at warning level or above."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "inrank_monitor" and record.levelno >= logging.WARNING
    ]


def trained(steps: int, *sizes: int) -> nn.Sequential:
    """The same training, untracked."""
    model = mlp(*(sizes or (6, 8, 5)))
    train(model, sgd(model), steps)
    return model


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def record_resumed(directory: Path) -> None:
    """A run of 8 steps that log a loss of 1, taken up at step 5 by two steps that log 2."""
    model, optimizer, tracker = start(directory, 40, 50, 30, tensorboard=True)
    for step in range(8):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=1.0)
    tracker.close()
    model = mlp(40, 50, 30)
    optimizer = sgd(model)
    tracker = attach(model, optimizer, directory, every=1, resume=5)
    for step in range(5, 7):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=2.0)
    tracker.close()


def run_page_script(name: str, *arguments: object) -> str:
    """What a script of the documentation prints, in a process of its own with one thread and no GPU."""
    script = Path(__file__).parents[2] / "docs/trainers/scripts" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
