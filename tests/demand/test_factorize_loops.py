"""Training goes on in factors: resumed, in mixed precision, accumulated, scheduled, compiled, watched."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.dense import text_batches, text_step, trained_gpt2
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from inrank import factorize
from inrank_monitor import attach, open_run

pytestmark = pytest.mark.numeric
MLP = [f"transformer.h.{block}.mlp.{name}" for block in range(2) for name in ("c_fc", "c_proj")]


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


@pytest.mark.parametrize("targets", ["*.mlp.*", "*.attn.*"])
def test_a_run_is_taken_up_by_a_model_that_is_factorized_already(targets: str, tmp_path: Any) -> None:
    """Its layers are watched as the weights that they were: ΔW = κ U V − W0, under the old names, parts and all."""
    spectra = []
    for kind in ("whole", "halves"):
        model, optimizer = trained_gpt2(0)
        options: dict[str, Any] = {"every": 1, "tensorboard": False, "strict": True}
        tracker = attach(model, optimizer, tmp_path / kind, **options)
        for step in range(4):
            if step == 2:
                factorize(model, optimizer, targets=targets, budget=0.4, calibration=text_batches(), tracker=tracker)
            text_step(model, optimizer, step)
        if kind == "halves":
            tracker.close("interrupted")
            tracker = attach(model, optimizer, tmp_path / kind, resume=4, **options)
        for step in range(4, 6):
            text_step(model, optimizer, step)
        tracker.close()
        run = open_run(tmp_path / kind)
        assert run.measurements["step"].max() == 6
        assert not run.problems
        spectra.append({name: run.singular_values(name).to_numpy() for name in run.matrices.index})
    assert spectra[0].keys() == spectra[1].keys()
    for name, values in spectra[0].items():
        np.testing.assert_array_equal(values, spectra[1][name], err_msg=name)
