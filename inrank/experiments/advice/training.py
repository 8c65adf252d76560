"""Pre-training on one text, watched full fine-tuning on another, and LoRA from the same weights at advised ranks.

Held-out text of the fine-tuning is cut in two: by one half learning rates are chosen and ranks by loss are measured, by
the other half all is judged. Steps, batches and dropout of a seed are the same for every LoRA.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inrank.experiments.corpus import fine_tuning_corpora
from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.models import build, parse_size
from inrank.gpt2.text import Corpus
from inrank.reproduction.pool import FINISHED_FILE

if TYPE_CHECKING:
    import pandas as pd

ADVISED, UNIFORM = "advised", "uniform"
WEIGHTS_FILE = "model.safetensors"
EVALUATIONS = 200
_CLIP, _WARM_UP = 1.0, 0.05
_SNAPSHOTS = 20
_EVALUATION_BATCH = 32


class Data(NamedTuple):
    """What a model is trained on, what choices are made by, and what it is judged by."""

    train: Tensor
    choosing: Tensor
    judging: Tensor


def pretrain(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """A fresh GPT-2 on the first text; its weights are kept.

    Returns:
        Held-out loss on each of the texts, in nats a token.
    """
    first, second = fine_tuning_corpora(directory.parent, settings)
    torch.manual_seed(settings["seed"])
    model = _model(settings, first.vocabulary).to(device)
    _fit(model, directory, settings, _data(first, settings), settings["pretraining_rate"])
    _save(model, directory / WEIGHTS_FILE)
    judged = {name: _data(corpus, settings).judging for name, corpus in (("first", first), ("loss", second))}
    return {name: mean_loss(model, windows, _EVALUATION_BATCH) for name, windows in judged.items()}


def fine_tune(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """All weights of the pre-trained model on the second text, watched; then ranks by loss.

    Returns:
        Held-out loss, the rise of the other half's at the ranks by loss, and how often it was evaluated.
    """
    from inrank_monitor import ranks_by_loss

    model, data = _pretrained(directory.parent, settings, device)
    _fit(model, directory, settings, data, settings["full_rate"])
    found = ranks_by_loss(
        model,
        directory,
        lambda: mean_loss(model, data.choosing, _EVALUATION_BATCH),
        max_evaluations=settings["evaluations"],
        progress=False,
    )
    loss = mean_loss(model, data.judging, _EVALUATION_BATCH)
    return {"loss": loss, "rise": found.rise, "evaluations": found.evaluations}


def adapt(directory: Path, settings: Mapping[str, Any], device: str) -> Mapping[str, float]:
    """LoRA on the second text, at the ranks of one rule or at the one rank for all that comes next to their size.

    Returns:
        loss, held-out; choosing, the other half's; parameters, trained; mean_rank over the layers that could be
        adapted, and modules, how many were; rate. All but the counts are NaN where the rule advises on no layer.
    """
    from peft import LoraConfig, get_peft_model

    from inrank_monitor import attach, open_run
    from inrank_monitor.advice import advise, lora_config, rank_pattern

    runs = directory.parent
    table = advise(open_run(runs / settings["full"]), rank_from=settings["rule"])
    model, data = _pretrained(runs, settings, device)
    table, size = _ranks(table, model, settings["arm"])
    rate = _rate(runs, settings)
    if not size or math.isnan(rate):
        attach(model, None, directory, tensorboard=False, resume=0).close()  # a run in which nothing was trained
        return dict.fromkeys(("loss", "choosing", "mean_rank", "rate"), math.nan) | {"parameters": 0, "modules": 0}
    layers, ranks = rank_pattern(table.assign(rank=1)), rank_pattern(table)
    torch.manual_seed(settings["seed"])
    with warnings.catch_warnings():  # PEFT's own use of what transformers calls deprecated
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.* is deprecated", FutureWarning)
        adapted = get_peft_model(model, LoraConfig(**lora_config(table)))
    _fit(adapted, directory, settings, data, rate)
    return {
        "loss": mean_loss(adapted, data.judging, _EVALUATION_BATCH),
        "choosing": mean_loss(adapted, data.choosing, _EVALUATION_BATCH),
        "parameters": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "mean_rank": fmean(ranks.get(layer, 0) for layer in layers),
        "modules": len(ranks),
        "rate": rate,
    }


def _ranks(table: pd.DataFrame, model: nn.Module, arm: str) -> tuple[pd.DataFrame, int]:
    """The advice with the ranks of an arm, and the number of parameters that it comes to (0: no advice)."""
    from inrank_monitor.advice import rank_pattern

    costs = {name: sum(model.get_submodule(name).weight.shape) for name in rank_pattern(table.assign(rank=1))}  # type: ignore[arg-type]
    size = sum(rank * costs[name] for name, rank in rank_pattern(table).items())
    if arm == ADVISED or not size:
        return table, size
    rank = nearest_rank(size, sum(costs.values()))
    return table.assign(rank=rank), rank * sum(costs.values())


def nearest_rank(size: int, cost: int) -> int:
    """The rank for all whose number of parameters is nearest to `size`, where each rank costs `cost`; at least 1.

    >>> nearest_rank(1000, 300), nearest_rank(10, 300)
    (3, 1)
    """
    return max(1, round(size / cost))


def _rate(runs: Path, settings: Mapping[str, Any]) -> float:
    """The learning rate: the given one, or that of the best of several trainings, by the half that is for choosing.

    NaN where none of them could be trained.
    """
    if not settings["rates_from"]:
        return float(settings["rate"])
    found = [json.loads((runs / name / FINISHED_FILE).read_text(encoding="utf-8")) for name in settings["rates_from"]]
    losses = {one["numbers"]["rate"]: one["numbers"]["choosing"] for one in found}
    trained = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    return float(min(trained, key=trained.__getitem__)) if trained else math.nan


def _model(settings: Mapping[str, Any], vocabulary: int) -> nn.Module:
    return build(parse_size(settings["size"]), vocabulary, settings["context"])


def _pretrained(runs: Path, settings: Mapping[str, Any], device: str) -> tuple[nn.Module, Data]:
    from safetensors.torch import load_model

    _, second = fine_tuning_corpora(runs, settings)
    torch.manual_seed(settings["seed"])
    model = _model(settings, second.vocabulary)
    load_model(model, str(runs / settings["pretrained"] / WEIGHTS_FILE))
    return model.to(device), _data(second, settings)


def _save(model: nn.Module, file: Path) -> None:
    from safetensors.torch import save_model

    save_model(model, str(file))  # knows that the output layer is the embedding


def _data(corpus: Corpus, settings: Mapping[str, Any]) -> Data:
    windows = corpus.test_windows(settings["context"])
    train = torch.from_numpy(np.asarray(corpus.train).astype(np.int64))
    return Data(train, windows[::2][: settings["choosing_windows"]], windows[1::2])


def _fit(model: nn.Module, directory: Path, settings: Mapping[str, Any], data: Data, rate: float) -> None:
    """AdamW for all steps, watched: warm-up over a twentieth, then down to zero on a line, gradients clipped at 1."""
    from inrank_monitor import attach

    steps, context = settings["steps"], settings["context"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps))
    order = torch.Generator("cpu").manual_seed(settings["seed"])
    torch.manual_seed(settings["seed"])  # the same dropout, however many adapters were drawn before
    model.train()
    every = max(1, steps // _SNAPSHOTS)
    with attach(model, optimizer, directory, every=every, tensorboard=False, resume=0) as tracker:
        for _ in range(steps):
            starts = torch.randint(len(data.train) - context, (settings["batch"], 1), generator=order, device="cpu")
            tokens = data.train[starts + torch.arange(context + 1, device="cpu")].to(next(model.parameters()).device)
            logits = model(input_ids=tokens[:, :-1]).logits
            loss = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trained, _CLIP)
            optimizer.step()
            tracker.log(loss=loss, lr=scheduler.get_last_lr()[0])
            scheduler.step()
            optimizer.zero_grad()
    model.eval()


def schedule(steps: int) -> Callable[[int], float]:
    """The learning rate after so many steps, as a share of its highest: up over a twentieth, then down to zero."""
    warm_up = max(1, round(_WARM_UP * steps))
    return lambda step: min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up))
