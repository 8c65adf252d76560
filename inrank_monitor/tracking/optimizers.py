"""What is known of an optimizer: which one lies in a wrapper, how many steps it has taken, whether it left one out."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# Wrappers whose step does no more to the weights than that of the optimizer inside.
_TRANSPARENT = {"AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer"}
_OF = ("accelerate.", "lightning.", "pytorch_lightning.", "lightning_fabric.")


def unwrap_optimizer(optimizer: Any, instead: str) -> Optimizer:
    """The torch optimizer whose steps can be counted.

    Args:
        optimizer: one, or a wrapper that is known to do nothing but step it.
        instead: what to do with another wrapper, for the message.

    Raises:
        TypeError: it is none, or a wrapper that may do more than step what is inside.
    """
    while _is_transparent(optimizer):
        optimizer = optimizer.optimizer
    if isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks"):
        return optimizer
    kind = type(optimizer).__name__
    if hasattr(optimizer, "optimizer") or hasattr(optimizer, "step"):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, got {kind}, whose step may do more to the weights than "
            f"that of an optimizer inside it: {instead}"
        )
    raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {kind}")


def _is_transparent(optimizer: Any) -> bool:
    kinds = type(optimizer).__mro__
    return any(kind.__name__ in _TRANSPARENT and f"{kind.__module__}.".startswith(_OF) for kind in kinds)


def own_steps(optimizer: Optimizer) -> int | None:
    """The optimizer's own step counter, where it has one (Adam and its kin)."""
    counters = [state["step"] for state in optimizer.state.values() if "step" in state]
    return int(max(map(float, counters))) if counters else None


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler made a fused optimizer leave out the step that just ended; its hooks run all the same.

    On a GPU the answer is always no: asking it would make it wait. `may_have_skipped` says that it may be yes.
    """
    skipped = getattr(optimizer, "found_inf", None)
    return isinstance(skipped, Tensor) and skipped.device.type == "cpu" and bool(skipped.any())


def may_have_skipped(optimizer: Optimizer) -> bool:
    """Whether the step that just ended may have been left out, which a GPU alone knows."""
    skipped = getattr(optimizer, "found_inf", None)
    return isinstance(skipped, Tensor) and skipped.device.type != "cpu"
