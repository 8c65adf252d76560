"""Which trainings the experiment has: every arm with every seed, at the learning rate that the arm is best at.

The first seed chooses the rate: there each arm is trained at each of them, and the one with the lowest loss on the
validation part counts, for the other seeds too. What is shown is the loss on the test part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inrank.experiments.corpus import text_settings
from inrank.experiments.worth_it.arms import BUDGETS, WIDTHS, Arm, arms, low_rank
from inrank.experiments.worth_it.training import train
from inrank.gpt2.models import parse_size
from inrank.reproduction.experiment import ExperimentError, Request, Training

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        **{"size": "2x32", "vocabulary": 300, "context": 16, "batch": 4, "steps": 12, "rates": (3e-3,)},
        **{"validation_tokens": 200, "test_tokens": 400, "calibration_batches": 2, "every": 4},
    },
    "tiny": {
        **{"size": "2x96", "vocabulary": 1024, "context": 64, "batch": 8, "steps": 200, "rates": (1e-3, 2e-3, 4e-3)},
        **{"validation_tokens": 8000, "test_tokens": 8000, "calibration_batches": 8, "every": 20},
    },
    "small": {
        **{
            "size": "4x256",
            "vocabulary": 2048,
            "context": 64,
            "batch": 8,
            "steps": 200,
            "rates": (5e-4, 1e-3, 2e-3, 4e-3),
        },
        **{"validation_tokens": 12_000, "test_tokens": 20_000, "calibration_batches": 8, "every": 20},
    },
    "paper": {
        **{"size": "small", "vocabulary": 50_257, "context": 1024, "batch": 16, "steps": 20_000},
        **{"rates": (3e-4, 6e-4, 1.2e-3, 2.4e-3), "validation_tokens": 250_000, "test_tokens": 250_000},
        **{"calibration_batches": 24, "every": 500},
    },
}
_BUDGETS = {"smoke": (0.45,), "tiny": (0.45, 0.15)}
_OF_TRAINING = (
    *("size", "context", "batch", "steps", "validation_tokens", "test_tokens", "calibration_batches", "every"),
)
IMPORTS = ("transformers.models.gpt2.modeling_gpt2", "torch.utils.flop_counter")


def budgets(request: Request) -> tuple[float, ...]:
    """Of a scale."""
    return _BUDGETS.get(request.scale, BUDGETS)


def arms_of(request: Request) -> list[Arm]:
    """Of a scale, those first on which most depends."""
    return arms(budgets(request), whole=request.scale in ("small", "paper"))


@dataclass(frozen=True)
class Seed:
    """The trainings of one seed."""

    request: Request
    seed: int

    @property
    def chooses(self) -> bool:
        """Whether each arm is trained at each learning rate."""
        return self.seed == self.request.seeds[0]

    def trainings(self, arm: Arm) -> list[Training]:
        """Of an arm: one at each learning rate, or one at the best that the first seed has found."""
        rates = SCALES[self.request.scale]["rates"]
        if self.chooses:
            return [self._training(arm, rate, ()) for rate in rates]
        return [self._training(arm, None, tuple(one.name for one in self._first.trainings(arm)))]

    @property
    def _first(self) -> Seed:
        return Seed(self.request, self.request.seeds[0])

    @property
    def widths(self) -> Training:
        """A short dense training on which widths are planned, at the middle rate."""
        rates = SCALES[self.request.scale]["rates"]
        return self._training(WIDTHS, rates[len(rates) // 2], ())

    def _training(self, arm: Arm, rate: float | None, rates_from: tuple[str, ...]) -> Training:
        scale = SCALES[self.request.scale]
        needs: dict[str, str | None] = {"widths_from": None, "as_cheap_as": None}
        if arm.kind == "narrow" and arm.allocation == "demand":
            needs["widths_from"] = self.widths.name
        if arm.is_cheaper_dense:
            assert arm.budget is not None
            needs["as_cheap_as"] = self._first.trainings(low_rank(arm.budget))[0].name
        settings = {
            **{name: scale[name] for name in _OF_TRAINING},
            **text_settings(self.request, scale["vocabulary"]),
            **{"arm": arm.settings, "seed": self.seed, "rate": rate, "rates_from": list(rates_from), **needs},
            "buffer_rank": max(1, parse_size(scale["size"]).width // 8),
        }
        if arm.kind == "widths":
            settings["budgets"] = list(budgets(self.request))
        several = self.chooses and rate is not None and arm.kind != "widths"
        name = f"worth-it-{arm.name}" + (f"-rate-{rate:g}" if several else "") + f"-seed-{self.seed}"
        return Training(name, train, settings, (*rates_from, *filter(None, needs.values())), IMPORTS)


def check_device(request: Request, name: str) -> None:
    """Raise an ExperimentError if the experiment of that name was asked for at the paper's size without a GPU."""
    if request.scale == "paper" and request.device == "cpu":
        raise ExperimentError(
            f"{name} at scale paper trains GPT-2 small and needs a GPU: --device cuda, or --scale small"
        )


def trainings(request: Request) -> Sequence[Training]:
    """All of them, the first seed's first.

    Raises:
        ExperimentError: the paper's size was asked for without a GPU.
    """
    check_device(request, "worth-it")
    found = [Seed(request, seed).widths for seed in request.seeds]
    return found + [
        one for seed in request.seeds for arm in arms_of(request) for one in Seed(request, seed).trainings(arm)
    ]
