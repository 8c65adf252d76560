"""Tables as a run has them, made without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

STEPS = [0, 1, 2, 5, 10, 30, 100]
NAMES = ["h.0.attn.weight[q]", "h.0.mlp.weight", "h.1.attn.weight[q]", "h.1.mlp.weight"]


def table(
    names: list[str] = NAMES,
    steps: list[int] = STEPS,
    null: tuple[int, ...] = (16, 17),
    nan_at: int | None = None,
) -> pd.DataFrame:
    """Measurements whose rank is (place of the matrix) + (place of the step)."""
    rows: list[dict[str, Any]] = []
    for at, step in enumerate(steps):
        for place, name in enumerate(names):
            finite = step != nan_at
            rank = at + place if finite else pd.NA
            ratio = 0.5 + 0.01 * at + 0.001 * place if finite else np.nan
            rows.append(
                {
                    "step": step,
                    "time": float(step),
                    "matrix": name,
                    "intrinsic_rank": rank,
                    "running_rank": rank,
                }
                | {"explained_ratio": ratio, "stable_rank": ratio, "layer_rank": pd.NA}
                | {"null_rank": null[place % len(null)]}
            )
    frame = pd.DataFrame(rows)
    frame["matrix"] = pd.Categorical(frame["matrix"], categories=names)
    return frame.astype(dict.fromkeys(("intrinsic_rank", "running_rank", "layer_rank", "null_rank"), "Int32"))


def spectra(steps: list[int] = STEPS, count: int = 24) -> pd.DataFrame:
    """Descending singular values that grow from zero; a few strong ones over a slow tail."""
    shape = 10.0 * np.exp(-np.arange(count) / 2.0) + np.linspace(1.0, 0.2, count)
    values = np.sqrt(np.array(steps, dtype=float))[:, None] * shape
    return pd.DataFrame(values, pd.Index(steps, name="step"), pd.RangeIndex(1, count + 1))
