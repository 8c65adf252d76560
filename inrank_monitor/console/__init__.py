"""What terminals and notebooks are shown, and how the dashboard is started from one."""

from __future__ import annotations

from inrank_monitor.console.command_line import (
    Parser,
    add_command,
    add_output,
    error_text,
    examples_text,
    plain_where_needed,
    typed,
    use_any_terminal,
)
from inrank_monitor.console.launch import RUNS_VARIABLE, app_directory, launch_dashboard
from inrank_monitor.console.notebook import ROWS_AT_MOST, html_rows, never_raises

__all__ = [
    "ROWS_AT_MOST",
    "RUNS_VARIABLE",
    "Parser",
    "add_command",
    "add_output",
    "app_directory",
    "error_text",
    "examples_text",
    "html_rows",
    "launch_dashboard",
    "never_raises",
    "plain_where_needed",
    "typed",
    "use_any_terminal",
]
