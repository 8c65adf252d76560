"""Why a parameter is not watched."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inrank_monitor.matrices.matrix import LowRankUpdate, has_memory, is_sharded
from inrank_monitor.matrices.views import CONVOLUTIONS, TRANSPOSED, is_table
from inrank_monitor.matrices.weights import Weight

FROZEN = "frozen (requires_grad=False)"
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


def reason_to_skip(
    weight: Weight, shape: tuple[int, ...], seen: dict[int, str], embeddings: bool, although_frozen: bool = False
) -> str | None:
    """Why not; None if it is watched. `seen` are the parameters before it, by id, with their names."""
    module, parameters = weight.module, weight.parameters
    first = parameters[0]
    if len(parameters) == 1 and id(first) in seen:
        return f"tied to {seen[id(first)]}"
    if isinstance(first, nn.parameter.UninitializedParameter):
        return "lazy: run one forward pass before attaching"
    if not although_frozen and not any(parameter.requires_grad for parameter in parameters):
        return FROZEN
    if reason := _reason_not_in_shards(weight):
        return reason
    if any(_stores_in_its_own_way(parameter) for parameter in parameters):
        return f"a {type(first).__name__}, which stores its values in its own way"
    if any(parameter.device.type == "meta" for parameter in parameters):
        return _reason_on_meta(module)
    if not all(has_memory(parameter) for parameter in parameters):
        return "its memory is freed: it has values during a pass only"
    if first.layout != torch.strided:
        return f"layout {first.layout}"
    if not first.is_floating_point():
        return f"dtype {str(first.dtype).removeprefix('torch.')}"
    if 0 in shape:  # DeepSpeed's ZeRO-3 also leaves such a thing where a weight was
        return "it has no entries"
    bare = not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    if len(shape) < 2 or (len(shape) == 3 and shape[:2] == (1, 1) and bare):  # a class token is 1 × 1 × D
        return "a vector" if shape else "a scalar"
    if (isinstance(module, nn.Embedding | nn.EmbeddingBag) or is_table(weight.attribute, shape)) and not embeddings:
        return "an embedding (embeddings=True watches it)"
    if isinstance(module, _NORMS):
        return "scales of a normalisation, not a map"
    return None


def _reason_not_in_shards(weight: Weight) -> str | None:
    """Why a parameter that lies in shards (DTensor) cannot be measured where it lies; None if it can, or does not."""
    module, attribute = weight.module, weight.attribute
    placements = [placement for parameter in weight.parameters for placement in getattr(parameter, "placements", ())]
    if not placements:
        return None
    of_layer = attribute == "" and isinstance(module, LowRankUpdate)  # an adapter's factors are gathered
    if of_layer or parametrize.is_parametrized(module, attribute):
        return "sharded (DTensor) factors or parametrization: its value would have to be gathered"
    if any(placement.is_partial() for placement in placements):
        return "sharded (DTensor) as partial sums"
    if isinstance(module, TRANSPOSED) and module.groups > 1:
        return "sharded (DTensor) groups of a transposed convolution"
    return None


def _stores_in_its_own_way(value: Tensor) -> bool:
    """Whether this is a subclass, a quantised weight say, that has no ordinary storage; a DTensor's shards have."""
    return type(value).__torch_dispatch__ != Tensor.__torch_dispatch__ and not is_sharded(value)


def _reason_on_meta(module: nn.Module) -> str:
    hook = getattr(module, "_hf_hook", None)  # accelerate's; it puts values there for the time of a pass
    if any(getattr(one, "offload", False) for one in getattr(hook, "hooks", (hook,))):
        return "offloaded (accelerate): it has no values between two passes, and is not trained"
    return "on the meta device: it has no values"
