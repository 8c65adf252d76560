"""A dense model in training goes on in factors: what it computes, what its optimizer knows, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import untouched
from helpers.dense import (
    image_batches,
    image_loss,
    llama,
    photos,
    text_batches,
    trained_gpt2,
    trained_small,
    vit,
)
from torch import nn
from torch.optim import AdamW

from inrank import LowRankLinear, convert, factorize, merge
from inrank.demand import dense

pytestmark = pytest.mark.numeric
MLP = [f"transformer.h.{block}.mlp.{name}" for block in range(2) for name in ("c_fc", "c_proj")]


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "GPT-2": (lambda: trained_gpt2(1)[0].eval(), lambda model: model(**text_batches()[0]).logits),
    "Llama": (lambda: llama().double().eval(), lambda model: model(**text_batches()[0]).logits),
    "ViT": (lambda: vit().double().eval(), lambda model: model(photos()[0]["pixel_values"].double()).logits),
    "convolution": (lambda: trained_small()[0].eval(), lambda model: model(image_batches()[0][0])),
}


@pytest.mark.parametrize("kind", MODELS)
def test_at_full_rank_the_output_is_what_it_was(kind: str) -> None:
    make, output = MODELS[kind]
    model = make()
    before, modules = output(model).detach(), list(model.modules())
    targets = ["conv", "up", "head"] if kind == "convolution" else "*.mlp.*"
    shapes = {
        entry.name: min(entry.shape) for entry in factorize(copy.deepcopy(model), targets=targets, ranks=1).layers
    }
    report = factorize(model, ranks=shapes)
    assert report.ranks == shapes
    assert (output(model) - before).norm() < 1e-10 * before.norm()
    assert all(one is two for one, two in zip(model.modules(), modules, strict=True))
    assert [entry.energy_kept for entry in report.layers] == pytest.approx([1.0] * len(shapes))
    merge(model)  # an ordinary model again
    assert not any(isinstance(module, LowRankLinear) for module in model.modules())
    assert (output(model) - before).norm() < 1e-10 * before.norm()


def test_a_budget_is_kept_and_the_report_says_what_it_cost() -> None:
    for allocation in ("demand", "energy", "uniform", "loss", dict.fromkeys(MLP, 2.5)):
        model, optimizer = trained_gpt2(20)
        model.eval()
        dense = sum(model.get_submodule(name).weight.numel() for name in MLP)
        loss = np.mean([model(**batch).loss.item() for batch in text_batches()])
        report = factorize(model, optimizer, budget=0.5, allocation=allocation, calibration=text_batches())
        now = sum(model.get_submodule(name).U.numel() + model.get_submodule(name).V.numel() for name in MLP)
        assert report.share == now / dense <= 0.5
        assert [entry.name for entry in report.layers] == MLP
        after = np.mean([model(**batch).loss.item() for batch in text_batches()])
        assert report.loss_before == pytest.approx(loss)
        assert report.loss_after == pytest.approx(after)
        assert report.loss_jump == pytest.approx(after - loss)


def test_the_better_truncation_is_taken_by_the_loss_of_calibration() -> None:
    model, _ = trained_gpt2(20)
    jumps = {}
    for truncation in ("plain", "weighted", "best"):
        report = factorize(copy.deepcopy(model), ranks=4, truncation=truncation, calibration=text_batches())
        assert truncation in (report.truncation, "best")
        jumps[truncation] = report.loss_jump
    assert jumps["best"] == pytest.approx(min(jumps["plain"], jumps["weighted"]), abs=1e-12)
    assert jumps["plain"] != jumps["weighted"]
    assert factorize(copy.deepcopy(model), ranks=4, targets="*.mlp.*").truncation == "plain"


def test_no_svd_of_a_weight_is_taken_where_none_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    usual = dense.plain
    monkeypatch.setattr(dense, "plain", lambda weight: taken.append(1) or usual(weight))  # type: ignore[func-returns-value]
    for allocation, truncation, count in (
        ("demand", "weighted", 0),
        ("uniform", "weighted", 0),
        ("energy", "weighted", 4),
        ("demand", "plain", 4),
        ("demand", "best", 4),
    ):
        taken.clear()
        options: dict[str, Any] = {"allocation": allocation, "truncation": truncation}
        factorize(trained_gpt2(1)[0], budget=0.5, calibration=text_batches(1), **options)
        assert len(taken) == count, (allocation, truncation)


def test_a_loss_of_no_argument_calibrates_too() -> None:
    model, optimizer = trained_small()
    kept = copy.deepcopy(model)
    batch = image_batches(1)[0]
    report = factorize(model, optimizer, targets="*up", budget=0.6, loss=lambda: image_loss(model, batch))
    twin = factorize(kept, targets="*up", budget=0.6, calibration=[batch], batch_loss=image_loss)
    assert report.ranks == twin.ranks
    assert (report.loss_before, report.loss_after) == (twin.loss_before, twin.loss_after)


class _Parallel(nn.parallel.DistributedDataParallel):
    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "call inrank.convert first, or give a budget or ranks for a dense model"),
    ({"budget": 0.5}, "calibration: demand needs batches"),
    ({"budget": 0.5, "allocation": "loss"}, "calibration: loss needs batches"),
    ({"ranks": 2, "truncation": "weighted"}, "calibration: a weighted truncation needs batches"),
    ({"budget": 0.5, "ranks": 2}, "give either ranks or a budget"),
    ({"targets": "*.mlp.*"}, "give either ranks or a budget"),
    ({"budget": 1.5, "allocation": "energy"}, r"budget must be .*, got 1\.5"),
    ({"budget": 0.5, "allocation": "wish"}, "allocation must be one of .*, got 'wish'"),
    ({"budget": 0.5, "allocation": {MLP[0]: 1}}, f"allocation does not name '{MLP[1]}'"),
    ({"budget": 0.5, "allocation": dict.fromkeys(MLP, -1)}, "allocation must hold sizes of at least 0, got -1"),
    ({"ranks": 2, "truncation": "half"}, "truncation must be one of .*, got 'half'"),
    ({"ranks": 17}, r"rank must be in 1\.\.16 for .* \(64×16\), got 17"),
    ({"ranks": {MLP[0]: 2}, "targets": "*.mlp.*"}, f"ranks does not name '{MLP[1]}'"),
    ({"ranks": 2, "targets": "*.nowhere"}, "targets pattern .* matches no"),
    ({"ranks": 2, "targets": "lm_head"}, "is tied to"),
    ({"ranks": 2, "gain": 0}, "gain must be"),
    ({"ranks": 2, "factor_lr": 0}, "factor_lr must be a positive number, got 0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_is_refused_changes_nothing(options: dict[str, Any], message: str) -> None:
    model, optimizer = trained_gpt2(1)
    with untouched(model, optimizer), pytest.raises(ValueError, match=message):
        factorize(model, optimizer, **options)


def test_models_that_cannot_be_factorized_say_why() -> None:
    model, optimizer = trained_small()
    with untouched(model, optimizer), pytest.raises(ValueError, match=r"matches no .* It matches rnn \(LSTM\)"):
        factorize(model, optimizer, targets="rnn", ranks=2)
    other = AdamW([model.conv.weight])
    with untouched(model, other), pytest.raises(ValueError, match=r"optimizer does not hold 'up.weight'"):
        factorize(model, other, targets="*up", ranks=2)
    with untouched(model, optimizer), pytest.raises(ValueError, match=r"factorize model\.module and wrap it anew"):
        factorize(_Parallel(model), optimizer, targets="*up", ranks=2)
    factorize(model, optimizer, targets="up", ranks=2)
    with untouched(model, optimizer), pytest.raises(ValueError, match="'up', which is converted already"):
        factorize(model, optimizer, targets="up", ranks=1)
    with torch.no_grad():
        model.head.weight[0, 0] = float("inf")
    with untouched(model, optimizer), pytest.raises(ValueError, match="the weight of 'head' holds NaN or infinity"):
        factorize(model, optimizer, targets="head", ranks=1)


def test_a_failing_loss_leaves_the_weights_to_the_bit() -> None:
    model, optimizer = trained_gpt2(2)
    calls = []

    def fails_late(one: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > 9:  # 4 before, 4 with gradients, then with the truncated weights
            raise RuntimeError("out of memory")
        return one(**batch).loss

    with untouched(model, optimizer), pytest.raises(RuntimeError, match="out of memory"):
        factorize(model, optimizer, budget=0.5, calibration=text_batches(), batch_loss=fails_late)


def test_the_rest_of_a_model_that_was_converted_is_factorized_beside_it() -> None:
    model, _ = trained_gpt2(1)
    convert(model, "*.h.0.mlp.*", buffer_rank=4)
    report = factorize(model, targets="*.h.1.mlp.*", budget=0.5, calibration=text_batches())
    assert list(report.ranks) == MLP[2:]
    assert list(factorize(model).ranks) == MLP[:2]  # Algorithm 3


def test_a_factorized_model_is_saved_read_and_pickled(tmp_path: Any) -> None:
    from inrank import from_pretrained

    model, _ = trained_gpt2(2)
    factorize(model.eval(), budget=0.5, calibration=text_batches())
    expected = model(**text_batches()[0]).logits
    model.save_pretrained(tmp_path / "saved")
    torch.save(model, tmp_path / "whole.pt")
    for again in (from_pretrained(tmp_path / "saved"), torch.load(tmp_path / "whole.pt", weights_only=False)):
        torch.testing.assert_close(again(**text_batches()[0]).logits, expected, rtol=0, atol=0)
