"""What layers compute where a loop is on an accelerator (one that is not there): in TF32, without float64, aligned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.active import converted, fill, grow
from helpers.pretended import Pretended, move, on_device, pretending, recording
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import linear

from inrank import InRankLinear, convert, factorize, merge
from inrank.growth.dense_gradient import outside_spans
from inrank.growth.initialization import initialize_from_gradient
from inrank.layers.factored_layer import aligned
from inrank_monitor.spectra import estimated_spectrum, leading_singular_values, singular_values, svd

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def tf32() -> Iterator[None]:
    """As a loop sets it that wants to be fast."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    torch.backends.cuda.matmul.fp32_precision = before


def host(value: Any) -> Tensor:
    found: Tensor = value.inner if isinstance(value, Pretended) else value
    return found.detach().double()


def exact(layer: InRankLinear) -> Tensor:
    assert layer.initial_weight is not None
    return host(layer.initial_weight) + layer.gain * (host(layer.U) @ host(layer.V))


@pytest.mark.usefixtures("tf32")
def test_a_loop_in_tf32_makes_neither_merging_nor_factorizing_coarser() -> None:
    with pretending():
        coarse = on_device(torch.randn(30, 30)) @ on_device(torch.eye(30) * 1.0001)
        assert (host(coarse) - host(coarse).float().double()).abs().max() == 0
        model = move(converted(40, 30, rank=3, dtype=torch.float32))
        weight = exact(model[0])  # type: ignore[arg-type]
        assert (host(model[0].weight) - weight).abs().max() > 1e-5 * weight.abs().max()  # as the loop has it
        merge(model)
        assert torch.equal(host(model[0].weight).float(), weight.float())
        model = move(converted(40, 30, rank=3, dtype=torch.float32))
        factorize(model, ranks=30)
        found = model[0].gain * (host(model[0].U) @ host(model[0].V))  # type: ignore[operator]
        torch.testing.assert_close(found, weight, rtol=0, atol=2e-6 * float(weight.abs().max()))


@pytest.mark.usefixtures("tf32")
def test_a_loop_in_tf32_makes_neither_spans_nor_leading_values_coarser() -> None:
    gradient, left, right = torch.randn(60, 90), torch.randn(60, 5), torch.randn(5, 90)
    left[:, 4] = left[:, 0]  # not of full rank, as young factors are
    with pretending():
        rest = host(outside_spans(*map(on_device, (gradient, left, right))))
        assert (left.double().mT @ rest).abs().max() < 1e-4
        assert (rest @ right.double().mT).abs().max() < 1e-4
        matrix = torch.randn(120, 20) @ torch.randn(20, 300) + 0.01 * torch.randn(120, 300)
        values = torch.linalg.svdvals(matrix.double())
        for found in (leading_singular_values(on_device(matrix), 12), estimated_spectrum(on_device(matrix), 12)):
            errors = values[:12] - found.values[:12]
            assert errors.abs().max() <= found.error_bound + 1e-6 * float(values[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_without_float64_does_all_that_others_do(dtype: torch.dtype) -> None:
    matrix = (torch.randn(80, 20) @ torch.randn(20, 90)).to(dtype)
    with pretending(float64=False):
        with pytest.raises(TypeError, match="does not support float64"):
            on_device(matrix).double()
        expected = torch.linalg.svdvals(matrix.double())
        rounding = 1e-5 * float(expected[0])
        for values in (singular_values(on_device(matrix)), singular_values(on_device(matrix), "svd")):
            torch.testing.assert_close(values, expected, rtol=0, atol=rounding)
        for some in (leading_singular_values(on_device(matrix), 4), estimated_spectrum(on_device(matrix), 4)):
            assert (expected[:4] - some.values[:4]).abs().max() <= some.error_bound + rounding
        model = move(converted(40, 30, rank=3, dtype=dtype))
        weight = exact(model[0])  # type: ignore[arg-type]
        factorize(model, ranks=30)
        merge(model)
        torch.testing.assert_close(host(model[0].weight), weight, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_decomposition_of_a_device_falls_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, asked, broken = torch.randn(9, 3) @ torch.randn(3, 7), [], set[str]()
    plain = torch.linalg.svd

    def failing(value: Tensor, **options: Any) -> Any:
        asked.append((value.device.type, options.get("driver")))
        if value.device.type in broken:
            raise torch.linalg.LinAlgError("did not converge")  # type: ignore[attr-defined]
        return plain(value, **options)

    monkeypatch.setattr(torch.linalg, "svd", failing)
    for kinds in ((), ("cuda",)):
        broken.update(kinds)
        with pretending():
            left, values, right = svd(on_device(matrix))
            assert {part.device.type for part in (left, values, right)} == {"cuda"}
            found = host(left) * host(values) @ host(right)
        torch.testing.assert_close(found, matrix.double(), rtol=0, atol=1e-5)
    assert asked == [("cuda", "gesvd"), ("cuda", "gesvd"), ("cpu", None)]
    with pytest.raises(RuntimeError, match="non-finite"):
        svd(torch.full((3, 3), torch.nan))


@pytest.mark.parametrize(
    ("dtype", "columns", "wanted"),
    [(torch.float32, 1, 8), (torch.bfloat16, 8, 8), (torch.bfloat16, 9, 16), (torch.float8_e4m3fn, 17, 32)],
)
def test_columns_are_counted_in_what_tensor_cores_take(dtype: torch.dtype, columns: int, wanted: int) -> None:
    assert aligned(columns, dtype) == wanted


def test_factors_have_room_for_whole_tiles_and_a_device_computes_with_them() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    convert(model, "0", initial_rank=3, buffer_rank=2, max_rank=9)
    layer: InRankLinear = fill(model[0])  # type: ignore[arg-type]
    assert (layer.used, layer.capacity) == (5, 16)
    inputs = torch.randn(6, 64)
    with pretending(), torch.no_grad():
        for rank, width in ((3, 8), (6, 8), (7, 16), (9, 16)):
            if rank > layer.rank:
                grow(layer, rank)
                fill(layer)
            there = move(nn.Sequential(copy_of(layer)))
            with recording() as record:
                found = there(on_device(inputs))
            assert there[0]._computed_factors()[0].shape == (48, width)  # type: ignore[operator]
            assert record.kernels["addmm_"] + record.kernels["add"] + record.kernels["add.Tensor"] == 1
            torch.testing.assert_close(host(found).float(), layer(inputs), rtol=1e-5, atol=1e-5)
    assert layer.update_factors()[0].shape == (48, 11)  # what is measured has no columns that are not used


def copy_of(layer: InRankLinear) -> nn.Module:
    return copy.deepcopy(layer)


SHAPES = [(64,), (0, 64), (7, 64), (2, 3, 64), (3, 0, 64)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frozen", [True, False])
def test_inputs_of_any_shape_give_what_the_dense_weight_gives(shape: tuple[int, ...], frozen: bool) -> None:
    layer: InRankLinear = converted(64, 48, rank=3)[0]  # type: ignore[assignment]
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=not frozen)
    kept = inputs.detach().clone()
    output = layer(inputs)
    assert output.shape == (*shape[:-1], 48)
    expected = linear(inputs, layer.weight, layer.bias)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(inputs.detach(), kept, rtol=0, atol=0)
    wanted = torch.randn_like(output)
    sources = [layer.U, layer.V, *([] if frozen else [inputs])]
    for one, two in zip(
        torch.autograd.grad(output, sources, wanted), torch.autograd.grad(expected, sources, wanted), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_autocast_transforms_and_inputs_that_are_no_matrix_see_the_same_layer() -> None:
    layer: InRankLinear = converted(64, 48, rank=3, dtype=torch.float32)[0]  # type: ignore[assignment]
    inputs = torch.randn(5, 2, 64)
    expected = linear(inputs.double(), exact(layer), layer.bias.detach().double())  # type: ignore[union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        halved = layer(inputs)
        assert halved.dtype == torch.bfloat16
        halved.float().sum().backward()
    torch.testing.assert_close(halved.double(), expected, rtol=0.05, atol=0.05)
    assert layer.U.grad is not None
    turned = inputs.mT.contiguous().mT  # not contiguous
    torch.testing.assert_close(layer(turned).double(), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(layer(inputs).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vmap(layer)(inputs).double(), expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_of_layers_runs_under_vmap_over_its_parameters() -> None:
    layers = [converted(64, 48, rank=3)[0] for _ in range(3)]
    for seed, layer in enumerate(layers):
        torch.manual_seed(seed)
        fill(layer)  # type: ignore[arg-type]
    parameters, _ = stack_module_state(layers)  # type: ignore[arg-type]
    shared = parameters.pop("initial_weight")[0]
    inputs = torch.randn(5, 64, dtype=torch.float64)

    def loss(own: dict[str, Tensor]) -> Tensor:
        outputs: Tensor = functional_call(layers[0], own | {"initial_weight": shared}, (inputs,))
        return outputs.square().sum()

    found = vmap(grad(loss))(parameters)
    for place, layer in enumerate(layers):
        layer.zero_grad()
        layer(inputs).square().sum().backward()
        torch.testing.assert_close(found["U"][place], layer.U.grad)
        torch.testing.assert_close(found["V"][place], layer.V.grad)


def test_the_output_may_be_changed_in_place_and_differentiated_twice() -> None:
    layer = converted(6, 5, rank=2)[0]
    inputs = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(x).relu_().square(), (inputs,))
    state = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}
    assert torch.autograd.gradcheck(
        lambda U, V: functional_call(layer, state | {"U": U, "V": V}, (inputs,)), (state["U"], state["V"])
    )


def test_the_first_factors_come_from_the_decomposition_of_the_gradient() -> None:
    model = converted(14, 9, rank=2)
    inputs = torch.randn(20, 14, dtype=torch.float64)
    initialize_from_gradient(model, lambda: model(inputs).square().sum().backward())
    values = torch.linalg.svdvals(model[0].U.detach() @ model[0].V.detach())  # type: ignore[operator]
    torch.testing.assert_close(values[:4], values[:1].expand(4))
