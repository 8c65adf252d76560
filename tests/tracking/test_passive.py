"""Promise 1: with and without the tracker, same seed, everything is equal to the last bit."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.everything import state
from helpers.training import mlp, sgd, train
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import SGD, AdamW, Optimizer

from inrank_monitor import SpectrumTracker, attach, open_run

STEPS = 200


class Gpt2(nn.Module):
    """transformers' own GPT-2, as small as it goes; dropout everywhere."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(
            GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        )

    def forward(self, step: int) -> Tensor:
        tokens = torch.randint(0, 40, (4, 12))
        loss: Tensor = self.model(input_ids=tokens, labels=tokens).loss
        return loss


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.lstm = nn.LSTM(12, 10, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(10, 30)

    def forward(self, step: int) -> Tensor:
        tokens = torch.randint(0, 30, (4, 9))
        hidden, _ = self.lstm(self.embed(tokens))
        return nn.functional.cross_entropy(self.head(hidden[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


class Convolutions(nn.Module):
    """Batch norm keeps running statistics; the spectral norm's power iteration is state that a read could move."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            parametrizations.spectral_norm(nn.Conv2d(6, 4, 3)),
            nn.Flatten(),
            parametrizations.weight_norm(nn.Linear(4 * 16, 3)),
        )

    def forward(self, step: int) -> Tensor:
        images = torch.randn(6, 2, 8, 8) + float(np.random.rand()) + random.random()  # noqa: NPY002 - the global state
        loss: Tensor = self.body(images).square().mean()
        return loss


MODELS: dict[str, Callable[[], nn.Module]] = {"gpt2": Gpt2, "lstm": Lstm, "convolutions": Convolutions}
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "adamw": lambda model: AdamW(model.parameters(), lr=3e-3),
}


def run(model_name: str, optimizer_name: str, threads: int, directory: Path | None, **options: Any) -> dict[str, Any]:
    """Train from a fixed seed, tracked if there is a directory; the tracker always has two threads."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state
    model = MODELS[model_name]()
    list(model.modules())[-1].eval()  # a module in another mode than the rest keeps it
    optimizer = OPTIMIZERS[optimizer_name](model)
    tracker = None if directory is None else attach(model, optimizer, directory, **options)
    torch.set_num_threads(threads)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if tracker:
            tracker.log(loss=loss)
    found = state(model, optimizer, losses)
    if tracker:
        tracker.close()
        assert state(model, optimizer, losses) == found  # nor does closing change anything
    return found


@functools.cache
def untouched(model_name: str, optimizer_name: str, threads: int) -> dict[str, Any]:
    return run(model_name, optimizer_name, threads, None)


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


FAST = [
    ("gpt2", "adamw", {"every": 7}),
    ("gpt2", "sgd", {"leading": 3, "every": 7}),
    ("lstm", "adamw", {}),
    ("lstm", "sgd", {"every": 7, "embeddings": True, "initial_weights": "memory"}),
    ("convolutions", "adamw", {"leading": 2, "every": 7, "initial_weights": "device"}),
    ("convolutions", "sgd", {"every": 7, "strict": True}),
]
VARIANTS: list[dict[str, Any]] = [{}, {"every": 7}, {"leading": 3, "every": 7}, {"every": 1, "tensorboard": False}]
ALL = [(m, o, v) for m in MODELS for o in OPTIMIZERS for v in VARIANTS]


def compare(tmp_path: Path, model_name: str, optimizer_name: str, threads: int, options: dict[str, Any]) -> None:
    watched = run(model_name, optimizer_name, threads, tmp_path / "run", **options)
    plain = untouched(model_name, optimizer_name, threads)
    different = [key for key in plain if watched[key] != plain[key]]
    assert not different
    log = open_run(tmp_path / "run")
    assert log.measurements["step"].nunique() >= (28 if "every" in options else 2)  # it did measure
    assert (log.measurements["frobenius_norm"] > 0).all()
    assert log.events.empty


@pytest.mark.parametrize(("model_name", "optimizer_name", "options"), FAST)
def test_training_is_the_same_bit_for_bit(
    tmp_path: Path, model_name: str, optimizer_name: str, options: dict[str, Any]
) -> None:
    compare(tmp_path, model_name, optimizer_name, 1, options)  # two threads on a busy machine take 20 times as long


@pytest.mark.slow
@pytest.mark.parametrize(("model_name", "optimizer_name", "options"), ALL)
def test_training_is_the_same_bit_for_bit_in_every_combination(
    tmp_path: Path, model_name: str, optimizer_name: str, options: dict[str, Any]
) -> None:
    compare(tmp_path, model_name, optimizer_name, 2 if options == {"every": 7} else 1, options)


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_the_loops_own_settings_are_put_back(tmp_path: Path, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    threads = torch.get_num_threads()
    try:
        model = mlp(*[140] * 5)  # enough matrices that several threads measure at once
        optimizer = sgd(model)
        with attach(model, optimizer, tmp_path, every=1, leading=4, tensorboard=False):
            for step in range(15):
                train(model, optimizer, 1, first=step)
                assert torch.get_float32_matmul_precision() == precision
                assert torch.get_num_threads() == threads
    finally:
        torch.set_float32_matmul_precision("highest")


def test_leading_values_do_not_depend_on_the_loops_settings(tmp_path: Path) -> None:
    # One matrix is measured in the loop's own thread, where its autocast and default device and dtype hold.
    found = []
    for number in range(2):
        model = mlp(140, 140)
        optimizer = sgd(model)
        with attach(model, optimizer, tmp_path / str(number), every=1, leading=4, tensorboard=False):
            train(model, optimizer, 3)
            if number:
                torch.set_default_dtype(torch.float64)
                torch.set_default_device("meta")
                torch.set_float32_matmul_precision("medium")
            try:
                with torch.autocast("cpu", torch.bfloat16, enabled=bool(number)), torch.inference_mode(bool(number)):
                    optimizer.step()
            finally:
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
                torch.set_float32_matmul_precision("highest")
        log = open_run(tmp_path / str(number))
        assert log.events.empty, log.events["message"].iloc[0]
        found.append(log.singular_values("0.weight"))
    assert found[0].equals(found[1])


# --- what users do with model and optimizer while a tracker is attached


def attached(tmp_path: Path) -> tuple[nn.Sequential, Optimizer, SpectrumTracker]:
    model = mlp(6, 8, 5)
    optimizer = AdamW(model.parameters())
    return model, optimizer, attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_of_model_and_optimizer_are_not_tracked(
    tmp_path: Path, copied: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> None:
    model, optimizer, tracker = attached(tmp_path)
    train(model, optimizer, 2)
    other_model, other_optimizer = copied((model, optimizer))
    train(other_model, other_optimizer, 3)
    assert tracker.step_count == 2
    train(model, optimizer, 1)
    assert tracker.step_count == 3
    tracker.close()
    assert other_optimizer.state[other_model[0].weight]["step"] == 5


def test_state_dicts_are_those_of_an_untracked_training(tmp_path: Path) -> None:
    model, optimizer, tracker = attached(tmp_path)
    plain = mlp(6, 8, 5)
    plain_optimizer = AdamW(plain.parameters())
    train(model, optimizer, 2)
    train(plain, plain_optimizer, 2)
    assert state(model, optimizer, []) == state(plain, plain_optimizer, [])
    assert list(vars(optimizer)) == list(vars(plain_optimizer))
    plain.load_state_dict(model.state_dict())
    plain_optimizer.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(plain_optimizer.state_dict())  # the hook survives a load
    train(model, optimizer, 1)
    assert tracker.step_count == 3
    tracker.close()
