"""Ranks that the loss confirms: how few directions of each update keep a loss of the caller's as it is.

The model is evaluated with W0 + (leading part of ΔW) in the place of each weight, and comes back to the bit.
"""

from __future__ import annotations

from inrank_monitor.loss_ranks.by_loss import loss_at_ranks, ranks_by_loss
from inrank_monitor.loss_ranks.evaluation import Loss
from inrank_monitor.loss_ranks.result import LossRanks
from inrank_monitor.loss_ranks.start import Start
from inrank_monitor.loss_ranks.surroundings import Surroundings

__all__ = ["Loss", "LossRanks", "Start", "Surroundings", "loss_at_ranks", "ranks_by_loss"]
