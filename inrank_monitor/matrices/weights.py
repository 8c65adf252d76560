"""The weights of a model by their names, wherever their values come from: parameters, parametrizations, factors."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from inrank_monitor.matrices.adapted_models import adapters_of, added_by_peft, plain_path
from inrank_monitor.matrices.adapters import Adapter
from inrank_monitor.matrices.matrix import LowRankUpdate, read_parameter
from inrank_monitor.matrices.reparametrized import hooked_weights


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight, before it is known whether it is watched.

    Attributes:
        name: dotted.
        owner: the module or adapter that it belongs to.
        attribute: of the owner; "" for a product of the owner's factors.
        parameters: that its values come from.
    """

    name: str
    owner: nn.Module | Adapter
    attribute: str
    parameters: Sequence[Tensor]

    @property
    def adapter(self) -> Adapter | None:
        """The owner, if it is one."""
        return self.owner if isinstance(self.owner, Adapter) else None

    @property
    def module(self) -> nn.Module:
        """The layer: the owner, or what the adapter is on."""
        return self.owner.base if isinstance(self.owner, Adapter) else self.owner

    def shape(self) -> tuple[int, ...]:
        """Of its values, (rows, cols) of a product; it may take reading them."""
        if isinstance(self.parameters[0], nn.parameter.UninitializedParameter):
            return ()
        owner = self.owner
        if isinstance(owner, Adapter):
            return owner.shape
        if self.attribute == "":
            left, right = owner.update_factors()  # type: ignore[operator]
            return (left.shape[0], right.shape[1])
        if not any(parameter.requires_grad for parameter in self.parameters):  # a quantised base, say: it is not read
            return tuple(self.parameters[0].shape)
        return tuple(read_parameter(owner, self.attribute).shape)


def named_weights(model: nn.Module, became_factors: Container[str] = ()) -> Iterator[Weight]:
    """All of a model, in its own order.

    Args:
        model: unwrapped.
        became_factors: names of weights that stand for the product of their layer's factors: it had them before.
    """
    added = added_by_peft(model)
    of_adapters: set[int] = set()
    for prefix, module in model.named_modules():
        clean = plain_path(prefix, added)
        if ".parametrizations" in f".{clean}" or hasattr(module, "_orig_mod"):
            continue
        dot = f"{clean}." if clean else ""
        for name, adapter in adapters_of(clean, module):
            of_adapters |= {id(parameter) for parameter in adapter.parameters()}
            yield Weight(name, adapter, "", adapter.parameters())
        factors = list(module.update_factors()) if isinstance(module, LowRankUpdate) else []
        if factors:
            was_weight = f"{dot}weight" in became_factors and hasattr(module, "stored_weight")
            name, attribute = (f"{dot}weight", "weight") if was_weight else (clean or type(module).__name__, "")
            yield Weight(name, module, attribute, factors)
        for attribute, parametrization in (getattr(module, "parametrizations", None) or {}).items():
            if parameters := list(parametrization.parameters()):
                yield Weight(f"{dot}{attribute}", module, attribute, parameters)
        hooked = hooked_weights(module)
        for attribute, weight in hooked.items():
            yield Weight(f"{dot}{attribute}", module, attribute, [getattr(module, source) for source in weight.sources])
        sources = {source for weight in hooked.values() for source in weight.sources}
        shown = module.used_factors() if factors and hasattr(module, "used_factors") else factors  # the Parameters
        own = {factor.untyped_storage().data_ptr() for factor in shown}  # a factor may be a part of its parameter
        for attribute, parameter in module.named_parameters(recurse=False):
            if attribute in sources or id(parameter) in of_adapters:
                continue
            if not factors or parameter.untyped_storage().data_ptr() not in own:
                yield Weight(f"{dot}{attribute}", module, attribute, [parameter])
