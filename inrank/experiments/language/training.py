"""Training of the language models, by one recipe for all: architectures and depths are compared, not recipes.

The recipe is the usual word-level example's: plain stochastic gradient descent with clipped gradients, the text cut
into as many columns as the batch is wide and read through from top to bottom, gradients ending where a piece begins.
That example lowers its learning rate when the held-out loss stops falling; here it falls to zero on a straight line,
since otherwise each model would get a schedule of its own. It takes a rate of 20 for recurrent models and 5 for the
Transformer; 10 is between, and was chosen by the held-out loss alone. The paper names neither sizes nor recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inrank.experiments.corpus import shared_corpus, text_settings
from inrank.experiments.language.models import LanguageConfig, LanguageModel, State
from inrank.reproduction.experiment import Request, Training

SMALLER_RATE, LARGER_BATCH = 4, 4  # by which factor the variants of Figure 14 differ
VARIANTS = {"": (1, 1), "lower rate": (SMALLER_RATE, 1), "larger batch": (1, LARGER_BATCH)}
_HELD_OUT_COLUMNS = 10

# width 200, two heads, dropout 0.2, batch 20, pieces of 35 tokens and clipping at 0.25 are the example's; its forty
# epochs of WikiText-2 are 120 000 steps
_COMMON = {"heads": 2, "dropout": 0.2, "clip": 0.25, "learning_rate": 10.0}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "width": 16,
        "vocabulary": 300,
        "length": 8,
        "batch": 4,
        "steps": 12,
        "snapshots": 4,
        "tensorboard": False,
    },
    "tiny": {"width": 64, "vocabulary": 1024, "length": 32, "batch": 20, "steps": 600, "snapshots": 50},
    "small": {"width": 200, "vocabulary": 8192, "length": 35, "batch": 20, "steps": 6000, "snapshots": 60},
    "paper": {"width": 200, "vocabulary": 33_278, "length": 35, "batch": 20, "steps": 120_000, "snapshots": 100},
}


class Pieces:
    """A text in columns, read from top to bottom a piece at a time, again and again.

    Args:
        tokens: (tokens,).
        columns: texts that are read beside each other.
        length: tokens of a piece.
        device: where the tokens are to lie, all of them.

    Raises:
        ValueError: the text is too short for one piece of each column.
    """

    def __init__(self, tokens: np.ndarray, columns: int, length: int, device: str) -> None:
        rows = len(tokens) // columns
        if rows <= length:
            raise ValueError(f"the text must have more than {columns * length} tokens, got {len(tokens)}")
        table = np.asarray(tokens[: rows * columns]).astype(np.int64).reshape(columns, rows).T
        self._table = torch.from_numpy(np.ascontiguousarray(table)).to(device)
        self._length = length
        self.count = (rows - 1) // length

    def piece(self, index: int) -> tuple[Tensor, Tensor, bool]:
        """Inputs and targets, (length, columns) each, and whether the text begins anew here."""
        place = index % self.count
        first = place * self._length
        window = self._table[first : first + self._length + 1]
        return window[:-1], window[1:], place == 0


class Texts(NamedTuple):
    """What a model is trained on, and what it is judged by."""

    training: Pieces
    held_out: Pieces


def language_training(request: Request, architecture: str, layers: int, seed: int, variant: str = "") -> Training:
    """One training of a request; the same arguments give the same one in every figure.

    Args:
        request: for its scale and text.
        architecture: as for `LanguageModel`.
        layers: of it.
        seed: of weights, dropout, and the place at which reading begins.
        variant: one of `VARIANTS`.
    """
    scale = _COMMON | {"tensorboard": True} | SCALES[request.scale]
    rate, batch = VARIANTS[variant]
    settings = scale | {
        **text_settings(request, scale["vocabulary"]),
        "architecture": architecture,
        "layers": layers,
        "seed": seed,
        "learning_rate": scale["learning_rate"] / rate,
        "batch": scale["batch"] * batch,
    }
    name = f"language-{architecture}-{layers}"
    if variant:
        name += "-" + variant.replace(" ", "-")
    return Training(f"{name}-seed-{seed}", train_language_model, settings)


def train_language_model(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """One training, watched.

    Returns:
        Held-out loss before and after, in nats a token, and that of guessing by how often each token came in training.
    """
    from inrank_monitor import attach

    corpus = shared_corpus(directory.parent, settings["text"], settings["test_text"], settings["vocabulary"])
    torch.manual_seed(settings["seed"])
    begin = int(torch.randint(len(corpus.train), (), device="cpu"))  # so that seeds differ in the order of the text too
    texts = Texts(
        Pieces(np.roll(corpus.train, -begin), settings["batch"], settings["length"], device),
        Pieces(corpus.test, _HELD_OUT_COLUMNS, settings["length"], device),
    )
    sizes = {name: settings[name] for name in ("architecture", "width", "layers", "heads", "dropout")}
    model = LanguageModel(LanguageConfig(vocabulary=corpus.vocabulary, **sizes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["learning_rate"])
    tracker = attach(
        model,
        optimizer,
        directory,
        every=max(1, settings["steps"] // settings["snapshots"]),
        buffer_rank=max(1, settings["width"] // 8),
        tensorboard=settings["tensorboard"],
        resume=0,
    )
    with tracker:
        before = held_out_loss(model, texts.held_out)
        tracker.log(held_out_loss=before)
        _train(model, optimizer, texts, settings, tracker)
        after = held_out_loss(model, texts.held_out)
        tracker.log(held_out_loss=after)
    return {
        "held_out_before": before,
        "held_out_after": after,
        "frequencies": frequency_loss(corpus.train, corpus.test),
    }


def _train(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    texts: Texts,
    settings: Mapping[str, Any],
    tracker: Any,
) -> None:
    steps = settings["steps"]
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
    state: State = None
    model.train()
    for step in range(1, steps + 1):
        inputs, targets, anew = texts.training.piece(step - 1)
        logits, state = model(inputs, None if anew else state)
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        tracker.log(loss=loss, lr=falling.get_last_lr()[0])
        optimizer.zero_grad()
        falling.step()
        if step % max(1, steps // 4) == 0 and step < steps:
            tracker.log(held_out_loss=held_out_loss(model, texts.held_out))


@torch.no_grad()
def held_out_loss(model: LanguageModel, pieces: Pieces) -> float:
    """Mean cross-entropy in nats a token, read through once; leaves the model in training mode."""
    model.eval()
    state: State = None
    losses = []
    for index in range(pieces.count):
        inputs, targets, _ = pieces.piece(index)
        logits, state = model(inputs, state)
        losses.append(cross_entropy(logits.flatten(0, 1), targets.flatten()))
    model.train()
    return float(torch.stack(losses).mean())  # pieces are of one size


def frequency_loss(train: np.ndarray, test: np.ndarray) -> float:
    """Loss of guessing each token by how often it came in training, in nats a token: what needs no network.

    A token that never came is counted as half a time.
    """
    size = int(max(train.max(), test.max())) + 1
    counts = np.maximum(np.bincount(train, minlength=size).astype(np.float64), 0.5)
    return float(-np.log(counts / counts.sum())[np.asarray(test)].mean())
