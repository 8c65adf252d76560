"""Ranks to the settings of a LoRA: one rank a module, names that mean that module alone, and one scale for all.

PEFT reads a name in a list of target modules as an end of names (`0` is also `1.0`), and the key of a pattern as a
regular expression on the end of one; the scale of an adapter is α / r.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

# What PEFT's LoRA can wrap; recurrent layers, normalisations, experts and bare parameters it cannot.
LORA_LAYERS = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "Embedding", "MultiheadAttention")
_PART = re.compile(r"\[[^\]]*\]$")
_ATTENTION = "in_proj_weight"  # of an attention whose q, k and v are of one width, as PEFT demands
_ATTENTION_OUTPUT = "NonDynamicallyQuantizableLinear"  # its output layer, which PEFT adapts with it and not alone


class ModuleName(str):
    """A module's name that PEFT takes for this module alone, in a list of target modules and as a pattern's key.

    It is the name; only put into a text by an f-string, as PEFT does with it to match the ends of names, it is the
    anchored regular expression that the name alone matches. A saved configuration holds plain names.
    """

    def __format__(self, _: str) -> str:
        return anchored(str(self))


def anchored(name: str) -> str:
    """A key of `rank_pattern` and `alpha_pattern` that is this module's and no other's: `^mlp` for `mlp`."""
    return f"^{re.escape(name)}"


def rank_pattern(table: pd.DataFrame, max_rank: int | None = None) -> dict[str, int]:
    """Module name -> rank, for LoRA: the layers that PEFT can wrap and for which there is a rank above 0.

    Parts of one weight (q, k, v) are one module and get the largest of their ranks (their sum would fit them in every
    case, the largest does where they share directions). So does an attention of torch with its output layer. Ranks of
    convolutions with groups are multiples of these, as PEFT demands: the next above, or below `max_rank`.

    The names stand for these modules alone in `LoraConfig(target_modules=list(pattern), rank_pattern=pattern)`; once it
    is saved that is lost, and `lora_config` holds it.

    Args:
        table: from `advise`.
        max_rank: no rank above this; a convolution of more groups is left out.

    Raises:
        ValueError: `max_rank` is below 1.
    """
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    ranks: dict[str, int] = {}
    groups: dict[str, int] = {}
    for module, row in _adapted(table):
        ranks[module] = max(ranks.get(module, 1), int(row["rank"]))
        groups[module] = 1 if pd.isna(row["groups"]) else int(row["groups"])
    pattern: dict[str, int] = {}
    for module, rank in ranks.items():
        rank = -(-rank // groups[module]) * groups[module]
        if max_rank is not None:
            rank = min(rank, max_rank // groups[module] * groups[module])
        if rank:
            pattern[ModuleName(module)] = rank
    return pattern


def lora_config(table: pd.DataFrame, max_rank: int | None = None, scale: float = 1.0) -> dict[str, Any]:
    """What `peft.LoraConfig(**...)` takes, plain as JSON: each module's rank, and one scale for all.

    Args:
        table: from `advise`.
        max_rank: no rank above this.
        scale: α / r, of every layer.

    Raises:
        ValueError: no layer that LoRA can adapt has a rank (the table's `advice` says why), or an argument is out of
            range.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    pattern = rank_pattern(table, max_rank)
    if not pattern:
        why = ", ".join(dict.fromkeys(table["advice"])) if "advice" in table else ""
        raise ValueError(f"no layer that LoRA can adapt has an advised rank ({why or 'the table is empty'})")
    most = max(pattern.values())
    layers = {_layer(row) for _, row in _adapted(table)}
    return {
        "r": most,
        "lora_alpha": _plain(scale * most),
        "target_modules": "|".join(re.escape(str(name)) for name in pattern),
        "rank_pattern": {anchored(str(name)): rank for name, rank in pattern.items()},
        "alpha_pattern": {anchored(str(name)): _plain(scale * rank) for name, rank in pattern.items()},
        "fan_in_fan_out": "Conv1D" in layers and "Linear" not in layers,
    }


def lora_json(config: Mapping[str, Any]) -> str:
    """A configuration as the text of a JSON file."""
    return json.dumps(dict(config), indent=2, ensure_ascii=False) + "\n"


def module_name(parameter: str) -> str:
    """The module that owns a parameter; parts and the parametrization's own path are left out.

    >>> module_name("h.0.attn.c_attn.weight"), module_name("layers.0.self_attn.in_proj_weight")
    ('h.0.attn.c_attn', 'layers.0.self_attn')
    """
    return re.sub(r"(^|\.)(in_proj_weight|weight(_\w+)?|original\d*)$", "", _PART.sub("", parameter))


def _adapted(table: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Module and row of each matrix that has a rank above 0 and is part of a layer that LoRA can adapt."""
    rows: list[dict[str, Any]] = table[(table["rank"] > 0).fillna(False).astype(bool)].to_dict("records")  # type: ignore[assignment]
    attentions = {module_name(row["parameter"]) for row in rows if _PART.sub("", row["parameter"]).endswith(_ATTENTION)}
    for row in rows:
        module, layer = module_name(row["parameter"]), _layer(row)
        if row["kind"] == _ATTENTION_OUTPUT:
            above = module.removesuffix(".out_proj")
            module = above if above in attentions else ""
        elif layer not in LORA_LAYERS or (layer == "MultiheadAttention" and module not in attentions):
            continue
        if module and module != row["parameter"]:
            yield module, row


def _layer(row: Mapping[str, Any]) -> str:
    """The class that the owner is of; in runs that did not log it, the name of its class."""
    return str(row["kind"] if pd.isna(row["layer"]) else row["layer"])


def _plain(number: float) -> float:
    """An integer where it is one."""
    return int(number) if float(number).is_integer() else number
