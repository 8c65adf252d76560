"""Hidden units by demand: what is planned, what a narrower model computes, what its optimizer keeps."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import untouched
from helpers.dense import llama, photos, text_batches, text_step, trained_gpt2, vit
from torch import nn

from inrank import WidthPlan, factorize, narrow, plan_widths
from inrank_monitor import attach, open_run

pytestmark = pytest.mark.numeric


MODELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "GPT-2": (lambda: trained_gpt2(2)[0].float(), text_batches()),
    "Llama": (llama, text_batches()),
    "ViT": (vit, photos()),
}


def weights_of(model: nn.Module) -> int:
    """In feed-forward layers, biases not counted."""
    names = ("mlp", "intermediate", "output.dense")
    return sum(
        value.numel()
        for name, value in model.named_parameters()
        if value.ndim == 2 and any(each in name for each in names) and "attention" not in name
    )


@pytest.mark.parametrize("order", ["directions", "units"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_plan_keeps_its_budget_and_a_narrower_model_is_as_it_says(kind: str, order: Any) -> None:
    make, batches = MODELS[kind]
    model = make()
    dense = weights_of(model)
    before: dict[str, int] = {}
    for budget in (0.2, 0.45, 0.7):
        with untouched(model):
            plan = plan_widths(model, batches, budget, order=order, least_width=3)
        assert plan.share <= budget
        assert all(before.get(name, 3) <= width <= plan.full[name] for name, width in plan.widths.items())
        before = plan.widths
    assert len(plan.widths) == 2
    assert narrow(model, plan) is model
    assert weights_of(model) == pytest.approx(plan.share * dense)
    model(**batches[0]).loss.backward()
    fresh = narrow(make(), plan.widths)
    assert [value.shape for value in fresh.parameters()] == [value.shape for value in model.parameters()]
    fresh.load_state_dict(model.state_dict())
    assert plan_widths(model, batches, 1.0, order="units").full == plan.widths


def test_the_use_of_a_unit_is_what_its_removal_costs() -> None:
    """Where the loss is a square of the output, second order is all there is, and one unit's removal costs its use."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"fc1": nn.Linear(4, 9), "fc2": nn.Linear(9, 1, bias=False)}).double()
    inputs = torch.randn(50, 4).double()

    def outputs() -> torch.Tensor:
        return model["fc2"](torch.tanh(model["fc1"](inputs)))

    full = outputs().detach()
    options: Any = {"order": "units", "least_width": 1, "batch_loss": lambda *_: outputs().sum()}  # G is one number
    plan = plan_widths(model, [None], 0.6, **options)
    costs = []
    for unit in range(9):
        kept = model["fc2"].weight[:, unit].detach().clone()
        with torch.no_grad():
            model["fc2"].weight[:, unit] = 0
            costs.append((outputs() - full).square().sum().item())
            model["fc2"].weight[:, unit] = kept
    assert plan.units[""].tolist() == sorted(np.argsort(costs)[::-1][:5].tolist())


def test_units_that_do_nothing_are_pruned_first_and_the_model_computes_the_same() -> None:
    model, optimizer = trained_gpt2(3)
    model.eval()
    dead = [[*range(0, 64, 2)], [*range(60)]]
    with torch.no_grad():
        for block, units in zip(model.transformer.h, dead, strict=True):
            block.mlp.c_proj.weight[units] = 0
    before = model(**text_batches()[0]).logits
    plan = plan_widths(model, text_batches(), (32 + 4) / 128, order="units", least_width=1)
    assert list(plan.widths.values()) == [32, 4]
    assert plan.units["transformer.h.1.mlp"].tolist() == [60, 61, 62, 63]
    narrow(model, plan, optimizer)
    torch.testing.assert_close(model(**text_batches()[0]).logits, before)
    assert str(plan).splitlines()[-1] == "28.1% of the weights"


def test_a_pruned_models_optimizer_goes_on_with_the_state_of_its_units() -> None:
    model, optimizer = trained_gpt2(3)
    weight = model.transformer.h[0].mlp.c_fc.weight
    kept = {key: value.clone() for key, value in optimizer.state[weight].items()}
    plan = plan_widths(model, text_batches(), 0.4)
    narrow(model, plan, optimizer)
    units = plan.units["transformer.h.0.mlp"]
    assert model.transformer.h[0].mlp.c_fc.weight is weight
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[weight][key], kept[key][:, units])
    assert optimizer.state[weight]["step"] == kept["step"]
    losses = [text_step(model, optimizer, step % 3) for step in range(12)]
    assert losses[-1] < losses[0]
    factorize(model, optimizer, budget=0.5, calibration=text_batches())  # and in factors after that


def test_a_fresh_model_of_a_list_of_widths_keeps_its_initialisation() -> None:
    model, _ = trained_gpt2(0)
    first = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    narrow(model, [10, 64])
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, first[:, :10])
    assert model.transformer.h[0].mlp.c_fc.nf == 10
    assert model.config.inrank_widths == {"transformer.h.0.mlp": 10, "transformer.h.1.mlp": 64}


def test_a_plan_is_saved_and_read_again(tmp_path: Path) -> None:
    model, _ = trained_gpt2(2)
    plan = plan_widths(model, text_batches(), 0.4, order="units")
    plan.save(tmp_path / "plan.json")
    again = WidthPlan.load(tmp_path / "plan.json")
    assert (again.widths, again.full, again.share) == (plan.widths, plan.full, plan.share)
    assert {name: units.tolist() for name, units in again.units.items()} == {
        name: units.tolist() for name, units in plan.units.items()
    }
    removed = sum(plan.full.values()) - sum(plan.widths.values())
    assert again.parameters_saved == removed * 2 * 16  # in c_fc and c_proj of a model of width 16
    twin = narrow(copy.deepcopy(model), plan)
    for name, value in narrow(model, again).state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blocks: blocks.clear(), "widths and units do not fit"),
        (lambda blocks: blocks[0].update(width=3), "widths and units do not fit"),
        (lambda blocks: blocks[1].update(units="0-99"), "widths and units do not fit"),
        (lambda blocks: blocks[1].update(units="few"), "holds no plan that WidthPlan.save wrote"),
        (lambda blocks: blocks[1].pop("width"), r"holds no plan .*KeyError\('width'\)"),
    ],
)
def test_a_damaged_plan_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    plan_widths(trained_gpt2(1)[0], text_batches(), 0.4).save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    change(content["blocks"])
    (tmp_path / "plan.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        WidthPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("kind", MODELS)
def test_a_narrowed_model_is_read_again_and_in_factors_too(kind: str, tmp_path: Path) -> None:
    from inrank import from_pretrained

    make, batches = MODELS[kind]
    model = make().eval()
    narrow(model, plan_widths(model, batches, 0.4))
    for stage in ("narrow", "factors"):
        if stage == "factors":
            layers = [
                f"{name}.{each}" for name in list(model.config.inrank_widths)[:1] for each in _inside(model, name)
            ]
            factorize(model, targets=layers, ranks=2)
        expected = model(**batches[0]).logits
        model.save_pretrained(tmp_path / stage)
        again = from_pretrained(tmp_path / stage)
        torch.testing.assert_close(again(**batches[0]).logits, expected, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):  # never read as another model
            type(model).from_pretrained(tmp_path / stage)


def _inside(model: Any, block: str) -> list[str]:
    return [name for name, layer in model.get_submodule(block).named_modules() if hasattr(layer, "weight")]


def test_a_plan_is_kept_in_a_run_live_or_not(tmp_path: Path) -> None:
    model, optimizer = trained_gpt2(0)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, strict=True) as tracker:
        text_step(model, optimizer, 0)
        first = plan_widths(model, text_batches(), 0.3, run=tracker)
        text_step(model, optimizer, 1)
    second = plan_widths(model, text_batches(), 0.5, run=str(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    third = plan_widths(model, text_batches(), 0.6, run=run)
    assert run.refresh()
    kept = run.width_plans
    assert kept["step"].tolist() == [1, 1, 2, 2, 2, 2]
    expected = [width for plan in (first, second, third) for width in plan.widths.values()]
    assert kept["width"].tolist() == expected
    assert kept["block"].tolist()[:2] == list(first.widths)
    assert set(kept["full_width"]) == {64}
    assert set(kept["unit_parameters"]) == {32}
    assert run.status == "finished"
    for wrong, error in ((tmp_path, FileNotFoundError), (3, TypeError)):
        with untouched(model), pytest.raises(error, match="run"):
            plan_widths(model, text_batches(), 0.5, run=wrong)


REFUSED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda model: narrow(model, [3]), "plan has 1 widths, the model 2 feed-forward blocks"),
    (lambda model: narrow(model, [3, 65]), r"the width of 'transformer.h.1.mlp' must be in 1\.\.64, got 65"),
    (lambda model: narrow(model, {"h.0": 3}), "plan names 'h.0', which is no feed-forward block"),
    (lambda model: plan_widths(model, text_batches(), 0.5, order="name"), "order must be .*, got 'name'"),  # type: ignore[arg-type]
    (
        lambda model: plan_widths(model, text_batches(), 0.5, order="units", run="run"),
        "run keeps plans for a model that",
    ),
    (lambda model: plan_widths(model, text_batches(), 0.5, least_width=0), "least_width must be .*, got 0"),
    (lambda model: plan_widths(model, text_batches(), 0.1), r"budget 0\.1 holds 409 weights, and width 8 takes 512"),
    (lambda model: plan_widths(model, text_batches(), 2), r"budget must be a share in \(0, 1\]"),
    (lambda model: plan_widths(model, [], 0.5), "calibration holds no batch"),
    (lambda model: plan_widths(nn.Sequential(nn.GELU()), [], 0.5), "no feed-forward block known by the names"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_planned_is_refused(call: Callable[[Any], Any], message: str) -> None:
    model, _ = trained_gpt2(1)
    with untouched(model), pytest.raises(ValueError, match=message):
        call(model)
