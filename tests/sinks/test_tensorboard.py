from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import record, record_resumed, start, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inrank_monitor import open_run
from inrank_monitor.runs.log import TENSORBOARD_DIR
from inrank_monitor.sinks.measurements import METRICS, TAGS, Measurements
from inrank_monitor.sinks.tensorboard import EventFile

EVERYTHING = {"scalars": 0, "histograms": 0, "tensors": 0}
START_SECONDS, LOAD_SECONDS = 90.0, 30.0


def read(directory: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(directory), size_guidance=EVERYTHING)
    accumulator.Reload()
    return accumulator


def measured(spectra: list[Any], names: list[str], step: int = 1) -> Measurements:
    """A snapshot of matrices with these spectra, every metric of which is 2."""
    metrics = {name: np.full(len(spectra), 2.0) for name in METRICS}
    return Measurements(step, 1.0e9, names, metrics, [np.asarray(values) for values in spectra], len(names))


# --- the event file


def test_every_number_of_the_log_is_in_the_event_file(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", 40, 50, 30, every=3, tensorboard=True)
    for step in range(10):
        train(model, optimizer, 1, first=step)
        tracker.log(loss=step / 4, lr=0.5)
    tracker.close()
    run = open_run(tmp_path / "run")
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    names = ["0.weight", "2.weight"]
    own = {f"{tag}/{name}" for tag in TAGS for name in names}
    beside = {f"{tag}_by_role/all/{name}" for tag in TAGS for name in ("mean", "median", "min", "max")}
    assert set(found.Tags()["scalars"]) - beside == own | {"loss", "lr", "tracker_seconds", "tracker_overhead"}
    for name, statistic in (("median", "median"), ("max", "max")):
        expected = run.measurements.groupby("step")["stable_rank"].agg(statistic)
        events = found.Scalars(f"stable_rank_by_role/all/{name}")
        assert [event.step for event in events] == expected.index.tolist()
        assert [event.value for event in events] == pytest.approx(expected.tolist(), rel=1e-6)
    for name in names:
        rows = run.measurements[run.measurements["matrix"] == name]
        for tag in TAGS[:-1]:
            events = found.Scalars(f"{tag}/{name}")
            assert [event.step for event in events] == rows["step"].tolist() == [3, 6, 9, 10]
            assert [event.value for event in events] == rows[tag].astype(float).astype(np.float32).tolist(), tag
        shares = (rows["intrinsic_rank"] / rows["null_rank"]).astype(float).astype(np.float32).tolist()
        assert [event.value for event in found.Scalars(f"rank_over_null_rank/{name}")] == shares
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [
        (step + 1, step / 4) for step in range(10)
    ]


def test_a_histogram_holds_log10_of_the_spectrum_in_at_most_64_bins(tmp_path: Path) -> None:
    record(tmp_path / "run", 4, 100, 120, 90, tensorboard=True)
    run = open_run(tmp_path / "run")
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    for name in ("0.weight", "2.weight"):
        histograms = found.Histograms(f"log10_singular_values/{name}")
        assert [event.step for event in histograms] == [1, 2, 3, 4]
        for event in histograms:
            values = run.singular_values(name).loc[event.step].to_numpy()
            logs = np.log10(values[values > 1e-8 * values[0]])
            histogram = event.histogram_value
            assert 1 <= len(histogram.bucket) == len(histogram.bucket_limit) <= 64
            assert sum(histogram.bucket) == histogram.num == len(logs)
            assert histogram.min == pytest.approx(logs.min(), abs=1e-6)
            assert histogram.max == pytest.approx(logs.max(), abs=1e-6)
            assert histogram.sum == pytest.approx(logs.sum(), rel=1e-6)
            assert histogram.bucket_limit == sorted(histogram.bucket_limit)
            assert histogram.bucket_limit[-1] == pytest.approx(logs.max(), abs=1e-6)


@pytest.mark.parametrize(
    "values",
    [[0.0, 0.0], [3.0], [2.0, 2.0, 2.0], [1.0, 1e-30], [5.0, 0.0]],
    ids=["zero", "one", "equal", "tiny", "rank1"],
)
def test_degenerate_spectra_are_written(tmp_path: Path, values: list[float]) -> None:
    file = EventFile(tmp_path, ["a"], None)
    file.add_measurements(measured([np.array(values, dtype=np.float32)], ["a"]))
    file.close()
    found = read(tmp_path)
    assert found.Scalars("running_rank/a")[0].value == 2
    histograms = [] if max(values) == 0 else found.Histograms("log10_singular_values/a")
    assert sum(sum(event.histogram_value.bucket) for event in histograms) == sum(
        value > 1e-8 * max(values) for value in values
    )


def test_a_non_finite_update_is_left_out(tmp_path: Path) -> None:
    model, optimizer, tracker = start(tmp_path / "run", tensorboard=True)
    train(model, optimizer, 1)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    train(model, optimizer, 2, first=1)
    tracker.log(loss=math.nan)
    tracker.close()
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    steps = {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert steps["intrinsic_rank/0.weight"] == [1]
    assert all(there in ([1], [1, 2, 3], [3]) for there in steps.values())
    assert math.isnan(found.Scalars("loss")[0].value)


@pytest.mark.parametrize(
    ("count", "asked", "own"), [(99, False, 99), (100, False, 0), (100, True, 100), (560, False, 0)]
)
def test_from_a_hundred_matrices_on_there_are_summaries_by_role_unless_asked(
    tmp_path: Path, count: int, asked: bool, own: int
) -> None:
    kinds = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")
    names = [f"model.layers.{place // 3}.{kinds[place % 3]}.weight" for place in range(count)]
    found = measured([np.ones(2, dtype=np.float32)] * count, names)
    found.metrics["intrinsic_rank"][:] = np.arange(count)
    file = EventFile(tmp_path, names, None, every_matrix=asked)
    file.add_measurements(found)
    file.close()
    written = read(tmp_path)
    tags = written.Tags()["scalars"]
    assert sum(tag.startswith("running_rank/") for tag in tags) == own
    assert sum(tag.startswith("log10_singular_values/") for tag in written.Tags()["histograms"]) == own
    assert len([tag for tag in tags if "_by_role/" in tag]) <= 100
    for place, role in enumerate(("q", "attention_output", "MLP_in")):
        ranks = np.arange(place, count, 3)
        for name in ("mean", "median", "min", "max"):
            (event,) = written.Scalars(f"intrinsic_rank_by_role/{role}/{name}")
            assert event.value == pytest.approx(getattr(np, name)(ranks))


def test_a_statistic_over_ranks_that_a_cut_spectrum_does_not_tell_is_not_written(tmp_path: Path) -> None:
    found = measured([np.ones(2, dtype=np.float32)] * 2, ["a", "b"])
    found.metrics["intrinsic_rank"][1] = np.nan
    assert not [tag for tag in found.by_role(["other", "other"]) if tag.startswith("intrinsic_rank_by_role")]
    assert found.by_role(["other", "other"])["stable_rank_by_role/all/max"] == 2


def test_the_layout_has_one_chart_for_every_rank_and_one_for_every_explained_ratio(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    EventFile(tmp_path, ["a"], None).close()
    (event,) = read(tmp_path).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    patterns = [chart.multiline.tag[0] for chart in category.chart]
    assert len(patterns) == len({chart.title for chart in category.chart}) == 3
    for tag in ("running_rank", "explained_ratio", "rank_over_null_rank"):
        assert [bool(re.match(pattern, f"{tag}/h.0.attn.c_attn.weight[q]")) for pattern in patterns].count(True) == 1


def test_steps_after_the_resume_point_are_purged(tmp_path: Path) -> None:
    record_resumed(tmp_path / "run")
    assert len(list((tmp_path / "run" / TENSORBOARD_DIR).iterdir())) == 2
    found = read(tmp_path / "run" / TENSORBOARD_DIR)
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0), (7, 2.0)]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == expected
    for tag in ("running_rank/0.weight", "stable_rank/2.weight"):
        assert [event.step for event in found.Scalars(tag)] == [1, 2, 3, 4, 5, 6, 7]
    steps = [event.step for event in found.Histograms("log10_singular_values/0.weight")]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
