"""transformers' Trainer for one training: its arguments, its model at the start or at a checkpoint, itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from inrank.demand import split_off
from inrank.gpt2.models import TARGETS, build
from inrank.gpt2.settings import Settings, under_torchrun
from inrank.gpt2.text import Blocks, Corpus
from inrank.growth import factorize, initialize_from_gradient, is_distributed, process_number
from inrank.layers import convert, layers_of, restore_shapes


def training_arguments(settings: Settings, folder: Path, device: str) -> TrainingArguments:
    """The recipe: AdamW with weight decay, warm-up and cosine, the same for every method; checkpoints in `folder`."""
    on_cuda = device != "cpu" and torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        dataloader_drop_last=True,
        dataloader_pin_memory=on_cuda,
        remove_unused_columns=False,
        optim="adamw_torch",
        learning_rate=settings.lr,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup * settings.steps),
        fp16=settings.precision == "fp16",
        bf16=settings.precision == "bf16",
        use_cpu=not on_cuda,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,  # the last but one is the last whole one while a checkpoint is being written
        logging_steps=max(1, min(10, settings.steps // 100)),
        logging_nan_inf_filter=False,  # it would wait for the device at every step, and hide a NaN
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if under_torchrun() and not on_cuda else None,
        report_to="none",
        disable_tqdm=True,
    )
    _ = arguments.device  # begins the process group under torchrun
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer spreads a batch over all devices that it sees
    return arguments


def make_trainer(
    model: nn.Module,
    arguments: TrainingArguments,
    corpus: Corpus,
    settings: Settings,
    callbacks: Sequence[TrainerCallback | None],
) -> Trainer:
    """A Trainer that prints nothing of its own."""
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Blocks(corpus.train, settings.context),
        callbacks=[callback for callback in callbacks if callback is not None],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def group_factors(trainer: Trainer, rate: float) -> None:
    """Give the Trainer of a factorized model the parameter groups that `inrank.factorize(factor_lr=rate)` left."""
    if rate != 1:
        layers = layers_of(trainer.model)
        split_off(trainer.create_optimizer(), [each for layer in layers.values() for each in (layer.U, layer.V)], rate)


def resumed_model(checkpoint: Path) -> nn.Module:
    """A model of the widths, layers and ranks of a checkpoint; its weights come with `load_weights` or the Trainer."""
    model: nn.Module = GPT2LMHeadModel(GPT2Config.from_pretrained(checkpoint))
    restore_shapes(model)
    return model


def first_model(settings: Settings, corpus: Corpus, device: torch.device) -> tuple[nn.Module, float]:
    """The model at step 0 of a method, and how many seconds it took to make it from a dense one."""
    torch.manual_seed(settings.seed)
    model = build(settings.shape, settings.vocabulary, settings.context, widths=settings.d_ff).to(device)
    began = time.perf_counter()
    if settings.method == "fixed-rank":
        convert(model, TARGETS, initial_rank=1, buffer_rank=1, seed=settings.seed)
        factorize(model, ranks=settings.ranks, gain=settings.layer_gain)
    elif settings.method != "baseline" and not settings.dense_first:
        published = settings.method == "reference"
        convert(
            model,
            TARGETS,
            initial_rank=settings.initial_rank,
            buffer_rank=settings.buffer_rank,
            initialization="kaiming" if published else "zero",
            gain=settings.layer_gain,
            seed=settings.seed,
        )
        if settings.gradient_init and not published:
            initialize_from_gradient(model, lambda: _first_backward(model, settings, corpus, device))
    return model, time.perf_counter() - began


def _first_backward(model: nn.Module, settings: Settings, corpus: Corpus, device: torch.device) -> None:
    """The gradient on one effective batch, drawn by the seed, without dropout."""
    blocks = Blocks(corpus.train, settings.context)
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    count = min(settings.effective_batch, len(blocks))
    chosen = torch.randperm(len(blocks), generator=generator, device="cpu")[:count].tolist()
    model.eval()
    for first in range(0, count, settings.batch_size):
        batch = torch.stack([blocks[index]["input_ids"] for index in chosen[first : first + settings.batch_size]])
        loss = model(input_ids=batch.to(device), labels=batch.to(device)).loss
        (loss * len(batch) / count).backward()


def is_main_process() -> bool:
    """Whether this is the only process, or the first of a distributed training."""
    return process_number() == 0


def on_main_process(action: Callable[[], Any]) -> None:
    """Do something on the main process while the others wait."""
    if is_main_process():
        action()
    wait_for_all()


def wait_for_all() -> None:
    """Until every process of a distributed training is here."""
    if is_distributed():
        dist.barrier()
