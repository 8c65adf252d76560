"""What an experiment is: trainings to run, and what their runs say beside the paper.

Request    what the command line asked for
Training   one training: a run directory, a function, its settings
Outcomes   finished trainings: their numbers and their runs
Findings   what came of it: statements with verdicts, tables, figures, a sentence of reading
Experiment one figure or table of the paper
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from inrank_monitor.runs import Run

SCALES = ("smoke", "tiny", "small", "paper")
SEEDS = {"smoke": 1, "tiny": 3, "small": 3, "paper": 1}
RUNS_DIR = "runs"
Verdict = Literal["agrees", "disagrees", "within noise", "not tested"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


class ExperimentError(ValueError):
    """Something the user can mend: one line that says what was required and what was got."""


@dataclass(frozen=True)
class Request:
    """What was asked for, the same for every experiment of one call.

    Attributes:
        out: directory of the results; the run directories lie in `out/runs`.
        scale: `smoke` (seconds, for tests), `tiny` (minutes on two cores), `small` (an afternoon on a GPU), `paper`.
        seeds: 0, 1, ...
        device: `cpu` or `cuda`.
        text: files to train language models on; empty for Python's own help texts (at paper scale: wikitext-103).
        test_text: a file to test them on; None for the last tenth of the text.
    """

    out: Path
    scale: str = "tiny"
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    text: tuple[str, ...] = ()
    test_text: str | None = None

    @property
    def runs(self) -> Path:
        """Where the run directories lie, which the dashboard opens."""
        return self.out / RUNS_DIR


@dataclass(frozen=True)
class Training:
    """One training. Experiments that name the same training share it.

    Attributes:
        name: of its run directory below `Request.runs`; says what it is and ends with its seed.
        run: a function of a module, called as `run(directory, settings, device)` in a process of its own. It leaves an
            ordinary run in the directory, takes up what an interrupted call left there, and returns numbers by name.
        settings: all that decides the outcome; JSON. Nothing else may.
        after: names of trainings that must have finished before.
        imports: modules that its process needs: imported once for all of them.
    """

    name: str
    run: Callable[[Path, Mapping[str, Any], str], Mapping[str, float]]
    settings: Mapping[str, Any]
    after: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    Attributes:
        training: which.
        directory: its run directory.
        numbers: what its function returned.
        seconds: that it took.
    """

    training: Training
    directory: Path
    numbers: Mapping[str, float]
    seconds: float

    @cached_property
    def tables(self) -> Run:
        """The run, as `inrank_monitor.open_run` reads it."""
        from inrank_monitor import open_run

        return open_run(self.directory)


Outcomes = Mapping[str, Outcome]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """Something that the paper says, beside what was found. `inrank.reproduction.verdicts` makes them.

    Attributes:
        claim: what the paper says, in our words, and where (section, figure, table).
        paper: its number, or "–" where it gives none.
        ours: ours, mean ± standard deviation over seeds.
        verdict: whether the two agree.
        why: how that was decided: the test and its numbers; or why it could not be.
        values: the numbers behind `ours`, a seed each, by name.
    """

    claim: str
    paper: str
    ours: str
    verdict: Verdict
    why: str
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of text; numbers carry their spread."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure with two lines: what you look at, what to conclude."""

    title: str
    figure: go.Figure
    look: str
    conclude: str

    def as_json(self) -> str:
        """For a file."""
        words = {name: getattr(self, name) for name in ("title", "look", "conclude")}
        return json.dumps(words | {"figure": str(self.figure.to_json())})

    @classmethod
    def of_json(cls, text: str) -> Figure:
        """From what `as_json` gave.

        Raises:
            ValueError, KeyError: it is not that.
        """
        from plotly.io import from_json

        content = json.loads(text)
        return cls(**(content | {"figure": from_json(content["figure"])}))


@dataclass(frozen=True)
class Findings:
    """What came of an experiment.

    Attributes:
        reading: a sentence or two, with numbers: what this means, also where it speaks against the paper or us.
        statements: the paper's statements with verdicts.
        tables: ours beside the paper's.
        figures: ours.
    """

    reading: str
    statements: Sequence[Statement] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()

    def as_json(self) -> dict[str, Any]:
        """All but the figures, which are drawn from the runs."""
        return {
            "reading": self.reading,
            "statements": [asdict(statement) for statement in self.statements],
            "tables": [asdict(table) for table in self.tables],
        }


@dataclass(frozen=True)
class Experiment:
    """One figure or table of the paper, or a finding of ours.

    Attributes:
        name: as on the command line: `figure-3`.
        title: a line.
        paper: what the paper shows there, in our words: one or two sentences.
        trainings: what must be trained; none where nothing is.
        analyse: looks at the finished trainings.
        partial: whether it can say something when only some of them are finished (`--finished`).
        watched: whether its trainings leave runs for the dashboard, or only their numbers.
    """

    name: str
    title: str
    paper: str
    trainings: Callable[[Request], Sequence[Training]]
    analyse: Callable[[Request, Outcomes], Findings]
    partial: bool = False
    watched: bool = True


def nothing_to_train(request: Request) -> Sequence[Training]:
    """For an experiment that only computes."""
    return ()
