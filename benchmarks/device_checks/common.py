"""What the checks share: models, batches, steps, a clock that waits for the device."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

VOCABULARY = 50257


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Attributes:
        device: an accelerator, or the CPU for a rehearsal.
        tiny: models and numbers of steps that a CPU gets through in seconds.
    """

    device: torch.device
    tiny: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    def choose(self, full: Any, tiny: Any) -> Any:
        """A size."""
        return tiny if self.tiny else full

    def gpt2(self, size: str, seed: int = 0) -> Any:
        """Transformers' GPT-2 with random weights: `few` layers, `small` or `medium`."""
        from transformers import GPT2Config, GPT2LMHeadModel

        layers, width = {"few": (4, 256), "small": (12, 768), "medium": (24, 1024)}[size]
        vocabulary = VOCABULARY
        if self.tiny:
            layers, width, vocabulary = 2, 64, 256
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=vocabulary,
            n_layer=layers,
            n_embd=width,
            n_head=max(width // 64, 1),
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
        )
        return GPT2LMHeadModel(config).to(self.device).train()

    def tokens(self, sequences: int = 8, length: int = 1024) -> Tensor:
        """A batch."""
        if self.tiny:
            sequences, length = 2, 32
        return torch.randint(self.choose(VOCABULARY, 256), (sequences, length + 1), device=self.device)

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Of language modelling, in bfloat16."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = model(input_ids=tokens[:, :-1]).logits
        return cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, after: Callable[[Tensor], object]
    ) -> Tensor:
        """One of a training; `after` gets the loss once the optimizer has stepped."""
        loss = self.loss(model, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        after(loss)
        optimizer.zero_grad()
        return loss.detach()

    def adamw(self, model: nn.Module, rate: float = 1e-4, **options: Any) -> torch.optim.AdamW:
        """Fused on a GPU."""
        given = {"fused": True} if self.is_cuda else {}
        return torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad], lr=rate, **(given | options)
        )

    def wait(self) -> None:
        """Until the device has done all."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, act: Callable[[], object], times: int = 1) -> float:
        """Of one, the device's queue included."""
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            act()
        self.wait()
        return (time.perf_counter() - began) / times

    def peak_bytes(self, act: Callable[[], object]) -> int:
        """On the device, beyond what was there before; 0 without a GPU."""
        if not self.is_cuda:
            act()
            return 0
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        act()
        self.wait()
        return torch.cuda.max_memory_allocated() - before


@dataclass(frozen=True)
class Found:
    """What a check found.

    Attributes:
        passes: whether it is within its limit.
        limit: in words.
        numbers: by name.
    """

    passes: bool
    limit: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One of them.

    Attributes:
        run: what it does.
        seconds: it may take on one H100.
        needs_cuda: whether there is nothing to rehearse on a CPU.
    """

    run: Callable[[Setting], Found]
    seconds: float
    needs_cuda: bool = False

    @property
    def name(self) -> str:
        """In the table."""
        return self.run.__name__


def folder() -> Path:
    """A new one, for a run."""
    return Path(tempfile.mkdtemp(prefix="run-")) / "run"


def nothing(loss: Tensor) -> None:
    """After a step."""
