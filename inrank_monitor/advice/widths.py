"""If you trained again: how wide each feed-forward block should be, from the plan that the run keeps.

A spectrum does not tell it: widths by demand need the model and some batches, which `inrank.plan_widths(run=)` has.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pandas as pd

from inrank_monitor.report import printable, width_table, widths_line

if TYPE_CHECKING:
    from inrank_monitor.runs import Run

NO_PLAN = (
    "If you trained again: inrank.plan_widths(model, batches, budget=0.45, run=...) keeps here how wide each "
    "feed-forward block should be."
)
_WIDTH = 120


def advise_widths(run: Run) -> pd.DataFrame:
    """The newest plan of widths that a run keeps, by feed-forward block; empty where there is none.

    Args:
        run: an open run.

    Returns:
        DataFrame indexed by block, in the model's order: step (of the weights), d_ff (for a model that is trained
        again), full_d_ff (of this one), parameters (weights of the block, biases not counted), parameters_saved,
        share_saved (of its weights), advice (`d_ff 64 of 768`).
    """
    return width_table(run.width_plans)


def width_text(table: pd.DataFrame) -> str:
    """The plan for a terminal: a line a block, then the sum; without one, how to get it.

    Args:
        table: from `advise_widths`.
    """
    if table.empty:
        return f"{textwrap.fill(NO_PLAN, _WIDTH)}\n"
    names = [printable(str(name)) for name in table.index]
    longest = max(map(len, ["feed-forward block", *names]))
    head = f"{'feed-forward block':<{longest}}  {'weights saved':>15}  if you trained again"
    lines = [
        f"{name:<{longest}}  {row['parameters_saved']:>15,}  {row['advice']}"
        for name, row in zip(names, table.to_dict("records"), strict=True)
    ]
    line = widths_line(table)
    return "\n".join([head, "-" * len(head), *lines, "", textwrap.fill(f"{line[0].upper()}{line[1:]}", _WIDTH)]) + "\n"
