"""What every rule makes of one matrix: its ranks on the spectrum, and on the loss against the rank."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from inrank_monitor.figures import loss_against_rank, spectrum_with_ranks
from inrank_monitor.ranks import noise_edge
from inrank_monitor.runs import RunState
from views.page import Page, show_figure
from views.spectra import null_spectrum, shape

_RULES = {
    "paper's rule": "intrinsic_rank",
    "90 % of the energy": "energy_rank",
    "signal rank": "signal_rank",
    "stable rank": "stable_rank",
    "effective rank": "effective_rank",
}


def show_rules(page: Page, name: str, step: int | None) -> None:
    """Both figures side by side; the loss only where evaluations of it are kept."""
    state = page.state
    values = page.run.singular_values(name)
    row = _measured(state, name, step)
    if row is None or int(row["step"]) not in values.index:
        return
    ranks = {rule: float(row[column]) if pd.notna(row[column]) else np.nan for rule, column in _RULES.items()}
    by_loss = _by_loss(state)
    if name in by_loss.index:
        ranks["by loss"] = float(by_loss.loc[name, "rank"])
    spectrum = values.loc[[int(row["step"])]].to_numpy(dtype=float)[-1]
    spectrum = spectrum[np.isfinite(spectrum)]
    edge = None if state.matrices["in_factors"][name] else float(noise_edge(spectrum, *shape(state, name)))
    left, right = st.columns(2)
    with left:
        figure = spectrum_with_ranks(spectrum, ranks, edge=edge, null=null_spectrum(state, name, state.leading))
        show_figure(figure, f"matrix rules {state.name} {name}", f"Ranks of all rules on the spectrum of {name}")
    curve = state.loss_curve
    curve = curve[curve["time"] == by_loss["time"].iloc[0]] if len(by_loss) else curve.iloc[:0]
    if curve.empty:
        return
    with right:
        figure = loss_against_rank(curve, ranks, tolerance=float(by_loss["tolerance"].iloc[0]), of="every matrix")
        show_figure(figure, f"matrix loss {state.name} {name}", f"Loss against rank, ranks of {name} marked")


def _measured(state: RunState, name: str, step: int | None) -> pd.Series | None:
    """The newest finite measurement of a matrix, or that of a step."""
    rows = state.measurements[state.measurements["matrix"] == name]
    rows = rows[rows["intrinsic_rank"].notna() & ((rows["step"] == step) | (step is None))]
    return None if rows.empty else rows.iloc[-1]


def _by_loss(state: RunState) -> pd.DataFrame:
    """The newest ranks by loss, by matrix."""
    found = state.loss_ranks
    newest: pd.DataFrame = found[found["time"] == found["time"].max()].set_index("matrix")
    return newest
