"""One training as a process of its own, so that its peak memory and its runtime are its own.

The launcher (`inrank.gpt2.launch`) has prepared the directory; under torchrun the launcher itself calls `run_training`.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inrank.gpt2.checkpoints import Progress
from inrank.gpt2.evaluation import mean_loss
from inrank.gpt2.models import BYTES, parameters_of, ranks_of
from inrank.gpt2.results import Result
from inrank.gpt2.results_table import row_text
from inrank.gpt2.settings import Settings
from inrank.gpt2.text import TOKENIZER_FILE, open_corpus
from inrank.gpt2.trainer_setup import is_main_process, wait_for_all
from inrank.gpt2.training import Training, read_factorization, train
from inrank_monitor.console import use_any_terminal

MODEL_DIR = "model"


def run_training(
    directory: Path, device: str = "auto", *, quiet: bool = False, every: int | None = None
) -> Result | None:
    """Train from wherever the directory says it got to, save the model, and measure it.

    Args:
        directory: of the training, with its `options.json`; beside it lie the tokens.
        device: `auto`, `cpu` or `cuda`.
        quiet: print nothing.
        every: steps between snapshots of the run. Default: the tracker chooses, by its overhead.

    Returns:
        What is also in results.json; None on other processes than the main one.

    Raises:
        OptionError, DemoError: the directory's options or the tokens cannot be read.
    """
    settings = Settings.read(directory)
    training = Training(directory, settings, open_corpus(directory.parent / settings.corpus), device, quiet, every)
    model, progress = train(training)
    result = None
    if is_main_process():
        model.save_pretrained(directory / MODEL_DIR)  # type: ignore[operator]
        tokenizer = training.corpus.directory / TOKENIZER_FILE
        (directory / MODEL_DIR / TOKENIZER_FILE).write_bytes(tokenizer.read_bytes())
        result = _measure(training, model, progress)
        result.write(directory)
        if not quiet:
            print(f"\n{row_text(result)}\n", flush=True)
    wait_for_all()
    return result


def _measure(training: Training, model: nn.Module, progress: Progress) -> Result:
    settings = training.settings
    loss = mean_loss(model, training.corpus.test_windows(settings.context), settings.batch_size)
    ranks = ranks_of(model)
    null = None if settings.method == "baseline" or settings.dense_first else settings.null_ranks()
    parameters = parameters_of(model)
    device = next(model.parameters()).device
    return Result(
        method=settings.method,
        seed=settings.seed,
        perplexity=math.exp(min(loss, 700)),
        rank=sum(ranks.values()) / len(ranks),
        null_rank=sum(null.values()) / len(null) if null else None,
        runtime=progress.seconds,
        peak_memory=progress.peak_memory,
        model_size=parameters * BYTES[settings.precision],
        parameters=parameters,
        ranks=ranks,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        settings=asdict(settings),
        factorization=read_factorization(training.directory),
        finished=time.time(),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one training: 0, 2 after bad input, 130 if interrupted."""
    use_any_terminal()
    parser = argparse.ArgumentParser(prog="inrank train")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        run_training(options.directory, options.device, quiet=options.quiet)
    except ValueError as error:
        from inrank.gpt2.option_checks import OptionError
        from inrank_monitor.demo.text import DemoError

        if not isinstance(error, OptionError | DemoError):
            raise
        print(f"inrank train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt_once(number: int, frame: Any) -> None:
    """A terminal sends Ctrl-C to the launcher and to us, and the launcher passes its own on: one of them is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
