"""Advice as PEFT takes it: each advised layer is adapted at its rank and one scale, no other is, and it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.loss_ranks import write_loss_ranks
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from inrank_monitor import attach, open_run
from inrank_monitor.advice import advise, lora_config, lora_json, rank_pattern
from inrank_monitor.advice.lora import ModuleName, anchored
from inrank_monitor.advice.reasons import LEAST_STEPS
from inrank_monitor.cli import main

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # PEFT's own: it sets fan_in_fan_out as the layer wants it, and cannot merge groups
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
    pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
PREFIX = "base_model.model."


class Own(nn.Linear):
    """A subclass, which PEFT takes for what it is of."""


class Odd(nn.Module):
    """A layer that PEFT does not know, under a name that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


Odd.__name__ = "Linear"


class Mixed(nn.Module):
    """Everything that advice has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.uneven = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.LayerNorm((3, 8))
        self.experts = nn.Parameter(torch.randn(2, 8, 8))
        self.free = nn.Parameter(torch.randn(8, 8))
        self.own, self.odd = Own(8, 8), Odd()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x)[0]
        x = x + self.uneven(x, x[..., :6], x[..., :6])[0]
        x = self.odd(self.own(self.norm(self.rnn(x)[0])))
        return self.head(x @ self.free @ self.experts.sum(0))


class Alike(nn.Module):
    """Names that are ends, beginnings, or nearly the regular expressions of others."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.decoder = nn.ModuleDict({"fc": nn.Sequential(nn.Linear(8, 8), nn.Tanh()), "fcs": nn.Linear(8, 8)})
        self.h = nn.ModuleList([nn.Linear(8, 8) for _ in range(12)])
        self.a_b, self.axb = nn.Linear(8, 8), nn.LayerNorm(8)
        self.inner = nn.Module()
        self.inner.h = nn.ModuleList([nn.LayerNorm(8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.decoder["fcs"](self.decoder["fc"](self.fc(x)))
        for layer in self.h:
            x = layer(x)
        return self.inner.h[1](self.inner.h[0](self.axb(self.a_b(x))))


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 8))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=4, padding=1), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 12, 1), nn.ConvTranspose2d(12, 4, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def signals() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv1d(6, 4, 2, groups=2))


def gpt2(layers: int = 2) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=16, n_head=2, vocab_size=13, n_positions=16))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=13, max_position_embeddings=16,
        )
    )  # fmt: skip


class Case:
    """A model, its input, and the modules that LoRA can adapt in it."""

    def __init__(self, make: Callable[[], nn.Module], inputs: Callable[[], Tensor], adapted: set[str]) -> None:
        self.make, self.inputs, self.adapted = make, inputs, adapted

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()


def tokens() -> Tensor:
    return torch.randint(13, (2, 6))


GPT2 = {f"transformer.h.{{}}.{layer}" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
LLAMA = {f"self_attn.{letter}_proj" for letter in "qkvo"} | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
CASES = {
    "nested": Case(sequential, lambda: torch.randn(5, 8), {"0", "1.1", "2"}),
    "alike": Case(
        Alike,
        lambda: torch.randn(5, 8),
        {"fc", "decoder.fc.0", "decoder.fcs", "a_b", "inner.h.1", *(f"h.{place}" for place in range(12))},
    ),
    "mixed": Case(Mixed, lambda: torch.randn(2, 3, 8), {"attention", "own", "head"}),
    "convolutions": Case(convolutions, lambda: torch.randn(2, 4, 6, 6), {"0", "1", "3", "4", "8"}),
    "signals": Case(signals, lambda: torch.randn(2, 3, 9), {"0", "2"}),
    "gpt2": Case(gpt2, tokens, {name.format(block) for name in GPT2 for block in range(2)}),
    "gpt2 of many layers": Case(lambda: gpt2(6), tokens, {name.format(b) for name in GPT2 for b in range(6)}),
    "llama": Case(llama, tokens, {"lm_head"} | {f"model.layers.{b}.{name}" for name in LLAMA for b in range(2)}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def advised(case: Case, folder: Path) -> pd.DataFrame:
    """Advice from a run in which each matrix has had an update, and each parameter a rank by loss of its own."""
    model = case.model()
    with attach(model, None, folder, every=LEAST_STEPS, buffer_rank=2, tensorboard=False) as tracker:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        for _ in range(LEAST_STEPS):
            tracker.step()
    places = {parameter: place for place, (parameter, _) in enumerate(model.named_parameters())}
    named = open_run(folder).matrices["parameter"]
    write_loss_ranks(folder, {str(name): 1 + places[of] % 3 for name, of in named.items()}, LEAST_STEPS)
    return advise(open_run(folder))


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that PEFT has put an adapter on, an attention's output layer with the attention."""
    found = {name.removeprefix(PREFIX): module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name: module for name, module in found.items() if ".base_layer." not in f".{name}."}


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    out = model(inputs)
    return out if isinstance(out, Tensor) else out.logits  # type: ignore[no-any-return]


def test_each_layer_gets_its_rank_and_all_one_scale_and_a_step_moves_them(case: Case, tmp_path: Path) -> None:
    table = advised(case, tmp_path / "run")
    pattern = rank_pattern(table)
    model = get_peft_model(case.model(), LoraConfig(**lora_config(table, scale=2.0)))
    layers = adapted(model)
    assert set(layers) == case.adapted == set(pattern)
    assert {name: layer.r["default"] for name, layer in layers.items()} == pattern  # type: ignore[index,union-attr]
    assert {layer.scaling["default"] for layer in layers.values()} == {2.0}  # type: ignore[index,union-attr]
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    outputs(model, case.inputs()).square().mean().backward()
    optimizer.step()
    moved = {
        name for name, value in model.named_parameters() if name in before and not torch.equal(value, before[name])
    }
    for name in case.adapted:  # by its B, which begins at zero
        assert any(name in each for each in moved), name


def test_the_pattern_serves_as_target_modules_too(case: Case, tmp_path: Path) -> None:
    pattern = rank_pattern(advised(case, tmp_path / "run"))
    config = LoraConfig(target_modules=list(pattern), rank_pattern=pattern, r=64)
    layers = adapted(get_peft_model(case.model(), config))
    assert {name: layer.r["default"] for name, layer in layers.items()} == pattern  # type: ignore[index,union-attr]
    assert all(isinstance(name, str) and type(rank) is int for name, rank in pattern.items())


def test_the_file_is_read_back_and_a_saved_adapter_is_loaded(case: Case, tmp_path: Path) -> None:
    table = advised(case, tmp_path / "run")
    assert main(["advise", str(tmp_path / "run"), "--lora", str(tmp_path / "lora.json")]) == 0
    config = json.loads((tmp_path / "lora.json").read_text())
    assert config == lora_config(table)
    model = get_peft_model(case.model(), LoraConfig(**config))
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(case.model(), str(tmp_path / "saved"))
    assert set(adapted(loaded)) == case.adapted


def test_ranks_of_groups_are_multiples_of_them_whatever_the_cap(tmp_path: Path) -> None:
    table = advised(CASES["convolutions"], tmp_path / "run")
    assert table["groups"].dropna().to_dict() == {"1.weight": 4, "3.weight": 8}
    assert table.loc[["1.weight", "3.weight"], "rank"].tolist() != [4, 8]
    pattern = rank_pattern(table)
    assert (pattern["1"] % 4, pattern["3"] % 8) == (0, 0)
    capped = rank_pattern(table, max_rank=5)
    assert capped["1"] == 4
    assert "3" not in capped
    assert max(capped.values()) <= 5
    with pytest.raises(ValueError, match="max_rank must be at least 1, got 0"):
        rank_pattern(table, max_rank=0)


def test_an_attention_is_one_layer_with_its_output(tmp_path: Path) -> None:
    table = advised(CASES["mixed"], tmp_path / "run")
    ranks = table["rank"]
    names = [name for name in table.index if str(name).startswith("attention.")]
    assert sorted(names) == [f"attention.in_proj_weight[{part}]" for part in "kqv"] + ["attention.out_proj.weight"]
    assert rank_pattern(table)["attention"] == ranks[names].max()
    assert rank_pattern(table.drop(names[:3])).keys() == {"own", "head"}


def test_wrong_arguments_and_nothing_to_adapt_are_named(tmp_path: Path) -> None:
    table = advised(CASES["nested"], tmp_path / "run")
    with pytest.raises(ValueError, match="scale must be above 0, got 0"):
        lora_config(table, scale=0)
    with pytest.raises(ValueError, match="no layer that LoRA can adapt"):
        lora_config(table.assign(layer=""))
    assert rank_pattern(table.assign(layer=None)) == rank_pattern(table)  # a run that did not log it


def test_a_name_is_the_name_and_in_an_f_string_what_peft_matches() -> None:
    name = ModuleName("h.1")
    assert (str(name), hash(name), json.dumps(name)) == ("h.1", hash("h.1"), '"h.1"')
    assert name == "h.1"
    assert f"{name}" == anchored("h.1") == r"^h\.1"
    assert lora_json({"r": 3}) == '{\n  "r": 3\n}\n'
