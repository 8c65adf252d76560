"""The model comes back to the bit, whatever kind it is, and whatever happens at whichever evaluation."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.everything import state
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from inrank_monitor import attach, loss_at_ranks, open_run, ranks_by_loss
from inrank_monitor.loss_ranks.interrupts import HeldSignals

Made = tuple[nn.Module, Callable[[], Any]]


def gpt2() -> Made:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    tokens = torch.randint(60, (2, 12))
    return model, lambda: model(input_ids=tokens, labels=tokens).loss


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.out = kind(8, 12, num_layers=2, batch_first=True), nn.Linear(12, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(inputs)[0])


def of(model: nn.Module, *shape: int) -> Made:
    inputs = torch.randn(*shape)
    return model, lambda: (model(inputs) - 1).square().mean()


def peft(**options: Any) -> Made:
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6))
    return of(get_peft_model(model, LoraConfig(r=4, target_modules=["0", "2"], **options)), 5, 10)


class WithAnEmbedding(nn.Module):
    """Whose forward pass scales rows of its table down, and which is tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12, max_norm=0.5)
        self.map, self.head = nn.Linear(12, 12), nn.Linear(12, 20, bias=False)
        self.other = nn.Linear(12, 20, bias=False)
        self.other.weight = self.head.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = self.map(self.table(inputs.abs().long() % 20))
        return self.head(found) + self.other(found)


MODELS: dict[str, Callable[[], Made]] = {
    "GPT-2, dropout on": gpt2,
    "LSTM": lambda: of(Recurrent(nn.LSTM), 3, 5, 8),
    "GRU": lambda: of(Recurrent(nn.GRU), 3, 5, 8),
    "convolutions": lambda: of(
        nn.Sequential(
            nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Dropout(0.3), nn.ConvTranspose2d(8, 4, 3, groups=2)
        ),
        *(2, 4, 9, 9),
    ),
    "LoRA": peft,
    "PiSSA": lambda: peft(init_lora_weights="pissa"),
    "DoRA": lambda: peft(use_dora=True),
    "embedding with max_norm": lambda: of(WithAnEmbedding(), 3, 7),
    "orthogonal parametrization": lambda: of(parametrizations.orthogonal(nn.Linear(8, 8)), 4, 8),
    "weight_norm": lambda: of(parametrizations.weight_norm(nn.Linear(8, 6)), 4, 8),
    "spectral_norm by hooks": lambda: of(spectral_norm(nn.Linear(8, 6)), 4, 8),
    "pruned": lambda: of(prune.random_unstructured(nn.Linear(8, 6), "weight", 0.3), 4, 8),
}


def trained(kind: str, directory: Path) -> tuple[nn.Module, Callable[[], Any], torch.optim.Optimizer, Any]:
    """Three steps of it, with gradients of the next one there."""
    torch.manual_seed(1)
    model, loss = MODELS[kind]()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-2)
    tracker = attach(model, optimizer, directory, every=1, tensorboard=False, strict=True, initial_weights="memory")
    for _ in range(3):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    loss().backward()
    return model, loss, optimizer, tracker


def noisy(model: nn.Module, loss: Callable[[], Any]) -> Callable[[], Any]:
    """A loss that changes all that it should not, the random state included; repeatable all the same."""

    def changed() -> Any:
        model.train()
        value = loss() + 0 * (random.random() + np.random.rand() + torch.rand(()))  # noqa: NPY002
        model.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        return value

    return changed


@pytest.mark.parametrize("kind", MODELS)
def test_everything_is_as_it_was_and_the_tracker_takes_nothing_for_a_change(kind: str, tmp_path: Path) -> None:
    model, loss, optimizer, tracker = trained(kind, tmp_path / "run")
    before, versions = state(model, optimizer, []), [each._version for each in model.parameters()]
    found = ranks_by_loss(model, tracker, noisy(model, loss), 1e-5, 40)
    assert state(model, optimizer, []) == before
    if "max_norm" not in kind:  # whose own forward pass counts up
        assert [each._version for each in model.parameters()] == versions
    assert found.rise <= 1e-5
    assert found.evaluations <= 40
    assert any(found.ranks.values())
    assert loss_at_ranks(model, tracker, noisy(model, loss), dict(found.ranks)) == pytest.approx(found.loss_at_ranks)
    assert state(model, optimizer, []) == before
    optimizer.step()
    tracker.close()
    kinds = set(open_run(tmp_path / "run").events["kind"])
    assert not kinds & {"weights_changed", "changed_between_steps", "error"}


@pytest.mark.parametrize("kind", ["GPT-2, dropout on", "LSTM", "convolutions", "LoRA", "PiSSA", "weight_norm"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_everything_is_as_it_was_after_an_error_at_any_evaluation(
    kind: str, error: type[BaseException], tmp_path: Path
) -> None:
    model, loss, optimizer, tracker = trained(kind, tmp_path / "run")
    before = state(model, optimizer, [])
    for last in (1, 2, 3, 4, 6):
        calls = 0

        def failing(last: int = last) -> Any:
            nonlocal calls
            calls += 1
            value = noisy(model, loss)()
            if calls == last:
                raise error("here")
            return value

        with pytest.raises(error, match="here"):
            ranks_by_loss(model, tracker, failing, 1e-7, 30)
        assert calls == last
        assert state(model, optimizer, []) == before
    tracker.close("stopped")


def test_an_interrupt_at_any_moment_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, loss, optimizer, tracker = trained("GPT-2, dropout on", tmp_path / "run")
    before, interrupted = state(model, optimizer, []), 0
    handler = signal.getsignal(signal.SIGINT)
    for delay in np.linspace(0.001, 0.15, 25):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            ranks_by_loss(model, tracker, loss, 1e-4, 40)
            while timer.is_alive():
                time.sleep(0.001)
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        assert state(model, optimizer, []) == before
        assert signal.getsignal(signal.SIGINT) is handler
    assert interrupted == 25
    tracker.close("stopped")


def test_a_signal_that_comes_while_they_are_held_is_told_afterwards() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: told.append(number))
    try:
        with HeldSignals() as held:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert told == []
            with held.let_through():
                assert told == [signal.SIGUSR1]
                os.kill(os.getpid(), signal.SIGUSR1)
                assert len(told) == 2
            os.kill(os.getpid(), signal.SIGUSR1)
            assert len(told) == 2
        assert len(told) == 3
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_graph_that_was_there_before_gives_the_gradients_that_it_would_have_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, loss = of(nn.Sequential(nn.Linear(8, 9), nn.BatchNorm1d(9), nn.Linear(9, 2)), 16, 8)
    start = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    graph = loss()
    expected = torch.autograd.grad(graph, model[0].weight, retain_graph=True)[0]
    ranks_by_loss(model.eval(), start, loss, 1e-3, 30)
    graph.backward()
    assert torch.equal(model[0].weight.grad, expected)
