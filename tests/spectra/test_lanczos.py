from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import oracles
from numpy.testing import assert_allclose
from torch import Tensor, nn

from inrank_monitor.ranks.null_model import null_singular_values
from inrank_monitor.spectra.estimated import EstimatedSpectrum, estimated_spectrum
from inrank_monitor.spectra.lanczos import LinearOperator, Quadrature, SpectralDensity, spectral_density
from inrank_monitor.spectra.spectrum import singular_values

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("one_thread")]
SHORT, LONG = 256, 512
PLACE = np.arange(1, SHORT + 1)


def density_of(
    matrix: Tensor, norm_known: bool = True, steps: int = 12, probes: int = 16, seed: int = 0
) -> SpectralDensity:
    energy = float(matrix.detach().double().square().sum()) if norm_known else None
    operator = LinearOperator(lambda block: matrix @ block, lambda block: matrix.mT @ block, len(matrix), matrix)
    return spectral_density(operator, Quadrature(steps, probes, seed), energy)


def wasserstein(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean |σ̂_i − σ_i| / σ₁: the Wasserstein-1 distance of two spectra of as many values."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).mean() / expected[0])


class Block(nn.Module):
    """One head of attention and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.outer(self.inner(self.norms[1](x)).relu())
        return torch.add(x, y)


@pytest.fixture(scope="module")
def real_updates() -> dict[str, Tensor]:
    """ΔW of a two-layer character model after 4 and 40 steps on English prose."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = 144  # of narrower ones all values are taken
    text = torch.tensor([ord(c) % 128 for c in "".join(pydoc_data.topics.topics.values())[:60_000]])
    model = nn.Sequential(nn.Embedding(128, width), Block(width), Block(width), nn.Linear(width, 128))
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    updates: dict[str, Tensor] = {}
    for step in range(1, 41):
        at = torch.randint(len(text) - 33, (8,))
        batch = torch.stack([text[i : i + 33] for i in at])
        loss = nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in (4, 40):
            for name, value in model.named_parameters():
                if value.ndim == 2 and "." in name and min(value.shape) >= width and not name.startswith("0."):
                    updates[f"{name} at {step}"] = value.detach() - first[name]
    torch.set_num_threads(threads)
    assert len(updates) == 16
    return updates


def test_the_estimate_is_within_two_per_cent_on_updates_of_a_real_training(real_updates: dict[str, Tensor]) -> None:
    for name, update in real_updates.items():
        exact = oracles.singular_values(update.numpy())
        found = estimated_spectrum(update, 16)
        assert found.measured == 16, name
        assert wasserstein(found.values.numpy(), exact) < 0.02, name
        wide = update if update.shape[0] <= update.shape[1] else update.mT
        assert wasserstein(density_of(wide).values, exact) < 0.02, name


@pytest.mark.slow
def test_the_estimate_is_within_two_per_cent_on_updates_of_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    text = torch.tensor([ord(c) % 128 for c in "".join(pydoc_data.topics.topics.values())])
    shape = {"vocab_size": 128, "n_positions": 64, "n_embd": 256, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=None, eos_token_id=None))
    first = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ratios = []
    for step in range(1, 31):
        batch = torch.stack([text[i : i + 64] for i in torch.randint(len(text) - 64, (8,))])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        for name, value in model.named_parameters():
            if step in (2, 30) and value.ndim == 2 and ".h." in name:
                update = value.detach() - first[name]
                exact, found = oracles.singular_values(update.numpy()), estimated_spectrum(update, 32)
                distance = wasserstein(found.values.numpy(), exact)
                assert found.measured == 32
                assert distance < 0.02, name
                ratios.append(found.estimation_error / exact[0] / distance)
    assert min(ratios) > 1  # the stated error is on the safe side
    assert np.median(ratios) < 5  # 3.8, where the true error is some 0.0003 σ₁


SPECTRA: dict[str, np.ndarray] = {
    "linear": 1 - PLACE / (SHORT + 1),
    "slow": PLACE**-0.5,
    "fast": PLACE**-1.0,
    "exponential": np.exp(-PLACE / 25),
    "half rank": np.where(PLACE <= SHORT // 2, 1.0, 0.0),
    "rank 5": np.where(PLACE <= 5, 1.0, 0.0),
    "two clusters": np.where(PLACE <= SHORT // 3, 1.0, 0.5),
    "spikes": np.where(PLACE <= 6, 20.0 / PLACE, 1 - PLACE / (SHORT + 1)),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_densities_of_known_spectra(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    matrix = torch.from_numpy(oracles.matrix_with(values, SHORT, LONG)).to(dtype)
    density = density_of(matrix)
    assert wasserstein(density.values, values) < 0.02
    assert_allclose(np.linalg.norm(density.values), np.linalg.norm(values), rtol=1e-6)
    assert_allclose(density.weights.sum(), SHORT)
    assert (np.diff(density.nodes) <= 0).all()
    assert (np.diff(density.values) <= 0).all()
    estimated = estimated_spectrum(matrix, 32)
    assert wasserstein(estimated.values.numpy(), values) < 0.02
    assert (estimated.values.diff() <= 0).all()


def test_the_stated_error_is_about_the_error() -> None:
    """It is an estimate: nowhere less than a fifth of the error, on average no less than it and at most thrice."""
    ratios = []
    for values in SPECTRA.values():
        for seed in range(3):
            matrix = torch.from_numpy(oracles.matrix_with(values, SHORT, LONG, seed))
            density = density_of(matrix, seed=seed)
            ratios.append(density.error / float(np.abs(density.values - values).mean()))
    assert min(ratios) > 0.2
    assert 1 < np.mean(ratios) < 3


def test_noise_has_the_marchenko_pastur_law() -> None:
    matrix = torch.randn(SHORT, LONG)
    law = null_singular_values(SHORT, LONG)
    assert wasserstein(density_of(matrix).values, law) < 0.01
    assert wasserstein(density_of(matrix, steps=24).values, law) < 0.007


def test_zero_identity_and_orthogonal_matrices_are_exact() -> None:
    orthogonal = torch.linalg.qr(torch.randn(LONG, SHORT, dtype=torch.float64)).Q.mT
    for matrix, value in ((torch.zeros(SHORT, LONG), 0), (torch.eye(SHORT, LONG), 1), (3 * orthogonal, 3)):
        density = density_of(matrix)
        assert_allclose(density.values, value, atol=1e-6)
        assert density.error < 1e-6
        estimated = estimated_spectrum(matrix, 16)
        assert_allclose(estimated.values.numpy(), value, atol=1e-6)
        assert_allclose(estimated.frobenius_norm, value * SHORT**0.5, rtol=1e-6)


def test_a_few_steps_see_a_low_rank_whole() -> None:
    """Once the Krylov space holds the range, the nodes are the singular values, whatever the weights."""
    values = np.array([5.0, 3.0, 3.0, 1.0, 0.1])
    density = density_of(torch.from_numpy(oracles.matrix_with(values, SHORT, LONG)), steps=3)
    distance = np.abs(density.nodes[:, None] - np.append(values, 0.0)).min(axis=1)
    assert distance[density.weights > 1e-6].max() < 1e-6


def test_more_steps_leave_the_moments_of_the_quadrature_alone() -> None:
    """Σ w θ^(2p) = tr Xᵀ (A Aᵀ)ᵖ X · n/b for the same X, exactly, as long as p < 2 steps."""
    matrix = torch.randn(SHORT, LONG, dtype=torch.float64)
    few, many = (density_of(matrix, norm_known=False, steps=steps) for steps in (4, 9))
    exact = oracles.singular_values(matrix.numpy())
    for power in range(8):
        moments = [float((found.weights * found.nodes ** (2 * power)).sum()) for found in (few, many)]
        assert_allclose(moments[0], moments[1], rtol=1e-11)
        assert_allclose(moments[0], (exact ** (2 * power)).sum(), rtol=0.2)  # X is random


def test_the_measured_values_stay_within_their_bound() -> None:
    for name, values in SPECTRA.items():
        matrix = torch.from_numpy(oracles.matrix_with(values, SHORT, LONG))
        found = estimated_spectrum(matrix, 32)
        error = np.abs(found.values.numpy() - values)[:32].max()
        assert error <= found.error_bound + 3e-8 * np.linalg.norm(values), name
        assert_allclose(found.frobenius_norm, np.linalg.norm(values), rtol=1e-9)


def test_the_frobenius_norm_is_kept() -> None:
    for name, values in SPECTRA.items():
        found = estimated_spectrum(torch.from_numpy(oracles.matrix_with(values, SHORT, LONG)), 32)
        assert_allclose(float(found.values.norm()), np.linalg.norm(values), rtol=2e-3, err_msg=name)


CALLS: dict[str, Callable[[Tensor], EstimatedSpectrum]] = {
    "small": lambda matrix: estimated_spectrum(matrix[:60], 32),
    "large part": lambda matrix: estimated_spectrum(matrix, 60),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_where_the_full_spectrum_costs_no_more_it_is_the_exact_one(call: Callable[[Tensor], EstimatedSpectrum]) -> None:
    matrix = torch.randn(SHORT, LONG)
    found = call(matrix)
    assert torch.equal(found.values, singular_values(matrix[: len(found.values)]))
    assert (found.measured, found.error_bound, found.estimation_error) == (len(found.values), 0.0, 0.0)


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_the_estimate_scales_with_the_matrix_and_ignores_transposition(scale: float) -> None:
    matrix = torch.randn(SHORT, LONG)
    expected = estimated_spectrum(matrix, 16)
    for same, factor in ((matrix * scale, scale), (-matrix, 1.0)):  # exact in floating point
        found = estimated_spectrum(same, 16)
        assert torch.equal(found.values, factor * expected.values)
        assert (found.error_bound, found.estimation_error) == (
            factor * expected.error_bound,
            factor * expected.estimation_error,
        )
    found = estimated_spectrum(matrix.mT, 16)  # other products, in float32
    assert_allclose(found.values.numpy(), expected.values.numpy(), rtol=1e-3)
    assert_allclose(found.estimation_error, expected.estimation_error, rtol=1e-2)


def test_a_matrix_that_is_not_finite_gives_nan_throughout() -> None:
    matrix = torch.randn(SHORT, LONG)
    matrix[3, 5] = torch.inf
    found = estimated_spectrum(matrix, 16)
    assert found.values.shape == (SHORT,)
    assert found.values.isnan().all()


def test_the_estimate_draws_from_no_generator_but_its_own() -> None:
    matrix = torch.randn(SHORT, LONG, requires_grad=True)
    before, state = matrix.detach().clone(), torch.get_rng_state()
    first = estimated_spectrum(matrix, 16)
    torch.randn(3)
    again = estimated_spectrum(matrix, 16)
    assert torch.equal(first.values, again.values)
    assert not first.values.requires_grad
    assert torch.equal(matrix.detach(), before)
    torch.set_rng_state(state)
    estimated_spectrum(matrix, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.values, estimated_spectrum(matrix, 16, seed=1).values)


def test_shards_give_the_density_of_the_whole() -> None:
    """Columns on two processes: A X is the sum of their parts, Aᵀ Y the parts one after the other."""
    matrix = torch.randn(SHORT, LONG)
    parts = matrix[:, :200], matrix[:, 200:]

    def forward(block: Tensor) -> Tensor:
        return parts[0] @ block[:200] + parts[1] @ block[200:]

    def backward(block: Tensor) -> Tensor:
        return torch.cat([part.mT @ block for part in parts])

    found = spectral_density(LinearOperator(forward, backward, SHORT, matrix), Quadrature())
    assert_allclose(found.values, density_of(matrix, norm_known=False).values, rtol=0, atol=1e-4 * found.values[0])


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    matrix = torch.randn(12, 40)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        density_of(matrix, steps=0)
    for probes in (0, 5):
        with pytest.raises(ValueError, match=f"probes must be an even number of at least 2, got {probes}"):
            density_of(matrix, probes=probes)
    with pytest.raises(ValueError, match="probes must be at most 24 for a matrix with 12 values, got 26"):
        density_of(matrix, probes=26)
    for measured in (0, 13):
        with pytest.raises(ValueError, match=rf"measured must be in 1\.\.12 for a 12×40 matrix, got {measured}"):
            estimated_spectrum(matrix, measured)
