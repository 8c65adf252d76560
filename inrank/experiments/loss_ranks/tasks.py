"""Four ordinary trainings: the demo's GPT-2, an LSTM, a convolutional net, and a GPT-2 that is fine-tuned.

Recipes are usual ones, the same for every seed; none was chosen by the ranks that came of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inrank.experiments.language.models import LanguageConfig, LanguageModel
from inrank.experiments.language.training import Pieces, held_out_loss
from inrank.experiments.perceptron.images import read_images
from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.text import Corpus

KINDS = {
    "gpt2": "GPT-2 from scratch",
    "lstm": "LSTM",
    "convolutional": "convolutional net",
    "fine-tuned": "GPT-2, fine-tuned",
}
_CLIP = 1.0


@dataclass(frozen=True)
class Task:
    """A model that is ready to be watched, and what it is trained and judged by.

    Attributes:
        model: with its first weights.
        optimizer: of all its parameters.
        batch_loss: loss of the next batch, to step on; takes the number of the step, from 0.
        held_out: mean loss on data that it is not trained on, in nats.
        elsewhere: the same on other such data, by which nothing is chosen.
        steps: to train.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batch_loss: Callable[[int], Tensor]
    held_out: Callable[[], float]
    elsewhere: Callable[[], float]
    steps: int

    def train(self, after_step: Callable[[Tensor], None] = lambda loss: None) -> None:
        """All steps: warm-up over a twentieth, then half a cosine down to a tenth, gradients clipped at 1."""
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, self.steps))
        self.model.train()
        for step in range(self.steps):
            loss = self.batch_loss(step)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
            self.optimizer.step()
            after_step(loss)
            scheduler.step()
            self.optimizer.zero_grad()
        self.model.eval()


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))


def gpt2(settings: Mapping[str, Any], corpus: Corpus, device: str) -> Task:
    """The demo's, from scratch."""
    return _gpt2_task(_gpt2_model(settings, corpus.vocabulary, device), settings, corpus)


def fine_tuned(settings: Mapping[str, Any], corpora: tuple[Corpus, Corpus], device: str) -> Task:
    """As `gpt2`, trained on the first text before it is watched, then on the second one at a third of the rate."""
    first, second = corpora
    model = _gpt2_model(settings, first.vocabulary, device)
    _gpt2_task(model, settings, first).train()
    later = {**settings, "steps": settings["later_steps"], "learning_rate": settings["learning_rate"] / 3}
    return _gpt2_task(model, later, second)


def _gpt2_model(settings: Mapping[str, Any], vocabulary: int, device: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings["context"],
        n_embd=settings["width"],
        n_layer=settings["layers"],
        n_head=settings["heads"],
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: nn.Module = GPT2LMHeadModel(config).to(device)
    return model


def _gpt2_task(model: nn.Module, settings: Mapping[str, Any], corpus: Corpus) -> Task:
    context, batch = settings["context"], settings["batch"]
    device = next(model.parameters()).device
    text = torch.from_numpy(np.asarray(corpus.train).astype(np.int64))
    windows = corpus.test_windows(context, settings["test_tokens"] // context)
    order = torch.Generator("cpu").manual_seed(settings["seed"])

    def batch_loss(step: int) -> Tensor:
        starts = torch.randint(len(text) - context, (batch, 1), generator=order, device="cpu")
        tokens = text[starts + torch.arange(context + 1, device="cpu")].to(device)
        logits = model(input_ids=tokens[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"])
    half, other = (partial(mean_loss, model, windows[first::2], 2 * batch) for first in (0, 1))
    return Task(model, optimizer, batch_loss, half, other, settings["steps"])


def lstm(settings: Mapping[str, Any], corpus: Corpus, device: str) -> Task:
    """The word-level language model of Figures 8 to 14, two layers, under Adam."""
    config = LanguageConfig(
        architecture="lstm",
        vocabulary=corpus.vocabulary,
        width=settings["width"],
        layers=settings["layers"],
        dropout=settings["dropout"],
    )
    model = LanguageModel(config).to(device)
    training = Pieces(corpus.train, settings["batch"], settings["context"], device)
    half, other = (
        partial(_evaluated, model, Pieces(text, settings["columns"], settings["context"], device))
        for text in np.array_split(corpus.test[: settings["test_tokens"]], 2)
    )
    begin = int(torch.randint(training.count, (), device="cpu"))
    state: list[Any] = [None]

    def batch_loss(step: int) -> Tensor:
        inputs, targets, anew = training.piece(begin + step)
        logits, state[0] = model(inputs, None if anew else state[0])
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    return Task(model, optimizer, batch_loss, half, other, settings["steps"])


def _evaluated(model: LanguageModel, pieces: Pieces) -> float:
    try:
        return held_out_loss(model, pieces)
    finally:
        model.eval()


def convolutional(settings: Mapping[str, Any], device: str) -> Task:
    """Three convolutions and a linear layer on digits, under Adam."""
    images = read_images("digits").to(device)
    side, width = math.isqrt(images.inputs.shape[1]), settings["width"]
    inputs, test_inputs = (found.view(-1, 1, side, side) for found in (images.inputs, images.test_inputs))
    model = nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(16 * width, images.classes),
    ).to(device)
    order = torch.Generator("cpu").manual_seed(settings["seed"])

    def batch_loss(step: int) -> Tensor:
        rows = torch.randint(len(images.labels), (settings["batch"],), generator=order, device="cpu").to(device)
        return cross_entropy(model(inputs[rows]), images.labels[rows])

    @torch.no_grad()
    def half(first: int) -> float:
        return float(cross_entropy(model(test_inputs[first::2]), images.test_labels[first::2]))

    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    return Task(model, optimizer, batch_loss, partial(half, 0), partial(half, 1), settings["steps"])
