"""The parameters and sizes of the paper's models at the ranks that it prints, to the digit. Nothing is allocated.

A rank is printed as a whole number but is a mean over matrices (section 6.3), so a size may come from a rank that
only rounds to the printed one; `ranks_that_print` says from which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from inrank.experiments.gpt2.paper_tables import PaperRow, as_number, paper_row, printed_params, printed_size
from inrank.gpt2.models import PAPER_SIZES, parameter_count
from inrank.reproduction.experiment import Statement, Table
from inrank.reproduction.verdicts import is_within

_HEADS = ("model", "method", "bits", "rank", "number", "paper", "ours, exact", "ours, as printed", "equal", "from rank")
_NOTE = (
    "Parameters: millions, cut off after three digits. Model size: parameters times bytes a parameter, 10⁶ bytes; cut "
    "off below 1000 MB, rounded to a digit above (no one way gives both 248 and 3.1K). From rank: the mean ranks, "
    "among those that round to the printed one, which give both numbers of a row as printed."
)
_UNITS = {"hours": "training time", "memory": "memory", "size": "model size", "rank": "rank"}


@dataclass(frozen=True)
class Count:
    """A row of the paper and the exact number of parameters at its rank.

    Attributes:
        row: of the paper.
        parameters: ours.
    """

    row: PaperRow
    parameters: int

    @property
    def bytes(self) -> int:
        """In the row's precision."""
        return self.parameters * self.row.precision // 8

    @property
    def printed(self) -> tuple[str, str]:
        """Parameters and size as the paper prints them."""
        return printed_params(self.parameters), printed_size(self.bytes)

    @property
    def equal(self) -> tuple[bool, bool]:
        """Whether these are what the paper prints."""
        params, size = self.printed
        return params == self.row.params, size == self.row.size


def count(row: PaperRow, added_ranks: int = 0) -> Count:
    """The exact count of a row.

    Args:
        row: of the paper.
        added_ranks: to the sum of ranks over all matrices; each costs rows + cols of any MLP matrix, 5 × width.
    """
    if row.threshold is None:
        return Count(row, _parameters(row.model, None))
    size, counted = (
        PAPER_SIZES[row.model],
        paper_row(row.model, 0.9).rank,
    )  # a model is built at one rank only: a second
    added_ranks += 2 * size.layers * (row.rank - counted)
    return Count(row, _parameters(row.model, counted) + added_ranks * 5 * size.width)


@lru_cache(maxsize=6)
def _parameters(model: str, rank: int | None) -> int:
    return parameter_count(model, rank)


def ranks_that_print(row: PaperRow) -> tuple[float, float] | None:
    """Least and largest mean rank that round to the printed one and give both numbers as printed; None: none."""
    if row.threshold is None:
        return (row.rank, row.rank) if all(count(row).equal) else None
    matrices = 2 * PAPER_SIZES[row.model].layers
    fitting = [added for added in range(-(matrices // 2), matrices // 2 + 1) if all(count(row, added).equal)]
    return (row.rank + fitting[0] / matrices, row.rank + fitting[-1] / matrices) if fitting else None


def count_statements(rows: Sequence[PaperRow], where: str) -> list[Statement]:
    """Whether every printed number comes out; where one does not, also whether an unrounded rank gives it."""
    counts = [count(row) for row in rows]
    wrong = [_difference(one) for one in counts if not all(one.equal)]
    claim = (
        f"{where}: parameters (millions) and model sizes (MB), by turns, of the paper's models follow from its ranks"
    )
    exact = _within(f"{claim} as printed", counts)
    if not wrong:
        return [exact]
    loose = [one if all(one.equal) else _with_fitting_rank(one) for one in counts]
    return [
        replace(exact, why=f"{'; '.join(wrong)}; {exact.why}"),
        _within(f"{claim}, each a mean over the matrices that rounds to the printed one", loose),
    ]


def _within(claim: str, counts: Sequence[Count]) -> Statement:
    ours = [as_number(text) for one in counts for text in one.printed]
    paper = [as_number(text) for one in counts for text in (one.row.params, one.row.size)]
    found = is_within(claim, ours, paper, 0.0, f"{len(ours)} numbers as printed")
    return replace(found, paper=found.paper.replace("/", " / "), ours=found.ours.replace("/", " / "))  # lines may break


def _with_fitting_rank(one: Count) -> Count:
    ranks = ranks_that_print(one.row)
    matrices = 2 * PAPER_SIZES[one.row.model].layers
    return one if ranks is None else count(one.row, round((ranks[1] - one.row.rank) * matrices))


def _difference(one: Count) -> str:
    pairs = zip(("M parameters", "MB"), (one.row.params, one.row.size), one.printed, one.equal, strict=True)
    what = ", ".join(f"{paper} {unit} printed, {ours} ours" for unit, paper, ours, same in pairs if not same)
    return f"GPT-{one.row.model}, {one.row.method}, rank {one.row.rank}: {what}; {_from_rank(one.row)} gives it"


def _from_rank(row: PaperRow) -> str:
    ranks = ranks_that_print(row)
    if ranks is None:
        return "no rank"
    low, high = ranks
    return f"{low:g}" if low == high else f"{math.ceil(low * 100) / 100:.2f} to {math.floor(high * 100) / 100:.2f}"


def count_table(rows: Sequence[PaperRow], title: str) -> Table:
    """Two rows for each of the paper's: parameters and model size."""
    lines = []
    for one in map(count, rows):
        row = one.row
        lead = [f"GPT-{row.model}", row.method, str(row.precision), str(row.rank)]
        exact = (f"{one.parameters:,}", f"{one.bytes / 1e6:,.3f} MB")
        cells = zip(("params", "model size"), (row.params, row.size), exact, one.printed, one.equal, strict=True)
        lines += [
            [*lead, name, paper, ours, printed, "yes" if same else "NO", _from_rank(row)]
            for name, paper, ours, printed, same in cells
        ]
    return Table(title=title, heads=_HEADS, rows=lines, note=_NOTE)


def count_reading(rows: Sequence[PaperRow]) -> str:
    """How many of the printed numbers come out, and which do not."""
    counts = [count(row) for row in rows]
    same = [equal for one in counts for equal in one.equal]
    text = (
        f"Of the {len(same)} parameter counts and model sizes that the paper prints, {sum(same)} follow from its ranks"
    )
    wrong = [_difference(one) for one in counts if not all(one.equal)]
    return f"{text} to the digit{' (not: ' + '; '.join(wrong) + ')' if wrong else ''}."


def quoted_table(quoted: Mapping[tuple[str, str], int], pairs: Mapping[str, tuple[PaperRow, PaperRow]]) -> Table:
    """The reductions that the paper's text quotes, beside those of its own tables.

    Args:
        quoted: per cent by model and attribute of `PaperRow`.
        pairs: of each model the row to compare with, and the row that is smaller.
    """
    rows = []
    for (model, name), percent in quoted.items():
        before, after = pairs[model]
        numbers = [_value(row, name) for row in (before, after)]
        exact = 1 - count(after).bytes / count(before).bytes if name == "size" else None
        rows.append(
            [
                f"GPT-{model}",
                _UNITS[name],
                f"{percent} %",
                f"{100 * (1 - numbers[1] / numbers[0]):.1f} %",
                "–" if exact is None else f"{100 * exact:.1f} %",
            ]
        )
    heads = ("model", "reduction of", "quoted in the text", "from its table", "from exact sizes")
    return Table(title="The reductions that the paper quotes", heads=heads, rows=rows)


def _value(row: PaperRow, name: str) -> float:
    return as_number(row.size) if name == "size" else float(getattr(row, name))
