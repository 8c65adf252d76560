"""What trainings ended with (`results.json`), averaged over seeds where they are alike.

References:
    Zhao et al. 2023, arXiv:2306.11250, Tables 1 to 3: PPL, rank, runtime, memory, model size, params. The null rank is
    ours: what the same rule gives factors that nobody trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from inrank.gpt2.option_checks import DENSE_FIRST, METHODS, OptionError
from inrank_monitor.runs import write_json

RESULTS_FILE = "results.json"
_NOT_OF_A_ROW = ("method", "seed", "ranks", "checkpoint_every")  # settings in which averaged trainings may differ
_OF_RANKS = (
    *("threshold", "initial_rank", "buffer_rank", "every", "definition"),
    *("gain", "gradient_init", "phase_steps", "rank"),
)
_OF_DENSE_FIRST = ("factorize_at", "budget", "allocation", "factor_lr")
_IDLE = {  # settings that a method does not look at
    "baseline": (*_OF_RANKS, *_OF_DENSE_FIRST),
    DENSE_FIRST: tuple(name for name in _OF_RANKS if name != "gain"),
    "inrank": ("phase_steps", "rank", *_OF_DENSE_FIRST),
    "inrank-efficient": ("rank", *_OF_DENSE_FIRST),
    "fixed-rank": ("initial_rank", "every", "gradient_init", "phase_steps", *_OF_DENSE_FIRST),
    "reference": ("definition", "gain", "gradient_init", "rank", *_OF_DENSE_FIRST),
}
NUMBERS = ("perplexity", "rank", "null_rank", "runtime", "peak_memory", "model_size", "parameters")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One finished training.

    Attributes:
        method: one of `METHODS`.
        seed: of the training.
        perplexity: of the test text, exp of the mean loss a token.
        rank: mean over the MLP matrices.
        null_rank: mean of what the rule gives noise; None where no rule gave the ranks.
        runtime: seconds of training; tokenization and evaluation are not in it.
        peak_memory: bytes, of the device or (on the CPU) of the process.
        model_size: bytes of the parameters in the precision of the training.
        parameters: of the model, the buffer rank not counted.
        ranks: by layer name.
        device: `cpu`, or the name of the GPU.
        settings: as in options.json.
        factorization: what it did, or None.
        finished: unix seconds.
    """

    method: str
    seed: int
    perplexity: float
    rank: float
    null_rank: float | None
    runtime: float
    peak_memory: int
    model_size: int
    parameters: int
    ranks: dict[str, int]
    device: str
    settings: dict[str, Any]
    factorization: dict[str, Any] | None
    finished: float

    def write(self, directory: Path) -> None:
        """As results.json."""
        write_json(directory / RESULTS_FILE, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> Result:
        """From a training's directory.

        Raises:
            OptionError: there are none, or the file is damaged.
        """
        try:
            content = json.loads((directory / RESULTS_FILE).read_text(encoding="utf-8"))
            return cls(**{option.name: content[option.name] for option in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{directory / RESULTS_FILE} cannot be read: {error}") from None

    @property
    def row_settings(self) -> dict[str, Any]:
        """What must be equal for two trainings to be averaged."""
        idle = (*_NOT_OF_A_ROW, *_IDLE[self.method])
        settings = {"d_ff": None} | self.settings  # which earlier versions did not write
        return {name: value for name, value in settings.items() if name not in idle} | {"device": self.device}


@dataclass(frozen=True)
class Row:
    """Trainings of one method that differ in their seed alone."""

    results: tuple[Result, ...]

    @property
    def first(self) -> Result:
        """One of them."""
        return self.results[0]

    def mean(self, name: str) -> float | None:
        """Of one of `NUMBERS`; None where there is none."""
        values = [getattr(result, name) for result in self.results]
        return None if None in values else fmean(values)

    @property
    def spread(self) -> float | None:
        """Standard deviation (n − 1) of the perplexity over the seeds; None for one seed."""
        return stdev(result.perplexity for result in self.results) if len(self.results) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Table 1.

    Attributes:
        rows: in the order of `METHODS`.
        differing: settings in which rows differ.
        notes: what to bear in mind.
    """

    rows: tuple[Row, ...]
    differing: tuple[str, ...]
    notes: tuple[str, ...]


def find_results(directories: Sequence[str | Path]) -> list[Result]:
    """Every results.json in or below the directories.

    Raises:
        NotADirectoryError: one is none.
        FileNotFoundError: there is none at all.
    """
    found: dict[Path, Result] = {}
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise NotADirectoryError(f"{directory} is not a directory")
        for file in sorted(directory.rglob(RESULTS_FILE)):
            found[file.resolve()] = Result.read(file.parent)
    if not found:
        raise FileNotFoundError(
            f"no finished training in {', '.join(map(str, directories))}; `inrank train --output DIRECTORY` makes some"
        )
    return list(found.values())


def compare(results: Iterable[Result]) -> Comparison:
    """Average over seeds what is alike in everything else; say what is not."""
    groups: dict[str, dict[int, Result]] = {}
    repeated = set()
    for result in sorted(results, key=lambda result: result.finished):
        key = json.dumps([result.method, result.row_settings], sort_keys=True)
        same = groups.setdefault(key, {})
        if result.seed in same:
            repeated.add(f"{result.method}, seed {result.seed}")
        same[result.seed] = result
    rows = [Row(tuple(same[seed] for seed in sorted(same))) for same in groups.values()]
    rows.sort(key=lambda row: (METHODS.index(row.first.method), row.first.finished))
    differing = _differing(rows)
    return Comparison(tuple(rows), differing, tuple(_notes(rows, differing, sorted(repeated))))


def _differing(rows: Sequence[Row]) -> tuple[str, ...]:
    """Settings that rows which both look at them have different values of."""
    settings = [row.first.row_settings for row in rows]
    names = dict.fromkeys(name for entry in settings for name in entry)
    return tuple(n for n in names if len({json.dumps(entry[n]) for entry in settings if n in entry}) > 1)


def _notes(rows: Sequence[Row], differing: Sequence[str], repeated: Sequence[str]) -> list[str]:
    notes = []
    if differing:
        notes.append(f"Not alike in {', '.join(differing)}: compare rows that are equal there.")
    counts = {len(row.results) for row in rows}
    if counts == {1}:
        notes.append("One seed each: how far seeds alone lie apart is not known (--seed 0 1 2 tells).")
    else:
        notes.append("± is the standard deviation over seeds: differences below the spread over seeds are noise.")
    if len(counts) > 1:
        notes.append("Rows have different numbers of seeds.")
    notes += [f"{name} is there more than once: the latest counts." for name in repeated]
    return notes
