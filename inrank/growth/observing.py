"""A layer as a growth rule sees it: the spectrum of its update, and of the gradient where the rule asks for that."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from inrank.growth.dense_gradient import outside_spans
from inrank.growth.rule import Observation
from inrank.layers import InRankLinear
from inrank_monitor.spectra import singular_values, singular_values_of_product


def observe(name: str, layer: InRankLinear, step: int, gradient: Tensor | None) -> Observation | None:
    """What a rule is shown of a layer now; None if its factors or the gradient are not finite.

    Args:
        name: dotted name of the layer.
        layer: is only read; the product of its factors is never formed.
        step: optimizer steps so far.
        gradient: ∂L/∂W summed over steps, (rows, cols), or None.
    """
    U, V = (factor.detach() for factor in layer.update_factors())
    spectra = [singular_values_of_product(U, V).numpy()]
    if gradient is not None:
        spectra += [singular_values(part).numpy() for part in (gradient, outside_spans(gradient, U, V))]
    if not all(np.isfinite(spectrum).all() for spectrum in spectra):
        return None
    whole, outside = spectra[1:] or (None, None)
    return Observation(
        name=name,
        step=step,
        rows=layer.rows,
        cols=layer.cols,
        rank=layer.rank,
        buffer_rank=layer.buffer_rank,
        max_rank=layer.max_rank,
        singular_values=spectra[0],
        gradient=whole,
        gradient_outside=outside,
    )
