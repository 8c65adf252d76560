"""Time and error of our spectra against torch.linalg.svdvals, in pairs, on all cores.

    python benchmarks/bench_spectra.py [--pairs 5]

* the 48 matrices of GPT-2 small (12 × 768 × {768, 2304, 3072, 3072}), against a loop over svdvals in float32;
* the growth check of factors 768×354 · 354×3072, against svdvals of the product;
* the leading 256 values of a 4096×11008 matrix, against svdvals of it, for two spectra.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from inrank_monitor.spectra import SpectrumPool, leading_singular_values, singular_values, singular_values_of_product


def in_pairs(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> tuple[float, float, float]:
    """Median ratio of ours to theirs over paired runs, and both medians in seconds."""
    seconds: list[tuple[float, float]] = []
    ours(), theirs()
    for turn in range(pairs):
        taken = {}
        for run in (ours, theirs) if turn % 2 else (theirs, ours):
            began = time.perf_counter()
            run()
            taken[run] = time.perf_counter() - began
        seconds.append((taken[ours], taken[theirs]))
    ratio = statistics.median(a / b for a, b in seconds)
    return ratio, statistics.median(a for a, _ in seconds), statistics.median(b for _, b in seconds)


def show(what: str, ratio: float, ours: float, theirs: float, limit: float, note: str) -> None:
    """One line."""
    verdict = "met" if ratio <= limit else "MISSED"
    print(
        f"{what}: {ratio:.3f} × svdvals ({ours:.3f} s against {theirs:.3f} s), goal {limit:.3f} {verdict}; {note}",
        flush=True,
    )


def gpt2_small(pairs: int) -> None:
    """All matrices of one snapshot."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(768, cols, generator=generator) for _ in range(12) for cols in (768, 2304, 3072, 3072)]
    pool = SpectrumPool()
    found: list[Tensor] = []

    def ours() -> None:
        found[:] = pool.map(singular_values, matrices)

    figures = in_pairs(ours, lambda: [torch.linalg.svdvals(matrix) for matrix in matrices], pairs)
    errors = []
    for matrix, values in zip(matrices[:4], found[:4], strict=True):
        exact = torch.linalg.svdvals(matrix.double())
        errors.append(float((values - exact).abs().max() / exact[0]))
    pool.close()
    show("48 matrices of GPT-2 small", *figures, 0.28, f"error {max(errors):.1e} σ₁ (goal 1e-7)")


def product_of_factors(pairs: int) -> None:
    """The spectrum that decides whether a layer grows."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(768, 354, generator=generator), torch.randn(354, 3072, generator=generator)
    figures = in_pairs(
        lambda: singular_values_of_product(left, right), lambda: torch.linalg.svdvals(left @ right), pairs
    )
    exact = torch.linalg.svdvals(left.double() @ right.double())[:354]
    error = float((singular_values_of_product(left, right) - exact).abs().max() / exact[0])
    show("factors 768×354 · 354×3072", *figures, 1 / 6, f"error {error:.1e} σ₁")


def leading(pairs: int, name: str, spectrum: Tensor) -> None:
    """The leading 256 of 4096×11008 with given singular values."""
    generator = torch.Generator().manual_seed(0)
    count = len(spectrum)
    left = torch.linalg.qr(torch.randn(4096, count, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(11008, count, generator=generator)).Q
    matrix = (left * spectrum.float()) @ right.mT
    figures = in_pairs(
        lambda: leading_singular_values(matrix, 256), lambda: torch.linalg.svdvals(matrix), min(pairs, 3)
    )
    found = leading_singular_values(matrix, 256)
    errors = (found.values - spectrum[:256]).abs()
    within = "inside" if float(errors.max()) <= found.error_bound + 1e-6 * float(spectrum[0]) else "OUTSIDE"
    bound = found.error_bound / float(spectrum[255])
    note = f"error {float((errors / spectrum[:256]).max()):.1e} of a value, {within} its bound, {bound:.1e} of the last"
    show(f"leading 256 of 4096×11008, {name}", *figures, 0.04, note)


def main() -> None:
    """Print one line a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    pairs = parser.parse_args().pairs
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    gpt2_small(pairs)
    product_of_factors(pairs)
    place = torch.arange(1, 1025, dtype=torch.float64)
    leading(pairs, "σ_i = 1/i", 1 / place)
    leading(pairs, "σ_i = exp(-i/50)", torch.exp(-place / 50))
    leading(pairs, "σ_i = 1/√i (slow)", place.rsqrt())


if __name__ == "__main__":
    main()
