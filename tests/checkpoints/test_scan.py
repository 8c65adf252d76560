"""A scan of checkpoints against the tracker that watched the training which saved them."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.scans import assert_same_measurements, scanned
from helpers.training import mlp, python, sgd, train
from safetensors.torch import save_file
from torch import nn

from inrank_monitor import attach, open_run
from inrank_monitor.cli import main
from inrank_monitor.report import report_table
from inrank_monitor.runs.run import Run

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
SIZES, STEPS = (12, 16, 10), (0, 2, 4, 6)


def save(model: nn.Module, path: Path, **more: Any) -> None:
    """As its suffix says; what comes with it goes beside the state dict, under `model`."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, **more} if more else state, path)


def tracked(folder: Path, suffix: str = ".pt", **options: Any) -> tuple[Run, list[Path]]:
    """A tracked training that saves a checkpoint at each step of STEPS: the live run, and the checkpoints."""
    model = mlp(*SIZES)
    optimizer = sgd(model)
    paths = [folder / f"step_{step}{suffix}" for step in STEPS]
    save(model, paths[0])
    with attach(model, optimizer, folder / "live", every=2, buffer_rank=3, tensorboard=False, **options):
        for path, before, step in zip(paths[1:], STEPS, STEPS[1:], strict=False):
            train(model, optimizer, step - before, first=before)
            save(model, path)
    return open_run(folder / "live"), paths


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_scan_is_what_the_tracker_logged(suffix: str, tmp_path: Path) -> None:
    live, paths = tracked(tmp_path, suffix)
    run = scanned(paths, tmp_path / "run")
    assert_same_measurements(run, live)
    assert run.status == "finished"
    assert run.info["initial_weights"]["path"] == str(paths[0])


def test_options_are_the_trackers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threshold": 0.7, "definition": "reference", "leading": 4, "exclude": "0.*"}
    live, paths = tracked(tmp_path, **options)
    assert_same_measurements(scanned(paths, tmp_path / "run", **options), live)


def test_a_model_given_names_kinds_and_ties(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[2].weight = model[1].weight
    first = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save(first, tmp_path / "0.pt")
    torch.save({name: value + 1 for name, value in first.items()}, tmp_path / "1.pt")
    run = scanned([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "run", model=model)
    described = [(each["name"], each["kind"], each["rows"], each["cols"]) for each in run.info["matrices"]]
    assert described == [("0.weight", "ConvTranspose2d", 5, 12), ("1.weight", "Linear", 4, 4)]
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_layers_and_their_groups_are_logged_as_the_model_has_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.LSTM(3, 4), nn.Linear(4, 4))
    for step in (0, 1):
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    run = scanned([tmp_path / "step_0.pt", tmp_path / "step_1.pt"], tmp_path / "run", model=model)
    logged = {each["parameter"]: (each["layer"], each.get("groups")) for each in run.info["matrices"]}
    assert logged == {
        "0.weight": ("Conv2d", 2), "1.weight_ih_l0": ("", None), "1.weight_hh_l0": ("", None),
        "2.weight": ("Linear", None),
    }  # fmt: skip


def test_a_scan_that_logged_less_of_its_matrices_goes_on(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    run = scanned(paths[:2], tmp_path / "run")
    info = json.loads((run.path / "run.json").read_text())
    for entry in info["matrices"]:
        del entry["layer"]
    (run.path / "run.json").write_text(json.dumps(info))
    again = scanned(paths, tmp_path / "run", resume=True)
    assert again.measurements["step"].unique().tolist() == [2, 4, 6]


def test_wrapped_checkpoints_are_of_the_same_matrices(tmp_path: Path) -> None:
    live, paths = tracked(tmp_path)
    for path, prefix in zip(paths[1:], ("module.", "_orig_mod.", "model._orig_mod."), strict=True):
        torch.save({prefix + name: value for name, value in torch.load(path).items()}, path)
    assert_same_measurements(scanned(paths, tmp_path / "run"), live)


def test_half_precision_is_subtracted_in_float32(tmp_path: Path) -> None:
    """A rank-one update that bfloat16 can hold beside W0, but whose difference would round in it."""
    first = torch.ones(16, 16, dtype=torch.bfloat16)
    update = torch.zeros(16, 16)
    update[0] = torch.arange(16) / 64
    torch.save({"a.weight": first}, tmp_path / "0.pt")
    torch.save({"a.weight": (first.float() + update).to(torch.bfloat16)}, tmp_path / "1.pt")
    run = scanned([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "run")
    exact = torch.linalg.svdvals((first.float() + update).to(torch.bfloat16).double() - first.double())
    measured = torch.tensor(run.singular_values("a.weight").to_numpy()[0])
    torch.testing.assert_close(measured, exact, rtol=1e-6, atol=1e-7 * float(exact[0]))


def test_a_frozen_weight_has_a_zero_update(tmp_path: Path) -> None:
    state = mlp(*SIZES).state_dict()
    torch.save(state, tmp_path / "0.pt")
    torch.save(state | {"2.weight": state["2.weight"] + 1}, tmp_path / "1.pt")
    measured = scanned([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "run").measurements.set_index("matrix")
    assert measured.loc["0.weight", "intrinsic_rank"] == 0
    assert measured.loc["0.weight", "frobenius_norm"] == 0
    assert measured.loc["2.weight", "frobenius_norm"] > 0


def test_what_is_gone_reshaped_or_not_finite_is_an_event(tmp_path: Path) -> None:
    state = {f"{letter}.weight": torch.randn(4, 5) for letter in "abcd"}
    changed = {name: value + 1 for name, value in state.items()}
    changed["a.weight"] = torch.randn(4, 6)
    changed["b.weight"][1, 1] = torch.nan
    del changed["c.weight"]
    torch.save(state, tmp_path / "step_0.pt")
    torch.save(changed, tmp_path / "step_5.pt")
    run = scanned([tmp_path / "step_0.pt", tmp_path / "step_5.pt"], tmp_path / "run")
    events = run.events.set_index("kind")
    assert events.loc["shape_changed", "matrix"] == "a.weight"
    assert events.loc["non_finite", "matrix"] == "b.weight"
    assert events.loc["parameter_gone", "matrix"] == "c.weight"
    assert "step_5.pt does not hold it" in events.loc["parameter_gone", "message"]
    assert run.measurements.set_index("matrix")["intrinsic_rank"].dropna().index.tolist() == ["d.weight"]


def test_the_log_says_where_everything_comes_from(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    run = scanned(paths[1:], tmp_path / "run")
    (message,) = run.events["message"]
    assert message.startswith("W0 is step_2.pt, at step 2; matrices by names and shapes alone")
    assert run.events["step"].tolist() == [2]
    assert run.measurements["step"].unique().tolist() == [4, 6]


def test_readers_read_it_as_any_run(tmp_path: Path) -> None:
    from inrank_monitor.report import write_html
    from inrank_monitor.runs.shared_run import SharedRun

    _, paths = tracked(tmp_path)
    run = scanned(paths, tmp_path / "run", tensorboard=True)
    assert "0.weight" in report_table(run)
    write_html(run, tmp_path / "page.html")
    assert SharedRun(tmp_path / "run").tables().steps == [2, 4, 6]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_what_a_trainer_logged_becomes_scalars(tmp_path: Path) -> None:
    log = [
        {"step": 1, "loss": 3.0, "epoch": 0.1},
        {"step": 2, "loss": 2.0, "learning_rate": 0.5},
        {"step": 2, "eval_loss": 2.5},
        {"step": 3, "loss": 1.0},
        {"step": 4, "train_loss": 1.5},
    ]
    for step in (0, 2, 4):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save(mlp(*SIZES, seed=step), folder / "model.safetensors")
        (folder / "trainer_state.json").write_text(
            json.dumps({"log_history": [entry for entry in log if entry["step"] <= step]})
        )
    rows = scanned([tmp_path / "out"], tmp_path / "run").scalars
    assert rows[["step", "name", "value"]].to_numpy().tolist() == [
        [1, "loss", 3.0],
        [2, "loss", 2.0],
        [2, "learning_rate", 0.5],
        [2, "eval_loss", 2.5],
        [3, "loss", 1.0],
    ]


def test_resume_goes_on_with_new_checkpoints(tmp_path: Path) -> None:
    live, paths = tracked(tmp_path)
    scanned(paths[:2], tmp_path / "run")
    run = scanned(paths, tmp_path / "run", resume=True)
    assert_same_measurements(run, live)
    assert [entry["segment"] for entry in run.info["segments"]] == [0, 1]
    assert run.events["kind"].tolist() == ["scan", "resumed"]
    assert_same_measurements(scanned(paths, tmp_path / "run", resume=True), live)


def test_resume_without_a_run_begins_one(tmp_path: Path) -> None:
    live, paths = tracked(tmp_path)
    assert_same_measurements(scanned(paths, tmp_path / "run", resume=True), live)


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:500])
    with pytest.raises(ValueError, match=r"step_4\.pt is damaged"):
        scanned(paths, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_with_another_run_is_refused(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    with pytest.raises(FileExistsError, match="holds a run already"):
        scanned(paths, tmp_path / "live")
    with pytest.raises(ValueError, match="the run of a tracker, not of a scan"):
        scanned(paths, tmp_path / "live", resume=True)
    scanned(paths, tmp_path / "run")
    with pytest.raises(ValueError, match="begun with another W0"):
        scanned(paths[1:], tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="begun with buffer_rank=3, got 2"):
        scanned(paths, tmp_path / "run", resume=True, buffer_rank=2)


def test_a_checkpoint_before_what_is_measured_is_refused(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    scanned([paths[0], paths[3]], tmp_path / "run")
    with pytest.raises(ValueError, match=r"step_2\.pt is at step 2, but .* is at 6 already"):
        scanned(paths, tmp_path / "run", resume=True)


def test_a_tracker_cannot_go_on_with_a_scan(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    scanned(paths, tmp_path / "run")
    model = mlp(*SIZES)
    with pytest.raises(ValueError, match=r"was scanned from checkpoints.*inrank-monitor scan --resume"):
        attach(model, sgd(model), tmp_path / "run", resume=True, buffer_rank=3)


@pytest.mark.parametrize(
    ("chosen", "options", "error", "message"),
    [
        (slice(0, 1), {}, ValueError, "W0 and one more checkpoint at least"),
        (slice(0, 2), {"steps": [3, 2]}, ValueError, "increasing"),
        (slice(0, 2), {"include": "nothing.*"}, ValueError, "include pattern 'nothing.*' matches no matrix"),
        (slice(0, 2), {"threshold": 2.0}, ValueError, "threshold"),
        (slice(0, 2), {"leading": 1}, ValueError, "leading must be"),
        (slice(0, 2), {"workers": 0}, ValueError, "workers must be at least 1"),
        (slice(0, 2), {"config": "nowhere.json"}, FileNotFoundError, "nowhere.json"),
        (slice(0, 2), {"key": "model"}, ValueError, "nothing under key 'model'"),
        (slice(0, 2), {"model": nn.Sequential(nn.ReLU(), nn.Linear(3, 3))}, ValueError, "nothing to measure"),
        (slice(0, 2), {"model": mlp(12, 99, 10)}, ValueError, "the model has it as"),
    ],
)
def test_wrong_arguments_are_named(
    chosen: slice, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    _, paths = tracked(tmp_path)
    with pytest.raises(error, match=message):
        scanned(paths[chosen], tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _, paths = tracked(tmp_path)
    torch.save({"x.y": torch.ones(3, 3)}, paths[1])
    with pytest.raises(ValueError, match=r"step_2\.pt has none of the matrices of .*step_0\.pt"):
        scanned(paths, tmp_path / "run")


def test_the_command_scans_and_shows_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live, paths = tracked(tmp_path)
    assert main(["scan", *map(str, paths), "--run", str(tmp_path / "run"), "--buffer-rank", "3"]) == 0
    shown = capsys.readouterr()
    assert "W0 is step_0.pt, at step 0" in shown.err
    assert "0.weight" in shown.out
    assert_same_measurements(open_run(tmp_path / "run"), live)
    assert main(["scan", *map(str, paths), "--run", str(tmp_path / "run")]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_the_command_takes_steps_keys_and_patterns(tmp_path: Path) -> None:
    for name in "ab":
        save(mlp(*SIZES, seed=ord(name)), tmp_path / f"{name}.pt", ema={"model": mlp(*SIZES).state_dict()}, lr=0.1)
    arguments = ["scan", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--run", str(tmp_path / "run")]
    more = ["--steps", "7", "9", "--key", "ema.model", "--include", "0.*", "--include", "2.*", "--no-tensorboard"]
    assert main([*arguments, *more]) == 0
    run = open_run(tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [9]
    assert (run.measurements["frobenius_norm"] == 0).all()


SCAN_SLOWLY = """
import sys, time
import inrank_monitor.checkpoints.scanning as scanning
from pathlib import Path
original = scanning.take_snapshot
def slow(step, *arguments):
    if step == 6:
        print("there", flush=True)
        time.sleep(60)
    return original(step, *arguments)
scanning.take_snapshot = slow
scanning.scan(sorted(Path(sys.argv[1]).glob("step_*.pt")), sys.argv[2], buffer_rank=3, tensorboard=False)
"""


@pytest.mark.slow
def test_a_killed_scan_goes_on_with_the_next_checkpoint(tmp_path: Path) -> None:
    live, paths = tracked(tmp_path)
    process = subprocess.Popen(python(SCAN_SLOWLY, tmp_path, tmp_path / "run"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert open_run(tmp_path / "run").status == "interrupted"
    assert open_run(tmp_path / "run").measurements["step"].unique().tolist() == [2, 4]
    assert_same_measurements(scanned(paths, tmp_path / "run", resume=True), live)


@pytest.mark.slow
def test_ctrl_c_ends_the_run_as_interrupted(tmp_path: Path) -> None:
    tracked(tmp_path)
    process = subprocess.Popen(
        python(SCAN_SLOWLY, tmp_path, tmp_path / "run"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    ended = open_run(tmp_path / "run").info["ended"]
    assert (ended["status"], ended["reason"], ended["step"]) == ("interrupted", "KeyboardInterrupt", 4)


ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from inrank_monitor.cli import main
limit, hard = int(sys.argv[3]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
paths = sorted(map(str, Path(sys.argv[1]).glob("step_*.pt")))
sys.exit(main(["scan", *paths, "--run", sys.argv[2], "--buffer-rank", "3", "--no-tensorboard"]))
"""


@pytest.mark.slow
def test_a_full_disk_stops_the_scan_and_resume_goes_on(tmp_path: Path) -> None:
    live, paths = tracked(tmp_path)
    whole = scanned(paths, tmp_path / "whole").path / "measurements-000.arrows"
    limit = whole.stat().st_size - 10  # the last batch does not fit, run.json does
    assert (tmp_path / "whole" / "run.json").stat().st_size < limit
    done = subprocess.run(
        python(ON_A_FULL_DISK, tmp_path, tmp_path / "run", limit), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the scan stopped" in done.stderr
    assert "Traceback" not in done.stderr
    stopped = open_run(tmp_path / "run")
    assert stopped.status == "interrupted"
    assert stopped.measurements["step"].unique().tolist() == [2, 4]
    assert_same_measurements(scanned(paths, tmp_path / "run", resume=True), live)
