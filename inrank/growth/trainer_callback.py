"""InRankCallback: ranks that grow inside transformers' Trainer.

    inrank.convert(model)
    Trainer(model, args, train_dataset=data, callbacks=[inrank.InRankCallback(threshold=0.9)]).train()

A checkpoint of the Trainer holds the controller's state beside the weights, whose own entries carry the ranks: give
`train(resume_from_checkpoint=...)` a freshly converted model, and it goes on at the ranks that the checkpoint has.
Under torchrun nothing else is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inrank.growth.controller import RankController
from inrank.growth.options import GrowthOptions, rule_of
from inrank.growth.rule import Rule
from inrank_monitor.ranks import Definition
from inrank_monitor.runs import local_path, write_json

if TYPE_CHECKING:
    from inrank_monitor.tracking import SpectrumTracker

STATE_FILE = "inrank_controller.json"


class InRankCallback(TrainerCallback):
    """Makes a `RankController` when training begins, keeps its state in the Trainer's checkpoints, and ends it.

    Args:
        threshold: α of the paper's rule.
        every: optimizer steps between checks, or a function step -> bool.
        definition: of the explained ratio.
        rule: another rule; see `inrank.growth_rule`.
        until: last step that may be checked; None for no end.
        gradient_steps: over how many steps the gradient is averaged for a rule that needs it.
        tracker: an `inrank_monitor.TrackerCallback` (anywhere in the Trainer's callbacks) or a `SpectrumTracker`:
            growths become its `rank_grown` events.
        seed: of the new columns.
        resume_from: the checkpoint that training resumes from, if it is not in the Trainer's `output_dir`.

    Attributes:
        controller: None before training begins.

    Raises:
        ValueError: an option out of range; at the beginning of training, what else `RankController` refuses.
        FileNotFoundError: at the beginning of a resumed training: its checkpoint holds no controller state.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.9,
        every: int | Callable[[int], bool] = 25,
        definition: Definition = "paper",
        rule: Rule | None = None,
        until: int | None = None,
        gradient_steps: int = 8,
        tracker: Any = None,
        seed: int = 0,
        resume_from: str | Path | None = None,
    ) -> None:
        self._options = GrowthOptions(
            rule=rule_of(rule, threshold, definition),
            every=every,
            until=until,
            gradient_steps=gradient_steps,
            seed=seed,
        )
        self._events = _Events(tracker)
        self._resume_from = None if resume_from is None else local_path(resume_from, "resume_from")
        self.controller: RankController | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make the controller, and let it take up the checkpoint's state if training resumes."""
        self.detach()
        events = cast("SpectrumTracker", self._events)
        controller = RankController.with_options(model, optimizer, self._options, events)
        try:
            if state.global_step > 0:
                folder = Path(self._resume_from or checkpoint_folder(args, state))
                controller.load_state_dict(_read_state(folder, args, state.global_step))
        except BaseException:
            controller.detach()
            raise
        self.controller = controller.attach()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Let the tracker know what grew at this step."""
        self._events.pass_on()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the state into the checkpoint: JSON, or a torch file a process if the rule needs the gradient."""
        if self.controller is None:
            return
        folder, content = checkpoint_folder(args, state), self.controller.state_dict()
        if "gradient" in content:  # each process has its own share of the gradient
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(content, folder / _gradient_file(args))
        elif args.should_save:
            write_json(folder / STATE_FILE, content)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the optimizer."""
        self.detach()

    def detach(self) -> None:
        """Let go of the optimizer; the Trainer has no hook for a training that raised, so call it then."""
        if self.controller is not None:
            self.controller.detach()


class _Events:
    """Keeps events until the end of the step: the tracker may begin, and count a step, later than the controller."""

    def __init__(self, watched: Any) -> None:
        self._watched = watched
        self._waiting: list[tuple[str, str | None, str]] = []

    def event(self, kind: str, matrix: str | None, message: str) -> None:
        """As `SpectrumTracker.event`."""
        self._waiting.append((kind, matrix, message))

    def pass_on(self) -> None:
        """To the tracker, or to a callback's; only the main process has one."""
        tracker = getattr(self._watched, "tracker", self._watched)
        for event in self._waiting if tracker is not None else []:
            tracker.event(*event)
        self._waiting = []


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where the Trainer keeps this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _gradient_file(args: TrainingArguments) -> str:
    return f"inrank_controller_{args.process_index}.pt"


def _read_state(folder: Path, args: TrainingArguments, step: int) -> dict[str, Any]:
    if (folder / STATE_FILE).is_file():
        content: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return content
    if (folder / _gradient_file(args)).is_file():
        return dict(torch.load(folder / _gradient_file(args), map_location="cpu", weights_only=True))
    raise nothing_to_resume(folder, STATE_FILE, step, InRankCallback)


def nothing_to_resume(folder: Path, file: str, step: int, callback: type[TrainerCallback]) -> FileNotFoundError:
    """What a callback raises whose state is not in the checkpoint."""
    return FileNotFoundError(
        f"training resumes at step {step}, but {folder} holds no {file}: "
        f"name the checkpoint by {callback.__name__}(resume_from=...), or begin anew"
    )
