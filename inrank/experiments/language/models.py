"""Word-level language models as the usual example has them: embedding, dropout, body, dropout, decoder.

The body is torch's own: tanh RNN, GRU, LSTM or a Transformer encoder with a causal mask. All weight matrices of a body
are width × width (a gate, a projection or a feed-forward half each), so that their spectra can be compared. Weights
begin as torch makes them: with the example's small uniform embedding deep recurrent bodies learn nothing for hundreds
of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RECURRENT = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
ARCHITECTURES = (*RECURRENT, "transformer")
_GATES = {"gru": "rzn", "lstm": "ifgo"}
_LONGEST_PERIOD = 10_000.0

State = Tensor | tuple[Tensor, ...] | None


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Kind and sizes of a model.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        vocabulary: how many different tokens there are.
        width: of embedding, hidden state and feed-forward.
        layers: of the body.
        heads: of attention; must divide the width.
        dropout: after the embedding, between layers and before the decoder.

    Raises:
        ValueError: there is no such architecture.
    """

    architecture: str
    vocabulary: int
    width: int
    layers: int
    heads: int = 2
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {self.architecture!r}")

    def body(self) -> nn.Module:
        """What lies between embedding and decoder, with fresh weights."""
        width, dropout = self.width, self.dropout
        if self.architecture in RECURRENT:
            between = dropout if self.layers > 1 else 0.0
            body: nn.Module = RECURRENT[self.architecture](width, width, self.layers, dropout=between)
            return body
        layer = nn.TransformerEncoderLayer(width, self.heads, dim_feedforward=width, dropout=dropout)
        # the nested tensors are for padded batches; asking for them only brings a warning
        return nn.TransformerEncoder(layer, self.layers, enable_nested_tensor=False)


class LanguageModel(nn.Module):
    """Predicts the next token at every place."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.body = config.body()
        self.decoder = nn.Linear(config.width, config.vocabulary)

    def forward(self, tokens: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Logits of the token after each place.

        Args:
            tokens: (time, batch).
            state: what an earlier call returned, to read on where it stopped; None for the beginning of a text.

        Returns:
            Logits (time, batch, vocabulary), and the state, detached; a Transformer has none.
        """
        embedded = self.embedding(tokens)
        if isinstance(self.body, nn.TransformerEncoder):
            width = embedded.shape[-1]
            placed = embedded + positions(len(tokens), width, tokens.device).to(embedded.dtype)[:, None]
            mask = nn.Transformer.generate_square_subsequent_mask(len(tokens), device=tokens.device)
            hidden = self.body(self.dropout(placed), mask=mask, is_causal=True)
        else:
            hidden, state = self.body(self.dropout(embedded), state)
        return self.decoder(self.dropout(hidden)), _detach(state)


def positions(length: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Sines and cosines of geometrically falling frequency, (length, width).

    References:
        Vaswani et al. 2017, Attention is all you need, section 3.5.
    """
    frequency = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(_LONGEST_PERIOD) / width))
    angle = torch.arange(length, device=device)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


def gates(architecture: str) -> Mapping[str, str]:
    """The kinds of matrices in a body: what each is called, and the glob that finds it in every layer."""
    if architecture == "transformer":
        attention = {f"attention {part}": f"*in_proj_weight[{part}]" for part in "qkv"}
        return {
            **attention,
            "attention out": "*out_proj.weight",
            "feed-forward 1": "*linear1.weight",
            "feed-forward 2": "*linear2.weight",
        }
    sides = {"input": "ih", "hidden": "hh"}
    if architecture not in _GATES:
        return {f"from {side}": f"*weight_{short}_l*" for side, short in sides.items()}
    return {
        f"{gate}, from {side}": f"*weight_{short}_l*[{gate}]"
        for side, short in sides.items()
        for gate in _GATES[architecture]
    }


def _detach(state: State) -> State:
    """Cut off from the graph: gradients end at the beginning of a piece of text."""
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()
