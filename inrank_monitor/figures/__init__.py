"""Figures: a table goes in, a Plotly figure comes out; it is never changed. No Streamlit, no torch.

Ranks of all matrices
    depth_map                  any quantity of all of them: kind by depth
    rank_evolution             a line a matrix over steps, its null rank dashed
    rank_heatmap               matrix by step
    explained_ratio_evolution  how well the rank so far explains the update, over steps
Spectrum of one matrix
    spectrum_evolution         each singular value over steps
    spectrum_density           how the strength is spread, the part that the rank holds filled
    explained_ratio_curve      explained ratio against rank
    spectrum_with_ranks        the spectrum of a step, the rank of every rule marked
    loss_against_rank          what ranks_by_loss has evaluated, the rank of every rule marked
The rest
    loss_curve                 what the user logged
    empty_figure               a figure that says why it is empty
    save_figure                any of them as a paper prints it: SVG, PDF, PNG at column width, or its data as CSV
    CAPTIONS                   two plain lines for each figure
    families, representative, short_names   names: groups for colour, a selection, labels

Example:
    >>> from inrank_monitor import open_run
    >>> from inrank_monitor.figures import families, rank_evolution
    >>> run = open_run("runs/first")                                              # doctest: +SKIP
    >>> rank_evolution(run.measurements, groups=families(run.matrices.index)).show()  # doctest: +SKIP
"""

from __future__ import annotations

from inrank_monitor.figures.captions import CAPTIONS, Caption
from inrank_monitor.figures.comparison import loss_comparison, run_comparison
from inrank_monitor.figures.density import spectrum_density
from inrank_monitor.figures.depth_map import depth_map
from inrank_monitor.figures.event_marks import mark_events, mark_events_on_heatmap
from inrank_monitor.figures.loss import loss_curve
from inrank_monitor.figures.names import families, representative, short_names
from inrank_monitor.figures.noise import mark_noise_in_density, mark_noise_over_steps
from inrank_monitor.figures.paper import (
    FORMATS,
    WIDTHS,
    check_matplotlib,
    figure_csv,
    figure_table,
    inches_of,
    natural_width,
    paper_figure_bytes,
    save_figure,
)
from inrank_monitor.figures.ranks import rank_evolution, rank_heatmap
from inrank_monitor.figures.ratio import explained_ratio_curve, explained_ratio_evolution
from inrank_monitor.figures.rules import loss_against_rank, spectrum_with_ranks
from inrank_monitor.figures.spectra import spectrum_evolution
from inrank_monitor.figures.style import (
    INK,
    NEUTRAL,
    TEMPLATE,
    category,
    empty_figure,
    logarithmic,
    more_ink,
    new_figure,
    rgba,
    symbol,
)
from inrank_monitor.figures.tables import column_title, matrix_names, spread

__all__ = [
    "CAPTIONS",
    "FORMATS",
    "INK",
    "NEUTRAL",
    "TEMPLATE",
    "WIDTHS",
    "Caption",
    "category",
    "check_matplotlib",
    "column_title",
    "depth_map",
    "empty_figure",
    "explained_ratio_curve",
    "explained_ratio_evolution",
    "families",
    "figure_csv",
    "figure_table",
    "inches_of",
    "logarithmic",
    "loss_against_rank",
    "loss_comparison",
    "loss_curve",
    "mark_events",
    "mark_events_on_heatmap",
    "mark_noise_in_density",
    "mark_noise_over_steps",
    "matrix_names",
    "more_ink",
    "natural_width",
    "new_figure",
    "paper_figure_bytes",
    "rank_evolution",
    "rank_heatmap",
    "representative",
    "rgba",
    "run_comparison",
    "save_figure",
    "short_names",
    "spectrum_density",
    "spectrum_evolution",
    "spectrum_with_ranks",
    "spread",
    "symbol",
]
