"""What a few batches say of a layer: the covariance of its input, and of the gradient of its output.

C = mean of x xᵀ over all rows x that reach the layer; G = mean over batches of Σ g gᵀ, g = ∂L/∂y of one row. To second
order, with the usual independence of x and g (Martens and Grosse 2015, arXiv:1503.05671), changing W by D changes the
loss by ½ tr(Dᵀ G D C) up to a factor that all layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from inrank.growth import meeting_device, sum_over_processes
from inrank.layers import matrix_of
from inrank_monitor.loss_ranks import Surroundings
from inrank_monitor.matrices import unwrap

BATCHES = 24  # at most
_HALF_SCALE = 4096.0  # of a loss whose gradients pass through float16: a mean over many tokens has them below its reach
BatchLoss = Callable[[nn.Module, Any], Tensor]
Losses = Sequence[Callable[[], Any]]


@dataclass(frozen=True)
class Covariances:
    """Of one layer.

    Attributes:
        inputs: C, (cols, cols).
        outputs: G, (rows, rows).
    """

    inputs: Tensor
    outputs: Tensor


def losses_of(
    model: nn.Module, calibration: Iterable[Any] | None, batch_loss: BatchLoss | None, loss: Callable[[], Any] | None
) -> Losses:
    """A function of no argument for each batch, or the caller's own.

    Raises:
        ValueError: `calibration` is empty, or a `batch_loss` has no batches.
        TypeError: a batch is no mapping, and no `batch_loss` says what to do with it.
    """
    if calibration is None:
        if batch_loss is not None:
            raise ValueError("batch_loss needs batches: give calibration")
        return [] if loss is None else [loss]
    batches = list(islice(calibration, BATCHES))
    if not batches:
        raise ValueError("calibration holds no batch")
    if batch_loss is None and not isinstance(batches[0], Mapping):
        raise TypeError(
            f"calibration: its batches are of type {type(batches[0]).__name__}: "
            "give batch_loss, a function of the model and a batch"
        )
    return [partial(batch_loss or _loss_of_mapping, model, batch) for batch in batches]


def _loss_of_mapping(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """As transformers' models have it."""
    device = next(model.parameters()).device
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    found: Tensor | None = model(**moved).loss
    if found is None:
        raise ValueError("calibration: the model gives no loss for its batches: add labels, or give batch_loss")
    return found


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; modes, buffers, gradients and random generators come back to the bit."""
    surroundings = Surroundings(unwrap(model))
    try:
        for module in model.modules():  # cuDNN has no backward pass of a recurrent layer in evaluation mode
            module.training = isinstance(module, nn.RNNBase) and module.training
        with torch.compiler.set_stance("force_eager"):  # compiled code does not see new hooks
            yield
    finally:
        surroundings.restore()


@torch.no_grad()
def mean_loss(losses: Losses) -> float | None:
    """Over batches and processes; None without any."""
    if not losses:
        return None
    values = [float(loss()) for loss in losses]
    total = torch.tensor([sum(values), float(len(values))], dtype=torch.float64, device=meeting_device())
    sum_over_processes(total)
    return float(total[0] / total[1])


def calibrate(layers: Mapping[str, nn.Module], losses: Losses) -> dict[str, Covariances]:
    """Run the batches forwards and backwards; gradients go through `torch.autograd.grad`, past every `.grad`.

    Args:
        layers: Linear, Conv1D or Conv2d, by name.
        losses: one a batch.

    Raises:
        ValueError: a layer is not reached, or what it sees is not finite.
        TypeError: a loss is no tensor with a gradient.
    """
    seen = {name: _Seen(name, layer) for name, layer in layers.items()}
    weights: list[Any] = [layer.weight for layer in layers.values()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    with ExitStack() as stack, torch.enable_grad():
        for one in seen.values():
            stack.callback(one.handle.remove)
        for weight in frozen:
            stack.callback(weight.requires_grad_, False)
            weight.requires_grad_()
        for loss in losses:
            value = _with_gradient(loss())
            scale = _HALF_SCALE if any(one.is_half for one in seen.values()) else 1.0
            for one in seen.values():
                one.scale = scale
            torch.autograd.grad(value, weights, torch.full_like(value, scale), allow_unused=True)
    return {name: one.covariances(len(losses)) for name, one in seen.items()}


def _with_gradient(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise TypeError(f"the loss of a calibration batch must be a tensor with a gradient, got {type(loss).__name__}")
    return loss


class _Seen:
    """Sums over the rows that one layer sees.

    Attributes:
        is_half: whether its output is in float16.
        scale: of the gradients that come.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self._name, self._layer, self._count = name, layer, 0
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self._dtype = torch.promote_types(weight.dtype, torch.float32)
        rows, cols = sides(layer)
        self._inputs = weight.new_zeros(cols, cols, dtype=self._dtype)
        self._outputs = weight.new_zeros(rows, rows, dtype=self._dtype)
        self.is_half, self.scale = False, 1.0
        self.handle = layer.register_forward_hook(self._forward)

    @torch.no_grad()
    def _forward(self, layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        if not output.requires_grad:  # the first pass of gradient checkpointing
            return
        inputs = _rows_in(layer, arguments[0].detach()).to(self._dtype)
        self._inputs.addmm_(inputs.mT, inputs)
        self._count += len(inputs)
        self.is_half |= output.dtype == torch.float16
        output.register_hook(self._backward)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _backward(self, gradient: Tensor) -> None:
        rows = gradient.movedim(1, -1) if isinstance(self._layer, nn.Conv2d) else gradient
        rows = rows.reshape(-1, rows.shape[-1]).to(self._dtype)
        if self.scale != 1:
            rows = rows / self.scale
        self._outputs.addmm_(rows.mT, rows)

    def covariances(self, batches: int) -> Covariances:
        counts = torch.tensor([self._count, batches], dtype=torch.float64, device=self._inputs.device)
        for tensor in (counts, self._inputs, self._outputs):
            sum_over_processes(tensor)
        if not counts[0] > 0:
            raise ValueError(f"calibration does not reach {self._name!r}: give other batches, or leave it out")
        found = Covariances(self._inputs / counts[0].to(self._dtype), self._outputs / counts[1].to(self._dtype))
        if not bool(torch.isfinite(found.inputs).all() and torch.isfinite(found.outputs).all()):
            raise ValueError(f"calibration: inputs or gradients of {self._name!r} hold NaN or infinity")
        return found


def sides(layer: nn.Module) -> tuple[int, int]:
    """(rows, cols) of a layer's matrix: outputs, inputs (times the kernel of a Conv2d)."""
    rows, cols = matrix_of(layer).shape
    return rows, cols


def _rows_in(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs as rows that the layer's matrix is applied to; the patches of an image."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1])
    padded = pad(inputs, layer._reversed_padding_repeated_twice)
    size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    patches = unfold(padded if padded.ndim == 4 else padded[None], size, dilation=dilation, stride=stride)
    return patches.mT.reshape(-1, patches.shape[1])
