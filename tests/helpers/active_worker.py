"""One process of a distributed training; `test_active_distributed.py` starts two and compares what they leave.

python active_worker.py PROCESS PROCESSES DIRECTORY
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.active_training import by_gradient, converted, gpt2, loss_of, next_token_loss, one_more, tokens
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

import inrank
from inrank_monitor import attach

STEPS, LATER = 22, 6


def train_ddp(rule: Any, **options: Any) -> dict[str, Any]:
    """Growths, a factorization of the unwrapped model, a new wrapping, and on; each process on its own data."""
    torch.manual_seed(dist.get_rank())  # dropout, and whatever would draw from the global state
    model = DistributedDataParallel(converted(dropout=0.1, **options))
    optimizer = AdamW(model.parameters(), lr=5e-3)
    controller = inrank.RankController(model, optimizer, rule=rule, threshold=0.999, every=5, gradient_steps=2)
    losses = [_step(model, optimizer, controller, step) for step in range(STEPS)]
    found: dict[str, Any] = {"grown": _copy(model.module), "history": controller.history, "ranks": controller.ranks}
    inrank.factorize(model.module, optimizer)
    model = DistributedDataParallel(model.module)
    losses += [_step(model, optimizer, controller, step) for step in range(STEPS, STEPS + LATER)]
    gradients = {name: parameter.grad for name, parameter in model.module.named_parameters()}
    return found | {"weights": _copy(model.module), "gradients": gradients, "losses": losses}


def dense_first() -> dict[str, Any]:
    """A dense model under DDP that goes on in factors; each process has its own data, calibration and all."""
    torch.manual_seed(0)
    model = DistributedDataParallel(gpt2())
    optimizer = AdamW(model.parameters(), lr=5e-3)
    for step in range(3):
        _dense_step(model, optimizer, step)
    dense = _copy(model.module)
    batches = [{"input_ids": (each := tokens(10 * dist.get_rank() + place)), "labels": each} for place in range(3)]
    report = inrank.factorize(model.module, optimizer, budget=0.5, calibration=batches)
    factorized = _copy(model.module)
    model = DistributedDataParallel(model.module)
    for step in range(3, 6):
        _dense_step(model, optimizer, step)
    found = {"dense": dense, "factorized": factorized, "weights": _copy(model.module), "ranks": report.ranks}
    plan = inrank.plan_widths(gpt2(), batches, 0.5).widths  # of a dense one
    return found | {"losses": (report.loss_before, report.loss_after), "plan": plan}


def settled(directory: Path) -> dict[str, Any]:
    """The ranks that process 0 has measured decide for both; wrapped anew where the step returns a report."""
    torch.manual_seed(0)
    model = DistributedDataParallel(gpt2())
    optimizer = AdamW(model.parameters(), lr=5e-3)
    batches = [{"input_ids": (each := tokens(10 * dist.get_rank() + place)), "labels": each} for place in range(3)]
    with attach(model, optimizer, directory / "settled", every=1, tensorboard=False, strict=True) as tracker:
        moment = inrank.DenseThenLowRank(
            model.module, optimizer, at=inrank.Settled(within=0.3, latest=0.9), total_steps=20, every=2,
            tracker=tracker, budget=0.5, calibration=batches, factor_lr=2.0,
        )  # fmt: skip
        when = []
        for step in range(20):
            _dense_step(model, optimizer, step)
            if report := moment.step():
                when.append((step + 1, report.ranks))
                model = DistributedDataParallel(model.module)
    return {"when": when, "weights": _copy(model.module)}


def _dense_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss_of(model, 2 * step + dist.get_rank()).backward()
    optimizer.step()


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, controller: Any, step: int) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, 2 * step + dist.get_rank())
    loss.backward()
    optimizer.step()
    controller.step()
    return float(loss.detach())


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def quarrelsome(seen: inrank.Observation) -> int:
    """Wants another rank on every process."""
    return seen.rank + 1 + 2 * dist.get_rank()


def gradient_of_first_step() -> dict[str, Any]:
    """What a rule sees of the gradient after one step on another batch each; nothing but in the first process."""
    model = DistributedDataParallel(converted())
    optimizer = AdamW(model.parameters(), lr=5e-3)
    seen_gradients: dict[str, Any] = {}

    @inrank.needs_gradient
    def note(seen: inrank.Observation) -> int:
        seen_gradients[seen.name] = torch.from_numpy(seen.gradient)
        return seen.rank

    _step(model, optimizer, inrank.RankController(model, optimizer, rule=note, every=1, gradient_steps=1), 0)
    return seen_gradients


def controller_before_ddp() -> list[float]:
    """The order in which a script may well have it; the gradient is first taken at step 4."""
    model = converted()
    optimizer = AdamW(model.parameters(), lr=5e-3)
    controller = inrank.RankController(model, optimizer, rule=by_gradient, every=5, gradient_steps=2)
    wrapped = DistributedDataParallel(model)
    return [_step(wrapped, optimizer, controller, step) for step in range(12)]


def factorize_wrapped() -> list[str]:
    """The messages, also where torch.compile hides the wrapper."""
    model = DistributedDataParallel(converted())
    compiled = torch.compile(model, backend="eager")
    return [_message(lambda: inrank.factorize(model)), _message(lambda: inrank.factorize(compiled))]


def fsdp(factorized: bool) -> dict[str, Any]:
    """Five steps of a sharded model at fixed ranks, half of each batch a process."""
    model = prepared(factorized)
    _shard(model)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for step in range(5):
        optimizer.zero_grad()
        loss = next_token_loss(model, tokens(step).chunk(2)[dist.get_rank()])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    full = {name: _whole(value) for name, value in model.named_parameters()}
    return {"losses": losses, "weights": full}


def prepared(factorized: bool) -> nn.Module:
    """A model whose update is not zero, at rank 3: W0 + U V, or plain U V."""
    model = converted(initial_rank=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".U"):
                parameter[:, :6] = 0.1 * torch.randn(parameter.shape[0], 6, generator=generator)
    if factorized:
        inrank.factorize(model, ranks=8)
    return model


def fsdp_errors() -> dict[str, str]:
    """What is refused of a sharded model."""
    sharded = converted()
    _shard(sharded)
    plain = gpt2()
    _shard(plain)
    optimizer = AdamW(sharded.parameters())
    before = {name: _whole(value) for name, value in sharded.named_parameters()}
    messages = {
        "controller": _message(lambda: inrank.RankController(sharded, optimizer)),
        "factorize": _message(lambda: inrank.factorize(sharded, optimizer)),
        "merge": _message(lambda: inrank.merge(sharded)),
        "initialize": _message(
            lambda: inrank.initialize_from_gradient(sharded, lambda: loss_of(sharded, 0).backward())
        ),
        "convert": _message(lambda: inrank.convert(plain, "*.mlp.*", buffer_rank=3)),
    }
    after = {name: _whole(value) for name, value in sharded.named_parameters()}
    messages["untouched"] = str(all(torch.equal(before[name], after[name]) for name in before))
    return messages


def _shard(model: Any) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _whole(value: Any) -> torch.Tensor:
    return value.detach().full_tensor().clone() if hasattr(value, "full_tensor") else value.detach().clone()


def _message(action: Callable[[], object]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    return "no error"


SCENARIOS: dict[str, Callable[[], Any]] = {
    "default rule": lambda: train_ddp(None),
    "rule by gradient": lambda: train_ddp(by_gradient),
    "kaiming": lambda: train_ddp(one_more, initialization="kaiming"),
    "quarrelsome rule": lambda: train_ddp(quarrelsome),
    "gradient of the first step": gradient_of_first_step,
    "controller before DDP": controller_before_ddp,
    "factorize wrapped": factorize_wrapped,
    "dense first": dense_first,
    "settled": lambda: settled(Path(sys.argv[3])),
    "FSDP, factorized": lambda: fsdp(True),
    "FSDP, converted": lambda: fsdp(False),
    "FSDP, errors": fsdp_errors,
}


def main() -> None:
    """Run every scenario and keep what each returns."""
    process, processes, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/meeting",
        rank=process,
        world_size=processes,
        timeout=timedelta(seconds=60),
    )
    for number, (name, scenario) in enumerate(SCENARIOS.items()):
        torch.save(scenario(), directory / f"{number}-{process}.pt")
        print(name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
