"""Readers of checkpoints: every format gives the same tensors, and what cannot be read is refused with the way out."""

from __future__ import annotations

import json
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inrank_monitor.checkpoints.choosing import find_checkpoints
from inrank_monitor.checkpoints.names import match_names
from inrank_monitor.checkpoints.opening import open_checkpoint
from inrank_monitor.checkpoints.steps import mark_in
from inrank_monitor.checkpoints.watching import watch_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "layers.2.weight": torch.randn(6, 4, generator=generator),
        "layers.10.weight": torch.randn(5, 6, generator=generator).to(torch.bfloat16),
        "layers.10.bias": torch.randn(5, generator=generator),
    }


def as_safetensors(folder: Path) -> Path:
    save_file(state(), folder / "a.safetensors")
    return folder / "a.safetensors"


def as_folder(folder: Path) -> Path:
    save_file(state(), folder / "model.safetensors")
    torch.save({"state": {}}, folder / "optimizer.pt")
    return folder


def as_state_dict(folder: Path) -> Path:
    torch.save(state(), folder / "a.pt")
    return folder / "a.pt"


def as_old_state_dict(folder: Path) -> Path:
    torch.save(state(), folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def as_bin_folder(folder: Path) -> Path:
    torch.save(OrderedDict(state()), folder / "pytorch_model.bin")
    return folder


def as_shards(folder: Path) -> Path:
    return sharded(folder, "model", "safetensors")


def as_bin_shards(folder: Path) -> Path:
    return sharded(folder, "pytorch_model", "bin")


def as_training_checkpoint(folder: Path) -> Path:
    torch.save({"epoch": 3, "model": state(), "optimizer": {"state": {0: {"m": torch.ones(3, 3)}}}}, folder / "a.ckpt")
    return folder / "a.ckpt"


def sharded(folder: Path, stem: str, suffix: str) -> Path:
    places = {}
    for number, (name, value) in enumerate(state().items()):
        file = f"{stem}-{number + 1:05d}-of-00003.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)({name: value}, folder / file)
        places[name] = file
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


FORMATS = [
    as_safetensors,
    as_folder,
    as_state_dict,
    as_old_state_dict,
    as_bin_folder,
    as_shards,
    as_bin_shards,
    as_training_checkpoint,
]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_tensors(write: Any, tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path))
    assert sorted(opened.tensors) == sorted(state())
    for name, value in state().items():
        assert opened.tensors[name].shape == value.shape
        assert opened.tensors[name].dtype == value.dtype
        assert torch.equal(opened.read(name), value)


def test_safetensors_names_are_sorted_as_numbers(tmp_path: Path) -> None:
    assert next(iter(open_checkpoint(as_safetensors(tmp_path)).tensors)) == "layers.2.weight"


def test_tensors_of_one_memory_are_known(tmp_path: Path) -> None:
    shared = torch.randn(4, 3)
    torch.save({"wte.weight": shared, "head.weight": shared, "other.weight": shared.clone()}, tmp_path / "a.pt")
    tensors = open_checkpoint(tmp_path / "a.pt").tensors
    assert {name: info.shared_with for name, info in tensors.items()} == {
        "wte.weight": None,
        "head.weight": "wte.weight",
        "other.weight": None,
    }


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        ({"state_dict": state(1), "model": state(2)}, None, 1),
        ({"weights": state(3), "lr": 0.1}, None, 3),
        ({"ema": {"model": state(4)}, "model": state(5)}, "ema.model", 4),
        ({"a.b": state(6), "model": state(5)}, "a.b", 6),
        (state(7) | {"_extra_state": None}, None, 7),
    ],
)
def test_the_state_dict_is_found_or_chosen(content: Any, key: str | None, expected: int, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    found = open_checkpoint(tmp_path / "a.pt", key).read("layers.2.weight")
    assert torch.equal(found, state(expected)["layers.2.weight"])


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"teacher": state(), "student": state()}, None, "several state dicts \\('teacher', 'student'\\).*--key"),
        ({"lr": 0.1, "epoch": 2}, None, "no state dict at its top \\(keys 'lr', 'epoch'\\)"),
        ([state()], None, "no state dict at its top \\(list\\)"),
        ({"model": state()}, "modle", "nothing under key 'modle'; there are 'model'"),
        ({"model": {"bias": torch.ones(3)}}, "model", "under key 'model' is no state dict"),
        (Namespace(lr=0.1), None, "Python objects besides tensors \\(argparse.Namespace\\).*state dict alone"),
        ({"_flat_param": torch.ones(4, 4)}, None, "flat parameters.*dcp_to_torch"),
    ],
)
def test_what_holds_no_clear_state_dict_is_refused(content: Any, key: str | None, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        open_checkpoint(tmp_path / "a.pt", key)


def test_a_lightning_checkpoint_is_read_by_its_state_dict(tmp_path: Path) -> None:
    content = {"epoch": 1, "global_step": 200, "state_dict": state(), "optimizer_states": [{"state": {}}], "loops": {}}
    torch.save(content, tmp_path / "epoch=1-step=200.ckpt")
    assert "layers.2.weight" in open_checkpoint(tmp_path / "epoch=1-step=200.ckpt").tensors


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"model": state(), "extra": Bomb()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not loaded since they can run code"):
        open_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_file_cut_short_is_refused_by_name(write: Any, share: float, tmp_path: Path) -> None:
    path = write(tmp_path)
    chosen = next(file for file in tmp_path.iterdir() if file.name != "optimizer.pt" and file.suffix != ".json")
    data = chosen.read_bytes()
    chosen.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=f"{chosen.name} is (damaged|no)"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", [b"no weights at all, only text", b"{}", b"\x00" * 64, b"PK\x03\x04 no zip"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged or no"):
            open_checkpoint(tmp_path / name)


def test_a_zip_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("hello", "there")
    with pytest.raises(ValueError, match=r"a\.pt is damaged or no torch\.save file"):
        open_checkpoint(tmp_path / "a.pt")


def test_a_git_lfs_pointer_is_told_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    as_shards(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00003\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    index = as_shards(tmp_path) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"gone.weight": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(ValueError, match=r"gone\.weight is in model-00001-of-00003\.safetensors, but it is not"):
        open_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        open_checkpoint(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match=r"index\.json is damaged"):
        open_checkpoint(tmp_path)


# said by torch wherever a single process saves
in_one_process = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@in_one_process
def test_a_distributed_checkpoint_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    inner = tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0"
    dcp.save({"model": state()}, checkpoint_id=str(inner), no_dist=True)
    for folder in (inner, inner.parent):
        with pytest.raises(ValueError, match=f"format_utils dcp_to_torch {inner} {inner}.pt"):
            open_checkpoint(folder)


@in_one_process
def test_what_the_named_command_makes_can_be_read(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp.save({"model": state()}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "dcp.pt")
    assert torch.equal(open_checkpoint(tmp_path / "dcp.pt").read("layers.2.weight"), state()["layers.2.weight"])


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([], FileNotFoundError, "holds no checkpoint"),
        (
            ["zero_to_fp32.py", "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
            ValueError,
            "zero_to_fp32.py",
        ),
        (["a.pt", "b.pt"], ValueError, "several weight files and no index \\(a.pt, b.pt\\)"),
    ],
)
def test_a_folder_without_one_set_of_weights_is_refused(
    files: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nowhere"):
        find_checkpoints([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("out/checkpoint-500", 500),
        ("checkpoint-500/model.safetensors", 500),
        ("step_1000.pt", 1000),
        ("epoch=1-step=200.ckpt", 200),
        ("epoch=1-step=200-v1.ckpt", 200),
        ("iter-0004000-ckpt.pth", 4000),
        ("global_step300", 300),
        ("model_step_12.safetensors", 12),
        ("step10k.pt", 10_000),
        ("00000700.pt", 700),
        ("step-1000-checkpoint-3.pt", 1000),
        ("v1.5-step7.safetensors", 7),
        ("last.ckpt", None),
        ("epoch=3.ckpt", None),
        ("footstep3.pt", None),
    ],
)
def test_steps_are_read_from_names(name: str, step: int | None) -> None:
    assert mark_in(Path(name)).step == step


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def test_a_folder_of_checkpoints_stands_for_them_in_numeric_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"checkpoint-{step}/model.safetensors" for step in (1000, 20, 300)), "model.safetensors")
    chosen = find_checkpoints([tmp_path])
    saved, note = chosen.saved, chosen.note
    assert [(one.path.name, one.step) for one in saved] == [(f"checkpoint-{step}", step) for step in (20, 300, 1000)]
    assert note == "steps from the checkpoints' names"


def test_files_as_the_shell_sorts_them_are_put_in_the_order_of_their_steps(tmp_path: Path) -> None:
    saved = find_checkpoints(sorted(touch(tmp_path, "step_1000.pt", "step_200.pt", "step_0.pt"))).saved
    assert [one.step for one in saved] == [0, 200, 1000]


def test_a_first_checkpoint_without_a_step_is_at_step_0(tmp_path: Path) -> None:
    chosen = find_checkpoints(touch(tmp_path, "base.pt", "step_50.pt"))
    saved, note = chosen.saved, chosen.note
    assert [one.step for one in saved] == [0, 50]
    assert "base.pt, which has none, is step 0" in note


def test_names_without_steps_are_numbered_and_that_is_said(tmp_path: Path) -> None:
    chosen = find_checkpoints(touch(tmp_path, "a.pt", "b.pt", "c.pt"))
    saved, note = chosen.saved, chosen.note
    assert [one.step for one in saved] == [0, 1, 2]
    assert "numbered 0, 1, 2" in note


@pytest.mark.parametrize(
    ("names", "steps", "message"),
    [
        (["step_1.pt", "step_2.pt", "last.pt"], None, r"the step of .*last\.pt is not in its name"),
        (["step_1.pt", "b/step_1.pt"], None, "both at step 1"),
        (["base.pt", "step_0.pt"], None, "both at step 0"),
        (["a.pt", "b.pt"], [0], "1 given, 2 checkpoints"),
        (["a.pt", "b.pt"], [5, 5], "increasing integers of at least 0, got 5 after 5"),
        (["a.pt", "b.pt"], [-1, 5], "got -1"),
    ],
)
def test_unclear_steps_are_refused(names: list[str], steps: list[int] | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        find_checkpoints(touch(tmp_path, *names), steps)


NAMES = ["h.0.attn.weight", "h.0.mlp.weight", "h.1.attn.weight", "head.weight"]


@pytest.mark.parametrize(
    ("wanted", "available"),
    [
        ("{}", "module.{}"),
        ("{}", "module._orig_mod.{}"),
        ("model.{}", "{}"),
        ("transformer.{}", "model._orig_mod.transformer.{}"),
        ("transformer.{}", "model.module.{}"),
        ("{}", "_forward_module.model.{}"),
        ("{}", "{}"),
    ],
)
def test_names_are_found_behind_wrappers(wanted: str, available: str) -> None:
    wanted_names, there = [wanted.format(name) for name in NAMES], [available.format(name) for name in NAMES]
    assert match_names(wanted_names, there) == dict(zip(wanted_names, there, strict=True))


def test_a_head_beside_the_prefix_is_found_too() -> None:
    wanted = ["transformer.h.0.weight", "transformer.h.1.weight", "lm_head.weight"]
    assert match_names(wanted, ["h.0.weight", "h.1.weight"]) == {
        "transformer.h.0.weight": "h.0.weight",
        "transformer.h.1.weight": "h.1.weight",
    }


def test_names_of_another_model_are_not_matched() -> None:
    assert match_names(["a.weight", "b.weight"], ["x.weight", "y.bias"]) == {}


class Net(nn.Module):
    """One layer of each kind that can be told by name and shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.signal = nn.Conv1d(2, 8, 5)
        self.attention = nn.MultiheadAttention(8, 2)
        self.lstm = nn.LSTM(8, 8)
        self.gru = nn.GRU(8, 4)
        self.norm = nn.LayerNorm((4, 8))
        self.experts = nn.Parameter(torch.randn(3, 8, 40))
        self.head = nn.Linear(8, 5)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_names_and_shapes_tell_what_a_live_model_does(prefix: str, tmp_path: Path) -> None:
    from inrank_monitor import find_matrices

    model = Net()
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / "a.pt")
    watched = watch_checkpoint(open_checkpoint(tmp_path / "a.pt"), None, None)
    live, _ = find_matrices(model)
    described = [[(each.name, each.rows, each.cols) for each in matrices] for matrices in (watched.matrices, live)]
    assert sorted(described[0]) == sorted(described[1])
    notes = {row.parameter: row.note for row in watched.coverage if not row.watched}
    assert notes["embed_tokens.weight"].startswith("an embedding")
    assert notes["norm.weight"].startswith("scales of a normalisation")
    assert notes["head.bias"] == "a vector"


def test_what_cannot_be_measured_says_why(tmp_path: Path) -> None:
    content = {
        "a.weight": torch.randn(4, 4),
        "b.weight": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "b.weight_scale_inv": torch.ones(1, 1),
        "c.weight": torch.ones(4, 4, dtype=torch.int8),
        "d.weight": torch.eye(4).to_sparse(),
        "e.parametrizations.weight.original0": torch.randn(4, 1),
        "e.parametrizations.weight.original1": torch.randn(4, 4),
        "attn.bias": torch.ones(1, 1, 8, 8),
    }
    torch.save(content, tmp_path / "a.pt")
    watched = watch_checkpoint(open_checkpoint(tmp_path / "a.pt"), None, None, exclude="*_scale_inv")
    assert [matrix.name for matrix in watched.matrices] == ["a.weight"]
    notes = {row.parameter: row.note for row in watched.coverage if not row.watched}
    assert "multiplied by b.weight_scale_inv" in notes["b.weight"]
    assert notes["c.weight"] == "dtype int8"
    assert notes["d.weight"] == "layout torch.sparse_coo"
    assert "computed from other parameters" in notes["e.parametrizations.weight.original1"]
    assert notes["attn.bias"] == "a bias or a mask"


def test_the_output_layer_is_tied_if_it_repeats_the_embedding(tmp_path: Path) -> None:
    shared = torch.randn(20, 8)
    content = {"lm_head.weight": shared.clone(), "h.0.weight": torch.randn(8, 8), "wte.weight": shared}
    save_file(content, tmp_path / "a.safetensors")
    watched = watch_checkpoint(open_checkpoint(tmp_path / "a.safetensors"), None, None)
    assert [matrix.name for matrix in watched.matrices] == ["h.0.weight"]
    assert {row.parameter: row.note for row in watched.coverage}["lm_head.weight"] == "tied to wte.weight"
