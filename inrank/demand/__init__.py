"""Ranks and widths by demand: which directions of which weight the loss asks for, and what a budget buys of them."""

from __future__ import annotations

from inrank.demand.factorize import factorize
from inrank.demand.width_plan import WidthPlan, widths_from
from inrank.demand.widths import narrow, plan_widths

__all__ = ["WidthPlan", "factorize", "narrow", "plan_widths", "widths_from"]
