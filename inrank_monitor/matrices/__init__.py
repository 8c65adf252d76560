"""Weights as matrices: which ones a model has, what they are called, and their values at the start."""

from __future__ import annotations

from inrank_monitor.matrices.adapters import Adapter, since_start
from inrank_monitor.matrices.finding import Coverage, CoverageRow, find_matrices, unwrap
from inrank_monitor.matrices.initial_weights import InitialWeights, Keep, check_keep, load_later, no_weights
from inrank_monitor.matrices.layers import layer_of
from inrank_monitor.matrices.layout import Parts
from inrank_monitor.matrices.matrix import Block, LowRankUpdate, Matrix, has_memory, is_sharded, local
from inrank_monitor.matrices.patterns import glob
from inrank_monitor.matrices.reparametrized import hooked_weights
from inrank_monitor.matrices.skipping import FROZEN
from inrank_monitor.matrices.weights import named_weights

__all__ = [
    "FROZEN",
    "Adapter",
    "Block",
    "Coverage",
    "CoverageRow",
    "InitialWeights",
    "Keep",
    "LowRankUpdate",
    "Matrix",
    "Parts",
    "check_keep",
    "find_matrices",
    "glob",
    "has_memory",
    "hooked_weights",
    "is_sharded",
    "layer_of",
    "load_later",
    "local",
    "named_weights",
    "no_weights",
    "since_start",
    "unwrap",
]
