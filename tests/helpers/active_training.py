"""A converted GPT-2 of a few thousand parameters and its data, for the tests of the active mode in people's loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

import inrank

VOCABULARY, CONTEXT = 40, 12
TARGETS = "*.mlp.*"


def gpt2(dropout: float = 0.0, layers: int = 2, width: int = 16) -> Any:
    """transformers' own GPT-2, seeded; in training mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": width, "n_layer": layers, "n_head": 2}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **off, bos_token_id=None, eos_token_id=None))
    return model.train()


def converted(**options: Any) -> Any:
    """That GPT-2 with its MLPs growing from rank 1 with a buffer of 3; options of `gpt2` and of `convert`."""
    sizes = {name: options.pop(name) for name in ("dropout", "layers", "width") if name in options}
    model = gpt2(**sizes)
    inrank.convert(model, TARGETS, **{"initial_rank": 1, "buffer_rank": 3} | options)
    return model


def tokens(step: int, rows: int = 8) -> Tensor:
    """A batch that the step's number alone decides: counting up from a random token, which can be learned."""
    first = torch.randint(VOCABULARY, (rows, 1), generator=torch.Generator().manual_seed(step))
    return (first + torch.arange(CONTEXT)) % VOCABULARY


def loss_of(model: nn.Module, step: int, rows: int = 8) -> Tensor:
    """Mean cross-entropy of one batch's next tokens."""
    return next_token_loss(model, tokens(step, rows))


def next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """The same of a given batch."""
    return cross_entropy(model(input_ids=batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def layers_of(model: nn.Module) -> dict[str, inrank.InRankLinear]:
    """The growing layers, wrappers or not."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, inrank.InRankLinear)}


def one_more(seen: inrank.Observation) -> int:
    """A rule that grows every layer at every check."""
    return seen.rank + 1


@inrank.needs_gradient
def by_gradient(seen: inrank.Observation) -> int:
    """A rule that looks at the gradient outside the spans, and at what it would be of noise."""
    assert seen.gradient is not None
    assert seen.gradient_outside is not None
    share = float((seen.gradient_outside**2).sum() / (seen.gradient**2).sum()) ** 0.5
    return seen.rank + (2 if share > 0.5 * seen.null_gradient_share() else 1)


class Run:
    """A converted model, its optimizer and its controller, in a loop that the test writes.

    `step` stands where a user has `controller.step()` and holds each growth to its promise: no output changes.
    """

    def __init__(
        self,
        optimizer: Callable[..., Optimizer] = AdamW,
        rule: inrank.growth_rule.Rule | None = one_more,
        every: int = 5,
        model: nn.Module | None = None,
        threshold: float = 0.9,
        **options: Any,
    ) -> None:
        self.model = converted() if model is None else model
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 5e-3} | options)
        self.controller = inrank.RankController(self.model, self.optimizer, threshold=threshold, rule=rule, every=every)
        self.losses: list[float] = []
        self.first = self.controller.ranks

    def loss(self, step: int, rows: int = 8) -> Tensor:
        """The loss of a batch, noted."""
        loss = loss_of(self.model, step, rows)
        self.losses.append(float(loss.detach()))
        return loss

    def step(self) -> None:
        """`controller.step()`, with the output before and after it compared."""
        before, grown = self.logits(), len(self.controller.history)
        self.controller.step()
        if len(self.controller.history) > grown:
            torch.testing.assert_close(self.logits(), before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Of a batch that is never trained on, in evaluation mode, without gradients or autocast."""
        self.model.eval()
        logits: Tensor = self.model(input_ids=tokens(10_000)).logits.float()
        self.model.train()
        return logits

    def check(self, growths: int = 3) -> None:
        """It learned, its ranks grew at least so often, and just the columns in use have been trained."""
        assert all(torch.isfinite(torch.tensor(self.losses)))
        assert sum(self.losses[-4:]) < 0.9 * sum(self.losses[:4])
        steps = {growth.step for growth in self.controller.history}
        assert len(steps) >= growths
        for name, layer in layers_of(self.model).items():
            assert layer.rank > self.first[name.replace("_orig_mod.", "")]
            U, V = layer.U.detach(), layer.V.detach()
            assert bool(torch.isfinite(U).all() and torch.isfinite(V).all())
            assert U[:, : layer.used].any(0).all(), "a column in use was never trained"
            assert V[: layer.used].any(1).all()
            assert not U[:, layer.used :].any()
            assert not V[layer.used :].any()
