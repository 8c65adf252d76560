"""Models with fused projections: small ones of transformers, and modules as other people's code has them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

HEADS, WIDTH, DIM = 4, 8, 32
SIZES = {"hidden_size": DIM, "num_attention_heads": HEADS, "num_hidden_layers": 1, "vocab_size": 50}
GPT = {"n_embd": DIM, "n_head": HEADS, "n_layer": 1, "vocab_size": 50}
INTERLEAVED = (HEADS, WIDTH, WIDTH, WIDTH)
BLOCKS = (1, DIM, DIM, DIM)


def transformer(kind: str, config: str, **options: Any) -> nn.Module:
    """A model of transformers by the names of its class and its configuration's."""
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options))
    return model


def _options(kind: str, config: str, **options: Any) -> dict[str, Any]:
    return {"kind": kind, "config": config, **options}


_FALCON = _options("FalconForCausalLM", "FalconConfig", **SIZES)
_BIGCODE = _options("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT)
_FEW = {"num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0, **SIZES}
_VISION = {k: v for k, v in SIZES.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 16}
_BLOOM = {"hidden_size": DIM, "n_head": HEADS, "n_layer": 1, "vocab_size": 50}
_BARK = {"hidden_size": DIM, "num_heads": HEADS, "num_layers": 1, "input_vocab_size": 50, "output_vocab_size": 50}
_MPT = {"d_model": DIM, "n_heads": HEADS, "n_layers": 1, "vocab_size": 50}
GLM = _options("GlmForCausalLM", "GlmConfig", head_dim=8, **_FEW)
# Options, then heads that have rows of their own, and the rows of q, k and v in each.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "gpt-neox": (_options("GPTNeoXForCausalLM", "GPTNeoXConfig", intermediate_size=64, **SIZES), INTERLEAVED),
    "bloom": (_options("BloomForCausalLM", "BloomConfig", **_BLOOM), INTERLEAVED),
    "persimmon": (_options("PersimmonForCausalLM", "PersimmonConfig", intermediate_size=64, **SIZES), INTERLEAVED),
    "falcon, one head of k and v": (_FALCON, (1, DIM, WIDTH, WIDTH)),
    "falcon, all heads": (_FALCON | {"multi_query": False}, INTERLEAVED),
    "falcon, groups": (_FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, (2, 2 * WIDTH, WIDTH, WIDTH)),
    "phi3": (_options("Phi3ForCausalLM", "Phi3Config", **_FEW), (1, DIM, 16, 16)),
    "gpt-bigcode, one head of k and v": (_BIGCODE, (1, DIM, WIDTH, WIDTH)),
    "gpt-bigcode, all heads": (_BIGCODE | {"multi_query": False}, INTERLEAVED),
    "mpt": (_options("MptForCausalLM", "MptConfig", **_MPT), BLOCKS),
    "modernbert": (
        _options("ModernBertForMaskedLM", "ModernBertConfig", intermediate_size=48, pad_token_id=0, **SIZES),
        BLOCKS,
    ),
    "blip": (_options("BlipVisionModel", "BlipVisionConfig", intermediate_size=64, **_VISION), BLOCKS),
    "vitdet": (_options("VitDetModel", "VitDetConfig", pretrain_image_size=32, **_VISION), BLOCKS),
    "bark": (_options("BarkSemanticModel", "BarkSemanticConfig", **_BARK), BLOCKS),
}


class NanoAttention(nn.Module):
    """As nanoGPT and minGPT have it."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.n_head, self.n_embd = HEADS, DIM

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        return self.c_proj(q + v + k.transpose(1, 2).reshape(B, T, C))


class TimmAttention(nn.Module):
    """As timm's vision transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, WIDTH
        self.qkv, self.proj = nn.Linear(DIM, DIM * 3), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj((q + k + v).transpose(1, 2).reshape(B, N, C))


class Lucid(nn.Module):
    """As the many models with `to_qkv` have it: the heads' width is not kept."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.heads, self.to_qkv = HEADS, layer

    def forward(self, x: Tensor) -> Any:
        qkv = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in qkv)
        return q, k, v


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.to_q, self.to_kv = HEADS, nn.Linear(DIM, DIM), nn.Linear(24, 2 * DIM)

    def forward(self, x: Tensor, context: Tensor) -> Any:
        k, v = self.to_kv(context).chunk(2, dim=-1)
        return self.to_q(x), k, v


class Swi(nn.Module):
    """As in DINOv2 and xFormers."""

    def __init__(self) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(DIM, 96), nn.Linear(48, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.w12(x).chunk(2, dim=-1)
        return self.w3(nn.functional.silu(x1) * x2)


class Geglu(nn.Module):
    """As diffusers have it: the name says nothing, the code all."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(DIM, 96)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.proj(x)
        hidden, gate = hidden.chunk(2, dim=-1)
        return hidden * nn.functional.gelu(gate)


class Reversed(nn.Module):
    """Its code takes the keys first."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.c_attn = HEADS, nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Any:
        k, q, v = torch.split(self.c_attn(x), DIM, dim=-1)
        return q, k, v


class NoCode(nn.Module):
    """Numbers alone, as a module whose code cannot be read."""

    def __init__(self, name: str, layer: nn.Module, **numbers: Any) -> None:
        super().__init__()
        self.add_module(name, layer)
        vars(self).update(numbers)


class HeadFirst(nn.Module):
    """As MaxViT has it under timm's own names: every head's q, k and v are side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.dim_head = HEADS, WIDTH
        self.qkv = nn.Linear(DIM, DIM * 3)

    def forward(self, x: Tensor) -> Any:
        B = x.shape[0]
        return self.qkv(x).view(B, -1, self.num_heads, self.dim_head * 3).transpose(1, 2).chunk(3, dim=3)


class HeadFirstByMinusOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.to_qkv = HEADS, nn.Linear(DIM, DIM * 3)

    def forward(self, x: Tensor) -> Any:
        qkv = self.to_qkv(x)
        q, k, v = qkv.view(*x.shape[:2], self.heads, -1).chunk(3, dim=-1)
        return q, k, v


class BothWays(nn.Module):
    """Which way is taken is decided elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.head_first = HEADS, WIDTH, True
        self.qkv = nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Any:
        if self.head_first:
            return self.qkv(x).view(*x.shape[:2], self.num_heads, 3 * self.head_dim).chunk(3, dim=-1)
        return self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).unbind(2)


class Gates(nn.Module):
    """Every second row is the gate's."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(DIM, 96), nn.Linear(48, DIM)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up_proj(x)
        return self.down_proj(both[..., ::2] * both[..., 1::2])


class OverTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(DIM, 96)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.out(x).chunk(2)
        return x * gate


class Inside(nn.Module):
    """Every third row is a query's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.qkv = HEADS, WIDTH, nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Any:
        return self.qkv(x).view(*x.shape[:2], self.num_heads, self.head_dim, 3).unbind(-1)


class InsideByEinops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.to_qkv = HEADS, nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Any:
        return rearrange(self.to_qkv(x), "b n (h d qkv) -> qkv b h n d", h=self.heads, qkv=3)


class BlocksByEinops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.Wqkv = HEADS, nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Any:
        return rearrange(self.Wqkv(x), "b n (three h d) -> three b h n d", h=self.heads, three=3)


class HeadsByEinops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.to_qkv = HEADS, nn.Linear(DIM, 3 * DIM)

    def forward(self, x: Tensor) -> Any:
        return rearrange(self.to_qkv(x), "b n (h qkv d) -> qkv b h n d", h=self.heads, qkv=3)


class CutElsewhere(nn.Module):
    """Another of its methods views the output, head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv = HEADS, nn.Linear(DIM, 3 * DIM)

    def apart(self, x: Tensor) -> Tensor:
        return x.view((*x.shape[:-1], self.num_heads, -1))

    def forward(self, x: Tensor) -> Any:
        return self.apart(self.qkv(x)).chunk(3, dim=-1)


class Grouped(nn.Module):
    """As older LitGPT has it: group by group, by a module that looks like one of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.qkv = HEADS, 2, WIDTH, nn.Linear(DIM, 64)

    def forward(self, x: Tensor) -> Any:
        qkv = self.qkv(x)
        qkv = qkv.view(*x.shape[:2], self.num_kv_heads, self.num_heads // self.num_kv_heads + 2, self.head_dim)
        return qkv.split((2, 1, 1), dim=-2)


class BySizes(nn.Module):
    """As gpt-fast has it."""

    def __init__(self, shared: int = 2) -> None:
        super().__init__()
        self.n_head, self.head_dim, self.n_local_heads = HEADS, WIDTH, shared
        self.wqkv = nn.Linear(DIM, 64)

    def forward(self, x: Tensor) -> Any:
        few = self.n_local_heads * self.head_dim
        q, k, v = self.wqkv(x).split([DIM, few, few], dim=-1)
        return q, k, v


class GluMlp(nn.Module):
    """As timm has it, for EVA and DINOv2."""

    def __init__(self, gate_last: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate_last = nn.Linear(DIM, 96), nn.Linear(48, DIM), gate_last

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x1, x2 = x.chunk(2, dim=-1)
        return self.fc2(x1 * x2.sigmoid() if self.gate_last else x1.sigmoid() * x2)


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """Stands for that of einops."""
    raise NotImplementedError
