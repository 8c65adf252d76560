"""Which experiments there are: one module each, read only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from inrank.reproduction.experiment import Experiment, ExperimentError

# name on the command line: its module below inrank.experiments, whose EXPERIMENTS has it
_PAPERS = {
    "theorem-2": "theorem_2.theorem_2",
    "glrl": "glrl.glrl",
    "null-ranks": "null_ranks.null_ranks",
    "figure-1": "gpt2.figure_1",
    "figure-3": "perceptron.figure_3",
    "figure-4": "gpt2.figure_4",
    "figure-5": "gpt2.figures_5_7",
    "figure-6": "gpt2.figures_5_7",
    "figure-7": "gpt2.figures_5_7",
    "figure-8": "language.figures_8_11",
    "figure-9": "language.figures_8_11",
    "figure-10": "language.figures_8_11",
    "figure-11": "language.figures_8_11",
    "figure-12": "language.figures_12_14",
    "figure-13": "language.figures_12_14",
    "figure-14": "language.figures_12_14",
    "figure-15": "perceptron.figure_15",
    "table-1": "gpt2.table_1",
    "table-2": "gpt2.table_2",
    "table-3": "gpt2.table_3",
    "table-5": "gpt2.table_5",
}
_OURS = {
    "rank-by-loss": "loss_ranks.rank_by_loss",
    "advice": "advice.advice",
    "worth-it": "worth_it.worth_it",
    "from-the-start": "from_the_start.from_the_start",
}
_MODULES = _PAPERS | _OURS
ALIASES = {"figure-2": "theorem-2"}
NAMES, OF_PAPER = tuple(_MODULES), tuple(_PAPERS)


def experiment(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        ExperimentError: there is none.
    """
    name = ALIASES.get(name, name)
    if name not in _MODULES:
        raise ExperimentError(f"NAME must be one of {', '.join([*NAMES, *ALIASES])}, got {name!r}")
    module = import_module(f"inrank.experiments.{_MODULES[name]}")
    found: Experiment = module.EXPERIMENTS[name]
    return found


def experiments(names: Sequence[str]) -> list[Experiment]:
    """Those of several names, each once, in the paper's order, ours after them.

    Raises:
        ExperimentError: one of them does not exist.
    """
    found = {one.name: one for one in map(experiment, names)}
    return [found[name] for name in NAMES if name in found]
