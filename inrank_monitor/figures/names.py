"""Matrix names as a reader sees them: escaped, short, and sorted into families."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

import numpy as np

from inrank_monitor.naming import without_weight

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def plotly_text(text: object) -> str:
    """Text that Plotly shows letter by letter: labels may hold HTML tags and templates."""
    return html.escape(str(text), quote=False).replace("%{", "&#37;{")


def shorten(name: str, width: int, ellipsis: str = "…") -> str:
    """Cut from the middle, keeping more of the end, where matrix names differ.

    >>> shorten("transformer.h.10.attn.c_attn", 20)
    'transfo….attn.c_attn'
    """
    if len(name) <= width:
        return name
    room = max(width - len(ellipsis), 2)
    tail = (room * 3 + 4) // 5
    return name[: room - tail] + ellipsis + name[len(name) - tail :]


def short_names(names: Iterable[str], width: int = 32, ellipsis: str = "…") -> dict[str, str]:
    """A label of at most about `width` letters for each name, distinct wherever the names are.

    First goes `.weight`, then the leading components that all names share, then the middle.

    >>> short_names(["gpt.h.0.attn.weight[q]", "gpt.h.1.mlp.weight"], width=12)
    {'gpt.h.0.attn.weight[q]': '0.attn[q]', 'gpt.h.1.mlp.weight': '1.mlp'}
    """
    originals = list(dict.fromkeys(names))
    labels = list(originals)
    for shorter in (
        _without_weight,
        _without_common_start,
        lambda ls: [shorten(x, width, ellipsis) for x in ls],
    ):
        if max(map(len, labels), default=0) <= width:
            break
        candidate = shorter(labels)
        if len(set(candidate)) == len(labels):
            labels = candidate
    return dict(zip(originals, labels, strict=True))


def _without_weight(labels: Sequence[str]) -> list[str]:
    return [without_weight(label) for label in labels]


def _without_common_start(labels: Sequence[str]) -> list[str]:
    parts = [label.split(".") for label in labels]
    shared = 0
    while len(labels) > 1 and all(len(p) > shared + 1 for p in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [".".join(p[shared:]) for p in parts]


def families(names: Iterable[str]) -> dict[str, str]:
    """Each name's family: the name with its block number replaced by a star.

    >>> families(["h.0.attn[q]", "h.1.attn[q]", "head"])
    {'h.0.attn[q]': 'h.*.attn[q]', 'h.1.attn[q]': 'h.*.attn[q]', 'head': 'head'}
    """
    return {name: _NUMBER.sub("*", name) for name in names}


def representative(names: Iterable[str], limit: int = 24, keep: Iterable[str] = ()) -> list[str]:
    """`limit` names, or all if there are fewer, spread over families and over depth, in the given order.

    Args:
        names: all names, in model order.
        limit: how many may stay.
        keep: names that must be among them (as far as `limit` allows).
    """
    everything = list(dict.fromkeys(names))
    if len(everything) <= limit:
        return everything
    chosen = [name for name in dict.fromkeys(keep) if name in set(everything)][:limit]
    members: dict[str, list[str]] = {}
    for name, family in families(everything).items():
        members.setdefault(family, []).append(name)
    groups = list(members.values())
    if len(groups) > limit:
        groups = [groups[i] for i in np.linspace(0, len(groups) - 1, limit).round().astype(int)]
    each = max((limit - len(chosen)) // len(groups), 1)
    for group in groups:
        picks = np.unique(np.linspace(0, len(group) - 1, min(each, len(group))).round().astype(int))
        chosen += [group[i] for i in picks if group[i] not in chosen]
    rest = [name for name in everything if name not in set(chosen)]
    if len(chosen) < limit:
        chosen += [rest[i] for i in np.linspace(0, len(rest) - 1, limit - len(chosen)).round().astype(int)]
    kept = set(chosen[:limit])
    return [name for name in everything if name in kept]
