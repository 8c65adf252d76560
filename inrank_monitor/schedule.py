"""When to measure, for `attach(schedule=...)`: the default, a fixed interval, a function of the step, or one's own.

Automatic   the default: a curve from the first steps on, inside a budget
Every       each multiple of so many steps, whatever it costs
Where       where a function of the step is true
Schedule    what a tracker asks of any of them
"""

from __future__ import annotations

from inrank_monitor.tracking import Automatic, Every, Schedule, Where

__all__ = ["Automatic", "Every", "Schedule", "Where"]
