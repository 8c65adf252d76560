"""`InRankCallback` and `TrackerCallback` inside a Trainer of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import inrank
from inrank.gpt2 import build, parse_size
from inrank_monitor import TrackerCallback, open_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

STEPS, CONTEXT, VOCABULARY = 12, 8, 40


class Sequences(Dataset[dict[str, Tensor]]):
    """Random tokens, always the same."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(VOCABULARY, (CONTEXT,), generator=generator)
        return {"input_ids": tokens, "labels": tokens}


class StopAfter(TrainerCallback):
    """Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@inrank.needs_gradient
def always_two_more(seen: inrank.Observation) -> int:
    """A rule that asks for the gradient, and whose answer depends on it."""
    assert seen.gradient is not None
    assert seen.gradient_outside is not None
    return seen.rank + 1 + int(seen.gradient_outside[0] > 0)


def gpt2(*, converted: bool = True) -> nn.Module:
    torch.manual_seed(1)
    model = build(parse_size("1x16"), VOCABULARY, CONTEXT)
    if converted:
        inrank.convert(model, initial_rank=1, buffer_rank=3)
    return model


def trainer(model: nn.Module, folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": STEPS, "save_steps": 5, "logging_steps": 2, "learning_rate": 1e-2, "data_seed": 3,
        "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **defaults | options)
    return Trainer(model, arguments, train_dataset=Sequences(), eval_dataset=Sequences(), callbacks=list(callbacks))


def growing(**options: Any) -> inrank.InRankCallback:
    return inrank.InRankCallback(**{"threshold": 0.95, "every": 2} | options)


def assert_same_models(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def resumable(file: Path) -> dict[str, Any]:
    """An optimizer's state, flat."""
    state = torch.load(file, weights_only=True)["state"]
    return {f"{place}.{name}": value for place, entry in state.items() for name, value in entry.items()}


def test_five_lines_train_with_ranks_that_grow(tmp_path: Path) -> None:
    model = gpt2()
    callback = growing()
    Trainer(
        model,
        TrainingArguments(str(tmp_path), max_steps=STEPS, report_to="none", disable_tqdm=True, use_cpu=True),
        train_dataset=Sequences(),
        callbacks=[callback],
    ).train()
    assert callback.controller is not None
    assert callback.controller.step_count == STEPS
    assert callback.controller.history
    assert {growth.step % 2 for growth in callback.controller.history} == {0}
    assert all(rank > 1 for rank in callback.controller.ranks.values())


@pytest.mark.parametrize(
    ("rule", "stop"), [(None, 6), (None, 10), (always_two_more, 11)], ids=["paper", "at a checkpoint", "gradient"]
)
def test_resumed_at_grown_ranks_is_bit_identical_to_uninterrupted(tmp_path: Path, rule: Any, stop: int) -> None:
    whole, whole_callback = gpt2(), growing(rule=rule)
    trainer(whole, tmp_path / "whole", whole_callback).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(gpt2(), tmp_path / "cut", growing(rule=rule), StopAfter(stop)).train()
    model, callback = gpt2(), growing(rule=rule)
    torch.manual_seed(99)  # whatever the process did before must not matter
    trainer(model, tmp_path / "cut", callback).train(resume_from_checkpoint=True)
    assert whole_callback.controller is not None
    assert callback.controller is not None
    early = [growth for growth in whole_callback.controller.history if growth.step <= 5]
    assert early  # the checkpoint is one of grown ranks, and the freshly converted model has the old ones
    assert callback.controller.history == whole_callback.controller.history
    assert callback.controller.ranks == whole_callback.controller.ranks
    assert_same_models(model, whole)
    one, other = (resumable(tmp_path / name / f"checkpoint-{STEPS}/optimizer.pt") for name in ("cut", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoint_is_one_that_from_pretrained_reads(tmp_path: Path) -> None:
    model = gpt2()
    trainer(model, tmp_path, growing()).train()
    assert_same_models(inrank.from_pretrained(tmp_path / f"checkpoint-{STEPS}"), model)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        GPT2LMHeadModel.from_pretrained(tmp_path / f"checkpoint-{STEPS}")


def test_checkpoint_elsewhere_is_named_by_resume_from(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "first", growing()).train()
    checkpoint = tmp_path / "first/checkpoint-5"
    with pytest.raises(FileNotFoundError, match=r"resumes at step 5.*InRankCallback\(resume_from"):
        trainer(gpt2(), tmp_path / "second", growing()).train(resume_from_checkpoint=str(checkpoint))
    callback = growing(resume_from=checkpoint)
    model = gpt2()
    trainer(model, tmp_path / "third", callback).train(resume_from_checkpoint=str(checkpoint))
    assert callback.controller is not None
    assert callback.controller.step_count == STEPS
    assert_same_models(model, inrank.from_pretrained(tmp_path / f"first/checkpoint-{STEPS}"))


def test_model_that_is_not_converted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no InRankLinear layer: call inrank\.convert first"):
        trainer(gpt2(converted=False), tmp_path, growing()).train()


def test_nothing_grows_after_until(tmp_path: Path) -> None:
    callback = growing(until=4, rule=lambda seen: seen.rank + 1)
    trainer(gpt2(), tmp_path, callback).train()
    assert callback.controller is not None
    assert sorted({growth.step for growth in callback.controller.history}) == [2, 4]


def test_optimizer_is_let_go_when_training_ends(tmp_path: Path) -> None:
    callback = growing()
    made = trainer(gpt2(), tmp_path, callback)
    made.train()
    optimizer = made.optimizer.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    made.train()  # and training may begin again
    assert callback.controller is not None
    assert callback.controller.step_count == STEPS


def test_accumulated_passes_are_one_step(tmp_path: Path) -> None:
    callback = growing()
    trainer(gpt2(), tmp_path, callback, gradient_accumulation_steps=2, per_device_train_batch_size=2).train()
    assert callback.controller is not None
    assert callback.controller.step_count == STEPS


def test_tracker_logs_what_the_trainer_logs(tmp_path: Path) -> None:
    tracker = TrackerCallback(tmp_path / "run", every=4, tensorboard=False, buffer_rank=3)
    trainer(gpt2(converted=False), tmp_path / "out", tracker, eval_strategy="steps", eval_steps=6).train()
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert list(run.measurements["step"].unique()) == [4, 8, 12]
    steps = run.scalars.groupby("name")["step"].agg(list)
    assert steps["loss"] == [2, 4, 6, 8, 10, 12]
    assert steps["learning_rate"] == steps["loss"]
    assert steps["eval_loss"] == [6, 12]
    assert not [name for name in steps.index if name.startswith("train_") or name in ("epoch", "total_flos")]
    history = json.loads((tmp_path / f"out/checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
    logged = run.scalars[run.scalars["name"] == "loss"]["value"].tolist()
    assert logged == [entry["loss"] for entry in history if "loss" in entry]


def test_tracker_changes_nothing(tmp_path: Path) -> None:
    plain, watched = gpt2(), gpt2()
    trainer(plain, tmp_path / "plain", growing()).train()
    tracker = TrackerCallback(tmp_path / "run", every=1, tensorboard=False, buffer_rank=3)
    trainer(watched, tmp_path / "watched", tracker, growing(tracker=tracker)).train()
    assert_same_models(plain, watched)


@pytest.mark.parametrize("first", ["tracker", "growing"])
def test_growths_become_events_whichever_callback_comes_first(tmp_path: Path, first: str) -> None:
    tracker = TrackerCallback(tmp_path / "run", every=4, tensorboard=False, buffer_rank=3)
    callback = growing(tracker=tracker)
    both = [tracker, callback] if first == "tracker" else [callback, tracker]
    trainer(gpt2(), tmp_path / "out", *both).train()
    assert callback.controller is not None
    events = open_run(tmp_path / "run").events
    grown = events[events["kind"] == "rank_grown"]
    assert list(zip(grown["step"], grown["matrix"], strict=True)) == [
        (growth.step, growth.name) for growth in callback.controller.history
    ]


def test_resumed_trainer_resumes_the_run_at_its_checkpoint(tmp_path: Path) -> None:
    def tracker() -> TrackerCallback:
        return TrackerCallback(tmp_path / "run", every=1, tensorboard=False, buffer_rank=3)

    cut = tracker()
    with pytest.raises(KeyboardInterrupt):
        trainer(gpt2(), tmp_path / "out", cut, StopAfter(8)).train()
    cut.close("KeyboardInterrupt")
    assert open_run(tmp_path / "run").status == "interrupted"
    trainer(gpt2(), tmp_path / "out", tracker()).train(resume_from_checkpoint=True)
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.info["segments"][-1]["resume_step"] == 5
    assert list(run.measurements["step"].unique()) == list(range(1, STEPS + 1))


def test_run_resumes_at_the_trackers_own_step_where_steps_were_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "out/checkpoint-5"
    first = TrackerCallback(tmp_path / "run", every=1, tensorboard=False, buffer_rank=3)
    trainer(gpt2(), tmp_path / "out", first).train()
    (folder / "inrank_monitor.json").write_text('{"step": 3}')  # as if fp16 had skipped two of the five
    second = TrackerCallback(tmp_path / "run", every=1, tensorboard=False, buffer_rank=3)
    trainer(gpt2(), tmp_path / "out", second).train(resume_from_checkpoint=str(folder))
    assert second.tracker is not None
    assert second.tracker.step_count == 3 + STEPS - 5


def test_new_training_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "out", TrackerCallback(tmp_path / "run", every=9, buffer_rank=3)).train()
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        trainer(gpt2(), tmp_path / "out2", TrackerCallback(tmp_path / "run", every=9, buffer_rank=3)).train()
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_wrong_option_of_the_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"include pattern .* matches no matrix"):
        trainer(gpt2(), tmp_path / "out", TrackerCallback(tmp_path / "run", include="*.nothing")).train()
    assert not (tmp_path / "run").exists()
