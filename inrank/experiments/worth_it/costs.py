"""What a training costs: multiply-adds, counted from the operations that run, and seconds.

A step is counted by torch's own FlopCounterMode when it is the first of its kind, that is at the start and after each
change of the model's shapes; every other step costs the same. What calibration and decompositions cost is added, so
that a method is charged for what it asks before it saves.

References:
    Golub and Van Loan 2013, Matrix computations, section 8.6.3 (SVD), 4.2.5 (Cholesky): their flops, halved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inrank.experiments.worth_it.data import next_token_loss


class Meter:
    """Counts one training.

    Args:
        device: of the training.
        tokens: of a batch, the same for steps and calibration.

    Attributes:
        multiply_adds: so far.
        seconds: of `timed` parts so far: of this process's work on a CPU, which other processes beside it hardly
            change; by the clock on an accelerator.
    """

    def __init__(self, device: str, tokens: int) -> None:
        self._device, self._tokens = torch.device(device), tokens
        self._step: float | None = None
        self.multiply_adds = 0.0
        self.seconds = 0.0

    def model_changed(self) -> None:
        """The next step has other shapes."""
        self._step = None

    @staticmethod
    def cost_of(step: Callable[[], object]) -> float:
        """Multiply-adds of one step, which is made and not charged."""
        with FlopCounterMode(display=False) as counter:
            step()
        return float(counter.get_total_flops()) / 2

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the forward and backward pass of one step."""
        if self._step is None:
            with FlopCounterMode(display=False) as counter:
                yield
            self._step = counter.get_total_flops() / 2
        else:
            yield
        self.multiply_adds += self._step

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around what belongs to the training; evaluation does not."""
        began = self._now()
        try:
            yield
        finally:
            self.seconds += self._now() - began

    def _now(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    def batch_loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """The loss of a batch outside the steps, for calibration: a third of a step, with gradients a whole one."""
        assert self._step is not None, "calibration comes after a step"
        self.multiply_adds += self._step if torch.is_grad_enabled() else self._step / 3
        return next_token_loss(model, tokens)

    def covariances(self, shapes: Iterable[tuple[int, int]], batches: int) -> None:
        """C and G of layers of these (rows, cols), gathered over batches."""
        self.multiply_adds += batches * self._tokens * sum(rows**2 + cols**2 for rows, cols in shapes)

    def decompositions(self, shapes: Iterable[tuple[int, int]], *, weighted: bool) -> None:
        """An SVD of each matrix; `weighted`: and another under the metric, with its Cholesky factors and products."""
        for rows, cols in shapes:
            long, short = max(rows, cols), min(rows, cols)
            one = 7 * long * short**2 + 4 * short**3
            metric = (rows**3 + cols**3) / 6 + 2 * rows * cols * (rows + cols)
            self.multiply_adds += 2 * one + metric if weighted else one
