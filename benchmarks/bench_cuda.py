"""What only a GPU settles, in under eight minutes on one H100; a table that the README can quote.

    CUBLAS_WORKSPACE_CONFIG=:4096:8 python benchmarks/bench_cuda.py --table build/gpu.md
    python benchmarks/bench_cuda.py --device cpu --tiny      # a rehearsal of all that needs no GPU, in CI

A check that raises fails alone; none begins that would end after --budget seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from device_checks import CHECKS, Check, Found, Setting


def outcome(check: Check, setting: Setting, left: float) -> tuple[str, Found, float]:
    """What came of a check: a word, what it found, its seconds."""
    if check.needs_cuda and not setting.is_cuda:
        return "needs a GPU", Found(True, ""), 0.0
    if check.seconds > left:
        return "left out", Found(False, "", {"seconds": f"{check.seconds:.0f} needed, {left:.0f} left"}), 0.0
    began = time.perf_counter()
    try:
        found = check.run(setting)
    except Exception:  # the others are to be seen all the same
        found = Found(False, "", {"raised": traceback.format_exc()[-1500:]})
    if setting.is_cuda:
        torch.cuda.empty_cache()
    return "passes" if found.passes else "FAILS", found, time.perf_counter() - began


def short(value: Any) -> str:
    """A number or several, as a table shows them."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {short(one)}" for name, one in list(value.items())[:4])
    return str(value)


def table(where: str, rows: list[tuple[str, str, Found, float]]) -> str:
    """In Markdown."""
    lines = [f"On {where}, torch {torch.__version__}:", "", "| check | limit | | found |", "|---|---|---|---|"]
    for name, word, found, _ in rows:
        numbers = "; ".join(f"{key}: {short(value)}" for key, value in found.numbers.items())
        lines.append(f"| {name.replace('_', ' ')} | {found.limit} | {word} | {numbers.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run them; 1 if any failed or was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a rehearsal")
    parser.add_argument("--budget", type=float, default=470, help="seconds for all of them")
    parser.add_argument("--only", nargs="*", help="of these names")
    parser.add_argument("--table", type=Path, help="a file for the table, in Markdown; the numbers beside it, in JSON")
    options = parser.parse_args()
    setting = Setting(torch.device(options.device), options.tiny)
    if setting.is_cuda and not torch.cuda.is_available():
        print("there is no GPU here: --device cpu --tiny rehearses what needs none", file=sys.stderr)
        return 2
    where = torch.cuda.get_device_name() if setting.is_cuda else "the CPU (a rehearsal)"
    rows, began = [], time.perf_counter()
    for check in CHECKS:
        if options.only and check.name not in options.only:
            continue
        word, found, seconds = outcome(check, setting, options.budget - (time.perf_counter() - began))
        rows.append((check.name, word, found, seconds))
        print(f"{check.name:20} {word:12} {seconds:6.1f} s  {json.dumps(found.numbers, default=str)[:900]}", flush=True)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(table(where, rows), encoding="utf-8")
        numbers = {name: {"outcome": word, "seconds": each, **found.numbers} for name, word, found, each in rows}
        options.table.with_suffix(".json").write_text(json.dumps(numbers, indent=1, default=str), encoding="utf-8")
    return int(any(word in ("FAILS", "left out") for _, word, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
