"""One training of an arm: the same model, order of the data, schedule and clipping for all; and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from inrank.experiments.advice.training import schedule
from inrank.experiments.corpus import shared_corpus
from inrank.experiments.worth_it.arms import Arm
from inrank.experiments.worth_it.costs import Meter
from inrank.experiments.worth_it.data import Data, backward, batch_of, calibration_batches, data_of, held_out_loss
from inrank.experiments.worth_it.methods import Method
from inrank.gpt2.memory import peak_memory
from inrank.gpt2.models import build, parameters_of, parse_size
from inrank.reproduction.pool import FINISHED_FILE

_CLIP = 1.0


class Way(Protocol):
    """What is done to a model before the first step, and after each.

    Attributes:
        model: the model.
        settings: of the training.
        meter: counts what it costs.
        numbers: what it has to tell at the end.
    """

    model: nn.Module
    settings: Mapping[str, Any]
    meter: Meter
    numbers: dict[str, float]

    @property
    def last_step(self) -> int | None:
        """After which the training is ended; None for all steps."""

    def shape_model(self) -> None:
        """Before the optimizer is made."""

    def begin(self, optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
        """Before the first step."""

    def after_step(self, step: int) -> None:
        """`step` steps have been made, from 1."""

    def sizes(self) -> Mapping[str, float]:
        """Of the trained model's matrices."""


def train(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Train an arm.

    Returns:
        `loss` on the test part and `validation`, in nats a token; `rate`; `steps`; `parameters`; `mlp_share`, of the
        weights of the MLP matrices; `multiply_adds` and `seconds` of the whole training (see `costs`); `memory`, the
        peak in bytes; ranks or units by layer; `jump` of the calibration loss where weights became factors.
    """

    def method(model: nn.Module, data: Data, meter: Meter) -> Method:
        batches = calibration_batches(data, settings, device)
        return Method(Arm.of(settings["arm"]), model, settings, batches, meter, directory.parent)

    return train_in(method, directory, settings, device)


def train_in(
    make: Callable[[nn.Module, Data, Meter], Way], directory: Path, settings: Mapping[str, Any], device: str
) -> Mapping[str, float]:
    """Train a fresh model in some way; numbers as of `train`, and those of the way."""
    runs, context = directory.parent, settings["context"]
    corpus = shared_corpus(runs, settings["text"], settings["test_text"], settings["vocabulary"])
    data = data_of(corpus, settings)
    meter = Meter(device, settings["batch"] * context)
    torch.manual_seed(settings["seed"])
    model = build(parse_size(settings["size"]), corpus.vocabulary, context).to(device)
    way = make(model, data, meter)
    rate = chosen_rate(runs, settings)
    with meter.timed():
        way.shape_model()
    steps = _fit(way, data, rate, runs)
    windows = {"loss": data.test, "validation": data.validation}
    return {
        **{name: held_out_loss(model, parts) for name, parts in windows.items()},
        **{"rate": rate, "steps": steps, "parameters": parameters_of(model)},
        **{"multiply_adds": meter.multiply_adds, "seconds": meter.seconds},
        "memory": peak_memory(torch.device(device)),
        **way.sizes(),
        **way.numbers,
    }


def chosen_rate(runs: Path, settings: Mapping[str, Any]) -> float:
    """The learning rate: the given one, or that of the best of several trainings by the validation part."""
    if not settings["rates_from"]:
        return float(settings["rate"])
    found = [_numbers(runs, name) for name in settings["rates_from"]]
    return min(found, key=lambda numbers: numbers["validation"])["rate"]


def _numbers(runs: Path, training: str) -> dict[str, float]:
    """Of a finished training."""
    numbers: dict[str, float] = json.loads((runs / training / FINISHED_FILE).read_text(encoding="utf-8"))["numbers"]
    return numbers


def _fit(way: Way, data: Data, rate: float, runs: Path) -> int:
    """AdamW for all steps; how many they were."""
    model, settings, meter = way.model, way.settings, way.meter
    order = torch.Generator("cpu").manual_seed(settings["seed"])
    steps = int(settings["steps"])
    if settings["as_cheap_as"]:
        cost = meter.cost_of(lambda: backward(model, batch_of(data, settings, torch.Generator("cpu"))))
        steps = max(1, round(_numbers(runs, settings["as_cheap_as"])["multiply_adds"] / cost))
        model.zero_grad()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps))
    torch.manual_seed(settings["seed"])  # the same dropout, whatever was drawn before
    last = way.last_step or steps
    with meter.timed():
        way.begin(optimizer, scheduler)
        model.train()
        for step in range(1, last + 1):
            with meter.step():
                backward(model, batch_of(data, settings, order))
            torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            way.after_step(step)
    model.eval()
    return last
