"""transformers' Trainer on a tiny GPT-2 and random tokens, for the tests of the callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

STEPS, CONTEXT, VOCABULARY = 12, 8, 40


class Sequences(Dataset[dict[str, Tensor]]):
    """Random tokens, always the same."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(VOCABULARY, (CONTEXT,), generator=generator)
        return {"input_ids": tokens, "labels": tokens}


class StopAfter(TrainerCallback):
    """Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer_arguments(folder: Path, **options: Any) -> TrainingArguments:
    """12 steps of 4 sequences, five to an epoch, a checkpoint every fifth step; `max_steps=-1` leaves it to epochs."""
    defaults: dict[str, Any] = {
        "max_steps": STEPS, "save_steps": 5, "logging_steps": 2, "learning_rate": 1e-2, "data_seed": 3,
        "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **defaults | options)


def trainer(model: nn.Module, folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    """A Trainer of `model` that saves to `folder`; options as for TrainingArguments."""
    arguments = trainer_arguments(folder, **options)
    return Trainer(model, arguments, train_dataset=Sequences(), eval_dataset=Sequences(), callbacks=list(callbacks))


def assert_same_models(one: nn.Module, other: nn.Module) -> None:
    """To the last bit."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name
