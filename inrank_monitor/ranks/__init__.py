"""Numbers drawn from a spectrum: ranks, explained ratios, norms, and what noise of the same shape would have."""

from __future__ import annotations

from inrank_monitor.ranks.buffer_rank import buffer_rank_text, default_buffer_rank, too_large_text
from inrank_monitor.ranks.metrics import (
    DEFINITIONS,
    Definition,
    check_options,
    effective_rank,
    explained_ratio,
    explained_ratio_curve,
    intrinsic_rank,
    next_rank,
)
from inrank_monitor.ranks.null_model import Kind, null_rank, null_singular_values, untrained_growth
from inrank_monitor.ranks.rule import RankRule
from inrank_monitor.ranks.tail import tail_exponent
from inrank_monitor.ranks.watches import WATCHES, History

__all__ = [
    "DEFINITIONS",
    "WATCHES",
    "Definition",
    "History",
    "Kind",
    "RankRule",
    "buffer_rank_text",
    "check_options",
    "default_buffer_rank",
    "effective_rank",
    "explained_ratio",
    "explained_ratio_curve",
    "intrinsic_rank",
    "next_rank",
    "null_rank",
    "null_singular_values",
    "tail_exponent",
    "too_large_text",
    "untrained_growth",
]
