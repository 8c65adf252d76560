"""Which layers a pattern chooses for conversion, and why one cannot be converted."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from torch import Tensor, nn

from inrank.layers.factored_layer import FactoredLayer
from inrank_monitor.matrices import glob, unwrap

KINDS = ("Linear", "Conv1D", "Conv2d")


def choose_layers(model: nn.Module, targets: str | Sequence[str], kinds: Sequence[str]) -> dict[str, nn.Module]:
    """The layers that the targets match, in the model's order."""
    patterns = [targets] if isinstance(targets, str) else list(targets or [])
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"targets must be a pattern or a list of patterns, got {targets!r}")
    candidates = {name: module for name, module in model.named_modules() if kind_of(module) in kinds}
    converted = [name for name, module in model.named_modules() if isinstance(module, FactoredLayer)]
    chosen: set[str] = set()
    for pattern in patterns:
        wanted = glob(pattern)
        matched = {name for name in candidates if wanted.fullmatch(name)}
        if again := [name for name in converted if wanted.fullmatch(name)]:
            raise ValueError(f"targets pattern {pattern!r} matches {again[0]!r}, which is converted already")
        if not matched:
            others = [f"{n} ({_described(m)})" for n, m in model.named_modules() if n and wanted.fullmatch(n)]
            near = others or get_close_matches(pattern, list(candidates), n=3, cutoff=0.2) or list(candidates)[:3]
            what = "It matches" if others else "Layers are named like"
            raise ValueError(
                f"targets pattern {pattern!r} matches no {' or '.join(kinds)} layer. {what} {', '.join(near[:3])}"
            )
        chosen |= matched
    return {name: module for name, module in candidates.items() if name in chosen}


def kind_of(module: nn.Module) -> str:
    """Class name of an ordinary layer; subclasses of it with another forward are not taken for it."""
    kind = type(module).__mro__[1 if hasattr(module, "parametrizations") else 0]  # parametrize makes a subclass
    own = kind.__module__.startswith(("torch.nn.modules", "transformers.pytorch_utils"))
    return kind.__name__ if own or kind.__name__ not in KINDS else ""


def _described(module: nn.Module) -> str:
    """Its kind, or in full where it only has the name of one."""
    return kind_of(module) or f"{type(module).__module__}.{type(module).__name__}"


def check_layer(model: nn.Module, name: str, module: nn.Module) -> None:
    """Raise a ValueError that says why a chosen layer cannot be converted, if it cannot."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if hasattr(module, "parametrizations"):
        raise ValueError(f"{name!r} is under torch.nn.utils.parametrize: remove that before converting")
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise ValueError(f"the weight of {name!r} is not a Parameter: remove weight_norm, prune or the like before")
    if hasattr(weight, "placements"):
        raise ValueError(f"{name!r} is sharded (DTensor): convert before fully_shard")
    if not weight.is_floating_point():
        raise ValueError(f"the weight of {name!r} has dtype {weight.dtype}: only floating point can be converted")
    for other, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        if parameter is weight and other != f"{name}.weight":
            raise ValueError(f"the weight of {name!r} is tied to {other!r}: converting one would untie them")
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        raise ValueError(f"{name!r} has groups={module.groups}, padding_mode={module.padding_mode!r}: not convertible")
