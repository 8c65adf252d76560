"""Ranks that grow while training runs: when, by how much, and what the optimizer keeps."""

from __future__ import annotations

from inrank.growth.controller import Growth, RankController
from inrank.growth.factorize import Factorization, Factorized, factorize
from inrank.growth.initialization import initialize_from_gradient
from inrank.growth.optimizer_state import INSTEAD, replace_parameters
from inrank.growth.processes import (
    broadcast,
    broadcast_integers,
    is_distributed,
    meeting_device,
    process_number,
    sum_over_processes,
)
from inrank.growth.rule import ExplainedRatio, Observation, needs_gradient

__all__ = [
    "INSTEAD",
    "ExplainedRatio",
    "Factorization",
    "Factorized",
    "Growth",
    "Observation",
    "RankController",
    "broadcast",
    "broadcast_integers",
    "factorize",
    "initialize_from_gradient",
    "is_distributed",
    "meeting_device",
    "needs_gradient",
    "process_number",
    "replace_parameters",
    "sum_over_processes",
]
