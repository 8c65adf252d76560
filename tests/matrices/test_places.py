"""Depth and kind from names: of plain stacks, several stacks, blocks within blocks, experts, recurrent layers."""

from __future__ import annotations

import pandas as pd
import pytest

from inrank_monitor.matrices.places import depth_and_kind
from inrank_monitor.naming import common_pattern, filter_names

MODELS: dict[str, dict[str, tuple[str, str]]] = {
    "one stack": {
        "model.embed_tokens.weight": ("outside", "embedding"),
        "model.layers.2.self_attn.q_proj.weight": ("2", "q"),
        "model.layers.10.self_attn.q_proj.weight": ("10", "q"),
        "model.layers.10.mlp.down_proj.weight": ("10", "MLP out"),
    },
    "two stacks": {
        "encoder.layers.0.fc1.weight": ("encoder 0", "MLP in"),
        "decoder.layers.0.fc1.weight": ("decoder 0", "MLP in"),
        "decoder.layers.0.self_attn.q_proj.weight": ("decoder 0", "q: self_attn.q_proj"),
        "decoder.layers.0.encoder_attn.q_proj.weight": ("decoder 0", "q: encoder_attn.q_proj"),
    },
    "blocks within blocks": {
        "layers.1.blocks.0.attn.qkv.weight": ("1.0", "attention input"),
        "layers.0.blocks.1.attn.qkv.weight": ("0.1", "attention input"),
    },
    "convolutions": {
        "conv1.weight": ("outside", "conv1"),
        "layer1.0.conv1.weight": ("1.0", "conv1"),
        "layer1.0.conv2.weight": ("1.0", "conv2"),
        "layer2.1.conv1.weight": ("2.1", "conv1"),
    },
    "experts": {
        "layers.3.moe.experts.0.w1.weight": ("3", "moe.experts.*.w1"),
        "layers.3.moe.experts.7.w1.weight": ("3", "moe.experts.*.w1"),
        "layers.3.moe.experts.7.w9.weight": ("3", "moe.experts.*.w9"),
    },
    "numbers inside a block": {
        "encoder.layers.encoder_layer_4.mlp.0.weight": ("4", "mlp.0"),
        "encoder.layers.encoder_layer_4.mlp.3.weight": ("4", "mlp.3"),
    },
    "recurrent": {
        "rnn.weight_ih_l0": ("0", "weight_ih"),
        "rnn.weight_hh_l0": ("0", "weight_hh"),
        "rnn.weight_ih_l1": ("1", "weight_ih"),
    },
    "a sequence": {"0.weight": ("0", "other"), "2.weight": ("2", "other")},
}


def table(names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"part": [None] * len(names), "kind": ["Linear"] * len(names)}, names)


@pytest.mark.parametrize("model", MODELS)
def test_depth_and_kind_are_told_from_the_names(model: str) -> None:
    names = MODELS[model]
    found = depth_and_kind(table(list(names)))
    assert {name: (row.depth, row.kind) for name, row in zip(found.index, found.itertuples(), strict=True)} == names


def test_depths_are_ordered_as_numbers_and_what_is_outside_comes_last() -> None:
    found = depth_and_kind(table(["wte.weight", "h.10.a.weight", "h.9.a.weight", "h.0.a.weight"]))
    assert list(found["depth"].cat.categories) == ["0", "9", "10", "outside"]


def test_more_kinds_than_fit_a_map_are_told_apart_by_role_alone() -> None:
    found = depth_and_kind(table([f"layers.0.odd_{place}.weight" for place in range(50)]))
    assert set(found["kind"]) == {"other"}


NAMES = [f"h.{depth}.{rest}" for depth in range(12) for rest in ("attn.q.weight", "mlp.w1.weight", "mlp.w2.weight")]


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 36), ("mlp", 24), ("h.1?.mlp", 4), ("W1|q.weight$", 24), (r"h\.[0-3]\.", 12), ("/w[12]/", 24), ("none", 0)],
)
def test_a_filter_is_a_part_a_glob_or_a_regular_expression(text: str, count: int) -> None:
    assert len(filter_names(text, NAMES)) == count


def test_a_whole_name_is_that_matrix_alone_and_what_cannot_be_read_is_said() -> None:
    assert filter_names("h.1.attn.q.weight", NAMES) == ["h.1.attn.q.weight"]
    with pytest.raises(ValueError, match="is no regular expression: "):
        filter_names("/(/", NAMES)


def test_one_glob_stands_for_names_that_differ_in_some_parts() -> None:
    assert common_pattern(["a.0.x", "a.1.x"]) == "a.*.x"
    assert common_pattern(["a.0.x"]) == "a.0.x"
