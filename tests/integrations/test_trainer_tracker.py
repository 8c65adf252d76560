"""`TrackerCallback` inside transformers' Trainer: its steps are the Trainer's, whatever happens to the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.active import gpt2
from helpers.everything import state as everything
from helpers.trainer_worker import run_on_two_processes
from helpers.trainers import STEPS, Sequences, StopAfter, assert_same_models, trainer, trainer_arguments
from helpers.training import run_page_script
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from inrank_monitor import TrackerCallback, open_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def watched(directory: Path, **options: Any) -> TrackerCallback:
    return TrackerCallback(directory, **{"every": 1, "tensorboard": False, "buffer_rank": 3} | options)


def steps_of(directory: Path) -> list[int]:
    return [int(step) for step in open_run(directory).measurements["step"].unique()]


def log_of(directory: Path) -> tuple[pd.DataFrame, list[pd.DataFrame], pd.DataFrame]:
    """All that a run's log says of the training: no times, and nothing of what the tracker or an evaluation took."""
    run = open_run(directory)
    scalars = run.scalars[~run.scalars["name"].str.contains("tracker_|_runtime|_per_second")]
    spectra = [run.singular_values(name) for name in run.matrices.index]
    return run.measurements.drop(columns="time"), spectra, scalars.drop(columns="time").reset_index(drop=True)


def assert_same_logs(one: Path, other: Path) -> None:
    for left, right in zip(log_of(one), log_of(other), strict=True):
        lefts, rights = (left, right) if isinstance(left, list) else ([left], [right])
        for each, twin in zip(lefts, rights, strict=True):
            pd.testing.assert_frame_equal(each, twin, check_exact=True)


class Gradients(TrainerCallback):
    """Keeps every step's gradients."""

    def __init__(self) -> None:
        self.kept: list[list[Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept.append([parameter.grad.clone() for parameter in model.parameters()])


class Weights(TrainerCallback):
    """Keeps every step's weights."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.kept[state.global_step] = {name: value.detach().clone() for name, value in model.named_parameters()}


# --- passive


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 3},
        {"bf16": True, "activation_checkpointing": True, "optim": "adafactor"},
        {"max_steps": -1, "num_train_epochs": 2, "lr_scheduler_type": "cosine"},
    ],
    ids=["accumulated", "bf16", "epochs"],
)
def test_training_is_the_same_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    found = []
    for number in range(2):
        gradients = Gradients()
        model = gpt2(resid_pdrop=0.1, attn_pdrop=0.1)
        callbacks = [watched(tmp_path / "run"), gradients] if number else [gradients]
        made = trainer(model, tmp_path / f"out-{number}", *callbacks, **options)
        made.train()
        losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
        found.append((everything(model, made.optimizer.optimizer, losses), gradients.kept))
    (plain, plain_gradients), (tracked, tracked_gradients) = found
    assert not [key for key in plain if plain[key] != tracked[key]]
    assert len(plain_gradients) == len(tracked_gradients) > 5
    for one, other in zip(plain_gradients, tracked_gradients, strict=True):
        assert all(map(torch.equal, one, other))
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].nunique() == len(tracked_gradients)
    assert (run.measurements["frobenius_norm"] > 0).all()
    assert run.events.empty


# --- steps and scalars


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_steps": -1, "num_train_epochs": 2}, 10),
        ({"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2}, 6),
        ({"max_steps": 4, "gradient_accumulation_steps": 3}, 4),
        ({"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}, 6),
    ],
)
def test_steps_are_those_of_the_trainer(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    weights = Weights()
    trainer(gpt2(), tmp_path / "out", weights, watched(tmp_path / "run"), **options).train()
    assert list(weights.kept) == steps_of(tmp_path / "run") == list(range(1, steps + 1))


def test_spectra_are_those_of_the_weights_at_the_trainers_steps(tmp_path: Path) -> None:
    model, weights = gpt2(), Weights()
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer(model, tmp_path / "out", watched(tmp_path / "run"), weights).train()
    name = "transformer.h.0.mlp.c_fc.weight"
    values = open_run(tmp_path / "run").singular_values(name)
    for step, kept in weights.kept.items():
        expected = np.linalg.svd((kept[name].double() - first[name].double()).numpy(), compute_uv=False)
        np.testing.assert_allclose(values.loc[step], expected, atol=1e-6 * expected[0])


def test_a_skipped_step_is_a_step_as_it_is_to_the_trainer(tmp_path: Path) -> None:
    class SkipsTheThird(TrainerCallback):
        """What accelerate does where fp16 overflows: the optimizer does not step, the Trainer counts on."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
            optimizer.gradient_state._set_sync_gradients(state.global_step != 2)

    trainer(gpt2(), tmp_path / "out", SkipsTheThird(), watched(tmp_path / "run"), max_grad_norm=0).train()
    norms = open_run(tmp_path / "run").measurements.groupby("step")["frobenius_norm"].sum()
    assert list(norms.index) == list(range(1, STEPS + 1))
    assert norms[3] == norms[2] != norms[4]


def test_the_run_logs_what_the_trainer_logs(tmp_path: Path) -> None:
    class LogsMore(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            if self.state.global_step == 4:
                self.log({"train_accuracy": 0.5, "note": "not a number"})
            return super().training_step(*args, **kwargs)

    arguments = trainer_arguments(tmp_path / "out", eval_strategy="steps", eval_steps=6)
    data = Sequences()
    callback = watched(tmp_path / "run", every=4)
    made = LogsMore(gpt2(), arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
    made.train()
    made.evaluate()  # after the training: the run is closed
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert steps_of(tmp_path / "run") == [4, 8, 12]
    steps = run.scalars.groupby("name")["step"].agg(list)
    assert steps["loss"] == steps["learning_rate"] == steps["grad_norm"] == [2, 4, 6, 8, 10, 12]
    assert steps["eval_loss"] == [6, 12]
    assert steps["train_accuracy"] == [4]
    assert not {"epoch", "total_flos", "note", "train_loss", "train_runtime"} & set(steps.index)
    history = json.loads((tmp_path / f"out/checkpoint-{STEPS}/trainer_state.json").read_text())["log_history"]
    logged = run.scalars[run.scalars["name"] == "loss"]["value"].tolist()
    assert logged == [entry["loss"] for entry in history if "loss" in entry]


# --- resume


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "the same folder"),
        ({"gradient_accumulation_steps": 2}, "another folder"),
        ({"optim": "sgd"}, "a moved checkpoint"),
        ({"max_steps": -1, "num_train_epochs": 3}, "the same folder"),
    ],
    ids=["adamw", "accumulated", "sgd", "epochs"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, options: dict[str, Any], where: str) -> None:
    options = options | {"logging_steps": 1}  # the Trainer forgets a loss that it has summed and not yet logged
    trainer(gpt2(), tmp_path / "out-whole", watched(tmp_path / "whole"), **options).train()
    cut = watched(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt), cut:  # the checkpoint is of step 5
        trainer(gpt2(), tmp_path / "out", cut, StopAfter(8), **options).train()
    run = open_run(tmp_path / "parts")
    assert (run.status, run.info["ended"]["reason"]) == ("interrupted", "KeyboardInterrupt")
    checkpoint: str | bool = True
    if where == "another folder":
        checkpoint = str(tmp_path / "out/checkpoint-5")
    elif where == "a moved checkpoint":
        checkpoint = str(shutil.move(tmp_path / "out/checkpoint-5", tmp_path / "kept"))
    folder = tmp_path / ("out" if checkpoint is True else "out-2")
    model = gpt2(seed=7)  # its weights come with the checkpoint
    trainer(model, folder, watched(tmp_path / "parts"), **options).train(resume_from_checkpoint=checkpoint)
    run = open_run(tmp_path / "parts")
    assert run.status == "finished"
    assert run.info["segments"][-1]["resume_step"] == 5
    assert run.events[["step", "kind"]].to_numpy().tolist() == [[5, "resumed"]]
    assert_same_logs(tmp_path / "parts", tmp_path / "whole")


def test_one_callback_may_train_again_from_a_checkpoint(tmp_path: Path) -> None:
    callback = watched(tmp_path / "run")
    made = trainer(gpt2(), tmp_path / "out", callback)
    made.train()
    made.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-10"))
    run = open_run(tmp_path / "run")
    assert steps_of(tmp_path / "run") == list(range(1, STEPS + 1))
    assert [entry["resume_step"] for entry in run.info["segments"]] == [None, 10]


def test_a_resumed_training_may_begin_to_be_watched(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optim": "sgd"}
    trainer(gpt2(), tmp_path / "out", **options).train()
    checkpoint = tmp_path / "out/checkpoint-5"
    trainer(gpt2(), tmp_path / "out-2", watched(tmp_path / "run"), **options).train(resume_from_checkpoint=checkpoint)
    run = open_run(tmp_path / "run")
    assert steps_of(tmp_path / "run") == list(range(6, STEPS + 1))
    assert run.events[["step", "kind"]].to_numpy().tolist() == [[5, "began_late"]]
    assert "W0 is the weights of that step" in run.events["message"][0]
    assert set(run.scalars[run.scalars["name"] == "loss"]["step"]) == {6, 8, 10, 12}
    before = log_of(tmp_path / "run")[1]
    later = tmp_path / "out-2/checkpoint-10"  # and may be resumed, at the Trainer's step again
    trainer(gpt2(), tmp_path / "out-3", watched(tmp_path / "run"), **options).train(resume_from_checkpoint=later)
    assert open_run(tmp_path / "run").info["segments"][-1]["resume_step"] == 10
    assert all(one.equals(other) for one, other in zip(before, log_of(tmp_path / "run")[1], strict=True))


# --- the end


class Scored:
    """Metrics of an evaluation that are best at the `best`-th one."""

    def __init__(self, best: int) -> None:
        self.best, self.count = best, 0

    def __call__(self, _: Any) -> dict[str, float]:
        self.count += 1
        return {"score": -abs(self.count - self.best)}


BY_STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3}
BY_EPOCHS = {"eval_strategy": "epoch", "save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 9}


@pytest.mark.parametrize("every", [1, 100], ids=["measured at once", "measured at the end"])
@pytest.mark.parametrize(
    ("options", "stopping", "best", "last"),
    [(BY_STEPS, [], 3, 12), (BY_EPOCHS, [EarlyStoppingCallback(1)], 5, 10)],
    ids=["steps", "early stopping by epochs"],
)
def test_the_last_snapshot_is_of_the_trained_weights_where_the_best_ones_are_loaded(
    tmp_path: Path, options: dict[str, Any], stopping: list[TrainerCallback], best: int, last: int, every: int
) -> None:
    model, weights = gpt2(), Weights()
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    callbacks = [watched(tmp_path / "run", every=every), weights, *stopping]
    made = trainer(
        model,
        tmp_path / "out",
        *callbacks,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        **options,
    )
    made.compute_metrics = Scored(1)
    made.train()
    name = "transformer.h.0.mlp.c_fc.weight"
    assert list(weights.kept)[-1] == last
    assert torch.equal(model.get_parameter(name), weights.kept[best][name])  # they are loaded
    run = open_run(tmp_path / "run")
    assert steps_of(tmp_path / "run")[-1] == last
    expected = np.linalg.svd((weights.kept[last][name].double() - first[name].double()).numpy(), compute_uv=False)
    found = run.singular_values(name).loc[last]
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected[0])
    assert run.events[["step", "kind"]].to_numpy().tolist() == [[last, "best_model_loaded"]]
    assert f"the weights of checkpoint-{best}" in run.events["message"][0]


def test_an_error_in_training_ends_the_run_as_interrupted(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise ArithmeticError("the loss exploded")

    callback = watched(tmp_path / "run")
    with pytest.raises(ArithmeticError, match="the loss exploded"), callback:
        trainer(gpt2(), tmp_path / "out", callback, Fails()).train()
    run = open_run(tmp_path / "run")
    assert (run.status, run.info["ended"]["reason"]) == ("interrupted", "ArithmeticError")
    assert run.info["ended"]["step"] == 3
    assert steps_of(tmp_path / "run") == [1, 2, 3]
    assert callback.tracker is not None
    assert "transformer.h.0.mlp.c_fc.weight" in callback.tracker.summary()


def test_a_training_that_runs_out_of_memory_and_begins_again_is_one_run(tmp_path: Path) -> None:
    class RunsOut(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            if self._train_batch_size == 4 and self.state.global_step == 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return super().training_step(*args, **kwargs)

    arguments = trainer_arguments(tmp_path / "out", auto_find_batch_size=True, max_steps=6)
    RunsOut(gpt2(), arguments, train_dataset=Sequences(), callbacks=[watched(tmp_path / "run")]).train()
    run = open_run(tmp_path / "run")
    assert steps_of(tmp_path / "run") == list(range(1, 7))
    assert [entry["resume_step"] for entry in run.info["segments"]] == [None, 0]
    assert run.status == "finished"


# --- several processes


def test_two_processes_write_one_run_of_the_training_that_they_share(tmp_path: Path) -> None:
    first, second = run_on_two_processes("trainer", tmp_path)
    assert [first[f"{name}, watched"] for name in ("together", "alone")] == [True, True]
    assert [second[f"{name}, watched"] for name in ("together", "alone")] == [True, False]
    for found in (first, second):  # and nothing of the training has changed on either
        for name in ("together", "alone"):
            assert all(torch.equal(value, first["plain"][key]) for key, value in found[name].items()), name
    name = "transformer.h.0.mlp.c_fc.weight"
    for directory, last in ((tmp_path / "together", "resumed"), (tmp_path / "alone", "alone")):
        run = open_run(directory)
        assert run.status == "finished"
        assert steps_of(directory) == list(range(1, STEPS + 1))
        update = first[last][name].double() - first["first"][name].double()
        expected = np.linalg.svd(update.numpy(), compute_uv=False)
        np.testing.assert_allclose(run.singular_values(name).loc[STEPS], expected, atol=1e-6 * expected[0])
        assert run.scalars[run.scalars["name"] == "loss"]["step"].tolist() == [2, 4, 6, 8, 10, 12]
    assert open_run(tmp_path / "together").info["segments"][-1]["resume_step"] == 5


# --- what is refused


def test_a_new_training_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "out", watched(tmp_path / "run")).train()
    before = (tmp_path / "run/run.json").read_bytes()
    callback = watched(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(FileExistsError, match="holds a run already"):
            trainer(gpt2(), tmp_path / "out2", callback).train()
    assert callback.tracker is None
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_a_training_killed_before_its_first_checkpoint_begins_again_with_resume(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "out-whole", watched(tmp_path / "whole")).train()
    cut = watched(tmp_path / "run", resume=True)
    with pytest.raises(KeyboardInterrupt), cut:
        trainer(gpt2(), tmp_path / "out", cut, StopAfter(3)).train()
    trainer(gpt2(), tmp_path / "out", watched(tmp_path / "run", resume=True)).train()
    assert_same_logs(tmp_path / "run", tmp_path / "whole")


def test_resume_refuses_other_initial_weights(tmp_path: Path) -> None:
    cut = watched(tmp_path / "run", resume=True)
    with pytest.raises(KeyboardInterrupt), cut:
        trainer(gpt2(), tmp_path / "out", cut, StopAfter(3)).train()
    callback = watched(tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"begins at step 0, but its weights are not those .* at step 3: resume from"):
        trainer(gpt2(seed=5), tmp_path / "out", callback).train()
    assert callback.tracker is None
    assert steps_of(tmp_path / "run") == [1, 2, 3]


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: TrackerCallback("runs/x", evry=5), TypeError, "unexpected keyword argument 'evry'"),
        (lambda: TrackerCallback("runs/x", optimizer=None), TypeError, "multiple values for argument 'optimizer'"),
        (lambda: TrackerCallback(None), TypeError, "directory must be a path"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_found_before_there_is_a_trainer(
    make: Callable[[], TrackerCallback], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        make()


def test_a_wrong_value_of_an_option_is_named_when_training_begins(tmp_path: Path) -> None:
    model: nn.Module = gpt2()
    before = gpt2()
    with pytest.raises(ValueError, match=r"include pattern .* matches no matrix"):
        trainer(model, tmp_path / "out", TrackerCallback(tmp_path / "run", include="*.nothing")).train()
    assert not (tmp_path / "run").exists()
    assert_same_models(model, before)


# --- the documentation's script


def test_the_script_runs_and_goes_on_when_run_again(tmp_path: Path) -> None:
    for steps in (40, 60):
        assert "transformer.h.1.mlp.c_fc.weight" in run_page_script("transformers_trainer", tmp_path / "run", steps)
    run = open_run(tmp_path / "run")
    assert run.info["segments"][-1]["resume_step"] == 40
    assert steps_of(tmp_path / "run") == [10, 20, 30, 40, 50, 60]
    assert run.status == "finished"
