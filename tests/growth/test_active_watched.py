"""The tracker and the dashboard on a model whose ranks grow: what is read, logged and shown."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.active_training import by_gradient, converted, layers_of, loss_of, one_more
from helpers.app_pages import numbers as unpacked
from helpers.app_pages import show, specs
from helpers.everything import state
from helpers.tables import table as measurements_of_dense_matrices
from torch.optim import AdamW

import inrank
from inrank.layers.factored_layer import FactoredLayer
from inrank_monitor import SpectrumTracker, attach, open_run
from inrank_monitor.console import RUNS_VARIABLE
from inrank_monitor.figures import rank_evolution
from inrank_monitor.figures.tables import column_title

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 12
NAMES = [f"transformer.h.{block}.mlp.{layer}" for block in range(2) for layer in ("c_fc", "c_proj")]
OPTIONS: dict[str, Any] = {"every": 1, "buffer_rank": 3, "tensorboard": False}


def steps_of(
    model: Any, optimizer: AdamW, controller: inrank.RankController, tracker: SpectrumTracker | None, last: int = STEPS
) -> list[float]:
    """Train up to a step; the losses."""
    losses = []
    for step in range(controller.step_count, last):
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if tracker is not None:
            tracker.log(loss=losses[-1])
        controller.step()
        optimizer.zero_grad()
    return losses


def record(directory: Path, look: Callable[[Any], None] = lambda model: None, **options: Any) -> Any:
    """A run measured at every step, all ranks growing after steps 5 and 10; `look` sees what each measurement sees."""
    model = converted()
    optimizer = AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer, directory, **OPTIONS | options) as tracker:
        optimizer.register_step_post_hook(lambda *_: look(model))
        controller = inrank.RankController(model, optimizer, rule=one_more, every=5, tracker=tracker)
        steps_of(model, optimizer, controller, tracker)
    return model


def test_spectra_are_those_of_the_factors_and_the_dense_product_is_never_formed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}

    def look(model: Any) -> None:
        for name, layer in layers_of(model).items():
            product = layer.gain * layer.U.detach().double() @ layer.V.detach().double()
            expected[name].append(torch.linalg.svdvals(product).numpy())

    def formed(self: FactoredLayer) -> None:
        raise AssertionError("the dense weight was formed")

    monkeypatch.setattr(FactoredLayer, "weight", property(formed))
    monkeypatch.setattr(inrank.InRankLinear, "weight", property(formed))
    record(tmp_path / "run", look, strict=True)
    run = open_run(tmp_path / "run")
    for name in NAMES:
        spectra = run.singular_values(name)
        assert spectra.index.tolist() == list(range(1, STEPS + 1))
        for step, values in enumerate(expected[name], 1):
            found = spectra.loc[step].dropna().to_numpy()
            np.testing.assert_allclose(found, values[: len(found)], atol=1e-6 * values[0])
            np.testing.assert_allclose(values[len(found) :], 0, atol=1e-6 * values[0])  # the logged ones are all


def test_rank_capacity_and_growth_are_logged_at_their_steps(tmp_path: Path) -> None:
    record(tmp_path / "run")
    run = open_run(tmp_path / "run")
    for name in NAMES:
        rows = run.measurements[run.measurements["matrix"] == name]
        assert rows["layer_rank"].tolist() == [1] * 5 + [2] * 5 + [3] * 2  # measured, then grown
        assert rows["capacity"].tolist() == [4] * 5 + [5] * 5 + [6] * 2  # with the buffer's columns
    assert set(run.events["kind"]) == {"rank_grown"}
    assert run.events["step"].tolist() == [5] * 4 + [10] * 4
    assert run.events["matrix"].tolist() == NAMES * 2  # the names that the measurements have
    assert run.events["message"].iloc[0].startswith("rank 1 -> 2, explained ratio ")
    dense = run.measurements[~run.measurements["matrix"].isin(NAMES)]
    assert len(dense) > 0
    assert dense["layer_rank"].isna().all()


def test_attached_controller_and_tracker_agree_on_the_step(tmp_path: Path) -> None:
    model = converted()
    optimizer = AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer, tmp_path / "run", **OPTIONS) as tracker:
        inrank.RankController(model, optimizer, rule=one_more, every=5, tracker=tracker).attach()
        for step in range(6):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = open_run(tmp_path / "run")
    assert run.events["step"].unique().tolist() == [5]
    rows = run.measurements[run.measurements["matrix"] == NAMES[0]]
    assert rows["layer_rank"].tolist() == [1] * 5 + [2]


def test_coverage_names_each_parameter_of_a_converted_layer_once(tmp_path: Path) -> None:
    model = converted()
    with attach(model, AdamW(model.parameters()), tmp_path / "run", **OPTIONS) as tracker:
        rows = {row.parameter: row for row in tracker.coverage}
        assert len(rows) == len(tracker.coverage)
    for name in NAMES:
        assert rows[name].watched
        assert "in factors" in rows[name].note
        assert rows[f"{name}.initial_weight"].note == "frozen (requires_grad=False)"
        assert rows[f"{name}.bias"].note == "a vector"
        assert not {f"{name}.U", f"{name}.V", f"{name}.weight"} & set(rows)


@pytest.mark.parametrize("rule", [one_more, by_gradient])
def test_training_with_growth_is_the_same_bit_for_bit_when_it_is_watched(tmp_path: Path, rule: Any) -> None:
    found = []
    for watched in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global state
        model = converted(dropout=0.1)
        optimizer = AdamW(model.parameters(), lr=5e-3)
        tracker = attach(model, optimizer, tmp_path / "run", **OPTIONS) if watched else None
        controller = inrank.RankController(model, optimizer, rule=rule, every=5, tracker=tracker)
        losses = steps_of(model, optimizer, controller, tracker)
        found.append(state(model, optimizer, losses))
        if tracker is not None:
            tracker.close()
            assert state(model, optimizer, losses) == found[-1]
        assert len({growth.step for growth in controller.history}) == 2
    plain, watched_state = found
    assert not [key for key in plain if plain[key] != watched_state[key]]
    assert open_run(tmp_path / "run").measurements["step"].nunique() == STEPS


def test_after_a_factorization_the_layers_are_measured_on(tmp_path: Path) -> None:
    model = converted()
    optimizer = AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer, tmp_path / "run", strict=True, **OPTIONS) as tracker:
        controller = inrank.RankController(model, optimizer, rule=one_more, every=5, tracker=tracker)
        steps_of(model, optimizer, controller, tracker, last=6)
        inrank.factorize(model, optimizer, ranks=4)
        steps_of(model, optimizer, controller, tracker, last=8)
        layer = model.get_submodule(NAMES[0])
        expected = torch.linalg.svdvals(layer.gain * (layer.U @ layer.V).detach().double()).numpy()
    run = open_run(tmp_path / "run")
    assert set(run.events["kind"]) == {"rank_grown", "changed_between_steps"}
    rows = run.measurements[run.measurements["matrix"] == NAMES[0]]
    assert rows["step"].tolist() == list(range(1, 9))
    assert rows["layer_rank"].tolist() == [1] * 5 + [2, 4, 4]
    assert rows["capacity"].tolist() == [4] * 5 + [5, 4, 4]
    found = run.singular_values(NAMES[0]).loc[8].dropna().to_numpy()
    np.testing.assert_allclose(found, expected[:4], rtol=1e-5)


def test_a_resumed_run_goes_on_at_the_grown_ranks(tmp_path: Path) -> None:
    model = record(tmp_path / "run")
    again = converted()
    again.load_state_dict(model.state_dict())
    optimizer = AdamW(again.parameters(), lr=5e-3)
    with attach(again, optimizer, tmp_path / "run", resume=STEPS, **OPTIONS):
        loss_of(again, STEPS).backward()
        optimizer.step()
    run = open_run(tmp_path / "run")
    rows = run.measurements[run.measurements["matrix"] == NAMES[0]]
    assert rows["step"].tolist() == list(range(1, STEPS + 2))
    assert rows["layer_rank"].tolist()[-2:] == [3, 3]


def test_factors_that_are_not_finite_are_an_event_and_the_rank_stays(tmp_path: Path) -> None:
    model = converted()
    optimizer = AdamW(model.parameters(), lr=5e-3)
    with attach(model, optimizer, tmp_path / "run", **OPTIONS | {"every": 100}) as tracker:
        controller = inrank.RankController(model, optimizer, rule=one_more, every=5, tracker=tracker)
        model.get_submodule(NAMES[1]).U.data[0, 0] = float("nan")
        controller.check()
        tracker.flush()
        events = open_run(tmp_path / "run").events
        assert events["kind"].tolist() == ["non_finite", *["rank_grown"] * 3]
        assert events["matrix"].iloc[0] == NAMES[1]
        assert controller.ranks[NAMES[1]] == 1


# --- the dashboard


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(RUNS_VARIABLE, str(tmp_path))
    record(tmp_path / "growing")
    return tmp_path


def figures(view: str, **address: Any) -> list[dict[str, Any]]:
    """The figures of a view of the page, as their JSON."""
    return specs(show(view, **address))


def test_the_dashboard_draws_the_layers_ranks_with_a_triangle_at_each_growth(folder: Path) -> None:
    (figure,) = figures("Rank evolution", quantity=column_title("layer_rank"), group="matrix")
    lines = {trace["meta"][0]: trace for trace in figure["data"] if trace.get("meta")}
    for name in NAMES:
        assert numbers(lines[name]["y"]) == [1] * 5 + [2] * 5 + [3] * 2
    assert set(lines) & set(open_run(folder / "growing").matrices.index) == set(
        NAMES
    )  # dense matrices have no such rank, nor a legend entry
    grown = [trace for trace in figure["data"] if trace.get("name") == "rank grown"]
    triangles, in_legend = grown
    assert [trace["showlegend"] for trace in grown] == [False, True]
    assert not numbers([value or np.nan for value in in_legend["x"]])
    assert triangles["marker"]["symbol"] == "triangle-up"
    assert numbers(triangles["x"]) == [5] * 4 + [10] * 4
    assert numbers(triangles["y"]) == [1] * 4 + [2] * 4
    assert "rank 2 -&gt; 3" in triangles["text"][-1] or "rank 2 -> 3" in triangles["text"][-1]
    assert NAMES[-1] in triangles["text"][-1]


def test_a_run_without_low_rank_layers_says_so_where_their_rank_is_asked_for() -> None:
    figure = rank_evolution(measurements_of_dense_matrices(), "layer_rank")
    assert "no low-rank layer" in figure.layout.annotations[0].text


def numbers(value: Any) -> list[float]:
    """The finite entries of a trace's array."""
    return [float(number) for number in unpacked(value) if np.isfinite(number)]


@pytest.mark.parametrize("view", ["Runs", "Overview", "Spectrum density", "Explained ratio", "Advice"])
def test_every_view_shows_a_growing_run(folder: Path, view: str) -> None:
    drawn = figures(view)
    if view == "Overview":
        heat, loss = drawn
        cells = {cell[3] for row in heat["data"][0]["customdata"] for cell in row if cell}
        assert set(NAMES) <= cells
        (marks,) = (trace for trace in loss["data"] if trace.get("name") == "rank grown")
        assert sorted(set(numbers(marks["x"]))) == [5, 10]
