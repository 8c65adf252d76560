"""Which steps the automatic schedule measures, in trainings on paper: points, cost, and the largest gap between two.

    python benchmarks/bench_schedule.py [--figure docs/images/schedule.svg]

Nothing is trained and no clock is read: the schedule itself is asked at every step, and told what each snapshot cost.
The numbers are the same on every machine; it takes a few seconds. The figure shows some of the rows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inrank_monitor.tracking import Automatic, Simulated, simulate

Cost = Callable[[int, int], float]


@dataclass(frozen=True)
class Case:
    """A training on paper.

    Attributes:
        name: what it is.
        step_seconds: of a step, by its number.
        cost: seconds of a snapshot, by how many were taken before it and by its step.
        first: the step at which a resumed run takes up.
        drawn: whether the figure shows it.
    """

    name: str
    step_seconds: Callable[[int], float]
    cost: Cost
    first: int = 0
    drawn: bool = False

    def run(self, seconds: float) -> Simulated:
        """Train for so long under the default schedule."""
        return simulate(Automatic(), seconds, self.step_seconds, self.cost, self.first)


def even(step: float, cost: float, drawn: bool = False) -> Case:
    """Every step takes as long as any other, and so does every snapshot."""
    name = f"steps of {seconds_text(step)}, snapshots of {seconds_text(cost)}"
    return Case(name, lambda _: step, lambda *_: cost, drawn=drawn)


def seconds_text(seconds: float) -> str:
    """5 ms, 0.1 s, 10 s."""
    return f"{1000 * seconds:.0f} ms" if seconds < 0.1 else f"{seconds:g} s"


CASES = [
    *(even(step, cost) for step in (0.005, 0.1, 1.0, 10.0) for cost in (0.001, 0.02, 0.13, 1.0, 10.0, 60.0)),
    even(0.12, 0.02, True),
    even(0.24, 0.13, True),
    even(0.02, 0.1, True),
    even(0.1, 0.6, True),
    even(2.0, 5.0, True),
    Case("a slow second snapshot: 0.3 s, then 20 ms", lambda _: 0.12, lambda n, _: 0.3 if n == 1 else 0.02, drawn=True),
    Case("start-up: 1.2 s, then 50 ms", lambda _: 0.12, lambda n, _: 1.2 if n == 0 else 0.05, drawn=True),
    Case("a fifth of the snapshots takes 0.3 s, not 20 ms", lambda _: 0.12, lambda n, _: 0.3 if n % 5 == 4 else 0.02),
    Case("snapshots grow from 20 ms by 0.1 s in 1000 steps", lambda _: 0.12, lambda _, step: 0.02 + 1e-4 * step),
    Case("the first step takes a minute", lambda step: 60.0 if step == 1 else 0.12, lambda *_: 0.1),
    Case("15 s of evaluation each 100 steps", lambda step: 15.0 if step % 100 == 0 else 0.12, lambda *_: 0.1),
    Case(
        "a pause of five minutes after step 50", lambda step: 300.0 if step == 50 else 0.12, lambda *_: 0.1, drawn=True
    ),
    Case("resumed at step 5000", lambda _: 0.12, lambda *_: 0.1, first=5000),
]


def row(case: Case) -> list[str]:
    """Points in the first 50 and 200 steps and in two minutes, then the run of an hour."""
    early, hour = case.run(120), case.run(3600)
    steps = [step - case.first for step in early.steps]
    minute = max((spent for spent, time in zip(early.spent, early.times, strict=True) if time <= 60), default=0.0)
    return [
        case.name,
        *(str(sum(step <= most for step in steps)) for most in (50, 200)),
        str(len(steps)),
        f"{minute:.2f} s",
        f"{early.share:.2%}",
        f"{early.largest_ratio:.3g}",
        str(len(hour.steps)),
        f"{hour.share:.2%}",
        f"{hour.largest_ratio:.3g}",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned; the first column to the left."""
    heads = ["", "≤ 50", "≤ 200", "2 min", "1st min", "of 2 min", "gap", "1 h", "of 1 h", "gap"]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(each, widths, strict=True))
        )
        for each in [heads, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


WIDTH, LEFT, ROW, TOP = 900, 330, 34, 42


def figure(cases: Sequence[Case], seconds: float = 600) -> str:
    """Measured steps of the first ten minutes, a line a case, as SVG on white."""
    found = [case.run(seconds) for case in cases]
    decades = math.ceil(math.log10(max(each.last for each in found)))
    bottom = TOP + ROW * len(cases)

    def x(step: int) -> float:
        return round(LEFT + (WIDTH - LEFT - 110) * math.log10(step) / decades, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" font-family="sans-serif" '
        'font-size="13" fill="#222"><title>Steps that the automatic schedule measures in ten minutes</title>',
        f'<rect width="{WIDTH}" height="{bottom + 40}" fill="white"/>',
        f'<text x="{WIDTH - 8}" y="{TOP - 18}" text-anchor="end" fill="#666">points · cost</text>',
    ]
    for decade in range(decades + 1):
        at = x(10**decade)
        parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP - 8}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle" fill="#666">{10**decade:,}</text>')
    for place, (case, each) in enumerate(zip(cases, found, strict=True)):
        y = TOP + ROW * place + 10
        parts.append(f'<text x="{LEFT - 14}" y="{y + 4}" text-anchor="end">{case.name}</text>')
        parts.append(f'<line x1="{x(1)}" x2="{x(each.last)}" y1="{y}" y2="{y}" stroke="#bbb"/>')
        parts += [f'<circle cx="{x(step)}" cy="{y}" r="3.5" fill="#2a6fb0"/>' for step in each.steps]
        end = f"{len(each.steps)} · {each.share:.2%}"
        parts.append(f'<text x="{WIDTH - 8}" y="{y + 4}" text-anchor="end" fill="#666">{end}</text>')
    parts.append(f'<text x="{LEFT}" y="{bottom + 34}" fill="#666">step, first ten minutes of a run</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Print the table; write the figure if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write the figure as SVG")
    options = parser.parse_args()
    print(
        "points in the first 50 and 200 steps and in two minutes; seconds spent in the first minute, shares of the time"
    )
    print("(the last snapshot included), largest ratio of two measured steps; the same of a run of an hour\n")
    print(table([row(case) for case in CASES]))
    if options.figure:
        options.figure.write_text(figure([case for case in CASES if case.drawn]), encoding="utf-8")
        print(f"wrote {options.figure}")


if __name__ == "__main__":
    main()
