"""One process of a training by the Trainer or by Accelerate; the tests start two and compare what they leave.

python trainer_worker.py trainer|accelerate DIRECTORY
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PROCESSES = 2


def run_on_two_processes(what: str, directory: Path) -> list[dict[str, Any]]:
    """What each process found."""
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, what, str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | shared | {"RANK": str(number), "LOCAL_RANK": str(number)},
        )
        for number in range(PROCESSES)
    ]
    try:
        answers = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, answer in zip(workers, answers, strict=True):
        assert worker.returncode == 0, answer[-3000:]
    return [torch.load(directory / f"{number}.pt", weights_only=True) for number in range(PROCESSES)]


def by_trainer(directory: Path) -> dict[str, Any]:
    """Weights before training; after it without a tracker, with one, with one that watches alone, and resumed."""
    from helpers.active import gpt2
    from helpers.trainers import trainer

    from inrank_monitor import TrackerCallback

    found: dict[str, Any] = {}
    made = gpt2(resid_pdrop=0.1)
    trainer(made, directory / "out-plain", ddp_backend="gloo").train()
    found["plain"] = made.state_dict()
    for name, options in (("together", {}), ("alone", {"distributed": False})):
        made = gpt2(resid_pdrop=0.1)
        found.setdefault("first", {key: value.clone() for key, value in made.state_dict().items()})
        callback = TrackerCallback(directory / name, every=1, tensorboard=False, buffer_rank=3, **options)
        trainer(made, directory / f"out-{name}", callback, ddp_backend="gloo").train()
        found[name] = made.state_dict()
        found[f"{name}, watched"] = callback.tracker is not None
    callback = TrackerCallback(directory / "together", every=1, tensorboard=False, buffer_rank=3)
    again = trainer(gpt2(seed=3), directory / "out-together", callback, ddp_backend="gloo")
    again.train(resume_from_checkpoint=str(directory / "out-together/checkpoint-5"))
    found["resumed"] = again.model.state_dict()
    return found


def by_accelerate(directory: Path) -> dict[str, Any]:
    """Weights before training; after it without a tracker and with one."""
    import torch
    from accelerate import Accelerator
    from helpers.training import mlp

    from inrank_monitor import attach

    found: dict[str, Any] = {}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    for name in ("plain", "together"):
        made = mlp(6, 8, 5)
        found.setdefault("first", {key: value.clone() for key, value in made.state_dict().items()})
        model, optimizer = accelerator.prepare(made, torch.optim.AdamW(made.parameters(), lr=0.02))
        tracker = None
        if name == "together":
            tracker = attach(model, optimizer, directory / name, every=1, tensorboard=False)
        for batch in range(12):
            seed = 2 * batch + accelerator.process_index
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
            with accelerator.accumulate(model):
                accelerator.backward((model(inputs) - 1).square().mean())
                optimizer.step()
                optimizer.zero_grad()
        if tracker:
            found["steps"] = tracker.step_count
            tracker.close()
        found[name] = made.state_dict()
    return found


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    path = Path(sys.argv[2])
    result = {"trainer": by_trainer, "accelerate": by_accelerate}[sys.argv[1]](path)
    torch.save(result, path / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()
