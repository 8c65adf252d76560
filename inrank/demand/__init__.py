"""Ranks and widths by demand: which directions of which weight the loss asks for, and what a budget buys of them."""

from __future__ import annotations

from inrank.demand.factorize import factorize
from inrank.demand.widths import WidthPlan, narrow, plan_widths

__all__ = ["WidthPlan", "factorize", "narrow", "plan_widths"]
