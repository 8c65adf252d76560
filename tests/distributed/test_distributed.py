"""Several processes that train together: one run, which equals that of a single process, and nothing is gathered."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers.distributed_models import STEPS, gpt2, language, record, step_zoo, zoo
from helpers.distributed_start import kept, together
from helpers.distributed_worker import LAYOUTS

from inrank_monitor import Run, open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
]
Directories = Callable[[int], Path]
References = Callable[[str], Run]
MODELS = {"gpt2": gpt2, "language": language, "zoo": zoo}
BITS = ["DDP", "compiled DDP", "FSDP2", "tensor parallel"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    """Where this many processes left their runs; they run all their scenarios once for the whole file."""
    return cache(lambda count: together("distributed_worker.py", count, tmp_path_factory.mktemp("ran") / "here"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> References:
    """The run of the same training in one process."""

    @cache
    def reference(name: str) -> Run:
        directory = tmp_path_factory.mktemp("alone")
        model, _, dtype = name.partition(", ")
        made = MODELS[model](getattr(torch, dtype or "float64"))  # type: ignore[operator]
        if model == "zoo":
            step_zoo(made, directory)
        else:
            record(made, directory)
        return open_run(directory)

    return reference


def assert_same_spectra(run: Run, reference: Run, names: list[str], steps: list[int]) -> None:
    """To 1e-6 σ₁, and whatever else a run says of a matrix."""
    there = reference.matrices.loc[names]
    assert run.matrices.index.tolist() == names
    for column in ("parameter", "part", "kind", "rows", "cols", "null_rank"):
        assert run.matrices[column].equals(there[column]), column
    np.testing.assert_allclose(run.matrices["initial_norm"], there["initial_norm"], rtol=1e-12)
    assert run.measurements["step"].unique().tolist() == steps
    for name in names:
        found, expected = run.singular_values(name), reference.singular_values(name)
        for step in steps:
            largest = expected.loc[step].max()
            np.testing.assert_allclose(found.loc[step], expected.loc[step], rtol=0, atol=1e-6 * largest)


EQUAL = [
    (2, "DDP", "gpt2"), (3, "DDP", "gpt2"),
    (2, "by hand", "language"), (2, "tensor parallel", "language"), (3, "tensor parallel", "language"),
    (4, "FSDP2 × tensor parallel", "language"), (4, "replicas", "language"), (4, "HSDP", "language"),
]  # fmt: skip


@pytest.mark.parametrize(("count", "scenario", "model"), EQUAL)
def test_the_run_equals_that_of_one_process(
    ran: Directories, alone: References, count: int, scenario: str, model: str
) -> None:
    run, reference = open_run(ran(count) / scenario), alone(model)
    assert_same_spectra(run, reference, reference.matrices.index.tolist(), [2, 4])
    ranks = ["matrix", "step", "intrinsic_rank", "running_rank"]
    assert run.measurements[ranks].equals(reference.measurements[ranks])
    assert run.events.empty
    assert run.info["processes"] == count
    assert run.info["ended"]["status"] == "finished"


SHARDED = [(2, "FSDP2"), (2, "FSDP2, not resharded"), (2, "FSDP2, offloaded"), (3, "FSDP2")]


@pytest.mark.parametrize(("count", "scenario"), SHARDED)
def test_weights_that_an_evaluation_left_gathered_are_measured_as_shards(
    ran: Directories, alone: References, count: int, scenario: str
) -> None:
    run, reference = open_run(ran(count) / scenario), alone("gpt2")
    assert run.measurements["step"].unique().tolist() == [3, 4]  # the last one at the end, after an evaluation
    assert run.events.empty
    assert run.matrices.index.equals(reference.matrices.index)
    for name in run.matrices.index:
        expected = reference.singular_values(name).loc[4]
        np.testing.assert_allclose(run.singular_values(name).loc[4], expected, rtol=0, atol=1e-6 * expected.max())


def test_with_mixed_precision_the_updates_are_those_of_the_full_weights(ran: Directories) -> None:
    run = open_run(ran(2) / "FSDP2, bfloat16")
    trained = kept(ran(2), "FSDP2, bfloat16")[0]["weights"]
    first = dict(gpt2(torch.float32).named_parameters())
    names = [name for name in run.matrices.index if "[" not in name]
    assert len(names) == 6
    for name in names:
        assert trained[name].dtype == torch.float32
        update = (trained[name].double() - first[name].detach().double()).numpy()
        expected = np.linalg.svd(update, compute_uv=False)
        np.testing.assert_allclose(run.singular_values(name).loc[4], expected, rtol=0, atol=1e-6 * expected[0])


@pytest.mark.parametrize(("count", "layout"), [(count, name) for count, found in LAYOUTS.items() for name in found])
def test_any_layout_of_any_kind_of_weight_gives_the_same_spectra(
    ran: Directories, alone: References, count: int, layout: str
) -> None:
    run, reference = open_run(ran(count) / f"layout {layout}"), alone("zoo")
    names = [name for name in reference.matrices.index if name != "in_groups.weight"]
    assert len(names) == len(reference.matrices) - 1
    assert_same_spectra(run, reference, names, [1, 2])
    assert not run.singular_values("still.weight").to_numpy().any()
    assert run.events.empty
    for found in kept(ran(count), f"layout {layout}"):
        assert found["notes"]["in_groups.weight"] == "sharded (DTensor) groups of a transposed convolution"
        assert found["notes"]["frozen.weight"] == "frozen (requires_grad=False)"
        assert found["notes"]["tied.weight"] == "tied to embed.weight"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_weights_are_subtracted_exactly(ran: Directories, dtype: str) -> None:
    run, first = open_run(ran(2) / dtype), dict(zoo(getattr(torch, dtype)).named_parameters())
    trained = kept(ran(2), dtype)[0]["weights"]
    for name in ("wide.weight", "tall.weight", "few_rows.weight", "attention.out_proj.weight", "embed.weight"):
        update = trained[name].double() - first[name].detach().double()
        expected = np.linalg.svd(update.numpy(), compute_uv=False)
        np.testing.assert_allclose(run.singular_values(name).loc[2], expected, rtol=0, atol=1e-6 * expected[0])
        assert expected.all()


def test_leading_values_are_the_first_of_all(ran: Directories, alone: References) -> None:
    run, reference = open_run(ran(2) / "leading"), alone("zoo")
    for name in run.matrices.index:
        found, expected = run.singular_values(name).loc[2], reference.singular_values(name).loc[2]
        assert len(found) == min(3, len(expected))
        np.testing.assert_allclose(found, expected[: len(found)], rtol=0, atol=1e-6 * expected.max())
    there = reference.measurements[reference.measurements["matrix"].isin(run.matrices.index)]
    np.testing.assert_allclose(run.measurements["frobenius_norm"], there["frobenius_norm"], rtol=1e-6)
    assert run.measurements["matrix"].astype(str).tolist() == there["matrix"].astype(str).tolist()
    assert not run.measurements["error_bound"].any()


@pytest.mark.parametrize("layout", LAYOUTS[3])
def test_each_process_keeps_the_first_values_of_its_shards_only(ran: Directories, layout: str) -> None:
    processes = kept(ran(3), f"layout {layout}")
    for number, found in enumerate(processes):
        assert found["first"] == found["held"]
        file = ran(3) / f"layout {layout}" / ("initial_weights" + (f"-{number:03d}" if number else "") + ".safetensors")
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert file.stat().st_size == header + 8 * sum(prod(shape) for shape in found["held"].values())
    if layout == "rows":
        assert 0 in processes[2]["held"]["few_rows.weight"]  # two rows on three processes
    for name in processes[0]["held"]:
        entries = sum(prod(found["held"][name]) for found in processes)
        assert entries == processes[0]["weights"][name].numel()


@pytest.mark.parametrize("keep", ["memory", "device"])
def test_first_values_in_memory_are_of_the_shards_too(ran: Directories, alone: References, keep: str) -> None:
    run = open_run(ran(2) / keep)
    assert_same_spectra(run, alone("zoo"), run.matrices.index.tolist(), [1, 2])
    for found in kept(ran(2), keep):
        assert found["first"] == found["held"]
    assert not list((ran(2) / keep).glob("*.safetensors"))


@pytest.mark.parametrize("scenario", BITS)
def test_training_is_the_same_to_the_bit_on_every_process(ran: Directories, scenario: str) -> None:
    first, second = kept(ran(2), f"bits, {scenario}")
    for found in (first, second):
        for moment in ("watched", "closed"):
            assert not [key for key, value in found["plain"].items() if found[moment][key] != value]
    assert open_run(ran(2) / f"bits, {scenario}").measurements["step"].unique().tolist() == [2, 4, 6, 8]
    same_data = scenario == "tensor parallel"
    assert same_data or first["plain"]["losses"] != second["plain"]["losses"]


@pytest.mark.parametrize(("count", "scenario"), [(2, "DDP"), (3, "DDP"), (4, "replicas"), (4, "HSDP")])
def test_each_matrix_is_measured_once_and_each_process_measures_some(
    ran: Directories, count: int, scenario: str
) -> None:
    run, processes = open_run(ran(count) / scenario), kept(ran(count), scenario)
    for snapshot in range(2):
        steps, places = zip(*(found["snapshots"][snapshot] for found in processes), strict=True)
        assert len(set(steps)) == 1
        assert sorted(chain.from_iterable(places)) == list(range(len(run.matrices)))
        assert all(places)


def test_spectra_are_shared_out_by_what_they_cost(ran: Directories) -> None:
    run, processes = open_run(ran(2) / "DDP"), kept(ran(2), "DDP")
    sides = run.matrices[["rows", "cols"]]
    cost = (sides.min(axis=1) ** 2 * sides.max(axis=1)).to_numpy()
    shares = [cost[found["snapshots"][0][1]].sum() / cost.sum() for found in processes]
    assert max(shares) < 0.55


def test_one_process_writes_and_what_all_log_is_there_once(ran: Directories) -> None:
    run = open_run(ran(2) / "DDP")
    assert [found["finished"] for found in kept(ran(2), "DDP")] == [[2, 4], []]
    losses = run.scalars[run.scalars["name"] == "loss"]
    assert losses["step"].tolist() == list(range(1, STEPS + 1))
    assert len(run.measurements) == 2 * len(run.matrices)


def test_processes_measure_at_the_same_steps_whatever_the_schedule(ran: Directories) -> None:
    automatic = kept(ran(2), "automatic")
    assert automatic[0] == automatic[1] == open_run(ran(2) / "automatic").measurements["step"].unique().tolist()
    assert automatic[0][0] == 1
    assert len(automatic[0]) > 2
    assert kept(ran(2), "function") == [[2, 3, 7, 12]] * 2  # the last one by close()
    assert kept(ran(2), "by hand") == [[2, 4]] * 2


def test_a_snapshot_sends_pieces_once_and_a_small_square_each_and_gathers_nothing(ran: Directories) -> None:
    processes = kept(ran(2), "communication")
    # Six matrices in each of two blocks, all of them 24 wide on their short side: eight bands of three rows up to the
    # diagonal, which each process sends for one half of the matrices and receives for the other.
    triangle = sum(3 * 3 * (band + 1) for band in range(8))
    for found in processes:
        sent: dict[Any, int] = found["sent"]
        talk = {"broadcast_", "allreduce_", "gather_"}  # of small objects; Python values of the processes
        assert {name for name, _ in sent} <= talk | {"alltoall_base_", "send", "recv_", "allgather_"}
        for way in ("send", "recv_"):
            assert {entries: times for (name, entries), times in sent.items() if name == way} == {triangle: 6}
        moved = sum(entries * times for (name, entries), times in sent.items() if name == "alltoall_base_")
        cut_on_the_short_side = [shape for shape in found["pieces"] if shape[0] == 12]
        assert moved == sum(map(prod, cut_on_the_short_side))
        assert all(entries == 1 for (name, entries) in sent if name == "allreduce_")
        assert not [key for key in sent if key[0] == "allgather_" and key[1] > 1]


def test_a_nan_in_one_shard_is_an_event_of_that_matrix_alone(ran: Directories) -> None:
    for count in (2, 3, 4):
        run = open_run(ran(count) / "NaN")
        events = run.events[run.events["kind"] != "changed_between_steps"]  # how the NaN came there
        assert events[["step", "kind", "matrix"]].to_numpy().tolist() == [[1, "non_finite", "blocks.0.up.weight"]]
        norms = run.measurements.set_index(["step", "matrix"])["spectral_norm"]
        assert norms.isna().sum() == 1
        assert np.isnan(norms[1, "blocks.0.up.weight"])
        assert norms[2, "blocks.0.up.weight"] > 0


def test_layouts_that_cannot_be_added_up_are_refused(ran: Directories) -> None:
    for notes in kept(ran(2), "refused"):
        assert len(notes) == 2
        assert "weight: sharded (DTensor) as partial sums" in notes[0]
        assert notes[1] == "weight lies on the processes [0] of 2: a run watches what all processes hold"


def test_attaching_before_the_model_is_sharded_says_what_to_do(ran: Directories) -> None:
    run = open_run(ran(2) / "sharded late")
    assert run.measurements.empty
    assert run.events[["step", "kind"]].to_numpy().tolist() == [[2, "shape_changed"]]
    assert run.events["message"][0].endswith("; attach after the model is put into shards")
