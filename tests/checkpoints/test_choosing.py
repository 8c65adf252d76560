"""Which checkpoints of a folder are taken, in which order, at which steps, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.scans import scanned
from safetensors.torch import save_file
from torch import Tensor

from inrank_monitor.checkpoints.choosing import Chosen, find_checkpoints
from inrank_monitor.checkpoints.contents import numbers_in
from inrank_monitor.checkpoints.steps import mark_in, natural, numbers_in_names
from inrank_monitor.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def state(seed: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(int(10 * seed))
    return {f"{place}.weight": torch.randn(6, 5, generator=generator) for place in range(2)}


def put(path: Path, seed: float, **more: Any) -> Path:
    """A checkpoint of weights that the seed decides, with what comes beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state(seed), path, metadata={name: str(value) for name, value in more.items()} or None)
    else:
        torch.save({"model": state(seed), **more} if more else state(seed), path)
    return path


def steps_of(chosen: Chosen) -> dict[str, int]:
    return {one.path.name: one.step for one in chosen.saved}


def reasons_of(chosen: Chosen) -> dict[str, str]:
    return {path.name: reason for path, reason in chosen.skipped}


@pytest.mark.parametrize(
    ("name", "step", "epoch"),
    [
        ("model_epoch_10.pt", None, 10),
        ("epoch=3-step=500.ckpt", 500, 3),
        ("best-epoch=04-val_loss=0.12.ckpt", None, 4),
        ("ckpt-0010.pth", 10, None),
        ("checkpoint_ep5", None, 5),
        ("checkpoint_epoch_10.pth.tar", None, 10),
        ("iter_0001000", 1000, None),
        ("model_it500.pt", 500, None),
        ("epoch_3", None, 3),
        ("epoch_3/pytorch_model.bin", None, 3),
        ("Epoch 5.pt", None, 5),
        ("modelEpoch7.pt", None, 7),
        ("ckpt_e4.pt", None, 4),
        ("10epochs.pt", None, 10),
        ("rl_model_10000_steps.pt", 10_000, None),
        ("checkpoint_3_1500.pt", 1500, 3),
        ("epoch-0010-loss-0.5.pt", None, 10),
        ("update_70.pt", 70, None),
        ("lr_1e-3.pt", None, None),
        ("epoch_3.5.pt", None, None),
        ("deep3.pt", None, None),
        ("resnet50.pt", None, None),
        ("unit3.pt", None, None),
        ("best.pt", None, None),
    ],
)
def test_a_name_tells_its_step_and_its_epoch(name: str, step: int | None, epoch: int | None) -> None:
    assert mark_in(Path(name)) == (step, epoch)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["net_1.pt", "net_10.pt", "net_2.pt"], [1, 10, 2]),
        (["1_net_G.pth", "10_net_G.pth"], [1, 10]),
        (["model.0.pt", "model.5.safetensors"], [0, 5]),
        (["gpt-2.pt", "other-3.pt"], None),
        (["net_1.pt"], None),
        (["rank_0.pt", "rank_1.pt"], None),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], None),
        (["consolidated.00.pth", "consolidated.01.pth"], None),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["a.pt", "b.pt"], None),
    ],
)
def test_names_alike_but_for_a_number_are_numbered_by_it(names: list[str], numbers: list[int] | None) -> None:
    assert numbers_in_names(map(Path, names)) == numbers


def test_natural_order_counts() -> None:
    assert sorted(["epoch_10", "epoch_2", "a10b2", "a10b1", "a9"], key=natural) == [
        "a9", "a10b1", "a10b2", "epoch_2", "epoch_10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ["model_epoch_1.pt", "model_epoch_2.pt", "model_epoch_10.pt"],
        ["epoch_1/model.safetensors", "epoch_2/model.safetensors", "epoch_10/model.safetensors"],
        ["e1.pth.tar", "e2.pth.tar", "e10.pth.tar"],
        ["net_1.pt", "net_2.pt", "net_10.pt"],
        ["1.pt", "2.pt", "10.pt"],
        ["ckpt-0001.pth", "ckpt-0002.pth", "ckpt-0010.pth"],
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_ten_comes_after_two(names: list[str], listed: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = sorted(put(out / name, place) for place, name in enumerate(names))
    chosen = find_checkpoints([out] if listed else paths)
    assert [one.step for one in chosen.saved] == [1, 2, 10]
    run = scanned([out] if listed else paths, tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [2, 10]


def test_optimizers_beside_the_weights_are_no_checkpoints(tmp_path: Path) -> None:
    for epoch in (1, 2):
        put(tmp_path / f"epoch_{epoch}.pt", epoch)
        for name in ("optimizer_epoch_{}.pt", "epoch_{}_optim.pt", "lr_scheduler-epoch-{}.pt", "epoch_{}.opt.pth"):
            put(tmp_path / name.format(epoch), epoch)
    assert steps_of(find_checkpoints([tmp_path])) == {"epoch_1.pt": 1, "epoch_2.pt": 2}


def test_best_and_last_are_put_by_what_they_say_themselves(tmp_path: Path) -> None:
    for epoch in (5, 10, 15):
        put(tmp_path / f"epoch_{epoch}.pt", epoch, epoch=epoch, optimizer={})
    put(tmp_path / "best.pt", 7, epoch=np.int64(7))
    put(tmp_path / "last.pt", 15, epoch=15)
    put(tmp_path / "other.pt", 3, epoch=10)
    put(tmp_path / "final.pt", 99, lr=0.1)
    chosen = find_checkpoints([tmp_path])
    assert steps_of(chosen) == {"epoch_5.pt": 5, "best.pt": 7, "epoch_10.pt": 10, "epoch_15.pt": 15}
    assert chosen.saved[1].origin == "epoch in its contents"
    assert reasons_of(chosen)["last.pt"] == "it holds the weights of epoch_15.pt"
    assert reasons_of(chosen)["other.pt"] == "it is of step 10, as epoch_10.pt is"
    assert "no epoch in its name nor in it" in reasons_of(chosen)["final.pt"]


def test_epochs_counted_from_zero_inside_are_counted_as_the_names_do(tmp_path: Path) -> None:
    for epoch in (5, 10):
        put(tmp_path / f"epoch_{epoch}.pt", epoch, epoch=epoch - 1)
    put(tmp_path / "best.pt", 7, epoch=6)
    assert steps_of(find_checkpoints([tmp_path]))["best.pt"] == 7


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"global_step": 500, "epoch": 3}, {"step": 500, "epoch": 3}),
        ({"step": torch.tensor(7), "epoch": np.float64(2.0)}, {"step": 7, "epoch": 2}),
        ({"meta": {"epoch": 4, "iter": 900}}, {"step": 900, "epoch": 4}),
        ({"iter_num": 12, "epoch": "9"}, {"step": 12, "epoch": 9}),
        ({"step": True, "epoch": 1.5}, {}),
        ({"step": -1, "epoch": None}, {}),
        ({"step": torch.ones(3), "epochs": 100}, {}),
        ({"step": float("nan")}, {}),
    ],
)
def test_numbers_are_found_whatever_they_are_kept_as(content: dict[str, Any], expected: dict[str, int]) -> None:
    assert numbers_in(content) == expected


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_without_numbers_in_names_the_contents_tell(suffix: str, tmp_path: Path) -> None:
    for place, name in enumerate(("start", "middle", "end")):
        put(tmp_path / f"{name}{suffix}", place, global_step=100 * place)
    chosen = find_checkpoints([tmp_path])
    assert [one.step for one in chosen.saved] == [0, 100, 200]
    assert chosen.note == "steps from the checkpoints' contents"
    given = find_checkpoints([tmp_path / f"{name}{suffix}" for name in ("start", "middle", "end")])
    assert [one.step for one in given.saved] == [0, 100, 200]
    turned = find_checkpoints([tmp_path / f"{name}{suffix}" for name in ("end", "start")])  # the first given is W0
    assert [(one.path.stem, one.step) for one in turned.saved] == [("end", 0), ("start", 1)]


def test_a_first_checkpoint_without_a_number_is_w0_whatever_it_says(tmp_path: Path) -> None:
    base = put(tmp_path / "base.pt", 0, epoch=90)
    paths = [put(tmp_path / f"epoch_{epoch}.pt", epoch) for epoch in (1, 2)]
    assert steps_of(find_checkpoints([base, *paths])) == {"base.pt": 0, "epoch_1.pt": 1, "epoch_2.pt": 2}


def test_steps_and_epochs_are_not_put_on_one_axis(tmp_path: Path) -> None:
    put(tmp_path / "step_100.pt", 1)
    put(tmp_path / "step_200.pt", 2)
    put(tmp_path / "epoch_3.pt", 3)
    with pytest.raises(ValueError, match=r"epoch_3\.pt is numbered by epochs and others by steps.*--steps"):
        find_checkpoints([tmp_path])
    put(tmp_path / "epoch_3.pt", 3, global_step=300)
    assert steps_of(find_checkpoints([tmp_path])) == {"step_100.pt": 100, "step_200.pt": 200, "epoch_3.pt": 300}


def test_copies_of_one_step_count_once_and_others_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "step_1.pt", 1)
    put(tmp_path / "step_2.pt", 2)
    put(tmp_path / "step_2.safetensors", 2)
    put(tmp_path / "best_step_2.pt", 2)
    chosen = find_checkpoints([tmp_path])
    assert [one.step for one in chosen.saved] == [1, 2]
    assert len(chosen.skipped) == 2
    assert all(reason.startswith("it holds the weights of") for _, reason in chosen.skipped)
    put(tmp_path / "step_2_ema.pt", 3)
    with pytest.raises(ValueError, match="both at step 2"):
        find_checkpoints([tmp_path])


def trainers_folder(folder: Path, final: float, global_step: int | None) -> Path:
    """checkpoint-500 and checkpoint-1000, and a final model of that seed at the top."""
    for step in (500, 1000):
        put(folder / f"checkpoint-{step}" / "model.safetensors", step)
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    put(folder / "model.safetensors", final)
    torch.save({}, folder / "training_args.bin")
    if global_step is not None:
        logged = [{"step": 1100, "loss": 0.5}]
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": global_step, "log_history": logged}))
    return folder


def test_a_trainers_final_model_is_at_the_step_of_its_state(tmp_path: Path) -> None:
    out = trainers_folder(tmp_path / "out", 7, 1200)
    chosen = find_checkpoints([out])
    assert [(one.path.name, one.step) for one in chosen.saved] == [
        ("checkpoint-500", 500), ("checkpoint-1000", 1000), ("out", 1200),
    ]  # fmt: skip
    assert chosen.saved[-1].origin == "trainer_state.json"
    run = scanned([out], tmp_path / "run")
    assert run.measurements["step"].unique().tolist() == [1000, 1200]
    assert run.scalars[["step", "value"]].to_numpy().tolist() == [[1100, 0.5]]


@pytest.mark.parametrize(
    ("final", "global_step", "reason"),
    [
        (1000, 1000, "it holds the weights of checkpoint-1000"),
        (1000, None, "it holds the weights of checkpoint-1000"),
        (500, 1200, "it holds the weights of checkpoint-500"),  # the best one, put back at the end
        (7, None, "no step in its name nor in it"),
        (7, 1000, "it is of step 1000, as checkpoint-1000 is"),
    ],
)
def test_a_final_model_that_is_no_further_step_is_left_out(
    final: float, global_step: int | None, reason: str, tmp_path: Path
) -> None:
    chosen = find_checkpoints([trainers_folder(tmp_path / "out", final, global_step)])
    assert [one.step for one in chosen.saved] == [500, 1000]
    assert reasons_of(chosen)["out"].startswith(reason)


def test_steps_given_for_a_trainers_folder_may_count_the_final_model_or_not(tmp_path: Path) -> None:
    out = trainers_folder(tmp_path / "out", 7, None)
    assert [one.path.name for one in find_checkpoints([out], [1, 2]).saved] == ["checkpoint-500", "checkpoint-1000"]
    assert find_checkpoints([out], [1, 2, 3]).saved[-1].path == out
    with pytest.raises(ValueError, match=r"1 given, 3 checkpoints \(checkpoint-500, checkpoint-1000, out\)"):
        find_checkpoints([out], [1])


def test_what_is_taken_is_said_before_it_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import inrank_monitor.checkpoints.scanning as scanning

    for epoch in (2, 10):
        put(tmp_path / "out" / f"epoch_{epoch}.pt", epoch)
    put(tmp_path / "out" / "best.pt", 10)
    table = [
        ["epoch_2.pt", "2", "epoch in its name, W0"],
        ["epoch_10.pt", "10", "epoch in its name"],
        ["best.pt", "-", "left out: it holds the weights of epoch_10.pt"],
    ]
    assert main(["scan", str(tmp_path / "out"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for line, (name, step, origin) in zip(shown.splitlines(), table, strict=False):
        assert line.split(maxsplit=2) == [str(tmp_path / "out" / name), step, origin]
    assert "steps are the epochs from the checkpoints' names" in shown
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"]

    def stop(*_: Any) -> None:
        raise RuntimeError("measured")

    monkeypatch.setattr(scanning, "take_snapshot", stop)
    with pytest.raises(RuntimeError, match="measured"):
        main(["scan", str(tmp_path / "out"), "--run", str(tmp_path / "run")])
    assert "left out: it holds the weights of epoch_10.pt" in capsys.readouterr().err
    assert main(["scan", str(tmp_path / "out")]) == 2
    assert "--output DIR is missing" in capsys.readouterr().err


def test_the_run_tells_what_was_left_out_and_what_differs(tmp_path: Path) -> None:
    for step in (0, 5, 9):
        put(tmp_path / "out" / f"step_{step}.pt", step)
    torch.save({"0.weight": torch.ones(7, 5), "1.weight": torch.ones(6, 5)}, tmp_path / "out" / "step_7.pt")
    put(tmp_path / "out" / "last.pt", 9)
    run = scanned([tmp_path / "out"], tmp_path / "run")
    message = run.events["message"].iloc[0]
    assert "left out: last.pt, it holds the weights of step_9.pt" in message
    assert "step_7.pt has 1 of 2 matrices in other shapes or not at all (0.weight)" in message
    measured = run.measurements.groupby("step")["intrinsic_rank"].apply(lambda ranks: int(ranks.notna().sum()))
    assert measured.to_dict() == {5: 2, 7: 1, 9: 2}


def test_nothing_to_choose_from_shows_the_table(tmp_path: Path) -> None:
    put(tmp_path / "out" / "step_5.pt", 1)
    put(tmp_path / "out" / "last.pt", 1)
    with pytest.raises(ValueError, match=r"W0 and one more checkpoint at least(.|\n)*last\.pt.*left out: it holds"):
        scanned([tmp_path / "out"], tmp_path / "run")
