"""What goes wrong on one of several processes: the others hear of it, nobody hangs, training goes on."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from helpers.distributed_models import OPTIONS, language, record
from helpers.distributed_start import finish, kept, start, together

from inrank_monitor import attach, open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo"),
]
WORKER = "distributed_faults_worker.py"
Ran = Callable[..., Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Where processes that all ended well left what they found; each set is started once for the whole file."""

    @cache
    def run(mode: str, count: int = 2) -> Path:
        arguments = () if mode == "faults" else (run("faults") / "begun",)
        return together(WORKER, count, tmp_path_factory.mktemp(mode) / "here", mode, *arguments)

    return run


def both(directory: Path, name: str) -> Any:
    """What both processes found, which is the same."""
    one, other = kept(directory, name)
    assert one == other
    return one


REFUSED = {
    "run there": "FileExistsError: .* holds a run already",
    "other matrices": "ValueError: process . holds other matrices than process .: one run is of one model",
    "other values": "ValueError: 0.weight is not the same on process . as on process .: attach after Distributed",
    "shards alone": "ValueError: distributed=False cannot watch a model in shards",
    "flat": "ValueError: model cannot be watched: it is in FullyShardedDataParallel .*fully_shard",
    "flat, original parameters": "ValueError: model cannot be watched: it is in FullyShardedDataParallel .*fully_shard",
    "flat inside": "ValueError: model cannot be watched: its module 1 is in FullyShardedDataParallel .*fully_shard",
    "no room for W0": "OSError: .*|IsADirectoryError: .*initial_weights-001",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_on_one_process_is_refused_on_both(ran: Ran, what: str) -> None:
    for found in kept(ran("faults"), "refused"):
        assert re.match(REFUSED[what], found[what])


def test_a_directory_that_was_refused_can_be_used_later(ran: Ran) -> None:
    assert both_of(ran, "refused", "room again") == {"no error"}
    assert open_run(ran("faults") / "refused/e").info["ended"]["status"] == "finished"


def both_of(ran: Ran, scenario: str, key: str) -> set[str]:
    return {found[key] for found in kept(ran("faults"), scenario)}


def test_attaching_on_one_process_is_told_and_can_be_mended(ran: Ran) -> None:
    first, second = kept(ran("faults"), "forgotten attach")
    assert first[0] == (
        "ProcessesLostError: attach was called on process 0, but not on process 1 of 2 within 1 s: call it on every "
        "process (one run is written, the spectra are shared out), "
        "or give distributed=False to watch this process alone"
    )
    assert first[1:] == second == ["no error"]
    assert open_run(ran("faults") / "forgotten attach").measurements["step"].unique().tolist() == [2, 4]


def test_each_process_can_write_a_run_of_its_own(ran: Ran) -> None:
    one, other = (open_run(ran("faults") / "alone" / number) for number in "01")
    assert one.measurements["step"].unique().tolist() == [2, 4]
    assert one.measurements.drop(columns="time").equals(other.measurements.drop(columns="time"))
    assert one.info["processes"] == 1


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_first_values_that_are_lost_on_one_process_cost_only_what_it_measures(ran: Ran, way: str) -> None:
    run = open_run(ran("faults") / f"cut file, {way}")
    assert [len(losses) for losses in kept(ran("faults"), f"cut file, {way}")] == [6, 6]
    assert run.info["ended"] == {"status": "finished", "reason": "", "step": 6} | {"time": run.info["ended"]["time"]}
    counts = run.measurements.groupby("step").size()
    assert counts.loc[1:3].tolist() == [len(run.matrices)] * 3
    assert (counts.loc[4:6] < len(run.matrices)).all()
    assert (counts.loc[4:6] > 0).all()  # of DDP the other's share; of FSDP2 what lies before the cut
    assert set(run.events["kind"]) == {"not_measured"}
    assert run.events["step"].tolist() == [4, 5, 6]
    assert run.events["message"].str.contains(r"process 1: OSError: \[Errno 5\] W0 was cut short").all()


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_one_snapshot_that_fails_on_one_process_is_an_event(ran: Ran, way: str) -> None:
    run = open_run(ran("faults") / f"failing read, {way}")
    counts = run.measurements.groupby("step").size()
    assert counts.drop(3, errors="ignore").tolist() == [len(run.matrices)] * 5
    assert counts.get(3, 0) == (0 if way == "FSDP2" else both_shares(run))
    assert run.events["step"].tolist() == [3]
    assert "process 1: KeyError: 'no such thing'" in run.events["message"][0]
    assert run.info["ended"]["status"] == "finished"


def both_shares(run: Any) -> int:
    """What the first process measured at the step at which the second could not: more than nothing, less than all."""
    found = int((run.measurements["step"] == 3).sum())
    assert 0 < found < len(run.matrices)
    return found


def test_a_schedule_that_fails_is_asked_again(ran: Ran) -> None:
    run = open_run(ran("faults") / "failing schedule")
    assert run.measurements["step"].unique().tolist() == [1, 2, 4, 5, 6]
    assert set(run.events["kind"]) == {"error"}
    assert run.events["message"].str.contains("ZeroDivisionError").all()
    assert [len(losses) for losses in kept(ran("faults"), "failing schedule")] == [6, 6]


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_strict_raises_on_every_process(ran: Ran, way: str) -> None:
    good, bad = both(ran("faults"), f"strict, {way}")
    assert good == "no error"
    assert bad.startswith("RuntimeError: non_finite in ")
    assert bad.endswith("at step 2: the weights hold NaN or infinity")


def test_an_error_in_one_loop_ends_the_run_for_both(ran: Ran) -> None:
    assert kept(ran("faults"), "one raises") == ["no error", "KeyError: 'a mistake'"]
    run = open_run(ran("faults") / "one raises")
    assert run.info["ended"]["status"] == "interrupted"
    assert run.info["ended"]["reason"] == "process 1 has left: KeyError"
    assert run.measurements["step"].unique().tolist() == [2]


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
@pytest.mark.parametrize("call", ["measure", "close"])
def test_a_call_on_one_process_alone_ends_the_run_and_not_the_training(ran: Ran, call: str, way: str) -> None:
    assert [len(losses) for losses in kept(ran("faults"), f"lone {call}, {way}")] == [8, 8]
    ended = open_run(ran("faults") / f"lone {call}, {way}").info["ended"]
    assert ended["status"] == "interrupted"
    assert ended["reason"] == ("measure() or close() was called on process 0, but not on process 1 of 2 within 1 s")


def test_a_run_that_nobody_closed_is_finished_when_the_processes_end(ran: Ran) -> None:
    run = open_run(ran("faults") / "forgotten close")
    assert run.info["ended"]["status"] == "finished"
    assert run.measurements["step"].unique().tolist() == [2, 4]


def test_new_processes_go_on_from_a_sharded_checkpoint(ran: Ran) -> None:
    ran("resume")
    whole, parts = (open_run(ran("faults") / "begun" / name) for name in ("whole", "parts"))
    assert parts.events[["step", "kind"]].to_numpy().tolist() == [[4, "resumed"]]
    assert parts.measurements["step"].unique().tolist() == list(range(1, 9))
    columns = ["step", "matrix", "intrinsic_rank", "running_rank"]
    assert parts.measurements[columns].equals(whole.measurements[columns])
    for name in whole.matrices.index:
        expected = whole.singular_values(name)
        np.testing.assert_allclose(parts.singular_values(name), expected, rtol=0, atol=1e-6 * expected.to_numpy().max())


def test_a_run_is_not_continued_by_another_number_of_processes(ran: Ran) -> None:
    message = "ValueError: {} was begun on {}, each of which kept its share of W0: it cannot be continued on {}"
    directory = ran("faults") / "begun/parts"
    three = {found["begun by two"] for found in kept(ran("another", 3), "another")}
    assert three == {message.format(directory, "2 processes", 3)}
    one = {found["begun by one"] for found in kept(ran("resume"), "resume")}
    assert one == {message.format(ran("resume") / "resume/single", "1 process", 2)}
    with pytest.raises(ValueError, match=r"begun on 2 processes, .* cannot be continued on 1"):
        attach(language(blocks=1), None, directory, **OPTIONS, resume=True)


def test_first_values_that_are_damaged_on_one_process_are_refused_on_both(ran: Ran) -> None:
    first, second = (found["damaged"] for found in kept(ran("resume"), "resume"))
    assert "initial_weights-001.safetensors is damaged: its SHA-256 is" in second
    assert first == second.replace("ValueError: ", "ValueError: process 1: ")


def test_a_training_that_begins_again_does_so_on_processes_that_hold_nothing_too(ran: Ran) -> None:
    assert {found["step"] for found in kept(ran("another", 3), "another")} == {"0"}


def test_closing_after_torch_distributed_was_shut_down_says_so(ran: Ran) -> None:
    ended = open_run(ran("resume") / "resume/shut down").info["ended"]
    assert ended["status"] == "interrupted"
    assert ended["reason"] == "torch.distributed was shut down: close the tracker before destroy_process_group"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_costs_no_snapshot_that_was_on_disk(tmp_path: Path, victim: int) -> None:
    codes = [0, 0]
    codes[victim] = -signal.SIGKILL
    finish(start(WORKER, 2, tmp_path, "killed", victim), tmp_path, codes, timeout=100)
    assert (tmp_path / "steps-0").read_text() == "[1, 2, 3, 4, 5]"
    run = open_run(tmp_path / "killed/run")
    assert run.measurements["step"].unique().tolist()[:5] == [1, 2, 3, 4, 5]
    assert len(run.measurements) >= 5 * len(run.matrices)
    assert "RuntimeError" in kept(tmp_path, "killed")[0]  # of the training's own communication
    if victim == 0:
        assert run.info["ended"] is None
    else:
        assert run.info["ended"]["status"] == "interrupted"


def test_several_processes_need_torch_distributed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"distributed=True needs torch\.distributed: call init_process_group before"):
        attach(language(blocks=1), None, tmp_path, distributed=True)
    record(language(blocks=1), tmp_path, distributed=None)  # one process needs nothing
    assert open_run(tmp_path).info["processes"] == 1
