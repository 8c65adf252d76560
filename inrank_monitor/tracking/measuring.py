"""What one process measures at every snapshot, and with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inrank_monitor.distributed import Share
from inrank_monitor.matrices import InitialWeights, Matrix, no_weights
from inrank_monitor.spectra import SpectrumMethod, SpectrumPool, Staging
from inrank_monitor.tracking.structure import Structure

if TYPE_CHECKING:
    from inrank_monitor.tracking.beside import Beside


@dataclass
class Measuring:
    """Everything between the weights and their spectra.

    Attributes:
        matrices: all that the run watches.
        share: of them, what falls to this process.
        initial: W0 of that share.
        method: how a spectrum is taken.
        pool: its workers.
        structure: of the live model; None where checkpoints are measured.
        beside: what is measured beside the spectra of updates; None: nothing.
        staging: through which an accelerator gets W0 and gives what the pool solves.
    """

    matrices: Sequence[Matrix]
    share: Share
    initial: InitialWeights
    method: SpectrumMethod
    pool: SpectrumPool
    structure: Structure | None = None
    beside: Beside | None = None
    staging: Staging = field(default_factory=Staging)

    def gone(self) -> dict[str, str]:
        """Why matrices are no longer in the model, by the names of those that are not."""
        return self.structure.gone(self.matrices) if self.structure else {}

    def release(self) -> None:
        """Let go of the model and of W0."""
        self.staging.close()
        self.pool.close()
        self.matrices, self.share, self.initial, self.structure = (), Share([], {}), no_weights(), None
        self.beside = None
