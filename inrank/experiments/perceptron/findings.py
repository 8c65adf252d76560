"""What Figures 3 and 15 both say of finished perceptrons: low rank or not, as statements, cells of a table, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from inrank.experiments.perceptron.training import HIDDEN, LAST, training
from inrank.reproduction.concentration import LOW_RANK, sample, share_above, stable_rank
from inrank.reproduction.experiment import Figure, Outcome, Outcomes, Request, Statement, Table
from inrank.reproduction.verdicts import Sample, all_of, is_below, is_less, spread
from inrank_monitor.figures import spectrum_evolution
from inrank_monitor.ranks import null_singular_values

HALF = "half of noise's"
LAYERS = {HIDDEN: "hidden layer", LAST: "last layer"}
IMAGES = {
    "images": "errors without structure on the same images",
    "centred": "errors without structure that sum to zero (no mean image)",
}
_NULLS = ("noise's", "images'", "centred images'")
CONCENTRATION_HEADS = ("values above σ₁/10", *_NULLS, "stable rank", *_NULLS)
NOTE = (
    "Values above σ₁/10: how many singular values end above a tenth of the strongest. Noise's: of a matrix without "
    "structure. Images': of an update whose errors have no structure, on the same images, so what the images' own "
    "spectrum gives whatever is learned (hidden layer only); centred images': the same without the mean image. ± over "
    "seeds."
)
Numbers = Mapping[str, Sequence[float]]


def names(request: Request, initialization: str, optimizer: str) -> list[str]:
    """Of the trainings of one kind, in the order of the seeds."""
    return [training(request.scale, initialization, optimizer, seed).name for seed in request.seeds]


def low_rank(outcomes: Outcomes, trainings: Sequence[str]) -> list[Statement]:
    """Whether the hidden layer's update ends with few strong values and a low stable rank, each beside noise."""
    share = sample("share above σ₁/10 over noise's", outcomes, trainings, "share_over_null", HIDDEN)
    stable = sample("stable rank over noise's", outcomes, trainings, "stable_rank_over_null", HIDDEN)
    return [is_below("share", share, LOW_RANK, HALF), is_below("stable rank", stable, LOW_RANK, HALF)]


def below_images(outcomes: Outcomes, kinds: Sequence[Sequence[str]], null: str) -> Statement:
    """Whether it is more concentrated than the images' own spectrum makes it, averaged over kinds of trainings.

    Args:
        outcomes: finished.
        kinds: for each kind its trainings, one a seed.
        null: a key of IMAGES.
    """
    parts = []
    for word, title in (("share", "share above σ₁/10"), ("stable_rank", "stable rank")):
        ours = [sample("", outcomes, trainings, word, HIDDEN).values for trainings in kinds]
        images = [numbers_of(outcomes, trainings, f"{null}_{word}") for trainings in kinds]
        first, second = (
            Sample(name, [fmean(values) for values in zip(*each, strict=True)])
            for name, each in (
                (title, ours),
                (f"{title} of the {null if null == 'images' else 'centred images'}'", images),
            )
        )
        parts.append(is_less(title, first, second))
    claim = f"Ours, not in the paper: the update is more concentrated than {IMAGES[null]} would make it"
    return all_of(claim, parts)


def size(outcome: Outcome, matrix: str) -> tuple[int, int]:
    """Rows and columns of a matrix."""
    table = outcome.tables.matrices
    return int(table["rows"].loc[matrix]), int(table["cols"].loc[matrix])


def concentration_numbers(outcomes: Outcomes, trainings: Sequence[str], matrix: str) -> Numbers:
    """By the columns of `CONCENTRATION_HEADS`, numbered since two are named alike: a value a seed."""
    rows, cols = size(outcomes[trainings[0]], matrix)
    null, count = null_singular_values(rows, cols), min(rows, cols)
    numbers: dict[str, Sequence[float]] = {
        "count": [count * value for value in sample("", outcomes, trainings, "share", matrix).values],
        "null_count": [count * share_above(null)],
        "images_count": [],
        "centred_count": [],
        "stable": sample("", outcomes, trainings, "stable_rank", matrix).values,
        "null_stable": [stable_rank(null)],
        "images_stable": [],
        "centred_stable": [],
    }
    if matrix == HIDDEN:
        for kind in IMAGES:
            numbers[f"{kind}_count"] = [count * share for share in numbers_of(outcomes, trainings, f"{kind}_share")]
            numbers[f"{kind}_stable"] = numbers_of(outcomes, trainings, f"{kind}_stable_rank")
    return numbers


def nulls_in_words(numbers: Numbers) -> str:
    """What noise and the images alone would give the hidden layer; for a reading."""
    parts = [f"noise of that shape {spread(numbers['null_count'])} and {spread(numbers['null_stable'])}"]
    parts += [
        f"{IMAGES[null]} {spread(numbers[f'{null}_count'])} and {spread(numbers[f'{null}_stable'])}" for null in IMAGES
    ]
    return "; ".join(parts)


def training_table(outcomes: Outcomes, kinds: Mapping[str, Sequence[str]]) -> Table:
    """How well each kind of training went, by its title."""
    rows = []
    for title, trainings in kinds.items():
        losses = [spread(numbers_of(outcomes, trainings, f"{name}_loss")) for name in ("start", "train", "test")]
        accuracies = [spread(numbers_of(outcomes, trainings, f"{name}_accuracy"), ".2%") for name in ("train", "test")]
        rows.append([title, *losses, *accuracies])
    heads = ("", "loss at the start", "training loss", "test loss", "training accuracy", "test accuracy")
    return Table("How well they learned", heads, rows, "Losses in nats an image, at the end. ± over seeds.")


def numbers_of(outcomes: Outcomes, trainings: Sequence[str], name: str) -> list[float]:
    """What the trainings returned under a name."""
    return [outcomes[training].numbers[name] for training in trainings]


def evolution(outcome: Outcome, matrix: str, title: str, more: str = "") -> Figure:
    """Each singular value of one matrix over one training.

    Args:
        outcome: the training.
        matrix: HIDDEN or LAST.
        title: of the figure, before the layer.
        more: a sentence for its conclusion.
    """
    spectra = outcome.tables.singular_values(matrix)
    rows, cols = size(outcome, matrix)
    values = spectra.iloc[-1].to_numpy(dtype=np.float64)
    null, count = null_singular_values(rows, cols), min(rows, cols)
    strong, of_null = share_above(values) * count, share_above(null) * count
    conclude = (
        f"{strong:.0f} of {count} values end above a tenth of the strongest, {of_null:.0f} would of noise; "
        f"stable rank {stable_rank(values):.1f}, of noise {stable_rank(null):.1f}."
    )
    return Figure(
        f"{title}, {LAYERS[matrix]}",
        spectrum_evolution(spectra),
        f"Each line is a singular value of the {LAYERS[matrix]}'s cumulative update ({rows}×{cols}) in one training "
        f"(seed {outcome.training.settings['seed']}); darker is stronger.",
        f"{conclude} {more}".strip(),
    )
