"""Layers that hold W0 + U V, and a model's conversion into them and back."""

from __future__ import annotations

from inrank.layers.convert import break_even_rank, convert, merge
from inrank.layers.factored_layer import FactoredLayer
from inrank.layers.gain import Gain, check_gain, matching_gain
from inrank.layers.inrank_layers import InRankLinear, LowRankLinear
from inrank.layers.model_layers import CONFIG_ENTRY, check_whole, growing_layers_of, layers_of, note_ranks
from inrank.layers.pretrained import from_pretrained, load_weights, restore_layers

__all__ = [
    "CONFIG_ENTRY",
    "FactoredLayer",
    "Gain",
    "InRankLinear",
    "LowRankLinear",
    "break_even_rank",
    "check_gain",
    "check_whole",
    "convert",
    "from_pretrained",
    "growing_layers_of",
    "layers_of",
    "load_weights",
    "matching_gain",
    "merge",
    "note_ranks",
    "restore_layers",
]
