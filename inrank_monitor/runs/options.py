"""How a run is measured and kept: one frozen object, from `attach` or `scan` through to run.json and back.

run.json holds it whole, as its entry `options`. An entry that is missing there was written by a version that did not
know it, and has its default; one that this version does not know is left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from inrank_monitor.ranks import Definition, RankRule

InitialWeightsPlace = Literal["disk", "memory", "device", "checkpoint"]


@dataclass(frozen=True)
class RunOptions:
    """What `attach` and `scan` were asked for; their docstrings say what each means.

    Attributes:
        initial_weights: `"checkpoint"` is a scan's: W0 is a file that was there before.

    Raises:
        ValueError: one of them is out of range; the message names it.
    """

    threshold: float = 0.9
    buffer_rank: int | None = None
    definition: Definition = "paper"
    leading: int | None = None
    density: bool = False
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    embeddings: bool = False
    split_parts: bool = True
    parts: Mapping[str, Any] | None = None
    every: int | None = None
    max_overhead: float = 0.01
    initial_weights: InitialWeightsPlace = "disk"
    tensorboard: bool | Literal["matrices"] = True
    strict: bool = False
    of: str | Sequence[str] = ("update",)
    directions: bool | int | None = None

    def __post_init__(self) -> None:
        if self.initial_weights not in ("disk", "memory", "device", "checkpoint"):
            raise ValueError(f"initial_weights must be 'disk', 'memory' or 'device', got {self.initial_weights!r}")
        if not isinstance(self.tensorboard, bool) and self.tensorboard != "matrices":
            raise ValueError(f"tensorboard must be True, False or 'matrices', got {self.tensorboard!r}")
        self.rule  # noqa: B018 - checks its three
        check_leading(self.leading, self.density)
        object.__setattr__(self, "of", check_of(self.of))
        object.__setattr__(self, "directions", check_directions(self.directions))

    @property
    def rule(self) -> RankRule:
        """How ranks are drawn."""
        return RankRule(self.threshold, self.buffer_rank, self.definition)

    @property
    def asks_beside(self) -> bool:
        """Whether anything is measured beside the spectra of updates."""
        return "weight" in self.of or self.directions is not None

    @property
    def stored(self) -> int | None:
        """How many singular values are logged of each spectrum; None: all of them."""
        return None if self.density else self.leading

    @property
    def measured(self) -> int | None:
        """How many values of a spectrum were measured, where those after them are estimates; None: there are none."""
        return self.leading if self.density else None

    @property
    def selection(self) -> dict[str, Any]:
        """What `find_matrices` is asked for."""
        return {name: getattr(self, name) for name in ("include", "exclude", "embeddings", "split_parts", "parts")}

    def to_json(self) -> dict[str, Any]:
        """As run.json has it."""
        given = {field.name: getattr(self, field.name) for field in fields(self)} | {"parts": _plain(self.parts)}
        return {name: sorted(value) if isinstance(value, set) else value for name, value in given.items()}

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """As they were written.

        Raises:
            ValueError: one of them is out of range.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in entries.items() if name in known}
        return cls(**given | {"threshold": float(entries["threshold"])})  # JSON writes 1.0 as it likes

    def differences(self, other: RunOptions) -> list[tuple[str, Any, Any]]:
        """(name, here, there) of what decides the measurements; two parts of one run may not differ in it."""
        names = ("threshold", "buffer_rank", "definition", "leading", "density")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        pairs.append(("parts", _plain(self.parts), _plain(other.parts)))
        return [(name, here, there) for name, here, there in pairs if here != there]


def _plain(parts: Mapping[str, Any] | None) -> Any:
    """As JSON has it, in which tuples are lists; nothing given and nothing in it are the same."""
    return json.loads(json.dumps(parts)) if parts else None


def check_of(of: Any) -> tuple[str, ...]:
    """As a tuple, `("update",)` or `("update", "weight")`.

    Raises:
        ValueError: it is something else.
    """
    given = (of,) if isinstance(of, str) else tuple(of) if isinstance(of, Sequence) else ()
    if "update" not in given or set(given) - {"update", "weight"}:
        raise ValueError(f"of must be 'update' or ('update', 'weight'), got {of!r}")
    return ("update", "weight") if "weight" in given else ("update",)


def check_directions(directions: Any) -> int | None:
    """How many leading directions; 16 for True, None for none.

    Raises:
        ValueError: no number of at least 1.
    """
    if directions is None or directions is False:
        return None
    if directions is True:
        return 16
    if not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions must be True, False or an integer of at least 1, got {directions!r}")
    return directions


def check_leading(leading: int | None, density: bool = False) -> None:
    """Raise a ValueError unless `leading` is None or an integer of at least 2; `density` needs it."""
    if leading is not None and (isinstance(leading, bool) or not isinstance(leading, int) or leading < 2):
        raise ValueError(f"leading must be an integer of at least 2, got {leading!r}")
    if density and leading is None:
        raise ValueError(
            "density=True estimates the values after the leading ones: give leading, how many are measured"
        )
