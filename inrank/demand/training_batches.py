"""Calibration batches for a Trainer: of its training set, drawn beside its data loader, whose order stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import IterableDataset

from inrank.demand.calibration import BATCHES
from inrank.growth import process_number


class TrainingBatches:
    """Up to 24 batches of a data loader's set, drawn by a seed of their own; the same at every iteration.

    Each process of a distributed training draws its own.

    Args:
        loader: of the training: its set and what makes a batch are taken from it, and nothing is iterated.
        batch_size: samples a batch.
        seed: of the choice.

    Raises:
        ValueError: the set has no length or no places to draw from, or is smaller than one sample.
    """

    def __init__(self, loader: Any, batch_size: int, seed: int) -> None:
        dataset = getattr(loader, "dataset", None)
        if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"calibration: the training set is a {type(dataset).__name__}, of which no batch can be drawn that is "
                "not taken from the training: give calibration, a list of batches"
            )
        if not len(dataset):
            raise ValueError("calibration: the training set is empty")
        self._dataset, self._collate = dataset, loader.collate_fn
        self._size, self._seed = batch_size, seed

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        generator = torch.Generator("cpu").manual_seed(self._seed + process_number())
        count, size = len(self._dataset), min(self._size, len(self._dataset))
        places = torch.randperm(count, generator=generator, device="cpu").tolist()
        for first in range(0, min(BATCHES * size, count // size * size), size):
            yield self._collate([self._dataset[place] for place in places[first : first + size]])
