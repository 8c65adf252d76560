"""Small models for several processes, the ways to lay them out over a mesh, a training that any number can share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.optim import SGD, AdamW, Optimizer

from inrank_monitor import SpectrumTracker, attach

STEPS, VOCABULARY, CONTEXT, BATCH = 4, 40, 8, 12
OPTIONS: dict[str, Any] = {"every": 2, "tensorboard": False, "buffer_rank": 3, "max_overhead": 1.0}


class Block(nn.Module):
    """Attention and MLP of Linear layers, as tensor parallelism wants them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = [layer(hidden).unflatten(-1, (-1, self.size)) for layer in (self.query, self.key, self.value)]
        mixed = nn.functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts), is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        down: Tensor = self.down(nn.functional.gelu(self.up(hidden)))
        return hidden + down


class Language(nn.Module):
    """A language model; widths of 24 go over 2, 3 and 4 processes evenly, an odd vocabulary over none."""

    def __init__(self, width: int = 24, heads: int = 12, blocks: int = 2, vocabulary: int = 41) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def language(dtype: torch.dtype = torch.float64, **options: int) -> Language:
    """Always the same one."""
    torch.manual_seed(7)
    return Language(**options).to(dtype)


def gpt2(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> nn.Module:
    """transformers' GPT-2, always the same one; a width of 34 goes over 3 processes as 12, 12, 10."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(8)
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 34, "n_layer": 2, "n_head": 2}
    dropouts = {f"{where}_pdrop": dropout for where in ("attn", "embd", "resid")}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=None, eos_token_id=None)).to(dtype)


def loss_of(model: nn.Module, step: int, part: int = 0, parts: int = 1) -> Tensor:
    """Next-token loss on one part of the step's batch; the mean over the parts is the loss of the batch."""
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT), generator=torch.Generator().manual_seed(step))
    tokens = tokens.chunk(parts)[part]
    output = model(tokens)
    logits = getattr(output, "logits", output)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), tokens[:, 1:].flatten())


def adamw(model: nn.Module) -> AdamW:
    return AdamW(model.parameters(), lr=1e-2)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range = range(STEPS),
    part: int = 0,
    parts: int = 1,
    tracker: SpectrumTracker | None = None,
    before_step: Callable[[], None] = lambda: None,
) -> list[float]:
    """The losses of this part of each batch."""
    losses = []
    for step in steps:
        loss = loss_of(model, step, part, parts)
        loss.backward()
        before_step()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if tracker is not None:
            tracker.log(loss=loss)
    return losses


def record(model: nn.Module, directory: Path, part: int = 0, parts: int = 1, **options: Any) -> SpectrumTracker:
    """A run of four steps, closed."""
    optimizer = adamw(model)
    tracker = attach(model, optimizer, directory, **OPTIONS | options)
    with tracker:
        train(model, optimizer, part=part, parts=parts, tracker=tracker)
    return tracker


class Groups(nn.Module):
    """Two heads of k and v, each beside the three of q that it serves: 20 rows that no cut respects."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.new_decoder_architecture = 6, 2, 2, True
        self.query_key_value = nn.Linear(9, 20)


class Zoo(nn.Module):
    """Every kind of weight that is watched in shards; it is never called, only stepped."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall, self.few_rows = nn.Linear(13, 7), nn.Linear(5, 11), nn.Linear(9, 2)
        self.attention = nn.MultiheadAttention(10, 2)
        self.lstm, self.gru = nn.LSTM(5, 7), nn.GRUCell(6, 5)
        self.convolution, self.turned = nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(7, 5, 2)
        self.grouped, self.in_groups = nn.Conv1d(6, 8, 3, groups=2), nn.ConvTranspose1d(6, 8, 3, groups=2)
        self.experts = nn.Parameter(torch.randn(5, 6, 4))
        self.embed = nn.Embedding(17, 6)
        self.tied = nn.Linear(6, 17, bias=False)
        self.tied.weight = self.embed.weight
        self.frozen, self.still = nn.Linear(4, 6), nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.groups = Groups()


def zoo(dtype: torch.dtype = torch.float64) -> Zoo:
    torch.manual_seed(9)
    return Zoo().to(dtype)


def step_zoo(model: nn.Module, directory: Path, **options: Any) -> SpectrumTracker:
    """Two steps along random gradients, `still` excepted; of parameters in shards each process takes its own part."""
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.05)
    generator = torch.Generator().manual_seed(3)
    tracker = attach(model, optimizer, directory, **OPTIONS | {"every": 1, "embeddings": True} | options)
    with tracker:
        for _ in range(2):
            for name, parameter in model.named_parameters():
                gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
                if parameter.requires_grad and not name.startswith("still"):
                    parameter.grad = like(parameter, gradient)
            optimizer.step()
    return tracker


def like(parameter: Tensor, whole: Tensor) -> Tensor:
    """The same values laid out as the parameter is."""
    if not hasattr(parameter, "placements"):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def lay_out(model: nn.Module, mesh: DeviceMesh, *placements: Placement) -> nn.Module:
    """Every parameter to a DTensor; a placement on a dimension that a parameter lacks takes its last one."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                fitting = [_fitting(placement, parameter.ndim) for placement in placements]
                value = distribute_tensor(parameter.detach(), mesh, fitting, src_data_rank=None)
                made[parameter] = nn.Parameter(value, requires_grad=parameter.requires_grad)
            setattr(module, name, made[parameter])
    return model


def _fitting(placement: Any, dimensions: int) -> Any:
    if getattr(placement, "dim", 0) < dimensions:
        return placement
    return type(placement)(dimensions - 1)


def shard(model: Any, mesh: DeviceMesh, **options: Any) -> Any:
    """FSDP2: each block by itself, then the rest."""
    for block in model.blocks if hasattr(model, "blocks") else model.transformer.h:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def parallelize(model: Language, mesh: DeviceMesh) -> Language:
    """Tensor parallel blocks: columns first, then rows."""
    plan: dict[str, Any] = {name: ColwiseParallel() for name in ("query", "key", "value", "up")}
    for block in model.blocks:
        parallelize_module(block, mesh, plan | {name: RowwiseParallel() for name in ("out", "down")})
    return model


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The gathered weights, by name."""
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        for name, value in model.named_parameters()
    }
