"""Where a matrix stands in its model: how deep, and which kind it is there. Rows and columns of a map of all of them.

Told from names, as roles are. Blocks within blocks (`layers.2.blocks.0`) and several stacks (an encoder and a decoder)
are columns of their own; experts lie side by side, so their numbers are no depth. A kind is a role; where two matrices
of one block would share it (two attentions of a decoder, two convolutions), it is told apart by the rest of the name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from inrank_monitor.matrices.roles import OTHER, matrix_groups
from inrank_monitor.naming import without_weight

NO_DEPTH = "outside"
MOST_KINDS = 40
_STACK = re.compile(r"(?:^|[._])(h|blocks?|layers?|layer_?stack|stages?|resblocks|resnets|attentions|units)$", re.I)
_NUMBERED = re.compile(r"(.*(?:block|layer|stage)s?_?)(\d+)", re.I)  # `encoder_layer_3`, `layer3`
_RECURRENT = re.compile(r"(weight_(?:ih|hh))_l(\d+)(.*)")  # torch's layers of one LSTM or GRU
_BESIDE = re.compile(r"expert", re.I)


class _Place(NamedTuple):
    """A name's stacks and its numbers in them, and what of the name is left."""

    stacks: tuple[str, ...]
    numbers: tuple[int, ...]
    rest: str


def depth_and_kind(matrices: pd.DataFrame) -> pd.DataFrame:
    """`run.matrices` -> depth and kind of each matrix, in the same order, both ordered categories.

    Depths are numbers (`"3"`), with the stack before them where there are several (`"decoder 3"`); what is in no block
    is `"outside"`, the last. Kinds come in the order of the model.
    """
    names = [str(name) for name in matrices.index]
    places = [_place(name) for name in names]
    depths, order = _depths(places)
    kinds = _kinds(list(matrix_groups(matrices)["role"]), places)
    return pd.DataFrame(
        {"depth": pd.Categorical(depths, order), "kind": pd.Categorical(kinds, list(dict.fromkeys(kinds)))},
        matrices.index,
    )


def _place(name: str) -> _Place:
    """The first number in a name is its depth; a later one only in a stack of its own, which experts are not."""
    stacks: list[str] = []
    numbers: list[int] = []
    before: list[str] = []
    parts = [piece for part in without_weight(name).split(".") for piece in _pieces(part)]
    for parent, part in zip(["", *parts], parts, strict=False):
        bare, bracket, tail = part.partition("[")
        beside = bool(_BESIDE.search(parent))
        if bare.isdigit() and not beside and (not numbers or parent.isdigit() or _STACK.search(parent.rstrip("_"))):
            stacks.append(".".join(before))
            numbers.append(int(bare))
            before = [bracket + tail] if bracket else []
        else:
            before.append("*" if bare.isdigit() and beside else part)
    return _Place(tuple(stacks), tuple(numbers), ".".join(before))


def _pieces(part: str) -> list[str]:
    """`layer3` as `layer` and `3`; `weight_ih_l0[f]` as `0` and `weight_ih[f]`."""
    if found := _RECURRENT.fullmatch(part):
        return [found.group(2), found.group(1) + found.group(3)]
    found = _NUMBERED.fullmatch(part)
    return [found.group(1), found.group(2)] if found else [part]


def _depths(places: Sequence[_Place]) -> tuple[list[str], list[str]]:
    """A label for each place, and all labels from the first block to the last."""
    stacks = list(dict.fromkeys(place.stacks for place in places if place.numbers))
    words = _short([".".join(filter(None, stack)) for stack in stacks])
    labels = []
    for place in places:
        number = ".".join(map(str, place.numbers))
        labels.append(f"{words[stacks.index(place.stacks)]} {number}".strip() if number else NO_DEPTH)
    rank = {label: (stacks.index(p.stacks), p.numbers) for label, p in zip(labels, places, strict=True) if p.numbers}
    order = sorted(rank, key=rank.__getitem__)
    return labels, order + ([NO_DEPTH] if NO_DEPTH in labels else [])


def _short(stacks: Sequence[str]) -> list[str]:
    """Names of stacks without what all share at either end; none where there is but one."""
    parts = [stack.split(".") for stack in stacks]
    while parts and all(parts) and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    while parts and all(parts) and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return [".".join(part) for part in parts]


def _kinds(roles: Sequence[str], places: Sequence[_Place]) -> list[str]:
    """Roles, told apart where one block has several names of one role, unless that makes more than fit a map."""
    rests: dict[str, dict[tuple[object, ...], set[str]]] = defaultdict(lambda: defaultdict(set))
    for role, place in zip(roles, places, strict=True):
        rests[role][place.stacks, place.numbers].add(place.rest)
    apart = {role for role, blocks in rests.items() if any(len(each) > 1 for each in blocks.values())}
    apart |= {OTHER} & rests.keys() if any(place.rest for place in places) else set()
    kinds = [
        _apart(role, place.rest) if role in apart and place.rest else role
        for role, place in zip(roles, places, strict=True)
    ]
    return kinds if len(set(kinds)) <= MOST_KINDS else list(roles)


def _apart(role: str, rest: str) -> str:
    return rest if role in (OTHER, "convolution") else f"{role}: {rest}"
