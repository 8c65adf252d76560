"""Table 1: trainings as a table for the terminal, or as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from inrank.gpt2.results import NUMBERS, Comparison, Result, Row, compare

_HEADINGS = ("PPL", "rank", "null rank", "runtime", "memory", "model size", "params")


def row_text(result: Result) -> str:
    """One training: headings and numbers."""
    return "\n".join(table_text(compare([result])).splitlines()[:2])


def table_text(comparison: Comparison) -> str:
    """The table for a terminal, with its notes."""
    seeds = any(len(row.results) > 1 for row in comparison.rows)
    options = [f"--{name.replace('_', '-')}" for name in comparison.differing]
    heads = ["method", *_HEADINGS, *(["seeds"] if seeds else []), *options]
    lines = [heads, *(_cells(row, comparison.differing, seeds) for row in comparison.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([*aligned, "", *comparison.notes])


def _cells(row: Row, differing: Sequence[str], seeds: bool) -> list[str]:
    values = {name: row.mean(name) for name in NUMBERS}
    spread = "" if row.spread is None else f" ± {row.spread:.2g}"
    null = values["null_rank"]
    cells = [
        row.first.method,
        f"{values['perplexity']:.1f}{spread}",
        f"{values['rank']:.1f}".removesuffix(".0"),
        "–" if null is None else f"{null:.1f}".removesuffix(".0"),
        duration(values["runtime"] or 0.0),
        size(values["peak_memory"] or 0.0),
        size(values["model_size"] or 0.0),
        thousands(values["parameters"] or 0.0),
    ]
    settings = row.first.row_settings
    others = ["–" if settings.get(name) is None else str(settings[name]) for name in differing]
    return [*cells, *([str(len(row.results))] if seeds else []), *others]


def table_csv(comparison: Comparison) -> str:
    """The table as CSV: exact numbers, seconds and bytes."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["method", "perplexity", "perplexity_std", *NUMBERS[1:], "seeds", *comparison.differing])
    for row in comparison.rows:
        settings = row.first.row_settings
        numbers = [row.mean(name) for name in NUMBERS]
        others = [settings.get(name) for name in comparison.differing]
        writer.writerow([row.first.method, numbers[0], row.spread, *numbers[1:], len(row.results), *others])
    return stream.getvalue()


def duration(seconds: float) -> str:
    """`38 s`, `12.3 min`, `19.1 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """`4.1 MB`, `182 MB`, `1.8 GB`: powers of ten, as in the paper's table."""
    power = min(3, max(0, int(math.log10(max(count, 1))) // 3))
    value = count / 10 ** (3 * power)
    return (
        f"{value:.1f} {('B', 'kB', 'MB', 'GB')[power]}"
        if value < 100
        else f"{value:.0f} {('B', 'kB', 'MB', 'GB')[power]}"
    )


def thousands(count: float) -> str:
    """`23.4k`, `1.03M`, `446M`: three digits."""
    value, unit = (count / 1e3, "k") if count < 999_500 else (count / 1e6, "M")
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
