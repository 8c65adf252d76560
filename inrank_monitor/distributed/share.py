"""Which matrices each process measures: every process the same number of products, none of them twice.

A matrix that all processes hold (DistributedDataParallel) has one owner, who measures it. One that lies in shards has
an owner too, who gets its spectrum in the end; the others who hold a part of that copy add up with it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inrank_monitor.distributed.processes import Processes
from inrank_monitor.distributed.sharded import Sharding, local_view, shardings
from inrank_monitor.matrices import Adapter, InitialWeights, Matrix, is_sharded


class _Sized(Protocol):
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...


@dataclass(frozen=True)
class Share:
    """What this process measures, by place in the tracker's list of matrices.

    Attributes:
        whole: the matrices that it measures by itself; among them all adapters in shards, whose small factors every
            process gathers.
        sharded: the matrices in shards, each with its sharding, in the order in which all processes take them up.
        processes: that measure together.
        gathering: modules that gather their parameters for the time of a pass (FSDP2).
    """

    whole: list[int]
    sharded: dict[int, Sharding]
    processes: Processes = field(default_factory=Processes)
    gathering: tuple[Any, ...] = ()

    @property
    def held(self) -> list[int]:
        """The matrices of which this process keeps W0, or its part of it."""
        return sorted([*self.whole, *self.sharded])

    def reshard(self) -> None:
        """Put the shards back in place: after an evaluation the gathered weights, in another dtype maybe, still are."""
        for module in self.gathering:
            module.reshard()


def gathering_modules(model: nn.Module) -> tuple[Any, ...]:
    """FSDP2's modules, told without importing it."""
    return tuple(module for module in model.modules() if hasattr(module, "unshard") and hasattr(module, "reshard"))


def share_out(model: nn.Module, matrices: Sequence[Matrix], processes: Processes) -> Share:
    """This process's share; called on every process, with the same matrices.

    Raises:
        ValueError: the processes hold different matrices, or different values of them.
    """
    names = [f"{matrix.name} {matrix.rows}×{matrix.cols}" for matrix in matrices]
    for number, others in enumerate(processes.collect(names)):
        if others != names:
            raise ValueError(
                f"process {number} holds other matrices than process {processes.number}: one run is of one model; "
                "give distributed=False and a directory for each process"
            )
    whole: dict[str, list[int]] = {}
    in_shards: list[int] = []
    gathered: list[int] = []
    for place, matrix in enumerate(matrices):
        if isinstance(matrix.module, Adapter) and matrix.module.in_shards:
            gathered.append(place)
        elif matrix.in_factors or not is_sharded(matrix.read()):
            whole.setdefault(matrix.parameter, []).append(place)
        else:
            in_shards.append(place)
    spread = {_mesh_size(matrices[place]) for place in [*in_shards, *gathered]} - {1}
    if spread and processes.count == 1:
        raise ValueError("distributed=False cannot watch a model in shards (DTensor): every process holds a part of it")
    _check_equal([matrices[places[0]] for places in whole.values()], processes)
    layouts = shardings([matrices[place] for place in in_shards], processes)
    sharded = dict(zip(in_shards, layouts, strict=True))
    own = sorted([*deal_out(matrices, whole, processes.count)[processes.number], *gathered])
    return Share(own, sharded, processes, gathering_modules(model))


def _check_equal(matrices: Sequence[Matrix], processes: Processes) -> None:
    """What is shared out must be the same everywhere; asked of a few hundred entries each."""
    if processes.count == 1:
        return
    own = [_sample(matrix) for matrix in matrices]
    for number, others in enumerate(processes.collect(own)):
        for matrix, here, there in zip(matrices, own, others, strict=True):
            if here != there:
                raise ValueError(
                    f"{matrix.parameter} is not the same on process {number} as on process {processes.number}: attach "
                    "after DistributedDataParallel has made them equal, or, if the processes train models of their "
                    "own, give distributed=False and a directory for each"
                )


def _sample(matrix: Matrix) -> int:
    """Checksum of some entries of the parameter, or of its factors."""
    values = matrix.module.update_factors() if matrix.in_factors else (matrix.read(),)  # type: ignore[operator]
    flat = [value.detach().reshape(-1) for value in values]
    some = [value[:: max(1, len(value) // 256)].cpu().double() for value in flat]
    return zlib.crc32(torch.cat(some).numpy().tobytes())


def _mesh_size(matrix: Matrix) -> int:
    """Processes over which a matrix in shards lies."""
    value = matrix.module.parameters()[0] if isinstance(matrix.module, Adapter) else matrix.read()
    return int(value.device_mesh.size())  # type: ignore[attr-defined]


def deal_out(matrices: Sequence[_Sized], whole: Mapping[str, Sequence[int]], count: int) -> list[list[int]]:
    """The places that fall to each of `count` processes: each parameter, dearest first, goes to who has least to do.

    Args:
        matrices: with their sides.
        whole: parameter -> places of its matrices.
        count: of processes.
    """
    sides = [sorted((matrix.rows, matrix.cols)) for matrix in matrices]
    cost = {name: sum(sides[place][0] ** 2 * sides[place][1] for place in places) for name, places in whole.items()}
    load = [0] * count
    dealt: list[list[int]] = [[] for _ in range(count)]
    for name in sorted(whole, key=lambda name: -cost[name]):
        number = load.index(min(load))
        load[number] += cost[name]
        dealt[number] += whole[name]
    return [sorted(places) for places in dealt]


def initial_norm(matrix: Matrix, initial: InitialWeights) -> float:
    """‖W0‖_F of a matrix that this process holds whole; 0 of a layer whose factors are its update."""
    if isinstance(matrix.module, Adapter):
        return matrix.module.initial_norm(matrix.cut)
    return 0.0 if matrix.in_factors else _norm(matrix.view(initial.of(matrix.parameter, torch.device("cpu"))))


def squared_norms(matrices: Sequence[Matrix], initial: InitialWeights, share: Share) -> dict[int, float]:
    """‖W0‖_F² by place: of this process's matrices, and of its pieces of those in shards, each piece once."""
    found = {place: initial_norm(matrices[place], initial) ** 2 for place in share.whole}
    for place, sharding in share.sharded.items():
        if sharding.is_first_copy():
            matrix = matrices[place]
            first = initial.of(matrix.parameter, torch.device("cpu"))
            found[place] = _norm(local_view(matrix, matrix.read(), first)) ** 2
    return found


def _norm(value: Tensor) -> float:
    """‖value‖_F, some rows at a time: a float64 copy of all would be the largest thing in memory."""
    squares = [float(rows.to(torch.float64).square().sum()) for rows in torch.split(value, 64)]
    return float(sum(squares) ** 0.5)
