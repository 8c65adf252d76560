"""A dense model in training goes on in factors: what it computes, what its optimizer knows, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active import untouched
from helpers.dense import Small, image_batches, image_loss, llama, text_batches, text_step, trained_gpt2
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, SequentialLR

from inrank import LowRankLinear, convert, factorize, merge
from inrank_monitor import attach, open_run

pytestmark = pytest.mark.numeric
MLP = [f"transformer.h.{block}.mlp.{name}" for block in range(2) for name in ("c_fc", "c_proj")]


def small() -> tuple[Small, AdamW]:
    model = Small().double()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    for batch in image_batches():
        optimizer.zero_grad()
        image_loss(model, batch).backward()
        optimizer.step()
    return model, optimizer


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "GPT-2": (lambda: trained_gpt2(1)[0].eval(), lambda model: model(**text_batches()[0]).logits),
    "Llama": (lambda: llama().double().eval(), lambda model: model(**text_batches()[0]).logits),
    "convolution": (lambda: small()[0].eval(), lambda model: model(image_batches()[0][0])),
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


def test_a_loss_of_no_argument_calibrates_too() -> None:
    model, optimizer = small()
    kept = copy.deepcopy(model)
    batch = image_batches(1)[0]
    report = factorize(model, optimizer, targets="*up", budget=0.6, loss=lambda: image_loss(model, batch))
    twin = factorize(kept, targets="*up", budget=0.6, calibration=[batch], batch_loss=image_loss)
    assert report.ranks == twin.ranks
    assert (report.loss_before, report.loss_after) == (twin.loss_before, twin.loss_after)


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda parameters: AdamW(parameters, lr=0.0, amsgrad=True),
    "NAdam": lambda parameters: torch.optim.NAdam(parameters, lr=0.0),
    "SGD": lambda parameters: SGD(parameters, lr=0.0, momentum=0.9, dampening=0.1),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.0, centered=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.0),
}
LINEAR = {"exp_avg", "momentum_buffer", "grad_avg"}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("layer", ["Linear", "Conv1D", "Conv2d"])
def test_averages_of_gradients_go_over_exactly(kind: str, layer: str) -> None:
    """A twin whose factors have stood where they are from the start, and have seen the same losses, knows the same."""
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    make = {"Linear": lambda: nn.Linear(7, 5), "Conv1D": lambda: Conv1D(5, 7), "Conv2d": lambda: nn.Conv2d(7, 5, 1)}
    model = nn.Sequential(make[layer]()).double()
    directions = torch.randn(6, *model[0].weight.shape).double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for direction in directions:
        optimizer.zero_grad()
        (model[0].weight * direction).sum().backward()
        optimizer.step()
    squares = {
        key: value.mT if layer == "Conv1D" else value.flatten(1)
        for key, value in optimizer.state[model[0].weight].items()
        if key not in LINEAR and isinstance(value, torch.Tensor) and value.ndim > 1
    }
    report = factorize(model, optimizer, targets="0", ranks=3)
    assert report.reset == ()
    U, V, gain = model[0].U, model[0].V, model[0].gain
    twin = OPTIMIZERS[kind]([U, V])
    twin.load_state_dict({"state": {}, "param_groups": twin.state_dict()["param_groups"]})
    for direction in directions:
        twin.zero_grad()
        (model[0].stored_weight * direction).sum().backward()
        twin.step()
    for factor in (U, V):
        carried, expected = optimizer.state[factor], twin.state[factor]
        assert set(carried) == set(expected)
        for key in LINEAR & set(carried):
            torch.testing.assert_close(carried[key], expected[key], rtol=1e-12, atol=1e-14)
        if "step" in carried:
            assert carried["step"] == expected["step"] == 6
    u, v = U.detach().numpy(), V.detach().numpy()
    for key, value in squares.items():
        left = gain**2 * np.einsum("ij,kj->ik", value.numpy(), v**2)
        right = gain**2 * np.einsum("ik,ij->kj", u**2, value.numpy())
        np.testing.assert_allclose(optimizer.state[U][key].numpy(), left, rtol=1e-12)
        np.testing.assert_allclose(optimizer.state[V][key].numpy(), right, rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adamax,  # a maximum is no average
        lambda parameters: torch.optim.RMSprop(parameters, momentum=0.5),  # whose momentum is of steps
        torch.optim.ASGD,
    ],
)
def test_an_unknown_state_begins_anew_and_that_is_said(make: Any, tmp_path: Any) -> None:
    model, _ = trained_gpt2(1)
    optimizer = make(model.parameters())
    text_step(model, optimizer, 0)
    with attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False) as tracker:
        report = factorize(model, optimizer, ranks=3, tracker=tracker)
        assert list(report.reset) == MLP
        assert "optimizer state begun anew: transformer.h.0.mlp.c_fc" in str(report)
        factors = {id(model.get_submodule(name).U) for name in MLP}
        assert not factors & {id(parameter) for parameter in optimizer.state}
        text_step(model, optimizer, 1)
    events = open_run(tmp_path / "run").events
    assert "begun anew" in events[events["kind"] == "factorized"]["message"].item()


def test_a_gradient_that_is_being_accumulated_goes_over() -> None:
    model, optimizer = small()
    optimizer.zero_grad()
    image_loss(model.eval(), image_batches()[0]).backward()
    gradient = model.head.weight.grad.clone()
    factorize(model, optimizer, targets="head", ranks=10)  # full rank: the gradients of factors are those of the weight
    accumulated = model.head.U.grad.clone(), model.head.V.grad.clone()
    torch.testing.assert_close(accumulated[0], model.head.gain * gradient @ model.head.V.mT)
    optimizer.zero_grad()
    image_loss(model, image_batches()[0]).backward()
    torch.testing.assert_close(accumulated, (model.head.U.grad, model.head.V.grad))


def test_groups_and_their_options_stay() -> None:
    model, optimizer = trained_gpt2(2)
    weights = [model.get_submodule(name).weight for name in MLP]
    rest = [value for value in model.parameters() if all(value is not weight for weight in weights)]
    groups = [{"params": [weights[0], *rest[:3], weights[3]], "lr": 0.01}, {"params": [*rest[3:], *weights[1:3]]}]
    optimizer = AdamW(groups, lr=0.02)
    factorize(model, optimizer, ranks=2)
    names = {id(value): name for name, value in model.named_parameters()}
    first, second = ([names[id(value)] for value in group["params"]] for group in optimizer.param_groups)
    assert first == [f"{MLP[0]}.U", f"{MLP[0]}.V", *first[2:5], f"{MLP[3]}.U", f"{MLP[3]}.V"]
    assert second[-4:] == [f"{name}.{factor}" for name in MLP[1:3] for factor in "UV"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    assert sorted(first + second) == sorted(name for name, _ in model.named_parameters())


def test_a_learning_rate_of_their_own_follows_the_scheduler() -> None:
    def schedulers(optimizer: Optimizer) -> Any:
        return SequentialLR(
            optimizer,
            [LambdaLR(optimizer, lambda step: 0.5**step), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)],
            milestones=[4],
        )

    for make in (schedulers, lambda one: OneCycleLR(one, 0.01, 10), lambda one: LambdaLR(one, lambda t: 0.9**t)):
        model, optimizer = trained_gpt2(1)
        scheduler: Any = make(optimizer)
        for step in range(9):
            text_step(model, optimizer, step)
            scheduler.step()
            if step == 2:
                with (
                    untouched(model, optimizer),
                    pytest.raises(ValueError, match=r"new parameter groups.*give scheduler"),
                ):
                    factorize(model, optimizer, ranks=2, factor_lr=3.0)
                factorize(model, optimizer, ranks=2, factor_lr=3.0, scheduler=scheduler)
        old, new = optimizer.param_groups
        assert new["lr"] == pytest.approx(3 * old["lr"])
        assert [id(value) for value in new["params"]] == [
            id(value) for name in MLP for value in (model.get_submodule(name).U, model.get_submodule(name).V)
        ]
        assert new["betas"] == old["betas"]
        assert len(scheduler.get_last_lr()) == 2


@pytest.mark.parametrize("factor_lr", [1.0, 2.0])
def test_a_resumed_training_goes_on_bit_for_bit(factor_lr: float) -> None:
    model, optimizer = trained_gpt2(6)
    report = factorize(model, optimizer, budget=0.4, calibration=text_batches(), factor_lr=factor_lr)
    for step in range(3):
        text_step(model, optimizer, step)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), report.ranks))
    losses = [text_step(model, optimizer, step) for step in range(5)]
    fresh, again = trained_gpt2(0)
    factorize(fresh, again, ranks=saved[2], factor_lr=factor_lr)
    fresh.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert [text_step(fresh, again, step) for step in range(5)] == losses
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_goes_on_with_amp_accumulation_and_clipping(precision: str) -> None:
    """And ends better than it stood, with the scaler's scale and the schedule where they would have been."""
    model, _ = trained_gpt2(0)
    model = model.float()
    optimizer = AdamW(model.parameters(), lr=5e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "float16")
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + 0.01 * step))
    losses = []
    for step in range(24):
        for micro in range(2):
            with torch.autocast("cpu", getattr(torch, precision)):
                loss = model(**text_batches(3)[(step + micro) % 3]).loss
            scaler.scale(loss / 2).backward()
            if step == 8 and micro == 0:  # in the midst of an accumulation
                factorize(model, optimizer, budget=0.5, calibration=text_batches(3))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < np.mean(losses[6:9]) - 0.2
    assert scheduler.get_last_lr() == [pytest.approx(5e-3 / 1.24)]
    assert optimizer.state[model.get_submodule(MLP[0]).U]["step"] == 24


def test_the_tracker_goes_on_and_measures_the_update_of_what_became_factors(tmp_path: Any) -> None:
    model, optimizer = trained_gpt2(0)
    start = {name: model.get_submodule(name).weight.detach().clone() for name in MLP}
    tracker = attach(model, optimizer, tmp_path / "run", every=1, tensorboard=False, strict=True)
    expected = []
    for step in range(6):
        text_step(model, optimizer, step)
        layers = [model.get_submodule(name) for name in MLP]
        weights = [getattr(layer, "stored_weight", layer.weight) for layer in layers]
        updates = [weight.detach() - start[name] for weight, name in zip(weights, MLP, strict=True)]
        expected.append([torch.linalg.svdvals(update).numpy() for update in updates])
        if step == 2:
            report = factorize(model, optimizer, budget=0.5, calibration=text_batches(), tracker=tracker)
    tracker.close()
    run = open_run(tmp_path / "run")
    assert run.events["kind"].tolist().count("factorized") == 1
    assert set(run.events["kind"]) <= {"factorized", "attached", "closed"}
    message = run.events[run.events["kind"] == "factorized"]["message"].item()
    assert f"({report.loss_jump:+.4f})" in message
    assert all(name in message for name in MLP)
    for place, name in enumerate(MLP):
        spectra = run.singular_values(f"{name}.weight")
        assert spectra.index.tolist() == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(spectra.to_numpy(), [each[place] for each in expected], rtol=1e-5, atol=1e-6)


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
    model, optimizer = small()
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer hides its own warning, but not from "error"
def test_a_compiled_model_is_calibrated_and_goes_on_compiled() -> None:
    losses = []
    for compiled in (False, True):
        torch._dynamo.reset()
        model, _ = trained_gpt2(0)
        optimizer = AdamW(model.parameters(), lr=5e-3)
        called = torch.compile(model, backend="eager") if compiled else model
        own = [text_step(called, optimizer, step) for step in range(3)]
        factorize(called, optimizer, budget=0.5, calibration=text_batches())
        losses.append(own + [text_step(called, optimizer, step) for step in range(3)])
    torch._dynamo.reset()
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_a_factorized_model_is_saved_read_and_pickled(tmp_path: Any) -> None:
    from inrank import from_pretrained

    model, _ = trained_gpt2(2)
    factorize(model.eval(), budget=0.5, calibration=text_batches())
    expected = model(**text_batches()[0]).logits
    model.save_pretrained(tmp_path / "saved")
    torch.save(model, tmp_path / "whole.pt")
    for again in (from_pretrained(tmp_path / "saved"), torch.load(tmp_path / "whole.pt", weights_only=False)):
        torch.testing.assert_close(again(**text_batches()[0]).logits, expected, rtol=0, atol=0)


def test_a_run_is_taken_up_across_the_factorization(tmp_path: Any) -> None:
    """Attached to the dense model as at the start, factorized to the same ranks, loaded: one run without a break."""

    def train(model: Any, optimizer: Optimizer, tracker: Any, first: int, last: int) -> dict[str, int]:
        for step in range(first, last):
            if step == 2:
                factorize(model, optimizer, budget=0.5, calibration=text_batches(), tracker=tracker)
            text_step(model, optimizer, step)
        return {name: model.get_submodule(name).rank for name in MLP}

    spectra = []
    for kind in ("whole", "halves"):
        model, optimizer = trained_gpt2(0)
        options: dict[str, Any] = {"every": 1, "tensorboard": False, "strict": True}
        with attach(model, optimizer, tmp_path / kind, **options) as tracker:
            ranks = train(model, optimizer, tracker, 0, 6 if kind == "whole" else 4)
        if kind == "halves":
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model, optimizer = trained_gpt2(0)
            with attach(model, optimizer, tmp_path / kind, resume=4, **options) as tracker:
                factorize(model, optimizer, ranks=ranks)
                model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
                train(model, optimizer, tracker, 4, 6)
        run = open_run(tmp_path / kind)
        spectra.append([run.singular_values(f"{name}.weight").to_numpy() for name in MLP])
        assert len(spectra[-1][0]) == 6
    np.testing.assert_array_equal(spectra[0], spectra[1])
