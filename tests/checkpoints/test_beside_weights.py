"""What lies beside the weights in a file: it keeps them from nothing, and none of it is made or called."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import os
import pathlib
import subprocess
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.scans import assert_same_measurements, scanned
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from inrank_monitor.checkpoints.opening import open_checkpoint
from inrank_monitor.checkpoints.pickled import LeftOut, read_pickled
from inrank_monitor.checkpoints.watching import watch_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Settings:
    rate: float = 0.1

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("the file's class was used")


class Mode(enum.Enum):
    FAST = 1


class Config(dict[str, Any]):
    """Like OmegaConf's and addict's: a dictionary with attributes."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(**entries)
        self.flags = {"readonly": True}


class History(list[float]):
    pass


class Pair(NamedTuple):
    a: int
    b: int


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(6, 3, bias=False))
        self.register_buffer("mean", torch.zeros(2))
        self.settings = Settings()
        self.activation = nn.functional.relu


BESIDE: dict[str, Any] = {
    "a NumPy float": np.float64(0.5),
    "a NumPy integer": np.int64(3),
    "a NumPy bool": np.bool_(True),
    "a NumPy half": np.float16(1),
    "a NumPy string": np.str_("x"),
    "a NumPy date": np.datetime64("2020-01-01"),
    "an array": np.arange(4.0),
    "an array of objects": np.array(["a", None], object),
    "a structured array": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
    "NumPy's random state": np.random.RandomState(0).get_state(),
    "a NumPy generator": np.random.default_rng(0),
    "a NumPy dtype": np.dtype("f4"),
    "a NumPy type": np.float32,
    "a Namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs")),
    "a SimpleNamespace": types.SimpleNamespace(a=argparse.Namespace(b=1)),
    "a path": pathlib.Path("runs/x"),
    "a path of another system": pathlib.PureWindowsPath("c:/x"),
    "a date": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "a duration": datetime.timedelta(1),
    "an OrderedDict": collections.OrderedDict(a=1),
    "a defaultdict": collections.defaultdict(list, {1: [2]}),
    "a Counter": collections.Counter("aab"),
    "a deque": collections.deque([1.0, 2.0], 5),
    "a frozenset": frozenset([1]),
    "a slice": slice(1, 2),
    "an ellipsis": [...],
    "a decimal": decimal.Decimal("1.5"),
    "a dataclass": Settings(),
    "an enum": Mode.FAST,
    "a dict of its own kind": Config(a=Config(b=[1, 2])),
    "a list of its own kind": History([1.0, 2.0]),
    "a named tuple": Pair(1, 2),
    "a type": int,
    "a partial": functools.partial(nn.LayerNorm, eps=1e-5),
    "an activation": nn.functional.gelu,
    "torch's version": torch.__version__,
    "a module": nn.Linear(2, 2),
}


# The format of before torch 1.6 keeps the source of modules' classes, which torch refuses to pass over.
IN_OLD_FILES = [name for name in BESIDE if name not in ("a module", "a partial")]


@pytest.mark.parametrize(
    ("beside", "zipped"),
    [*(pytest.param(name, True, id=name) for name in BESIDE), *((name, False) for name in IN_OLD_FILES)],
)
def test_weights_are_read_whatever_lies_beside_them(beside: str, zipped: bool, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(4, 3)}
    torch.save(
        {"extra": BESIDE[beside], "model": state, "more": [BESIDE[beside]]},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=zipped,
    )
    assert torch.equal(open_checkpoint(tmp_path / "a.pt").read("a.weight"), state["a.weight"])
    assert not [one for one in torch.serialization.get_safe_globals() if isinstance(one, tuple)]


def test_what_the_user_allows_himself_stays_allowed(tmp_path: Path) -> None:
    torch.save({"model": {"a.weight": torch.ones(2, 2)}, "x": np.zeros(2)}, tmp_path / "a.pt")
    with torch.serialization.safe_globals([np.ndarray]):
        open_checkpoint(tmp_path / "a.pt")
        assert np.ndarray in torch.serialization.get_safe_globals()


def test_numbers_are_numbers_and_objects_are_left_out(tmp_path: Path) -> None:
    torch.save({"best": np.float64(0.5), "args": argparse.Namespace(lr=0.1), "s": Settings()}, tmp_path / "a.pt")
    content = read_pickled(tmp_path / "a.pt")
    assert content["best"] == 0.5
    assert isinstance(content["args"], LeftOut)
    assert (content["args"].name, content["args"].state) == ("argparse.Namespace", {"lr": 0.1})
    assert content["s"].name.endswith("Settings")


class Bomb:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.how = (function, arguments)

    def __reduce__(self) -> Any:
        return self.how


@pytest.mark.parametrize("name", ["system", "touch", "call", "eval", "exec"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_function_is_neither_called_nor_passed_over(name: str, zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    bombs = {
        "system": Bomb(os.system, f"touch {mark}"),
        "touch": Bomb(pathlib.Path.touch, mark),
        "call": Bomb(subprocess.call, ["touch", str(mark)]),
        "eval": Bomb(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Bomb(exec, f"open({str(mark)!r}, 'w')"),
    }
    content = {"model": {"a.weight": torch.ones(2, 2)}, "extra": [bombs[name]]}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="not loaded since they can run code: save the state dict alone"):
        open_checkpoint(tmp_path / "a.pt")
    assert not mark.exists()


def test_a_class_is_not_called_either(tmp_path: Path) -> None:
    torch.save(
        {"model": {"a.weight": torch.ones(2, 2)}, "x": Bomb(subprocess.Popen, ["touch", str(tmp_path / "exploded")])},
        tmp_path / "a.pt",
    )
    open_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"epoch": 1, "model": net}])
def test_a_whole_module_is_read_by_its_parameters(wrap: Any, tmp_path: Path) -> None:
    net = Net()
    torch.save(wrap(net), tmp_path / "a.pt")
    opened = open_checkpoint(tmp_path / "a.pt")
    assert sorted(opened.tensors) == sorted(net.state_dict())
    for name, value in net.state_dict().items():
        assert torch.equal(opened.read(name), value)


def test_what_holds_no_weights_is_named(tmp_path: Path) -> None:
    torch.save({"model": Settings(), "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Python objects besides tensors \(.*Settings\).*state dict alone"):
        open_checkpoint(tmp_path / "a.pt")


class Tied(nn.Module):
    """The output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 5)
        self.h = nn.Linear(5, 5)
        self.lm_head = nn.Linear(5, 11, bias=False)
        self.lm_head.weight = self.wte.weight

    def moved(self) -> Tied:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += torch.randn_like(parameter)
        return self


def test_names_that_safetensors_dropped_are_known(tmp_path: Path) -> None:
    model = Tied()
    save_model(model, str(tmp_path / "a.safetensors"))
    opened = open_checkpoint(tmp_path / "a.safetensors")
    assert sorted(opened.tensors) == ["h.bias", "h.weight", "lm_head.weight", "wte.weight"]
    assert torch.equal(opened.read("wte.weight"), opened.read("lm_head.weight"))
    watched = watch_checkpoint(opened, None, None)
    assert [matrix.name for matrix in watched.matrices] == ["h.weight"]
    notes = {row.parameter: row.note for row in watched.coverage}
    assert notes["lm_head.weight"] == "tied to wte.weight"
    assert notes["wte.weight"].startswith("an embedding")


@pytest.mark.parametrize("order", [("wte.weight", "lm_head.weight"), ("lm_head.weight", "wte.weight")])
def test_the_embedding_stands_for_what_is_tied_to_it_in_any_order(order: tuple[str, str], tmp_path: Path) -> None:
    shared = torch.randn(11, 5)
    torch.save(dict.fromkeys(order, shared) | {"h.weight": torch.randn(5, 5)}, tmp_path / "a.pt")
    watched = watch_checkpoint(open_checkpoint(tmp_path / "a.pt"), None, None)
    assert [matrix.name for matrix in watched.matrices] == ["h.weight"]


def test_a_dropped_name_is_found_in_checkpoints_of_either_kind(tmp_path: Path) -> None:
    """W0 keeps one name of the tied weight, the next checkpoint the other: the weight is followed all the same."""
    model, paths = Tied(), [tmp_path / f"step_{step}.safetensors" for step in (0, 1, 2)]
    save_model(model, str(paths[0]))
    save_model(model.moved(), str(paths[1]))
    state: dict[str, Tensor] = {name: value.clone() for name, value in model.moved().state_dict().items()}
    kept = state.pop("lm_head.weight")
    save_file(state | {"wte.weight": kept}, paths[2], metadata={"lm_head.weight": "wte.weight"})
    run = scanned(paths, tmp_path / "run", embeddings=True)
    assert set(run.matrices.index) == {"wte.weight", "h.weight"}
    assert run.measurements["intrinsic_rank"].notna().all()
    again = scanned(paths, tmp_path / "other", embeddings=True, model=Tied())
    assert set(again.matrices.index) == {"wte.weight", "h.weight"}


def test_settings_of_numpy_change_no_measurement(tmp_path: Path) -> None:
    states = [{"a.weight": torch.randn(6, 5)} for _ in range(2)]
    plain, with_more = [], []
    for step, state in enumerate(states):
        plain.append(tmp_path / f"step_{step}.pt")
        torch.save(state, plain[-1])
        with_more.append(tmp_path / f"more_step_{step}.pt")
        torch.save({"model": state, "best": np.float64(0.5), "args": argparse.Namespace(lr=0.1)}, with_more[-1])
    assert_same_measurements(scanned(with_more, tmp_path / "run"), scanned(plain, tmp_path / "other"))
