"""How wide the feed-forward blocks should be in a model that is trained again: the newest plan that a run keeps."""

from __future__ import annotations

from html import escape

import pandas as pd

from inrank_monitor.report.source import RunTables
from inrank_monitor.report.table_sections import html_table

_LISTED = 8  # widths that a sentence names one by one
_CAPTION = (
    "d_ff by demand: what the directions of each block's weights do for the loss, under one budget. For a model that "
    "is trained from the start; inrank train --d-ff and inrank.narrow take it."
)


def width_table(width_plans: pd.DataFrame) -> pd.DataFrame:
    """The newest plan of `Run.width_plans`, by block, in the model's order; empty where none was kept.

    Returns:
        DataFrame indexed by block: step (of the weights), d_ff (for a model that is trained again), full_d_ff (of this
        one), parameters (weights of the block, biases not counted), parameters_saved, share_saved (of its weights),
        advice (`d_ff 64 of 768`).
    """
    newest: pd.DataFrame = width_plans[width_plans["time"] == width_plans["time"].max()].set_index("block")
    table: pd.DataFrame = newest[["step"]].astype("int64")
    table["d_ff"], table["full_d_ff"] = newest["width"].astype("int64"), newest["full_width"].astype("int64")
    unit = newest["unit_parameters"].astype("int64")
    table["parameters"] = table["full_d_ff"] * unit
    table["parameters_saved"] = (table["full_d_ff"] - table["d_ff"]) * unit
    table["share_saved"] = table["parameters_saved"] / table["parameters"]
    pairs = zip(table["d_ff"], table["full_d_ff"], strict=True)
    table["advice"] = pd.array([f"d_ff {width} of {full}" for width, full in pairs], dtype=object)
    return table


def widths_line(table: pd.DataFrame) -> str:
    """What the plan comes to, in a sentence; empty where there is none.

    Args:
        table: from `width_table`.
    """
    if table.empty:
        return ""
    widths = [str(width) for width in table["d_ff"]]
    some = f"{table['d_ff'].min()} to {table['d_ff'].max()}" if len(widths) > _LISTED else ", ".join(widths)
    saved, whole = int(table["parameters_saved"].sum()), int(table["parameters"].sum())
    return (
        f"if you trained again: d_ff {some} in the {len(table)} feed-forward blocks, {saved:,} of their {whole:,} "
        f"weights less ({saved / whole:.1%}), by what the loss asked for at step {table['step'].iloc[0]}."
    )


def widths_section(run: RunTables) -> str:
    """The plan as a table of the page; empty where there is none."""
    table = width_table(run.width_plans)
    if table.empty:
        return ""
    rows = [
        [str(block), str(row["advice"]), f"{row['parameters_saved']:,}", f"{row['share_saved']:.0%}", str(row["step"])]
        for block, row in zip(table.index, table.to_dict("records"), strict=True)
    ]
    line = widths_line(table)
    return "\n".join(
        [
            "<h2>If you trained again</h2>",
            f'<p class="caption">{escape(f"{line[0].upper()}{line[1:]} {_CAPTION}")}</p>',
            html_table(["feed-forward block", "advice", "weights saved", "share", "step"], rows, text=(0, 1)),
        ]
    )
