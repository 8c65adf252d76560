"""Which trainings there are: every arm with every seed, all at the learning rate that is best for dense training.

Everything but the MLP matrices is trained alike in all arms, so one rate is theirs; a factor on it for U V is an arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from inrank.experiments.corpus import text_settings
from inrank.experiments.from_the_start.arms import ARMS, DENSE, Start
from inrank.experiments.from_the_start.starting import Starting
from inrank.experiments.worth_it.costs import Meter
from inrank.experiments.worth_it.data import Data
from inrank.experiments.worth_it.plan import IMPORTS, SCALES, check_device
from inrank.experiments.worth_it.training import train_in
from inrank.reproduction.experiment import Request, Training

_OF_TRAINING = ("size", "context", "batch", "validation_tokens", "test_tokens")
_STEPS = {"tiny": 400}  # after 200 some seeds of so small a model have left the first plateau of the loss, and some not


def steps_of(request: Request) -> int:
    """Of each training."""
    return int(_STEPS.get(request.scale, SCALES[request.scale]["steps"]))


def trainings_of(request: Request, start: Start, seed: int) -> list[Training]:
    """Of an arm and a seed: one; of dense training with the first seed, one at each learning rate."""
    first, rates = request.seeds[0], SCALES[request.scale]["rates"]
    if start == DENSE and seed == first:
        return [_training(request, start, seed, rate, ()) for rate in rates]
    chosen = tuple(one.name for one in trainings_of(request, DENSE, first))
    return [_training(request, start, seed, None, chosen)]


def _training(request: Request, start: Start, seed: int, rate: float | None, rates_from: tuple[str, ...]) -> Training:
    scale = SCALES[request.scale]
    settings = {
        **{name: scale[name] for name in _OF_TRAINING},
        "steps": steps_of(request),
        **text_settings(request, scale["vocabulary"]),
        **{"arm": start.settings, "seed": seed, "rate": rate, "rates_from": list(rates_from), "as_cheap_as": None},
    }
    name = f"from-the-start-{start.name}" + (f"-rate-{rate:g}" if rate else "") + f"-seed-{seed}"
    return Training(name, train, settings, rates_from, IMPORTS)


def trainings(request: Request) -> list[Training]:
    """All of them, the first seed's first.

    Raises:
        ExperimentError: the paper's size was asked for without a GPU.
    """
    check_device(request, "from-the-start")
    return [one for seed in request.seeds for start in ARMS for one in trainings_of(request, start, seed)]


def train(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Train an arm.

    Returns:
        What `worth_it.training.train_in` does; `early`, the validation loss in nats after `starting.EARLY` of the
        steps; `effective_rank` of the MLP matrices, the mean, and `first_effective_rank`, of the first.
    """

    def starting(model: nn.Module, data: Data, meter: Meter) -> Starting:
        return Starting(Start.of(settings["arm"]), model, settings, data, meter)

    return train_in(starting, directory, settings, device)
