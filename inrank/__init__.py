"""Train with a rank that grows when the spectrum asks for it: InRank, W = W0 + U V.

    import inrank

    inrank.convert(model, targets=["*.mlp.*"], initial_rank=2, buffer_rank=100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
    controller = inrank.RankController(model, optimizer, threshold=0.9, every=25)
    for batch in loader:
        model(batch).loss.backward()
        optimizer.step()
        controller.step()                     # between optimizer steps: spectrum -> rule -> grow
        optimizer.zero_grad()
    inrank.factorize(model, optimizer)        # Algorithm 3: W0 gone, plain U V, smaller and faster
    inrank.merge(model)                       # back to an ordinary model

Models: convert, initialize_from_gradient, factorize, merge, from_pretrained, break_even_rank
Any dense model in training: factorize (to U V, ranks by demand under a budget), plan_widths, narrow
Growing: RankController, growth_rule (ExplainedRatio, Observation, needs_gradient, next_rank)
Layers: InRankLinear, LowRankLinear
When a training goes on in factors: DenseThenLowRank, Settled
transformers' Trainer: InRankCallback, FactorizeCallback (imported when asked for)
The paper's theory, in modules of their own: linear_networks (Theorem 2), gradient_flow (eq. 8), greedy_low_rank
(Algorithm 1), zero_initialization (ZerO)
"""

from __future__ import annotations

from typing import Any

from inrank.demand import DenseThenLowRank, Settled, WidthPlan, factorize, narrow, plan_widths
from inrank.growth import (
    ExplainedRatio,
    Factorization,
    Growth,
    Observation,
    RankController,
    initialize_from_gradient,
    needs_gradient,
)
from inrank.growth import rule as growth_rule
from inrank.layers import InRankLinear, LowRankLinear, break_even_rank, convert, from_pretrained, merge

__all__ = [
    "DenseThenLowRank",
    "ExplainedRatio",
    "Factorization",
    "FactorizeCallback",
    "Growth",
    "InRankCallback",
    "InRankLinear",
    "LowRankLinear",
    "Observation",
    "RankController",
    "Settled",
    "WidthPlan",
    "break_even_rank",
    "convert",
    "factorize",
    "from_pretrained",
    "growth_rule",
    "initialize_from_gradient",
    "merge",
    "narrow",
    "needs_gradient",
    "plan_widths",
]


def __getattr__(name: str) -> Any:
    if name == "InRankCallback":  # needs transformers
        from inrank.growth.trainer_callback import InRankCallback

        return InRankCallback
    if name == "FactorizeCallback":
        from inrank.demand.trainer_callback import FactorizeCallback

        return FactorizeCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
