from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from inrank_monitor.matrices.finding import Coverage, find_matrices, unwrap
from inrank_monitor.matrices.matrix import LowRankUpdate, Matrix, read_parameter

pytestmark = pytest.mark.numeric


def values_of(model: nn.Module, **options: bool) -> dict[str, Tensor]:
    """Every matrix by name, and that it is what it says of itself."""
    matrices, _ = find_matrices(model, **options)
    found = {matrix.name: matrix.view(matrix.read()) for matrix in matrices}
    assert len(found) == len(matrices)
    for matrix in matrices:
        assert found[matrix.name].shape == (matrix.rows, matrix.cols)
        assert not found[matrix.name].requires_grad
        assert matrix.name == matrix.parameter + (f"[{matrix.part}]" if matrix.part else "")
    return found


def notes(model: nn.Module, **options: object) -> dict[str, str]:
    """What becomes of every parameter; each must be there once."""
    _, coverage = find_matrices(model, **options)  # type: ignore[arg-type]
    names = [row.parameter for row in coverage]
    parameters = [name for name, _ in unwrap(model).named_parameters(remove_duplicate=False)]
    # a parametrized weight goes by the name that it is used under
    expected = {re.sub(r"parametrizations\.(\w+)\..*|_orig_mod\.", r"\1", name) for name in parameters}
    assert sorted(names) == sorted(expected)
    return {row.parameter: row.note for row in coverage}


def kinds(model: nn.Module) -> list[str]:
    return [matrix.kind for matrix in find_matrices(model)[0]]


def test_linear() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    found = values_of(model)
    assert list(found) == ["0.weight", "2.weight"]
    assert_close(found["0.weight"], model[0].weight.detach())
    assert found["0.weight"].data_ptr() == model[0].weight.data_ptr()  # no copy
    assert notes(model) == {"0.weight": "5×3", "0.bias": "a vector", "2.weight": "2×5"}
    assert kinds(model) == ["Linear", "Linear"]


def test_transformers_conv1d_is_turned_to_out_by_in() -> None:
    layer = Conv1D(5, 3)
    inputs = torch.randn(4, 3)
    assert_close(inputs @ values_of(layer)["weight"].mT + layer.bias, layer(inputs))


@pytest.mark.parametrize(("kind", "dimensions"), [(nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_its_map_of_patches(kind: type[nn.Conv2d], dimensions: int, groups: int) -> None:
    layer = kind(4, 8, tuple(range(2, 2 + dimensions)), groups=groups, bias=False)  # type: ignore[arg-type]
    found = values_of(layer)["weight"]
    patch = torch.randn(4, *range(2, 2 + dimensions))
    answers = [rows @ part.flatten() for rows, part in zip(found.chunk(groups), patch.chunk(groups), strict=True)]
    assert_close(torch.cat(answers), layer(patch[None]).flatten())


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_its_map_of_patches(kind: type[nn.ConvTranspose2d], groups: int) -> None:
    """At stride 1 an output is the sum over a patch of inputs, its kernel turned round."""
    dimensions = int(kind.__name__[-2])
    sizes = tuple(range(2, 2 + dimensions))
    layer = kind(4, 6, sizes, padding=tuple(size - 1 for size in sizes), groups=groups, bias=False)  # type: ignore[arg-type]
    found = values_of(layer)["weight"]
    assert found.shape == (6, 4 // groups * torch.Size(sizes).numel())
    patch = torch.randn(4, *sizes)
    turned = patch.flip(tuple(range(1, 1 + dimensions)))
    answers = [rows @ part.flatten() for rows, part in zip(found.chunk(groups), turned.chunk(groups), strict=True)]
    assert_close(torch.cat(answers), layer(patch[None]).flatten())


def test_embeddings_are_watched_on_request() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    assert list(values_of(model)) == ["1.weight"]
    assert notes(model)["0.weight"] == "an embedding (embeddings=True watches it)"
    assert values_of(model, embeddings=True)["0.weight"].shape == (7, 4)
    assert list(values_of(nn.EmbeddingBag(7, 4), embeddings=True)) == ["weight"]


def tiny_gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11, n_positions=16))


def test_gpt2() -> None:
    model = tiny_gpt2()
    block = [f"attn.c_attn.weight[{part}]" for part in "qkv"] + ["attn.c_proj.weight", "mlp.c_fc.weight"]
    names = [f"transformer.h.{layer}.{name}" for layer in range(2) for name in [*block, "mlp.c_proj.weight"]]
    found = values_of(model)
    assert list(found) == names
    assert set(kinds(model)) == {"Conv1D"}
    attention = model.transformer.h[1].attn.c_attn
    assert_close(torch.cat([found[names[6 + part]] for part in range(3)]), attention.weight.mT.detach())
    assert found["transformer.h.0.mlp.c_fc.weight"].shape == (32, 8)
    rows = notes(model)
    assert rows["lm_head.weight"] == "tied to transformer.wte.weight"
    assert rows["transformer.wpe.weight"].startswith("an embedding")
    assert rows["transformer.h.0.attn.c_attn.weight"] == "[q] 8×8, [k] 8×8, [v] 8×8"
    assert "transformer.h.0.attn.c_attn.weight" in values_of(model, split_parts=False)
    assert [name for name in values_of(model, embeddings=True) if name not in names] == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
    ]


def test_attention_parts() -> None:
    layer = nn.MultiheadAttention(6, 2)
    found = values_of(layer)
    assert list(found) == ["in_proj_weight[q]", "in_proj_weight[k]", "in_proj_weight[v]", "out_proj.weight"]
    assert_close(torch.cat(list(found.values())[:3]), layer.in_proj_weight.detach())
    assert list(values_of(layer, split_parts=False)) == ["in_proj_weight", "out_proj.weight"]
    other = values_of(nn.MultiheadAttention(6, 2, kdim=3, vdim=5))
    assert {name: tuple(value.shape) for name, value in other.items()} == {
        "q_proj_weight": (6, 6),
        "k_proj_weight": (6, 3),
        "v_proj_weight": (6, 5),
        "out_proj.weight": (6, 6),
    }
    notes(nn.MultiheadAttention(6, 2, kdim=3, vdim=5, add_bias_kv=True))


def test_lstm_gates_are_what_the_cell_computes_with() -> None:
    cell = nn.LSTMCell(3, 4, bias=False)
    found = values_of(cell)
    x, h, c = torch.randn(3), torch.randn(4), torch.randn(4)
    i, f, g, o = (found[f"weight_ih[{gate}]"] @ x + found[f"weight_hh[{gate}]"] @ h for gate in "ifgo")
    new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    expected_h, expected_c = cell(x, (h, c))
    assert_close(new, expected_c)
    assert_close(o.sigmoid() * new.tanh(), expected_h)


def test_gru_gates_are_what_the_cell_computes_with() -> None:
    cell = nn.GRUCell(3, 4, bias=False)
    found = values_of(cell)
    x, h = torch.randn(3), torch.randn(4)
    (r, z), (from_x, from_h) = (
        [(found[f"weight_ih[{gate}]"] @ x + found[f"weight_hh[{gate}]"] @ h).sigmoid() for gate in "rz"],
        (found["weight_ih[n]"] @ x, found["weight_hh[n]"] @ h),
    )
    assert_close((1 - z) * (from_x + r * from_h).tanh() + z * h, cell(x, h))


def test_recurrent_layers() -> None:
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    found = values_of(lstm)
    assert len(found) == 4 * (4 + 4 + 1)
    assert found["weight_hh_l1_reverse[o]"].shape == (4, 2)
    assert found["weight_hr_l0"].shape == (2, 4)
    assert len(values_of(nn.GRU(3, 4))) == 6
    whole = values_of(lstm, split_parts=False)
    assert len(whole) == 12
    assert whole["weight_ih_l0"].shape == (16, 3)
    for plain in (nn.RNN(3, 4), nn.RNNCell(3, 4)):
        assert [value.shape for value in values_of(plain).values()] == [(4, 3), (4, 4)]
    for model in (lstm, nn.GRU(3, 4), nn.RNNCell(3, 4)):
        notes(model)


def test_spectral_norm_is_read_without_a_step_of_its_power_iteration() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = values_of(model)["0.weight"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(module.training for module in model.modules())
    assert_close(found, model.eval()[0].weight.detach())
    assert notes(model)["0.weight"] == "4×5"
    assert kinds(model) == ["Linear", "Linear"]


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


class Diagonal(nn.Module):
    """Keeps a diagonal matrix as a vector."""

    def forward(self, value: Tensor) -> Tensor:
        return torch.diag(value)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.diagonal().clone()


def test_parametrized_weights_are_read_by_their_effective_value() -> None:
    normed = parametrizations.weight_norm(nn.Linear(5, 4))
    assert list(values_of(normed)) == ["weight"]
    assert_close(values_of(normed)["weight"], normed.weight.detach())
    doubled = nn.Linear(3, 2)
    original = doubled.weight.detach().clone()
    parametrize.register_parametrization(doubled, "weight", Doubled())
    assert_close(values_of(doubled)["weight"], 2 * original)
    parts = nn.MultiheadAttention(4, 1)
    parametrize.register_parametrization(parts, "in_proj_weight", Doubled())
    assert_close(values_of(parts)["in_proj_weight[k]"], parts.in_proj_weight[4:8].detach())
    for model in (normed, doubled, parts):
        notes(model)


def test_a_parametrized_weight_has_the_shape_of_its_value() -> None:
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Diagonal())
    assert_close(values_of(layer)["weight"], layer.weight.detach())
    assert notes(layer)["weight"] == "3×3"


def test_a_parametrized_buffer_is_no_parameter() -> None:
    model = nn.Linear(3, 2)
    model.register_buffer("mask", torch.ones(2, 2))
    parametrize.register_parametrization(model, "mask", Doubled())
    assert list(values_of(model)) == ["weight"]


def test_tied_weights_are_watched_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(values_of(model)) == ["0.weight"]
    assert notes(model)["1.weight"] == "tied to 0.weight"
    shared = nn.Linear(4, 4)
    assert list(values_of(nn.Sequential(shared, nn.ReLU(), shared))) == ["0.weight"]


class Odd(nn.Module):
    """Parameters that no spectrum can be had of, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.vector = nn.Parameter(torch.ones(3))
        self.empty = nn.Parameter(torch.ones(0, 4))
        self.complex = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        self.integer = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.meta = nn.Parameter(torch.ones(2, 2, device="meta"))
        self.sparse = nn.Parameter(torch.eye(2).to_sparse())
        self.four = nn.Parameter(torch.ones(2, 2, 2, 2))
        self.norm = nn.LayerNorm((3, 4))
        self.lazy = nn.LazyLinear(3)
        self.linear = nn.Linear(2, 2)


def test_what_is_skipped_says_why() -> None:
    model = Odd()
    assert list(values_of(model)) == ["linear.weight"]
    reasons = notes(model)
    expected = {
        "scalar": "a scalar",
        "vector": "a vector",
        "empty": "it has no entries",
        "complex": "dtype complex64",
        "integer": "frozen",
        "frozen": "frozen (requires_grad=False)",
        "meta": "on the meta device: it has no values",
        "sparse": "layout torch.sparse_coo",
        "four": "no 2-D view known for Odd.four",
        "norm.weight": "scales of a normalisation, not a map",
        "lazy.weight": "lazy: run one forward pass before attaching",
    }
    for name, reason in expected.items():
        assert reasons[name].startswith(reason), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_floating_dtype_is_watched(dtype: torch.dtype) -> None:
    assert values_of(nn.Linear(3, 2).to(dtype))["weight"].dtype == dtype


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Parameter(torch.randn(6, 3, 4))
        self.list = nn.ParameterList([torch.randn(2, 3), torch.randn(3, 2)])


def test_stacks_of_experts_are_matrices_by_number() -> None:
    model = Experts()
    found = values_of(model)
    assert list(found) == [f"stack[{number}]" for number in range(6)] + ["list.0", "list.1"]
    assert_close(found["stack[4]"], model.stack[4].detach())
    assert notes(model)["stack"] == "[0] 3×4, [1] 3×4, [2] 3×4, [3] 3×4, …"


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # type: ignore[return-value]


@pytest.mark.usefixtures("process_group")
def test_wrappers_do_not_show() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 2))
    plain = values_of(model)
    parallel = nn.parallel.DistributedDataParallel
    for wrapped in (
        nn.DataParallel(model),
        parallel(model),
        compiled(model),
        compiled(parallel(model)),
        parallel(compiled(model)),
        nn.DataParallel(compiled(model)),
    ):
        assert unwrap(wrapped) is model
        found = values_of(wrapped)
        assert list(found) == list(plain)
        assert all(found[name].data_ptr() == plain[name].data_ptr() for name in plain)
        notes(wrapped)


def test_compiled_layers_keep_their_names() -> None:
    model = nn.Sequential(compiled(nn.Linear(3, 4)), compiled(parametrizations.weight_norm(nn.Linear(4, 2))))
    assert list(values_of(model)) == ["0.weight", "1.weight"]
    assert kinds(model) == ["Linear", "Linear"]
    notes(model)


class Factored(nn.Module):
    """W = W0 + U V with room for growth; shows the columns in use, or the whole parameters."""

    def __init__(self, spare: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5), requires_grad=False)
        self.U = nn.Parameter(torch.randn(6, 3 + spare))
        self.V = nn.Parameter(torch.randn(3 + spare, 5))
        self.bias = nn.Parameter(torch.zeros(6))
        self.spare = spare

    @property
    def rank(self) -> int:
        return 2

    def update_factors(self) -> tuple[Tensor, Tensor]:
        return (self.U[:, :3], self.V[:3]) if self.spare else (self.U, self.V)


@pytest.mark.parametrize("spare", [0, 4])
def test_a_layer_in_factors_is_watched_as_its_update(spare: int) -> None:
    layer = Factored(spare)
    assert isinstance(layer, LowRankUpdate)
    assert not isinstance(nn.Linear(2, 2), LowRankUpdate)
    matrices, coverage = find_matrices(nn.Sequential(nn.Linear(5, 5), layer))
    assert [matrix.name for matrix in matrices] == ["0.weight", "1"]
    update = matrices[1]
    assert (update.rows, update.cols, update.kind, update.in_factors) == (6, 5, "Factored", True)
    assert not matrices[0].in_factors
    assert {row.parameter: row.note for row in coverage if row.parameter[0] == "1"} == {
        "1": "6×5 in factors",
        "1.weight": "frozen (requires_grad=False)",
        "1.bias": "a vector",
    }
    alone, _ = find_matrices(layer)
    assert [matrix.name for matrix in alone] == ["Factored"]


def test_a_matrix_reads_itself_through_its_module() -> None:
    layer = nn.Linear(3, 2)
    (matrix,), _ = find_matrices(layer)
    layer.weight = nn.Parameter(torch.ones(2, 3))
    assert torch.equal(matrix.read(), torch.ones(2, 3))
    assert torch.equal(read_parameter(layer, "weight"), torch.ones(2, 3))
    assert "module" not in repr(matrix)
    assert layer.weight.grad_fn is None


def names(model: nn.Module, **options: object) -> list[str]:
    return [matrix.name for matrix in find_matrices(model, **options)[0]]  # type: ignore[arg-type]


def test_globs_choose_by_name_and_brackets_are_themselves() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 1), "experts": Experts(), "mlp": nn.Linear(4, 4)})
    everything = names(model)
    assert names(model, include="*[q]") == ["attn.in_proj_weight[q]"]
    assert names(model, include=["mlp*", "attn*[?]"]) == [
        *(f"attn.in_proj_weight[{part}]" for part in "qkv"),
        "mlp.weight",
    ]
    assert names(model, include="experts.stack[*]", exclude=["*[3]", "*[4]", "*[5]"]) == [
        f"experts.stack[{number}]" for number in range(3)
    ]
    assert names(model, exclude="experts*") == [name for name in everything if not name.startswith("experts")]
    assert names(model, include="*") == everything
    assert names(model, include="mlp.weight") == ["mlp.weight"]


def test_coverage_says_what_patterns_left_out() -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(4, 1), "mlp": nn.Linear(4, 4)})
    rows = notes(model, exclude="mlp*")
    assert rows["mlp.weight"] == "left out by include/exclude"
    assert rows["mlp.bias"] == "a vector"
    partly = notes(model, exclude="*[k]")["attn.in_proj_weight"]
    assert "[q]" in partly
    assert "[k]" not in partly


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(argument: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match=rf"{argument} pattern '1.wieght' matches no matrix.*Names look like .*1\.weight"
    ):
        find_matrices(model, **{argument: ["0.weight", "1.wieght"]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"matches only what is skipped: 0\.bias: a vector"):
        find_matrices(model, **{argument: "*.bias"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matches no matrix"):
        find_matrices(model, **{argument: "[01].weight"})  # type: ignore[arg-type]


def test_a_model_without_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no matrix to watch in this model .*it has no parameters"):
        find_matrices(nn.ReLU())
    with pytest.raises(ValueError, match=r"no matrix to watch .*weight: frozen \(requires_grad=False\)"):
        find_matrices(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"no matrix to watch .*weight: left out by include/exclude"):
        find_matrices(nn.Linear(2, 2), exclude="*")


def test_coverage_prints_as_a_table() -> None:
    _, coverage = find_matrices(Odd())
    lines = str(coverage).splitlines()
    assert len(lines) == 1 + len(coverage)
    assert lines[0].split()[:2] == ["parameter", "shape"]
    by_name = {line.split()[0]: line for line in lines[1:]}
    assert by_name["linear.weight"].split() == ["linear.weight", "2×2", "2×2"]
    assert by_name["scalar"].split(maxsplit=2)[1:] == ["scalar", "– a scalar"]
    assert len(str(Coverage()).splitlines()) == 1


def test_finding_matrices_changes_nothing() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.LSTM(4, 3), nn.Conv2d(1, 2, 3))
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    matrices, _ = find_matrices(model)
    assert all(isinstance(matrix, Matrix) and matrix.read() is not None for matrix in matrices)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
