"""In which order the modes of Theorem 2 are learned: numbers from its closed form, over random starts.

Two numbers say whether D_t follows a low-rank trajectory:
order        Spearman's correlation of a mode's time to half with its s: −1 if the strong ones come first, 0 by chance
increment    effective rank of D_t when its strongest mode is half learned, over that at the end: 1 if all grow at once
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from inrank.theory import learning_time, mode_strength, unbalanced_mode_strength
from inrank_monitor.ranks import effective_rank


def generator_of(seed: int) -> Generator:
    """A generator of its own for each seed."""
    return Generator().manual_seed(seed)


def normal(generator: Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=generator, device="cpu")


def order(s: Tensor, times: Tensor) -> float:
    """Spearman's rank correlation of times with s, over the last dimension; the mean over the others."""
    ranks, places = (values.argsort(-1).argsort(-1).double() for values in (times, s))
    count = s.shape[-1]
    return float((1 - 6 * ((ranks - places) ** 2).sum(-1) / (count * (count**2 - 1))).mean())


def drawn(a: float, b: float, modes: int, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """s_i = a·i (modes,), and |u0| of N(0, b²) (draws, modes)."""
    s = a * torch.arange(1, modes + 1, dtype=torch.float64, device="cpu")
    return s, (b * normal(generator_of(seed), draws, modes)).abs()


def trajectory(s: Tensor, u0: Tensor) -> Mapping[str, float]:
    """`order` and `increment` of eq. 4 (see the module), means over draws.

    Args:
        s: (modes,)
        u0: (draws, modes), above 0.
    """
    halves = learning_time(s, u0)
    final = (s - u0).abs()
    moment = halves.gather(-1, final.argmax(-1, keepdim=True))
    early = mode_strength(s, u0, moment).abs()
    increment = effective_rank(early.numpy()) / effective_rank(final.numpy())
    return {"order": order(s, halves), "increment": float(increment.mean())}


def crossing_times(shares: Tensor, times: Tensor, share: float = 0.5) -> Tensor:
    """When each column of (times, modes) first reaches a share, interpolated; the last time if it never does."""
    after = (shares >= share).double().argmax(0)
    after = torch.where((shares >= share).any(0), after, len(times) - 1).clamp_min(1)
    high, low = (shares.gather(0, place[None])[0] for place in (after, after - 1))
    part = ((share - low) / (high - low)).nan_to_num().clamp(0, 1)
    return times[after - 1] + part * (times[after] - times[after - 1])


def misfit(s: Tensor, times: Tensor) -> tuple[float, float]:
    """How far ln(time to half) is from a law: a power of s, an exponential of s. Standard deviations of what is left.

    Args:
        s: (modes,)
        times: (modes,) or (draws, modes), of which the mean of the logarithm is taken.
    """
    logs = times.log().reshape(-1, len(s)).mean(0)
    left = []
    for explaining in (s.log(), s):
        centred = explaining - explaining.mean()
        slope = (centred * logs).sum() / (centred**2).sum()
        left.append(float((logs - logs.mean() - slope * centred).square().mean().sqrt()))
    return left[0], left[1]


def negative_share(b: float, modes: int, draws: int, seed: int) -> float:
    """Share of modes not half learned at three times their time to half; u0 ~ N(0, b²) with its sign, s = 1, 2, ...

    Those of negative u0 start from b = −a.
    """
    generator = generator_of(seed)
    s = torch.arange(1, modes + 1, dtype=torch.float64, device="cpu")
    u0 = b * normal(generator, draws, modes)
    root = u0.abs().sqrt()
    update = unbalanced_mode_strength(s, root, u0.sign() * root, 3 * learning_time(s, u0.abs()))
    return float(((update + u0) < s / 2).double().mean())


def update_rank(b: float, modes: int, draws: int, seed: int) -> tuple[float, float]:
    """Mean effective rank of D_t and of A_t at the end, where the target has the three strongest modes only (a = 1)."""
    s, u0 = drawn(1.0, b, modes, draws, seed)
    s[:-3] = 0.0
    update = effective_rank((s - u0).abs().numpy())
    return float(update.mean()), float(effective_rank(s.numpy()))
