"""Bits, streams, graphs, precision: what must be equal, not fast."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import inrank
from device_checks.common import Check, Found, Setting, folder
from inrank_monitor import attach, open_run
from inrank_monitor.spectra import leading_singular_values


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _trained(setting: Setting, watched: bool, options: dict[str, Any]) -> list[torch.Tensor]:
    model = setting.gpt2("few")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    tracker = attach(model, optimizer, folder(), every=5) if watched else None
    torch.manual_seed(1)
    for _ in range(setting.choose(30, 10)):
        tokens = setting.tokens(4, 64)
        setting.step(model, optimizer, tokens, lambda loss: tracker and tracker.log(loss=loss))
    if tracker:
        tracker.close()
    states = [torch.as_tensor(state[key]) for state in optimizer.state.values() for key in sorted(state)]
    random = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if setting.is_cuda else [])]
    return [value.detach().cpu() for value in (*model.parameters(), *states, *random)]


def bits(setting: Setting) -> Found:
    """Weights, optimizer state and random states with and without the tracker, fused and foreach."""
    found = {}
    with _deterministic():
        for name in ("fused", "foreach"):
            ends = [_trained(setting, watched, {name: True}) for watched in (False, True)]
            found[name] = all(torch.equal(*pair) for pair in zip(*ends, strict=True))
    return Found(all(found.values()), "equal to the bit", found)


def no_synchronisation(setting: Setting) -> Found:
    """Ordinary steps of tracker, logging and a controller whose columns are young."""
    model = setting.gpt2("few")
    inrank.convert(model, buffer_rank=16)
    optimizer = setting.adamw(model, 1e-3)
    tracker = attach(model, optimizer, folder(), every=10_000)
    controller = inrank.RankController(model, optimizer, threshold=0.999999, every=lambda step: step == 2)
    tokens, error = setting.tokens(4, 64), ""
    for _ in range(3):
        setting.step(model, optimizer, tokens, lambda loss: controller.step())
    tracker.flush()
    setting.wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            setting.step(model, optimizer, tokens, lambda loss: (tracker.log(loss=loss), controller.step()))
    except RuntimeError:
        error = traceback.format_exc()[-600:]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tracker.close()
    return Found(not error and bool(controller.history), "none", {"error": error, "grown": len(controller.history)})


def side_stream(setting: Setting) -> Found:
    """A loop on a stream of its own, whose updates come a tenth of a second after the host has queued them."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(512, 512, bias=False) for _ in range(setting.choose(64, 3))])
    start = {name: value.detach().double() for name, value in model.named_parameters()}
    model.to(setting.device)
    start = {name: value.clone() for name, value in start.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tracker, stream = attach(model, optimizer, folder(), every=1), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for step in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
            optimizer.step()
            tracker.log(loss=torch.full((), float(step), device=setting.device))
        tracker.close()
    run = open_run(tracker.path)
    last = run.measurements.query("step == 5").set_index("matrix")["frobenius_norm"]
    exact = {
        name: float((value.detach().cpu().double() - start[name]).norm()) for name, value in model.named_parameters()
    }
    worst = max(abs(float(last[name]) - norm) / norm for name, norm in exact.items())
    losses = run.scalars.query("name == 'loss'")["value"].tolist()
    numbers = {"worst error of a norm": worst, "losses": losses}
    return Found(worst < 1e-6 and losses == [0.0, 1.0, 2.0, 3.0, 4.0], "norms to 1e-6, losses equal", numbers)


def tf32(setting: Setting) -> Found:
    """Leading values within their bound, a merged weight right, whatever the loop's float32 is."""
    torch.manual_seed(0)
    size = setting.choose(2048, 400)
    left, right = (torch.linalg.qr(torch.randn(size, size // 2)).Q for _ in range(2))
    matrix = ((left * torch.logspace(0, -4, size // 2)) @ right.mT).to(setting.device)
    exact, count, found = torch.linalg.svdvals(matrix.cpu().double()), size // 32, {}
    before = torch.get_float32_matmul_precision()
    for kind in ("highest", "high"):
        torch.set_float32_matmul_precision(kind)
        leading = leading_singular_values(matrix, count)
        errors = exact[:count] - leading.values
        found[f"{kind}: beyond the bound / σ₁"] = max(float(errors.max()) - leading.error_bound, 0.0) / float(exact[0])
        model = nn.Sequential(nn.Linear(size, size, bias=False, device=setting.device))
        inrank.convert(model, "0", buffer_rank=8)
        layer = model[0]
        with torch.no_grad():
            layer.U.normal_()  # type: ignore[union-attr, operator]
        factors = [value.detach().cpu().double() for value in (layer.initial_weight, layer.U, layer.V)]  # type: ignore[union-attr]
        weight = factors[0] + layer.gain * (factors[1] @ factors[2])  # type: ignore[operator]
        inrank.merge(model)
        worst = float((model[0].weight.detach().cpu().double() - weight).abs().max() / weight.abs().max())
        found[f"{kind}: merged"] = worst
    torch.set_float32_matmul_precision(before)
    return Found(max(found.values()) < 1e-6, "1e-6", found)


def graphs(setting: Setting) -> Found:
    """A capture of the loop's own while logged values are on their way; the replays are measured."""
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)).to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, capturable=True)
    tracker, inputs = attach(model, None, folder(), every=5), torch.randn(64, 256, device=setting.device)
    for _ in range(300):
        tracker.log(loss=torch.ones((), device=setting.device))
    graphed = torch.cuda.make_graphed_callables(model, (inputs,))  # type: ignore[no-untyped-call]
    for _ in range(12):
        graphed(inputs).square().mean().backward()
        optimizer.step()
        tracker.step()
        optimizer.zero_grad(set_to_none=False)
    tracker.close()
    run = open_run(tracker.path)
    steps = sorted(run.measurements["step"].unique().tolist())
    logged = len(run.scalars.query("name == 'loss'"))
    return Found(steps == [5, 10, 12] and logged == 300, "snapshots at 5, 10, 12", {"steps": steps, "logged": logged})


def skipped_steps(setting: Setting) -> Found:
    """Steps of a fused Adam that a GradScaler leaves out."""
    model = nn.Linear(64, 64).to(setting.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler(setting.device.type, init_scale=2.0**40)
    tracker = attach(model, optimizer, folder(), every=5)
    for step in range(20):
        loss = model(torch.randn(8, 64, device=setting.device)).square().mean() * (1e38 if step % 4 == 0 else 1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    own = int(max(float(state["step"]) for state in optimizer.state.values()))
    tracker.measure()
    counted = tracker.step_count
    tracker.close()
    return Found(counted == own, "Adam's own count", {"tracker": counted, "Adam": own})


def default_device(setting: Setting) -> Found:
    """`torch.set_default_device`: convert and grow."""
    torch.set_default_device(setting.device)
    try:
        model = nn.Sequential(nn.Linear(256, 256, bias=False))
        inrank.convert(model, "*", buffer_rank=8)
        optimizer = setting.adamw(model, 1e-2)
        controller = inrank.RankController(model, optimizer, threshold=0.9999999, every=2)
        for _ in range(4):
            model(torch.randn(64, 256)).square().mean().backward()
            optimizer.step()
            controller.step()
            optimizer.zero_grad()
    finally:
        torch.set_default_device("cpu")
    return Found(bool(controller.history), "ranks grow", {"ranks": controller.ranks})


CHECKS = (
    Check(bits, 25),
    Check(no_synchronisation, 10, needs_cuda=True),
    Check(side_stream, 12, needs_cuda=True),
    Check(tf32, 8),
    Check(graphs, 8, needs_cuda=True),
    Check(skipped_steps, 5, needs_cuda=True),
    Check(default_device, 3),
)
