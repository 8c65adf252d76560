"""Where in a model PEFT has put adapters, and what its matrices are called without PEFT; told by attributes alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from inrank_monitor.matrices.adapters import Adapter


def adapters_of(path: str, layer: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The adapters of a layer that PEFT has wrapped with LoRA, each with the name of the weight that it adapts.

    Where several are trained at once, or one beside them is not, `[adapter]` is added to the name.

    Args:
        path: dotted name of the layer.
        layer: any module; one that is no such layer gives nothing.
    """
    if not all(isinstance(layer._modules.get(name), nn.ModuleDict | nn.ParameterDict) for name in ("lora_A", "lora_B")):
        return
    if "base_layer" not in layer._modules or not hasattr(layer, "scaling"):
        return
    attribute = str(getattr(layer, "parameter_name", "weight"))
    if type(layer).__name__ == "MultiheadAttention":
        attribute = "in_proj_weight"
    names = [*layer._modules["lora_A"], *layer._modules.get("lora_embedding_A", ())]
    adapters = [Adapter(layer, name, attribute) for name in names]
    trained = [adapter for adapter in adapters if any(part.requires_grad for part in adapter.parameters())]
    alone = trained if len(trained) == 1 else adapters if len(adapters) == 1 else []
    plain = ".".join(part for part in path.split(".") if part != "base_layer")
    dot = f"{plain}." if plain else ""
    for adapter in adapters:
        yield f"{dot}{attribute}" + ("" if adapter in alone else f"[{adapter.name}]"), adapter


def foreign_parameters(model: nn.Module) -> dict[int, str]:
    """Why the parameters of adapters of other kinds (LoHa, LoKr, IA3, OFT, VeRA, …) are not watched, by their id."""
    reasons: dict[int, str] = {}
    for layer in model.modules():
        base = layer._modules.get("base_layer")
        if base is None or not hasattr(type(layer), "adapter_layer_names") or "lora_A" in layer._modules:
            continue
        inside = {id(parameter) for parameter in base.parameters()}
        for parameter in layer.parameters():
            if id(parameter) not in inside:
                reasons[id(parameter)] = "of an adapter that is not LoRA's: its update is not B·A"
    return reasons


def added_by_peft(model: nn.Module) -> set[str]:
    """Dotted paths whose last component PEFT has put into the model's names, which are read without it.

    `base_model` and `model` of a PeftModel, and `modules_to_save.NAME` where one trained copy stands for a module.
    """
    added: set[str] = set()
    for prefix, module in model.named_modules():
        dot, children = f"{prefix}." if prefix else "", module._modules
        if hasattr(type(module), "inject_adapter") and "model" in children:
            added.add(f"{dot}model")
        elif hasattr(type(module), "get_base_model") and hasattr(module, "peft_config") and "base_model" in children:
            added.add(f"{dot}base_model")
        elif "original_module" in children and isinstance(copies := children.get("modules_to_save"), nn.ModuleDict):
            trained = [name for name, copy in copies.items() if any(part.requires_grad for part in copy.parameters())]
            if len(trained) == 1:
                added |= {f"{dot}modules_to_save", f"{dot}modules_to_save.{trained[0]}"}
    return added


def plain_path(path: str, added: set[str]) -> str:
    """A module's dotted path without what torch.compile and PEFT (`added_by_peft`) have put into it."""
    parts = path.split(".")
    return ".".join(
        part
        for end, part in enumerate(parts, start=1)
        if part not in ("", "_orig_mod") and ".".join(parts[:end]) not in added
    )
