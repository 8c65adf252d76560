"""Which calls of an optimizer's step hook are steps."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def was_skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler made a fused optimizer leave out the step that just ended; its hooks run all the same.

    On a GPU the answer is always no: asking it would make it wait.
    """
    skipped = getattr(optimizer, "found_inf", None)
    return isinstance(skipped, Tensor) and skipped.device.type == "cpu" and bool(skipped.any())
