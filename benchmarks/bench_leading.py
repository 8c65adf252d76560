"""Warm-started leading 256 of an update of 4096×11008 that changes slowly, against torch.linalg.svdvals of it.

    python benchmarks/bench_leading.py [--snapshots 20]

Two updates are followed. One walks: strong directions turn a little from snapshot to snapshot, over noise that
accumulates, a few per cent of it new each time. The other does so too, but half-way it doubles, into new directions.
Each snapshot is measured by both, one after the other, so that the ratio of their times is a paired one; the values of
svdvals are what the error is taken against (they are good to 3e-6 σ₁ themselves). Then all 4096 values of the walking
update, the leading 256 measured and the others estimated, against the Gram matrix that gives them exactly.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from inrank_monitor.spectra import LeadingSubspace, estimated_spectrum, leading_singular_values, singular_values

ROWS, COLS, COUNT, GOAL = 4096, 11008, 256, 0.03
DIRECTIONS, TURN = 512, 0.03


def walk(snapshots: int, doubles: bool) -> Iterator[Tensor]:
    """The update at each snapshot: Σ i^(−½) l_i r_iᵀ and noise, all of them random walks."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    left, right, noise = draw(ROWS, DIRECTIONS), draw(COLS, DIRECTIONS), draw(ROWS, COLS)
    strength = torch.arange(1, DIRECTIONS + 1).rsqrt() / (ROWS * COLS) ** 0.5
    weak = 0.02 / (ROWS**0.5 + COLS**0.5)
    other: Tensor | None = None
    for snapshot in range(snapshots):
        if snapshot:
            left += TURN * draw(ROWS, DIRECTIONS)
            right += TURN * draw(COLS, DIRECTIONS)
            noise += TURN * draw(ROWS, COLS)
        if doubles and snapshot == snapshots // 2:
            other = (draw(ROWS, DIRECTIONS) * strength) @ draw(COLS, DIRECTIONS).mT
        update = torch.addmm(noise, left * strength, right.mT, beta=weak)
        yield update if other is None else update + other


def follow(name: str, snapshots: int, doubles: bool) -> None:
    """Measure every snapshot of an update both ways; one line each, and one for all."""
    subspace = LeadingSubspace()
    ratios, inside = [], 0
    for snapshot, update in enumerate(walk(snapshots, doubles)):
        began = time.perf_counter()
        found = leading_singular_values(update, COUNT, subspace=subspace)
        between = time.perf_counter()
        exact = torch.linalg.svdvals(update)
        ended = time.perf_counter()
        ratios.append((between - began) / (ended - between))
        largest, last = float(exact[0]), float(exact[COUNT - 1])
        errors = exact[:COUNT].double() - found.values
        holds = float(errors.max()) <= found.error_bound + 3e-6 * largest and float(errors.min()) >= -3e-6 * largest
        inside += holds
        print(
            f"{name} {snapshot:2d}: {ratios[-1]:.4f} × svdvals ({between - began:.3f} s), error "
            f"{float(errors.max()) / last:.3f} σ₂₅₆, bound {found.error_bound / last:.2f} σ₂₅₆ = "
            f"{found.error_bound / largest:.4f} σ₁{'' if holds else ' OUTSIDE'}",
            flush=True,
        )
    warm = statistics.median(ratios[1:])
    verdict = "met" if warm <= GOAL else "MISSED"
    print(
        f"{name}: median {warm:.4f} × svdvals once warm (worst {max(ratios[1:]):.4f}), first {ratios[0]:.4f}; "
        f"goal {GOAL} {verdict}; inside the bound {inside} of {snapshots}"
    )


def estimate(snapshots: int) -> None:
    """All values of the walking update, estimated and exact."""
    subspace = LeadingSubspace()
    for snapshot, update in enumerate(walk(snapshots, doubles=False)):
        began = time.perf_counter()
        found = estimated_spectrum(update, COUNT, subspace=subspace)
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
    """Follow both updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=20)
    snapshots = parser.parse_args().snapshots
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    torch.linalg.svdvals(torch.randn(256, 512))
    follow("walking", snapshots, doubles=False)
    follow("doubling", snapshots, doubles=True)
    estimate(min(snapshots, 4))


if __name__ == "__main__":
    main()
