"""`FactorizeCallback` inside a Trainer: when, on what, beside what, and resumed to the bit on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.trainers import (
    CONTEXT,
    STEPS,
    VOCABULARY,
    Sequences,
    StopAfter,
    assert_same_models,
    trainer,
    trainer_arguments,
)
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

import inrank
from inrank.gpt2.models import build, parse_size, ranks_of
from inrank_monitor import TrackerCallback, open_run

pytestmark = pytest.mark.usefixtures("one_thread")
slow = pytest.mark.slow
LAYERS = ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"]


def gpt2() -> nn.Module:
    torch.manual_seed(1)
    return build(parse_size("1x16"), VOCABULARY, CONTEXT)


def callback(**options: Any) -> inrank.FactorizeCallback:
    return inrank.FactorizeCallback(**{"at": 0.5, "budget": 0.5} | options)


class Seen(TrainerCallback):
    """The ranks at the end of each step, and the indices that were trained on."""

    def __init__(self) -> None:
        self.ranks: dict[int, list[int]] = {}
        self.rates: dict[int, list[float]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ranks[state.global_step] = list(ranks_of(kwargs["model"]).values())
        self.rates[state.global_step] = [group["lr"] for group in kwargs["optimizer"].param_groups]


class Watched(Sequences):
    """Remembers which places were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.asked.append(index)
        return super().__getitem__(index)


def resumable(checkpoint: Path) -> dict[str, Any]:
    """An optimizer's state and rates, flat."""
    file = next(checkpoint.glob("*optimizer.pt"))
    content = torch.load(file, weights_only=True)
    found = {f"{place}.{name}": value for place, entry in content["state"].items() for name, value in entry.items()}
    return found | {f"rate {place}": torch.tensor(group["lr"]) for place, group in enumerate(content["param_groups"])}


@pytest.mark.parametrize(("at", "moment"), [(0.5, 6), pytest.param(3, 3, marks=slow), pytest.param(1, 1, marks=slow)])
def test_two_lines_factorize_once_after_the_step_that_was_asked_for(at: Any, moment: int, tmp_path: Path) -> None:
    chosen, seen, model = callback(at=at), Seen(), gpt2()
    trainer(model, tmp_path, chosen, seen).train()
    assert chosen.report is not None
    ranks = list(chosen.report.ranks.values())
    assert seen.ranks == {step: [16, 16] if step < moment else ranks for step in range(1, STEPS + 1)}
    assert chosen.report.share <= 0.5
    assert chosen.report.loss_jump is not None
    assert not chosen.report.reset


def test_batches_are_of_the_training_set_and_its_order_stays(tmp_path: Path) -> None:
    """What is trained on comes in the same order, with the same random numbers, as without the callback."""
    orders = []
    for callbacks in ([], [callback(at=4, budget=None, ranks=3)]):
        data, held_out = Watched(), Watched()
        model = gpt2()
        Trainer(
            model, trainer_arguments(tmp_path / "out"), train_dataset=data, eval_dataset=held_out, callbacks=callbacks
        ).train()
        assert not held_out.asked
        orders.append(data.asked)
    plain, drawn = orders
    moment = 4 * 4  # samples trained on before it
    assert drawn[:moment] == plain[:moment]
    calibration = drawn[moment : len(drawn) - len(plain) + moment]
    assert sorted(calibration) == list(range(20))  # five batches of the twenty samples
    assert drawn[moment + len(calibration) :] == plain[moment:]


@pytest.mark.parametrize("factor_lr", [2.0, pytest.param(1.0, marks=slow)])
@pytest.mark.parametrize("stop", [8, pytest.param(6, marks=slow), pytest.param(11, marks=slow)])
def test_resumed_on_either_side_is_bit_identical_to_uninterrupted(stop: int, factor_lr: float, tmp_path: Path) -> None:
    at = 7 if stop < 8 else 4
    whole, rates = gpt2(), Seen()
    trainer(whole, tmp_path / "whole", callback(at=at, factor_lr=factor_lr), rates).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(gpt2(), tmp_path / "cut", callback(at=at, factor_lr=factor_lr), StopAfter(stop)).train()
    model, chosen, again = gpt2(), callback(at=at, factor_lr=factor_lr), Seen()
    torch.manual_seed(99)  # whatever the process did before must not matter
    trainer(model, tmp_path / "cut", chosen, again).train(resume_from_checkpoint=True)
    assert chosen.report is not None
    assert chosen.report.ranks == ranks_of(whole)
    assert_same_models(model, whole)
    one, other = (resumable(tmp_path / name / f"checkpoint-{STEPS}") for name in ("cut", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert again.rates == {step: rates.rates[step] for step in again.rates}
    last = rates.rates[STEPS - 1]
    assert len(last) == (2 if factor_lr == 1 else 3)
    assert last[-1] == pytest.approx(factor_lr * last[0])


@slow
def test_an_optimizer_of_ones_own_is_taken_along_and_resumed(tmp_path: Path) -> None:
    """All parameters in one group, in the model's order, made from the dense model, as scripts do."""

    def made(folder: str, *callbacks: TrainerCallback) -> tuple[nn.Module, Trainer]:
        model = gpt2()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        arguments = trainer_arguments(tmp_path / folder)
        chosen = callback(at=4, factor_lr=2.0)
        pair: Any = (optimizer, scheduler)
        return model, Trainer(
            model, arguments, train_dataset=Sequences(), optimizers=pair, callbacks=[chosen, *callbacks]
        )

    whole, first = made("whole")
    first.train()
    with pytest.raises(KeyboardInterrupt):
        made("cut", StopAfter(8))[1].train()
    model, again = made("cut")
    again.train(resume_from_checkpoint=True)
    assert_same_models(model, whole)
    one, other = (resumable(tmp_path / name / f"checkpoint-{STEPS}") for name in ("cut", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one | other)


@slow
def test_checkpoint_is_one_that_from_pretrained_reads(tmp_path: Path) -> None:
    model = gpt2()
    trainer(model, tmp_path, callback()).train()
    assert_same_models(inrank.from_pretrained(tmp_path / f"checkpoint-{STEPS}"), model)


@slow
def test_accumulated_passes_are_one_step(tmp_path: Path) -> None:
    chosen, seen = callback(at=3), Seen()
    trainer(gpt2(), tmp_path, chosen, seen, gradient_accumulation_steps=2, per_device_train_batch_size=2).train()
    assert [step for step, ranks in seen.ranks.items() if ranks != [16, 16]] == list(range(3, STEPS + 1))


@slow
@pytest.mark.parametrize("first", ["tracker", "callback"])
def test_the_tracker_goes_on_over_the_moment_and_a_resumption(first: str, tmp_path: Path) -> None:
    """One run: ΔW = κ U V − W0 under the old names, the event at the step, nothing amiss."""
    spectra = []
    for name in ("whole", "cut"):
        for stop in [None] if name == "whole" else [9, None]:
            tracker = TrackerCallback(tmp_path / name / "run", every=1, tensorboard=False, strict=True)
            both = [tracker, callback(at=4, tracker=tracker)]
            both = both if first == "tracker" else both[::-1]
            rest = [] if stop is None else [StopAfter(stop)]
            resume = True if name == "cut" and stop is None else None
            with tracker:
                try:
                    trainer(gpt2(), tmp_path / name / "out", *both, *rest).train(resume_from_checkpoint=resume)
                except KeyboardInterrupt:
                    assert stop is not None
        run = open_run(tmp_path / name / "run")
        assert run.events[run.events["kind"] == "factorized"]["step"].tolist() == [4]
        assert run.singular_values(f"{LAYERS[0]}.weight").index.tolist() == list(range(1, STEPS + 1))
        spectra.append([run.singular_values(f"{layer}.weight") for layer in LAYERS])
    assert all((one == other).all(axis=None) for one, other in zip(*spectra, strict=True))


@slow
def test_when_ranks_have_settled(tmp_path: Path) -> None:
    tracker = TrackerCallback(tmp_path / "run", every=1, tensorboard=False, strict=True)
    rule = inrank.Settled(within=0.9, window=0.3, earliest=0.1, latest=0.9)
    chosen, seen = callback(at=rule, every=1, tracker=tracker), Seen()
    trainer(gpt2(), tmp_path / "out", tracker, chosen, seen).train()
    moment = min(step for step, ranks in seen.ranks.items() if ranks != [16, 16])
    assert moment == 5  # 3.6 steps before it there must be a snapshot
    events = open_run(tmp_path / "run").events
    told = events[events["kind"] == "factorizing"]
    assert told["step"].tolist() == [moment]
    assert "ranks have settled" in told["message"].item()


@slow
def test_best_models_are_counted_anew(tmp_path: Path) -> None:
    """A dense model would win, and does not fit."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    model, chosen = gpt2(), callback(at=9, ranks=1, budget=None)
    made = trainer(model, tmp_path, chosen, **options)
    made.train()
    assert ranks_of(model) == dict.fromkeys(LAYERS, 1)
    assert made.state.best_global_step >= 9


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Sequences()[index] for index in range(60)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": 40}, "at must lie before the end of training at step 12, got 40"),
        ({"targets": "*.nothing.*"}, "nothing"),
        ({"budget": 0.001}, "budget 0.001 is too small"),
        ({"at": "settled"}, "give tracker"),
    ],
)
def test_what_would_fail_later_is_refused_before_the_first_step(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(gpt2(), tmp_path, callback(**options)).train()


@slow
def test_a_stream_needs_batches_of_its_own(tmp_path: Path) -> None:
    arguments = trainer_arguments(tmp_path)
    with pytest.raises(ValueError, match="the training set is a Stream"):
        Trainer(gpt2(), arguments, train_dataset=Stream(), callbacks=[callback()]).train()
    chosen = callback(at=2, calibration=[{name: value[None] for name, value in Sequences()[0].items()}])
    Trainer(gpt2(), arguments, train_dataset=Stream(), callbacks=[chosen]).train()
    assert chosen.report is not None


def test_options_are_checked_when_the_callback_is_made() -> None:
    with pytest.raises(TypeError, match="bugdet"):
        callback(bugdet=0.3)
    with pytest.raises(ValueError, match="at must be a share"):
        callback(at=1.5)
    with pytest.raises(ValueError, match="every must be"):
        callback(every=0)


@slow
def test_a_checkpoint_that_does_not_say_what_was_done_is_refused(tmp_path: Path) -> None:
    trainer(gpt2(), tmp_path / "first", callback(at=4)).train()
    checkpoint = tmp_path / "first/checkpoint-5"
    with pytest.raises(FileNotFoundError, match=r"resumes at step 5.*FactorizeCallback\(resume_from"):
        trainer(gpt2(), tmp_path / "second", callback(at=4)).train(resume_from_checkpoint=str(checkpoint))
    model = gpt2()
    trainer(model, tmp_path / "third", callback(at=4, resume_from=checkpoint)).train(
        resume_from_checkpoint=str(checkpoint)
    )
    assert_same_models(model, inrank.from_pretrained(tmp_path / f"first/checkpoint-{STEPS}"))
