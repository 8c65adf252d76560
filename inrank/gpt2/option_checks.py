"""What `inrank train` refuses: options out of range, and those that contradict each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inrank.demand import ALLOCATIONS, Room, check_budget
from inrank.gpt2.models import parse_size
from inrank.layers import break_even_rank, check_gain
from inrank_monitor.demo.text import MIN_VOCABULARY

if TYPE_CHECKING:
    from inrank.gpt2.options import TrainOptions

DENSE_FIRST = "dense-then-low-rank"
METHODS = ("baseline", DENSE_FIRST, "inrank", "inrank-efficient", "fixed-rank", "reference")


class OptionError(ValueError):
    """Something the user can mend: one line that says what was required and what was got."""


def flag_of(name: str) -> str:
    """The command-line option of a field."""
    return f"--{name.replace('_', '-')}"


def check_counts(options: TrainOptions) -> None:
    """Numbers that are wrong whatever the model."""
    counts = ("context", "steps", "phase_steps", "batch_size", "accumulate", "initial_rank", "buffer_rank", "every")
    lowest = {"vocabulary": MIN_VOCABULARY, "checkpoint_every": 1} | dict.fromkeys(counts, 1) | {"context": 2}
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise OptionError(f"{flag_of(name)} must be at least {least}, got {value}")
    if min(options.seed, default=0) < 0:
        raise OptionError(f"--seed must be at least 0, got {min(options.seed)}")
    for name in ("lr", "epochs"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise OptionError(f"--{name} must be above 0 and finite, got {value}")
    if not 0 < options.threshold <= 1:
        raise OptionError(f"--threshold must be above 0 and at most 1, got {options.threshold}")
    if not 0 <= options.weight_decay < math.inf:
        raise OptionError(f"--weight-decay must be at least 0 and finite, got {options.weight_decay}")
    if not 0 <= options.warmup < 1:
        raise OptionError(f"--warmup must be at least 0 and below 1, got {options.warmup}")


def check(options: TrainOptions) -> None:
    """What depends on the model's size, on the methods and on one another."""
    _check_ranks(options, parse_size(options.size).width)
    _check_factors(options)
    for name in ("method", "seed"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise OptionError(f"--{name} must name each of its values once, got {' '.join(map(str, values))}")
    if unknown := [name for name in options.method if name not in METHODS]:
        raise OptionError(f"--method must be among {', '.join(METHODS)}, got {unknown[0]}")
    if options.tokenizer is not None and options.vocabulary is not None:
        raise OptionError("--tokenizer brings its own vocabulary; give it or --vocabulary")
    if options.steps is not None and options.epochs is not None:
        raise OptionError("give --steps or --epochs, not both")
    if options.resume and options.overwrite:
        raise OptionError("--resume goes on with a training and --overwrite deletes it; give one of them")


def _check_ranks(options: TrainOptions, width: int) -> None:
    for name, most in (("initial_rank", break_even_rank(4 * width, width)), ("buffer_rank", width)):
        if (getattr(options, name) or 1) > most:
            raise OptionError(
                f"{flag_of(name)} must be in 1..{most} for --size {options.size}, got {getattr(options, name)}"
            )
    if options.rank not in (None, "null") and not (options.rank.isdecimal() and 1 <= int(options.rank) <= width):
        raise OptionError(f"--rank must be null or in 1..{width} for --size {options.size}, got {options.rank}")
    try:
        check_gain("match" if options.gain == "match" else float(options.gain))
    except ValueError:
        raise OptionError(f"--gain must be match or a positive number, got {options.gain}") from None


def _check_factors(options: TrainOptions) -> None:
    at = options.factorize_at
    if not (0 < at < 1 or (1 <= at < math.inf and at == int(at))):
        raise OptionError(f"--factorize-at must be a share in (0, 1) or a step, got {at:g}")
    if not 0 < options.factor_lr < math.inf:
        raise OptionError(f"--factor-lr must be above 0 and finite, got {options.factor_lr}")
    if options.allocation not in ALLOCATIONS:
        raise OptionError(f"--allocation must be among {', '.join(ALLOCATIONS)}, got {options.allocation}")
    try:
        check_budget(options.budget)
        if DENSE_FIRST in options.method:
            Room(parse_size(options.size).mlp_shapes, options.budget)
    except ValueError as error:
        raise OptionError(f"--{error}") from None
