"""Ranks and widths by demand: which directions of which weight the loss asks for, and what a budget buys of them."""

from __future__ import annotations

from inrank.demand.dense_then_low_rank import DenseThenLowRank, report_of
from inrank.demand.factorize import factorize
from inrank.demand.moment import At, Moment, Settled
from inrank.demand.widths import WidthPlan, narrow, plan_widths

__all__ = [
    "At",
    "DenseThenLowRank",
    "Moment",
    "Settled",
    "WidthPlan",
    "factorize",
    "narrow",
    "plan_widths",
    "report_of",
]
