"""Young columns of all layers at once: as one by one, in a handful of kernels."""

from __future__ import annotations

import pytest
import torch
from helpers.pretended import Pretended, on_device, pretending, recording
from torch import Tensor, nn
from torch.optim import AdamW

from inrank.growth.young_columns import Young, bound_young

pytestmark = pytest.mark.usefixtures("one_thread")


def young_factors(layers: int, device: str = "cpu") -> tuple[AdamW, list[Young]]:
    """U and V of layers of two shapes, each with other young columns; not all have taken as many steps."""
    generator = torch.Generator("cpu").manual_seed(0)

    def put(value: Tensor) -> Tensor:
        return value if device == "cpu" else on_device(value, device)

    factors, columns = [], []
    for place in range(layers):
        rows, cols = ((40, 24), (24, 40))[place % 2]
        for shape, axis in (((rows, 16), 1), ((16, cols), 0)):
            factor = nn.Parameter(put(torch.randn(shape, generator=generator)))
            factor.grad = put(torch.randn(shape, generator=generator))
            factors.append((factor, 1000.0 + 9 * (place % 3 == 0)))
            columns.append((axis, 3, 5 + place % 7))
    optimizer = AdamW([factor for factor, _ in factors], lr=0.01)
    for factor, step in factors:
        moments = {name: put(torch.rand(factor.shape, generator=generator) / 100) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[factor] = {"step": put(torch.tensor(step)), **moments}
    group = optimizer.param_groups[0]
    return optimizer, [Young(factor, group, *rest) for (factor, _), rest in zip(factors, columns, strict=True)]


def bounded(device: str, together: bool) -> list[Tensor]:
    optimizer, young = young_factors(6, device)
    with torch.no_grad():
        for some in [young] if together else [[one] for one in young]:
            bound_young(optimizer, some)
    squares = [optimizer.state[one.factor]["exp_avg_sq"] for one in young]
    return [value.inner if isinstance(value, Pretended) else value for value in squares]


def test_all_layers_together_are_as_each_by_itself_and_on_a_device_as_on_the_cpu() -> None:
    before = [value.clone() for value in squares_of(6)]
    alone = bounded("cpu", together=False)
    with pretending():
        on_a_device = bounded("cuda:0", together=True)
    for found in (bounded("cpu", together=True), on_a_device):
        for start, one, other in zip(before, found, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
            changed = (one != start).any(0 if one.shape[0] in (24, 40) else 1)
            assert changed.any()
            assert not changed[:3].any()
            assert not changed[12:].any()


def squares_of(layers: int) -> list[Tensor]:
    optimizer, young = young_factors(layers)
    return [optimizer.state[one.factor]["exp_avg_sq"] for one in young]


def test_a_step_costs_about_as_many_kernels_for_many_layers_as_for_a_few() -> None:
    """Of one layer alone they were 44. The columns of U go back one by one, which counts as one kernel here."""
    counts = {}
    for layers in (6, 48):
        with pretending():
            optimizer, young = young_factors(layers, "cuda:0")
            with recording() as record, torch.no_grad():
                bound_young(optimizer, young)
            assert (record.reads, record.waits, record.copies.total()) == (0, 0, 0)
            counts[layers] = sum(count for name, count in record.kernels.items() if not is_view(name))
    assert counts[48] == counts[6] <= 44  # for both lengths


def is_view(name: str) -> bool:
    return name.split(".")[0] in ("slice", "transpose", "expand", "detach", "split_with_sizes", "unsqueeze", "alias")
