from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.made_runs import append_steps, make_run, names_of
from helpers.training import python

from inrank_monitor import open_run
from inrank_monitor.report import matrix_table, report_table, runs_table, verdict
from inrank_monitor.runs import RunLog, SharedRun, list_runs
