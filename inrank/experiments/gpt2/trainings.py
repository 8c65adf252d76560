"""GPT-2 trainings that the tables and Figures 1 and 4 to 7 share: `inrank train`'s own, under names of their own.

At tiny scale three small models stand for GPT-2 small, medium and large; at paper scale they are these three with the
paper's recipe (Table 4), which needs a GPU.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inrank.experiments.corpus import shared_corpus, text_settings
from inrank.gpt2.models import PAPER_VOCABULARY
from inrank.reproduction.experiment import ExperimentError, Outcome, Outcomes, Request, Training
from inrank.reproduction.verdicts import Sample

MODELS = ("small", "medium", "large")
THRESHOLDS = (0.8, 0.85, 0.9)
SIZES = {
    "smoke": dict(zip(MODELS, ("1x16", "2x16", "2x32"), strict=True)),
    "tiny": dict(zip(MODELS, ("2x64", "3x96", "4x128"), strict=True)),
    "small": dict(zip(MODELS, ("4x256", "6x384", "8x512"), strict=True)),
    "paper": dict(zip(MODELS, MODELS, strict=True)),
}
_RECIPES: dict[str, dict[str, Any]] = {  # options of `inrank train`; at paper scale its own defaults are the paper's
    "smoke": {"vocabulary": 300, "context": 16, "steps": 6, "batch_size": 4, "every": 2, "phase_steps": 3},
    "tiny": {"vocabulary": 1024, "context": 64, "steps": 600, "batch_size": 8, "every": 10},
    "small": {"vocabulary": 8192, "context": 256, "steps": 3000, "batch_size": 16, "every": 25},
    "paper": {"vocabulary": PAPER_VOCABULARY},
}
_IMPORTS = ("inrank.gpt2.training_process", "transformers.models.gpt2.modeling_gpt2", "torch.utils.tensorboard")
HALF = {"cpu": "bf16", "cuda": "fp16"}  # 16 bits: fp16 as in Table 5, and what a CPU has in its place


def can_train(request: Request) -> bool:
    """Whether this scale's GPT-2 can be trained here: the paper's sizes need a GPU."""
    return request.scale != "paper" or request.device != "cpu"


@dataclass(frozen=True)
class Variant:
    """In what a training differs from its method's usual one.

    Attributes:
        threshold: α of the methods that grow.
        rank: of fixed-rank; a number, `null`, or None for the ranks that inrank-efficient ended with.
        half: in 16 bits (`HALF`).
        gain: κ of `inrank train`; "1" is the paper's literal parametrization.
    """

    threshold: float = 0.9
    rank: int | str | None = None
    half: bool = False
    gain: str = "match"

    @property
    def suffix(self) -> str:
        """Of a training's name; empty for the usual one."""
        parts = (
            (f"-alpha-{self.threshold:g}", self.threshold != 0.9),
            (f"-rank-{self.rank}", self.rank is not None),
            ("-half", self.half),
            (f"-gain-{self.gain}", self.gain != "match"),
        )
        return "".join(part for part, is_named in parts if is_named)


USUAL = Variant()


def gpt2(request: Request, model: str, method: str, seed: int, variant: Variant = USUAL) -> Training:
    """One training.

    Args:
        request: scale, text, device.
        model: `small`, `medium`, `large`: the paper's, or what stands for it.
        method: of `inrank train`.
        seed: of weights, dropout and order of the data.
        variant: in what it differs from the usual.
    """
    recipe, rank = _RECIPES[request.scale], variant.rank
    copied = method == "fixed-rank" and rank is None
    source = gpt2(request, model, "inrank-efficient", seed) if copied else None
    options = {
        **{name: value for name, value in recipe.items() if name != "vocabulary"},
        "size": SIZES[request.scale][model],
        "threshold": variant.threshold,
        "rank": None if rank is None else str(rank),
        "gain": variant.gain,
        **({"precision": HALF["cpu" if request.device == "cpu" else "cuda"]} if variant.half else {}),
    }
    settings = {
        "method": method,
        "seed": seed,
        "options": options,
        "corpus": text_settings(request, recipe["vocabulary"]),
        "ranks_from": source.name if source else None,
    }
    name = f"gpt2-{model}-{method}{variant.suffix}-seed-{seed}"
    return Training(name, train_gpt2, settings, (source.name,) if source else (), _IMPORTS)


def over_seeds(request: Request, model: str, method: str, variant: Variant = USUAL) -> list[Training]:
    """The same training for every seed of the request; none where it cannot be trained here."""
    if not can_train(request):
        return []
    return [gpt2(request, model, method, seed, variant) for seed in request.seeds]


def train_gpt2(directory: Path, settings: Mapping[str, Any], device: str) -> dict[str, float]:
    """Train as `inrank train` does, from wherever the directory says it got to.

    Returns:
        The numbers of `inrank.gpt2.results.Result`: perplexity, rank, null_rank (NaN for a dense model), runtime in
        seconds, peak_memory and model_size in bytes, parameters, and steps, phase_steps and buffer_rank.

    Raises:
        ExperimentError: the directory holds a training with other options.
    """
    from inrank.gpt2.options import TrainOptions
    from inrank.gpt2.settings import OPTIONS_FILE, Settings, settings_for
    from inrank.gpt2.training_process import run_training

    corpus = shared_corpus(directory.parent, **settings["corpus"])
    options = TrainOptions(**settings["options"])
    wanted = settings_for(options, settings["method"], settings["seed"], corpus, on_cuda=device != "cpu")
    if settings["method"] == "fixed-rank":
        wanted = _with_ranks(wanted, directory, settings["ranks_from"])
    if not (directory / OPTIONS_FILE).is_file():
        wanted.write(directory)
    elif Settings.read(directory) != wanted:
        raise ExperimentError(f"{directory} holds an unfinished training with other options: delete it")
    every = None if wanted.shape.of_paper else wanted.every  # at each check of the ranks, after it: Figures 1, 5 to 7
    result = run_training(directory, device, quiet=True, every=every)
    assert result is not None
    for checkpoints in directory.glob("checkpoints*"):  # ten times the model that they led to, which is kept
        shutil.rmtree(checkpoints)
    numbers = {name: getattr(result, name) for name in _NUMBERS}
    numbers["null_rank"] = math.nan if result.null_rank is None else result.null_rank
    return numbers | {name: getattr(wanted, name) for name in ("steps", "phase_steps", "buffer_rank")}


_NUMBERS = ("perplexity", "rank", "runtime", "peak_memory", "model_size", "parameters")


def _with_ranks(wanted: Any, directory: Path, source: str | None) -> Any:
    from dataclasses import replace

    from inrank.gpt2.results import Result
    from inrank.gpt2.settings import chosen_ranks

    known = Result.read(directory.parent / source).ranks if source else None
    return replace(wanted, ranks=chosen_ranks(wanted, known))


def number(outcomes: Outcomes, trainings: Sequence[Training], name: str, label: str, form: str = ".4g") -> Sample:
    """A number that the trainings returned, one value a seed."""
    return Sample(label, [float(found(outcomes, training).numbers[name]) for training in trainings], form)


def found(outcomes: Outcomes, training: Training) -> Outcome:
    """The outcome of a training."""
    return outcomes[training.name]
