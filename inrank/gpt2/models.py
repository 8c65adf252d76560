"""GPT-2: the paper's three sizes and small ones of your own, and how many parameters they have at a rank.

References:
    Radford et al. 2019, Language models are unsupervised multitask learners; Zhao et al. 2023, Tables 1 and 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inrank.layers import InRankLinear, keep_first, layers_of, restore_layers

if TYPE_CHECKING:
    from transformers import GPT2Config

TARGETS = "*.mlp.*"  # section 6: "all the MLP layers"
PAPER_VOCABULARY, PAPER_CONTEXT = 50257, 1024
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}  # a parameter, as Table 1 counts model size


@dataclass(frozen=True)
class Size:
    """How large a GPT-2 is.

    Attributes:
        name: `small`, `medium`, `large` or LAYERSxWIDTH.
        layers: blocks.
        width: of the residual stream.
        of_paper: whether it is one of the paper's three, with the paper's recipe as defaults.
    """

    name: str
    layers: int
    width: int
    of_paper: bool = False

    @property
    def heads(self) -> int:
        """One for every 64 of the width, or the nearest number below that divides it: 12, 16, 20 for the paper's."""
        return next(heads for heads in range(max(1, self.width // 64), 0, -1) if self.width % heads == 0)

    @property
    def mlp_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every MLP matrix, by dotted layer name."""
        kinds = {"c_fc": (4 * self.width, self.width), "c_proj": (self.width, 4 * self.width)}
        return {
            f"transformer.h.{block}.mlp.{kind}": shape for block in range(self.layers) for kind, shape in kinds.items()
        }


PAPER_SIZES = {
    size.name: size
    for size in (Size("small", 12, 768, True), Size("medium", 24, 1024, True), Size("large", 36, 1280, True))
}


def parse_size(text: str) -> Size:
    """`small`, `medium`, `large`, or LAYERSxWIDTH such as `4x128`.

    Raises:
        ValueError: it is none of these.
    """
    if text in PAPER_SIZES:
        return PAPER_SIZES[text]
    match = re.fullmatch(r"([1-9]\d*)[x×]([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"size must be small, medium, large or LAYERSxWIDTH such as 4x128, got {text!r}")
    layers, width = int(match[1]), int(match[2])
    return Size(f"{layers}x{width}", layers, width)


def config_of(size: Size, vocabulary: int = PAPER_VOCABULARY, context: int = PAPER_CONTEXT) -> GPT2Config:
    """The configuration for transformers, with GPT-2's own dropout of 0.1."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        use_cache=False,
        bos_token_id=None,  # the defaults lie outside a small vocabulary
        eos_token_id=None,
    )


def build(
    size: Size,
    vocabulary: int = PAPER_VOCABULARY,
    context: int = PAPER_CONTEXT,
    *,
    device: str = "cpu",
    widths: Sequence[int] | None = None,
) -> nn.Module:
    """A `GPT2LMHeadModel` with fresh weights from torch's global random state; none on the device `meta`.

    Args:
        size: of the model.
        vocabulary: tokens.
        context: positions.
        device: of the weights.
        widths: hidden units of each block's MLP. Default: 4 × the width of the model. As far as they are not above it,
            all that is left of the model has the very weights that it has without them.
    """
    from transformers import GPT2LMHeadModel

    config = config_of(size, vocabulary, context)
    if widths is not None and max(widths) > 4 * size.width:
        config.n_inner = max(widths)
    with torch.device(device):
        model: nn.Module = GPT2LMHeadModel(config)
    if widths is not None:
        keep_first(model, {f"transformer.h.{block}.mlp": width for block, width in enumerate(widths)})
        if len(set(widths)) == 1:
            config.n_inner = widths[0]  # so that transformers' own from_pretrained reads it too
    return model


def parameter_count(
    size: str,
    rank: int | Mapping[str, int] | None = None,
    *,
    vocabulary: int = PAPER_VOCABULARY,
    context: int = 1024,
    widths: Sequence[int] | None = None,
) -> int:
    """Parameters of a GPT-2 whose MLP matrices are U V of a rank, or narrower; nothing is allocated.

    >>> parameter_count("small"), parameter_count("small", 254)
    (124439808, 91225344)

    Args:
        size: as for `parse_size`.
        rank: of every MLP matrix, or by layer name; None for the dense model.
        vocabulary: tokens.
        context: positions.
        widths: hidden units of each block's MLP, of the dense model. Default: 4 × its width.

    Raises:
        ValueError: no such size, or the rank does not fit it.

    References:
        Table 1 of the paper, "Params": biases are kept, attention and embeddings stay dense.
    """
    parsed = parse_size(size)
    model = build(parsed, vocabulary, context, device="meta", widths=widths)
    if rank is not None:
        most = parsed.width
        ranks = {name: rank if isinstance(rank, int) else rank[name] for name in parsed.mlp_shapes}
        if wrong := [value for value in ranks.values() if not 1 <= value <= most]:
            raise ValueError(f"rank must be in 1..{most} for size {parsed.name}, got {wrong[0]}")
        restore_layers(model, {name: {"rank": value} for name, value in ranks.items()})
    return parameters_of(model)


def parameters_of(model: nn.Module) -> int:
    """Parameters of a model; of layers that can still grow W0 and the columns in use, the buffer rank not counted."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for layer in layers_of(model).values():
        if isinstance(layer, InRankLinear):
            total -= (layer.capacity - layer.rank) * (layer.rows + layer.cols)
    return total


def ranks_of(model: nn.Module) -> dict[str, int]:
    """Rank of every MLP matrix by layer name: the factored ones' own, min(rows, cols) of the dense ones."""
    found = {name: layer.rank for name, layer in layers_of(model).items()}
    if found:
        return found
    shapes: dict[str, Any] = {
        name: module.weight.shape
        for name, module in model.named_modules()
        if ".mlp." in f".{name}." and hasattr(module, "weight")
    }
    return {name: min(shape) for name, shape in shapes.items()}
