"""Layers that hold W0 + U V, and a model's conversion into them and back."""

from __future__ import annotations

from inrank.layers.convert import break_even_rank, convert, convolution_of, matrix_of, merge, oriented
from inrank.layers.factored_layer import FactoredLayer, Origin
from inrank.layers.feedforward import (
    WIDTHS_ENTRY,
    FeedForward,
    check_widths,
    feedforwards_of,
    keep_first,
    note_widths,
)
from inrank.layers.gain import Gain, check_gain, matching_gain
from inrank.layers.inrank_layers import InRankLinear, LowRankLinear
from inrank.layers.model_layers import CONFIG_ENTRY, check_whole, growing_layers_of, layers_of, note_ranks
from inrank.layers.pretrained import from_pretrained, load_weights, low_ranks_in, restore_layers, restore_shapes
from inrank.layers.targets import KINDS, check_layer, choose_layers, kind_of

__all__ = [
    "CONFIG_ENTRY",
    "KINDS",
    "WIDTHS_ENTRY",
    "FactoredLayer",
    "FeedForward",
    "Gain",
    "InRankLinear",
    "LowRankLinear",
    "Origin",
    "break_even_rank",
    "check_gain",
    "check_layer",
    "check_whole",
    "check_widths",
    "choose_layers",
    "convert",
    "convolution_of",
    "feedforwards_of",
    "from_pretrained",
    "growing_layers_of",
    "keep_first",
    "kind_of",
    "layers_of",
    "load_weights",
    "low_ranks_in",
    "matching_gain",
    "matrix_of",
    "merge",
    "note_ranks",
    "note_widths",
    "oriented",
    "restore_layers",
    "restore_shapes",
]
