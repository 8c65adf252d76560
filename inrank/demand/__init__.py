"""Ranks and widths by demand: which directions of which weight the loss asks for, and what a budget buys of them."""

from __future__ import annotations

from inrank.demand.factorize import factorize

__all__ = ["factorize"]
