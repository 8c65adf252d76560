"""Weights that a forward hook computes anew from other parameters: what the layer multiplies by is none of its own.

So do `torch.nn.utils.weight_norm` and `spectral_norm` (the old ones, not those of `parametrizations`) and
`torch.nn.utils.prune`. Between an optimizer's step and the next forward pass the module's attribute is out of date, so
it is computed here, by the hook's own formula and without its side effects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class HookedWeight:
    """One weight that a hook computes.

    Attributes:
        compute: its value now; the module is only read.
        sources: attributes of the module that hold the Parameters it is computed from.
    """

    compute: Callable[[], Tensor]
    sources: tuple[str, ...]


def hooked_weights(module: nn.Module) -> dict[str, HookedWeight]:
    """The weights of a module that one of torch's own forward hooks computes, by attribute."""
    found: dict[str, HookedWeight] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            sources = (f"{hook.name}_g", f"{hook.name}_v")
            found[hook.name] = HookedWeight(partial(hook.compute_weight, module), sources)
        elif isinstance(hook, SpectralNorm):
            compute = partial(hook.compute_weight, module, do_power_iteration=False)
            found[hook.name] = HookedWeight(compute, (f"{hook.name}_orig",))
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            found[name] = HookedWeight(partial(hook.apply_mask, module), (f"{name}_orig",))
    return found
