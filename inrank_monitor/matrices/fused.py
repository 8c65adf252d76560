"""Fused projections: q, k and v, or gate and up, in one weight; told from the module that holds the layer.

Names follow habits, so a name alone decides nothing: the numbers must fit (heads, out = 3 × in, the layer behind), and
where the module's code can be read, it must agree. What is not certain stays whole, and the coverage says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from inrank_monitor.matrices.fused_code import (
    arrangement,
    has_stepped_slices,
    is_reshaped,
    letters_of,
    orders,
    split_by_sizes,
    split_directly,
)
from inrank_monitor.matrices.layout import Layout

_QKV = {"c_attn", "qkv", "to_qkv", "qkv_proj", "qkv_linear", "Wqkv", "W_pack", "query_key_value"}
_KV = {"c_attn", "kv", "to_kv", "kv_proj", "Wkv", "key_value"}
_QK = {"qk", "to_qk", "qk_proj"}
_GATED = {"gate_up_proj", "gate_up", "gate_and_up_proj", "w12", "w13", "Wi"}
_AHEAD = ("down_proj", "w3", "w2", "Wo", "wo", "c_proj", "fc2", "out_proj", "proj_out", "output_linear")
_HEADS = ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads", "nhead", "nheads", "num_q_heads")
_SHARED = (
    "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads", "kv_n_heads", "n_head_kv",
    "num_query_groups", "n_query_groups", "n_local_heads",
)  # fmt: skip
_WIDTHS = ("head_dim", "dim_head", "head_size", "d_head", "attention_head_size", "d_kv")


def fused_layout(owner: nn.Module | None, name: str, rows: int, cols: int, kernel: int = 1) -> Layout | str | None:
    """The layout of a layer's weight; or why it stays whole though its name says that it is fused; or None.

    Args:
        owner: the module that holds the layer.
        name: of the layer there.
        rows: outputs of the layer.
        cols: its inputs.
        kernel: entries of a convolution's kernel; heads are told of those of one entry only.
    """
    if owner is None:
        return _unknown(name)
    kind: Any = type(owner)
    for letters in ("qkv", "kv", "qk"):
        if rows % len(letters) == 0 and (names := split_directly(kind, name, len(letters))):
            order = letters_of(names)
            if sorted(order) == sorted(letters) and arrangement(kind, name, len(letters)) != "unclear":
                return Layout.equal(order, rows, why=f"{kind.__name__} cuts it into {', '.join(names)}")
    if rows % 2 == 0 and (names := split_directly(kind, name, 2)) and sum(n.startswith("gate") for n in names) == 1:
        gated = ["gate" if each.startswith("gate") else "up" for each in names]
        return Layout.equal(gated, rows, why=f"{kind.__name__} cuts it into {', '.join(names)}")
    if letters_of(split_by_sizes(kind, name)) == "qkv":
        sized = _few_heads(_Heads(owner, cols), name, rows)
        return sized or f"not split: {kind.__name__} cuts it by sizes that its heads do not explain; parts= says them"
    if name in _GATED or isinstance(getattr(owner, "gate_last", None), bool):
        return _gated(owner, name, rows)
    if kernel > 1:
        return None
    found: Layout | str | None = None
    for letters, habits in (("qkv", _QKV), ("kv", _KV), ("qk", _QK)):
        if name in habits:
            found = _heads_layout(_Heads(owner, cols), name, letters, rows)
            if isinstance(found, Layout):
                return found
    return found or _unknown(name)


def _unknown(name: str) -> str | None:
    known = name in _QKV | _KV | _QK | _GATED
    return f"not split: {name} may be fused, but how its parts lie is not certain; parts= says it" if known else None


class _Heads:
    """What a module says of its attention heads, or its config where it has one; 0 where neither does.

    Attributes:
        owner: the module.
        cols: inputs of the fused layer.
    """

    def __init__(self, owner: nn.Module, cols: int) -> None:
        self.owner, self.cols = owner, cols
        self.count = self._number(_HEADS)
        self.shared = self._number(_SHARED)
        if isinstance(multi := getattr(owner, "multi_query", None), bool) and not self._says(
            "new_decoder_architecture"
        ):
            self.shared = 1 if multi else self.count
        self.width = self._number(_WIDTHS) or (cols // self.count if self.count and cols % self.count == 0 else 0)

    def _number(self, names: tuple[str, ...]) -> int:
        for place in self._places():
            for name in names:
                value = getattr(place, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return 0

    def _says(self, name: str) -> bool:
        return any(getattr(place, name, None) is True for place in self._places())

    def _places(self) -> Iterator[Any]:
        yield self.owner
        yield from (vars(self.owner)[name] for name in ("config", "cfg", "args") if name in vars(self.owner))

    @property
    def grouped(self) -> bool:
        """Whether each head of k and v serves several of q, side by side with them (Falcon's new architecture)."""
        return self._says("new_decoder_architecture")

    @property
    def words(self) -> str:
        """For the coverage."""
        few = f", {self.shared} of k and v" if self.shared not in (0, self.count) else ""
        return f"{self.count} heads{few} in {type(self.owner).__name__}"


def _heads_layout(heads: _Heads, name: str, letters: str, rows: int) -> Layout | str | None:
    """By the number of heads; the module's code, where it can be read, must not say otherwise."""
    kind: Any = type(heads.owner)
    count = len(letters)
    if not heads.count:
        return None
    said = arrangement(kind, name, count)
    if letters == "qkv" and heads.shared not in (0, heads.count):
        return _few_heads(heads, name, rows)
    if found := orders(kind, letters) - {letters}:
        return f"not split: {kind.__name__} takes its parts in the order {', '.join(sorted(found)[0])}; parts= says it"
    if said == "unclear" and getattr(heads.owner, "multi_query", None) is False:
        said = "heads"  # GPTBigCode's two ways, of which it takes this one
    habit = "heads" if name == "query_key_value" else "blocks"
    way = said or habit
    whole = rows == count * heads.cols or rows == count * heads.count * heads.width
    loose = rows % (count * heads.count) == 0 and (said == "blocks" or name.startswith("to_"))
    if way == "unclear" or not (whole or loose) or rows % (count * heads.count):
        return None
    if way == "heads":
        return Layout.equal(letters, rows, heads.count, f"one head after another, {heads.words}")
    return Layout.equal(letters, rows, why=heads.words)


def _few_heads(heads: _Heads, name: str, rows: int) -> Layout | None:
    """Fewer heads of k and v than of q: the sizes must fit to the row."""
    count, shared, width = heads.count, heads.shared or heads.count, heads.width
    if not width or rows != (count + 2 * shared) * width:
        return None
    if heads.grouped:
        each = count // shared
        return Layout((("q", each * width), ("k", width), ("v", width)), shared, f"group after group, {heads.words}")
    kind: Any = type(heads.owner)
    if getattr(heads.owner, "multi_query", None) is not True and is_reshaped(kind, name):
        return None  # group by group, maybe
    sizes = (("q", count * width), ("k", shared * width), ("v", shared * width))
    return Layout(sizes, why=heads.words)


def _gated(owner: nn.Module, name: str, rows: int) -> Layout | str | None:
    """Gate and up: the layer behind takes half of the outputs, and the code does not take every second one."""
    inputs = {each: _inputs(layer) for each, layer in owner._modules.items() if layer is not None and each in _AHEAD}
    kind: Any = type(owner)
    behind = next((each for each, width in inputs.items() if width and 2 * width == rows), None)
    if behind is None or has_stepped_slices(kind) or name == "Wi":  # of Wi only code says which half is the gate
        return _unknown(name) if behind else None
    names = ("up", "gate") if getattr(owner, "gate_last", False) is True else ("gate", "up")  # as timm says it
    return Layout.equal(names, rows, why=f"{behind} takes half of it")


def _inputs(layer: nn.Module) -> int:
    """Of a linear layer; 0 if it is none."""
    return int(getattr(layer, "in_features", 0) or getattr(layer, "nx", 0) or 0)
