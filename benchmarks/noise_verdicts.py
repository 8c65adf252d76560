"""What signal rank and verdicts say of noise, of noise with planted directions, and of flat spectra: rates, as tables.

    python benchmarks/noise_verdicts.py [--matrices 1000] [--seed 0]

Each kind of matrix is drawn so many times at each shape. Planted directions have θ times the strength at which the
singular values begin to show one, (rows · cols)^¼ in units of the noise. `--sides` shows what shorter sides than 16
would give, the least in which signal is looked for: a direction of three times that strength is found in 98 % of the
draws of a square of that side, in 95 % at 12 and in 79 % at 8.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable

import numpy as np

from inrank_monitor.ranks import VERDICTS, signal, spectrum_verdict

SHAPES = ((16, 16), (16, 256), (32, 48), (48, 48), (64, 256), (128, 128), (96, 400))
THIN = ((1, 48), (4, 300), (10, 96), (15, 15))
Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def gaussian(generator: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Independent normal entries."""
    return generator.standard_normal((rows, cols))


def signs(generator: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Random signs: what Adam's first step makes of a gradient without structure."""
    return generator.choice([-1.0, 1.0], (rows, cols))


def uniform(generator: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """Independent uniform entries."""
    return generator.uniform(-1.0, 1.0, (rows, cols))


def planted(count: int, strength: float) -> Draw:
    """`count` random orthonormal directions in Gaussian noise."""

    def draw(generator: np.random.Generator, rows: int, cols: int) -> np.ndarray:
        left = np.linalg.qr(generator.standard_normal((rows, count)))[0]
        right = np.linalg.qr(generator.standard_normal((cols, count)))[0]
        return gaussian(generator, rows, cols) + strength * (rows * cols) ** 0.25 * (left @ right.T)

    return draw


def orthogonal(generator: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """All singular values equal, as in one step of Muon."""
    short, long = sorted((rows, cols))
    basis = np.linalg.qr(generator.standard_normal((long, short)))[0]
    return basis if rows >= cols else basis.T


def muon(generator: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    """A sum of eight orthogonal matrices."""
    return np.sum([orthogonal(generator, rows, cols) for _ in range(8)], axis=0)


KINDS: dict[str, Draw] = {
    "Gaussian noise": gaussian,
    "random signs": signs,
    "uniform noise": uniform,
    "1 direction, θ = 1.5": planted(1, 1.5),
    "1 direction, θ = 2": planted(1, 2.0),
    "1 direction, θ = 3": planted(1, 3.0),
    "2 directions, θ = 3": planted(2, 3.0),
    "4 directions, θ = 3": planted(4, 3.0),
    "orthogonal": orthogonal,
    "8 orthogonal ones": muon,
}
NOISE = ("Gaussian noise", "random signs", "uniform noise")


def spectra(draw: Draw, generator: np.random.Generator, shape: tuple[int, int], matrices: int) -> np.ndarray:
    """(matrices, short side) singular values."""
    return np.linalg.svd(np.stack([draw(generator, *shape) for _ in range(matrices)]), compute_uv=False)


def confusion(matrices: int, seed: int) -> dict[str, Counter[str]]:
    """How often each verdict is given to each kind of matrix, over all shapes; thin Gaussian ones apart."""
    generator = np.random.default_rng(seed)
    found: dict[str, Counter[str]] = {}
    each = max(matrices // len(SHAPES), 1)
    for kind, draw in KINDS.items():
        found[kind] = Counter(
            str(spectrum_verdict(values, *shape))
            for shape in SHAPES
            for values in spectra(draw, generator, shape, each)
        )
    thin = max(matrices // len(THIN), 1)
    found["Gaussian, short side below 16"] = Counter(
        str(spectrum_verdict(values, *shape)) for shape in THIN for values in spectra(gaussian, generator, shape, thin)
    )
    return found


def print_confusion(matrices: int, seed: int) -> None:
    """As the docs have it."""
    shown = VERDICTS[:4]
    print("| drawn | matrices | " + " | ".join(shown) + " |\n|---|---|" + "---|" * len(shown))
    for kind, counts in confusion(matrices, seed).items():
        total = sum(counts.values())
        cells = " | ".join(f"{counts[verdict] / total:.1%}" if counts[verdict] else "0" for verdict in shown)
        print(f"| {kind} | {total} | {cells} |")


def print_ranks(matrices: int, seed: int, shapes: tuple[tuple[int, int], ...]) -> None:
    """How often the signal rank is what was planted, by shape; 0 of noise."""
    generator = np.random.default_rng(seed)
    strengths = {"noise": (0.0, 0.0), **{f"1, θ = {each:g}": (0.0, each) for each in (1.5, 2.0, 3.0)}}
    strengths |= {"an eighth, θ = 3": (1 / 8, 3.0), "a quarter, θ = 3": (1 / 4, 3.0)}
    print("\n| shape | " + " | ".join(strengths) + " |\n|---|" + "---|" * len(strengths))
    for shape in shapes:
        cells = []
        for share, strength in strengths.values():
            count = max(int(share * min(shape)), 1) if strength else 0
            values = spectra(planted(count, strength) if count else gaussian, generator, shape, matrices)
            cells.append(f"{(signal.signal_rank(values, *shape) == count).mean():.1%}")
        print(f"| {shape[0]}×{shape[1]} | " + " | ".join(cells) + " |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", action="store_true", help="short sides below 16 too")
    arguments = parser.parse_args()
    if arguments.sides:
        signal.LEAST_SIDE = 1
        print_ranks(arguments.matrices, arguments.seed, ((8, 8), (8, 96), (10, 96), (12, 12), (12, 400), (15, 15)))
        return
    print_confusion(arguments.matrices, arguments.seed)
    print_ranks(arguments.matrices, arguments.seed, SHAPES)


if __name__ == "__main__":
    main()
