"""The README's examples of the active mode are run as they stand, on a tiny GPT-2."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.active import gpt2
from torch import Tensor, nn

import inrank

README = Path(__file__).parents[1] / "README.md"
CONTEXT = 12


def example(first_words: str) -> str:
    """The one Python example of the README that holds these words."""
    found = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (chosen,) = [code for code in found if first_words in code]
    return str(chosen)


def batches(count: int) -> list[dict[str, Tensor]]:
    tokens = torch.randint(40, (count, 2, CONTEXT), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": each, "labels": each} for each in tokens]


def is_plain(model: nn.Module) -> bool:
    return not any(isinstance(module, inrank.InRankLinear | inrank.LowRankLinear) for module in model.modules())


def test_the_loop(one_thread: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = gpt2()
    names: dict[str, Any] = {"torch": torch, "model": model, "loader": batches(60), "phase_steps": 50}
    exec(example("controller.step()"), names)
    assert names["controller"].history, "no rank grew, so the example shows nothing"
    assert "of ‖W‖² kept" in capsys.readouterr().out
    assert is_plain(model)


def test_the_trainer(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Trainer, TrainingArguments

    from inrank_monitor import TrackerCallback, open_run

    monkeypatch.chdir(tmp_path)
    arguments = TrainingArguments(
        output_dir="out", max_steps=30, per_device_train_batch_size=2, report_to="none", disable_tqdm=True, use_cpu=True
    )
    data = [{name: value[0] for name, value in batch.items()} for batch in batches(40)]
    names: dict[str, Any] = {
        "inrank": inrank,
        "model": gpt2(),
        "Trainer": Trainer,
        "TrackerCallback": TrackerCallback,
        "arguments": arguments,
        "data": data,
    }
    exec(example("inrank.InRankCallback("), names)
    grown = {name: layer.rank for name, layer in names["model"].named_modules() if hasattr(layer, "buffer_rank")}
    assert min(grown.values()) > 2
    assert "rank_grown" in set(open_run("runs/grown").events["kind"])
    assert os.path.isdir("grown")
