"""Small images with labels: scikit-learn's digits, which need no network, and Fashion-MNIST.

Fashion-MNIST is read from its four IDX files, plain or gzipped, in the directory that the environment variable
INRANK_FASHION_MNIST names; where that is not set the `datasets` library fetches it.

References:
    Xiao, Rasul, Vollgraf 2017, Fashion-MNIST, arXiv:1708.07747.
    Alpaydin and Kaynak 1998, Optical recognition of handwritten digits (scikit-learn's digits are its test set).
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from inrank.reproduction.experiment import ExperimentError
from inrank_monitor.console import typed

Source = Literal["digits", "fashion-mnist"]
VARIABLE = "INRANK_FASHION_MNIST"
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
HUB_NAME = "zalando-datasets/fashion_mnist"
_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTES = 0x08
_HELD_OUT = 360  # digits, a fifth


@dataclass(frozen=True)
class Images:
    """Images as vectors, centred and scaled by two numbers: the mean and standard deviation of all training pixels.

    Attributes:
        inputs: to train on, images × pixels, float32.
        labels: 0 to classes − 1.
        test_inputs: held out.
        test_labels: theirs.
        classes: how many.
    """

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int = 10

    def to(self, device: str) -> Images:
        """All of it on a device."""
        return Images(
            self.inputs.to(device),
            self.labels.to(device),
            self.test_inputs.to(device),
            self.test_labels.to(device),
            self.classes,
        )


def read_images(source: Source) -> Images:
    """Read a data set; which images are held out is always the same.

    Raises:
        ExperimentError: a library or a file is missing, or a file is not what it should be.
    """
    if source == "digits":
        return _digits()
    directory = os.environ.get(VARIABLE)
    return _scaled(*(_from_files(Path(directory)) if directory else _fetched()))


def read_idx(path: Path) -> np.ndarray:
    """One IDX file of unsigned bytes, plain or gzipped: two zero bytes, type, number of axes, their sizes, the values.

    Raises:
        ExperimentError: it cannot be read, is of another type, or holds fewer or more bytes than its header says.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ExperimentError(f"{path} cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
        raise ExperimentError(
            f"{path} must begin as an IDX file of unsigned bytes, 00 00 08, got {content[:3].hex(' ')}"
        )
    axes = content[3]
    begin = 4 + 4 * axes
    if len(content) < begin:
        raise ExperimentError(f"{path} ends in its header of {begin} bytes, at {len(content)}")
    sizes = struct.unpack(f">{axes}I", content[4:begin])
    expected = int(np.prod(sizes, dtype=np.int64))
    if len(content) - begin != expected:
        shape = "×".join(map(str, sizes))
        raise ExperimentError(f"{path} must hold {shape} = {expected:,} values, got {len(content) - begin:,}")
    return np.frombuffer(content, dtype=np.uint8, offset=begin).reshape(sizes)


def _from_files(directory: Path) -> list[np.ndarray]:
    """Images and labels to train on, then to test on."""
    arrays = []
    for name in FILES:
        found = next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)
        if found is None:
            raise ExperimentError(f"{VARIABLE} must name a directory with {', '.join(FILES)} (or .gz), no {name} there")
        arrays.append(read_idx(found))
        axes = 3 if "idx3" in name else 1
        if arrays[-1].ndim != axes:
            raise ExperimentError(f"{found} must have {axes} axes, got {arrays[-1].ndim}")
    for kind, first in (("train", 0), ("t10k", 2)):
        images, labels = arrays[first : first + 2]
        if len(images) != len(labels):
            raise ExperimentError(f"{kind} must have a label an image, got {len(images)} images, {len(labels)} labels")
    return arrays


def _fetched() -> list[np.ndarray]:
    load = _library("datasets", "datasets").load_dataset
    try:
        both = load(HUB_NAME)
    except Exception as error:  # of the network, the hub, the cache: each library has its own
        reason = str(error).strip().splitlines()
        raise ExperimentError(
            f"Fashion-MNIST could not be fetched ({reason[0] if reason else type(error).__name__}): "
            f"set {VARIABLE} to a directory with its four IDX files"
        ) from None
    return [array for split in ("train", "test") for array in split_arrays(both[split])]


def split_arrays(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (n × height × width, unsigned bytes) and labels of a split as the `datasets` library gives it."""
    columns = split.with_format("numpy")[:]
    return np.asarray(columns["image"], dtype=np.uint8), np.asarray(columns["label"], dtype=np.int64)


def _digits() -> Images:
    """1,797 digits of 8 × 8 pixels; they lie there in an order, so those held out are drawn, the same each time."""
    found = _library("sklearn.datasets", "scikit-learn").load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    held_out, kept = order[:_HELD_OUT], order[_HELD_OUT:]
    return _scaled(found.data[kept], found.target[kept], found.data[held_out], found.target[held_out])


def _scaled(inputs: np.ndarray, labels: np.ndarray, test_inputs: np.ndarray, test_labels: np.ndarray) -> Images:
    mean, deviation = float(inputs.mean(dtype=np.float64)), float(inputs.std(dtype=np.float64))

    def vectors(images: np.ndarray) -> Tensor:
        flat = images.reshape(len(images), -1).astype(np.float32)
        return torch.from_numpy((flat - mean) / deviation).to(torch.float32)

    def numbers(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int64))

    return Images(vectors(inputs), numbers(labels), vectors(test_inputs), numbers(test_labels))


def _library(module: str, package: str) -> Any:
    """A library that only the experiments need."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ExperimentError(
            f"this experiment needs {package} ({error}): {typed('pip', 'install', 'inrank-monitor[experiments]')}"
        ) from None
