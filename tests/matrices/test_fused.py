"""Fused projections: each part is the rows that the model's own code takes for it, and a wrong guess is never made."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fused_models import (
    DIM,
    GLM,
    GPT,
    HEADS,
    INTERLEAVED,
    MODELS,
    SIZES,
    WIDTH,
    BlocksByEinops,
    BothWays,
    BySizes,
    Cross,
    CutElsewhere,
    Gates,
    Geglu,
    GluMlp,
    Grouped,
    HeadFirst,
    HeadFirstByMinusOne,
    HeadsByEinops,
    Inside,
    InsideByEinops,
    Lucid,
    NanoAttention,
    NoCode,
    OverTheBatch,
    Reversed,
    Swi,
    TimmAttention,
    transformer,
)
from torch import Tensor, nn

from inrank_monitor import attach, find_matrices, open_run, scan
from inrank_monitor.checkpoints import options as command_line
from inrank_monitor.cli import main
from inrank_monitor.matrices.roles import role_of


def parts_of(model: nn.Module, ending: str, **options: Any) -> dict[str, Tensor]:
    """Part -> its matrix, of the weight whose name ends so."""
    matrices, _ = find_matrices(model, **options)
    return {str(m.part): m.view(m.read()) for m in matrices if m.parameter.endswith(ending)}


def note_of(model: nn.Module, ending: str, **options: Any) -> str:
    _, coverage = find_matrices(model, **options)
    return next(row.note for row in coverage if row.parameter.endswith(ending))


def weight_of(model: nn.Module, ending: str) -> Tensor:
    return next(value.detach() for name, value in model.named_parameters() if name.endswith(ending))


def head_by_head(weight: Tensor, heads: int, *sizes: int) -> list[Tensor]:
    """Each head's rows hold so many of each part: the parts, gathered by a loop over the heads."""
    parts: list[list[Tensor]] = [[] for _ in sizes]
    row = 0
    for _ in range(heads):
        for part, size in enumerate(sizes):
            parts[part].append(weight[row : row + size])
            row += size
    assert row == len(weight)
    return [torch.cat(part) for part in parts]


def in_blocks(weight: Tensor, *sizes: int) -> list[Tensor]:
    return list(weight.split(sizes))


FUSED = ("query_key_value.weight", "qkv_proj.weight", "Wqkv.weight", "c_attn.weight", "qkv.weight", "att_proj.weight")


@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers_are_split_as_their_code_splits(name: str) -> None:
    options, (heads, *sizes) = MODELS[name]
    model = transformer(**options)
    expected = head_by_head(weight_of(model, FUSED), heads, *sizes)
    found = parts_of(model, FUSED)
    assert list(found) == ["q", "k", "v"]
    for part, matrix in zip(expected, found.values(), strict=True):
        torch.testing.assert_close(matrix, part, rtol=0, atol=0)
    assert "heads" in note_of(model, FUSED) or "cuts it into query, key, value" in note_of(model, FUSED)


def test_the_queries_of_an_interleaved_weight_are_those_that_the_model_computes() -> None:
    model: Any = transformer(**MODELS["gpt-neox"][0])
    attention = model.gpt_neox.layers[0].attention
    attention.query_key_value.bias.data.zero_()
    inputs = torch.randn(1, 3, DIM)
    heads = attention.query_key_value(inputs).view(1, 3, HEADS, 3 * WIDTH).chunk(3, dim=-1)  # as its forward has it
    for part, values in zip(parts_of(model, "query_key_value.weight").values(), heads, strict=True):
        torch.testing.assert_close(inputs @ part.mT, values.flatten(2))


@pytest.mark.parametrize(
    ("options", "order"),
    [
        (MODELS["phi3"][0], ["gate", "up"]),
        (GLM, ["gate", "up"]),
        (MODELS["modernbert"][0], ["up", "gate"]),
    ],
)
def test_gate_and_up_lie_as_the_code_cuts_them(options: dict[str, Any], order: list[str]) -> None:
    model, ending = transformer(**options), ("gate_up_proj.weight", "Wi.weight")
    found, weight = parts_of(model, ending), weight_of(model, ending)
    assert list(found) == order
    for part, half in zip(found.values(), weight.chunk(2), strict=True):
        torch.testing.assert_close(part, half, rtol=0, atol=0)
    assert [role_of("mlp.gate_up_proj.weight", part) for part in ("gate", "up")] == ["MLP gate", "MLP in"]


THREE = ("q", "k", "v")
CERTAIN: dict[str, tuple[nn.Module, tuple[str, ...], tuple[int, ...]]] = {
    "nanogpt": (NanoAttention(), THREE, (DIM,) * 3),
    "timm": (TimmAttention(), THREE, (DIM,) * 3),
    "lucidrains": (Lucid(nn.Linear(DIM, 3 * 24)), THREE, (24,) * 3),
    "lucidrains, convolution": (Lucid(nn.Conv2d(DIM, 96, 1)), THREE, (DIM,) * 3),
    "cross": (Cross(), ("k", "v"), (DIM,) * 2),
    "swiglu": (Swi(), ("gate", "up"), (48,) * 2),
    "geglu": (Geglu(), ("up", "gate"), (48,) * 2),
    "einops": (BlocksByEinops(), THREE, (DIM,) * 3),
    "by sizes": (BySizes(), THREE, (32, 16, 16)),
    "gate first": (GluMlp(gate_last=False), ("gate", "up"), (48,) * 2),
    "gate last": (GluMlp(gate_last=True), ("up", "gate"), (48,) * 2),
    "keys first": (Reversed(), ("k", "q", "v"), (DIM,) * 3),
    "heads by number": (NoCode("c_attn", nn.Linear(DIM, 3 * DIM), n_head=HEADS), THREE, (DIM,) * 3),
    "groups by number": (
        NoCode("qkv_proj", nn.Linear(DIM, 64), num_heads=4, num_key_value_heads=2, head_dim=8), THREE, (32, 16, 16)
    ),
    "kv by number": (NoCode("kv", nn.Linear(DIM, 2 * DIM), num_heads=HEADS), ("k", "v"), (DIM,) * 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CERTAIN)
def test_faithful_modules_are_split_in_blocks(name: str) -> None:
    module, names, sizes = CERTAIN[name]
    model = nn.Sequential(module)
    fused = max(module.parameters(), key=lambda parameter: parameter.numel()).detach().flatten(1)
    matrices = [matrix for matrix in find_matrices(model)[0] if matrix.part]
    assert [matrix.part for matrix in matrices] == list(names)
    for matrix, expected in zip(matrices, in_blocks(fused, *sizes), strict=True):
        torch.testing.assert_close(matrix.view(matrix.read()), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "module", [HeadFirst(), HeadFirstByMinusOne(), HeadsByEinops()], ids=lambda module: type(module).__name__
)
def test_a_name_of_blocks_gives_way_to_code_that_takes_heads(module: nn.Module) -> None:
    weight = next(module.parameters()).detach()
    found = parts_of(nn.Sequential(module), "qkv.weight")
    for part, expected in zip(found.values(), head_by_head(weight, HEADS, WIDTH, WIDTH, WIDTH), strict=True):
        torch.testing.assert_close(part, expected, rtol=0, atol=0)


UNCERTAIN = {
    "an fc of three times the width": nn.Sequential(nn.Linear(DIM, 3 * DIM)),
    "fc beside heads": NoCode("fc", nn.Linear(DIM, 3 * DIM), num_heads=HEADS),
    "qkv without heads": NoCode("qkv", nn.Linear(DIM, 3 * DIM)),
    "heads that do not fit": NoCode("qkv", nn.Linear(DIM, 3 * DIM), num_heads=5),
    "rows that do not fit": NoCode("qkv", nn.Linear(DIM, 99), num_heads=HEADS),
    "groups that do not fit": NoCode("qkv_proj", nn.Linear(DIM, 96), num_heads=4, num_key_value_heads=2, head_dim=8),
    "two ways": BothWays(),
    "group by group": Grouped(),
    "sizes that are not explained": BySizes(shared=1),
    "every third row": Inside(),
    "every third row by einops": InsideByEinops(),
    "cut in another method": CutElsewhere(),
    "every second row": Gates(),
    "over the batch": OverTheBatch(),
    "a gate of no layer behind": NoCode("gate_up_proj", nn.Linear(DIM, 96)),
    "codegen": transformer("CodeGenForCausalLM", "CodeGenConfig", rotary_dim=4, **GPT),
    "deberta": transformer("DebertaModel", "DebertaConfig", intermediate_size=64, **SIZES),
    "mamba": transformer("MambaForCausalLM", "MambaConfig", hidden_size=DIM, num_hidden_layers=1, vocab_size=50),
    "convolutions beside attention": transformer(
        "Lfm2ForCausalLM", "Lfm2Config", intermediate_size=64, num_key_value_heads=2, pad_token_id=0,
        layer_types=["conv"], **SIZES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_is_not_certain_stays_whole(name: str) -> None:
    matrices, _ = find_matrices(nn.Sequential(UNCERTAIN[name]))
    assert [matrix.name for matrix in matrices if matrix.part and matrix.kind == "Linear"] == []


@pytest.mark.parametrize(
    "name", ["qkv without heads", "two ways", "every third row", "group by group", "every second row", "codegen"]
)
def test_the_coverage_says_that_a_fused_weight_was_not_split(name: str) -> None:
    ending = ("qkv.weight", "gate_up_proj.weight", "qkv_proj.weight")
    note = note_of(nn.Sequential(UNCERTAIN[name]), ending)
    assert "not split" in note
    assert "parts=" in note


@pytest.mark.parametrize(
    ("given", "heads", "sizes"),
    [
        (("a", "b", "c"), 1, (32, 32, 32)),
        ({"a": 64, "b": 16, "c": 16}, 1, (64, 16, 16)),
        ([("a", 8), ("b", 8), ("c", 8)], 4, (8, 8, 8)),
        ((("a", 16), ("b", 8)), 4, (16, 8)),
    ],
)
@pytest.mark.parametrize("pattern", ["*.fc", "0.fc.weight", "0.fc"])
def test_parts_that_are_given_are_taken(given: Any, heads: int, sizes: tuple[int, ...], pattern: str) -> None:
    model = nn.Sequential(UNCERTAIN["fc beside heads"])
    found = parts_of(model, "fc.weight", parts={pattern: given})
    expected = head_by_head(weight_of(model, "fc.weight"), heads, *sizes)
    assert list(found) == ["a", "b", "c"][: len(sizes)]
    for part, rows in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(part, rows, rtol=0, atol=0)
    assert f"parts={{'{pattern}': …}}" in note_of(model, "fc.weight", parts={pattern: given})


def test_parts_go_before_what_the_model_says_and_the_first_pattern_counts() -> None:
    model = nn.ModuleDict({"a": NanoAttention(), "b": NanoAttention()})
    names = [m.name for m in find_matrices(model, parts={"a.c_attn": ("x", "y"), "*.c_attn": None})[0]]
    assert names == [
        "a.c_attn.weight[x]",
        "a.c_attn.weight[y]",
        "a.c_proj.weight",
        "b.c_attn.weight",
        "b.c_proj.weight",
    ]


def test_parts_of_a_transposed_weight_are_columns() -> None:
    model: Any = transformer("GPT2LMHeadModel", "GPT2Config", **GPT)
    found = parts_of(model, "c_fc.weight", parts={"*.c_fc": {"a": 16, "b": 16}})
    expected = head_by_head(weight_of(model, "c_fc.weight").mT, 4, 16, 16)
    for part, rows in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(part, rows, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("parts", "error", "match"),
    [
        ({"*.nothing": THREE}, ValueError, r"parts pattern '\*\.nothing' matches no weight.*0\.c_attn\.weight"),
        ({"*.bias": THREE}, ValueError, r"parts pattern '\*\.bias'.*a vector"),
        ({"*.c_attn": ("q", "k", "v", "w", "x")}, ValueError, "96 rows, which are not 5 equal parts"),
        ({"*.c_attn": {"q": 50, "k": 7}}, ValueError, "96 rows, and the parts .* have 57 together"),
        ({"*.c_attn": ("q", "q")}, ValueError, "distinct names"),
        ({"*.c_attn": ()}, ValueError, "distinct names"),
        ({"*.c_attn": {"q": 0, "k": 96}}, ValueError, "at least 1 row"),
        ({"*.c_attn": "qkv"}, TypeError, "must be names of parts"),
        ({"*.c_attn": {"q": 48.0, "k": 48}}, TypeError, "must be names of parts"),
        (("q", "k", "v"), TypeError, "parts must map patterns"),
    ],
)
def test_parts_that_cannot_be_are_refused_by_name(parts: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        find_matrices(nn.Sequential(NanoAttention()), parts=parts)


def test_parts_and_no_parts_are_refused_together() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        find_matrices(nn.Sequential(NanoAttention()), parts={"*.c_attn": THREE}, split_parts=False)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        tokens = torch.randint(0, 50, (2, 8))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_logged_spectra_are_those_of_the_parts(tmp_path: Path) -> None:
    model = transformer(**MODELS["falcon, groups"][0])
    before = weight_of(model, FUSED).clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer, tmp_path / "run", every=2, tensorboard=False):
        train(model, optimizer, 2)
    run = open_run(tmp_path / "run")
    update = (weight_of(model, FUSED) - before).double()
    for part, rows in zip(THREE, head_by_head(update, 2, 2 * WIDTH, WIDTH, WIDTH), strict=True):
        logged = run.singular_values(f"self_attention.query_key_value[{part}]").loc[2].to_numpy()
        np.testing.assert_allclose(logged, torch.linalg.svdvals(rows), atol=3e-7 * logged[0])


def test_a_scan_of_the_model_splits_as_a_tracker_and_by_names_alone_only_by_parts(tmp_path: Path) -> None:
    class Net(nn.Sequential):
        pass

    model, files = Net(NanoAttention()), []
    for step in range(2):
        files.append(tmp_path / f"step_{step}.pt")
        torch.save(model.state_dict(), files[-1])
        with torch.no_grad():
            model[0].c_attn.weight += torch.randn(3 * DIM, DIM)
    live = [matrix.name for matrix in find_matrices(model)[0]]
    assert list(scan(files, tmp_path / "a", model=model, tensorboard=False).matrices.index) == live
    whole = scan(files, tmp_path / "b", tensorboard=False)
    assert list(whole.matrices.index) == ["0.c_attn.weight", "0.c_proj.weight"]
    assert "not split" in str(whole.coverage.set_index("parameter")["note"]["0.c_attn.weight"])
    given = scan(files, tmp_path / "c", tensorboard=False, parts={"*.c_attn": THREE})
    assert list(given.matrices.index) == live


def test_a_run_goes_on_with_the_parts_that_it_was_begun_with(tmp_path: Path) -> None:
    def begin(**options: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(NoCode("fc", nn.Linear(DIM, 96)))
        attach(model, None, tmp_path / "run", every=1, tensorboard=False, **options).close()

    begin(parts={"*.fc": [("q", 16), ("k", 16)]})
    begin(parts={"*.fc": (("q", 16), ("k", 16))}, resume=True)
    with pytest.raises(ValueError, match="parts="):
        begin(parts={"*.fc": {"q": 8, "k": 8}}, resume=True)
    assert open_run(tmp_path / "run").info["options"]["parts"] == {"*.fc": [["q", 16], ["k", 16]]}


def test_an_adapter_on_an_interleaved_weight_has_the_parts_of_the_weight() -> None:
    peft = pytest.importorskip("peft")
    model = transformer(**MODELS["gpt-neox"][0])
    adapted: Any = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query_key_value"], r=2), model)
    layer = next(module for module in adapted.modules() if hasattr(module, "lora_A"))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    product = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]).detach()
    matrices, _ = find_matrices(adapted)
    assert [matrix.part for matrix in matrices] == list(THREE)
    for matrix, expected in zip(matrices, head_by_head(product, *INTERLEAVED), strict=True):
        left, right = matrix.cut(*matrix.module.update_factors())
        torch.testing.assert_close(left @ right, expected)


def test_pieces_of_an_interleaved_weight_are_the_rows_that_lie_in_them() -> None:
    model = transformer(**MODELS["falcon, groups"][0])
    weight = weight_of(model, FUSED)
    matrices = [matrix for matrix in find_matrices(model)[0] if matrix.parameter.endswith(FUSED)]
    for matrix in matrices:
        assert matrix.block is not None
        for cuts in ((64,), (1, 63), (20, 0, 30, 14), (11, 11, 11, 11, 11, 9)):
            offset, pieces = 0, []
            for piece in weight.split(cuts):
                pieces.append(matrix.block.of(piece, offset))
                offset += len(piece)
            torch.testing.assert_close(torch.cat(pieces), matrix.view(weight), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["compiled", "checkpointed", "parametrized"])
def test_what_is_around_a_layer_does_not_hide_who_holds_it(kind: str) -> None:
    module = TimmAttention()
    model: nn.Module = nn.Sequential(module)
    if kind == "compiled":
        model = torch.compile(model)  # type: ignore[assignment]
        module.qkv = torch.compile(module.qkv)  # type: ignore[assignment]
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(module.qkv)
    else:
        model = nn.DataParallel(model)
    assert [matrix.part for matrix in find_matrices(model)[0]] == ["q", "k", "v", None]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("*.c_attn=q,k,v", ("*.c_attn", ["q", "k", "v"])),
        ("*.wqkv=q:64, k:16,v:16", ("*.wqkv", {"q": 64, "k": 16, "v": 16})),
        ("*.qkv=", ("*.qkv", None)),
    ],
)
def test_the_command_line_takes_parts(typed: str, expected: Any) -> None:
    assert command_line.parts_of(typed) == expected


@pytest.mark.parametrize("typed", ["*.c_attn", "=q,k", "*.x=q:1,k", "*.x=q:one,k:2"])
def test_the_command_line_refuses_what_are_no_parts(typed: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be like"):
        command_line.parts_of(typed)


def test_a_scan_on_the_command_line_splits_as_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(2):
        torch.save({"a.fc.weight": torch.randn(96, 32)}, tmp_path / f"step_{step}.pt")
    run = tmp_path / "run"
    arguments = ["scan", str(tmp_path), "--output", str(run), "--no-tensorboard", "--parts", "*.fc=q:64,k:32"]
    assert main(arguments) == 0
    assert list(open_run(run).matrices.index) == ["a.fc.weight[q]", "a.fc.weight[k]"]
    assert main([*arguments[:4], "--parts", "*.none=q,k", "--run", str(tmp_path / "other")]) == 2
    assert "parts pattern '*.none' matches no weight" in capsys.readouterr().err
