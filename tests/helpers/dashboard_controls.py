"""Every control of the views with figures: how to use it, what is drawn then, and how to take it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import plotly.graph_objects as go
from helpers.dashboard_widgets import Act, add, clear, number, select, slide, toggle, write
from helpers.expected_figures import Drawn, comparison

from inrank_monitor.figures.tables import column_title

MATRIX = "h.1.mlp.c_fc.weight"


class Control(NamedTuple):
    """A control: its view, how to use it, what is drawn then, and how to take it back."""

    view: str
    name: str
    act: Act
    then: Callable[[Drawn], list[go.Figure]]
    back: Act


AT_FIRST: dict[str, Callable[[Drawn], list[go.Figure]]] = {
    "Overview": Drawn.overview,
    "Rank evolution": Drawn.evolution,
    "Spectrum density": Drawn.density,
    "Spectrum evolution": Drawn.spectra,
    "Explained ratio": Drawn.explained,
    "Compare": lambda first: comparison({"first": first}),
}
OVERVIEW, LINES, DENSITY, SPECTRA, RATIO, _ = AT_FIRST
CONTROLS = [
    Control(
        OVERVIEW,
        "Colour",
        select("Colour", "stable rank"),
        lambda first: first.overview("stable_rank"),
        select("Colour", "rank over null rank"),
    ),
    Control(
        OVERVIEW,
        "Blocks",
        add("Blocks", "block 1"),
        lambda first: first.overview(names=first.group("block", "block 1")),
        clear("Blocks"),
    ),
    Control(
        OVERVIEW,
        "Kinds of matrix",
        add("Kinds of matrix", "q", "MLP in"),
        lambda first: first.overview(names=first.group("role", "q", "MLP in")),
        clear("Kinds of matrix"),
    ),
    Control(
        OVERVIEW,
        "Colour of the whole run",
        select("Colour", "trend of the rank"),
        lambda first: first.overview("trend", title="trend of the rank"),
        select("Colour", "rank over null rank"),
    ),
    Control(OVERVIEW, "Step", slide("Step", "ArrowLeft"), lambda first: first.overview(step=30), slide("Step", "End")),
    Control(
        OVERVIEW,
        "Filter, a glob",
        write("Filter", "h.1.*c_fc"),
        lambda first: first.overview(names=[MATRIX]),
        write("Filter", ""),
    ),
    Control(
        OVERVIEW,
        "Filter, a regular expression",
        write("Filter", r"h\.\d\.mlp"),
        lambda first: first.overview(names=["h.0.mlp.c_fc.weight", MATRIX]),
        write("Filter", ""),
    ),
    Control(LINES, "Draw", select("Draw", "heat map"), Drawn.heatmap, select("Draw", "lines")),
    Control(
        LINES,
        "Blocks",
        add("Blocks", "block 1"),
        lambda first: first.evolution(names=first.group("block", "block 1")),
        clear("Blocks"),
    ),
    Control(
        LINES,
        "Kinds of matrix",
        add("Kinds of matrix", "v"),
        lambda first: first.evolution(names=first.group("role", "v")),
        clear("Kinds of matrix"),
    ),
    Control(
        LINES,
        "Quantity",
        select("Quantity", column_title("effective_rank")),
        lambda first: first.evolution("effective_rank"),
        select("Quantity", column_title("intrinsic_rank")),
    ),
    Control(
        LINES,
        "Colour by block",
        select("Colour by", "block"),
        lambda first: first.evolution(level="block"),
        select("Colour by", "kind"),
    ),
    Control(
        LINES,
        "Colour by matrix",
        select("Colour by", "matrix"),
        lambda first: first.evolution(level=None),
        select("Colour by", "kind"),
    ),
    Control(
        LINES, "Log steps", toggle("Log steps"), lambda first: first.evolution(log_steps=True), toggle("Log steps")
    ),
    Control(
        DENSITY,
        "Matrix",
        select("Matrix", MATRIX),
        lambda first: first.density(MATRIX),
        select("Matrix", "h.0.attn.c_attn.weight[q]"),
    ),
    Control(
        DENSITY,
        "At one step",
        select("At", "one step"),
        lambda first: first.density(steps=[40]),
        select("At", "two steps"),
    ),
    Control(
        DENSITY,
        "At all steps",
        select("At", "all steps"),
        lambda first: first.density(steps=[10, 20, 30, 40], null=False),
        select("At", "two steps"),
    ),
    Control(
        DENSITY,
        "by number",
        select("Weigh values", "by number"),
        lambda first: first.density(kind="count"),
        select("Weigh values", "by strength"),
    ),
    Control(
        DENSITY,
        "by index",
        select("Weigh values", "by index"),
        lambda first: first.density(kind="profile"),
        select("Weigh values", "by strength"),
    ),
    Control(DENSITY, "Log σ", toggle("Log σ"), lambda first: first.density(log=False), toggle("Log σ")),
    Control(
        DENSITY, "Beside noise", toggle("Beside noise"), lambda first: first.density(null=False), toggle("Beside noise")
    ),
    Control(
        DENSITY,
        "From step",
        lambda page: [slide("From step to step", "ArrowRight")(page) for _ in range(2)],
        lambda first: first.density(steps=[20, 40]),
        slide("From step to step", "Home"),
    ),
    Control(
        DENSITY,
        "to step",
        slide("From step to step", "ArrowLeft", 1),
        lambda first: first.density(steps=[10, 30]),
        slide("From step to step", "End", 1),
    ),
    Control(
        SPECTRA,
        "Matrices",
        add("Matrices", "h.0.attn.c_proj.weight", MATRIX),
        lambda first: first.spectra(["h.0.attn.c_proj.weight", MATRIX]),
        clear("Matrices"),
    ),
    Control(
        SPECTRA,
        "Lines a panel",
        number("Lines a panel", 3),
        lambda first: first.spectra(count=3),
        number("Lines a panel", 32),
    ),
    Control(SPECTRA, "Log σ", toggle("Log σ"), lambda first: first.spectra(log=True), toggle("Log σ")),
    Control(
        SPECTRA, "Log steps", toggle("Log steps"), lambda first: first.spectra(log_steps=True), toggle("Log steps")
    ),
    Control(
        RATIO,
        "Matrix",
        select("Matrix", MATRIX),
        lambda first: first.explained(MATRIX),
        select("Matrix", "h.0.attn.c_attn.weight[q]"),
    ),
    Control(RATIO, "Step", slide("Step", "ArrowLeft"), lambda first: first.explained(step=30), slide("Step", "End")),
    Control(
        RATIO, "Beside noise", toggle("Beside noise"), lambda first: first.explained(null=False), toggle("Beside noise")
    ),
    Control(RATIO, "Log rank", toggle("Log rank"), lambda first: first.explained(log_rank=False), toggle("Log rank")),
    Control(
        RATIO, "Log steps", toggle("Log steps"), lambda first: first.explained(log_steps=True), toggle("Log steps")
    ),
    Control(
        RATIO,
        "Blocks",
        add("Blocks", "block 0"),
        lambda first: first.explained(names=first.group("block", "block 0")),
        clear("Blocks"),
    ),
    Control(
        RATIO,
        "Kinds of matrix",
        add("Kinds of matrix", "k"),
        lambda first: first.explained(names=first.group("role", "k")),
        clear("Kinds of matrix"),
    ),
]


COMPARED: dict[str, tuple[Act, Callable[[dict[str, Drawn]], list[go.Figure]], Act]] = {
    "Matrix": (
        select("Matrix", MATRIX),
        lambda both: comparison(both, matrix=MATRIX),
        select("Matrix", "mean over all matrices"),
    ),
    "Quantity": (
        select("Quantity", column_title("stable_rank")),
        lambda both: comparison(both, "stable_rank"),
        select("Quantity", column_title("intrinsic_rank")),
    ),
    "x axis, share": (
        select("x axis", "share of training"),
        lambda both: comparison(both, axis="share"),
        select("x axis", "step"),
    ),
    "x axis, wall-clock": (
        select("x axis", "wall-clock"),
        lambda both: comparison(both, axis="time"),
        select("x axis", "step"),
    ),
    "Log x": (toggle("Log x"), lambda both: comparison(both, log_x=True), toggle("Log x")),
    "Log y": (toggle("Log y"), lambda both: comparison(both, log_y=True), toggle("Log y")),
    "Smoothing": (
        slide("Smoothing", "End"),
        lambda both: comparison(both, smoothing=0.99),
        slide("Smoothing", "Home"),
    ),
    "Logged value": (
        select("Logged value", "tracker_overhead"),
        lambda both: comparison(both, scalar="tracker_overhead", title="tracker_overhead"),
        select("Logged value", "training loss"),
    ),
    "Runs": (clear("Runs"), lambda both: [], add("Runs", "first", "second")),
}
