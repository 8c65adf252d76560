"""What an optimizer step left, told from what came after, without a copy of the weights.

Each parameter has a version counter, which every in-place operation raises, and a storage address. Writes through
`.data` raise no counter, so a few entries of some parameters are kept too, on their own device: nothing waits for a GPU
until somebody asks. All together takes microseconds a step (`benchmarks/bench_checks.py`).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from inrank_monitor.matrices import Adapter, Matrix, has_memory
from inrank_monitor.spectra import sent

_MOST_SAMPLED, _ENTRIES = 8, 16  # parameters, entries of each


class _Source(NamedTuple):
    """Where a module keeps a parameter that a matrix is read from."""

    name: str
    held: Mapping[str, Tensor | None]
    key: str

    def value(self) -> Tensor | None:
        """The parameter as it is now; of a DTensor what this process holds of it."""
        value = self.held.get(self.key)
        return getattr(value, "_local_tensor", value)


@dataclass
class Compared:
    """Entries of parameters now and then, on their way to the host.

    Attributes:
        names: of parameters that are others for certain.
        pairs: of the others: names, the event of their arrival or None, and (2, entries), now and then.
    """

    names: set[str] = field(default_factory=set)
    pairs: list[tuple[list[str], Any, Tensor]] = field(default_factory=list)

    def is_there(self) -> bool:
        """Whether `different` would not wait."""
        return all(event is None or event.query() for _, event, _ in self.pairs)

    def different(self) -> set[str]:
        """Names of the parameters of which other entries are there; it may wait for a device."""
        found = set(self.names)
        for names, event, pair in self.pairs:
            if event is not None:
                event.synchronize()
            now, then = pair.double().nan_to_num()
            unequal = (now != then).view(len(names), -1).any(dim=1)
            found |= {name for name, other in zip(names, unequal.tolist(), strict=True) if other}
        return found


class WeightsLeft:
    """The state of the watched weights at the last `mark`.

    Args:
        matrices: whose weights are looked at.
    """

    def __init__(self, matrices: Iterable[Matrix]) -> None:
        owners = {matrix.parameter: matrix for matrix in matrices}
        self._sources = [source for matrix in owners.values() for source in _sources_of(matrix)]
        self._pairs = [(source.held, source.key) for source in self._sources]
        self._stride = max(1, -(-len(self._sources) // _MOST_SAMPLED))
        self._sampled = self._sources[:: self._stride]
        self._addresses: list[int] = []
        self._groups: list[tuple[list[int], list[Tensor]]] = []  # places among the sampled, and views of their entries
        self.mark()

    def parameters(self) -> set[int]:
        """Ids of the parameters as they are now."""
        return {id(held.get(key)) for held, key in self._pairs}

    def mark(self) -> None:
        """The weights are now as the step left them."""
        there = [held.get(key) for held, key in self._pairs]
        self._ids, self._versions = _identities(there)
        # _local_tensor: what this process holds of a DTensor
        addresses = [
            getattr(value, "_local_tensor", value).data_ptr() for value in there[:: self._stride] if value is not None
        ]
        if addresses != self._addresses or not self._groups:
            self._addresses = addresses
            self._look()
        self._samples = [(places, torch.cat(views)) for places, views in self._groups]

    @torch.no_grad()
    def changed(self) -> list[str]:
        """Names of the parameters that are not as they were at the last mark; it may wait for a device."""
        now = zip(*_identities([held.get(key) for held, key in self._pairs]), strict=True)
        then = zip(self._ids, self._versions, strict=True)
        found = {source.name for source, here, before in zip(self._sources, now, then, strict=True) if here != before}
        found |= self.compared().different()
        return [name for name in dict.fromkeys(source.name for source in self._sources) if name in found]

    @torch.no_grad()
    def compared(self) -> Compared:
        """Of which parameters other entries are there now, however they came there."""
        views = [_entries(source.value()) for source in self._sampled]
        there = {place for place, view in enumerate(views) if view is not None}
        found = Compared()
        for places, joined in self._samples:
            alike = [
                at
                for at, place in enumerate(places)
                if (view := views[place]) is not None and (view.device, view.dtype) == (joined.device, joined.dtype)
            ]
            if alike:
                samples = torch.split(joined, _ENTRIES)
                now = torch.cat([view for at in alike if (view := views[places[at]]) is not None])
                then = torch.cat([samples[at] for at in alike])
                found.pairs.append(([self._sampled[places[at]].name for at in alike], *sent(torch.stack([now, then]))))
            found.names |= {self._sampled[place].name for at, place in enumerate(places) if at not in alike}
            there -= set(places)
        found.names |= {self._sampled[place].name for place in there}  # of which there were none
        return found

    def _look(self) -> None:
        """Views of some entries, for as long as their parameters live: what a loop replaces is freed at once."""
        groups: defaultdict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]]
        groups = defaultdict(lambda: ([], []))
        self._alive = []
        found: list[tuple[list[int], list[Tensor]]] = []
        self._groups = found
        for place, source in enumerate(self._sampled):
            value = source.value()
            view = _entries(value)
            if value is not None and view is not None:
                places, views = groups[value.device, value.dtype]
                places.append(place)
                views.append(view)
                self._alive.append(weakref.ref(value, lambda _: found.clear()))
        found += groups.values()


def _identities(values: Sequence[Tensor | None]) -> tuple[list[int], list[int]]:
    return list(map(id, values)), [value._version if value is not None else -1 for value in values]


def _entries(value: Tensor | None) -> Tensor | None:
    """A few entries, as a view; None where there are not so many, or they have no ordinary place."""
    if value is None or value.numel() < _ENTRIES or not value.is_contiguous():
        return None
    if value.device.type == "meta" or not has_memory(value):
        return None
    return value.detach().view(-1).narrow(0, (value.numel() - _ENTRIES) // 2, _ENTRIES)


def _sources_of(matrix: Matrix) -> Iterator[_Source]:
    """All parameters that its values come from; of a layer that has them in some other form, every one it has."""
    module, attribute = matrix.module, matrix.attribute
    if isinstance(module, Adapter):
        wanted, layer = {id(parameter) for parameter in module.parameters()}, module.layer
    elif attribute in module._parameters and not parametrize.is_parametrized(module, attribute):
        yield _Source(matrix.parameter, module._parameters, attribute)
        return
    else:
        wanted, layer = {id(parameter) for parameter in module.parameters()}, module
    for inner in layer.modules():
        for key, parameter in inner._parameters.items():
            if id(parameter) in wanted:
                yield _Source(matrix.parameter, inner._parameters, key)
