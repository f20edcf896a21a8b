"""What a sweep tells while it runs."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import jax
import numpy as np

from optfn.sweep.scheduler import Scheduler
from optfn.sweep.trial import Trial
from optfn.sweep.trials import TrialResult, spread


class Callback:
    """Hears of a sweep's trials while it runs; a subclass overrides what it wants to hear.

        class Print(sweep.Callback):
            def on_trial(self, trial):
                print(trial.trial, trial.status, trial.score)

        sweep.run(..., callbacks=[Print()])

    The sweep waits for it, so it should be quick. An error in it is a warning, and the sweep goes
    on. After a resume it hears of what is new; of a sweep that was killed, once more of what came
    after the last checkpoint. Of several processes only the first one's are called. A population's
    member that copies another reports under its own number, with the values that it has then.
    """

    def on_report(self, trial: TrialResult, step: int, scores: Mapping[str, float]) -> None:
        """Hears of a trial's scores, after each of its segments.

        Args:
            trial: the trial so far, without its params.
            step: the steps it has taken.
            scores: all scores of the task by name, means over the trial's seeds.
        """

    def on_trial(self, trial: TrialResult) -> None:
        """Hears that a trial has ended, and how."""

    def close(self) -> None:
        """Hears that the sweep is over, or was interrupted."""

    def named(self, name: str) -> Self:
        """The callback that hears of one of several sweeps, in each of which trials begin at 0.

        `compare` asks for it; a callback that writes files gives one that writes others.
        """
        return self


class Watch:
    """Tells callbacks what has happened since they were told last."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = callbacks
        self.told: dict[int, tuple[int, str]] = {}

    def skip(self, scheduler: Scheduler) -> None:
        """Takes what a scheduler knows as told."""
        self.told = {t.number: (len(t.curve), t.status) for t in scheduler.trials}

    def tell(self, scheduler: Scheduler) -> None:
        """Tells what is new."""
        if not self.callbacks:
            return
        for trial in scheduler.trials:
            reports, status = self.told.get(trial.number, (0, "stopped"))
            if (reports, status) == (len(trial.curve), trial.status):
                continue
            self.told[trial.number] = len(trial.curve), trial.status
            outcome = outcome_of(trial, scheduler)
            for i in range(reports, len(trial.curve)):
                self._call("on_report", outcome, scheduler.plan.age(i + 1), dict(trial.curve[i]))
            if trial.status != status:
                self._call("on_trial", outcome)

    def _call(self, method: str, *args: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, method)(*args)
            except Exception as error:
                name = type(callback).__name__
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                warnings.warn(f"{name}.{method}: {reason}; the sweep goes on.", stacklevel=2)


@contextmanager
def watched(callbacks: Sequence[Callback]) -> Iterator[Watch]:
    """A watch whose callbacks are closed at the end, also after an error."""
    watch = Watch(callbacks if jax.process_index() == 0 else ())
    try:
        yield watch
    finally:
        watch._call("close")


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks as a tuple.

    Raises:
        TypeError: one of them is no `Callback`.
    """
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Sequence):
        raise TypeError(
            "sweep.run(callbacks=...) must be a list of sweep.Callback, found "
            f"{type(callbacks).__name__}: put it in a list."
        )
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(
                "sweep.run(callbacks=...) must hold instances of sweep.Callback, found "
                f"{callback!r:.60}."
            )
    return tuple(callbacks)


def outcome_of(trial: Trial, scheduler: Scheduler) -> TrialResult:
    """A trial so far."""
    return TrialResult(
        trial=trial.number,
        values=dict(trial.point),
        optimizer=None if trial.candidate is None else trial.candidate.tx,
        score=float(scheduler.plan.task.sign * trial.loss),
        spread=spread(np.array(trial.scores)),
        status=trial.status,
        steps=trial.steps,
        hyperparameter_history=trial.history,
        error=trial.error,
        feasible=trial.feasible,
    )
