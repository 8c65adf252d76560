"""PEFT's adapters, known by their attributes: layers made here to look like PEFT's; peft itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import oracles
from helpers.training import run_script
from torch import Tensor, nn

from inrank_monitor import SpectrumTracker, attach, open_run
from inrank_monitor.advice import advise, rank_pattern
from inrank_monitor.advice.reasons import LEAST_STEPS
from inrank_monitor.matrices.adapted_models import plain_path
from inrank_monitor.matrices.adapters import since_start
from inrank_monitor.matrices.finding import Coverage, find_matrices
from inrank_monitor.ranks import RankRule
from inrank_monitor.ranks.null_model import null_rank
from inrank_monitor.runs.recomputation import recompute

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


class Lora(nn.Module):
    """What PEFT puts around a layer: A and B by adapter name, the state of merging and switching."""

    def __init__(self, base: nn.Module, rows: int, cols: int, rank: int = 2, scale: float = 2.0) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.merged_adapters: list[str] = []
        self.active_adapters = ["default"]
        self.disable_adapters = False
        self.sizes = rows, cols
        self.add("default", rank, scale)

    def add(self, name: str, rank: int, scale: float) -> None:
        self.lora_A[name] = nn.Linear(self.sizes[1], rank, bias=False)
        self.lora_B[name] = nn.Linear(rank, self.sizes[0], bias=False)
        nn.init.zeros_(self.lora_B[name].weight)  # type: ignore[arg-type]
        self.scaling[name] = scale

    def factors(self, name: str = "default") -> tuple[Tensor, Tensor]:
        left, right = self.lora_B[name].weight, self.lora_A[name].weight
        assert isinstance(left, Tensor)
        assert isinstance(right, Tensor)
        return left, right

    def product(self, name: str = "default") -> np.ndarray:
        left, right = (factor.detach().double().numpy() for factor in self.factors(name))
        return np.asarray(self.scaling[name] * (left @ right))

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.base_layer(inputs)
        for name in self.active_adapters:
            out = out + self.scaling[name] * self.lora_B[name](self.lora_A[name](inputs))
        return out


class Conv1D(nn.Module):
    """As transformers has it: (in, out)."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cols, rows))


class Quantised(nn.Module):
    """Eight-bit numbers whose attribute must not be asked for: that would make a dense copy."""

    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self._parameters["weight"] = nn.Parameter(torch.zeros(rows, cols, dtype=torch.int8), requires_grad=False)

    def __getattr__(self, name: str) -> Any:
        assert name != "weight", "the quantised weight was read"
        return super().__getattr__(name)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.new_zeros(len(inputs), self._parameters["weight"].shape[0])  # type: ignore[union-attr]


def net(layer: nn.Module, name: str = "proj") -> nn.Module:
    model = nn.Module()
    model.add_module(name, layer)
    return model


def lora(rows: int = 12, cols: int = 10, **options: Any) -> Lora:
    return Lora(nn.Linear(cols, rows, bias=False), rows, cols, **options)


def watch(model: nn.Module, directory: Path, **options: Any) -> SpectrumTracker:
    return attach(model, None, directory, **{"every": 1, "buffer_rank": 3, "tensorboard": False} | options)


@torch.no_grad()
def move(*layers: Lora, size: float = 1.0, name: str = "default") -> None:
    for layer in layers:
        for factor in layer.factors(name):
            factor += size * torch.randn_like(factor)


def spectrum(directory: Path, matrix: str, step: int) -> np.ndarray:
    run = open_run(directory)
    assert set(run.events["kind"]) <= {"adapter_changed", "resumed"}, run.events["message"].iloc[0]
    return run.singular_values(matrix).loc[step].dropna().to_numpy()


def assert_spectrum(found: np.ndarray, update: np.ndarray, atol: float = 2e-7) -> None:
    """The values that are stored, in float32, and zeros beyond them; `atol` in units of σ₁."""
    expected = oracles.singular_values(update)
    np.testing.assert_allclose(found, expected[: len(found)], atol=atol * expected[0])
    assert (expected[len(found) :] < 1e-9 * expected[0]).all()  # the oracle's own rounding, of products it subtracts


def notes(coverage: Coverage) -> dict[str, str]:
    assert len({row.parameter for row in coverage}) == len(coverage)
    return {row.parameter: row.note for row in coverage}


# --- the update


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_update_of_an_adapter_is_the_scaled_product_of_its_factors(tmp_path: Path, dtype: torch.dtype) -> None:
    layer = lora(scale=0.3).to(dtype)
    with watch(net(layer), tmp_path / "run") as tracker:
        move(layer)
        tracker.step()
    assert_spectrum(spectrum(tmp_path / "run", "proj.weight", 1), layer.product())
    row = open_run(tmp_path / "run").measurements.iloc[0]
    assert row[["layer_rank", "capacity", "numerical_rank"]].tolist() == [2, 2, 2]
    assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(layer.product()))


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6])
def test_an_adapter_that_begins_with_a_product_is_measured_from_there(tmp_path: Path, size: float) -> None:
    layer = lora().double()
    move(layer)
    first = layer.product()
    with watch(net(layer), tmp_path / "run") as tracker:
        assert "not zero now: less B·A at W0" in notes(tracker.coverage)["proj.weight"]
        move(layer, size=size)
        tracker.step()
    # by Gram matrices the rounding, 1e-8 of the factors, would cover the smallest of these updates
    assert_spectrum(spectrum(tmp_path / "run", "proj.weight", 1), layer.product() - first)
    row = open_run(tmp_path / "run").measurements.iloc[0]
    assert row[["layer_rank", "capacity", "numerical_rank"]].tolist() == [2, 2, 4]


def test_an_adapter_that_has_not_moved_has_an_update_of_zero(tmp_path: Path) -> None:
    layer = lora()
    move(layer)
    with watch(net(layer), tmp_path / "run") as tracker:
        tracker.step()
    row = open_run(tmp_path / "run").measurements.iloc[0]
    assert row[["intrinsic_rank", "spectral_norm"]].tolist() == [0, 0]


def test_the_difference_of_two_products_may_be_of_two_ranks() -> None:
    old, new = (torch.randn(7, 2), torch.randn(2, 5)), (torch.randn(7, 3), torch.randn(3, 5))
    for (left, right), (first_left, first_right) in ((old, new), (new, old)):
        packed = torch.cat([first_left, first_right.mT])
        factors = since_start(left, right, packed)
        torch.testing.assert_close((factors[0] @ factors[1]).float(), left @ right - first_left @ first_right)
        assert factors[2]


def test_a_scale_that_changes_is_part_of_the_update(tmp_path: Path) -> None:
    layer = lora()
    move(layer)
    first = layer.product()
    with watch(net(layer), tmp_path / "run") as tracker:
        layer.scaling["default"] = 5.0
        tracker.step()
    assert_spectrum(spectrum(tmp_path / "run", "proj.weight", 1), layer.product() - first)


def test_q_k_and_v_of_a_fused_weight_are_blocks_of_the_product(tmp_path: Path) -> None:
    layer = Lora(Conv1D(18, 6), 18, 6)
    move(layer)
    first = layer.product()
    with watch(net(layer, "c_attn"), tmp_path / "run") as tracker:
        assert "[q] 6×6 in factors, [k] 6×6 in factors" in notes(tracker.coverage)["c_attn.weight"]
        move(layer)
        tracker.step()
    for place, part in enumerate("qkv"):
        update = (layer.product() - first)[6 * place : 6 * place + 6]
        assert_spectrum(spectrum(tmp_path / "run", f"c_attn.weight[{part}]", 1), update)
    matrices, _ = find_matrices(net(layer, "c_attn"), split_parts=False)
    assert [(matrix.name, matrix.rows, matrix.cols) for matrix in matrices] == [("c_attn.weight", 18, 6)]


def test_convolutions_and_embeddings_are_measured_as_their_weight_would_be(tmp_path: Path) -> None:
    conv = Lora(nn.Conv2d(3, 4, 2), 4, 3)
    conv.lora_A["default"], conv.lora_B["default"] = nn.Conv2d(3, 2, 2, bias=False), nn.Conv2d(2, 4, 1, bias=False)
    embedding = Lora(nn.Embedding(9, 5), 5, 9)
    embedding.lora_embedding_A = nn.ParameterDict({"default": torch.randn(2, 9)})
    embedding.lora_embedding_B = nn.ParameterDict({"default": torch.randn(5, 2)})
    del embedding.lora_A["default"], embedding.lora_B["default"]
    model = nn.ModuleDict({"conv": conv, "embedding": embedding})
    assert "an embedding" in notes(find_matrices(model)[1])["embedding.weight"]
    conv_matrix, embedding_matrix = find_matrices(model, embeddings=True)[0]
    assert (conv_matrix.rows, conv_matrix.cols, conv_matrix.kind) == (4, 12, "Conv2d")
    left, right = conv_matrix.module.update_factors()  # type: ignore[union-attr,operator]
    factor_A, factor_B = conv.lora_A["default"].weight, conv.lora_B["default"].weight
    kernel = 2 * torch.einsum("or,rikl->oikl", factor_B[:, :, 0, 0], factor_A)  # type: ignore[index,arg-type]
    torch.testing.assert_close(left @ right, kernel.detach().flatten(1))
    left, right = embedding_matrix.module.update_factors()  # type: ignore[union-attr,operator]
    assert (embedding_matrix.rows, embedding_matrix.cols, embedding_matrix.kind) == (9, 5, "Embedding")
    product = embedding.lora_embedding_B["default"] @ embedding.lora_embedding_A["default"]
    torch.testing.assert_close(left @ right, 2 * product.detach().mT)


def test_ranks_that_adalora_masks_are_not_in_use(tmp_path: Path) -> None:
    layer = lora(rank=4)
    left, right = layer.factors()
    layer.lora_A, layer.lora_B = nn.ParameterDict({"default": right}), nn.ParameterDict({"default": left})
    layer.lora_E = nn.ParameterDict({"default": torch.zeros(4, 1)})
    layer.ranknum = nn.ParameterDict({"default": nn.Parameter(torch.tensor([4.0]), requires_grad=False)})
    nn.init.normal_(layer.lora_B["default"])  # type: ignore[arg-type]
    with watch(net(layer), tmp_path / "run") as tracker:
        with torch.no_grad():
            layer.lora_E["default"][1:3] = torch.tensor([[2.0], [-3.0]])
        tracker.step()
    middle = np.diag([0, 2.0, -3.0, 0])
    product = left.detach().numpy() @ middle @ right.detach().numpy() * 2 / (4 + 1e-5)
    assert_spectrum(spectrum(tmp_path / "run", "proj.weight", 1), product)
    row = open_run(tmp_path / "run").measurements.iloc[0]
    assert row[["layer_rank", "capacity", "numerical_rank"]].tolist() == [2, 4, 2]


def test_a_stack_of_experts_is_one_matrix_an_expert(tmp_path: Path) -> None:
    base = nn.Module()
    base.up = nn.Parameter(torch.randn(3, 4, 5), requires_grad=False)
    layer = Lora(base, 5, 4, rank=6)
    layer.parameter_name, layer.num_experts = "up", 3
    move(layer)
    with watch(net(layer, "experts"), tmp_path / "run") as tracker:
        move(layer)
        layer.factors()[0].data[:] = 0  # back to no product: the update is the one at attach, with another sign
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.matrices.index.tolist() == ["experts.up[0]", "experts.up[1]", "experts.up[2]"]
    assert run.measurements["layer_rank"].tolist() == [2, 2, 2]
    assert run.measurements["numerical_rank"].tolist() == [2, 2, 2]


# --- names, coverage, refusals


def test_an_adapter_is_named_after_the_weight_it_adapts() -> None:
    coverage = notes(find_matrices(net(lora(), "proj"))[1])
    assert list(coverage) == ["proj.weight", "proj.base_layer.weight"]
    assert coverage["proj.weight"] == "12×10 in factors (adapter 'default': 2·B·A of rank 2)"
    assert coverage["proj.base_layer.weight"].startswith("frozen")


def test_paths_lose_what_compile_and_peft_have_put_into_them() -> None:
    added = {"base_model", "base_model.model", "base_model.model.head.modules_to_save"}
    assert plain_path("base_model.model.model.layers.0._orig_mod.q", added) == "model.layers.0.q"
    assert plain_path("base_model.model.head.modules_to_save", added) == "head"
    assert plain_path("", added) == ""
    assert plain_path("model.base_model.model", added) == "model.base_model.model"  # somebody's own module


def test_a_model_of_ones_own_with_peft_like_names_keeps_them() -> None:
    model = net(net(nn.Linear(3, 3), "model"), "base_model")
    assert [matrix.name for matrix in find_matrices(model)[0]] == ["base_model.model.weight"]


def test_the_trained_adapter_has_the_plain_name_and_several_have_their_own(tmp_path: Path) -> None:
    layer = lora()
    layer.add("second", 3, 1.0)
    layer.lora_A["second"].requires_grad_(False)
    layer.lora_B["second"].requires_grad_(False)
    coverage = notes(find_matrices(net(layer))[1])
    assert coverage["proj.weight"].startswith("12×10 in factors (adapter 'default'")
    assert coverage["proj.weight[second]"].startswith("frozen")
    layer.requires_grad_(True)
    layer.base_layer.requires_grad_(False)
    with watch(net(layer), tmp_path / "run") as tracker:
        move(layer)
        move(layer, name="second")
        tracker.step()
    for name in ("default", "second"):
        assert_spectrum(spectrum(tmp_path / "run", f"proj.weight[{name}]", 1), layer.product(name))


def test_what_is_no_product_of_two_factors_is_refused_with_a_reason() -> None:
    class Loha(nn.Module):
        adapter_layer_names = ("hada_w1_a",)

    loha = Loha()
    loha.base_layer = nn.Linear(4, 4).requires_grad_(False)
    loha.hada_w1_a = nn.ParameterDict({"default": torch.randn(4, 2)})
    variant, grouped, megatron = lora(), Lora(nn.Conv2d(4, 4, 1, groups=2), 4, 4), lora()
    variant.lora_variant = {"default": type("ArrowLinearVariant", (), {})()}
    grouped.lora_A["default"] = nn.Conv2d(4, 2, 1, bias=False)
    grouped.lora_B["default"] = nn.Conv2d(2, 4, 1, groups=2, bias=False)
    megatron.is_parallel_a = True
    model = nn.ModuleDict(
        {"loha": loha, "arrow": variant, "grouped": grouped, "split": megatron, "head": nn.Linear(4, 4)}
    )
    matrices, coverage = find_matrices(model)
    assert [matrix.name for matrix in matrices] == ["head.weight"]
    found = notes(coverage)
    assert found["loha.hada_w1_a.default"] == "of an adapter that is not LoRA's: its update is not B·A"
    assert "ArrowLinearVariant" in found["arrow.weight"]
    assert "not of the weight's shape" in found["grouped.weight"]
    assert "Megatron" in found["split.weight"]


def test_doras_magnitudes_are_said_to_be_left_out() -> None:
    layer = lora()
    layer.lora_variant = {"default": type("DoraLinearVariant", (), {})()}
    layer.lora_magnitude_vector = nn.ParameterDict({"default": torch.ones(12)})
    coverage = notes(find_matrices(net(layer))[1])
    assert "without DoRA's magnitudes" in coverage["proj.weight"]
    assert coverage["proj.lora_magnitude_vector.default"] == "a vector"


def test_a_frozen_adapter_is_not_watched() -> None:
    with pytest.raises(ValueError, match=r"there is no matrix .* \(proj.weight: frozen"):
        find_matrices(net(lora().requires_grad_(False)))


# --- the base weight


def test_a_quantised_base_weight_is_never_read(tmp_path: Path) -> None:
    layer = Lora(Quantised(12, 10), 12, 10)
    model = net(layer)
    optimizer = torch.optim.SGD([*layer.lora_A.parameters(), *layer.lora_B.parameters()], lr=0.1)
    with attach(model, optimizer, tmp_path / "run", every=1, buffer_rank=2, tensorboard=False) as tracker:
        assert notes(tracker.coverage)["proj.base_layer.weight"].startswith("frozen")
        layer(torch.ones(3, 10)).sum().backward()
        optimizer.step()
        tracker.flush()
        assert tracker.finished_steps == [1]
    assert open_run(tmp_path / "run").events.empty
    assert open_run(tmp_path / "run").matrices["initial_norm"].tolist() == [0.0]


def test_the_norm_of_w0_is_that_of_base_and_adapter_together(tmp_path: Path) -> None:
    plain, begun, merged = lora(), lora(), lora()
    move(begun, merged)
    with torch.no_grad():
        merged.base_layer.weight += torch.tensor(merged.product()).float()
    merged.merged_adapters = ["default"]
    fused = Lora(Conv1D(18, 6), 18, 6)
    model = nn.ModuleDict({"plain": plain, "begun": begun, "merged": merged, "c_attn": fused})
    watch(model, tmp_path / "run").close()
    found = open_run(tmp_path / "run").matrices["initial_norm"].to_dict()
    expected = {
        "plain.weight": plain.base_layer.weight,
        "begun.weight": begun.base_layer.weight.detach() + torch.tensor(begun.product()),  # type: ignore[operator]
        "merged.weight": merged.base_layer.weight,
        "c_attn.weight[k]": fused.base_layer.weight.mT[6:12],  # type: ignore[union-attr,index]
    }
    for name, weight in expected.items():
        assert found[name] == pytest.approx(float(torch.linalg.vector_norm(weight)), rel=1e-6)  # type: ignore[arg-type]


# --- merging, switching, resuming


def test_merging_and_unmerging_are_events_and_leave_the_spectrum_alone(tmp_path: Path) -> None:
    layer = Lora(Conv1D(18, 6), 18, 6)
    with watch(net(layer, "c_attn"), tmp_path / "run", strict=True) as tracker:
        move(layer)
        for merged in (["default"], ["default"], []):
            layer.merged_adapters = merged
            tracker.step()
    run = open_run(tmp_path / "run")
    assert run.events[["step", "kind", "matrix"]].to_numpy().tolist() == [
        [1, "adapter_changed", "c_attn.weight[q]"],
        [3, "adapter_changed", "c_attn.weight[q]"],
    ]
    assert "is now merged into the base weight; it was in use" in run.events["message"].iloc[0]
    assert "is now in use; it was merged" in run.events["message"].iloc[1]
    for step in (1, 2, 3):
        assert_spectrum(spectrum(tmp_path / "run", "c_attn.weight[q]", step), layer.product()[:6])


def test_switching_disabling_and_deleting_an_adapter_are_told(tmp_path: Path) -> None:
    layer = lora()
    layer.add("second", 2, 1.0)
    layer.lora_A["second"].requires_grad_(False)
    layer.lora_B["second"].requires_grad_(False)
    with watch(net(layer), tmp_path / "run") as tracker:
        layer.active_adapters = ["second"]
        tracker.step()
        layer.disable_adapters = True
        tracker.step()
        del layer.lora_A["default"], layer.lora_B["default"]
        tracker.step()
    events = open_run(tmp_path / "run").events
    assert events["kind"].tolist() == ["adapter_changed", "adapter_changed", "parameter_gone"]
    assert events["message"].iloc[0] == "adapter 'default' is now not active (second is); it was in use"
    assert "is now disabled" in events["message"].iloc[1]


def test_a_resumed_run_counts_from_its_own_start(tmp_path: Path) -> None:
    layer = lora()
    move(layer)
    first, start = layer.product(), {name: value.clone() for name, value in layer.state_dict().items()}
    with watch(net(layer), tmp_path / "run") as tracker:
        move(layer)
        tracker.step()
    again = lora()
    again.load_state_dict(layer.state_dict())
    with watch(net(again), tmp_path / "run", resume=True) as tracker:
        assert tracker.step_count == 1
        move(again)
        tracker.step()
    assert_spectrum(spectrum(tmp_path / "run", "proj.weight", 2), again.product() - first)
    again.load_state_dict(start)
    with watch(net(again), tmp_path / "run", resume=True) as tracker:
        assert tracker.step_count == 0  # the factors are those of W0: the training begins again


@pytest.mark.parametrize("keep", ["memory", "device"])
def test_the_factors_of_w0_are_kept_where_w0_is(tmp_path: Path, keep: Any) -> None:
    layer = lora()
    move(layer)
    first = layer.product()
    with watch(net(layer), tmp_path / "run", initial_weights=keep) as tracker:
        move(layer)
        tracker.step()
    assert not (tmp_path / "run" / "initial_weights.safetensors").exists()
    assert_spectrum(spectrum(tmp_path / "run", "proj.weight", 1), layer.product() - first)


# --- the rank of noise, and advice


@pytest.mark.parametrize(("rows", "cols", "rank", "buffer_rank"), [(40, 30, 6, 10), (64, 64, 12, 4), (8, 50, 8, 100)])
@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_the_null_rank_of_an_adapter_is_that_of_random_factors_of_its_rank(
    rows: int, cols: int, rank: int, buffer_rank: int, definition: Any
) -> None:
    generator = np.random.default_rng(rows)
    drawn = []
    for _ in range(9):
        product = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, cols))
        values = oracles.singular_values(product)
        values[rank:] = 0.0  # rounding
        drawn.append(oracles.intrinsic_rank(values, 0.9, buffer_rank, definition))
    found = null_rank(rows, cols, 0.9, buffer_rank, definition, "factors", rank=rank)
    assert found <= rank
    assert min(drawn) <= found <= max(drawn)


def test_the_null_rank_follows_the_rule_when_ranks_are_recomputed(tmp_path: Path) -> None:
    layer = lora(40, 30, rank=4)
    with watch(net(layer), tmp_path / "run") as tracker:
        move(layer)
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.matrices["null_rank"].tolist() == [null_rank(40, 30, 0.9, 3, "paper", "factors", rank=4)]
    table = recompute(run, RankRule(0.6, 20))
    assert table["null_rank"].tolist() == [null_rank(40, 30, 0.6, 20, "paper", "factors", rank=4)]
    assert table["null_rank"].iloc[0] <= 4


def test_advice_names_the_modules_of_the_base_model(tmp_path: Path) -> None:
    layer, fused = lora(), Lora(Conv1D(18, 6), 18, 6)
    layer.add("second", 2, 1.0)
    model = nn.ModuleDict({"q_proj": layer, "c_attn": fused})
    with watch(model, tmp_path / "run") as tracker:
        move(layer, fused)
        move(layer, name="second")
        for _ in range(LEAST_STEPS):
            tracker.step()
    table = advise(open_run(tmp_path / "run"))
    assert (table["energy_rank"] <= 2).all()
    assert set(table["verdict"]) == {"too thin to tell"}
    pattern = rank_pattern(table)
    assert sorted(pattern) == ["c_attn", "q_proj"]
    assert all(1 <= rank <= 2 for rank in pattern.values())


def test_watching_adapters_imports_no_peft() -> None:
    code = "import inrank_monitor.matrices.adapters, inrank_monitor.tracking.attaching; print('peft' in sys.modules)"
    assert run_script(code).stdout == "False\n"
