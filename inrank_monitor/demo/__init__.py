"""The demo: a small GPT-2 trained from scratch on real text, with the tracker attached.

loop       the example to copy from, and what the command does around it
training   model, optimizer, schedule and random generators; their checkpoint
text       the text and its byte-level BPE
options    the command's options, and what a run keeps of them
"""

from __future__ import annotations

from inrank_monitor.demo.loop import DemoResult, main, run_demo
from inrank_monitor.demo.options import DemoOptions, add_arguments
from inrank_monitor.demo.text import DemoError

__all__ = ["DemoError", "DemoOptions", "DemoResult", "add_arguments", "main", "run_demo"]
