"""What goes between host and accelerator goes through a few pinned pieces of memory, in turn.

So the device copies while the loop and another thread do, the memory is bounded whatever a matrix's size, and nothing
but the loop's thread speaks to the device. What has come back is handed on to the thread that empties the pieces.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inrank_monitor.spectra.devices import mark, pinned
from inrank_monitor.spectra.scratch import scratch

PIECES, PIECE_BYTES = 4, 8 << 20
Cut = tuple[int | slice, ...]


def waiting_bytes() -> int:
    """How much may wait on the host for its eigenvalues: a quarter of its memory."""
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    return 1 << 32


class Room:
    """Bytes of the host that may be taken at a time; what is larger than all of them gets its turn alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._freed = threading.Condition()

    def is_free(self, size: int) -> bool:
        """Whether `take` would not wait."""
        return not self._taken or self._taken + size <= self._limit

    def take(self, size: int) -> None:
        """Wait until there is so much."""
        with self._freed:
            self._freed.wait_for(lambda: self.is_free(size))
            self._taken += size

    def give_back(self, size: int) -> None:
        """It is free again."""
        with self._freed:
            self._taken -= size
            self._freed.notify_all()


class _Piece:
    """Pinned memory, and who uses it: the device until the event, then whoever empties it."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.event: Any = None
        self.target: np.ndarray | None = None  # where the bytes go that the device copies into it
        self.then: Callable[[], None] | None = None  # once they are there
        self.emptied: Future[None] | None = None


class Staging:
    """The pieces of one run.

    Args:
        limit: bytes of the host in which fetched tensors may wait until they are given back.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.room = Room(waiting_bytes() if limit is None else limit)
        self._pieces: deque[_Piece] = deque()
        self._coming: deque[_Piece] = deque()
        self._emptier: ThreadPoolExecutor | None = None

    def subtract(self, value: Tensor, start: Tensor) -> None:
        """`value -= start`, the one on a device, the other on the host, of which no more than a piece is there."""
        for cut in _cuts(start.shape, start.element_size()):
            piece, part = self._next(value.device), start[cut]
            room = _view(piece.memory, part)
            room.copy_(part)
            there = room.to(value.device, non_blocking=True)
            piece.event = mark(value.device)
            self._pieces.append(piece)
            subtract(value[cut], there)

    def fetch(self, sources: Sequence[Tensor], then: Callable[[list[Tensor]], None]) -> None:
        """Begin to copy tensors to the host.

        Args:
            sources: on one device, contiguous.
            then: called with them, in another thread, once they are there; the bytes are given back by the caller,
                `room.give_back(bytes_of(sources))`.
        """
        size = bytes_of(sources)
        if not self.room.is_free(size):
            self.flush()  # what is on its way may be what has to go first
        self.room.take(size)
        try:
            self._begin(sources, then)
        except BaseException:
            self.room.give_back(size)
            raise

    def _begin(self, sources: Sequence[Tensor], then: Callable[[list[Tensor]], None]) -> None:
        found = [scratch(source.shape, source.dtype) for source in sources]
        for source, target in zip(sources, found, strict=True):
            for cut in _cuts(source.shape, source.element_size()):
                piece, part = self._next(source.device), source[cut]
                _view(piece.memory, part).copy_(part, non_blocking=True)
                piece.event, piece.target = mark(source.device), _bytes(target[cut])
                self._coming.append(piece)
        if self._coming:
            self._coming[-1].then = lambda: then(found)
        else:  # nothing to copy
            then(found)

    def flush(self) -> None:
        """Wait until the device has done all of it."""
        self._hand_on(wait=True)
        for piece in self._pieces:
            if piece.event is not None:
                piece.event.synchronize()
                piece.event = None

    def close(self) -> None:
        """Let go of the memory and the thread."""
        self._coming.clear()
        self._pieces.clear()
        if self._emptier is not None:
            self._emptier.shutdown(wait=True)
            self._emptier = None

    def _next(self, device: torch.device) -> _Piece:
        """A piece that nobody uses."""
        self._hand_on()
        if len(self._pieces) + len(self._coming) < PIECES:
            return _Piece(pinned(PIECE_BYTES, device))
        if not self._pieces:
            self._hand_on(wait=True)
        piece = self._pieces.popleft()
        if piece.event is not None:
            piece.event.synchronize()
        if piece.emptied is not None:
            piece.emptied.result()
        return _Piece(piece.memory)

    def _hand_on(self, wait: bool = False) -> None:
        """Have those emptied that the device has filled; `wait` until it has filled all."""
        while self._coming and (wait or self._coming[0].event.query()):
            piece = self._coming.popleft()
            piece.event.synchronize()
            piece.event = None
            self._empty(piece)
            self._pieces.append(piece)

    def _empty(self, piece: _Piece) -> None:
        source, target, then = piece.memory.numpy(), piece.target, piece.then
        piece.target = piece.then = None

        def run() -> None:
            assert target is not None
            target[:] = source[: len(target)]
            if then is not None:
                then()

        try:
            if self._emptier is None:
                self._emptier = ThreadPoolExecutor(1, "inrank-staging")
            piece.emptied = self._emptier.submit(run)
        except RuntimeError:  # the interpreter is shutting down and takes no new threads
            run()


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Of all of them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def subtract(value: Tensor, start: Tensor) -> None:
    """`value -= start`, exact: 8-bit floats are widened first, as torch does not."""
    value.sub_(start if start.element_size() > 1 else start.to(value.dtype))


def _cuts(shape: Sequence[int], width: int) -> Iterator[Cut]:
    """Indices of parts, in order, none of which is larger than a piece; each is contiguous in a contiguous tensor."""
    if math.prod(shape) == 0:
        return
    row = width * math.prod(shape[1:])
    if row > PIECE_BYTES:
        for index in range(shape[0]):
            for rest in _cuts(shape[1:], width):
                yield (index, *rest)
        return
    some = PIECE_BYTES // row
    for first in range(0, shape[0], some):
        yield (slice(first, first + some),)


def _view(memory: Tensor, like: Tensor) -> Tensor:
    size = like.numel() * like.element_size()
    return memory[:size].view(like.dtype).view(like.shape)


def _bytes(value: Tensor) -> np.ndarray:
    found: np.ndarray = value.view(-1).view(torch.uint8).numpy()
    return found
