"""The paper's mathematics: linear networks (Theorem 2), greedy low-rank learning (Algorithm 1), ZerO."""

from __future__ import annotations

from inrank.theory.deep_linear_network import DeepLinearNetwork, curvature_bound
from inrank.theory.gradient_flow import gradient_flow
from inrank.theory.greedy_low_rank import greedy_low_rank
from inrank.theory.linear_networks import (
    TargetModes,
    learning_time,
    mode_strength,
    orthogonal_start,
    random_orthogonal,
    random_target,
    unbalanced_mode_strength,
)
from inrank.theory.matrix_costs import Cost, MatrixCompletion, MatrixRegression
from inrank.theory.zero_initialization import zero_initialize_

__all__ = [
    "Cost",
    "DeepLinearNetwork",
    "MatrixCompletion",
    "MatrixRegression",
    "TargetModes",
    "curvature_bound",
    "gradient_flow",
    "greedy_low_rank",
    "learning_time",
    "mode_strength",
    "orthogonal_start",
    "random_orthogonal",
    "random_target",
    "unbalanced_mode_strength",
    "zero_initialize_",
]
