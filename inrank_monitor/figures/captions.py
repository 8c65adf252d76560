"""Two plain lines a figure, for who has not read the paper: what you look at, and what to conclude."""

from __future__ import annotations

from typing import NamedTuple


class Caption(NamedTuple):
    """What is drawn, and what follows from it."""

    look: str
    conclude: str


CAPTIONS: dict[str, Caption] = {
    "depth_map": Caption(
        "Each cell is a weight matrix: its depth in the model from left to right, what it does there from top to "
        "bottom. The colour is a quantity of its change since the start at one step. A ring marks what is unusual; "
        "the table says why. A click on a cell or a row opens that matrix.",
        "A column that stands out is a layer that learns otherwise than its neighbours, a row a kind of matrix. Rank "
        "over null rank: dark is low rank, 1 cannot be told from noise.",
    ),
    "rank_heatmap": Caption(
        "Each row is a weight matrix, each column a measured step. The colour is the quantity "
        "at that step; a rank is divided by the rank that pure noise of the same shape would need.",
        "Dark rows learn in few directions: a low-rank layer would do. Where the colour comes near 1, "
        "the change cannot be told from noise by its rank.",
    ),
    "rank_evolution": Caption(
        "How many directions each matrix's change since the start needs, step by step. "
        "Dashed: the rank of pure noise of the same shape (the null rank).",
        "A line far below its dashes means that training uses few directions there. A line that still "
        "climbs has not settled; one that has long been flat shows the rank that is enough.",
    ),
    "spectrum_evolution": Caption(
        "The singular values of one matrix's change: the strength of each direction in which it has "
        "moved. The deeper the blue, the stronger the direction.",
        "A few lines that rise above the rest, one after another, are low-rank learning. If all rise "
        "together, the change has no preferred directions.",
    ),
    "spectrum_density": Caption(
        "How the strength of one matrix's change is spread over strong (right) and weak (left) "
        "directions, at an early and at the last step. Solid is what the current rank holds. Dotted: "
        "noise of the same shape.",
        "A shape that reaches far to the right of the dots has structure that noise has not. More area "
        "means that more of the change sits there.",
    ),
    "explained_ratio_curve": Caption(
        "How well the first r directions explain the change of one matrix (1 is fully), against r. The "
        "ring is the least r that reaches the threshold α; dashed is noise of the same shape.",
        "A ring far to the left of the noise's ring: few directions are enough. Rings close together: "
        "the rank says little here.",
    ),
    "explained_ratio_evolution": Caption(
        "How well the rank reached so far explains each matrix's change, step by step. Dotted is the threshold α.",
        "Where a line falls below α, new directions have appeared and that matrix's rank grows. Lines "
        "that stay above α have the rank that they need.",
    ),
    "spectrum_with_ranks": Caption(
        "The singular values of one matrix's change at one step, strongest first, and on them the rank that each rule "
        "gives. Dotted: noise of the same shape and strength. Dashed: the edge of noise.",
        "Marks close together: the rules agree. A mark below the edge counts directions that noise would give as well.",
    ),
    "loss_against_rank": Caption(
        "The loss of the model with only so many directions of every matrix's change, as ranks_by_loss has evaluated "
        "it. Marked: where this matrix's ranks would lie if all matrices had them.",
        "A mark above the dashed line: with that rank everywhere the loss would rise by more than the tolerance.",
    ),
    "loss_curve": Caption(
        "What the training loop logged, over the same steps.",
        "Compare with the ranks: they usually move first while the loss falls fastest, and settle as it flattens.",
    ),
}
