"""What the tracker does to an accelerator, counted on one that is not there: `python tests/device_table.py`.

Reads by the host, copies and bytes of an ordinary step and of one with a snapshot, and the bytes on the device at most.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from helpers.pretended import Record, move, on_device, pretending, recording, set_gradients
from torch import nn

from inrank_monitor import attach


def gpt2(width: int = 192) -> nn.Module:
    """Two blocks of GPT-2, in which one parameter holds three matrices."""
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=2, n_embd=width, n_head=4, vocab_size=64, n_positions=16))


def experts(count: int = 16) -> nn.Module:
    """A layer of experts in one parameter."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(count, 128, 256, device="cpu"))

    return Experts()


def watch(model: nn.Module, **options: object) -> tuple[Record, Record]:
    """An ordinary step and a step with a snapshot, of a model on a pretended device."""
    with pretending(), tempfile.TemporaryDirectory() as folder:
        move(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
        given: dict[str, object] = {"every": 2, "tensorboard": False, "strict": True} | options
        tracker = attach(model, optimizer, Path(folder) / "run", **given)  # type: ignore[arg-type]
        for _ in range(2):
            set_gradients(model)
            optimizer.step()
        records = []
        for _ in range(2):
            set_gradients(model)
            with recording() as record:
                optimizer.step()
                tracker.log(loss=on_device(torch.tensor(1.0, device="cpu")))
            records.append(record)
        tracker.close()
    return records[0], records[1]


def line(name: str, record: Record, entries: int) -> str:
    """A row of the table."""
    to_device, to_host = record.bytes["to device"] / entries, record.bytes["to host"] / entries
    copies = sum(record.copies.values())
    return f"{name:32} {record.reads:6} {copies:7} {to_device:10.2f} {to_host:9.2f} {record.peak / 1e6:10.2f}"


def main() -> None:
    """Print the table."""
    print(f"{'':32} {'reads':>6} {'copies':>7} {'in B/par':>10} {'out B/par':>9} {'peak MB':>10}")
    cases: dict[str, Callable[[], nn.Module]] = {
        "GPT-2, 2 × 192": gpt2,
        "16 experts of 128 × 256": experts,
        "6 × 256 × 256": lambda: nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(6)]),
    }
    for threads in (1, 4):
        torch.set_num_threads(threads)
        for name, make in cases.items():
            model = make()
            entries = sum(parameter.numel() for parameter in model.parameters())
            ordinary, snapshot = watch(model)
            print(line(f"{name}, {threads} thr., step", ordinary, entries))
            print(line(f"{name}, {threads} thr., snapshot", snapshot, entries))


if __name__ == "__main__":
    sys.exit(main())
