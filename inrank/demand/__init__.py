"""Ranks and widths by demand: which directions of which weight the loss asks for, and what a budget buys of them."""

from __future__ import annotations

from inrank.demand.allocation import Room, check_budget
from inrank.demand.choosing_ranks import ALLOCATIONS
from inrank.demand.dense_then_low_rank import DenseThenLowRank, report_of
from inrank.demand.factor_groups import split_off
from inrank.demand.factorize import factorize
from inrank.demand.moment import At, Moment, Settled
from inrank.demand.training_batches import TrainingBatches
from inrank.demand.width_plan import WidthPlan, widths_from
from inrank.demand.widths import narrow, plan_widths

__all__ = [
    "ALLOCATIONS",
    "At",
    "DenseThenLowRank",
    "Moment",
    "Room",
    "Settled",
    "TrainingBatches",
    "WidthPlan",
    "check_budget",
    "factorize",
    "narrow",
    "plan_widths",
    "report_of",
    "split_off",
    "widths_from",
]
