"""Images for the perceptron: IDX files, whole and damaged; digits; what is missing is said."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from inrank.experiments.perceptron.images import FILES, VARIABLE, read_idx, read_images, split_arrays
from inrank.reproduction.experiment import ExperimentError

pytestmark = pytest.mark.numeric


def idx(values: np.ndarray) -> bytes:
    """A file of the format, written from its description."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def write(directory: Path, train: Sequence[np.ndarray], test: Sequence[np.ndarray], packed: bool = False) -> Path:
    for name, values in zip(FILES, [*train, *test], strict=True):
        content = idx(values)
        (directory / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return directory


LABELS = np.arange(6, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 28, 28), (0, 2, 2)])
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_file_is_read_as_it_was_written(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> None:
    values, file = pixels(*shape), tmp_path / "file"
    file.write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    read = read_idx(file)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin as an IDX file"),
        (b"\x89PNG\r\n", "must begin as an IDX file of unsigned bytes, 00 00 08, got 89 50 4e"),
        (bytes([0, 0, 0x0D, 1]), "must begin as an IDX file of unsigned bytes"),  # floats
        (idx(pixels(2, 3))[:9], "ends in its header of 12 bytes, at 9"),
        (idx(pixels(2, 3))[:-1], "must hold 2×3 = 6 values, got 5"),
        (idx(pixels(2, 3)) + b"x", "must hold 2×3 = 6 values, got 7"),
        (gzip.compress(idx(pixels(2, 3)))[:-9], "cannot be read: "),
        (gzip.compress(idx(pixels(2, 3)))[:-4] + b"abcd", "cannot be read: "),
    ],
    ids=[
        "empty",
        "image",
        "floats",
        "in its header",
        "too short",
        "too long",
        "packed, too short",
        "packed, wrong sum",
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(ExperimentError, match=f"damaged.*{message}") as caught:
        read_idx(tmp_path / "damaged")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_is_read_from_the_named_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    train, test = pixels(6, 4, 4), pixels(2, 4, 4)
    monkeypatch.setenv(VARIABLE, str(write(tmp_path, [train, LABELS], [test, LABELS[:2]], packed)))
    images = read_images("fashion-mnist")
    mean, deviation = train.mean(), train.std()
    expected = torch.from_numpy(((test.reshape(2, 16) - mean) / deviation).astype(np.float32))
    torch.testing.assert_close(images.test_inputs, expected)
    assert images.inputs.shape == (6, 16)
    assert images.labels.tolist() == LABELS.tolist()
    assert images.labels.dtype == torch.int64


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(write(tmp_path, [pixels(6, 4, 4), LABELS], [pixels(2, 4, 4), LABELS[:2]])))
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(ExperimentError, match=rf"{VARIABLE} must name a directory with .*no t10k-labels-idx1-ubyte"):
        read_images("fashion-mnist")


def test_labels_must_fit_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(write(tmp_path, [pixels(6, 4, 4), LABELS], [pixels(2, 4, 4), LABELS[:3]])))
    with pytest.raises(ExperimentError, match="t10k must have a label an image, got 2 images, 3 labels"):
        read_images("fashion-mnist")


def test_files_that_were_swapped_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(write(tmp_path, [LABELS, pixels(6, 4, 4)], [pixels(2, 4, 4), LABELS[:2]])))
    with pytest.raises(ExperimentError, match="train-images-idx3-ubyte must have 3 axes, got 1"):
        read_images("fashion-mnist")


def test_without_files_or_network_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ExperimentError, match=f"could not be fetched.*set {VARIABLE} to a directory"):
        read_images("fashion-mnist")


def test_a_split_of_the_datasets_library_gives_images_and_labels() -> None:
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    drawn = pixels(3, 28, 28)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    columns = {"image": [image.fromarray(one) for one in drawn], "label": [4, 0, 9]}
    images, labels = split_arrays(datasets.Dataset.from_dict(columns, features=features))
    np.testing.assert_array_equal(images, drawn)
    assert labels.tolist() == [4, 0, 9]


def test_digits_are_split_the_same_way_each_time_and_centred() -> None:
    first, second = read_images("digits"), read_images("digits")
    assert torch.equal(first.inputs, second.inputs)
    assert (len(first.labels), len(first.test_labels)) == (1437, 360)
    torch.testing.assert_close(first.inputs.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.inputs.std(correction=0), torch.tensor(1.0))
    counts = torch.bincount(first.test_labels, minlength=10)
    assert int(counts.min()) >= 20  # about a tenth each: the held-out ones are no special kind
    seen = {tuple(row.tolist()) for row in first.inputs}
    assert not any(tuple(row.tolist()) in seen for row in first.test_inputs)
