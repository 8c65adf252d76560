"""Whole models to W0 + U V and back: nothing changes until training does, and a refusal changes nothing."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.active import WIDTH, assert_same_state, fill, gpt2, gpt2_loss, grow, state_of, tokens, untouched
from torch import nn
from torch.nn.utils import parametrizations, prune

import inrank
from inrank import InRankLinear, break_even_rank, convert, merge

pytestmark = pytest.mark.numeric

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride and padding": {"stride": 2, "padding": 1},
    "dilation": {"dilation": (1, 2), "padding": (0, 3)},
    "same": {"padding": "same"},
    "no bias": {"bias": False},
}


def linear(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 20, bias=bias), nn.GELU(), nn.Linear(20, 7, bias=bias)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_converted_linear_model_computes_the_same_bits(bias: bool, dtype: torch.dtype) -> None:
    model = linear(bias, dtype)
    inputs = torch.randn(5, 3, 12, dtype=dtype)
    expected = model(inputs)
    found = convert(model, "*", buffer_rank=3)
    assert [(entry.name, entry.shape, entry.rank) for entry in found] == [("0", (20, 12), 2), ("2", (7, 20), 2)]
    assert all(isinstance(model[place], InRankLinear) for place in (0, 2))
    assert torch.equal(model(inputs), expected)


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=list(CONVOLUTIONS))
def test_a_converted_convolution_computes_the_same_bits_and_merges_back(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, (3, 5), **options))
    inputs = torch.randn(2, 3, 11, 13)
    expected = model(inputs)
    convert(model, "0", buffer_rank=2, kinds=["Conv2d"])
    assert model[0].U.shape[0] == 8
    assert model[0].V.shape[1] == 3 * 15
    assert torch.equal(model(inputs), expected)
    fill(model[0])
    trained = model(inputs)
    assert not torch.allclose(trained, expected)
    merge(model)
    assert type(model[0]) is nn.Conv2d
    assert repr(model[0]) == repr(nn.Conv2d(3, 8, (3, 5), **options))
    torch.testing.assert_close(model(inputs), trained)


@pytest.mark.parametrize("training", [True, False])
def test_a_converted_gpt2_computes_the_same_bits_in_its_own_mode(training: bool) -> None:
    model = gpt2(layers=2).train(training)
    model.transformer.h[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        expected = model(tokens()).logits
        found = convert(model, buffer_rank=5)
        assert torch.equal(model(tokens()).logits, expected)
    assert [entry.name for entry in found] == [
        f"transformer.h.{block}.mlp.{name}" for block in (0, 1) for name in ("c_fc", "c_proj")
    ]
    assert found[0].shape == (4 * WIDTH, WIDTH)
    assert [module.training for module in model.modules()] == modes


def test_the_initial_weight_is_frozen_and_the_bias_is_the_same_parameter() -> None:
    model = gpt2()
    bias, weight = model.transformer.h[0].mlp.c_fc.bias, model.transformer.h[0].mlp.c_fc.weight
    convert(model)
    layer = model.transformer.h[0].mlp.c_fc
    assert layer.bias is bias
    assert torch.equal(layer.initial_weight, weight.mT)
    assert layer.initial_weight.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    assert not layer.initial_weight.requires_grad
    assert layer.U.requires_grad
    assert layer.V.requires_grad
    gpt2_loss(model).backward()
    assert layer.initial_weight.grad is None
    assert layer.bias.grad is not None


def test_a_frozen_bias_stays_frozen() -> None:
    model = linear()
    model[0].bias.requires_grad_(False)
    convert(model, "0")
    assert not model[0].bias.requires_grad


def test_conversion_and_merging_leave_the_random_state_alone() -> None:
    for start in ("zero", "kaiming"):
        model = gpt2()
        before = torch.get_rng_state()
        convert(model, initialization=start)  # type: ignore[arg-type]
        merge(model)
        assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_alone_decides_the_random_rows() -> None:
    states = []
    for disturb, seed in ((0, 3), (1, 3), (0, 4)):
        model = gpt2(layers=2)
        torch.manual_seed(disturb)
        convert(model, seed=seed)
        states.append(state_of(model))
    assert_same_state(states[0], states[1])
    name = "transformer.h.{}.mlp.c_fc.V"
    assert not torch.equal(states[0][name.format(0)], states[2][name.format(0)])
    assert not torch.equal(states[0][name.format(0)], states[0][name.format(1)])


def test_targets_choose_by_glob_and_kinds_on_request() -> None:
    def names(targets: Any, **options: Any) -> list[str]:
        model = gpt2(layers=2)
        model.vision = nn.Conv2d(2, 4, 3)
        return [entry.name.removeprefix("transformer.") for entry in convert(model, targets, **options)]

    assert names("*.h.1.mlp.c_proj") == ["h.1.mlp.c_proj"]
    assert names(["*.h.?.attn.*", "*.0.mlp.c_fc"]) == [
        "h.0.attn.c_attn",
        "h.0.attn.c_proj",
        "h.0.mlp.c_fc",
        "h.1.attn.c_attn",
        "h.1.attn.c_proj",
    ]
    assert names(("*mlp*", "vision"), kinds=("Conv1D", "Conv2d"))[-1] == "vision"
    with pytest.raises(ValueError, match=r"'vision' matches no Linear or Conv1D layer. It matches vision \(Conv2d\)"):
        names("vision")


def test_ranks_and_caps_are_as_asked_for() -> None:
    model = linear()
    found = convert(model, "*", initial_rank={"0": 4}, buffer_rank=3)
    assert [(entry.rank, entry.max_rank) for entry in found] == [(4, 20 * 12 // 32), (2, 7 * 20 // 27)]
    assert [(model[place].rank, model[place].used, model[place].capacity) for place in (0, 2)] == [
        (4, 7, 12),  # 7 + 3 as a multiple of 8, but no more than the matrix's own rank
        (2, 5, 7),  # nor may the buffer pass that
    ]
    model = linear()
    convert(model, "0", initial_rank=12, max_rank=12)
    assert (model[0].rank, model[0].used, model[0].capacity) == (12, 12, 12)


def test_break_even_is_where_factors_cost_as_much_as_the_matrix() -> None:
    for rows, cols in ((768, 3072), (7, 20), (1, 1), (1, 50), (30, 30)):
        rank = break_even_rank(rows, cols)
        assert rank == 1 or rank * (rows + cols) <= rows * cols
        assert (rank + 1) * (rows + cols) > rows * cols
    assert break_even_rank(768, 3072) == 614


def test_kaiming_factors_have_the_scale_of_the_published_code_and_no_w0() -> None:
    model = nn.Sequential(nn.Linear(300, 200))
    matched = copy.deepcopy(model)
    convert(model, "0", initialization="kaiming", initial_rank=2, buffer_rank=100, gain=1)
    layer = model[0]
    assert layer.initial_weight is None
    assert "0.initial_weight" not in model.state_dict()
    U, V = layer.update_factors()
    assert U.shape == (200, 102)
    torch.testing.assert_close(U.var(), torch.tensor(1 / 102), rtol=0.05, atol=0)  # 20400 draws: ±1 %
    torch.testing.assert_close(V.var(), torch.tensor(1 / 300), rtol=0.05, atol=0)
    torch.testing.assert_close(layer.weight, U @ V)
    inputs = torch.randn(4, 300)
    torch.testing.assert_close(layer(inputs), inputs @ (U @ V).mT + layer.bias)
    convert(matched, "0", initialization="kaiming", initial_rank=2, buffer_rank=100)
    assert matched[0].gain != 1
    torch.testing.assert_close(
        matched[0].weight, layer.weight
    )  # a gain changes how fast it learns, not where it starts


def test_a_model_on_the_meta_device_converts() -> None:
    with torch.device("meta"):
        model = linear()
    convert(model, "*")
    assert model[0].U.device.type == "meta"


def quantised() -> nn.Module:
    model = linear()
    model[0].weight = nn.Parameter(model[0].weight.mul(10).to(torch.int8), requires_grad=False)
    return model


def under(change: Callable[[nn.Module], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = linear()
        change(model[0])
        return model

    return make


def twice_used() -> nn.Module:
    model = linear()
    return nn.ModuleDict({"one": model[0], "other": model[0]})


class Linear(nn.Linear):
    """With the name of the ordinary one and a forward of its own."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs).relu()


class _Wrong:
    def __init__(self, make: Callable[[], nn.Module], message: str, **options: Any) -> None:
        self.make, self.message, self.options = make, message, {"targets": "*"} | options


def conv(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 8, 3, **options))


LATER = r"for '2' \(7×20\)"  # the second layer is the wrong one: the first must not be converted by then
WRONG = {
    "initial rank above the matrix's": _Wrong(
        linear, rf"initial_rank must be in 1\.\.5 {LATER}, got 6", initial_rank=6
    ),
    "initial rank of one layer": _Wrong(
        linear, rf"initial_rank must be in 1\.\.5 {LATER}, got 9", initial_rank={"0": 2, "2": 9}
    ),
    "initial rank of no layer": _Wrong(linear, "initial_rank names '1', which targets do not", initial_rank={"1": 2}),
    "initial rank zero": _Wrong(linear, r"initial_rank must be in 1\.\.7 for '0' \(20×12\), got 0", initial_rank=0),
    "initial rank a truth": _Wrong(linear, r"initial_rank must be .* for '0' .*, got True", initial_rank=True),
    "initial rank broken": _Wrong(linear, r"initial_rank must be .* for '0' .*, got 1.5", initial_rank=1.5),
    "max rank above the matrix's": _Wrong(linear, rf"max_rank must be in 1\.\.7 {LATER}, got 8", max_rank=8),
    "max rank below the initial": _Wrong(linear, r"initial_rank must be in 1\.\.1 for '0'", max_rank=1),
    "nothing": _Wrong(linear, "'encoder.*' matches no Linear or Conv1D layer. Layers are named", targets="encoder.*"),
    "one of two": _Wrong(linear, "'nope' matches no Linear", targets=["0", "nope"]),
    "activations only": _Wrong(linear, r"'1' matches no Linear .* It matches 1 \(GELU\)", targets="1"),
    "no pattern": _Wrong(linear, r"targets must be a pattern .*, got \[\]", targets=[]),
    "no targets": _Wrong(linear, "targets must be a pattern .*, got None", targets=None),
    "targets that are numbers": _Wrong(linear, r"targets must be a pattern .*, got \[0\]", targets=[0]),
    "tied weight": _Wrong(gpt2, "'lm_head' is tied to 'transformer.wte.weight'", targets="lm_head"),
    "tied among others": _Wrong(gpt2, "'lm_head' is tied to"),
    "one layer in two places": _Wrong(twice_used, "weight of 'one' is tied to 'other.weight'"),
    "integers": _Wrong(quantised, "weight of '0' has dtype torch.int8"),
    "parametrized": _Wrong(under(parametrizations.weight_norm), "'0' is under torch.nn.utils.parametrize"),
    "pruned": _Wrong(under(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), "'0' .* not a Parameter"),
    "groups": _Wrong(conv(groups=2), "'1' has groups=2", kinds=["Linear", "Conv2d"]),
    "padding mode": _Wrong(
        conv(padding=1, padding_mode="circular"), "'1' has .*padding_mode='circular'", kinds=["Linear", "Conv2d"]
    ),
    "a class of one's own": _Wrong(
        lambda: nn.Sequential(Linear(3, 4)),
        r"matches no Linear or Conv1D layer. It matches 0 \(.*test_convert.Linear\)",
    ),
    "buffer rank zero": _Wrong(linear, "buffer_rank must be an integer of at least 1, got 0", buffer_rank=0),
    "buffer rank a truth": _Wrong(linear, "buffer_rank must be .*, got True", buffer_rank=True),
    "kind unknown": _Wrong(linear, "kinds must be some of .*, got", kinds=["Linear", "Embedding"]),
    "kind a word": _Wrong(linear, "kinds must be some of .*, got 'Linear'", kinds="Linear"),
    "initialization": _Wrong(linear, "initialization must be 'zero' or 'kaiming', got 'orth'", initialization="orth"),
    "gain": _Wrong(linear, "gain must be a positive number or 'match', got 0", gain=0),
    "seed": _Wrong(linear, "seed must be an integer of at least 0, got -1", seed=-1),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=list(WRONG))
def test_a_refusal_names_its_cause_and_leaves_the_model_as_it_was(case: _Wrong) -> None:
    model = case.make()
    with untouched(model), pytest.raises(ValueError, match=case.message):
        convert(model, **case.options)


def test_converting_twice_is_refused() -> None:
    model = gpt2(layers=2)
    convert(model, "*.h.1.mlp.c_proj")
    again = "targets pattern '.*' matches 'transformer.h.1.mlp.c_proj', which is converted already"
    with untouched(model), pytest.raises(ValueError, match=again):
        convert(model)
    assert len(convert(model, "*.h.0.mlp.*")) == 2  # the others still may be
    inrank.factorize(model)
    with untouched(model), pytest.raises(ValueError, match=r"'transformer.h.0.mlp.c_fc', which is converted already"):
        convert(model)


def test_merging_is_exact_and_a_second_time_does_nothing() -> None:
    model = gpt2(layers=2)
    original = copy.deepcopy(model)
    convert(model, buffer_rank=4)
    for block in model.transformer.h:
        fill(block.mlp.c_fc)
    grow(fill(model.transformer.h[1].mlp.c_proj), 4)
    weights = {
        name: (layer.initial_weight.double() + layer.gain * (layer.U.double() @ layer.V.double())).float()
        for name, layer in inrank.layers.layers_of(model).items()
    }
    assert len(merge(model)) == 4
    assert [type(module) for module in model.modules()] == [type(module) for module in original.modules()]
    assert str(model) == str(original)
    for name, weight in weights.items():
        assert torch.equal(model.get_submodule(name).weight, weight.mT)
        assert model.get_submodule(name).weight.is_contiguous()
        assert model.get_submodule(name).weight.requires_grad
    assert list(model.state_dict()) == list(original.state_dict())
    with untouched(model):
        assert merge(model) == []


def test_converting_and_merging_at_once_is_the_identity() -> None:
    for kind in ("gpt2", "linear", "no bias"):
        model = gpt2() if kind == "gpt2" else linear(bias=kind == "linear")
        model.eval()
        before = state_of(model)
        convert(model, "*mlp*" if kind == "gpt2" else "*")
        merge(model)
        assert_same_state(state_of(model), before)
        assert not any(module.training for module in model.modules())


def test_factorized_layers_merge_to_their_product() -> None:
    model = linear(dtype=torch.float64)
    convert(model, "*")
    inrank.factorize(model)
    product = model[0].gain * (model[0].U @ model[0].V)
    merge(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, product)


def test_a_merged_gpt2_is_anybodys_again(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    model = gpt2().eval()
    convert(model)
    fill(model.transformer.h[0].mlp.c_fc)
    assert "inrank" in model.config.to_dict()
    merge(model)
    assert "inrank" not in model.config.to_dict()
    model.save_pretrained(tmp_path)
    for loader in (GPT2LMHeadModel, AutoModelForCausalLM):
        again = loader.from_pretrained(tmp_path)
        assert "inrank" not in again.config.to_dict()
        assert type(again.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
        with torch.no_grad():
            assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_a_compiled_model_is_converted_and_merged_inside() -> None:
    model = linear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = torch.compile(model, backend="eager")
    assert [entry.name for entry in convert(wrapped, "*")] == ["0", "2"]
    assert isinstance(model[0], InRankLinear)
    assert merge(wrapped) == ["0", "2"]
    assert type(model[0]) is nn.Linear
