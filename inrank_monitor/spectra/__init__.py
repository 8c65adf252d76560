"""Singular values of a matrix, of a product of factors, of the leading part, each with a bound on its error."""

from __future__ import annotations

from inrank_monitor.spectra.decompositions import svd
from inrank_monitor.spectra.devices import (
    has_float64,
    is_accelerator,
    is_capturing,
    is_out_of_memory,
    mark,
    multiplies_in_float64,
    pinned,
    sent,
    wait_for,
)
from inrank_monitor.spectra.directions import (
    Subspaces,
    Turn,
    leading_directions,
    leading_directions_of_product,
    turn,
)
from inrank_monitor.spectra.estimated import estimated_spectrum
from inrank_monitor.spectra.full_precision import FULL_PRECISION
from inrank_monitor.spectra.krylov import krylov_sizes
from inrank_monitor.spectra.leading import is_large_part, leading_singular_values
from inrank_monitor.spectra.method import SpectrumMethod
from inrank_monitor.spectra.pool import SpectrumPool, cores
from inrank_monitor.spectra.scratch import scratch, scratch_bytes
from inrank_monitor.spectra.spectrum import (
    Spectrum,
    columns_at_a_time,
    float64,
    gram_matrix,
    grams_of_product,
    not_finite,
    singular_values,
    singular_values_of_gram,
    singular_values_of_grams,
    singular_values_of_product,
)
from inrank_monitor.spectra.staging import PIECE_BYTES, PIECES, Staging, bytes_of, subtract, waiting_bytes

__all__ = [
    "FULL_PRECISION",
    "PIECES",
    "PIECE_BYTES",
    "Spectrum",
    "SpectrumMethod",
    "SpectrumPool",
    "Staging",
    "Subspaces",
    "Turn",
    "bytes_of",
    "columns_at_a_time",
    "cores",
    "estimated_spectrum",
    "float64",
    "gram_matrix",
    "grams_of_product",
    "has_float64",
    "is_accelerator",
    "is_capturing",
    "is_large_part",
    "is_out_of_memory",
    "krylov_sizes",
    "leading_directions",
    "leading_directions_of_product",
    "leading_singular_values",
    "mark",
    "multiplies_in_float64",
    "not_finite",
    "pinned",
    "scratch",
    "scratch_bytes",
    "sent",
    "singular_values",
    "singular_values_of_gram",
    "singular_values_of_grams",
    "singular_values_of_product",
    "subtract",
    "svd",
    "turn",
    "wait_for",
    "waiting_bytes",
]
