"""`inrank train`: one process a training, one after the other, and the table at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inrank.gpt2.option_checks import OptionError
from inrank.gpt2.options import TrainOptions
from inrank.gpt2.preparation import Planned, has_cuda, prepare, say
from inrank.gpt2.results import RESULTS_FILE, Result, compare, find_results
from inrank.gpt2.results_table import table_text
from inrank.gpt2.settings import OPTIONS_FILE, chosen_ranks, under_torchrun
from inrank_monitor.console import typed

# An interrupt while the libraries are being imported is one like any other.
_PROCESS = """
try:
    from inrank.gpt2.training_process import main
    raise SystemExit(main())
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def launch(given: Mapping[str, Any]) -> int:
    """Train every method and seed that is asked for, then print the table.

    Args:
        given: options of `TrainOptions` as given; with `resume` the others are those of the last time.

    Returns:
        0; 1 if a training failed; 130 if interrupted.

    Raises:
        OptionError, DemoError: an option, the text or a directory will not do; nothing was touched.
    """
    options = _with_kept(given)
    if under_torchrun():
        return _launch_distributed(options)
    planned = prepare(options)
    with _terminated_as_interrupted():
        try:
            for place, training in enumerate(planned, 1):
                if not _is_finished(training.directory):
                    say(options, f"{training.directory.name} ({place} of {len(planned)})")
                    if code := _run(start(training), options):
                        return _failed(code, training, options)
        except KeyboardInterrupt:
            print(f"\nStopped. Go on with: {_resume_command(options)}", file=sys.stderr)
            return 130
    print(table_text(compare(find_results([options.output]))))
    say(options, f"\nDashboard    {typed('inrank-monitor', 'dashboard', options.output)}")
    say(options, f"Table again  {typed('inrank', 'compare', options.output)}")
    return 0


def _with_kept(given: Mapping[str, Any]) -> TrainOptions:
    options = TrainOptions.of(given)
    file = Path(options.output) / OPTIONS_FILE
    if not (options.resume and file.is_file()):
        return options
    try:
        return TrainOptions.of({**json.loads(file.read_text(encoding="utf-8")), **given})
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"{file} cannot be read ({error}); give the options again") from None


def start(training: Planned) -> Path:
    """Make the directory of a training, unless it was begun before; fixed ranks are settled now."""
    directory, settings = training.directory, training.settings
    if not (directory / OPTIONS_FILE).exists():
        if settings.method == "fixed-rank":
            efficient = directory.with_name(f"inrank-efficient-seed-{settings.seed}")
            known = Result.read(efficient).ranks if _is_finished(efficient) else None
            settings = replace(settings, ranks=chosen_ranks(settings, known))
        directory.mkdir(parents=True, exist_ok=True)
        settings.write(directory)
    return directory


def _is_finished(directory: Path) -> bool:
    return (directory / RESULTS_FILE).is_file()


def _run(directory: Path, options: TrainOptions) -> int:
    """One training in a process of its own; its exit code."""
    kind, _, number = options.device.partition(":")
    command = [sys.executable, "-c", _PROCESS, str(directory), "--device", kind]
    process = subprocess.Popen([*command, *(["--quiet"] if options.quiet else [])], env=_environment(number))
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def _environment(number: str) -> dict[str, str]:
    """With one CUDA device to be seen, the N-th of those that we see."""
    environment = dict(os.environ)
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if number:
        environment["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible else number
    return environment


def _failed(code: int, training: Planned, options: TrainOptions) -> int:
    if code in (2, 130):  # it has said why
        return code
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    print(f"inrank train: {training.directory.name} {how}; go on with: {_resume_command(options)}", file=sys.stderr)
    return 1


def _launch_distributed(options: TrainOptions) -> int:
    """Under torchrun: this process is one of several that train together."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    from inrank.gpt2.trainer_setup import on_main_process
    from inrank.gpt2.training_process import run_training

    if len(options.method) * len(options.seed) > 1:
        raise OptionError("under torchrun give one --method and one --seed at a time; then inrank compare")
    directory = Path(options.output) / f"{options.method[0]}-seed-{options.seed[0]}"
    PartialState(cpu=not has_cuda(options.device))
    on_main_process(lambda: [start(training) for training in prepare(options)])
    if not _is_finished(directory):
        run_training(directory, options.device, quiet=options.quiet)
    torch.distributed.destroy_process_group()
    return 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the training as Ctrl-C does, and not this process alone."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _resume_command(options: TrainOptions) -> str:
    return typed("inrank", "train", "--output", options.output, "--resume")
