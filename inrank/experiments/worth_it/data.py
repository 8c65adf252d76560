"""The text in three parts, and the loss of a batch.

Models are trained, and layers calibrated, on the training part without its end; by that end, the validation part,
learning rates are chosen; by the test part all is judged and nothing chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.text import Corpus

_CALIBRATION_SEED = 1 << 20  # apart from the order of the training
_EVALUATION_BATCH = 16


class Data(NamedTuple):
    """What a model is trained on, (tokens,); what choices are made by and what it is judged by, windows of tokens."""

    train: Tensor
    validation: Tensor
    test: Tensor


def data_of(corpus: Corpus, settings: Mapping[str, Any]) -> Data:
    """The three parts.

    Raises:
        ValueError: the training text is too short for a validation part.
    """
    context, kept = settings["context"], settings["validation_tokens"]
    tokens = torch.from_numpy(np.asarray(corpus.train).astype(np.int64))
    if len(tokens) <= kept + context:
        raise ValueError(f"the text must have more than {kept + context} tokens to train on, got {len(tokens)}")
    train, rest = tokens[:-kept], tokens[-kept:]
    places = torch.arange((kept - 1) // context, device="cpu")[:, None] * context
    validation = rest[places + torch.arange(context + 1, device="cpu")]
    return Data(train, validation, corpus.test_windows(context, settings["test_tokens"] // context))


def calibration_batches(data: Data, settings: Mapping[str, Any], device: str) -> list[Tensor]:
    """Batches of the training part, drawn apart from the training's own."""
    order = torch.Generator("cpu").manual_seed(_CALIBRATION_SEED + settings["seed"])
    return [batch_of(data, settings, order).to(device) for _ in range(settings["calibration_batches"])]


def batch_of(data: Data, settings: Mapping[str, Any], order: torch.Generator) -> Tensor:
    """Windows of the training part at random places, (batch, context + 1)."""
    length = settings["context"] + 1
    starts = torch.randint(len(data.train) - length, (settings["batch"], 1), generator=order, device="cpu")
    return data.train[starts + torch.arange(length, device="cpu")]


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of predicting each token but the first, in nats; tokens (batch, context + 1)."""
    tokens = tokens.to(next(model.parameters()).device)
    logits = model(input_ids=tokens[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def backward(model: nn.Module, tokens: Tensor) -> None:
    """Gradients of that loss."""
    next_token_loss(model, tokens).backward()  # type: ignore[no-untyped-call]


def held_out_loss(model: nn.Module, windows: Tensor) -> float:
    """The same mean over a part that is not trained on, in evaluation mode; windows (windows, context + 1)."""
    return mean_loss(model, windows, _EVALUATION_BATCH)
