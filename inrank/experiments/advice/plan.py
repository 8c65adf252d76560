"""Which trainings the experiment has: for every seed a pre-training, a full fine-tuning, and two LoRAs a rule.

A seed of its own chooses the learning rates: there each LoRA is trained at each rate, and on the others at its best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from inrank.experiments.advice.training import ADVISED, EVALUATIONS, UNIFORM, adapt, fine_tune, pretrain
from inrank.experiments.corpus import text_settings
from inrank.reproduction.experiment import ExperimentError, Request, Training
from inrank_monitor.advice import RANK_SOURCES, RankSource
from inrank_monitor.console import typed

RULES: dict[RankSource, str] = {
    "loss": "ranks by loss",
    "energy": "energy ranks (90 %)",
    "paper": "explained-ratio ranks (eq. 7)",
    "signal": "signal ranks",
}
assert set(RULES) == set(RANK_SOURCES)
ARMS = (ADVISED, UNIFORM)
TUNING_SEED = 1000
_COMMON = {"pretraining_rate": 1e-3, "full_rate": 3e-4, "evaluations": EVALUATIONS}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        **{"size": "1x32", "vocabulary": 300, "context": 16, "batch": 4, "choosing_windows": 16, "evaluations": 30},
        **{"pretraining_steps": 24, "steps": 24, "rates": (3e-3,), "full_rate": 1e-2},
    },
    "tiny": {
        **{"size": "4x96", "vocabulary": 1024, "context": 64, "batch": 8, "choosing_windows": 64},
        **{"pretraining_steps": 400, "steps": 160, "rates": (3e-3, 1e-2, 3e-2), "full_rate": 1e-3},
    },
    "small": {
        **{"size": "6x384", "vocabulary": 8192, "context": 256, "batch": 16, "choosing_windows": 64},
        **{"pretraining_steps": 6000, "steps": 2000, "rates": (3e-4, 1e-3, 3e-3, 1e-2)},
    },
    "paper": {
        **{"size": "small", "vocabulary": 50_257, "context": 1024, "batch": 8, "choosing_windows": 64},
        **{"pretraining_steps": 20_000, "steps": 5000, "rates": (1e-4, 3e-4, 1e-3, 3e-3)},
    },
}
_IMPORTS = ("peft", "transformers.models.gpt2.modeling_gpt2")


@dataclass(frozen=True)
class Seed:
    """The trainings of one seed."""

    request: Request
    seed: int

    @property
    def _scale(self) -> dict[str, Any]:
        return _COMMON | SCALES[self.request.scale]

    def _settings(self, **more: Any) -> Mapping[str, Any]:
        names = ("size", "context", "batch", "choosing_windows", "steps")
        texts = text_settings(self.request, self._scale["vocabulary"])
        return {name: self._scale[name] for name in names} | texts | {"seed": self.seed} | more

    def _name(self, what: str) -> str:
        return f"advice-{what}-seed-{self.seed}"

    @property
    def pretrained(self) -> Training:
        """On the first text."""
        settings = self._settings(
            steps=self._scale["pretraining_steps"], pretraining_rate=self._scale["pretraining_rate"]
        )
        return Training(self._name("pretrained"), pretrain, settings, (), _IMPORTS)

    @property
    def full(self) -> Training:
        """All weights, on the second text."""
        before = self.pretrained.name
        own = {name: self._scale[name] for name in ("full_rate", "evaluations")}
        return Training(self._name("full"), fine_tune, self._settings(pretrained=before, **own), (before,), _IMPORTS)

    def lora(self, rule: RankSource, arm: str, rate: float | None = None) -> Training:
        """One arm of a rule; at a given rate, or at the best that the tuning seed has found for this arm."""
        rates = self._scale["rates"]
        rate = rates[0] if rate is None and len(rates) == 1 else rate
        tuned = [] if rate is not None else [one.name for one in Seed(self.request, TUNING_SEED).rates_of(rule, arm)]
        what = f"{rule}-{arm}" + (f"-rate-{rate:g}" if self.seed == TUNING_SEED else "")
        names = {"pretrained": self.pretrained.name, "full": self.full.name}
        settings = self._settings(rule=rule, arm=arm, rate=rate, rates_from=tuned, **names)
        return Training(self._name(what), adapt, settings, (*names.values(), *tuned), _IMPORTS)

    def rates_of(self, rule: RankSource, arm: str) -> list[Training]:
        """An arm at each rate."""
        return [self.lora(rule, arm, rate) for rate in self._scale["rates"]]


def trainings(request: Request) -> Sequence[Training]:
    """All of them, those first for which others wait.

    Raises:
        ExperimentError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        command = typed("pip", "install", "inrank-monitor[peft]")
        raise ExperimentError(f"advice trains LoRAs by PEFT, which is not installed (the extra `peft`): {command}")
    pairs = [(rule, arm) for rule in RULES for arm in ARMS]
    seeds = [Seed(request, seed) for seed in request.seeds]
    tuning = [Seed(request, TUNING_SEED)] if len(SCALES[request.scale]["rates"]) > 1 else []
    found = [training for one in (*tuning, *seeds) for training in (one.pretrained, one.full)]
    found += [training for one in tuning for pair in pairs for training in one.rates_of(*pair)]
    return found + [one.lora(*pair) for one in seeds for pair in pairs]
