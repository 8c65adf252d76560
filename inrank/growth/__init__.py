"""Ranks that grow while training runs: when, by how much, and what the optimizer keeps."""

from __future__ import annotations

from inrank.growth.controller import Growth, RankController
from inrank.growth.factorize import Factorization, factorize
from inrank.growth.initialization import initialize_from_gradient
from inrank.growth.processes import is_distributed, process_number
from inrank.growth.rule import ExplainedRatio, Observation, needs_gradient

__all__ = [
    "ExplainedRatio",
    "Factorization",
    "Growth",
    "Observation",
    "RankController",
    "factorize",
    "initialize_from_gradient",
    "is_distributed",
    "needs_gradient",
    "process_number",
]
