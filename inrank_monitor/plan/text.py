"""A plan for the terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from inrank_monitor.plan.advice import ENOUGH_AN_HOUR, attach_line, early_snapshots, snapshots_an_hour, steps_between
from inrank_monitor.plan.costs import shard_seconds, spectrum_seconds
from inrank_monitor.plan.models import PlannedModel
from inrank_monitor.plan.planning import Plan
from inrank_monitor.plan.quantities import Cost, Layout, PlannedMatrix, Rates, is_full

WIDTH = 100
Costs = Mapping[int | None, Cost]


def plan_text(plan: Plan, step_seconds: Sequence[float] = ()) -> str:
    """What is watched, what each shape and a snapshot costs, what the budget allows, and what to do.

    Args:
        plan: from `make_plan`.
        step_seconds: how long a training step takes, or may take.
    """
    lines = [*_wrap(_headline(plan.scenario.model)), *_wrap(_who(plan.scenario.layout, plan.scenario.device)), ""]
    lines += [*_shapes(plan), ""]
    lines += [*_totals(plan, step_seconds), ""]
    lines += [line for remark in _remarks(plan.costs, plan.scenario.layout) for line in _wrap(remark)]
    lines += ["", *_wrap(_sentence(plan)), ""]
    lines += textwrap.wrap(
        attach_line(plan.advice, str(plan.scenario.directory), plan.scenario.budget),
        WIDTH,
        initial_indent="    ",
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n"


def duration(seconds: float) -> str:
    """Two digits and a unit: 12 ms, 3.4 s, 56 min, 2.1 h."""
    for unit, length, most in (("ms", 1e-3, 0.0995), ("s", 1, 99.5), ("min", 60, 99.5 * 60), ("h", 3600, 99.5 * 3600)):
        if seconds < most:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds / 86400)} days"


def size(count: float) -> str:
    """Two or three digits and a unit: 12 kB, 3.4 GB."""
    for unit, length in (("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if count < 999.5 * length:
            return f"{_two_digits(count / length)} {unit}"
    return f"{_two_digits(count / 1e12)} TB"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


def _headline(model: PlannedModel) -> str:
    return (
        f"{model.name} ({model.kind}): {len(model.planned)} matrices, {model.watched:,} of {model.parameters:,} "
        f"parameters, in {model.dtype}"
    )


def _who(layout: Layout, device: torch.device) -> str:
    threads = f"{layout.threads} thread{'s' * (layout.threads > 1)}"
    if layout.processes == 1:
        return f"one process, {threads}, weights on {device}; speeds as measured on this machine"
    held = "a shard of every parameter (FSDP2)" if layout.sharded else "the whole model (DistributedDataParallel)"
    return (
        f"{layout.processes} processes that each hold {held}, {threads} each, weights on {device}; speeds as measured "
        "on this machine, by one process"
    )


def _heads(choices: Sequence[int | None]) -> list[str]:
    return ["full" if leading is None else f"leading={leading}" for leading in choices]


def _shapes(plan: Plan) -> list[str]:
    """A line a shape: how many there are, and seconds for one of them."""
    choices, layout = list(plan.costs), plan.scenario.layout
    kinds = Counter((matrix.rows, matrix.cols) for matrix in plan.scenario.model.planned)
    example = {(matrix.rows, matrix.cols): matrix for matrix in reversed(plan.scenario.model.planned)}
    tried = max(plan.rates.alone.eigenvalues.sides)

    def cell(matrix: PlannedMatrix, leading: int | None) -> str:
        beyond = matrix.short > tried and is_full(matrix.short, leading)
        return duration(_seconds(matrix, leading, layout, plan.rates)) + ("*" if beyond else "")

    rows = [
        [str(count), f"{shape[0]}×{shape[1]}", *(cell(example[shape], leading) for leading in choices)]
        for shape, count in kinds.items()
    ]
    lines = _table(["matrices", "shape", *_heads(choices)], rows)
    one = "one process's part of one matrix" if layout.sharded else "one matrix"
    threads = ", on one thread" if layout.threads > 1 and not layout.sharded else ""
    lines.append(f"time for {one}{threads}")
    if any(row[2].endswith("*") for row in rows):
        lines.append(f"* extrapolated: nothing with a short side above {tried} was measured")
    return lines


def _seconds(matrix: PlannedMatrix, leading: int | None, layout: Layout, rates: Rates) -> float:
    if not layout.sharded:
        return spectrum_seconds(matrix, leading, rates.pool)
    solving = matrix.short**3 * rates.pool.eigenvalues.at(matrix.short) / layout.processes / layout.threads
    return shard_seconds(matrix, layout, rates.alone) + solving


def _totals(plan: Plan, step_seconds: Sequence[float]) -> list[str]:
    layout, budget, several = plan.scenario.layout, plan.scenario.budget, plan.scenario.layout.processes > 1
    each = " a process" if several else ""
    rows: list[tuple[str, Callable[[Cost], str]]] = [
        ("a snapshot holds up the training for", lambda cost: duration(cost.seconds)),
        ("and the tracker's thread works for", lambda cost: duration(cost.record_seconds)),
        (f"memory beside the training, at most{each}", lambda cost: size(cost.memory)),
    ]
    if layout.on_device:
        rows.append((f"device memory, at most{each}", lambda cost: size(cost.device_memory)))
    rows.append(("W0 on disk", lambda cost: size(cost.weights)))
    if several:
        rows.append(("of which one process writes", lambda cost: size(cost.weights_here)))
        rows.append(("a process sends, a snapshot", lambda cost: size(cost.sent)))
    rows.append(("log and event file grow, a snapshot, by", lambda cost: size(cost.log + cost.events)))
    rows.append(("attaching takes", lambda cost: duration(cost.attach_seconds)))
    rows.append((f"{_percent(budget)} allows, an hour, later on", lambda cost: _count(snapshots_an_hour(cost, budget))))
    for seconds in step_seconds:
        text = f"with steps of {duration(seconds)}, in the first ten minutes"
        rows.append((text, lambda cost, seconds=seconds: f"{early_snapshots(cost, budget, seconds):,}"))
        rows.append(
            ("and then one in", lambda cost, seconds=seconds: f"{steps_between(cost, budget, seconds):,} steps")
        )
    cells = [[label, *(show(cost) for cost in plan.costs.values())] for label, show in rows]
    return _table(["", *_heads(list(plan.costs))], cells, left=1)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} % of wall time"


def _count(snapshots: float) -> str:
    return f"{snapshots:,.0f}" if snapshots >= 9.95 else f"{snapshots:.2g}"


def _remarks(costs: Costs, layout: Layout) -> list[str]:
    remarks = []
    if layout.sharded:
        remarks.append("In shards all singular values are computed; leading=K would only shorten the log.")
    if layout.processes > 1 and layout.bandwidth is None:
        remarks.append("The time of sending is not counted: --bandwidth says how fast it is.")
    if any(cost.from_disk for cost in costs.values()):
        remarks.append(
            f"W0 of {layout.per_machine} process{'es' * (layout.per_machine > 1)} takes more than half of this "
            "machine's free memory, so it is taken to be read from the disk at each snapshot."
        )
    remarks.append("Memory is what is in use; the C library may keep some of what is freed.")
    remarks.append(
        "The first snapshot is taken at the first step whatever it costs, and a last one at the end; an early series "
        "may borrow what ten minutes allow."
    )
    return remarks


def _sentence(plan: Plan) -> str:
    advice, budget = plan.advice, plan.scenario.budget
    values = "all singular values" if advice.leading is None else f"the {advice.leading} leading values"
    if advice.every == 1:
        what = f"{values} of all {advice.matrices} matrices"
    else:
        of = "block" if plan.scenario.model.named else "matrix"
        what = (
            f"{values} of one {of} in {advice.every} ({advice.matrices} of {len(plan.scenario.model.planned)} matrices)"
        )
    often = _count(snapshots_an_hour(advice.cost, budget))
    if advice.fits:
        return f"Recommended: {what}, {often} snapshots an hour within {_percent(budget)}:"
    return (
        f"Nothing fits {ENOUGH_AN_HOUR} snapshots an hour into {_percent(budget)} at these speeds. The cheapest "
        f"is {what}, {often} an hour; a larger --budget or more processes would allow more:"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return [line(heads), "-" * (sum(widths) + 2 * len(widths) - 2), *(line(row) for row in rows)]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
