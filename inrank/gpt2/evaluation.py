"""How well a model predicts a text: the mean loss over windows that do not overlap, in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@torch.no_grad()
def mean_loss(model: nn.Module, windows: Tensor, batch_size: int) -> float:
    """Mean cross-entropy in nats a token; its exponential is the perplexity. The model's mode is kept.

    Args:
        model: a causal language model of transformers.
        windows: (windows, context + 1) tokens; the first `context` of each are shown, the last ones predicted.
        batch_size: windows at once.
    """
    mode, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        total = torch.zeros((), dtype=torch.float64, device="cpu")
        for batch in torch.split(windows, batch_size):
            batch = batch.to(device)
            logits = model(input_ids=batch[:, :-1]).logits.float()
            total += cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").cpu().double()
    finally:
        model.train(mode)
    return float(total) / windows[:, 1:].numel()
