from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import mlp, sgd, start, train
from torch import nn
from torch.optim import SGD

from inrank_monitor import SpectrumTracker, attach, open_run

pytestmark = pytest.mark.numeric


def steps_of(directory: Path) -> list[int]:
    return [int(step) for step in open_run(directory).measurements["step"].unique()]


# --- the numbers


def test_logged_spectra_are_those_of_the_cumulative_update(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 7, 12, 5)
    first = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    expected: dict[str, list[np.ndarray]] = {"0.weight": [], "2.weight": []}
    norms: dict[str, list[float]] = {"0.weight": [], "2.weight": []}
    for step in range(12):
        train(model, optimizer, 1, first=step)
        for name, found in expected.items():
            update = model.get_parameter(name).detach().double().numpy() - first[name]
            found.append(np.linalg.svd(update, compute_uv=False))
            norms[name].append(float(np.linalg.norm(update)))
    tracker.close()
    run = open_run(tmp_path / "run")
    for name, found in expected.items():
        spectra = run.singular_values(name)
        assert spectra.index.tolist() == list(range(1, 13))
        largest = np.array(found)[:, :1]
        # the log keeps float32: half a unit in its last place
        np.testing.assert_allclose(spectra.to_numpy() / largest, np.array(found) / largest, rtol=0, atol=6e-8)
        rows = run.measurements[run.measurements["matrix"] == name]
        np.testing.assert_allclose(rows["frobenius_norm"], norms[name], rtol=1e-7)  # a float32 update
        np.testing.assert_allclose(rows["relative_norm"], norms[name] / np.linalg.norm(first[name]), rtol=1e-7)
        np.testing.assert_allclose(rows["nuclear_norm"], np.array(found).sum(axis=1), rtol=1e-6)
        assert (rows["error_bound"] == 0).all()


@pytest.mark.parametrize("keep", ["disk", "memory", "device"])
def test_w0_is_what_the_weights_were_at_attach_wherever_it_is_kept(tmp_path: Path, keep: str) -> None:
    model = mlp(6, 5)
    with attach(model, None, tmp_path / "run", every=1, initial_weights=keep, tensorboard=False) as tracker:  # type: ignore[arg-type]
        tracker.step()
        with torch.no_grad():
            model[0].weight += torch.diag(torch.arange(6.0))[:5]  # type: ignore[operator]
        tracker.step()
    spectra = open_run(tmp_path / "run").singular_values("0.weight").to_numpy()
    np.testing.assert_allclose(spectra, [[0, 0, 0, 0, 0], [4, 3, 2, 1, 0]], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_update_of_half_precision_weights_is_subtracted_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    # W_t − W0 has rank 4 and up to 14 significant bits: more than a bfloat16 or float16 holds, so that a subtraction
    # in the weights' own dtype would round, and make it full rank. W_t is the rounded sum, −W0 what rounding left over.
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-63, 64, (24, 4), generator=generator)
    right = torch.randint(-63, 64, (4, 20), generator=generator)
    update = (left @ right).double()
    model = nn.Linear(20, 24, bias=False).to(dtype)
    last = update.to(torch.bfloat16)
    with torch.no_grad():
        model.weight.copy_(last.double() - update)
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        with torch.no_grad():
            model.weight.copy_(last)
        tracker.step()
    run = open_run(tmp_path / "run")
    assert run.measurements["numerical_rank"].tolist() == [4]
    spectrum = run.singular_values("weight").loc[1]
    np.testing.assert_allclose(spectrum[:4], torch.linalg.svdvals(update)[:4], rtol=1e-6)
    assert (spectrum[4:] < 1e-7 * spectrum[1]).all()


def test_the_running_rank_is_the_running_maximum_and_a_zero_update_has_rank_zero(tmp_path: Path) -> None:
    model = mlp(9, 9)
    weight = model[0].weight
    ranks = [0, 1, 5, 2, 0, 7]
    with attach(model, None, tmp_path / "run", every=1, threshold=1.0, tensorboard=False) as tracker:
        first = weight.detach().clone()
        for rank in ranks:
            with torch.no_grad():  # all values equal, then zeros: explained in full by just this rank
                weight.copy_(first + torch.diag(torch.tensor([1.0] * rank + [0.0] * (9 - rank))))  # type: ignore[operator, arg-type]
            tracker.step()
    rows = open_run(tmp_path / "run").measurements
    assert rows["numerical_rank"].tolist() == ranks
    assert rows["running_rank"].tolist() == np.maximum.accumulate(rows["intrinsic_rank"].to_numpy(dtype=int)).tolist()
    assert rows["intrinsic_rank"].tolist()[0] == rows["running_rank"].tolist()[0] == 0
    assert rows["explained_ratio"].tolist()[0] == 1.0


# --- what is logged beside


def test_numbers_and_tensors_are_logged_at_the_current_step(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    tracker.log(lr=0.5)
    loss = torch.tensor(0.25, requires_grad=True)
    train(model, optimizer, 1)
    tracker.log(
        loss=loss * 2, half=torch.tensor([1.5], dtype=torch.bfloat16), count=7, single=np.float32(0.1), flag=True
    )
    train(model, optimizer, 1)
    tracker.log(bad=float("nan"), worse=torch.tensor(float("-inf")))
    loss.data.fill_(99.0)  # what is logged is the value at that moment
    tracker.close()
    rows = open_run(tmp_path / "run").scalars
    found = {
        (row.step, row.name): row.value for row in rows[~rows["name"].str.startswith("tracker")].itertuples(index=False)
    }
    assert found.pop((2, "bad")) != found.get((2, "bad"))
    assert found == {
        (0, "lr"): 0.5,
        (1, "loss"): 0.5,
        (1, "half"): 1.5,
        (1, "count"): 7.0,
        (1, "single"): float(np.float32(0.1)),
        (1, "flag"): 1.0,
        (2, "worse"): float("-inf"),
    }


@pytest.mark.parametrize(
    "value", [torch.ones(3), torch.zeros(0), None, "high", [1.0], 10**400, torch.tensor(1 + 2j)], ids=repr
)
def test_a_value_that_is_no_number_is_an_event_and_costs_no_other(
    tmp_path: Path, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    for step in range(3):
        train(model, optimizer, 1, first=step)
        tracker.log(before=1.0)
        tracker.log(value=value)
        tracker.log(after=2.0)
    tracker.close()
    run = open_run(tmp_path / "run")
    for name in ("before", "after", "tracker_seconds"):
        assert run.scalars.loc[run.scalars["name"] == name, "step"].tolist() == [1, 2, 3], name
    assert "value" not in set(run.scalars["name"])
    assert run.events["kind"].tolist() == ["error"]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


def test_a_value_that_is_no_number_raises_in_strict_mode(tmp_path: Path) -> None:
    _, _, tracker = start(tmp_path / "run", strict=True)
    with pytest.raises(ValueError, match=r"log\(loss=\.\.\.\) takes one number.*\(3,\)"):
        tracker.log(loss=torch.ones(3))
    tracker.close()


def test_the_trackers_own_cost_is_measured_and_logged(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 40, 60, 40)
    train(model, optimizer, 10)
    tracker.close()
    rows = open_run(tmp_path / "run").scalars
    seconds = rows.loc[rows["name"] == "tracker_seconds", "value"]
    overhead = rows.loc[rows["name"] == "tracker_overhead", "value"]
    assert len(seconds) == len(overhead) == 10
    assert seconds.is_monotonic_increasing
    assert (seconds > 0).all()
    assert ((overhead > 0) & (overhead < 2)).all()  # its thread's processor time may overlap the loop's
    assert tracker.seconds >= seconds.iloc[-1]


def test_summary_shows_ranks_beside_null_ranks_and_the_cost(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run")
    train(model, optimizer, 3)
    for text in (tracker.summary(), tracker.close() or tracker.summary()):
        assert "0.weight" in text
        assert "2.weight" in text
        assert "null" in text
        assert "%" in text


# --- models


def test_coverage_names_every_parameter(tmp_path: Path) -> None:
    model, _, tracker = start(tmp_path / "run", exclude="2.*")
    rows = {row.parameter: row for row in tracker.coverage}
    assert list(rows) == [name for name, _ in model.named_parameters()]
    assert [name for name, row in rows.items() if row.watched] == ["0.weight"]
    assert rows["2.weight"].note == "left out by include/exclude"
    assert rows["0.bias"].note == "a vector"
    tracker.close()
    table = open_run(tmp_path / "run").coverage
    assert table["parameter"].tolist() == list(rows)
    assert table["watched"].tolist() == [row.watched for row in rows.values()]


def watch(model: nn.Module, directory: Path) -> list[str]:
    optimizer = SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, directory, every=1, tensorboard=False) as tracker:
        model(torch.randn(3, 6)).square().mean().backward()
        optimizer.step()
    assert tracker.finished_steps == [1]
    run = open_run(directory)
    assert (run.measurements["frobenius_norm"] > 0).all()
    return list(run.matrices.index)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # Dynamo's own
def test_a_wrapped_or_compiled_model_keeps_its_own_names(tmp_path: Path) -> None:
    names = watch(mlp(6, 8, 5), tmp_path / "plain")
    assert names == ["0.weight", "2.weight"]
    assert watch(nn.DataParallel(mlp(6, 8, 5)), tmp_path / "parallel") == names
    compiled = torch.compile(mlp(6, 8, 5), backend="eager")
    assert watch(compiled, tmp_path / "compiled") == names
    inner = mlp(6, 8, 5)
    inner[2] = torch.compile(inner[2], backend="eager")
    assert watch(inner, tmp_path / "inside") == names
    assert open_run(tmp_path / "compiled").info["model"]["class"] == "Sequential"


def test_a_parameter_that_is_replaced_is_followed_through_its_module(tmp_path: Path) -> None:
    model = mlp(5, 5)
    with attach(model, None, tmp_path / "run", every=1, tensorboard=False) as tracker:
        model[0].weight = nn.Parameter(model[0].weight.detach() + torch.eye(5))  # type: ignore[operator]
        tracker.step()
    np.testing.assert_allclose(open_run(tmp_path / "run").singular_values("0.weight").loc[1], np.ones(5), atol=1e-6)


def test_two_trackers_watch_one_training(tmp_path: Path) -> None:
    model = mlp(6, 8, 5)
    optimizer = sgd(model)
    trackers: list[SpectrumTracker] = [
        attach(model, optimizer, tmp_path / name, every=every, tensorboard=False)
        for name, every in (("a", 2), ("b", 3))
    ]
    train(model, optimizer, 6)
    for tracker in trackers:
        tracker.close()
    assert steps_of(tmp_path / "a") == [2, 4, 6]
    assert steps_of(tmp_path / "b") == [3, 6]
