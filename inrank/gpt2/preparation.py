"""Before `inrank train` trains: every check, the tokens, and what is to be deleted.

Nothing is deleted or begun before everything is checked, and nothing deleted but what a training of ours wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch

from inrank.gpt2.models import parameter_count, parse_size
from inrank.gpt2.option_checks import OptionError
from inrank.gpt2.options import TrainOptions
from inrank.gpt2.results import RESULTS_FILE
from inrank.gpt2.settings import OPTIONS_FILE, Settings, bpe_vocabulary, settings_for
from inrank.gpt2.text import Corpus, make_corpus, read_texts
from inrank_monitor.console import typed
from inrank_monitor.runs import (
    LOCK_FILE,
    NOTES_FILE,
    RUN_FILE,
    SCHEMAS,
    TENSORBOARD_DIR,
    WEIGHTS_FILE,
    WRITER_FILE,
    is_locked,
    write_json,
)

_OWN_FILES = (  # a directory that holds anything else is never deleted
    *(f"{name}*" for name in (RUN_FILE, WEIGHTS_FILE, OPTIONS_FILE, RESULTS_FILE, "factorization.json")),  # and .tmp
    f"{NOTES_FILE}*",
    *(f"{table}-*.arrows" for table in SCHEMAS),
    LOCK_FILE,
    WRITER_FILE,
    TENSORBOARD_DIR,
    "model",
    "checkpoints*",
)


@dataclass(frozen=True)
class Planned:
    """One training that is to be run."""

    directory: Path
    settings: Settings


def prepare(options: TrainOptions) -> list[Planned]:
    """Check everything, tokenize the text, delete what is to be overwritten, and keep the options.

    Raises:
        OptionError, DemoError: as `launch`.
    """
    on_cuda = has_cuda(options.device)
    texts = read_texts(options.text, options.test_text)
    output = Path(options.output)
    names = [(method, seed) for seed in options.seed for method in options.method]
    directories = [output / f"{method}-seed-{seed}" for method, seed in names]
    for directory in directories:
        _check_directory(directory, options)
    was_there = output.exists()
    tokens_before = set(output.glob("tokens-*")) if was_there else set()
    try:
        corpus = make_corpus(output, texts, bpe_vocabulary(options), options.tokenizer)
    except OSError as error:
        raise OptionError(
            f"--output must be a directory that can be written, got {options.output!r}: {error}"
        ) from None
    try:
        planned = []
        for (method, seed), directory in zip(names, directories, strict=True):
            settings = settings_for(options, method, seed, corpus, on_cuda=on_cuda)
            if options.resume and (directory / OPTIONS_FILE).exists():
                kept = Settings.read(directory)
                kept.check_same(settings, directory)
                settings = kept
            planned.append(Planned(directory, settings))
    except OptionError:
        if corpus.directory not in tokens_before:
            shutil.rmtree(output if not was_there else corpus.directory)
        raise
    for directory in directories if options.overwrite else []:
        _delete(directory)
    write_json(output / OPTIONS_FILE, options.kept())
    say(options, _describe(options, planned, corpus, texts.name))
    return planned


def has_cuda(device: str) -> bool:
    """Whether the training runs on CUDA.

    Raises:
        OptionError: there is no such device.
    """
    if device == "cpu":
        return False
    kind, _, number = device.partition(":")
    if device != "auto" and (kind != "cuda" or (number and not number.isdecimal())):
        raise OptionError(f"--device must be auto, cpu, cuda or cuda:N, got {device!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "auto" and int(number or 0) >= count:
        raise OptionError(f"--device must be a device of this machine, got {device!r}: CUDA devices here: {count}")
    return count > 0


def _check_directory(directory: Path, options: TrainOptions) -> None:
    """Refuse a directory that a new training would damage, or another process writes; nothing is changed."""
    if directory.parent.exists() and not directory.parent.is_dir():
        raise OptionError(f"--output must be a directory, got {str(directory.parent)!r}, which is a file")
    present = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    if directory.exists() and not directory.is_dir():
        raise OptionError(f"{directory} is a file; choose another --output")
    if not present:
        return
    if is_locked(directory):
        raise OptionError(f"another process is writing {directory}; stop it, or choose another --output")
    if OPTIONS_FILE not in present:
        raise OptionError(f"{directory} holds {present[0]!r} and no training of ours; choose another --output")
    if not options.resume and not options.overwrite:
        raise OptionError(
            f"{directory} holds a training already: go on with it by --resume, delete it by --overwrite, "
            "or choose another --output"
        )
    foreign = [name for name in present if not any(fnmatch(name, pattern) for pattern in _OWN_FILES)]
    if foreign and options.overwrite:
        raise OptionError(f"{directory} will not be deleted: it holds {foreign[0]!r}, which is no part of a training")


def _delete(directory: Path) -> None:
    """A training; options.json goes last, by which a deletion that was cut short is known for what it is."""
    present = list(directory.iterdir()) if directory.is_dir() else []
    for path in sorted(present, key=lambda path: path.name == OPTIONS_FILE):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def say(options: TrainOptions, text: str) -> None:
    """Print, unless told to be quiet."""
    if not options.quiet:
        print(text, flush=True)


def _factors_text(planned: Sequence[Planned]) -> list[str]:
    for settings in [training.settings for training in planned if training.settings.dense_first][:1]:
        rate = "" if settings.factor_lr == 1 else f", at {settings.factor_lr:g} times the learning rate"
        return [
            f"       {settings.method}: after step {settings.phase_steps} factors of {settings.budget:.3g} of the MLP "
            f"weights, by {settings.allocation}{rate}"
        ]
    return []


def _describe(options: TrainOptions, planned: Sequence[Planned], corpus: Corpus, name: str) -> str:
    settings = planned[0].settings
    size = parse_size(options.size)
    count = parameter_count(size.name, vocabulary=settings.vocabulary, context=settings.context, widths=settings.d_ff)
    narrow = "" if settings.d_ff is None else f", d_ff {' '.join(map(str, settings.d_ff))}"
    return "\n".join(
        [
            f"Text   {name}: {len(corpus.train):,} tokens to train on, {len(corpus.test):,} to test on",
            f"Model  GPT-2 from scratch: {count:,} parameters, layers {size.layers}, width {size.width}, "
            f"heads {size.heads}, vocabulary {settings.vocabulary}{narrow}",
            f"Steps  {settings.steps} of {settings.effective_batch} × {settings.context} tokens, lr {settings.lr:g}, "
            f"{settings.precision}; T = {settings.phase_steps}, b = {settings.buffer_rank}, α = {settings.threshold:g}",
            *_factors_text(planned),
            f"Runs   {options.output}; watch them live with: {typed('inrank-monitor', 'dashboard', options.output)}",
            "",
        ]
    )
