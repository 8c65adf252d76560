"""The plan's arithmetic on known shapes, its laws, its figures against real runs."""

from __future__ import annotations

import ast
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inrank_monitor import attach, find_matrices
from inrank_monitor.plan.advice import (
    ENOUGH_AN_HOUR,
    advise,
    attach_line,
    early_snapshots,
    snapshots_an_hour,
    steps_between,
)
from inrank_monitor.plan.calibration import calibrate
from inrank_monitor.plan.costs import cost, leading_work
from inrank_monitor.plan.models import planned_model, planned_shapes
from inrank_monitor.plan.planning import Plan, make_plan
from inrank_monitor.plan.quantities import Cost, Curve, Layout, PlannedMatrix, Rates, Recorded, Speed
from inrank_monitor.plan.recorded import recorded
from inrank_monitor.plan.scenario import Scenario
from inrank_monitor.plan.text import duration, plan_text, size
from inrank_monitor.tracking import Automatic, simulate

pytestmark = pytest.mark.usefixtures("one_thread")
ONES = Speed(Curve((1,), (1.0,)), Curve((1,), (1.0,)), {64: 1.0, 8: 1.0}, 1.0)
NOTHING = Recorded(0.0, 0, 0)
# of the order of one core's, so that what is extrapolated is seconds
CORE = Speed(Curve((768, 2048), (4e-11, 3e-11)), Curve((768, 2048), (9e-11, 5e-11)), {64: 4e-11, 256: 3e-11}, 3e-9)


def rates(speed: Speed = ONES, **changes: Any) -> Rates:
    return replace(Rates(speed, speed, 1.0, 10.0, 0.0, 0.0, None), **changes)


def matrix(rows: int, cols: int, name: str = "a.weight", **changes: Any) -> PlannedMatrix:
    return replace(PlannedMatrix(name, name, rows, cols, (rows, cols), "F32", 4, None, 0), **changes)


def several(count: int, rows: int = 768, cols: int = 3072, **changes: Any) -> list[PlannedMatrix]:
    return [matrix(rows, cols, f"h.{number}.weight", **changes) for number in range(count)]


def seconds(matrices: list[PlannedMatrix], layout: Layout, leading: int | None = None, speed: Speed = CORE) -> float:
    return cost(matrices, leading, layout, rates(speed, fetch=0.0), NOTHING).seconds


PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-65b": 65_285_660_672,
    "llama-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_well_known_models_have_their_published_size(name: str) -> None:
    assert planned_model(name).parameters == PUBLISHED[name]


def test_gpt2_small_is_72_matrices_of_48_parameters() -> None:
    model = planned_model("gpt2")
    assert len(model.planned) == 72  # q, k, v of their own
    assert len({each.parameter for each in model.planned}) == 48
    assert model.watched == 12 * 12 * 768**2


def test_llama_is_watched_but_for_embedding_and_norms() -> None:
    for name, layers, width in (("llama-7b", 32, 4096), ("llama-70b", 80, 8192)):
        model = planned_model(name)
        assert model.watched == PUBLISHED[name] - 32000 * width - (2 * layers + 1) * width
        assert len(model.planned) == 7 * layers + 1


def small_gpt2(folder: Path, **sizes: Any) -> nn.Module:
    """A real one, and its config.json in the folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64, "n_positions": 16}
    config = GPT2Config(**shape | sizes, architectures=["GPT2LMHeadModel"], bos_token_id=None, eos_token_id=None)
    config.save_pretrained(folder)
    return GPT2LMHeadModel(config)


def test_a_config_is_planned_as_the_tracker_watches_the_model(tmp_path: Path) -> None:
    matrices, _ = find_matrices(small_gpt2(tmp_path))
    for source in (tmp_path, tmp_path / "config.json"):
        planned = planned_model(str(source)).planned
        assert [(each.name, each.rows, each.cols) for each in planned] == [
            (each.name, each.rows, each.cols) for each in matrices
        ]


def test_the_dtype_comes_from_the_config_unless_it_is_given(tmp_path: Path) -> None:
    small_gpt2(tmp_path, dtype="bfloat16")
    assert {each.itemsize for each in planned_model(str(tmp_path)).planned} == {2}
    assert {each.itemsize for each in planned_model(str(tmp_path), "float32").planned} == {4}


def test_shapes_are_counted() -> None:
    model = planned_shapes("40x30:2, 7×9")
    assert [(each.rows, each.cols) for each in model.planned] == [(40, 30), (40, 30), (7, 9)]
    assert model.watched == model.parameters == 2 * 40 * 30 + 7 * 9


def test_seconds_of_one_matrix_to_the_digit() -> None:
    found = cost([matrix(6, 4)], None, Layout(), rates(), Recorded(0.5, 11, 7))
    assert found.seconds == 4 * 24 + 24 + 4 * 6 * 4 + 4**3  # W0's bytes, entries, products, eigenvalues
    assert (found.record_seconds, found.log, found.events, found.sent) == (0.5, 11, 7, 0)
    assert found.counted == found.seconds + 0.5


def test_leading_values_are_charged_by_their_products() -> None:
    found = cost([matrix(600, 500)], 64, Layout(), rates(), NOTHING)
    assert found.seconds == 5 * 600 * 500 + leading_work(600, 500, 64)


@pytest.mark.parametrize("leading", [64, 256, 1000])
def test_leading_values_that_are_a_large_part_cost_a_full_spectrum(leading: int) -> None:
    shapes = [matrix(256, 300)]
    assert seconds(shapes, Layout(), leading) == seconds(shapes, Layout())


def test_parts_of_a_parameter_share_its_read() -> None:
    parts = [matrix(4, 6, f"a.weight[{part}]", parameter="a.weight", shape=(12, 6)) for part in "qkv"]
    apart = [matrix(4, 6, f"{part}.weight") for part in "qkv"]
    free = rates(replace(ONES, update=0.0, products=Curve((1,), (0.0,)), eigenvalues=Curve((1,), (0.0,))))
    assert (
        cost(parts, None, Layout(), free, NOTHING).seconds == cost(apart, None, Layout(), free, NOTHING).seconds == 288
    )


def test_costs_are_linear_in_layers() -> None:
    one, three = (seconds(several(count), Layout()) for count in (8, 24))
    assert three == pytest.approx(3 * one, rel=1e-12)
    weights = [cost(several(count), None, Layout(), rates(), NOTHING).weights for count in (8, 24)]
    assert weights[1] == pytest.approx(3 * weights[0], rel=1e-6)  # a header of a hundred bytes a parameter


@pytest.mark.parametrize("sharded", [False, True])
def test_a_snapshot_gets_cheaper_with_every_doubling_of_processes(sharded: bool) -> None:
    shapes = several(64, 768, 2304)
    costs = [cost(shapes, None, Layout(count, sharded), rates(CORE, fetch=0.0), NOTHING) for count in (1, 2, 4, 8)]
    for fewer, more in pairwise(costs):
        assert 1.6 < fewer.seconds / more.seconds <= 2.0001
        assert fewer.weights_here > 1.9 * more.weights_here
    memory = [each.memory for each in costs[sharded:]]  # one process exchanges nothing
    assert memory == sorted(memory, reverse=True)


def test_processes_that_are_more_than_parameters_do_not_help() -> None:
    shapes = several(3)
    assert seconds(shapes, Layout(3)) == seconds(shapes, Layout(50)) == pytest.approx(seconds(shapes, Layout(1)) / 3)


def test_workers_share_the_matrices() -> None:
    shapes = several(8)
    assert seconds(shapes, Layout(threads=4)) == pytest.approx(seconds(shapes, Layout()) / 4)
    three = [*several(3), matrix(2000, 2000, "b.weight")]
    assert seconds(three, Layout(threads=2)) > seconds([three[-1]], Layout())


def test_costs_grow_with_either_side() -> None:
    layouts = [Layout(), Layout(4), Layout(4, True)]
    for layout in layouts:
        for leading in (None, 64):
            found = [
                cost([matrix(*shape)], leading, layout, rates(CORE), NOTHING)
                for shape in ((512, 768), (768, 768), (768, 3072), (1024, 3072), (4096, 4096), (4096, 11008))
            ]
            for smaller, larger in pairwise(found):
                assert smaller.seconds < larger.seconds
                assert smaller.memory < larger.memory
                assert smaller.weights < larger.weights


def test_in_shards_a_gram_matrix_is_sent_and_pieces_only_where_they_cut_its_side() -> None:
    wide, tall = matrix(4, 10), matrix(10, 4)  # the first dimension, rows, is cut
    gram, values = 8 * 4**2, 8 * 4 / 2
    piece = 4 * 40 / 2
    layout = Layout(2, True)
    assert cost([wide], None, layout, rates(), NOTHING).sent == gram + values + piece / 2
    assert cost([tall], None, layout, rates(), NOTHING).sent == gram + values
    assert cost([tall], None, Layout(2), rates(), NOTHING).sent == values
    assert cost([tall], None, Layout(1, True), rates(), NOTHING).sent == 0


def test_sending_takes_time_where_the_bandwidth_is_known() -> None:
    layout = Layout(2, True)
    found, timed = (
        cost([matrix(4, 10)], None, each, rates(), NOTHING) for each in (layout, replace(layout, bandwidth=3.0))
    )
    assert timed.seconds == found.seconds + found.sent / 3


def test_in_shards_memory_is_far_below_the_shard() -> None:
    for name, processes in (("gpt2", 2), ("llama-7b", 8), ("llama-70b", 16)):
        model = planned_model(name)
        found = cost(model.planned, None, Layout(processes, True), rates(), NOTHING)
        assert found.memory < 0.15 * 4 * model.parameters / processes


def test_half_precision_halves_the_file_and_no_update() -> None:
    single, half = (
        cost(several(4, dtype=dtype, itemsize=itemsize), None, Layout(), rates(CORE, fetch=0.0), NOTHING)
        for dtype, itemsize in (("F32", 4), ("BF16", 2))
    )
    assert half.weights == pytest.approx(single.weights / 2, rel=1e-4)
    assert half.seconds == single.seconds


def test_shards_of_uneven_rows_are_written_once_each() -> None:
    found = cost([matrix(5, 8)], None, Layout(4, True), rates(), NOTHING)  # 2, 2, 1 and no rows
    header = found.weights_here - 2 * 8 * 4
    assert 60 < header < 120
    assert found.weights == 4 * header + 5 * 8 * 4


def test_w0_too_large_for_the_cache_is_read_from_the_disk() -> None:
    shapes = several(2)
    small, large = (
        cost(shapes, None, Layout(2, per_machine=2), rates(available=available), NOTHING)
        for available in (5 * 2 * 768 * 3072 * 4, 3 * 2 * 768 * 3072 * 4 // 2)
    )
    assert (small.from_disk, large.from_disk) == (False, True)
    assert large.seconds > small.seconds


def test_an_accelerator_holds_one_matrix_and_the_host_what_waits_for_its_eigenvalues() -> None:
    found = cost(several(4), None, Layout(on_device=True), rates(), NOTHING)
    assert found.device_memory > 4 * 768 * 3072 + 8 * 768**2  # the update and its Gram matrix
    assert found.memory > 4 * 8 * 768**2
    assert cost(several(4), None, Layout(), rates(), NOTHING).device_memory == 0
    llama = [matrix(4096, 11008)] * 64
    held = [cost(llama, None, Layout(threads=n, on_device=True), rates(), NOTHING).device_memory for n in (1, 16, 64)]
    assert max(held) == min(held) <= 0.3e9
    whole = planned_model("llama-7b").planned  # with its embedding, which alone has half a gigabyte
    costs = [cost(whole, None, Layout(threads=n, on_device=True), rates(), NOTHING) for n in (16, 64)]
    assert max(each.device_memory for each in costs) <= 0.3e9


def test_a_curve_is_a_power_law_between_what_was_measured_and_level_outside() -> None:
    curve = Curve((100, 400), (8.0, 2.0))
    assert [curve.at(side) for side in (10, 100, 400, 9000)] == [8, 8, 2, 2]
    assert curve.at(200) == pytest.approx(4)


def test_w0_and_log_are_as_large_as_those_of_a_real_run(tmp_path: Path) -> None:
    model = small_gpt2(tmp_path)
    planned = planned_model(str(tmp_path))
    note = recorded(planned.matrices)
    found = cost(planned.planned, None, Layout(), rates(), note)
    sizes = []
    with attach(model, None, tmp_path / "run", every=1) as tracker:
        for step in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.01 * torch.randn(parameter.shape)
            tracker.step()
            tracker.flush()
            sizes.append([_bytes(tmp_path / "run", pattern) for pattern in ("*.arrows", "tensorboard/*")])
            assert step == len(sizes) - 1
    assert (tmp_path / "run" / "initial_weights.safetensors").stat().st_size == found.weights
    log, events = (last - before for before, last in zip(sizes[1], sizes[2], strict=True))
    assert log == found.log
    assert events == pytest.approx(found.events, rel=0.05)  # of numbers some are longer than others


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def test_leading_values_shorten_the_log_by_what_is_left_out() -> None:
    matrices = planned_shapes("200x300:10").matrices
    full, leading = (recorded(matrices, count, tensorboard=False) for count in (None, 20))
    assert full.log - leading.log == pytest.approx(10 * 180 * 4, abs=128)
    assert full.events == leading.events == 0


COSTS: dict[int | None, float] = {None: 10.0, 256: 4.0, 64: 1.0}


def advice_for(seconds_full: float, budget: float = 0.01, layers: int = 16) -> Any:
    """Where a full spectrum takes so long, 64 leading values a tenth."""
    model = planned_shapes(f"3072x768:{layers}")
    speed = replace(CORE, leading={64: 1.0}, update=0.0)
    one = seconds_full / layers
    full = Curve((768,), (one / 2 / (768**2 * 3072),)), Curve((768,), (one / 2 / 768**3,))
    speed = Speed(*full, {64: one / 10 / leading_work(3072, 768, 64)}, 0.0)
    machine = rates(speed, fetch=0.0)
    notes: dict[int | None, Recorded] = dict.fromkeys((None, 64), NOTHING)
    costs = {leading: cost(model.planned, leading, Layout(), machine, NOTHING) for leading in notes}
    return advise(Scenario(model, Layout(), budget=budget), machine, costs)


def test_advice_is_the_most_that_the_budget_allows() -> None:
    allowed = 0.75 * 0.01 * 3600 / ENOUGH_AN_HOUR
    full, leading, some, nothing = (advice_for(allowed * factor) for factor in (0.99, 9.9, 39, 1000))
    assert (full.leading, full.every, full.fits) == (None, 1, True)
    assert (leading.leading, leading.every, leading.fits) == (64, 1, True)
    assert (some.leading, some.every, some.matrices, some.fits) == (64, 4, 4, True)
    assert (nothing.every, nothing.matrices, nothing.fits) == (16, 1, False)
    assert advice_for(allowed * 9.9, budget=0.1).leading is None


def test_snapshots_pay_for_themselves() -> None:
    found = replace(cost([matrix(6, 4)], None, Layout(), rates(), NOTHING), seconds=2.0, record_seconds=0.7)
    assert snapshots_an_hour(found, 0.01) == pytest.approx(10)
    assert steps_between(found, 0.01, 3.6) == 100
    assert steps_between(found, 1.0, 1e6) == 1


def test_the_first_ten_minutes_are_those_of_the_schedule_itself() -> None:
    cheap = replace(cost([matrix(6, 4)], None, Layout(), rates(), NOTHING), seconds=0.1, record_seconds=0.03)
    cheap = replace(cheap, attach_seconds=0.5)
    found = simulate(Automatic(), 600, lambda _: 0.2, lambda *_: 0.13, attaching=0.5)
    assert early_snapshots(cheap, 0.01, 0.2) == len(found.steps) > 25
    assert early_snapshots(cheap, 0.05, 0.2) > early_snapshots(cheap, 0.01, 0.2)
    assert early_snapshots(replace(cheap, seconds=60.0), 0.01, 0.2) == 2  # the first and the last
    assert early_snapshots(cheap, 0.01, 100.0) == 6  # there are no more steps


def test_the_patterns_of_the_advice_choose_its_matrices() -> None:
    model = planned_model("gpt2-xl")
    speed = replace(CORE, leading={64: 1.5e-10})
    machine = rates(speed, fetch=0.0)
    notes: dict[int | None, Recorded] = {64: Recorded(0.1, 1000, 1000)}
    costs = {64: cost(model.planned, 64, Layout(), machine, notes[64])}
    advice = advise(Scenario(model, Layout()), machine, costs)
    assert advice.every > 1
    assert advice.fits
    call = ast.parse(attach_line(advice, "runs/x", 0.01)).body[0].value  # type: ignore[attr-defined]
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert given["leading"] == 64
    assert len(planned_model("gpt2-xl", include=given["include"]).planned) == advice.matrices


def test_calibration_puts_the_threads_back_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    model = planned_shapes("160x140:2")
    found = calibrate(Scenario(model, Layout(threads=before + 1), [4], directory=tmp_path))
    assert torch.get_num_threads() == before
    assert not list(tmp_path.iterdir())
    assert found.pool.products.sides == (140,)
    assert min(found.pool.products.at(140), found.alone.eigenvalues.at(140), found.pool.leading[4], found.fetch) > 0


def made_up_plan(layout: Layout) -> Plan:
    model = planned_model("llama-7b")
    machine = rates(CORE, fetch=1e-9, fetch_from_disk=1e-8, write=1e-9, write_to_disk=1e-8, available=10**10)
    notes: dict[int | None, Recorded] = dict.fromkeys((None, 64), Recorded(0.1, 10**6, 10**5))
    costs: dict[int | None, Cost] = {
        each: cost(model.planned, each, layout, machine, notes[each]) for each in (None, 64)
    }
    scenario = Scenario(model, layout, directory=Path("runs/llama-7b"))
    return Plan(scenario, machine, costs, advise(scenario, machine, costs))


def test_the_text_says_what_is_planned_for_and_fits_the_terminal() -> None:
    text = plan_text(made_up_plan(Layout(8, per_machine=8)), [2.0])
    assert "225 matrices, 6,607,077,376 of 6,738,415,616 parameters" in text
    assert "8 processes that each hold the whole model" in text
    assert "128   4096×4096" in text
    assert "with steps of 2.0 s, in the first ten minutes" in text
    assert "and then one in" in text
    assert "* extrapolated" in text
    assert "attach(model, optimizer" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_text_of_a_plan_in_shards_says_what_leading_does_not_save() -> None:
    text = plan_text(made_up_plan(Layout(64, True, per_machine=8)))
    assert "a shard of every parameter (FSDP2)" in text
    assert "a process sends, a snapshot" in text
    assert "leading=K would only shorten the log" in text


def test_numbers_are_short() -> None:
    assert [duration(each) for each in (0.0, 0.012, 0.5, 3.44, 75, 600, 8000, 4e5)] == [
        "0 ms", "12 ms", "0.5 s", "3.4 s", "75 s", "10 min", "2.2 h", "4.6 days",
    ]  # fmt: skip
    assert [size(each) for each in (0, 999, 1000, 26.4e9, 2e12)] == ["0 B", "999 B", "1.0 kB", "26 GB", "2.0 TB"]


@pytest.mark.slow
def test_a_real_snapshot_takes_about_as_long_as_planned(tmp_path: Path) -> None:
    model = nn.ModuleList([nn.Linear(1536, 512, bias=False) for _ in range(8)])
    planned = planned_shapes("512x1536:8")
    predicted, measured = [], []
    for attempt in range(3):  # other work on the machine disturbs single ones
        plan = make_plan(Scenario(planned, Layout(), [32], directory=tmp_path))
        for leading in (None, 32):
            directory = tmp_path / f"{leading}-{attempt}"
            predicted.append(plan.costs[leading].counted)
            measured.append(_real_seconds(model, directory, leading))
    ratios = [one / other for one, other in zip(predicted, measured, strict=True)]
    for kind in (ratios[::2], ratios[1::2]):
        assert 1 / 3 < statistics.median(kind) < 3


def _real_seconds(model: nn.Module, directory: Path, leading: int | None) -> float:
    found = []
    with attach(model, None, directory, every=1, leading=leading) as tracker:
        for _ in range(5):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.01 * torch.randn(parameter.shape)
            before = tracker.seconds
            tracker.step()
            tracker.flush()
            found.append(tracker.seconds - before)
    return statistics.median(found[1:])
