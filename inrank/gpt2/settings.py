"""What one training runs with: every option of `inrank train` worked out for one method, one seed and one text.

They lie in the training's directory (`options.json`), so that a resumption goes on with the same ones and a comparison
sees which trainings are alike.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from inrank.gpt2.models import PAPER_CONTEXT, PAPER_VOCABULARY, Size, parse_size
from inrank.gpt2.option_checks import DENSE_FIRST, OptionError, flag_of
from inrank.gpt2.options import TrainOptions
from inrank.gpt2.text import Corpus
from inrank.layers import Gain
from inrank_monitor.ranks import Definition, RankRule, null_rank
from inrank_monitor.runs import write_json

OPTIONS_FILE = "options.json"
TWO_PHASES = (DENSE_FIRST, "inrank-efficient", "reference")
EFFECTIVE_BATCH = 512  # sequences a step, section 6.3
_PAPER_LR = {"small": 6e-4, "medium": 1.5e-4, "large": 1.5e-4}  # Table 4
_PAPER_BATCH = {"small": 8, "medium": 4, "large": 2}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training.

    Attributes:
        method: one of `METHODS`.
        seed: of weights, dropout and order of the data.
        size: of the model, as for `gpt2.parse_size`.
        corpus: directory of the tokens, below the output directory.
        vocabulary: rows of the embedding.
        processes: of a distributed training.
        phase_steps: T; how many steps of the first phase, for a method of two phases.
        ranks: of fixed-rank, by layer name; None for the others.
        d_ff: hidden units of each block's MLP; None: 4 × the width.

    The other attributes are those of `TrainOptions`.
    """

    method: str
    seed: int
    size: str
    corpus: str
    vocabulary: int
    context: int
    steps: int
    phase_steps: int
    batch_size: int
    accumulate: int
    processes: int
    lr: float
    weight_decay: float
    warmup: float
    precision: str
    threshold: float
    initial_rank: int
    buffer_rank: int
    every: int
    definition: Definition
    gain: str
    gradient_init: bool
    factorize_at: float = 0.25  # these four are not in the options of earlier trainings
    budget: float = 0.45
    allocation: str = "demand"
    factor_lr: float = 1.0
    checkpoint_every: int
    rank: str | None
    ranks: dict[str, int] | None
    d_ff: list[int] | None = None  # earlier trainings have none

    @property
    def shape(self) -> Size:
        """The model's size."""
        return parse_size(self.size)

    @property
    def effective_batch(self) -> int:
        """Sequences a step, over all processes."""
        return self.batch_size * self.accumulate * self.processes

    @property
    def two_phases(self) -> bool:
        """Whether the model is plain U V after T, and dense or growing before."""
        return self.method in TWO_PHASES

    @property
    def rule_definition(self) -> Definition:
        """Of the explained ratio, for this method."""
        return "reference" if self.method == "reference" else self.definition

    @property
    def rank_rule(self) -> RankRule:
        """By which this method draws a rank from a spectrum."""
        return RankRule(self.threshold, self.buffer_rank, self.rule_definition)

    @property
    def steps_between_checks(self) -> int:
        """`every`; the published code counts calls of forward, of which a step makes as many as it accumulates."""
        return max(1, round(self.every / self.accumulate)) if self.method == "reference" else self.every

    @property
    def layer_gain(self) -> Gain:
        """κ of the layers; the published code has none."""
        if self.method == "reference":
            return 1.0
        return "match" if self.gain == "match" else float(self.gain)

    @property
    def dense_first(self) -> bool:
        """Whether the first phase is dense."""
        return self.method == DENSE_FIRST

    def null_ranks(self) -> dict[str, int]:
        """The rank of every MLP matrix to which the same rule grows factors that nobody trains."""
        rule = self.rank_rule
        return {
            name: null_rank(*shape, rule.threshold, rule.buffer_rank, rule.definition, "factors")
            for name, shape in self.shape.mlp_shapes.items()
        }

    def write(self, directory: Path) -> None:
        """Into the training's directory."""
        write_json(directory / OPTIONS_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Settings:
        """Those of a training.

        Raises:
            OptionError: the directory holds none, or a damaged file.
        """
        try:
            content = json.loads((directory / OPTIONS_FILE).read_text(encoding="utf-8"))
            return cls(**content)
        except (OSError, ValueError, TypeError) as error:
            raise OptionError(
                f"{directory / OPTIONS_FILE} cannot be read ({error}); start again by --overwrite"
            ) from None

    def check_same(self, now: Settings, directory: Path) -> None:
        """Refuse to go on under other settings than the training was started with.

        Raises:
            OptionError: something differs; everything that does is named.
        """
        here, there = asdict(now), asdict(self)
        words = {"corpus": "the text", "processes": "a number of processes of"}
        different = [
            f"{words.get(name, flag_of(name))} {there[name]} (now {here[name]})"
            for name in there
            if name != "ranks" and there[name] != here[name]  # they were settled when the training began
        ]
        if different:
            raise OptionError(f"{directory} was started with {', '.join(different)}: --resume keeps its options")


def under_torchrun() -> bool:
    """Whether this process is one of a distributed training."""
    return "LOCAL_RANK" in os.environ


def processes() -> int:
    """Of a distributed training; 1 otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1")) if under_torchrun() else 1


def bpe_vocabulary(options: TrainOptions) -> int:
    """Tokens at most of a BPE that is trained for these options."""
    return options.vocabulary or (PAPER_VOCABULARY if parse_size(options.size).of_paper else 2048)


def settings_for(options: TrainOptions, method: str, seed: int, corpus: Corpus, *, on_cuda: bool) -> Settings:
    """Work the options out.

    Args:
        options: as given.
        method: of this training.
        seed: of this training.
        corpus: the tokens.
        on_cuda: whether it runs there.

    Raises:
        OptionError: the text is too short, or numbers of steps contradict each other.
    """
    size, world = parse_size(options.size), processes()
    paper = size.of_paper
    context = options.context or (PAPER_CONTEXT if paper else 128)
    batch = options.batch_size or (_PAPER_BATCH[size.name] if paper else 8)
    accumulate = options.accumulate or (max(1, round(EFFECTIVE_BATCH / (batch * world))) if paper else 1)
    epoch = _steps_an_epoch(corpus, context, batch * world, accumulate)
    steps = options.steps or (
        400 if options.epochs is None and not paper else math.ceil(epoch * (options.epochs or 100))
    )
    phase = options.phase_steps or max(1, min(epoch, steps // 4))
    if method == DENSE_FIRST:
        phase = max(1, round(options.factorize_at * (steps if options.factorize_at < 1 else 1)))
    if phase >= steps and method in TWO_PHASES:
        flag = "--factorize-at" if method == DENSE_FIRST else "--phase-steps"
        raise OptionError(f"{flag} must be below the {steps} steps of the training, got {phase}")
    vocabulary = corpus.vocabulary
    if paper and options.vocabulary is None:
        vocabulary = max(vocabulary, PAPER_VOCABULARY)
    automatic = "fp16" if on_cuda and size.name == "small" else "fp32"
    precision = automatic if options.precision == "auto" else options.precision
    if precision == "fp16" and not on_cuda:
        raise OptionError("--precision fp16 needs a CUDA device; on the CPU there are fp32 and bf16")
    return Settings(
        method=method,
        seed=seed,
        size=size.name,
        corpus=corpus.directory.name,
        vocabulary=vocabulary,
        context=context,
        steps=steps,
        phase_steps=phase,
        batch_size=batch,
        accumulate=accumulate,
        processes=world,
        lr=options.lr or (_PAPER_LR[size.name] if paper else 1e-3),
        weight_decay=options.weight_decay,
        warmup=options.warmup,
        precision=precision,
        threshold=options.threshold,
        initial_rank=options.initial_rank,
        buffer_rank=options.buffer_rank or (100 if paper else min(100, max(1, size.width // 8))),
        every=options.every,
        definition=options.definition,  # type: ignore[arg-type]
        gain=options.gain,
        gradient_init=options.gradient_init,
        factorize_at=options.factorize_at,
        budget=options.budget,
        allocation=options.allocation,
        factor_lr=options.factor_lr,
        checkpoint_every=options.checkpoint_every or min(200, max(1, steps // 20)),
        rank=options.rank,
        ranks=None,
        d_ff=options.widths,
    )


def _steps_an_epoch(corpus: Corpus, context: int, batch: int, accumulate: int) -> int:
    blocks = len(corpus.train) // context
    if blocks < batch:
        raise OptionError(
            f"the text must give at least {batch} blocks of --context {context} tokens, one --batch-size, to train on; "
            f"got {blocks} from {corpus.name}"
        )
    if len(corpus.test) <= context:
        raise OptionError(
            f"the test text must give more than --context {context} tokens, got {len(corpus.test)}; "
            "take a longer text or less context"
        )
    return math.ceil(blocks // batch / accumulate)


def chosen_ranks(settings: Settings, efficient: Mapping[str, int] | None) -> dict[str, int]:
    """The ranks of fixed-rank by layer name: `--rank`, else those that inrank-efficient ended with, else null ranks."""
    if settings.rank is None and efficient is not None:
        return dict(efficient)
    null = settings.null_ranks()
    if settings.rank in (None, "null"):
        return null
    return dict.fromkeys(null, int(settings.rank))
