"""Which logged value is the loss that runs are compared by."""

from __future__ import annotations

import pandas as pd
import pytest

from inrank_monitor.runs import first_choice, lacking_scalar, last_value, loss_name, named_scalar, scalar_choices
from inrank_monitor.runs.losses import loss_kind


def scalars(**points: int) -> pd.DataFrame:
    """So many points of each value: 1, 1/2, 1/3, ... at steps 10, 20, 30, ..."""
    rows = [(10 * n, name.replace("__", "/"), 1 / n) for name, count in points.items() for n in range(1, count + 1)]
    return pd.DataFrame(rows, columns=["step", "name", "value"])


VALIDATION = (
    *("val_loss", "validation_loss", "valid/loss", "eval_loss", "eval/loss", "valLoss", "dev loss", "held_out_loss"),
    *("loss_val", "test_loss", "eval_wikitext_loss", "Loss/Validation", "validation_loss_epoch"),
)


@pytest.mark.parametrize("name", VALIDATION)
def test_validation_losses_have_many_names(name: str) -> None:
    assert loss_kind(name) == "validation loss"


@pytest.mark.parametrize(
    "name", ["loss", "train_loss", "train/loss", "training_loss", "Loss", "trainLoss", "train_loss_step"]
)
def test_training_losses_too(name: str) -> None:
    assert loss_kind(name) == "training loss"


@pytest.mark.parametrize(
    "name", ["aux_loss", "lr", "loss_scale", "val_accuracy", "glossary", "kl_loss", "lossless", "grad_norm"]
)
def test_what_is_no_loss_or_a_part_of_one_is_none(name: str) -> None:
    assert loss_kind(name) is None


def test_of_several_the_one_with_a_curve_is_meant_then_the_validation_sets_then_the_plainest() -> None:
    assert loss_name(scalars(test_loss=5, val_loss=5), "validation loss") == "val_loss"
    assert loss_name(scalars(test_loss=5, val_loss=1), "validation loss") == "test_loss"
    assert loss_name(scalars(train_loss=1, loss=9), "training loss") == "loss"
    assert loss_name(scalars(eval_wikitext_loss=5, eval_loss=5), "validation loss") == "eval_loss"
    assert loss_name(scalars(lr=4), "training loss") is None


def test_the_first_choice_is_the_validation_loss_where_all_runs_have_a_curve_of_it() -> None:
    whole, one_point, none = scalars(loss=9, val_loss=3), scalars(loss=9, eval__loss=1), scalars(loss=9)
    assert first_choice({"a": whole, "b": scalars(loss=2, eval__loss=4)}) == "validation loss"
    assert first_choice({"a": whole, "b": one_point}) == "training loss"
    assert first_choice({"a": whole, "b": none}) == "training loss"
    assert first_choice({"a": scalars(val_loss=1)}) == "validation loss"
    assert first_choice({"a": scalars(lr=3)}) is None
    assert first_choice({}) is None


def test_the_choices_begin_with_the_loss_and_leave_no_value_out() -> None:
    runs = {"a": scalars(lr=3, loss=3, val_loss=3, aux_loss=3), "b": scalars(train__loss=3, eval__loss=3)}
    assert scalar_choices(runs) == ["validation loss", "training loss", "lr", "aux_loss"]
    assert scalar_choices({"a": scalars(lr=3, loss=3, val_loss=1, train_loss=1)}) == [
        "training loss",
        "validation loss",
        "lr",
        "train_loss",
    ]


def test_rows_of_a_loss_are_those_of_its_name_in_each_run_and_the_later_of_two_counts() -> None:
    twice = pd.concat([scalars(eval__loss=3), scalars(eval__loss=1).assign(value=7.0)])
    name, rows = named_scalar(twice, "validation loss")
    assert (name, rows["value"].tolist()) == ("eval/loss", [7.0, 1 / 2, 1 / 3])
    assert named_scalar(twice, "loss")[0] is None
    assert last_value(twice, "validation loss") == 1 / 3


def test_runs_without_the_value_are_named_and_so_are_other_names() -> None:
    runs = {"a": scalars(val_loss=3), "b": scalars(eval__loss=3), "c": scalars(loss=3)}
    without, names = lacking_scalar(runs, "validation loss")
    assert without.text == "No validation loss was logged by c."
    assert "a: val_loss; b: eval/loss" in names.text
    assert lacking_scalar({"a": scalars(lr=1)}, "lr") == []
