"""The active mode in the loops that people have: mixed precision, accumulation, clipping, schedulers, averaging."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.active_training import Run, by_gradient, converted, gpt2, layers_of, loss_of, next_token_loss, tokens
from helpers.training import run_script
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import inrank

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = 24

OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.3}),
    "sgd with momentum and decay": (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "adam": (Adam, {"weight_decay": 1e-2}),
    "adamw": (AdamW, {}),
    "adamw, fused": (AdamW, {"fused": True}),
    "adamw, one by one": (AdamW, {"foreach": False, "amsgrad": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_common_optimizer_trains_the_grown_columns(name: str) -> None:
    optimizer, options = OPTIMIZERS[name]
    gain = 1.0 if optimizer is SGD else "match"  # which is there for Adam
    run = Run(optimizer, model=converted(gain=gain), **options)
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        run.step()
        run.optimizer.zero_grad()
    run.check()


def test_bf16_autocast() -> None:
    run = Run()
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = run.loss(step)
        loss.backward()
        run.optimizer.step()
        run.step()
        run.optimizer.zero_grad()
    run.check()


@pytest.mark.parametrize(("optimizer", "options"), [(SGD, {"lr": 0.1, "momentum": 0.9}), (AdamW, {})])
def test_a_model_in_bf16_throughout(optimizer: Any, options: dict[str, Any]) -> None:
    run = Run(optimizer, model=converted().bfloat16(), **options)
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        run.step()
        run.optimizer.zero_grad()
    run.check()


@pytest.mark.parametrize(
    ("fused", "clipped", "rule"),
    [(False, False, None), (False, True, by_gradient), (True, False, by_gradient), (True, True, None)],
)
def test_fp16_autocast_with_a_grad_scaler_that_skips_steps(fused: bool, clipped: bool, rule: Any) -> None:
    run = Run(rule=rule, threshold=0.9999, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=8)  # overflows at first
    scales, skipped = [], 0
    for step in range(STEPS + 12):
        with torch.autocast("cpu", torch.float16):
            loss = run.loss(step)
        scaler.scale(loss).backward()
        if clipped:  # else a fused optimizer gets scaled gradients and the scale
            scaler.unscale_(run.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0 if clipped else 1e9)
        before = [parameter.detach().clone() for parameter in run.model.parameters()]
        scaler.step(run.optimizer)
        if not torch.isfinite(norm):
            skipped += 1
            assert all(map(torch.equal, before, run.model.parameters()))
        scaler.update()
        scales.append(scaler.get_scale())
        run.step()
        run.optimizer.zero_grad()
    assert skipped >= 1
    assert max(scales) > min(scales)
    run.check(growths=2)


def test_steps_that_a_scaler_skips_inside_a_fused_optimizer_are_not_counted() -> None:
    run = Run(fused=True)
    run.controller.attach()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(6):
        scaler.scale(run.loss(step)).backward()
        if step < 3:
            run.model.lm_head.weight.grad[0, 0] = float("inf")
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
    assert run.controller.step_count == 3


@pytest.mark.parametrize("attached", [False, True])
def test_gradient_accumulation_is_the_same_training_as_the_whole_batch(attached: bool) -> None:
    whole, parts = Run(), Run()
    if attached:
        parts.controller.attach()
    for step in range(STEPS):
        whole.loss(step).backward()
        batch = tokens(step)
        for half in batch.chunk(2):
            (next_token_loss(parts.model, half) / 2).backward()
        for run in (whole, parts):
            run.optimizer.step()
            if run is whole or not attached:
                run.step()
            run.optimizer.zero_grad()
    assert parts.controller.step_count == STEPS  # optimizer steps, not backward passes
    assert parts.controller.ranks == whole.controller.ranks
    for one, two in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-3)  # Adam turns rounding of tiny gradients into steps
    whole.check()


def test_clipping_sees_only_what_is_trained() -> None:
    run = Run(rule=by_gradient)  # asks for the gradient of W0, which a clipping must not count
    for step in range(STEPS):
        run.loss(step).backward()
        held = [p.grad for group in run.optimizer.param_groups for p in group["params"] if p.grad is not None]
        trained = [p.grad for name, p in run.model.named_parameters() if "initial_weight" not in name]
        expected = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in trained]))
        assert len(held) == len(trained)
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
        torch.testing.assert_close(norm, expected)
        run.optimizer.step()
        run.step()
        run.optimizer.zero_grad()
    run.check()


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: min((step + 1) / 4, 1.0)),
        lambda optimizer: OneCycleLR(optimizer, max_lr=1e-2, total_steps=STEPS),  # moves Adam's betas too
    ],
    ids=["LambdaLR", "OneCycleLR"],
)
def test_schedulers_go_on_through_growth_and_factorization(scheduler: Callable[[Optimizer], Any]) -> None:
    run = Run()
    plan = scheduler(run.optimizer)
    plain = AdamW([nn.Parameter(torch.zeros(1))], lr=5e-3)  # the same schedule where nothing ever changes
    expected = scheduler(plain)
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        plain.step()
        plan.step()
        expected.step()
        run.step()
        run.optimizer.zero_grad()
        assert plan.get_last_lr()[0] == expected.get_last_lr()[0]
        assert run.optimizer.param_groups[0]["betas"] == plain.param_groups[0]["betas"]
        if step == STEPS - 3:
            run.check()
            inrank.factorize(run.model, run.optimizer)
            factors = {name: value.detach().clone() for name, value in run.model.named_parameters() if ".U" in name}
    assert len(factors) == 4
    for name, value in run.model.named_parameters():
        assert name not in factors or not torch.equal(value, factors[name])  # they went on learning


def test_averaged_weights_see_the_columns_that_grew_after_the_copy() -> None:
    run = Run()
    average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    mine = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        first = int(average.n_averaged) == 0
        average.update_parameters(run.model)
        for name, value in run.model.named_parameters():
            mine[name] = value.detach().clone() if first else 0.8 * mine[name] + 0.2 * value.detach()
        run.step()
        run.optimizer.zero_grad()
    run.check()
    dense = gpt2()  # an ordinary model with the averages put together by hand
    weights = {name: value for name, value in mine.items() if not name.endswith((".initial_weight", ".U", ".V"))}
    for name, layer in layers_of(run.model).items():
        W0, U, V = (mine[f"{name}.{part}"] for part in ("initial_weight", "U", "V"))
        weights[f"{name}.weight"] = (W0 + layer.gain * U @ V).mT
    dense.load_state_dict(weights, strict=False)
    for mode in (True, False):
        expected = dense.train(mode)(input_ids=tokens(99)).logits
        found = average.train(mode)(input_ids=tokens(99)).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_training(reentrant: bool) -> None:
    # in float64, so that a sum taken in another order (buffers lie elsewhere when they are computed again) stays small
    plain, checkpointed = (Run(model=converted(dropout=0.1).double()) for _ in range(2))
    newer = "activation_checkpointing_enable"  # the other name is deprecated
    enable = getattr(
        checkpointed.model, newer if hasattr(checkpointed.model, newer) else "gradient_checkpointing_enable"
    )
    enable({"use_reentrant": reentrant})
    for run in (plain, checkpointed):
        torch.manual_seed(1)
        for step in range(STEPS):
            run.loss(step).backward()
            run.optimizer.step()
            run.step()
            run.optimizer.zero_grad()
        run.check()
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-12)
    assert checkpointed.controller.ranks == plain.controller.ranks
    for one, two in zip(checkpointed.model.parameters(), plain.model.parameters(), strict=True):
        # Adam divides by the root of squared gradients: where those are tiny, rounding is enlarged
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_old_graphs_may_stay_alive_across_a_growth(set_to_none: bool) -> None:
    run = Run(every=2)
    kept = []
    for step in range(STEPS):
        run.optimizer.zero_grad(set_to_none=set_to_none)
        loss = run.loss(step)
        loss.backward(retain_graph=True)
        kept.append(loss)  # holds the graph of shapes and AccumulateGrad nodes before the growth
        run.optimizer.step()
        run.step()
    assert all(loss.grad_fn is not None for loss in kept)
    run.check(growths=10)


def test_growth_between_evaluations_and_under_inference_mode() -> None:
    run = Run()
    for step in range(STEPS):
        run.loss(step).backward()
        run.optimizer.step()
        with torch.inference_mode():  # a careless evaluation around the check
            loss_of(run.model, 500)
            run.step()
        run.optimizer.zero_grad()
    run.check()


RESUMABLE = """
import os, signal, zlib
from pathlib import Path
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from helpers.active_training import converted, loss_of
import inrank
torch.set_num_threads(1)
directory, kill_at = Path(sys.argv[1]), int(sys.argv[3])
@inrank.needs_gradient
def by_its_bits(seen):  # so that any bit of the average that is lost shows in a rank
    return seen.rank + zlib.crc32(seen.gradient.tobytes()) % 4
rule = {"paper": None, "gradient": by_its_bits}[sys.argv[2]]
checkpoint, first = directory / "checkpoint.pt", 0
torch.manual_seed(3)
model = converted(dropout=0.1)
optimizer = AdamW(model.parameters(), lr=5e-3)
plan = OneCycleLR(optimizer, 1e-2, total_steps=40)
controller = inrank.RankController(model, optimizer, rule=rule, threshold=0.999, every=5, gradient_steps=4)
parts = {"model": model, "optimizer": optimizer, "plan": plan, "controller": controller}
def save(path, step):
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | {"random": torch.get_rng_state(), "step": step}, path)
if checkpoint.exists():
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    first = state["step"]
for step in range(first, 23):
    loss_of(model, step).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    controller.step()
    plan.step()
    optimizer.zero_grad()
    if step + 1 == 13:  # between the checks at 10 and 15; the gradient has been taken for two steps, columns are young
        save(checkpoint, step + 1)
    if step + 1 == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
print("began at", first)
save(directory / "end.pt", 23)
"""


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested state by its path; tensors as bytes, so that -0.0 is not 0.0."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, torch.Tensor):
        raw = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {path: (str(value.dtype), tuple(value.shape), raw)}
    else:
        return {path: value}
    return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{path}/{key}").items()}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["paper", "gradient"])
def test_a_training_that_was_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path, rule: str) -> None:
    ends = {}
    for name, kills in (("whole", ["0"]), ("killed", ["17", "0"])):
        (tmp_path / name).mkdir()
        for kill in kills:
            answer = run_script(RESUMABLE, tmp_path / name, rule, kill)
            assert answer.returncode == (-signal.SIGKILL if kill != "0" else 0), answer.stderr[-2000:]
        assert answer.stdout == f"began at {13 if name == 'killed' else 0}\n"
        ends[name] = torch.load(tmp_path / name / "end.pt", weights_only=True)
    steps = {growth["step"] for growth in ends["whole"]["controller"]["history"]}
    assert len(steps & {5, 10}) >= 1  # it grew before the checkpoint,
    assert len(steps & {15, 20}) >= 1  # and after it
    whole, killed = flat(ends["whole"]), flat(ends["killed"])
    assert whole.keys() == killed.keys()
    assert not [path for path in whole if whole[path] != killed[path]]
