"""The leading 256 values of 4096×11008 matrices: products, time, error and bound, against torch.linalg.svdvals.

    python benchmarks/bench_leading.py [--snapshots 3] [--size 4096]

Matrices whose values are known first (1/i, exponential decay, 1/√i, of which more blocks make something): columns of
products with the matrix, the error of the worst value as a share of it, the bound as a share of the last value. Then an
update that walks, strong directions that turn over noise that builds up, against svdvals (good to 3e-6 σ₁ itself), each
snapshot measured by both, so that the ratio of their times is a paired one. Then all of its values, the leading 256
measured and the others estimated, against the Gram matrix that gives them exactly.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from inrank_monitor.spectra import estimated_spectrum, krylov_sizes, leading_singular_values, singular_values

GOAL, DIRECTIONS, TURN = 0.04, 512, 0.03


def known(rows: int, cols: int, count: int, name: str, values: Tensor, iterations: int) -> None:
    """One matrix with these values: what its leading ones cost and how near they are."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator)).Q
    right = torch.linalg.qr(torch.randn(cols, len(values), generator=generator)).Q
    matrix = (left * values.float()) @ right.mT
    found = leading_singular_values(matrix, count, iterations=iterations)
    block, blocks = krylov_sizes(count, iterations)
    errors = (values[:count] - found.values) / values[:count]
    print(
        f"{name}, {iterations} more blocks: {2 * block * blocks + block // 4 + 5 * 32} columns of products, "
        f"error {float(errors.abs().max()):.1e} of a value, bound {found.error_bound / float(values[count - 1]):.1e} "
        f"of the last",
        flush=True,
    )


def walk(rows: int, cols: int, snapshots: int) -> Iterator[Tensor]:
    """The update at each snapshot: Σ i^(−½) l_i r_iᵀ and noise, all of them random walks."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    left, right, noise = draw(rows, DIRECTIONS), draw(cols, DIRECTIONS), draw(rows, cols)
    strength = torch.arange(1, DIRECTIONS + 1).rsqrt() / (rows * cols) ** 0.5
    weak = 0.02 / (rows**0.5 + cols**0.5)
    for snapshot in range(snapshots):
        if snapshot:
            left += TURN * draw(rows, DIRECTIONS)
            right += TURN * draw(cols, DIRECTIONS)
            noise += TURN * draw(rows, cols)
        yield torch.addmm(noise, left * strength, right.mT, beta=weak)


def follow(rows: int, cols: int, count: int, snapshots: int) -> None:
    """Measure every snapshot of an update both ways; one line each, and one for all."""
    ratios, inside = [], 0
    for snapshot, update in enumerate(walk(rows, cols, snapshots)):
        began = time.perf_counter()
        found = leading_singular_values(update, count)
        between = time.perf_counter()
        exact = torch.linalg.svdvals(update)
        ended = time.perf_counter()
        ratios.append((between - began) / (ended - between))
        largest, last = float(exact[0]), float(exact[count - 1])
        errors = exact[:count].double() - found.values
        holds = float(errors.max()) <= found.error_bound + 3e-6 * largest and float(errors.min()) >= -3e-6 * largest
        inside += holds
        print(
            f"walking {snapshot:2d}: {ratios[-1]:.4f} × svdvals ({between - began:.3f} s), error "
            f"{float(errors.max()) / last:.1e}, bound {found.error_bound / last:.1e} of the last value"
            f"{'' if holds else ' OUTSIDE'}",
            flush=True,
        )
    ratio = statistics.median(ratios)
    verdict = "met" if ratio <= GOAL else "MISSED"
    print(f"walking: median {ratio:.4f} × svdvals, goal {GOAL} {verdict}; inside the bound {inside} of {snapshots}")


def estimate(rows: int, cols: int, count: int, snapshots: int) -> None:
    """All values of the walking update, estimated and exact."""
    for snapshot, update in enumerate(walk(rows, cols, snapshots)):
        began = time.perf_counter()
        found = estimated_spectrum(update, count)
        between = time.perf_counter()
        exact = singular_values(update)
        ended = time.perf_counter()
        distance = float((found.values - exact).abs().mean() / exact[0])
        print(
            f"all values {snapshot}: {(between - began) / (ended - between):.3f} × the Gram matrix's "
            f"({between - began:.2f} s), Wasserstein-1 {distance:.1e} σ₁, "
            f"stated {found.estimation_error / float(exact[0]):.1e} σ₁",
            flush=True,
        )


def main() -> None:
    """Known matrices, then the walking update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=3)
    parser.add_argument("--size", type=int, default=4096, help="of the short side; the other has 2.7 times as much")
    options = parser.parse_args()
    rows, snapshots = options.size, options.snapshots
    cols, count = rows * 43 // 16, rows // 16
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {rows}×{cols}, {count} values")
    torch.linalg.svdvals(torch.randn(256, 512))
    place = torch.arange(1, rows // 4 + 1, dtype=torch.float64)
    known(rows, cols, count, "1/i", 1 / place, 0)
    known(rows, cols, count, "exponential", torch.exp(-place * 5.12 / count), 0)
    for iterations in (0, 2, 4):
        known(rows, cols, count, "1/√i", place.rsqrt(), iterations)
    follow(rows, cols, count, snapshots)
    estimate(rows, cols, count, min(snapshots, 2))


if __name__ == "__main__":
    main()
