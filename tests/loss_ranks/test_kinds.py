"""Every kind of matrix at a rank is W0 + its truncated update, by an oracle in float64 or by what the layer gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from inrank_monitor import attach, find_matrices, loss_at_ranks, ranks_by_loss

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, 11),
    "attention": lambda: nn.MultiheadAttention(6, 2),
    "LSTM": lambda: nn.LSTM(5, 6, bidirectional=True),
    "LSTM with projections": lambda: nn.LSTM(5, 6, proj_size=3),
    "GRU cell": lambda: nn.GRUCell(5, 6),
    "bilinear": lambda: nn.Bilinear(4, 5, 3),
    "convolution in 1 D": lambda: nn.Conv1d(6, 8, 3, groups=2),
    "convolution in 3 D": lambda: nn.Conv3d(3, 5, 2),
    "channels last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "transposed convolution": lambda: nn.ConvTranspose2d(6, 4, 3),
    "transposed convolution in groups": lambda: nn.ConvTranspose1d(6, 4, 3, groups=2),
    "spectral_norm by hooks": lambda: spectral_norm(nn.Linear(7, 11)),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 9)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(7, 11), "weight", 0.4),
    "double": lambda: nn.Linear(7, 11).double(),
}
INTERLEAVED = {"weight": {"q": 2, "k": 2, "v": 2}}  # rows of one head; every head has its own


def updates(model: nn.Module, start: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    return {m.name: m.view(m.read()).double() - start[m.name] for m in find_matrices(model, **options)[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_each_matrix_has_the_leading_part_of_its_update_while_the_loss_runs(kind: str, tmp_path: Path) -> None:
    _check(KINDS[kind]().eval(), tmp_path)


def test_parts_that_lie_in_several_pieces_are_put_where_they_belong(tmp_path: Path) -> None:
    _check(nn.Linear(5, 24), tmp_path, parts=INTERLEAVED)


def _check(model: nn.Module, directory: Path, **options: Any) -> None:
    start = {m.name: m.view(m.read()).double().clone() for m in find_matrices(model, **options)[0]}
    tracker = attach(model, None, directory / "run", tensorboard=False, strict=True, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    whole = updates(model, start, **options)
    assert len(whole) == len(start)
    for ranks in (0, 1, 2, 4, 10**6, {name: place % 3 for place, name in enumerate(whole)}):
        kept: list[dict[str, Tensor]] = []

        def look(kept: list[dict[str, Tensor]] = kept) -> float:
            for module in model.modules():  # as a forward pass would call them
                for hook in module._forward_pre_hooks.values():
                    hook(module, ())
            found = find_matrices(model, **options)[0]
            kept.append({m.name: m.view(getattr(m.module, m.attribute).detach()) - start[m.name] for m in found})
            return 0.0

        loss_at_ranks(model, tracker, look, ranks)
        for name, update in whole.items():
            rank = ranks if isinstance(ranks, int) else ranks[name]
            left, values, right = torch.linalg.svd(update, full_matrices=False)
            expected = (left[:, :rank] * values[:rank]) @ right[:rank]
            assert torch.allclose(kept[0][name], expected, atol=2e-6), (name, rank)
    assert all(torch.equal(updates(model, start, **options)[name], update) for name, update in whole.items())
    tracker.close()


def adapted(**options: Any) -> tuple[Any, Tensor]:
    from peft import LoraConfig, get_peft_model

    model = nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 7))
    return get_peft_model(model, LoraConfig(r=4, target_modules=["0", "2"], **options)), torch.randn(30, 9)


def moved(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_alpha": 3}, {"init_lora_weights": "pissa"}])
def test_an_adapter_at_rank_zero_is_its_start_and_at_its_own_rank_itself(options: Any, tmp_path: Path) -> None:
    model, inputs = adapted(**options)
    tracker = attach(model, None, tmp_path / "run", tensorboard=False, strict=True)
    first = model(inputs).detach()
    moved(model)
    last = model(inputs).detach()
    assert loss_at_ranks(model, tracker, lambda: (model(inputs) - first).abs().max(), 0) < 1e-4
    assert loss_at_ranks(model, tracker, lambda: (model(inputs) - last).abs().max(), 8) < 1e-4
    assert loss_at_ranks(model, tracker, lambda: (model(inputs) - last).abs().max(), 1) > 0.05
    tracker.close()


def test_a_merged_adapter_is_truncated_as_one_that_is_not(tmp_path: Path) -> None:
    model, inputs = adapted()
    tracker = attach(model, None, tmp_path / "run", tensorboard=False, strict=True)
    moved(model)
    apart = [loss_at_ranks(model, tracker, lambda: model(inputs).square().mean(), rank) for rank in range(5)]
    assert len({round(value, 4) for value in apart}) == 5
    model.merge_adapter()
    merged = [loss_at_ranks(model, tracker, lambda: model(inputs).square().mean(), rank) for rank in range(5)]
    assert merged == pytest.approx(apart, rel=1e-4)
    tracker.close()


def test_an_adapter_has_no_start_in_a_state_dict() -> None:
    model, inputs = adapted()
    state = {"0.weight": torch.zeros(12, 9), "2.weight": torch.zeros(7, 12)}
    with pytest.raises(ValueError, match="held by an adapter, whose start no state dict of weights tells"):
        ranks_by_loss(model, state, lambda: model(inputs).square().mean())


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_layer_that_holds_its_update_in_factors_is_truncated_in_them(gain: float) -> None:
    class Factored(nn.Module):
        """W0 + gain · U V."""

        def __init__(self) -> None:
            super().__init__()
            self.base = torch.randn(9, 7)
            self.U, self.V = nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.randn(5, 7))

        def update_factors(self) -> tuple[Tensor, Tensor]:
            return gain * self.U, self.V

        def used_factors(self) -> tuple[Tensor, Tensor]:
            return self.U, self.V

        @property
        def rank(self) -> int:
            return 5

    layer = Factored()
    product = (gain * layer.U @ layer.V).detach().double()
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    for rank in range(6):
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        off = loss_at_ranks(layer, {"x": product}, lambda e=expected: (gain * layer.U @ layer.V - e).abs().max(), rank)
        assert off < 1e-5
    found = ranks_by_loss(layer, {"x": product}, lambda: (gain * layer.U @ layer.V - product).abs().max(), 1e-4)
    assert list(found.ranks.values()) == [5]


def test_a_compiled_or_wrapped_model_is_looked_through() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    start = {f"module.{name}": torch.zeros_like(value) for name, value in model.state_dict().items()}
    wrapped = nn.DataParallel(model)
    assert loss_at_ranks(wrapped, start, lambda: model[0].weight.abs().max(), 0) == 0


def test_tied_weights_are_truncated_wherever_they_are_used() -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    model, inputs = nn.Sequential(first, second), torch.randn(3, 6)
    start = {"0.weight": torch.zeros(6, 6)}
    assert loss_at_ranks(model, start, lambda: model(inputs).abs().max(), 0) == 0
    with torch.no_grad():
        alone = first(inputs).abs().max()
    assert alone > 0
