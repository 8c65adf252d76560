"""Several processes that train together: who measures what, and matrices in shards."""

from __future__ import annotations

from inrank_monitor.distributed.processes import Processes, ProcessesLostError, training_processes
from inrank_monitor.distributed.sharded import Outbox, Sharding, gram_of_shards, local_view, make_room
from inrank_monitor.distributed.share import Share, deal_out, gathering_modules, initial_norm, share_out, squared_norms

__all__ = [
    "Outbox",
    "Processes",
    "ProcessesLostError",
    "Sharding",
    "Share",
    "deal_out",
    "gathering_modules",
    "gram_of_shards",
    "initial_norm",
    "local_view",
    "make_room",
    "share_out",
    "squared_norms",
    "training_processes",
]
