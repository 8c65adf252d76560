"""The options of `inrank train`: one dataclass, from which the command line is made.

What an option is where it is not given depends on the size of the model and on the text; `inrank.gpt2.settings` works
that out.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from inrank.demand import ALLOCATIONS, widths_from
from inrank.gpt2.models import parse_size
from inrank.gpt2.option_checks import DENSE_FIRST, METHODS, OptionError, check, check_counts, flag_of
from inrank_monitor.runs import local_name

_HELP = {
    "baseline": "dense",
    DENSE_FIRST: "dense until --factorize-at, then U V of --budget",
    "inrank": "Algorithm 2 to the end",
    "inrank-efficient": "Algorithm 3",
    "fixed-rank": "U V from the start, by an SVD of W0",
    "reference": "what the published code does: no W0, factors at full scale",
}
_SMALL = "4x128"  # with the defaults below, a method takes a minute or so on two cores

WITH_WIDTHS = ("baseline",)  # methods whose MLPs may be narrower


def _option(default: Any, group: str, text: str, **keywords: Any) -> Any:
    """A field of `TrainOptions`: its group in --help, its text, and what argparse shall know."""
    return field(default=default, metadata={"group": group, "help": text, "argparse": keywords})


def _what(default: Any, text: str, **keywords: Any) -> Any:
    return _option(default, "what to train", text, **keywords)


def _rank(default: Any, text: str, **keywords: Any) -> Any:
    return _option(default, "ranks", text, **keywords)


def _factors(default: Any, text: str, **keywords: Any) -> Any:
    return _option(default, DENSE_FIRST, text, **keywords)


def _recipe(default: Any, text: str, **keywords: Any) -> Any:
    return _option(default, "recipe, the same for every method", text, **keywords)


def _where(default: Any, text: str, **keywords: Any) -> Any:
    return _option(default, "where", text, **keywords)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `inrank train` trains, on what and where; the help texts say what each is.

    Raises:
        OptionError: an option out of range, or two that contradict each other.
    """

    size: str = _what(_SMALL, "small, medium, large, or LAYERSxWIDTH", metavar="SIZE")
    method: tuple[str, ...] = _what(
        METHODS,
        "one or more of " + "; ".join(f"{name} ({text})" for name, text in _HELP.items()) + " (default: all)",
        choices=METHODS,
        nargs="+",
        metavar="METHOD",
    )
    seed: tuple[int, ...] = _what((0,), "of weights, dropout and order of the data; one training for each", nargs="+")
    text: tuple[str, ...] = _what(
        (),
        "text files, .parquet files with a column 'text', or wikitext-103, through the datasets library "
        "(default: Python's own help texts)",
        nargs="+",
        metavar="FILE",
    )
    test_text: str | None = _what(
        None, "to compute the perplexity on (default: the last tenth of the text, held out)", metavar="FILE"
    )
    vocabulary: int | None = _what(
        None,
        "tokens that the byte-level BPE, which is trained on the text, may learn "
        "(default: 2048; 50257 for small, medium, large)",
    )
    tokenizer: str | None = _what(None, "a tokenizer.json, or a directory with one, in place of that", metavar="FILE")
    context: int | None = _what(None, "tokens a sequence (default: 128; 1024 for small, medium, large)")

    d_ff: tuple[str, ...] | None = _what(
        None,
        "hidden units of the MLPs, of --method baseline alone: one number for all blocks, one a block, or the file of "
        "an inrank.WidthPlan: --d-ff 128, --d-ff 270 64 64 63, --d-ff plan.json (default: 4 × the width)",
        nargs="+",
        metavar="N",
    )

    threshold: float = _rank(0.9, "explained ratio that a rank must reach")
    buffer_rank: int | None = _rank(
        None, "columns that are trained beyond the rank (default: width/8; 100 for small, medium, large)"
    )
    initial_rank: int = _rank(2, "rank at the start")
    every: int = _rank(25, "steps between two checks of the ranks; for reference, calls of forward")
    definition: str = _rank(
        "paper",
        "of the explained ratio: paper (eq. 7) or reference (the published code)",
        choices=("paper", "reference"),
    )
    phase_steps: int | None = _rank(
        None,
        "T of Algorithm 3, the step after which ranks are fixed and W0 goes (default: one epoch, at most a quarter "
        "of the steps)",
    )
    gain: str = _rank(
        "match",
        "kappa of W = W0 + kappa U V: match, so that Adam moves W as far as in dense training, or a number; 1 is the "
        "paper's parametrisation, and always that of reference",
        metavar="KAPPA",
    )
    gradient_init: bool = _rank(True, "start from random factors, not from the SVD of the first gradient (Algorithm 2)")
    rank: str | None = _rank(
        None,
        "of fixed-rank: a number, or null for each layer's null rank (default: the ranks that inrank-efficient ended "
        "with in the same --output, else null)",
        metavar="RANK",
    )

    factorize_at: float = _factors(
        0.25,
        "share of the steps, or from 1 on the step itself, after which weights become factors: --factorize-at 0.1, "
        "--factorize-at 100",
    )
    budget: float = _factors(0.45, "parameters of all factors, as a share of the MLP weights': --budget 0.15")
    allocation: str = _factors(
        "demand",
        "how the budget is shared out: demand (directions that the loss asks for), uniform (one rank), energy (the "
        "same share of every weight's norm), loss (by ranks that the loss confirms): --allocation uniform",
        choices=ALLOCATIONS,
    )
    factor_lr: float = _factors(1.0, "learning rate of the factors, times --lr: --factor-lr 2")

    steps: int | None = _recipe(None, "optimizer steps (default: 400; 100 epochs for small, medium, large)")
    epochs: float | None = _recipe(None, "passes over the text, in place of --steps")
    batch_size: int | None = _recipe(
        None, "sequences that a device takes at once (default: 8; 8, 4, 2 for small, medium, large)"
    )
    accumulate: int | None = _recipe(
        None, "backward passes a step (default: 1; to an effective batch of 512 for small, medium, large)"
    )
    lr: float | None = _recipe(
        None, "peak learning rate of AdamW, cosine to 0 (default: 1e-3; Table 4's 6e-4, 1.5e-4, 1.5e-4)"
    )
    weight_decay: float = _recipe(0.1, "of AdamW")
    warmup: float = _recipe(0.01, "share of the steps in which the learning rate rises")
    precision: str = _recipe(
        "auto",
        "fp32, fp16, bf16, or auto: fp32, but on CUDA fp16 for small (Table 4)",
        choices=("auto", "fp32", "fp16", "bf16"),
    )

    output: str = _where("runs/gpt2", "directory; each training's is DIR/METHOD-seed-S", metavar="DIR")
    device: str = _where("auto", "cpu, cuda or cuda:N (default: cuda where there is one)")
    checkpoint_every: int | None = _where(None, "steps between checkpoints (default: a twentieth, at most 200)")
    resume: bool = _where(False, "skip what is finished, go on with what was interrupted, with the options kept there")
    overwrite: bool = _where(False, "delete these methods' and seeds' trainings in --output and start again")
    quiet: bool = _where(False, "print nothing but errors and the table")

    def __post_init__(self) -> None:
        check_counts(self)
        try:
            object.__setattr__(self, "output", local_name(self.output, "--output"))
        except ValueError as error:
            raise OptionError(str(error)) from None
        try:
            parse_size(self.size)
        except ValueError as error:
            raise OptionError(f"--{error}") from None
        if self.d_ff is not None:
            self._settle_widths(self.d_ff)
        check(self)

    def _settle_widths(self, given: tuple[str, ...]) -> None:
        """Put numbers, one a block, in the place of a file or of one number: a resumption needs no file."""
        if others := [method for method in self.method if method not in WITH_WIDTHS]:
            raise OptionError(
                f"--d-ff goes with --method {' '.join(WITH_WIDTHS)} alone, not with {', '.join(others)}: the size of "
                "their MLPs comes from ranks"
            )
        try:
            widths = widths_from(given, parse_size(self.size).layers)
        except (OSError, ValueError) as error:
            raise OptionError(f"--d-ff {error}") from None
        object.__setattr__(self, "d_ff", tuple(map(str, widths)))

    @property
    def widths(self) -> list[int] | None:
        """`d_ff` as numbers, one a block."""
        return None if self.d_ff is None else [int(width) for width in self.d_ff]

    def kept(self) -> dict[str, Any]:
        """The options that a resumption takes up, files by absolute path; JSON."""
        once = ("output", "device", "resume", "overwrite", "quiet")
        kept = {option.name: getattr(self, option.name) for option in fields(self) if option.name not in once}
        for name in ("test_text", "tokenizer"):
            kept[name] = None if kept[name] is None else str(Path(kept[name]).resolve())
        kept["text"] = [str(Path(path).resolve()) if Path(path).exists() else path for path in self.text]
        return kept

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TrainOptions:
        """The options from parsed arguments or JSON, where tuples are lists."""
        names = {option.name for option in fields(cls)}
        chosen: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items() if n in names}
        return cls(**chosen)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; one that is not given stays absent, so that a resumed training keeps its own."""
    groups: dict[str, Any] = {}
    for option in fields(TrainOptions):
        name = option.metadata["group"]
        group = groups.setdefault(name, None) or parser.add_argument_group(name)
        groups[name] = group
        flag, text = flag_of(option.name), option.metadata["help"]
        keywords: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, **option.metadata["argparse"]}
        kind = str(option.type).removesuffix(" | None").removeprefix("tuple[").removesuffix(", ...]")
        if kind == "bool":
            flag = flag.replace("--", "--no-") if option.default else flag
            keywords["action"] = "store_false" if option.default else "store_true"
        else:
            keywords["type"], metavar = {"int": (int, "N"), "float": (float, "X"), "str": (str, None)}[kind]
            if "choices" not in keywords:
                keywords.setdefault("metavar", metavar or option.name.upper())
            default = " ".join(map(str, option.default)) if isinstance(option.default, tuple) else option.default
            text += "" if "(default" in text or option.default is None else f" (default: {default})"
        group.add_argument(flag, help=text.replace("%", "%%"), **keywords)
