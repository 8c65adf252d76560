"""Figures of Theorem 2."""

from __future__ import annotations

import math

import numpy as np
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from inrank.experiments.theorem_2.flows import sets_of
from inrank.experiments.theorem_2.order import generator_of
from inrank.experiments.theorem_2.statements import Cells
from inrank.experiments.theorem_2.training import logged_modes, start_of
from inrank.reproduction.experiment import Figure, Outcomes
from inrank.theory import (
    gradient_flow,
    learning_time,
    mode_strength,
    orthogonal_start,
    random_target,
    unbalanced_mode_strength,
)
from inrank_monitor.figures import TEMPLATE, category, logarithmic, more_ink, new_figure, spectrum_evolution

PANELS = tuple((a, b) for a in (0.1, 1.0) for b in (0.01, 0.1, 1.0))
_UNTIL = 5.0  # in units of τ over the weakest s


def all_figures(modes: int, cells: Cells, outcomes: Outcomes) -> list[Figure]:
    """In the order of the page."""
    found = [_figure_2(modes), _ratio(cells), _times(modes), _negative()]
    return found + ([_training(outcomes), _layer(outcomes)] if outcomes else [])


def _figure_2(modes: int) -> Figure:
    sets = sets_of(PANELS, modes, seed=0)
    fine, coarse = (torch.linspace(0, _UNTIL, count, dtype=torch.float64, device="cpu") for count in (201, 26))
    flow = sets.target.strengths_in(sets.updates(coarse))
    titles = [f"a = {a:g}, b = {b:g}" for a, b in PANELS]
    figure = make_subplots(2, 3, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.16)
    figure.update_layout(template=TEMPLATE, height=620, uirevision="keep", showlegend=False)
    for place in range(len(PANELS)):
        s, u0, tau = sets.target.strengths[place], sets.a0[place] ** 2, float(sets.scale[place])
        curves = mode_strength(s, u0, fine[:, None], tau)
        at = {"row": place // 3 + 1, "col": place % 3 + 1}
        for mode in range(modes):
            ink = more_ink(1 - (mode + 1) / modes)
            name = f"s = {float(s[mode]):.3g}, u0 = {float(u0[mode]):.3g}"
            figure.add_scatter(
                x=(fine / tau).numpy(), y=curves[:, mode].numpy(), mode="lines", line={"color": ink}, name=name, **at
            )
            dots = {"color": ink, "size": 5}
            figure.add_scatter(
                x=(coarse / tau).numpy(),
                y=flow[:, place, mode].numpy(),
                mode="markers",
                marker=dots,
                name=f"{name}, integrated",
                **at,
            )
    figure.update_xaxes(title_text="time t/τ", row=2)
    figure.update_yaxes(title_text="mode of D_t", col=1)
    return Figure(
        "Figure 2: every mode of D_t over time",
        figure,
        f"Lines: eq. 4 for s = a·i, i = 1..{modes}, more ink for larger s; dots: the integrated flow of W² W¹.",
        "One after the other where b is far below a (left); together, and partly downwards, where not (upper right). "
        "Panels of equal b/a have the same shapes.",
    )


def _ratio(cells: Cells) -> Figure:
    figure = new_figure("", "b/a: scale of the start over the weakest s", "")
    ordered = sorted(cells, key=lambda cell: cell[1] / cell[0])
    ratios = np.array([b / a for a, b in ordered])
    names = {"order": "rank correlation of time to half with s", "increment": "effective rank at half, over the final"}
    for place, (number, name) in enumerate(names.items()):
        values = np.array([[one[number] for one in cells[cell]] for cell in ordered])
        error = {"array": values.std(axis=1, ddof=1)} if values.shape[1] > 1 else None
        figure.add_scatter(
            x=ratios, y=values.mean(axis=1), error_y=error, mode="markers", name=name, marker_color=category(place)
        )
    figure.update_xaxes(**logarithmic(ratios))
    return Figure(
        "Where the order is kept",
        figure,
        "A point for each a (0.1 to 1.0) and b, means over draws of u0, bars: standard deviation over seeds.",
        "The paper's two dials are one: only b/a matters. −1 is the order strongest first, 0 is chance.",
    )


def _times(modes: int) -> Figure:
    s = torch.logspace(-1, 1, 41, dtype=torch.float64, device="cpu")
    figure = new_figure("", "target strength s", "time to half, t/τ")
    for place, u0 in enumerate((1e-4, 1e-2, 1e-1, 1.0)):
        figure.add_scatter(
            x=s.numpy(), y=learning_time(s, u0).numpy(), mode="lines", name=f"u0 = {u0:g}", line_color=category(place)
        )
    figure.add_scatter(
        x=s.numpy(), y=(3 / s).numpy(), mode="lines", name="falling as 1/s", line={"color": "#8c8c8c", "dash": "dot"}
    )
    figure.update_xaxes(**logarithmic(s.numpy()))
    figure.update_yaxes(**logarithmic(np.array([0.1, 50.0])))
    return Figure(
        "How much faster a strong mode is",
        figure,
        "Time until a mode of D_t is half learned (eq. 13), for several u0; dotted: a slope of −1.",
        "For u0 ≪ s the time falls about as 1/s, not exponentially; for u0 ≫ s it is the same for all modes.",
    )


def _negative(s: float = 1.0, u0: float = -0.05) -> Figure:
    fine, coarse = (torch.linspace(0, 6, count, dtype=torch.float64, device="cpu") for count in (301, 31))
    root = abs(u0) ** 0.5
    target = random_target([s], 4, 5, generator_of(0))
    start = orthogonal_start(target, [root], [-root], generator_of(0))
    flow = target.strengths_in(gradient_flow(*start, target.correlation, coarse))[:, 0]
    literal = s / (1 + (s / u0 - 1) * torch.exp(-2 * s * fine)) - u0
    curves: dict[str, tuple[Tensor, Tensor, str]] = {
        "eq. 4, taken literally": (fine, torch.where(literal.abs() < 2.5 * s, literal, torch.nan), "lines"),
        "eq. 4 with |u0|": (fine, mode_strength(s, -u0, fine), "lines"),
        "true solution, b = −a": (fine, unbalanced_mode_strength(s, root, -root, fine), "lines"),
        "integrated flow": (coarse, flow, "markers"),
    }
    figure = new_figure("", "time t/τ", "mode of D_t")
    for place, (name, (x, y, mode)) in enumerate(curves.items()):
        figure.add_scatter(
            x=x.numpy(), y=y.numpy(), mode=mode, name=name, line_color=category(place), marker_color=category(2)
        )
    return Figure(
        f"A negative u0 ({u0:g}, s = {s:g})",
        figure,
        "The mode from b = −a: the true solution and the integrated flow, and what eq. 4 gives for u0 and for |u0|.",
        "The flow ends at a saddle, with D_t's mode at |u0| and nothing learned; eq. 4 has a pole there.",
    )


def _training(outcomes: Outcomes) -> Figure:
    outcome = next(iter(outcomes.values()))
    target, u0, _, _ = start_of(outcome.training.settings)
    steps, modes = logged_modes(outcome)
    fine = torch.logspace(0, math.log10(float(steps[-1])), 301, dtype=torch.float64, device="cpu")
    curves = mode_strength(target.strengths, u0, fine[:, None], 1 / outcome.training.settings["rate"])
    figure = new_figure("", "step", "mode of D_t")
    count = modes.shape[1]
    for mode in range(count):
        ink = more_ink(1 - (mode + 1) / count)
        name = f"s = {float(target.strengths[mode]):.3g}"
        figure.add_scatter(
            x=fine.numpy(), y=curves[:, mode].numpy(), mode="lines", line_color=ink, name=f"{name}, eq. 4"
        )
        dots = {"color": ink, "size": 5}
        figure.add_scatter(
            x=steps.numpy(), y=modes[:, mode].numpy(), mode="markers", marker=dots, name=f"{name}, trained"
        )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(**logarithmic(steps.numpy()))
    return Figure(
        f"Gradient descent ({outcome.training.name})",
        figure,
        "Dots: modes of W² W¹ − its start, logged in training; lines: eq. 4 with τ = 1/η, nothing fitted.",
        "Dots on the lines: descent with a small step is the theorem's flow, from the start that it asks for.",
    )


def _layer(outcomes: Outcomes) -> Figure:
    run = next(iter(outcomes.values())).tables
    name = str(run.matrices.index[-1])
    return Figure(
        "What the tracker sees of it",
        spectrum_evolution(run.singular_values(name), name, log_steps=True),
        "Singular values of the second layer's update over steps, as the dashboard draws them.",
        "They are √u − √u0: a layer's update shows the product's order of learning.",
    )
