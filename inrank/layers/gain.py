"""The gain κ of W = W0 + κ U V: how far one step of Adam moves W.

Adam moves every entry of a parameter by about the learning rate η, whatever the gradient's size. In dense training
that is a step of η √(p q) in ‖W‖_F. The same step in U and V moves U V by η √(p ‖V‖² + q ‖U‖²) only, for thin factors a
small part of it: a 512×128 layer of rank 16 hardly trains at all at the learning rate that is right for the dense one.
With κ = p q / (p ‖B‖² + q ‖A‖²), A = √κ U and B = √κ V, both steps are equally long. κ = 1 is the paper's way.
The formula takes the steps' signs to be independent of the factors; a gradient's are not quite, and move W up to a
quarter further.

The gain is in the layer and not in the optimizer, so that any loop, schedule and Trainer has it without a line.

References:
    None in the paper. LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1) scales its update for the same reason.
"""

from __future__ import annotations

import math
from typing import Literal

Gain = float | Literal["match"]


def matching_gain(rows: int, cols: int, left_square: float, right_square: float) -> float:
    """Gain at which a step of Adam in both factors moves W as far as one in W itself.

    Args:
        rows: p.
        cols: q.
        left_square: ‖A‖_F² of the left factor A (rows, k) as it would be without a gain.
        right_square: ‖B‖_F² of the right one, B (k, cols).

    Returns:
        κ; 1 for two zero factors.
    """
    length = rows * right_square + cols * left_square
    return rows * cols / length if length > 0 else 1.0


def check_gain(gain: object) -> None:
    """Raise a ValueError unless it is a positive number or "match"."""
    number = isinstance(gain, int | float) and not isinstance(gain, bool) and math.isfinite(gain) and gain > 0
    if not (gain == "match" or number):
        raise ValueError(f"gain must be a positive number or 'match', got {gain!r}")
