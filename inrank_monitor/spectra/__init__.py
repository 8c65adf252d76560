"""Singular values of a matrix, of a product of factors, of the leading part, each with a bound on its error."""

from __future__ import annotations

from inrank_monitor.spectra.directions import (
    Subspaces,
    Turn,
    leading_directions,
    leading_directions_of_product,
    turn,
)
from inrank_monitor.spectra.estimated import estimated_spectrum
from inrank_monitor.spectra.leading import LeadingSubspace, is_large_part, leading_singular_values
from inrank_monitor.spectra.method import SpectrumMethod
from inrank_monitor.spectra.scratch import scratch, scratch_bytes
from inrank_monitor.spectra.spectrum import (
    Spectrum,
    SpectrumPool,
    columns_at_a_time,
    float64,
    gram_matrix,
    not_finite,
    singular_values,
    singular_values_of_gram,
    singular_values_of_product,
)

__all__ = [
    "LeadingSubspace",
    "Spectrum",
    "SpectrumMethod",
    "SpectrumPool",
    "Subspaces",
    "Turn",
    "columns_at_a_time",
    "estimated_spectrum",
    "float64",
    "gram_matrix",
    "is_large_part",
    "leading_directions",
    "leading_directions_of_product",
    "leading_singular_values",
    "not_finite",
    "scratch",
    "scratch_bytes",
    "singular_values",
    "singular_values_of_gram",
    "singular_values_of_product",
    "turn",
]
