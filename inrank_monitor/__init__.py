"""How much of each weight matrix does my training really use?

    from inrank_monitor import attach, open_run

    tracker = attach(model, optimizer, "runs/first")      # W0 is the weights as they are now
    for batch in loader:
        loss = model(batch).loss
        loss.backward()
        optimizer.step()                                  # the tracker counts here
        optimizer.zero_grad()
        tracker.log(loss=loss)
    print(tracker.summary())
    tracker.close()
    open_run("runs/first").measurements                   # a pandas table

Watching: attach, SpectrumTracker, find_matrices, LowRankUpdate
Other people's loops: TrackerCallback (transformers' Trainer), LightningCallback; imported when asked for
Checkpoints on disk: scan
Ranks that a loss confirms: ranks_by_loss, loss_at_ranks
Reading: open_run, list_runs, Run
Figures as a paper prints them: paper_figure
Modules: rank_metrics, null_model, spectrum, leading, figures, report, advice
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inrank_monitor.checkpoints.scanning import scan
    from inrank_monitor.integrations.lightning import LightningCallback
    from inrank_monitor.integrations.transformers import TrackerCallback
    from inrank_monitor.loss_ranks import LossRanks, loss_at_ranks, ranks_by_loss
    from inrank_monitor.matrices import LowRankUpdate, find_matrices
    from inrank_monitor.paper import paper_figure
    from inrank_monitor.ranks import metrics as rank_metrics
    from inrank_monitor.ranks import null_model
    from inrank_monitor.runs import Run, list_runs, open_run
    from inrank_monitor.spectra import leading, spectrum
    from inrank_monitor.tracking import SpectrumTracker, attach

__version__ = "0.2.0"
__all__ = [
    "LightningCallback",
    "LossRanks",
    "LowRankUpdate",
    "Run",
    "SpectrumTracker",
    "TrackerCallback",
    "attach",
    "find_matrices",
    "leading",
    "list_runs",
    "loss_at_ranks",
    "null_model",
    "open_run",
    "paper_figure",
    "rank_metrics",
    "ranks_by_loss",
    "scan",
    "spectrum",
]
# Imported when asked for: watching needs torch and no pandas, reading pandas and no torch.
_PLACES = {
    **dict.fromkeys(("LowRankUpdate", "find_matrices"), "matrices"),
    **dict.fromkeys(("SpectrumTracker", "attach"), "tracking"),
    **dict.fromkeys(("LossRanks", "loss_at_ranks", "ranks_by_loss"), "loss_ranks"),
    "LightningCallback": "integrations.lightning",
    "TrackerCallback": "integrations.transformers",
    "scan": "checkpoints.scanning",
    "paper_figure": "paper",
    **dict.fromkeys(("Run", "list_runs", "open_run"), "runs"),
}
_MODULES = {  # under their own names, whatever room they are in
    "rank_metrics": "ranks.metrics",
    "null_model": "ranks.null_model",
    "spectrum": "spectra.spectrum",
    "leading": "spectra.leading",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"inrank_monitor.{_PLACES[name]}"), name)
    if name in _MODULES:
        return import_module(f"inrank_monitor.{_MODULES[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
