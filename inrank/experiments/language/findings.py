"""What the language models' runs say: samples, tables and figures that Figures 8 to 14 share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import pandas as pd
import plotly.graph_objects as go

from inrank.experiments.language.models import gates
from inrank.experiments.language.training import language_training
from inrank.reproduction.concentration import FRACTION, LOW_RANK, by_group, sample, share_above
from inrank.reproduction.experiment import Figure, Outcomes, Request, Statement, Table, Training
from inrank.reproduction.verdicts import Sample, is_less, spread
from inrank_monitor.figures import NEUTRAL, category, new_figure, spectrum_evolution
from inrank_monitor.ranks import null_singular_values

BODY = "body.*"  # all but the decoder, whose matrix has the vocabulary's size
SHARE, STABLE = "share_over_null", "stable_rank_over_null"
MEASURES = {SHARE: "share of values above a tenth of the strongest", STABLE: "stable rank"}
INTRODUCTION = "Share of singular values that rise above a tenth of the strongest, noise being 1: "
LEARNED = 0.1  # nats a token below what token frequencies alone give: less is not called learning here
WRITTEN = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM", "transformer": "Transformer"}


class Model:
    """One architecture, depth and variant over the seeds of a request.

    Args:
        request: for scale and seeds.
        architecture: as for `LanguageModel`.
        layers: of it.
        variant: as for `language_training`.
    """

    def __init__(self, request: Request, architecture: str, layers: int = 2, variant: str = "") -> None:
        self.architecture, self.layers = architecture, layers
        self.name = f"{WRITTEN[architecture]}, {layers} layers" + (f", {variant}" if variant else "")
        self.trainings: list[Training] = [
            language_training(request, architecture, layers, seed, variant) for seed in request.seeds
        ]
        self.runs = [training.name for training in self.trainings]

    def measured(self, outcomes: Outcomes, number: str, globs: str | Sequence[str] = BODY, what: str = "") -> Sample:
        """A number of `concentration` at the end, averaged over the matrices that match."""
        name = f"{self.name}, {what}" if what else self.name
        return sample(f"{name}, over noise's", outcomes, self.runs, number, globs)

    def loss(self, outcomes: Outcomes) -> Sample:
        """Held-out loss at the end, nats a token."""
        values = [float(outcomes[run].numbers["held_out_after"]) for run in self.runs]
        return Sample(f"held-out loss: {self.name}", values, ".3f")

    def learned(self, outcomes: Outcomes) -> bool:
        """Whether each seed's loss is below what token frequencies alone give, by `LEARNED`."""
        numbers = [outcomes[run].numbers for run in self.runs]
        return all(one["held_out_after"] < one["frequencies"] - LEARNED for one in numbers)


def trainings(models: Sequence[Model]) -> list[Training]:
    """Of all of them."""
    return [training for model in models for training in model.trainings]


def lifts_all(claim: str, measured: Sample) -> Statement:
    """The claim that all singular values rise visibly: at least half as many as noise's do."""
    return is_less(claim, Sample("half of noise's", [LOW_RANK] * len(measured.values)), measured)


def layer_globs(layers: Sequence[int]) -> list[str]:
    """Matrices of these recurrent layers, counted from 1 as in the paper's captions."""
    return [f"body.weight_??_l{layer - 1}*" for layer in layers]


def sentence(outcomes: Outcomes, model: Model, globs: str = BODY, what: str = "") -> str:
    """The share in words, of all matrices or of those that `what` names, and whether the model learned anything."""
    measured = model.measured(outcomes, SHARE, globs)
    value = fmean(measured.values)
    side = "below" if value < LOW_RANK else "above"
    text = f"{model.name}{', ' * bool(what)}{what}: {measured.text} ({side} half)"
    if not model.learned(outcomes):
        text += " (it has learned no more than how often each token comes, which needs few directions)"
    return text


def with_caveat(outcomes: Outcomes, models: Sequence[Model], statements: Sequence[Statement]) -> list[Statement]:
    """Statements about ranks; where one of their models has learned nothing, it is said how the verdict came about.

    A model that has only found out how often each token comes has moved its weights in few directions, whatever its
    architecture or depth.
    """
    stuck = [model.name for model in models if not model.learned(outcomes)]
    if not stuck:
        return list(statements)
    why = f"but {' and '.join(stuck)} learned no more than how often each token comes, which needs few directions"
    return [replace(one, why=f"{one.why}; {why}") for one in statements]


def gate_table(outcomes: Outcomes, model: Model) -> Table:
    """Each kind of matrix, averaged over the layers."""
    groups = {**gates(model.architecture), "all of these": BODY}
    return _concentration_table(outcomes, model, groups, f"{model.name}: each kind of matrix at the end")


def layer_table(outcomes: Outcomes, model: Model) -> Table:
    """Each layer of a recurrent model, averaged over gates."""
    groups = {f"layer {layer}": layer_globs([layer]) for layer in range(1, model.layers + 1)}
    return _concentration_table(outcomes, model, {**groups, "all layers": BODY}, f"{model.name}: each layer at the end")


def _concentration_table(
    outcomes: Outcomes, model: Model, groups: Mapping[str, str | Sequence[str]], title: str
) -> Table:
    numbers = ("share", SHARE, "stable_rank", STABLE)
    columns = [by_group(outcomes, model.runs, groups, number) for number in numbers]
    rows = [[group, *(column[group].text for column in columns)] for group in groups]
    heads = ["matrices", f"share above {FRACTION:g} of the strongest", "over noise's", "stable rank", "over noise's"]
    return Table(title, heads, rows, "Mean over the matrices and layers of each kind, ± standard deviation over seeds.")


def loss_table(outcomes: Outcomes, models: Sequence[Model]) -> Table:
    """Whether the models have trained: held-out loss before and after."""
    rows = []
    for model in models:
        numbers = [outcomes[run].numbers for run in model.runs]
        columns = [[one[name] for one in numbers] for name in ("held_out_before", "held_out_after", "frequencies")]
        rows.append([model.name, *(spread(column, ".3f") for column in columns), _yes(model.learned(outcomes))])
    heads = ["model", "before", "after", "token frequencies alone", f"learned {LEARNED:g} more than those"]
    return Table("Held-out loss, nats a token", heads, rows)


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def settings_table(model: Model) -> Table:
    """What the paper does not state and was chosen here."""
    settings = model.trainings[0].settings
    shown = {"length": "tokens a piece", "learning_rate": "learning rate", "clip": "gradients clipped at"}
    names = ("width", "vocabulary", "length", "batch", "steps", "learning_rate", "clip", "dropout")
    rows = [[shown.get(name, name), f"{settings[name]:g}"] for name in names]
    note = (
        "The paper states none of them. Plain SGD, learning rate falling to zero on a line, the same for every model."
    )
    return Table(f"Settings of {model.name}", ["setting", "value"], rows, note)


def spectra(outcomes: Outcomes, model: Model, matrices: Sequence[str]) -> list[Figure]:
    """Every singular value of these matrices over training, of the first seed."""
    run = outcomes[model.runs[0]].tables
    figures = []
    for name in matrices:
        table = run.singular_values(name)
        values = table.iloc[-1].to_numpy()
        share = share_above(values)
        rows, cols = (int(run.matrices[side][name]) for side in ("rows", "cols"))
        null = share_above(null_singular_values(rows, cols))
        look = f"The {len(values)} singular values of the change of {name} since the start, over steps; first seed."
        conclude = f"At the end {share:.0%} of them are above a tenth of the strongest; of noise {null:.0%}."
        title = f"{model.name}: {name}"
        figures.append(Figure(title, spectrum_evolution(table, name), look, conclude))
    return figures


def comparison(outcomes: Outcomes, groups: Mapping[str, tuple[Model, Mapping[str, str | Sequence[str]]]]) -> Figure:
    """Shares over noise's, a point a seed: models by colour, kinds of matrices along the axis.

    Args:
        outcomes: finished trainings.
        groups: by legend entry: a model, and globs by name on the axis.
    """
    figure = new_figure("", "kind of matrix", "share rising, over noise's")
    means = {}
    for place, (entry, (model, globs)) in enumerate(groups.items()):
        found = by_group(outcomes, model.runs, globs, SHARE)
        points = [(name, value) for name, one in found.items() for value in one.values]
        figure.add_scatter(
            x=[name for name, _ in points],
            y=[value for _, value in points],
            mode="markers",
            name=entry,
            marker={"color": category(place), "size": 8, "opacity": 0.8},
        )
        means[entry] = fmean(value for _, value in points)
    _lines(figure)
    look = "Each point is a kind of matrix in one seed: how many values rise above a tenth of the strongest."
    conclude = "1: as many as of noise. Means: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()) + "."
    return Figure("Beside noise", figure, look, conclude)


def loss_and_share(outcomes: Outcomes, models: Sequence[Model]) -> tuple[Figure, str]:
    """Held-out loss against share, a point a run, and how they go together in a sentence."""
    figure = new_figure("", "held-out loss, nats a token", "share rising, over noise's")
    every = pd.DataFrame(columns=["loss", "share"], dtype=float)
    for place, model in enumerate(models):
        found = {"loss": model.loss(outcomes).values, "share": model.measured(outcomes, SHARE).values}
        figure.add_scatter(
            x=list(found["loss"]),
            y=list(found["share"]),
            mode="markers",
            name=model.name,
            marker={"color": category(place), "size": 9, "opacity": 0.8},
        )
        every = pd.concat([every, pd.DataFrame(found)])
    _lines(figure)
    correlation = float(every["loss"].rank().corr(every["share"].rank()))
    conclude = f"Rank correlation of loss and share over these {len(every)} runs: {correlation:+.2f}."
    look = "Each point is a run: its loss on held-out text, and how many of its singular values rise on average."
    return Figure("Loss and share", figure, look, conclude), conclude


def _lines(figure: go.Figure) -> None:
    for height, text in ((1.0, "noise"), (LOW_RANK, "half: low-rank below")):
        figure.add_hline(y=height, line={"dash": "dash", "width": 1, "color": NEUTRAL}, annotation_text=text)
    figure.update_yaxes(rangemode="tozero")
