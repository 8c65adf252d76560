"""How a run takes its spectra: all values, the leading ones, or those and an estimate beside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inrank_monitor.spectra.estimated import estimated_spectrum
from inrank_monitor.spectra.leading import is_large_part, leading_singular_values
from inrank_monitor.spectra.spectrum import Spectrum, singular_values


@dataclass
class SpectrumMethod:
    """One run's way from updates to spectra.

    Attributes:
        leading: how many values; None for all.
        density: whether those after the leading ones are estimated, where not all are measured.
    """

    leading: int | None = None
    density: bool = False

    def takes_all(self, short: int) -> bool:
        """Whether all values are computed of a matrix with this short side, however few are kept."""
        return self.leading is None or self.leading >= short or is_large_part(self.leading, short)

    def spectrum(self, update: Tensor) -> Spectrum:
        """Of the update (rows, cols) of a matrix.

        Raises:
            torch.linalg.LinAlgError: an iteration did not converge.
        """
        if self.leading is None or self.leading >= min(update.shape):
            return self.known(singular_values(update))
        if self.density:
            return estimated_spectrum(update, self.leading)
        return leading_singular_values(update, self.leading)

    def known(self, values: Tensor) -> Spectrum:
        """Of a matrix whose values are all known, descending."""
        kept = values if self.density else values[: self.leading]
        return Spectrum(kept, 0.0, float(torch.linalg.vector_norm(values)))
