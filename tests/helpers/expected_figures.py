"""What each view of the dashboard has to draw for a run: the package's own figures of that run's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from inrank_monitor.figures import (
    depth_map,
    explained_ratio_curve,
    explained_ratio_evolution,
    loss_curve,
    mark_noise_in_density,
    mark_noise_over_steps,
    rank_evolution,
    rank_heatmap,
    spectrum_density,
    spectrum_evolution,
)
from inrank_monitor.figures.comparison import loss_comparison, run_comparison
from inrank_monitor.figures.event_marks import mark_events, mark_events_on_heatmap
from inrank_monitor.figures.tables import column_title
from inrank_monitor.matrices.places import depth_and_kind
from inrank_monitor.matrices.roles import matrix_groups
from inrank_monitor.ranks.null_model import null_singular_values
from inrank_monitor.report.digest import matrix_table
from inrank_monitor.report.figure_sections import telling_matrices
from inrank_monitor.report.overview import overview_table, standing_out
from inrank_monitor.runs.recomputation import RankRule
from inrank_monitor.runs.shared_run import SharedRun
from inrank_monitor.runs.timeline import Axis, align


class Drawn:
    """The figures of a run, read anew, by a rule (default: the run's own)."""

    def __init__(self, path: Path, rule: RankRule | None = None) -> None:
        self.run = SharedRun(path)
        self.state = self.run.tables(rule)
        self.matrices = [str(name) for name in self.state.matrices.index]

    def group(self, level: str, *wanted: str) -> list[str]:
        """The matrices of some blocks or kinds."""
        groups = matrix_groups(self.state.matrices)[level]
        return [str(name) for name in groups.index[groups.isin(wanted)]]

    def overview(
        self,
        column: str = "rank_over_null_rank",
        names: Sequence[str] | None = None,
        step: int | None = None,
        title: str | None = None,
    ) -> list[go.Figure]:
        """Map and logged values."""
        rows, events = self.state.measurements, self.state.events
        places = depth_and_kind(self.state.matrices)
        table = overview_table(self.state, places).loc[self.matrices if names is None else list(names)]
        rows = rows.drop_duplicates("matrix", keep="last") if step is None else rows[rows["step"] == step]
        values = table[column] if title else rows.set_index(rows["matrix"].astype(str))[column]
        heat = depth_map(
            values,
            places.loc[table.index],
            title or column_title(column),
            relative=column == "rank_over_null_rank",
            marked=standing_out(table),
        )
        return [heat, mark_events(loss_curve(self.state.scalars), events)]

    def heatmap(self, column: str = "intrinsic_rank", relative: bool = True) -> list[go.Figure]:
        """Every matrix at every step."""
        heat = rank_heatmap(self.state.measurements, column, relative)
        return [mark_events_on_heatmap(heat, self.state.events)]

    def evolution(
        self,
        column: str = "intrinsic_rank",
        names: Sequence[str] | None = None,
        level: str | None = "role",
        **look: Any,
    ) -> list[go.Figure]:
        """A line a matrix."""
        groups = matrix_groups(self.state.matrices)[level].to_dict() if level else None
        shown = self.matrices if names is None else names
        return [rank_evolution(self.state.measurements, column, shown, groups=groups, **look)]

    def density(
        self,
        matrix: str | None = None,
        steps: Sequence[int] | None = None,
        *,
        log: bool = True,
        null: bool = True,
        **look: Any,
    ) -> list[go.Figure]:
        """Rows of one matrix, the rank of each filled in it; at first two, of the first update and the newest."""
        matrix, rule = matrix or self.matrices[0], self.state.rule
        rows = self.state.measurements[self.state.measurements["matrix"] == matrix]
        figure = spectrum_density(
            self.run.singular_values(matrix),
            [self.state.steps[1], self.state.steps[-1]] if steps is None else steps,
            dict(zip(rows["step"].astype(int), rows["intrinsic_rank"].astype(int), strict=True)),
            log=log,
            threshold=rule.threshold,
            buffer_rank=int(self.state.matrices["buffer_rank"][matrix]),
            definition=rule.definition,
            null=self._null(matrix) if null else None,
            **look,
        )
        if null and look.get("kind") != "profile":
            mark_noise_in_density(figure, self.run.singular_values(matrix), self._shape(matrix))
        return [figure]

    def spectra(self, matrices: Sequence[str] = (), **look: Any) -> list[go.Figure]:
        """A panel a matrix; at first the two that tell most."""
        chosen = matrices or telling_matrices(matrix_table(self.state))
        values = {name: self.run.singular_values(name) for name in chosen}
        return [
            mark_noise_over_steps(spectrum_evolution(each, **{"count": 32, **look}), each, self._shape(name))
            for name, each in values.items()
        ]

    def explained(
        self,
        matrix: str | None = None,
        step: int | None = None,
        *,
        null: bool = True,
        log_rank: bool = True,
        names: Sequence[str] | None = None,
        log_steps: bool = False,
    ) -> list[go.Figure]:
        """The curve of one matrix, and lines of all over steps."""
        matrix, rule = matrix or self.matrices[0], self.state.rule
        curve = explained_ratio_curve(
            self.run.singular_values(matrix),
            step,
            rule.threshold,
            int(self.state.matrices["buffer_rank"][matrix]),
            rule.definition,
            self._null(matrix) if null else None,
            log_rank=log_rank,
        )
        groups = matrix_groups(self.state.matrices)["role"].to_dict()
        shown = self.matrices if names is None else names
        lines = explained_ratio_evolution(
            self.state.measurements, rule.threshold, shown, groups=groups, log_steps=log_steps
        )
        return [curve, lines]

    def _null(self, matrix: str) -> Any:
        return null_singular_values(*self._shape(matrix))

    def _shape(self, matrix: str) -> tuple[int, int]:
        rows, cols = self.state.matrices.loc[[matrix], ["rows", "cols"]].to_numpy(dtype=int)[0].tolist()
        return rows, cols


def comparison(
    runs: Mapping[str, Drawn],
    column: str = "intrinsic_rank",
    matrix: str | None = None,
    *,
    scalar: str = "loss",
    title: str = "training loss",
    axis: Axis = "step",
    smoothing: float = 0.0,
    **look: Any,
) -> list[go.Figure]:
    """A line a run, of a logged value and of a quantity."""
    ranks = {name: one.state.measurements for name, one in runs.items()}
    scalars = {name: one.state.scalars for name, one in runs.items()}
    look["align"] = align({name: one.state.timeline for name, one in runs.items()}, axis)
    return [
        loss_comparison(scalars, scalar, title=title, smoothing=smoothing, **look),
        run_comparison(ranks, column, matrix, **look),
    ]
