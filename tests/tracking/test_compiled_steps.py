"""A compiled optimizer step or training step: Dynamo steps over tracker and controller, and both count right."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.training import mlp
from torch._dynamo.utils import counters

import inrank
from inrank_monitor import SpectrumTracker, attach, open_run

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # Dynamo's own
    pytest.mark.slow,
]
STEPS = 12
Watch = Callable[[torch.nn.Module, torch.optim.Optimizer], Callable[[], None]]


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_training(watch: Watch | None, whole: bool = False) -> tuple[Counter[str], list[torch.Tensor]]:
    """How many frames Dynamo looked at and how many graphs it made, and the weights."""
    torch._dynamo.reset()
    counters.clear()
    model = mlp(6, 8, 5)
    inrank.convert(model, "*", buffer_rank=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    after = watch(model, optimizer) if watch else lambda: None

    def step() -> None:
        optimizer.step()
        if whole:
            after()

    run = torch.compile(step, backend="eager")
    for number in range(STEPS):
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(number))).square().mean().backward()
        run()
        optimizer.zero_grad()
    found = Counter(frames=counters["frames"]["total"], graphs=counters["stats"]["unique_graphs"])
    return found, [value.detach() for value in model.parameters()]


def few_more(found: Counter[str], plain: Counter[str]) -> bool:
    """Some frames for each call that is stepped over, at the first step; traced, the tracker makes 130."""
    return found["frames"] <= plain["frames"] + 12 and found["graphs"] <= plain["graphs"] + 2


def test_the_trackers_hook_is_not_traced(tmp_path: Path) -> None:
    trackers: list[SpectrumTracker] = []

    def watch(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        trackers.append(attach(model, optimizer, tmp_path / "run", every=2))
        return lambda: None

    plain, weights = compiled_training(None)
    found, same = compiled_training(watch)
    trackers[0].close()
    assert few_more(found, plain), (found, plain)
    assert trackers[0].finished_steps == list(range(2, STEPS + 1, 2))
    assert trackers[0].step_count == STEPS
    assert all(map(torch.equal, weights, same))


def test_what_a_compiled_training_step_calls_is_not_traced(tmp_path: Path) -> None:
    trackers: list[SpectrumTracker] = []

    def watch(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        tracker = attach(model, None, tmp_path / "run", every=2, tensorboard=False)
        trackers.append(tracker)

        def after() -> None:
            tracker.step()
            tracker.log({"loss": 1.0}, more=torch.ones(1))

        return after

    plain, weights = compiled_training(None)
    found, same = compiled_training(watch, whole=True)
    trackers[0].close()
    assert few_more(found, plain), (found, plain)
    assert trackers[0].step_count == STEPS
    scalars = open_run(tmp_path / "run").scalars
    for name in ("loss", "more"):
        assert scalars.loc[scalars["name"] == name, "step"].tolist() == list(range(1, STEPS + 1))
    assert all(map(torch.equal, weights, same))


def test_the_controllers_hooks_are_not_traced() -> None:
    controllers: list[inrank.RankController] = []

    def watch(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        # a rule that asks for nothing: what is looked at is the hooks, not what growing compiles anew
        controllers.append(inrank.RankController(model, optimizer, every=2, rule=lambda seen: seen.rank).attach())
        return lambda: None

    plain, weights = compiled_training(None)
    found, same = compiled_training(watch)
    assert few_more(found, plain), (found, plain)
    assert controllers[0].step_count == controllers[0]._fresh.step == STEPS
    assert all(map(torch.equal, weights, same))


def test_attaching_and_logging_imports_no_dynamo(tmp_path: Path) -> None:
    code = (
        "import sys, torch\nfrom inrank_monitor import attach\n"
        "tracker = attach(torch.nn.Linear(4, 4), None, sys.argv[1], tensorboard=False)\n"
        "tracker.step(); tracker.log(loss=1.0); tracker.close()\n"
        "print([name for name in sys.modules if name == 'torch._dynamo'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
