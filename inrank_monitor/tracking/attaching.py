"""attach(): checks what it is given, begins or resumes the run directory, and makes the tracker.

Everything that can be wrong is found here, before the first step, and raised with the argument's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from inrank_monitor.distributed import gathering_modules, share_out, training_processes
from inrank_monitor.matrices import Keep, Matrix, Parts, unwrap
from inrank_monitor.ranks import Definition
from inrank_monitor.runs import RunOptions, local_path
from inrank_monitor.sinks import Sink, check_sinks, connect_sinks
from inrank_monitor.tracking.beside import check_beside
from inrank_monitor.tracking.joining import as_in_run, parameters_of_run
from inrank_monitor.tracking.optimizers import own_steps, unwrap_optimizer
from inrank_monitor.tracking.pace import now
from inrank_monitor.tracking.run_start import Resumption, RunStart, start_run
from inrank_monitor.tracking.schedule import Schedule, make_schedule
from inrank_monitor.tracking.snapshot_calls import OnSnapshot, check_on_snapshot
from inrank_monitor.tracking.tracker import SpectrumTracker
from inrank_monitor.tracking.trained_with import trained_with
from inrank_monitor.tracking.watched import Watched

_INSTEAD = "give optimizer=None and call step() of what attach returns after each of its steps"


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None,
    directory: str | Path,
    *,
    every: int | None = None,
    schedule: Schedule | Callable[[int], bool] | None = None,
    max_overhead: float = 0.01,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    threshold: float = 0.9,
    buffer_rank: int | None = None,
    definition: Definition = "paper",
    leading: int | None = None,
    density: bool = False,
    initial_weights: Keep = "disk",
    embeddings: bool = False,
    split_parts: bool = True,
    parts: Mapping[str, Parts] | None = None,
    tensorboard: bool | Literal["matrices"] = True,
    resume: bool | int = False,
    strict: bool = False,
    distributed: bool | None = None,
    sinks: Sequence[Sink] = (),
    on_snapshot: OnSnapshot | None = None,
    of: str | Sequence[str] = "update",
    directions: bool | int = False,
    config: Mapping[str, Any] | None = None,
) -> SpectrumTracker:
    """Watch the spectra of ΔW = W_t − W0 of every weight matrix; W0 is the weights as they are now.

    Args:
        model: any module, also compiled or wrapped in DataParallel or DistributedDataParallel.
        optimizer: its steps are counted by a hook, and those of another that trains the same parameters. Several may
            be given, in the order in which the loop steps them: the last one counts. None: call `tracker.step()` after
            each step.
        directory: of the run; made if need be. Absolute from then on; an address such as `s3://...` is refused.
        every: measure at each multiple of this many steps, whatever it costs.
        schedule: measure where this function of the step is true (or a `Schedule`). Default: `Automatic`.
        max_overhead: the automatic schedule takes at most this share of wall time over ten minutes and more. Before
            that an early series of geometric steps may borrow against those ten minutes: at most 3 seconds in all
            within the first minute, at most 5 % of the time so far up to the tenth, where it is 0.01.
        include: globs over matrix names; only these are watched.
        exclude: globs over matrix names; these are not.
        threshold: α, in (0, 1].
        buffer_rank: b of eq. 7, for all matrices. Default: what fits each, 100 where its short side is at least 768,
            else an eighth of that, at least 4.
        definition: of the explained ratio.
        leading: measure only this many leading singular values, with a bound on their error.
        density: with `leading`: estimate the values after them, for densities and norms of very large matrices.
        initial_weights: where W0 is kept: `"disk"`, `"memory"` (CPU) or `"device"`.
        embeddings: watch embeddings too.
        split_parts: q, k, v, gate and up of fused projections, and recurrent gates as matrices of their own, where the
            model says certainly how they lie; `coverage` says which, and why.
        parts: for other fused weights, glob over their names or their layers' -> names of equal parts, or names with
            rows, `{"*.c_attn": ("q", "k", "v")}`, `{"*.wqkv": {"q": 64, "k": 16, "v": 16}}`. Rows that are a fraction
            of the weight's are those of one head, after which the next one follows. None: it stays whole.
        tensorboard: write an event file beside the log: summaries by role, and of fewer than 100 matrices scalars and
            histograms of each. `"matrices"`: of each, however many they are.
        resume: go on with the run in `directory`, or begin one where there is none. True: at step 0 if the weights are
            W0, else at the step that the optimizer's own counter tells, else at the last one logged. A number: at that
            step.
        strict: raise the tracker's errors inside the loop instead of recording them.
        distributed: None: where torch.distributed runs several processes, all of them call `attach`, one run is
            written, and the spectra are shared out among them. False: this process watches alone.
        sinks: other loggers that get the measurements too; see `inrank_monitor.sinks`.
        on_snapshot: a function that gets each snapshot's rows of `run.measurements`, in the loop's thread, before the
            step's `optimizer.step()` returns. The loop waits until they are drawn; on the main process alone.
        of: `("update", "weight")` measures the spectrum of W_t itself too, into `run.weights`; about as dear again.
        directions: log how far this many leading directions of ΔW turned, how they lie to those of W0, and the intruder
            dimensions of W_t, into `run.directions`; True: 16. Several times as dear as the spectra.
        config: what the training is run with, `vars(args)` for one, kept in run.json beside the optimizer's class and
            hyperparameters: runs that differ in nothing but seeds, names and places are compared as one.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
        FileExistsError: `directory` holds a run and `resume` is False.
        OSError: the directory cannot be written.

    References:
        Zhao et al. 2023, arXiv:2306.11250, definition 1 and eq. 7.
    """
    began = now()
    path = local_path(directory)
    if not isinstance(resume, int) or resume < 0:
        raise ValueError(f"resume must be True, False or a step of at least 0, got {resume!r}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    options = RunOptions(
        threshold=threshold,
        buffer_rank=buffer_rank,
        definition=definition,
        leading=leading,
        density=density,
        include=include,
        exclude=exclude,
        embeddings=embeddings,
        split_parts=split_parts,
        parts=parts,
        every=every,
        max_overhead=max_overhead,
        initial_weights=initial_weights,
        tensorboard=tensorboard,
        strict=strict,
        of=of,
        directions=directions,
    )
    sinks = check_sinks(sinks)
    check_on_snapshot(on_snapshot)
    chosen = make_schedule(every, schedule, max_overhead)
    for module in gathering_modules(model):
        module.reshard()
    optimizers = _optimizers(optimizer, model)
    training = trained_with(optimizers, config)
    processes = training_processes(distributed)
    late: list[Matrix] = []
    try:
        before = processes.on_main(lambda: parameters_of_run(path)) if resume is not False else set()
        watched = Watched.of(model, options.selection, before)
        if resume is not False and processes.count == 1:
            watched, late = as_in_run(path, watched, options)
        processes.on_main(lambda: connect_sinks(sinks, [matrix.name for matrix in watched.matrices]))
        share = share_out(model, watched.matrices, processes)
        asked = {"of": options.of, "directions": options.directions}
        check_beside(asked, processes.agree(not share.sharded) is False, watched.matrices)
        start = RunStart(path, watched, options, share, training)
        started, measuring = start_run(start, Resumption(resume, own_steps(optimizers[-1]) if optimizers else None))
    except BaseException:
        processes.close()
        raise
    tracker = SpectrumTracker(started, measuring, chosen, sinks, began, on_snapshot)
    tracker.count_steps_of(optimizers)
    if late:
        tracker.take_in(late)
    return tracker


def _optimizers(given: Optimizer | Sequence[Optimizer] | None, model: nn.Module) -> list[Optimizer]:
    several = [] if given is None else given if isinstance(given, list | tuple) else [given]
    optimizers = [unwrap_optimizer(optimizer, _INSTEAD) for optimizer in several]
    own = {id(parameter) for parameter in unwrap(model).parameters()}
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if optimizers and not own & held:
        raise ValueError("optimizer holds no parameter of model: was it made for another one?")
    return optimizers
