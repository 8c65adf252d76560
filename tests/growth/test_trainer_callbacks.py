"""`InRankCallback` inside a Trainer of one's own, alone and beside a `TrackerCallback`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainers import CONTEXT, STEPS, VOCABULARY, Sequences, StopAfter, assert_same_models, trainer
from helpers.training import step_hooks
from torch import nn
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

import inrank
from inrank.gpt2.models import build, parse_size
from inrank_monitor import TrackerCallback, open_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


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


def growing(**options: Any) -> inrank.InRankCallback:
    return inrank.InRankCallback(**{"threshold": 0.95, "every": 2} | options)


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


@pytest.mark.parametrize(
    ("option", "message"),
    [({"threshold": 2.0}, "threshold must be in"), ({"every": 0}, "every must be"), ({"rule": 3}, "rule must be")],
)
def test_an_option_out_of_range_is_named_before_a_trainer_is_made(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        growing(**option)


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
    assert step_hooks(optimizer) == 0
    made.train()  # and training may begin again
    assert callback.controller is not None
    assert callback.controller.step_count == STEPS


def test_accumulated_passes_are_one_step(tmp_path: Path) -> None:
    callback = growing()
    trainer(gpt2(), tmp_path, callback, gradient_accumulation_steps=2, per_device_train_batch_size=2).train()
    assert callback.controller is not None
    assert callback.controller.step_count == STEPS


def test_a_tracker_beside_it_changes_nothing(tmp_path: Path) -> None:
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
