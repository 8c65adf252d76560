"""Which rank is enough, and what training at it would save."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from inrank_monitor.advice import (
    NO_PLAN,
    RankSource,
    advice_csv,
    advice_table,
    lora_config,
    lora_json,
    rank_pattern,
    savings,
)
from inrank_monitor.report import width_table, widths_line
from views.choices import URL, control_row
from views.page import Page, download, explain, file_name, plain

_RANK = st.column_config.NumberColumn
_COLUMNS = {
    "matrix": st.column_config.TextColumn("Matrix", pinned=True),
    "shape": "Shape",
    "rank": _RANK("Rank", help="What is enough for the last measured update. Empty: no advice, see the last column."),
    "intrinsic_rank": _RANK("Paper", help="The paper's rule: least r with explained ratio ≥ α."),
    "rank_from": st.column_config.TextColumn("From", help="What the rank comes from."),
    "energy_share": _RANK("Held", format="percent", help="The share of ‖ΔW‖² that the rank holds."),
    "loss_rank": _RANK("Loss", help="By the loss: the newest result of ranks_by_loss."),
    "energy_rank": _RANK("Energy", help="The least rank that holds 90 % of ‖ΔW‖²."),
    "signal_rank": _RANK("Signal", help="How many singular values stand above the edge of noise."),
    "peak_rank": _RANK("Peak", help="The paper's rule: the highest rank so far, the first steps left out."),
    "null_rank": _RANK("Null", help="The rank that the paper's rule gives noise."),
    "rank_over_null_rank": _RANK("Paper / null", format="%.2f"),
    "break_even_rank": _RANK("Break-even", help="The largest rank whose factors are smaller than the matrix."),
    "trainable_parameters": _RANK("Trainable", format="localized", help="Parameters of two factors of the rank."),
    "trainable_saved": _RANK("Trainable saved", format="localized", help="Parameters that need not be trained."),
    "share_saved": st.column_config.ProgressColumn("Share saved", format="percent", min_value=0, max_value=1),
    "verdict": st.column_config.TextColumn("Spectrum", help="What the spectrum looks like beside that of noise."),
    "advice": "Advice",
}
_WIDTHS = {
    "block": st.column_config.TextColumn("Feed-forward block", pinned=True),
    "advice": st.column_config.TextColumn(
        "If you trained again", help="The width of its hidden layer, and this run's."
    ),
    "parameters_saved": _RANK("Weights saved", format="localized"),
    "share_saved": st.column_config.ProgressColumn("Share saved", format="percent", min_value=0, max_value=1),
    "step": _RANK("Step", help="Of the weights that the plan was made of."),
}
_SOURCES: dict[RankSource | None, str] = {
    None: "loss, else energy",
    "loss": "loss",
    "energy": "90 % of the energy",
    "paper": "the paper's rule",
    "signal": "signal rank",
}


class Choice(NamedTuple):
    """What the ranks come from, and the most that LoRA shall get."""

    rank_from: RankSource | None
    max_rank: int | None


def choose(page: Page) -> Choice:
    """A source of the ranks, and a cap for LoRA."""
    explain(
        "For each matrix the rank that is enough for its update: at which the loss stays, where ranks_by_loss has "
        "measured that, else the rank that holds 90 % of the energy; beside it the other rules' ranks.",
        "Factors of a rank far below break-even leave much less to train: less optimizer state, gradient and update. "
        "W0 stays, so the model gets no smaller. Where the spectrum is like noise's there is no advice.",
    )
    has_loss = not page.run.read(lambda run: run.loss_ranks).empty
    with control_row():
        names = [source for source in _SOURCES if source != "loss" or has_loss]
        labels = [_SOURCES[source] for source in names]
        chosen = st.selectbox("Rank from", labels, key="rank_from", **URL)
        cap = st.number_input("Highest LoRA rank (0: no limit)", 0, 100_000, 0, key="max_rank", **URL)
    return Choice(names[labels.index(chosen)], int(cap) or None)


def show(page: Page, choice: Choice) -> None:
    """Sum, table and downloads."""
    state = page.state
    table = page.run.read(lambda run: advice_table(run, state.measurements, choice.rank_from))
    total = savings(table)
    with st.container(key="savings"):
        first, second, third = st.columns(3)
    first.metric("Matrices where factors save", f"{total['matrices']} of {len(table)}")
    second.metric(
        "Parameters that need not be trained",
        f"{total['trainable_saved']:,}",
        f"{total['share']:.0%} of what is watched",
        "off",
        delta_arrow="off",
    )
    saved = total["optimizer_bytes_saved"] + total["gradient_bytes_saved"]
    third.metric("Adam's state and gradient saved", f"{saved / 1e6:,.1f} MB", "in float32", "off", delta_arrow="off")
    shape = table["rows"].astype(str) + "×" + table["cols"].astype(str)
    shown = table.assign(shape=shape).reset_index(names="matrix")[list(_COLUMNS)]
    if shown["loss_rank"].isna().all():
        shown = shown.drop(columns="loss_rank")
    st.dataframe(
        shown,
        key="advice",
        column_config=_COLUMNS,
        hide_index=True,
        height=min(38 + 35 * max(len(shown), 1), 620),
        alt=f"Table of {len(shown)} matrices with the rank that is enough and what training at it saves",
    )
    with st.container(horizontal=True):
        download(
            "Advice as CSV",
            lambda: advice_csv(table),
            f"{file_name(f'advice-{state.name}')}.csv",
            "text/csv",
            "advice csv",
        )
        if rank_pattern(table, choice.max_rank):
            download(
                "LoraConfig for PEFT (JSON)",
                lambda: lora_json(lora_config(table, choice.max_rank)),
                "lora.json",
                "application/json",
                "lora",
            )
    with st.expander("How to use it with PEFT"):
        st.code(
            "import json\nfrom peft import LoraConfig, get_peft_model\n\n"
            'config = LoraConfig(**json.load(open("lora.json")))\n'
            "model = get_peft_model(model, config)",
            language="python",
        )
    _show_widths(page)


def _show_widths(page: Page) -> None:
    """How wide the feed-forward blocks of a model that is trained again should be, or how to learn it."""
    table = width_table(page.state.width_plans)
    if table.empty:
        st.caption(plain(NO_PLAN))
        return
    line = widths_line(table)
    st.caption(plain(f"{line[0].upper()}{line[1:]}"))
    st.dataframe(
        table.reset_index(names="block")[list(_WIDTHS)],
        key="widths",
        column_config=_WIDTHS,
        hide_index=True,
        height=min(38 + 35 * len(table), 620),
        alt=f"Table of {len(table)} feed-forward blocks with the width that each should have in a model trained again",
    )
