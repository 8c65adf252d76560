"""Eigenvalues in place: those of NumPy, of the lower triangle alone, and with no second copy of the matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from inrank_monitor.spectra import eigenvalues as module
from inrank_monitor.spectra.eigenvalues import eigenvalues

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("size", [0, 1, 2, 37, 200])
@pytest.mark.parametrize("in_place", [True, False])
def test_eigenvalues_are_numpys(size: int, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_place:
        monkeypatch.setattr(module, "_dsyevd", lambda: None)
    wide = torch.randn(size, size + 3, dtype=torch.float64)
    gram = wide @ wide.mT
    expected = np.linalg.eigvalsh(gram.numpy()) if size else np.zeros(0)
    gram[tuple(torch.triu_indices(size, size, 1))] = torch.nan  # above the diagonal lies whatever there was
    np.testing.assert_allclose(eigenvalues(gram), expected, atol=1e-12 * max(expected, default=0))


def test_torchs_library_is_called_where_it_is_the_tested_one() -> None:
    if not torch.__version__.startswith("2.13.0"):
        pytest.skip("another torch may keep its LAPACK to itself")
    assert module._dsyevd() is not None


def test_what_does_not_converge_is_an_error() -> None:
    routine = module._dsyevd() or pytest.skip("this torch keeps its LAPACK to itself")

    def gives_up(*arguments: object) -> None:
        routine(*arguments)
        arguments[-1]._obj.value = 3  # type: ignore[attr-defined]

    with pytest.raises(LinAlgError, match="did not converge"):
        module._in_place(gives_up, torch.eye(4, dtype=torch.float64))
