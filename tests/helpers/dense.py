"""Small dense models in training, of several kinds, and their batches."""

from __future__ import annotations

from typing import Any

import torch
from helpers.active import gpt2, tokens
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Batch = tuple[Tensor, Tensor]


def text_batches(count: int = 4) -> list[dict[str, Tensor]]:
    """For `helpers.active.gpt2` and `llama`."""
    return [{"input_ids": tokens(seed), "labels": tokens(seed)} for seed in range(count)]


def llama() -> Any:
    """A gated one, as small as it goes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=16))


def vit() -> Any:
    """A vision transformer, as small as it goes."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(
        ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=5, problem_type="single_label_classification")
    )


def photos(count: int = 1) -> list[dict[str, Tensor]]:
    """For `vit`."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2, 4])
    return [{"pixel_values": torch.randn(3, 3, 8, 8, generator=generator), "labels": labels} for _ in range(count)]


def trained_gpt2(steps: int = 5, **options: Any) -> tuple[Any, torch.optim.AdamW]:
    """A GPT-2 of two blocks in float64 after a few steps."""
    model = gpt2(layers=2, **options).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        text_step(model, optimizer, step)
    return model, optimizer


def text_step(model: Any, optimizer: torch.optim.Optimizer, step: int) -> float:
    """One step of training; its loss."""
    batch = tokens(step)
    loss = model(input_ids=batch, labels=batch).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


class Small(nn.Module):
    """A convolution, a recurrent layer and Linear layers in one, with dropout and batch norm, for 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1, dilation=1)
        self.norm = nn.BatchNorm2d(12)
        self.rnn = nn.LSTM(12, 14, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.up = nn.Linear(14, 30, bias=False)
        self.head = nn.Linear(30, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).flatten(2).mT
        return self.head(torch.relu(self.up(self.drop(self.rnn(features)[0][:, -1]))))


def image_batches(count: int = 3, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """For `Small`."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(5, 3, 8, 8, generator=generator).to(dtype), torch.randint(0, 10, (5,), generator=generator))
        for _ in range(count)
    ]


def image_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Of one batch."""
    return cross_entropy(model(batch[0]), batch[1])


def trained_small() -> tuple[Small, torch.optim.AdamW]:
    """A `Small` in float64 after a step a batch."""
    model = Small().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in image_batches():
        optimizer.zero_grad()
        image_loss(model, batch).backward()
        optimizer.step()
    return model, optimizer
