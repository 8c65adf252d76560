"""Algorithm 2, lines 2 and 3: the first factors, from the singular vectors of the first gradient.

With ∂L/∂W0 = Σ s_i u_i v_iᵀ (u on the output side): U = −ε [u_1 … u_{r+b}], V = ε [v_1 … v_{r+b}]ᵀ. One of the two has
the minus sign, so that U V points downhill; the paper prints it without saying which side u is on. With a gain κ other
than 1 the product is the same, κ U V = −ε² Σ u_i v_iᵀ, and V keeps the size that it was given for its gain.

References:
    Zhao et al. 2023, arXiv:2306.11250, Algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from inrank.growth.dense_gradient import DenseGradient
from inrank.layers import InRankLinear, check_whole, growing_layers_of
from inrank_monitor.spectra import svd


def initialize_from_gradient(model: nn.Module, backward: Callable[[], object], *, scale: float = 0.01) -> list[str]:
    """Set every converted layer's used factors from the SVD of the loss's gradient with respect to its W0.

    Args:
        model: converted, not trained yet.
        backward: runs forward and backward on the model, as often as the loop accumulates: any loss. The gradients
            that it leaves on other parameters are restored to what they were.
        scale: ε; W changes by at most ε² in spectral norm.

    Returns:
        The names of the layers.

    Raises:
        ValueError: nothing is converted, a layer has no W0, `backward` reached a layer with no gradient or one that is
            not finite; the model is as it was.
    """
    if not (isinstance(scale, int | float) and scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    layers = growing_layers_of(model)
    if not layers:
        raise ValueError("the model has no InRankLinear layer: call inrank.convert first")
    check_whole(layers, "initialize")
    if without := [name for name, layer in layers.items() if layer.initial_weight is None]:
        raise ValueError(f"{without[0]!r} has no W0 (initialization='kaiming'), so there is no ∂L/∂W0")
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    gradients = DenseGradient(layers)
    try:
        with gradients:
            backward()
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient
    found = gradients.pop()
    for name in layers:
        if name not in found or not bool(torch.isfinite(found[name]).all()):
            reason = "is not finite" if name in found else "was not computed: backward() must reach the layer"
            raise ValueError(f"the gradient of {name!r} {reason}")
    for name, layer in layers.items():
        _set_factors(layer, found[name], scale)
    return list(layers)


@torch.no_grad()
def _set_factors(layer: InRankLinear, gradient: torch.Tensor, scale: float) -> None:
    left, _, right = svd(gradient)
    used = layer.used
    # Row norm of V: ε in the paper's parametrisation, else what `convert` drew
    size = scale if layer.gain == 1 else layer.V[:used].float().norm() / math.sqrt(used)
    layer.U.zero_()
    layer.V.zero_()
    layer.U[:, :used] = (-(scale**2) / (layer.gain * size) * left[:, :used]).to(layer.U)
    layer.V[:used] = (size * right[:used]).to(layer.V)
