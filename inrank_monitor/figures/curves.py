"""Curves of several runs as numbers: smoothed, laid over each other, their mean and spread. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from inrank_monitor.figures.tables import thin


@dataclass(frozen=True)
class Curve:
    """A quantity of one run along an axis.

    Attributes:
        x: (n,), ascending, finite.
        y: (n,), NaN where it is not known or not finite.
        held: whether a value holds until the next one, as a rank does; else the curve is straight in between.
    """

    x: np.ndarray
    y: np.ndarray
    held: bool = False

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, held: bool = False, log_x: bool = False) -> Curve:
        """Points in any order, those that lie nowhere left out, and on a logarithmic axis those at 0."""
        kept = np.isfinite(x) & (x > 0) if log_x else np.isfinite(x)
        order = np.argsort(x[kept], kind="stable")
        return cls(x[kept][order], y[kept][order], held)

    def smoothed(self, weight: float) -> Curve:
        """With `smooth` of its values."""
        return replace(self, y=smooth(self.y, weight))

    def thinned(self, limit: int) -> Curve:
        """At most about so many points; the first, the last and all extremes stay."""
        kept = thin(self.y, limit)
        return replace(self, x=self.x[kept], y=self.y[kept])

    def at(self, x: np.ndarray) -> np.ndarray:
        """The values at other places; NaN outside of the curve, and beside a value that is NaN.

        Of several values at one place the last counts.
        """
        values = np.full(len(x), np.nan)
        if not len(self.x):
            return values
        place = np.searchsorted(self.x, x, side="right") - 1
        inside = (place >= 0) & (x <= self.x[-1])
        left = np.clip(place, 0, len(self.x) - 1)
        if self.held:
            return np.where(inside, self.y[left], np.nan)
        right = np.minimum(left + 1, len(self.x) - 1)
        width = self.x[right] - self.x[left]
        share = np.divide(x - self.x[left], width, out=np.zeros(len(x)), where=width > 0)
        between = self.y[left] + share * (self.y[right] - self.y[left])
        return np.where(inside, np.where(x == self.x[left], self.y[left], between), np.nan)


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential mean with its bias towards 0 taken out, s_t = Σ wⁱ v_{t−i} / Σ wⁱ, as TensorBoard draws it.

    Args:
        values: (n,); one that is not finite is passed over, and is NaN in the answer.
        weight: w, in [0, 1); 0 leaves the values as they are.

    Raises:
        ValueError: a weight out of range.
    """
    if not 0 <= weight < 1:
        raise ValueError(f"smoothing must be at least 0 and less than 1, got {weight!r}")
    finite = np.isfinite(values)
    known = pd.Series(np.where(finite, values, np.nan))
    means = known.ewm(alpha=1 - weight, adjust=True, ignore_na=True).mean().to_numpy()
    return np.where(finite, means, np.nan)


@dataclass(frozen=True)
class MeanCurve:
    """Mean and standard deviation of some curves.

    Attributes:
        mean: as a curve.
        deviation: (n,) sample standard deviation, ddof 1; of one curve 0.
        count: of curves.
    """

    mean: Curve
    deviation: np.ndarray
    count: int

    def thinned(self, limit: int) -> MeanCurve:
        """As `Curve.thinned`, by the mean."""
        kept = thin(self.mean.y, limit)
        mean = replace(self.mean, x=self.mean.x[kept], y=self.mean.y[kept])
        return MeanCurve(mean, self.deviation[kept], self.count)


def mean_and_spread(curves: Sequence[Curve]) -> MeanCurve:
    """Mean and standard deviation of curves, wherever all of them are known.

    Where the curves have points at other places, each is taken at the points of all, from where the last one begins to
    where the first one ends. Where one of them is NaN there is no mean: the rest of a group is not the group.

    Args:
        curves: at least one.
    """
    first = curves[0]
    if len(curves) == 1:
        return MeanCurve(first, np.zeros(len(first.x)), 1)
    if all(np.array_equal(first.x, other.x) for other in curves[1:]) and len(np.unique(first.x)) == len(first.x):
        x, values = first.x, np.stack([curve.y for curve in curves])
    elif any(not len(curve.x) for curve in curves):
        x, values = np.array([]), np.zeros((len(curves), 0))
    else:
        begin, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
        x = np.unique(np.concatenate([curve.x for curve in curves]))
        x = x[(x >= begin) & (x <= end)]
        values = np.stack([curve.at(x) for curve in curves])
    return MeanCurve(Curve(x, values.mean(axis=0), first.held), values.std(axis=0, ddof=1), len(curves))
