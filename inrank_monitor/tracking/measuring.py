"""What one process measures at every snapshot, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inrank_monitor.distributed import Share
from inrank_monitor.matrices import InitialWeights, Matrix, no_weights
from inrank_monitor.spectra import SpectrumMethod, SpectrumPool


@dataclass
class Measuring:
    """Everything between the weights and their spectra.

    Attributes:
        matrices: all that the run watches.
        share: of them, what falls to this process.
        initial: W0 of that share.
        method: how a spectrum is taken.
        pool: its workers.
    """

    matrices: Sequence[Matrix]
    share: Share
    initial: InitialWeights
    method: SpectrumMethod
    pool: SpectrumPool

    def release(self) -> None:
        """Let go of the model and of W0."""
        self.pool.close()
        self.matrices, self.share, self.initial = (), Share([], {}), no_weights()
