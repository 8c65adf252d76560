"""One training, watched, and then judged: how much the loss rises at the ranks of each rule.

A rule gives each matrix a rank r. W0 + the r leading directions of W − W0 is put in the place of every W at once, and
the held-out loss is taken; what it rises by, over that of the trained model, is what the rule's ranks leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inrank.experiments.corpus import fine_tuning_corpora, shared_corpus
from inrank.experiments.loss_ranks import tasks
from inrank.reproduction.experiment import Request, Training
from inrank_monitor.runs import peak_ranks

if TYPE_CHECKING:
    import pandas as pd

    from inrank_monitor.runs import Run

TOLERANCE = 0.01  # nats
EVALUATIONS = 200
UNIFORM = (1 / 16, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of each matrix's short side
RULES = {
    "paper": "explained ratio, eq. 7, last step",
    "peak": "explained ratio, eq. 7, peak",
    "stable": "stable rank, rounded up",
    "energy": "90 % of the energy",
    "signal": "signal rank",
}
BY_LOSS, BEST_UNIFORM = "loss", "uniform"

_GPT2 = {"layers": 4, "heads": 4, "learning_rate": 1e-3, "batch": 8, "vocabulary": 2048, "test_tokens": 12_000}
_SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        **{"steps": 12, "later_steps": 12, "batch": 4, "context": 16, "width": 16, "layers": 1},
        **{"vocabulary": 300, "test_tokens": 600, "evaluations": 30},
    },
    "tiny": {},
    "small": {"steps": 5000, "later_steps": 2000},
    "paper": {"steps": 20_000, "later_steps": 5000},
}
_KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT2, "width": 256, "context": 128, "steps": 500},
    "fine-tuned": {**_GPT2, "width": 128, "context": 128, "steps": 500, "later_steps": 300},
    "lstm": {
        **{"layers": 2, "width": 128, "dropout": 0.2, "vocabulary": 1024, "columns": 10, "test_tokens": 12_000},
        **{"learning_rate": 3e-3, "batch": 20, "context": 32, "steps": 600},
    },
    "convolutional": {"width": 32, "learning_rate": 1e-3, "batch": 64, "steps": 600},
}
_IMPORTS = ("transformers.models.gpt2.modeling_gpt2", "torch.utils.tensorboard")


def training(request: Request, kind: str, seed: int) -> Training:
    """One training of a request; `kind` is one of `tasks.KINDS`."""
    recipe = {**_KINDS[kind], "evaluations": EVALUATIONS}
    scale = {name: value for name, value in _SCALES[request.scale].items() if name in recipe}
    settings = {**recipe, **scale, "kind": kind, "seed": seed}
    if kind != "convolutional":
        settings |= {"text": list(request.text), "test_text": request.test_text}
    return Training(f"rank-by-loss-{kind}-seed-{seed}", train_and_judge, settings, imports=_IMPORTS)


def train_and_judge(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """Train with the tracker attached, then measure what the ranks of each rule leave of the loss.

    Returns:
        Held-out loss in nats before and after; of each rule, of `UNIFORM`, of the ranks by loss and of the best uniform
        rank, by name: `rank`, the mean over the matrices, `rise` of the loss, and its rise `elsewhere`, on data by
        which nothing was chosen.
    """
    from inrank_monitor import attach

    torch.manual_seed(settings["seed"])
    task = _task(directory.parent, settings, device)
    task.model.eval()
    before = task.held_out()
    every = max(1, task.steps // 25)
    with attach(task.model, task.optimizer, directory, every=every, resume=0, tensorboard=False) as tracker:
        task.train(lambda loss: tracker.log(loss=loss))
        after = task.held_out()
        tracker.log(held_out_loss=after)
    return {"loss_before": before, "loss_after": after, **judge(task, directory, settings["evaluations"])}


def _task(runs: Path, settings: Mapping[str, Any], device: str) -> tasks.Task:
    kind = settings["kind"]
    if kind == "convolutional":
        return tasks.convolutional(settings, device)
    if kind == "fine-tuned":
        return tasks.fine_tuned(settings, fine_tuning_corpora(runs, settings), device)
    corpus = shared_corpus(runs, settings["text"], settings["test_text"], settings["vocabulary"])
    return (tasks.gpt2 if kind == "gpt2" else tasks.lstm)(settings, corpus, device)


def judge(task: tasks.Task, directory: Path, evaluations: int) -> dict[str, float]:
    """Ranks and rises by name, as `train_and_judge` returns them."""
    from inrank_monitor import loss_at_ranks, open_run, ranks_by_loss

    run = open_run(directory)
    base, other = task.held_out(), task.elsewhere()
    sides = run.matrices[["rows", "cols"]].min(axis=1)
    numbers: dict[str, float] = {"full_rank": float(sides.mean())}

    def measure(name: str, ranks: Mapping[str, int]) -> float:
        numbers[f"rank {name}"] = fmean(ranks.values())
        numbers[f"rise {name}"] = loss_at_ranks(task.model, run, task.held_out, ranks) - base
        numbers[f"elsewhere {name}"] = loss_at_ranks(task.model, run, task.elsewhere, ranks) - other
        return numbers[f"rise {name}"]

    for name, ranks in ranks_of_rules(run, sides).items():
        measure(name, ranks)
    for share in UNIFORM:
        measure(uniform_name(share), {name: max(1, round(share * side)) for name, side in sides.items()})
    found = ranks_by_loss(task.model, run, task.held_out, TOLERANCE, evaluations)
    numbers["evaluations"] = found.evaluations
    target = max(TOLERANCE, measure(BY_LOSS, found.ranks))

    def uniform(rank: int) -> dict[str, int]:
        return {name: min(rank, side) for name, side in sides.items()}

    best = _least(int(sides.max()), lambda rank: measure(BEST_UNIFORM, uniform(rank)) <= target)
    measure(BEST_UNIFORM, uniform(best))
    return numbers


def uniform_name(share: float) -> str:
    """Of the same share of each matrix's short side."""
    return f"{share:g} of the short side"


def ranks_of_rules(run: Run, sides: pd.Series) -> dict[str, dict[str, int]]:
    """Ranks of the last snapshot by each of `RULES`, at least 1; where a rule says nothing of a matrix, all of it."""
    last = run.measurements.drop_duplicates("matrix", keep="last").set_index("matrix")
    columns = {
        "paper": last["intrinsic_rank"],
        "peak": peak_ranks(run.measurements),
        "stable": np.ceil(last["stable_rank"]),
        "energy": last["energy_rank"],
        "signal": last["signal_rank"],
    }
    full = sides.astype(float)
    found = {
        rule: values.astype(float).reindex(full.index).fillna(full).clip(lower=1) for rule, values in columns.items()
    }
    return {
        rule: dict(zip(map(str, full.index), ranks.astype(int).tolist(), strict=True)) for rule, ranks in found.items()
    }


def _least(most: int, is_enough: Callable[[int], bool]) -> int:
    """The least rank up to `most` that is enough, by halving: more is taken to be enough where less is."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def trainings(request: Request, kinds: Sequence[str] = tuple(tasks.KINDS)) -> list[Training]:
    """Each kind with each seed."""
    return [training(request, kind, seed) for kind in kinds for seed in request.seeds]
