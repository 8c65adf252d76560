"""Numbers drawn from a spectrum: ranks, explained ratios, norms, and what noise of the same shape would have."""

from __future__ import annotations

from inrank_monitor.ranks.buffer_rank import buffer_rank_text, default_buffer_rank, too_large_text
from inrank_monitor.ranks.cut import OF_SOME_MATRICES, blank_cut, cut_text, is_cut, is_known_rank
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
from inrank_monitor.ranks.signal import energy_share, noise_edge, signal_rank, signal_share
from inrank_monitor.ranks.tail import tail_exponent
from inrank_monitor.ranks.verdict import VERDICTS, Verdict, dense_verdict, factors_verdict, spectrum_verdict
from inrank_monitor.ranks.watches import WATCHES, History

__all__ = [
    "DEFINITIONS",
    "OF_SOME_MATRICES",
    "VERDICTS",
    "WATCHES",
    "Definition",
    "History",
    "Kind",
    "RankRule",
    "Verdict",
    "blank_cut",
    "buffer_rank_text",
    "check_options",
    "cut_text",
    "default_buffer_rank",
    "dense_verdict",
    "effective_rank",
    "energy_share",
    "explained_ratio",
    "explained_ratio_curve",
    "factors_verdict",
    "intrinsic_rank",
    "is_cut",
    "is_known_rank",
    "next_rank",
    "noise_edge",
    "null_rank",
    "null_singular_values",
    "signal_rank",
    "signal_share",
    "spectrum_verdict",
    "tail_exponent",
    "too_large_text",
    "untrained_growth",
]
