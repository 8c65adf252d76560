"""Whether a row written now would be of the weights that its step left, and from which weights the updates count.

What an optimizer's step left is marked as it ends; a snapshot taken then needs no question. One that is asked for
later, by `measure()` or `close()`, is compared with the mark: best weights may have been put back, averaged ones
swapped in. Before the first step the weights are compared with those at attach, before each it is asked whether frozen
ones have been unfrozen.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer

from inrank_monitor.matrices import Matrix, local
from inrank_monitor.tracking.joining import Joining
from inrank_monitor.tracking.measuring import Measuring
from inrank_monitor.tracking.no_recorder import NoRecorder
from inrank_monitor.tracking.optimizers import own_steps
from inrank_monitor.tracking.recorder import Recorder
from inrank_monitor.tracking.run_start import begin_anew, is_at_start, take_up_at
from inrank_monitor.tracking.started_run import StartedRun
from inrank_monitor.tracking.weights_left import Compared, WeightsLeft

logger = logging.getLogger("inrank_monitor")
_SHOWN = 3  # names in a message
_LIVE: weakref.WeakSet[TrueRows] = weakref.WeakSet()


def weights_were_rewritten() -> None:
    """The step that just ended goes on: its weights have been rewritten without a change of what they compute.

    Whoever grows or converts layers between two steps calls it, so that their rows stay rows of that step.
    """
    for rows in list(_LIVE):
        rows.remark()


class TrueRows:
    """The weights of one process's share, as the last counted step left them; at first as they were at attach.

    Args:
        started: the run.
        measuring: of this process.
        recorder: gets the events.
    """

    def __init__(self, started: StartedRun, measuring: Measuring, recorder: Recorder | NoRecorder) -> None:
        self._started, self._measuring, self._recorder = started, measuring, recorder
        self._joining = Joining(started, measuring)
        self._begun = False
        self._looks_back, self._told = False, False
        self._looking: tuple[int, Compared] | None = None  # what a device has still to say of the step before
        self._look()
        _LIVE.add(self)

    def _look(self) -> None:
        matrices, share = self._measuring.matrices, self._measuring.share
        self._left = WeightsLeft([matrices[place] for place in share.held])

    def trains(self) -> bool:
        """Whether an optimizer of the model has stepped, or the weights of this process were changed."""
        return self._begun or bool(self._changed_start())

    def parameters(self) -> set[int]:
        """Ids of the parameters that are watched here."""
        return self._left.parameters()

    def mark(self) -> None:
        """A step has ended."""
        self._begun = True
        self._left.mark()

    def measured(self) -> None:
        """The step that has just ended has a row: whether its weights last until the next is looked at once."""
        self._look_on(wait=True)
        self._looks_back = not self._told

    def remark(self) -> None:
        """What the last step left has another form since."""
        if self._begun:
            self._left.mark()

    def changed(self) -> str:
        """Which weights are no longer those of the mark, in words; empty if none. Every process asks."""
        self._look_on(wait=True)
        return self._agreed(self._left.changed)

    def say_changed(self, step: int, names: str) -> None:
        """Say that a step has no row, since other weights are there now."""
        message = (
            f"the weights are no longer those that step {step} left ({names}): there is no row of it; "
            "measure() before they are exchanged"
        )
        logger.warning(message)
        self._recorder.event(step, "weights_changed", None, message)

    def _changed_start(self) -> list[str]:
        """Of this process: without the factors of layers that begin at no update, whatever they are."""
        without = {matrix.parameter for matrix in self._measuring.matrices if not matrix.has_start}
        return [name for name in self._left.changed() if name not in without]

    def _agreed(self, changed: Callable[[], list[str]]) -> str:
        share, processes = self._measuring.share, self._measuring.share.processes
        failure, here = None, list[str]()
        try:
            share.reshard()
            here = changed()
        except Exception as error:  # the others wait for an answer
            failure = error

        def tell() -> list[str]:
            if failure is not None:
                raise failure
            return here

        if processes.agree(failure is None and not here):
            return ""
        found = processes.everywhere(tell)
        return _some(list(dict.fromkeys(name for own in found for name in own)))

    def changed_here(self) -> bool:
        """Whether those of this process are not; asked of it alone."""
        return bool(self._left.changed())

    def before_step(self, step: int, optimizer: Optimizer) -> int:
        """An optimizer is about to step, after this many; at which step the run stands."""
        if not self._begun:
            self._begun = True
            if names := self._agreed(self._changed_start):
                step = self._start_elsewhere(names, optimizer)
        if self._looks_back:
            self._looks_back = False
            self._looking = step, self._left.compared()
        self._look_on()
        if unfrozen := self._joining.unfrozen(optimizer):
            self.take_in(unfrozen, step)
        return step

    def _look_on(self, wait: bool = False) -> None:
        """Say, once, that the loop changes the weights after the optimizer's step, which its row does not show.

        What an evaluation exchanged and put back is no change: entries are compared, not versions.
        """
        if self._looking is None or not (wait or self._looking[1].is_there()):
            return
        (step, compared), self._looking = self._looking, None
        if names := _some(sorted(compared.different())):
            self._told = True
            message = (
                f"the weights were changed between the optimizer's step {step} and the next ({names}): rows are of "
                "what the optimizer left; for the changed ones give optimizer=None and call tracker.step() after that"
            )
            self._recorder.event(step, "changed_between_steps", None, message)

    def _start_elsewhere(self, names: str, optimizer: Optimizer) -> int:
        """Between attach and the first step the weights were changed: by a checkpoint that was loaded, most likely."""
        started, processes = self._started, self._measuring.share.processes
        if processes.agree(self._is_at_start()):
            return started.step  # exchanged and put back: a gradient was taken elsewhere, say
        changed = f"the weights were changed between attach and the first step ({names})"
        if not started.resumed and processes.agree(self._is_finite()):
            begin_anew(started, self._measuring)
            self._recorder.look_again()
            self._look()
            message = f"{changed}: W0 is taken anew, updates count from what training starts from"
            self._recorder.event(0, "initial_weights_anew", None, message)
        elif started.resumed and started.step == 0:
            steps = (own_steps(optimizer) or 0) - int(started.info["optimizer_steps"])
            advice = "; load the checkpoint before attach, or give resume=N"
            if steps > 0:
                take_up_at(started, steps)
                advice = f": the run is taken up at step {steps}, as the optimizer counts"
            self._recorder.event(started.step, "resumed", None, f"{changed}, at which the run was at step 0{advice}")
        return started.step

    def _is_at_start(self) -> bool:
        """Whether what this process holds is W0 to the bit."""
        matrices, share = self._measuring.matrices, self._measuring.share
        return is_at_start([matrices[place] for place in share.held], self._measuring.initial) is not False

    def _is_finite(self) -> bool:
        """Whether training can start from what this process holds: else W0 stays what it was, and every row says so."""
        matrices, share = self._measuring.matrices, self._measuring.share
        owners = {matrices[place].parameter: matrices[place] for place in share.held if matrices[place].has_start}
        return all(bool(torch.isfinite(local(matrix.read()).float()).all()) for matrix in owners.values())

    def take_in(self, matrices: Sequence[Matrix], step: int) -> None:
        """Watch matrices that have been unfrozen: their W0 is what they are now.

        Raises:
            OSError: it cannot be written.
        """
        names = _some([matrix.name for matrix in matrices])
        if self._measuring.share.processes.count > 1:
            message = (
                f"{names}: unfrozen, and not watched: a run of several processes keeps to the matrices of its start"
            )
            self._recorder.event(step, "unfrozen", None, message)
            return
        self._joining.join(matrices, step)
        self._recorder.look_again()
        self._look()
        for matrix in matrices:
            message = (
                f"{matrix.name} was unfrozen after step {step}: it is watched from here on, its W0 is what it is now"
            )
            self._recorder.event(step, "unfrozen", matrix.name, message)

    def release(self) -> None:
        """Let go of the model."""
        self._looking = None
        self._left = WeightsLeft(())
        self._joining.release()
        _LIVE.discard(self)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
