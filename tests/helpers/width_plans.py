"""Plans of widths in a run, without a model to calibrate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inrank_monitor.runs import add_tables


def write_width_plan(run: Path, widths: Mapping[str, int], step: int, time: float = 2e9) -> None:
    """As if `inrank.plan_widths(run=)` had kept them at a step, of blocks of 768 hidden units with 384 weights each."""
    count = len(widths)
    same = {"step": step, "time": time, "full_width": 768, "unit_parameters": 384}
    columns = {name: [value] * count for name, value in same.items()}
    add_tables(run, {"width_plans": columns | {"block": list(widths), "width": list(widths.values())}})
