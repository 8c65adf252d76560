"""Checkpoints of converted transformers models: whole round trips, and a loud failure in the ordinary loader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.active import assert_same_state, fill, gpt2, gpt2_loss, grow, state_of, tokens, train, untouched
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import SGD

import inrank
from inrank import InRankLinear, LowRankLinear, convert, factorize, from_pretrained
from inrank.layers.model_layers import describe_layers, layers_of
from inrank.layers.pretrained import load_weights, read_weights, restore_layers


def growing(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A GPT-2 of two blocks whose layers have grown to different ranks."""
    model = gpt2(layers=2).to(dtype)
    convert(model, **{"buffer_rank": 3} | options)
    for place, layer in enumerate(layers_of(model).values()):
        assert isinstance(layer, InRankLinear)
        fill(layer)
        grow(layer, 2 + place)
        fill(layer)
    inrank.layers.model_layers.note_ranks(model)
    return model.eval()


def factorized() -> Any:
    model = growing()
    factorize(model)
    return model


def mixed() -> Any:
    """One block factorized, the other growing, the attention converted without W0."""
    model = gpt2(layers=2)
    convert(model, "*.h.0.mlp.*")
    factorize(model, ranks={"transformer.h.0.mlp.c_fc": 5})
    convert(model, "*.h.1.mlp.*", buffer_rank=4)
    convert(model, "*.attn.c_proj", buffer_rank=2, initialization="kaiming", gain=1)
    for layer in layers_of(model).values():
        if isinstance(layer, InRankLinear):
            fill(layer)
    return model.eval()


MODELS = {
    "growing": growing,
    "factorized": factorized,
    "mixed": mixed,
    "kaiming": lambda: growing(initialization="kaiming"),
}


@pytest.mark.parametrize("shards", [None, "8KB"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_saved_is_what_is_read(kind: str, shards: str | None, tmp_path: Path) -> None:
    model = MODELS[kind]()
    model.save_pretrained(tmp_path, **{} if shards is None else {"max_shard_size": shards})
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shards is not None)
    again = from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert not again.training
    assert_same_state(state_of(again), state_of(model))
    assert describe_layers(again) == describe_layers(model)
    assert [type(layer) for layer in again.modules()] == [type(layer) for layer in model.modules()]
    for one, two in zip(layers_of(again).values(), layers_of(model).values(), strict=True):
        assert vars(one).keys() == vars(two).keys()
        assert (one.origin, one.rank, one.gain) == (two.origin, two.rank, two.gain)
    assert again.lm_head.weight is again.transformer.wte.weight
    frozen = [name for name, value in again.named_parameters() if not value.requires_grad]
    assert frozen == [name for name, value in model.named_parameters() if not value.requires_grad]
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_a_second_round_trip_is_the_same(tmp_path: Path) -> None:
    growing().save_pretrained(tmp_path / "one")
    from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert_same_state(dict(sorted(one.items())), dict(sorted(two.items())))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert configs[0]["inrank"] == configs[1]["inrank"]


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    model = growing(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert_same_state(state_of(from_pretrained(tmp_path)), state_of(model))


def test_what_is_read_trains_and_grows_on(tmp_path: Path) -> None:
    model = growing()
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    losses = []
    for each in (model, again):
        each.train()
        optimizer = SGD(each.parameters(), lr=0.1)
        controller = inrank.RankController(each, optimizer, every=2, rule=lambda seen: seen.rank + 1)
        for step in range(6):
            optimizer.zero_grad()
            loss = gpt2_loss(each, step)
            loss.backward()
            optimizer.step()
            controller.step()
        assert len(controller.history) == 12
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert_same_state(state_of(again), state_of(model))
    assert again.config.inrank == model.config.inrank  # growths are noted at once
    assert again.config.inrank["layers"]["transformer.h.0.mlp.c_fc"]["rank"] == 5


@pytest.mark.parametrize("kind", MODELS)
def test_the_ordinary_loader_fails_loudly(kind: str, tmp_path: Path) -> None:
    """And does not hand out a model with fresh random weights in the place of the converted layers."""
    from transformers import AutoModelForCausalLM, GPT2LMHeadModel

    MODELS[kind]().save_pretrained(tmp_path)
    for loader in (GPT2LMHeadModel, AutoModelForCausalLM):
        with pytest.raises(RuntimeError, match=r"(?i)mismatch"):
            loader.from_pretrained(tmp_path)


def test_a_config_may_be_changed_and_a_class_named(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    class Mine(GPT2LMHeadModel):
        pass

    model = growing()
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path, Mine, attn_pdrop=0.25)
    assert type(again) is Mine
    assert again.config.attn_pdrop == 0.25
    assert_same_state(state_of(again), state_of(model))


def test_a_class_that_is_not_transformers_own_must_be_given(tmp_path: Path) -> None:
    growing().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["MyModel"]}))
    with pytest.raises(ValueError, match=r"is of the class \['MyModel'\]: give model_class"):
        from_pretrained(tmp_path)


def test_an_ordinary_checkpoint_is_refused(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is not of a converted or narrowed model: read it by transformers' from_pretrained"
    ):
        from_pretrained(tmp_path)


def test_a_missing_checkpoint_or_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no config\.json"):
        from_pretrained(tmp_path / "nowhere")
    growing().save_pretrained(tmp_path, max_shard_size="8KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"holds no {shard.name}"):
        from_pretrained(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    growing().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        from_pretrained(tmp_path)


def _without(name: str) -> Any:
    return lambda state: state.pop(name)


DAMAGE: list[tuple[Any, str]] = [
    (_without("transformer.h.1.mlp.c_fc.U"), r"missing \['transformer\.h\.1\.mlp\.c_fc\.U'\]"),
    (
        _without("transformer.h.0.mlp.c_fc.initial_weight"),
        r"missing \['transformer\.h\.0\.mlp\.c_fc\.initial_weight'\]",
    ),
    (_without("transformer.h.0.mlp.c_fc.weight"), r"missing \['transformer\.h\.0\.mlp\.c_fc\.weight'\]"),
    (_without("transformer.ln_f.bias"), r"missing \['transformer\.ln_f\.bias'\]"),
    (lambda state: state.update(stranger=torch.ones(2)), r"unexpected \['stranger'\]"),
    (lambda state: state.update({"transformer.ln_f.bias": torch.ones(3)}), "size mismatch for transformer.ln_f.bias"),
    (
        lambda state: state.update({"transformer.h.0.mlp.c_fc.U": torch.ones(3, 9)}),
        r"size mismatch for transformer\.h\.0\.mlp\.c_fc\.U",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(damage: Any, message: str, tmp_path: Path) -> None:
    growing().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    damage(state)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not fit the model: (.|\n)*{message}"):
        from_pretrained(tmp_path)


def test_the_weights_alone_load_into_a_model_converted_anew(tmp_path: Path) -> None:
    """Other ranks, other capacity: what a Trainer's checkpoint meets when training resumes."""
    model = growing()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    other = gpt2(layers=2, seed=7)
    convert(other, initial_rank=1, buffer_rank=1, max_rank=4)
    optimizer = SGD(other.parameters(), lr=0.1)
    load_weights(other, tmp_path)
    assert_same_state(state_of(other), state_of(model))
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert {id(value) for value in other.parameters()} == held
    fresh = gpt2(layers=2, seed=8)
    restore_layers(fresh, model.config.inrank["layers"])
    assert fresh.config.inrank == model.config.inrank
    fresh.load_state_dict(model.state_dict())
    assert_same_state(state_of(fresh), state_of(model))


def test_an_unconverted_checkpoint_does_not_load_into_a_converted_model(tmp_path: Path) -> None:
    gpt2(layers=2).save_pretrained(tmp_path)
    model = growing()
    with pytest.raises(ValueError, match=r"c_fc.weight is .*: the state dict is of a model that is not converted"):
        load_weights(model, tmp_path)
    with pytest.raises(RuntimeError, match=r"c_proj.weight is .*: the state dict is of a model that is not converted"):
        model.load_state_dict(gpt2(layers=2).state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for transformer.h.0.mlp.c_fc.weight"):
        gpt2(layers=2).load_state_dict(model.state_dict())


def test_layers_that_a_model_does_not_have_are_named() -> None:
    layers = describe_layers(growing())
    model = gpt2(layers=1)
    with pytest.raises(ValueError, match=r"'transformer.h.1.mlp.c_fc' matches no"):
        restore_layers(model, layers)
    narrow = gpt2(layers=2, n_embd=4)
    with pytest.raises(ValueError, match=r"must be in .* for 'transformer.h.0.mlp.c_fc'"):
        restore_layers(narrow, layers)


def test_a_factorized_layer_above_break_even_is_restored() -> None:
    model = gpt2()
    convert(model)
    factorize(model, ranks=16)
    again = gpt2(seed=3)
    restore_layers(again, describe_layers(model))
    assert [type(layer) for layer in layers_of(again).values()] == [LowRankLinear] * 2
    assert again.config.inrank == model.config.inrank
    again.load_state_dict(model.state_dict())
    assert_same_state(state_of(again), state_of(model))


def test_reading_weights_gives_every_entry(tmp_path: Path) -> None:
    model = growing()
    for name, size in (("one", "1GB"), ("many", "8KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        found = read_weights(tmp_path / name)
        expected = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_reading_leaves_the_global_default_dtype_alone(tmp_path: Path) -> None:
    growing(torch.bfloat16).save_pretrained(tmp_path)
    from_pretrained(tmp_path)
    assert torch.get_default_dtype() == torch.float32


def test_models_without_a_config_are_none_of_its_business() -> None:
    model = nn.Sequential(nn.Linear(14, 9))
    convert(model, "0")
    train(model, SGD(model.parameters(), lr=0.1), 1)
    with untouched(model):
        inrank.layers.model_layers.note_ranks(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_read_the_same_under_another_default_device(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        read = from_pretrained(tmp_path)
    assert_same_state(state_of(read), state_of(model))
    assert {parameter.device.type for parameter in read.parameters()} == {"cpu"}
