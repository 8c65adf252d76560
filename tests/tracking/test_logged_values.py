"""What `log` takes, and that a value which cannot be read costs itself alone."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.training import complaints, start, train

from inrank_monitor import SpectrumTracker, open_run
from inrank_monitor.tracking.recorder import Recorder


def scalars(directory: Path) -> dict[str, float]:
    rows = open_run(directory).scalars
    rows = rows[~rows["name"].str.startswith("tracker_")]
    return dict(zip(rows["name"], rows["value"], strict=True))


NUMBERS = {
    "python": 1.5,
    "integer": 3,
    "flag": True,
    "numpy scalar": np.float16(2.5),
    "numpy flag": np.bool_(False),
    "numpy integer": np.int64(-4),
    "array": np.array([2.0]),
    "array of no dimension": np.array(7),
    "array of two dimensions": np.array([[8.0]]),
    "series": pd.Series([9.0]),
    "tensor": torch.tensor(0.5),
    "tensor of one": torch.ones(1, 1, dtype=torch.bfloat16),
    "tensor flag": torch.tensor(True),
    "decimal": Decimal("0.25"),
    "fraction": Fraction(1, 8),
    "infinite": float("-inf"),
}
EXPECTED = [1.5, 3, 1, 2.5, 0, -4, 2, 7, 8, 9, 0.5, 1, 1, 0.25, 0.125, float("-inf")]


def test_a_mapping_of_any_numbers_is_logged(tmp_path: Path) -> None:
    _, _, tracker = start(tmp_path / "run")
    tracker.log(NUMBERS)
    tracker.step_count += 1
    tracker.close()
    assert scalars(tmp_path / "run") == dict(zip(NUMBERS, EXPECTED, strict=True))
    assert open_run(tmp_path / "run").events.empty


def test_names_may_be_any_text(tmp_path: Path) -> None:
    names = ["train/loss", "naïve", "損失", "self", "values", "more", "a b", "x\ny", "🙂", "step", "%s {0}"]
    _, _, tracker = start(tmp_path / "run", tensorboard=True)
    tracker.log({name: place for place, name in enumerate(names)})
    tracker.log(self=10.0, values=11.0, more=12.0)
    tracker.log({"cut \udcff": 1.0, 5: 2.0})  # type: ignore[dict-item]
    tracker.step_count += 1
    tracker.close()
    found = scalars(tmp_path / "run")
    expected = {name: float(place) for place, name in enumerate(names)} | {"self": 10.0, "values": 11.0, "more": 12.0}
    assert found == expected | {"cut \\udcff": 1.0, "5": 2.0}
    assert open_run(tmp_path / "run").events.empty


def test_mappings_within_mappings_are_named_by_slashes(tmp_path: Path) -> None:
    _, _, tracker = start(tmp_path / "run")
    tracker.log({"eval": {"loss": 1.0, "top": {"1": 0.5}}, "lr": 2.0}, more={"x": 3.0})  # type: ignore[arg-type]
    tracker.step_count += 1
    tracker.close()
    assert scalars(tmp_path / "run") == {"eval/loss": 1.0, "eval/top/1": 0.5, "lr": 2.0, "more/x": 3.0}


class Broken:
    def __float__(self) -> float:
        raise RuntimeError("not today")


def emptied() -> torch.Tensor:
    tensor = torch.ones(1)
    tensor.untyped_storage().resize_(0)
    return tensor


def endless() -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    mapping["again"] = mapping
    return mapping


UNREADABLE: dict[str, Any] = {
    "emptied": emptied(),
    "meta": torch.tensor(1.0, device="meta"),
    "three": torch.ones(3),
    "none": None,
    "text": "1.5",
    "complex": 1j,
    "complex tensor": torch.tensor(1j),
    "complex array": np.array([1j]),
    "broken": Broken(),
    "two": np.zeros(2),
    "list": [1.0],
    "huge": 10**5000,
    "date": np.datetime64("2024-01-01"),
    "": 1.0,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_value_that_cannot_be_read_costs_itself_alone_and_is_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, _, tracker = start(tmp_path / "run")
    for _ in range(3):
        tracker.log({"before": 1.0, name: UNREADABLE[name], "after": 2.0})
        tracker.step_count += 1
    tracker.close()
    rows = open_run(tmp_path / "run").scalars
    for kept in ("before", "after"):
        assert rows.loc[rows["name"] == kept, "step"].tolist() == [0, 1, 2]
    assert name not in set(rows["name"])
    events = open_run(tmp_path / "run").events
    assert events["kind"].tolist() == ["error"]
    assert (f"log({name}=...)" if name else "empty") in events["message"].iloc[0].splitlines()[-1]
    assert len(complaints(caplog)) == 1


def test_every_name_that_is_lost_is_said_once(tmp_path: Path) -> None:
    _, _, tracker = start(tmp_path / "run")
    for _ in range(3):
        tracker.log({name: value for name, value in UNREADABLE.items() if name})
    tracker.log(endless())
    tracker.log(3.0)  # type: ignore[arg-type]
    tracker.step_count += 1
    tracker.close()
    messages = open_run(tmp_path / "run").events["message"].str.strip().str.split("\n").str[-1]
    for name in filter(None, UNREADABLE):
        assert messages.str.contains(f"log({name}=...)", regex=False).sum() == 1, name
    assert messages.str.contains("RecursionError").sum() == 1
    assert messages.str.contains("takes a mapping of names to numbers, or keywords, got float").sum() == 1


@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_value_that_its_device_cannot_give_costs_itself_alone(
    tmp_path: Path, place: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # as a tensor whose memory an error of its device has taken away: known only in the thread that fetches it
    scalars_of = Recorder.scalars

    def broken(self: Recorder, rows: Any) -> None:
        scalars_of(self, [(*row[:3], Broken() if row[2] == f"value {place}" else row[3]) for row in rows])

    monkeypatch.setattr(Recorder, "scalars", broken)
    _, _, tracker = start(tmp_path / "run")
    tracker.log({f"value {number}": torch.tensor(float(number)) for number in range(12)})
    tracker.step_count += 1
    tracker.close()
    assert scalars(tmp_path / "run") == {f"value {number}": number for number in range(12) if number != place}
    (message,) = open_run(tmp_path / "run").events["message"]
    assert f"log(value {place}=...) could not be read at step 0: RuntimeError: not today" in message
    assert len(complaints(caplog)) == 1


def test_a_weight_whose_memory_is_freed_is_an_event_and_is_not_read(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 1)
    kept = model[0].weight.data
    model[0].weight.data = emptied_like(kept)
    tracker.after_steps(1)
    model[0].weight.data = kept
    train(model, optimizer, 1, first=2)
    tracker.close()
    run = open_run(tmp_path / "run")
    rows = run.measurements[run.measurements["matrix"] == "0.weight"]
    assert rows["step"].tolist() == [1, 3]
    (message,) = run.events.loc[run.events["kind"] == "parameter_gone", "message"]
    assert "memory is freed" in message


def emptied_like(value: torch.Tensor) -> torch.Tensor:
    other = value.clone()
    other.untyped_storage().resize_(0)
    return other


def test_in_strict_mode_the_value_that_cannot_be_read_raises(tmp_path: Path) -> None:
    _, _, tracker = start(tmp_path / "run", strict=True)
    for name, value in UNREADABLE.items():
        with pytest.raises(ValueError, match=r"log\("):
            tracker.log({name: value})
    with pytest.raises(TypeError, match="takes a mapping"):
        tracker.log([("loss", 1.0)])  # type: ignore[arg-type]
    tracker.close()


def test_an_event_of_any_text_is_kept(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    tracker.event("mine", None, "a file named \udcff")
    tracker.event("other", "0.weight", 5)  # type: ignore[arg-type]
    train(model, optimizer, 1)
    tracker.close()
    events = open_run(tmp_path / "run").events
    assert events["kind"].tolist() == ["mine", "other"]
    assert events["message"].tolist() == ["a file named \\udcff", "5"]


# --- a training of which no step is counted


def stands(tracker: SpectrumTracker, calls: int) -> None:
    for _ in range(calls):
        tracker.log(loss=1.0)


@pytest.mark.parametrize("counts_itself", [True, False])
def test_a_training_of_which_no_step_is_counted_is_told_at_its_end(
    tmp_path: Path, counts_itself: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from helpers.training import mlp, sgd

    from inrank_monitor import attach

    model = mlp(6, 8, 5)
    tracker = attach(model, None if counts_itself else sgd(model), tmp_path / "run", tensorboard=False)
    stands(tracker, 20)
    assert not complaints(caplog)
    assert "no step was counted" in tracker.summary()
    tracker.close()
    assert "no step was counted" in tracker.summary()
    run = open_run(tmp_path / "run")
    (message,) = run.events.loc[run.events["kind"] == "no_steps", "message"]
    assert "log was called 20 times" in message
    advice = "call tracker.step() after each step" if counts_itself else "give attach the optimizer that the loop steps"
    assert advice in message
    assert len(complaints(caplog)) == 1


def test_a_long_one_is_told_while_it_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, _, tracker = start(tmp_path / "run")
    stands(tracker, 500)
    assert len(complaints(caplog)) == 1
    tracker.close()
    assert len(complaints(caplog)) == 1
    assert open_run(tmp_path / "run").events["kind"].tolist() == ["no_steps"]


def test_a_resumed_run_that_stands_is_told_and_an_interrupted_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    tracker.close("broke off")
    assert not complaints(caplog)
    model, optimizer, tracker = start(tmp_path / "run", resume=True)
    train(model, optimizer, 3)
    tracker.close()
    assert not complaints(caplog)
    _, _, tracker = start(tmp_path / "run", resume=3)
    tracker.log(loss=1.0)
    tracker.close()
    assert len(complaints(caplog)) == 1
