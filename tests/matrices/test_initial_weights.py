from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from inrank_monitor.matrices import initial_weights
from inrank_monitor.matrices.finding import find_matrices
from inrank_monitor.matrices.initial_weights import InitialWeights

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
KEEPS = ["disk", "memory", "device"]


class Mixed(nn.Module):
    """One parameter of each dtype, of odd sizes, in layouts that are not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        for number, dtype in enumerate(DTYPES):
            value = torch.randn(3 + number, 5).to(dtype)
            self.register_parameter(f"w{number}", nn.Parameter(value))
        self.turned = nn.Parameter(torch.randn(4, 7).mT)
        self.kernel = nn.Conv2d(3, 2, 2).to(memory_format=torch.channels_last)
        self.linear = parametrizations.weight_norm(nn.Linear(3, 4))


def bits(value: Tensor) -> bytes:
    return value.detach().contiguous().view(torch.uint8).numpy().tobytes()


def expected_values(model: Mixed) -> dict[str, Tensor]:
    names = [*(f"w{number}" for number in range(len(DTYPES))), "turned"]
    values = {name: getattr(model, name) for name in names}
    values |= {"kernel.weight": model.kernel.weight, "linear.weight": model.linear.weight}
    return {name: value.detach().clone() for name, value in values.items()}


def assert_holds(initial: InitialWeights, expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        found = initial.of(name, CPU)
        assert (found.dtype, found.shape) == (value.dtype, value.shape), name
        assert bits(found) == bits(value), name


@pytest.mark.parametrize("keep", KEEPS)
def test_w0_stays_what_it_was_while_training_goes_on(keep: str, tmp_path: Path) -> None:
    model = Mixed()
    expected = expected_values(model)
    path = tmp_path / "w0.safetensors"
    initial = initial_weights.take(find_matrices(model)[0], keep, path)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.ones(parameter.shape).to(parameter.dtype))
    assert_holds(initial, expected)
    assert path.exists() == (keep == "disk")
    assert bool(initial.content_hash) == (keep == "disk")
    assert [entry.name for entry in tmp_path.iterdir()] == (["w0.safetensors"] if keep == "disk" else [])
    with pytest.raises(Exception, match="w99"):
        initial.of("w99", CPU)


def take_to_disk(model: nn.Module, path: Path) -> InitialWeights:
    return initial_weights.take(find_matrices(model)[0], "disk", path)


def test_the_file_is_one_that_safetensors_itself_reads(tmp_path: Path) -> None:
    model = Mixed()
    path = tmp_path / "w0.safetensors"
    take_to_disk(model, path)
    expected = expected_values(model)
    loaded = load_file(path)
    assert loaded.keys() == expected.keys()
    assert all(bits(loaded[name]) == bits(value) for name, value in expected.items())
    with safe_open(str(path), framework="np") as file:
        assert list(file.get_slice("turned").get_shape()) == [7, 4]
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + header) % 8 == 0  # aligned data


def test_the_file_comes_back_in_another_process_by_its_hash(tmp_path: Path) -> None:
    model = Mixed()
    path = tmp_path / "w0.safetensors"
    content_hash = take_to_disk(model, path).content_hash
    assert re.fullmatch("[0-9a-f]{64}", content_hash)
    again = initial_weights.load(path, content_hash)
    assert again.content_hash == content_hash
    assert_holds(again, expected_values(model))


def test_the_hash_tells_values_apart_and_nothing_else(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    first = take_to_disk(model, tmp_path / "a").content_hash
    assert take_to_disk(model, tmp_path / "b").content_hash == first
    with torch.no_grad():
        model.weight[0, 0] = torch.nextafter(model.weight[0, 0], torch.tensor(9.0))
    assert take_to_disk(model, tmp_path / "c").content_hash != first
    assert first != hashlib.sha256(b"").hexdigest()


def test_every_flipped_byte_is_detected(tmp_path: Path) -> None:
    """In the data and in the header: a changed shape, dtype or offset would give other weights as silently."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    path = tmp_path / "w0.safetensors"
    content_hash = take_to_disk(model, path).content_hash
    whole = path.read_bytes()
    unnoticed = []
    for place in range(len(whole)):
        for flip in (0x01, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            try:
                initial_weights.load(path, content_hash)
            except ValueError as error:
                assert "is damaged" in str(error)  # noqa: PT017
            else:
                unnoticed.append(place)
    assert unnoticed == []


def test_every_cut_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "w0.safetensors"
    content_hash = take_to_disk(nn.Linear(3, 4), path).content_hash
    whole = path.read_bytes()
    for length in [*range(len(whole)), len(whole) + 1]:
        path.write_bytes((whole + b"\0")[:length])
        with pytest.raises(ValueError, match=r"w0\.safetensors is damaged"):
            initial_weights.load(path, content_hash)


def test_a_missing_file_says_what_it_means(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"w0\.safetensors is missing: without W0 the run cannot be continued"):
        initial_weights.load(tmp_path / "w0.safetensors", "0" * 64)


def test_an_unknown_place_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    matrices, _ = find_matrices(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="initial_weights must be 'disk', 'memory' or 'device', got 'cloud'"):
        initial_weights.take(matrices, "cloud", tmp_path / "w0.safetensors")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none"):
        take_to_disk(nn.Linear(3, 2), tmp_path / "none" / "w0.safetensors")
    assert list(tmp_path.iterdir()) == []


class Factored(nn.Module):
    rank = 1

    def __init__(self) -> None:
        super().__init__()
        self.U, self.V = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 3))

    def update_factors(self) -> tuple[Tensor, Tensor]:
        return self.U, self.V


def test_only_what_is_watched_is_kept_and_once(tmp_path: Path) -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 4), "left_out": nn.Linear(5, 5), "factored": Factored()})
    matrices, _ = find_matrices(model, exclude="left_out*")
    path = tmp_path / "w0.safetensors"
    initial_weights.take(matrices, "disk", path)
    assert sorted(load_file(path)) == ["lstm.weight_hh_l0", "lstm.weight_ih_l0"]  # four gates in one, no factors
    only, _ = find_matrices(Factored())
    empty = initial_weights.take(only, "disk", tmp_path / "empty")
    assert load_file(tmp_path / "empty") == {}
    initial_weights.load(tmp_path / "empty", empty.content_hash)


@pytest.mark.parametrize("keep", KEEPS)
def test_taking_w0_leaves_the_model_alone(keep: str, tmp_path: Path) -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    initial = initial_weights.take(find_matrices(model)[0], keep, tmp_path / "w0")  # type: ignore[arg-type]
    assert not initial.of("1.weight", CPU).requires_grad
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_second_take_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    """The first reader keeps what it has mapped."""
    model = nn.Linear(3, 2)
    before = {"weight": model.weight.detach().clone()}
    first = take_to_disk(model, tmp_path / "w0")
    with torch.no_grad():
        model.weight.zero_()
    second = take_to_disk(model, tmp_path / "w0")
    assert_holds(first, before)
    assert_holds(second, {"weight": torch.zeros(2, 3)})
