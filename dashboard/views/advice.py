"""Which rank would have been enough, and what it would save."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from inrank_monitor.advice import advice_csv, advice_table, lora_config, lora_json, rank_pattern, savings
from views.choices import URL
from views.page import Page, download, explain

_COLUMNS = {
    "matrix": st.column_config.TextColumn("Matrix", pinned=True),
    "shape": "Shape",
    "rank": st.column_config.NumberColumn(
        "Rank", help="The rank that is enough for the last measured update: least r with explained ratio ≥ α."
    ),
    "peak_rank": st.column_config.NumberColumn("Peak", help="The highest rank so far, the first steps left out."),
    "null_rank": st.column_config.NumberColumn("Null", help="The rank that the same rule gives noise."),
    "rank_over_null": st.column_config.NumberColumn("Rank / null", format="%.2f"),
    "break_even_rank": st.column_config.NumberColumn("Break-even", help="The largest rank that saves anything."),
    "parameters_saved": st.column_config.NumberColumn("Params saved", format="localized"),
    "multiply_adds_saved": st.column_config.NumberColumn(
        "MACs saved", format="localized", help="Multiply-adds a token, or an output position of a convolution."
    ),
    "share_saved": st.column_config.ProgressColumn("Share saved", format="percent", min_value=0, max_value=1),
    "verdict": "Verdict",
}


class Choice(NamedTuple):
    """The most that LoRA shall get."""

    max_rank: int | None


def choose(page: Page) -> Choice:
    """A cap for LoRA."""
    explain(
        "For each matrix the rank that is enough for its update at α, beside the rank of noise, and what a layer "
        "of two thin factors of that rank would save over the full matrix.",
        "A rank far below break-even and far below the null rank is worth using. Where the rank is like that of "
        "noise, it says nothing: train longer, or look at the spectrum itself.",
    )
    left, _ = st.columns(2)
    with left:
        cap = st.number_input("Highest LoRA rank (0: no limit)", 0, 100_000, 0, key="max_rank", **URL)
    return Choice(int(cap) or None)


def show(page: Page, choice: Choice) -> None:
    """Sum, table and downloads."""
    state = page.state
    table = advice_table(state.matrices, state.measurements)
    total = savings(table)
    first, second, third = st.columns(3)
    first.metric("Matrices where a low rank saves", f"{total['matrices']} of {len(table)}")
    second.metric(
        "Parameters saved",
        f"{total['parameters']:,}",
        f"{total['share']:.0%} of what is watched",
        "off",
        delta_arrow="off",
    )
    third.metric("Multiply-adds saved a token", f"{total['multiply_adds']:,}")
    shape = table["rows"].astype(str) + "×" + table["cols"].astype(str)
    shown = table.assign(shape=shape).reset_index(names="matrix")[list(_COLUMNS)]
    st.dataframe(
        shown,
        key="advice",
        column_config=_COLUMNS,
        hide_index=True,
        height=min(38 + 35 * max(len(shown), 1), 620),
        alt=f"Table of {len(shown)} matrices with the rank that is enough and what it saves",
    )
    with st.container(horizontal=True):
        download("Advice as CSV", lambda: advice_csv(table), f"advice-{state.name}.csv", "text/csv", "advice csv")
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
