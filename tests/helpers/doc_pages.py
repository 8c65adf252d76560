"""The code blocks of README.md and docs/, and what each page's Python blocks are given: tiny stand-ins."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from helpers.active import gpt2
from helpers.loss_ranks import write_loss_ranks
from helpers.training import mlp
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
GENERATED = (
    "docs/reproduction.md",
    "docs/rank-by-loss.md",
    "docs/advice.md",
)  # they hold no code
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if str(path.relative_to(ROOT)) not in GENERATED
)
NOT_RUN = re.compile(r"^\s*<!-- not run: (?P<reason>.+?) -->\s*$")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)")
QUIET = ("text",)  # output, layouts: what does not claim to run


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path below the repository.
        line: of its fence, from 1.
        language: as the fence has it.
        code: without the fence's indentation.
        reason: why it is not run, if the page says so in a comment above it.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None

    @property
    def where(self) -> str:
        """`docs/index.md:30`."""
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    number, reason = 0, None
    while number < len(lines):
        line = lines[number]
        if mark := NOT_RUN.match(line):
            reason = mark["reason"]
        elif fence := _FENCE.match(line):
            end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
            code = "\n".join(each.removeprefix(fence["indent"]) for each in lines[number + 1 : end])
            found.append(Block(page, number + 1, fence["language"], code, reason))
            number, reason = end, None
        elif line.strip():
            reason = None
        number += 1
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a console block, comments left out, each as its words."""
    lines = [line.removeprefix("$ ") for line in block.code.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


def check_command(words: list[str]) -> None:
    """Whether this command line is one that our commands take, or names something that is there.

    Raises:
        AssertionError, SystemExit: it does not.
    """
    from inrank.cli import _build_parser as inrank_parser
    from inrank_monitor.cli import _build_parser as monitor_parser

    program, arguments = words[0], words[1:]
    parsers: dict[str, Callable[[], argparse.ArgumentParser]] = {
        "inrank": inrank_parser,
        "inrank-monitor": monitor_parser,
    }
    if program in parsers:
        parsers[program]().parse_args(arguments)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets), f"the Makefile has no target {arguments}"
    elif program == "torchrun" and "-m" in arguments:
        place = arguments.index("-m")
        assert arguments[place + 1] == "inrank"
        inrank_parser().parse_args(arguments[place + 2 :])
    elif program in ("torchrun", "python"):
        assert any((ROOT / "docs/trainers/scripts" / word).is_file() for word in arguments), f"no such script: {words}"
    elif program == "streamlit":
        assert (ROOT / arguments[1] / "streamlit_app.py").is_file()
    elif program == "tensorboard":
        assert arguments[0] == "--logdir"
    elif program == "pip":
        _check_extras(arguments)
    else:
        raise AssertionError(f"unknown command: {words}")


def _check_extras(arguments: list[str]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments:
        for extra in re.findall(r"\[(.*)\]", word):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"no extra {extra}"
    if "-c" in arguments:
        assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()


class WithLoss(nn.Module):
    """A small model that is called with a batch and has a loss, under names like those of a real one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
        block = nn.Module()
        block.mlp = self.mlp
        self.h = nn.ModuleList([block])
        del self.mlp

    def forward(self, batch: Tensor) -> SimpleNamespace:
        """`.loss`, as transformers' models have it."""
        return SimpleNamespace(loss=self.h[0].mlp(batch).square().mean())


def _loop() -> dict[str, Any]:
    model = WithLoss()
    weights = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "muon": torch.optim.SGD(weights, lr=1e-2),
        "adamw": torch.optim.AdamW(vectors, lr=1e-2),
        "matrices": torch.optim.SGD(weights, lr=1e-2),
        "vectors": torch.optim.AdamW(vectors, lr=1e-2),
        "loader": [torch.randn(4, 16) for _ in range(4)],
        "scaler": torch.amp.GradScaler("cpu", enabled=False),
        "directory": Path("runs/first"),
    }


def _with_attach() -> dict[str, Any]:
    import inrank_monitor

    return _loop() | {"attach": inrank_monitor.attach, "inrank_monitor": inrank_monitor}


def _after_a_run() -> dict[str, Any]:
    """A finished run of a GPT-2 in runs/first."""
    from inrank_monitor import attach

    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = torch.randint(40, (4, 12))
    with attach(model, optimizer, "runs/first", every=1, buffer_rank=4) as tracker:
        for _ in range(3):
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tracker.log(loss=loss)
    another = gpt2()
    return {"torch": torch, "model": another, "optimizer": torch.optim.AdamW(another.parameters(), lr=1e-2)}


def _after_a_run_of_linear_layers() -> dict[str, Any]:
    from inrank_monitor import attach, open_run

    model = mlp(24, 32, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with attach(model, optimizer, "runs/first", every=1, buffer_rank=4):
        for _ in range(24):
            model(torch.randn(8, 24)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    names = open_run("runs/first").matrices.index
    write_loss_ranks(Path("runs/first"), {str(name): 2 for name in names}, 24)
    return {"torch": torch, "model": model}


def _training_ranks() -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    import inrank
    from inrank_monitor import TrackerCallback

    rows = torch.randint(40, (60, 2, 12), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(
        output_dir="out", max_steps=30, per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
        use_cpu=True, save_strategy="no",
    )  # fmt: skip
    return {
        "torch": torch,
        "inrank": inrank,
        "model": gpt2(),
        "loader": [{"input_ids": each, "labels": each} for each in rows],
        "phase_steps": 50,
        "Trainer": Trainer,
        "TrackerCallback": TrackerCallback,
        "arguments": arguments,
        "data": [{"input_ids": each[0], "labels": each[0]} for each in rows[:40]],
    }


def _factorizing() -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    import inrank
    from inrank_monitor import TrackerCallback

    def build() -> tuple[Any, torch.optim.Optimizer]:
        fresh = gpt2(layers=2)
        return fresh, torch.optim.AdamW(fresh.parameters(), lr=4e-3)

    dense, optimizer = build()
    batches = [{"input_ids": each, "labels": each} for each in torch.randint(40, (12, 2, 12))]
    arguments = TrainingArguments(
        output_dir="out", max_steps=8, per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
        use_cpu=True, save_strategy="no",
    )  # fmt: skip
    return {
        "torch": torch,
        "Trainer": Trainer,
        "TrackerCallback": TrackerCallback,
        "arguments": arguments,
        "data": [{"input_ids": each["input_ids"][0], "labels": each["labels"][0]} for each in batches],
        "model": build()[0],
        "dense": dense,
        "another": build()[0],
        "optimizer": optimizer,
        "build": build,
        "loader": batches[:8],
        "held_out": batches[8:],
        "inrank": inrank,
    }


def _trainer() -> dict[str, Any]:
    from helpers.trainers import Sequences, trainer_arguments
    from transformers import Trainer
    from transformers.trainer_utils import get_last_checkpoint

    return {
        "torch": torch,
        "model": gpt2(),
        "Trainer": Trainer,
        "arguments": trainer_arguments(Path("out"), max_steps=4, save_steps=4),
        "data": Sequences(),
        "directory": "runs/resumed",
        "get_last_checkpoint": get_last_checkpoint,
    }


def _lightning() -> dict[str, Any]:
    import lightning
    from torch.utils.data import DataLoader

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(8, 12, 4)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self.layers(batch[0]).square().mean()

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("validation_loss", self.layers(batch[0]).square().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def pictures(count: int, prototypes: Any) -> DataLoader[Any]:
        return DataLoader(torch.utils.data.TensorDataset(torch.randn(min(count, 64), 8)), batch_size=16)

    class Quiet(lightning.Trainer):
        """The page's Trainer without its bars, its own files and its words on the machine."""

        def __init__(self, **options: Any) -> None:
            quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            super().__init__(**quiet | {"accelerator": "cpu", "enable_checkpointing": False} | options)

    model, loader = Classifier(), pictures(64, None)
    first = lightning.Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        enable_checkpointing=False,
    )  # fmt: skip
    first.fit(model, loader)
    first.save_checkpoint("last.ckpt")
    return {
        "Trainer": Quiet,
        "trainer": Quiet(max_epochs=2),
        "model": model,
        "train_loader": loader,
        "val_loader": loader,
        "Classifier": Classifier,
        "pictures": pictures,
        "prototypes": None,
        "directory": "runs/second",
    }


def _accelerate() -> dict[str, Any]:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    from inrank_monitor import attach

    model = mlp(8, 12, 4)
    return {
        "accelerator": Accelerator(cpu=True, gradient_accumulation_steps=2),
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "loader": DataLoader(TensorDataset(torch.randn(32, 8), torch.randn(32, 4)), batch_size=8),
        "loss_of": nn.functional.mse_loss,
        "attach": attach,
        "directory": Path("runs/first"),
    }


def _peft() -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model

    from inrank_monitor import attach

    return {
        "torch": torch,
        "model": gpt2(),
        "attach": attach,
        "LoraConfig": LoraConfig,
        "get_peft_model": get_peft_model,
    }


def _checkpoints() -> dict[str, Any]:
    import inrank_monitor

    for folder, seed in (("gpt2", 0), ("out/checkpoint-10", 1)):
        gpt2(seed=seed).save_pretrained(folder)
    return {"inrank_monitor": inrank_monitor}


# What a page's blocks find when they begin; a page that is not here gets nothing.
STAND_INS: dict[str, Callable[[], dict[str, Any]]] = {
    "README.md": _with_attach,
    "docs/index.md": _with_attach,
    "docs/numbers.md": _after_a_run,
    "docs/verdicts.md": _after_a_run,
    "docs/cost.md": _with_attach,
    "docs/alarms.md": _with_attach,
    "docs/dashboard.md": _after_a_run,
    "docs/figures.md": _after_a_run,
    "docs/lora.md": _after_a_run_of_linear_layers,
    "docs/factorize.md": _factorizing,
    "docs/growing-rank.md": _training_ranks,
    "docs/checkpoints.md": _checkpoints,
    "docs/loggers.md": _with_attach,
    "docs/trainers/plain-loop.md": _with_attach,
    "docs/trainers/transformers.md": _trainer,
    "docs/trainers/lightning.md": _lightning,
    "docs/trainers/accelerate.md": _accelerate,
    "docs/trainers/peft.md": _peft,
}
