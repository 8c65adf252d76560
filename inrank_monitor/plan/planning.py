"""make_plan(): from a model to what watching it will cost, and how to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from inrank_monitor.plan.advice import Advice, advise
from inrank_monitor.plan.calibration import calibrate
from inrank_monitor.plan.costs import cost
from inrank_monitor.plan.quantities import Cost, Rates
from inrank_monitor.plan.recorded import recorded
from inrank_monitor.plan.scenario import Scenario


@dataclass(frozen=True)
class Plan:
    """What was asked and what was found.

    Attributes:
        scenario: what was asked.
        rates: of this machine.
        costs: by number of leading values; None: all.
        advice: how to watch.
    """

    scenario: Scenario
    rates: Rates
    costs: Mapping[int | None, Cost]
    advice: Advice

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain numbers and names; seconds and bytes."""
        asked, model = self.scenario, self.scenario.model
        return {
            "model": {name: getattr(model, name) for name in ("name", "kind", "parameters", "watched", "dtype")},
            "matrices": [asdict(matrix) for matrix in model.planned],
            "layout": asdict(asked.layout),
            "device": str(asked.device),
            "directory": str(asked.directory),
            "budget": asked.budget,
            "rates": asdict(self.rates),
            "costs": {str(leading or "full"): asdict(each) for leading, each in self.costs.items()},
            "advice": asdict(self.advice),
        }


def make_plan(scenario: Scenario, progress: bool = False) -> Plan:
    """Measure this machine, and do the sums.

    Args:
        scenario: what is to be watched, and how.
        progress: show a bar on a terminal.

    Raises:
        OSError: the run's folder cannot be written to.
    """
    model, layout = scenario.model, scenario.layout
    rates = calibrate(scenario, progress)
    notes = {leading: recorded(model.matrices, leading) for leading in scenario.choices}
    costs = {leading: cost(model.planned, leading, layout, rates, note) for leading, note in notes.items()}
    return Plan(scenario, rates, costs, advise(scenario, rates, costs))
