"""A run to ranks worth using: what each would save in training, and the settings of a LoRA with these ranks.

Example:
    >>> from inrank_monitor import open_run
    >>> from inrank_monitor.advice import advise, lora_config
    >>> table = advise(open_run("runs/first"))  # doctest: +SKIP
    >>> LoraConfig(**lora_config(table))        # doctest: +SKIP
"""

from __future__ import annotations

from inrank_monitor.advice.lora import lora_config, lora_json, module_name, rank_pattern
from inrank_monitor.advice.sources import RANK_SOURCES, RankSource
from inrank_monitor.advice.table import advice_table, advise, savings
from inrank_monitor.advice.text import advice_csv, advice_text
from inrank_monitor.advice.widths import NO_PLAN, advise_widths, width_text

__all__ = [
    "NO_PLAN",
    "RANK_SOURCES",
    "RankSource",
    "advice_csv",
    "advice_table",
    "advice_text",
    "advise",
    "advise_widths",
    "lora_config",
    "lora_json",
    "module_name",
    "rank_pattern",
    "savings",
    "width_text",
]
