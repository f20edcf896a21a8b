"""The best trials again, on fresh seeds: a score that is not the luck of the draw."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.result import Result
from optfn.sweep.scheduler import Scheduler


@dataclass(frozen=True)
class Confirm:
    """Trains the best trials of a sweep again, on seeds that none has seen.

    The best score of many is biased: it was also picked for its luck. Fresh runs have no such bias;
    their mean becomes the score of the trial and decides the order, and their params are its
    params. It costs `top * seeds` runs. At the same cost, more seeds make the scores more precise,
    more trials the choice wider.

    Args:
        top: the number of trials, of those that finished.
        seeds: the fresh seeds of each.

    Raises:
        ValueError: a number below 1.
    """

    top: int = 8
    seeds: int = 4

    def __post_init__(self) -> None:
        check_count(self.top, "Confirm(top=...)")
        check_count(self.seeds, "Confirm(seeds=...)")

    def of(
        self,
        result: Result,
        train: Callable[[Scheduler, str], Any],
        catch: tuple[type[Exception], ...] = (),
    ) -> Result:
        """The result with the scores of fresh runs.

        Args:
            result: the sweep's result.
            train: trains all trials of a scheduler, which has a name that says what they are.
            catch: the errors that make a fresh run failed, whose score is the worst.
        """
        best = [i for i in result.order()[: self.top] if result.can_win[i]]
        best = [i for i in best if result.status[i] == "ok"]
        if len(best) < min(self.top, len(result)):
            warnings.warn(
                f"Confirm(top={self.top}) confirms {len(best)}: no more trials ended with a finite "
                f"score, of {len(result)}: {result.counts()}. A policy may let more come to the "
                f"end, as asha(..., least={self.top}) does.",
                stacklevel=3,
            )
        if not best:
            return result
        first = result.scores.shape[1]
        scheduler = result.train_again(
            [int(i) for i in best for _ in range(self.seeds)],
            lambda number: (first + number % self.seeds,),
            catch,
        )
        which = f"{', '.join(map(str, best))} of {len(result)}"
        train(scheduler, f"{self.seeds} seeds of {which}")
        at_score = {name: x.copy() for name, x in result.at_score.items()}
        violations = result.violations.copy()
        confirmed = np.full((len(result), self.seeds), np.nan)
        kept = dict(result.kept)
        for place, i in enumerate(best):
            fresh = scheduler.trials[place * self.seeds : (place + 1) * self.seeds]
            if len(fresh) == self.seeds and all(trial.status != "stopped" for trial in fresh):
                worst = result.task.sign * np.inf
                scores = [t.scores[0] if np.isfinite(t.loss) else worst for t in fresh]
                confirmed[i] = scores
                for name, column in at_score.items():
                    column[i] = np.mean([t.moment.get(name, np.nan) for t in fresh])
                means = {name: float(column[i]) for name, column in at_score.items()}
                violations[i] = result.plan.violations(means)
                kept[int(i)] = tuple(t.models[0] if t.models else None for t in fresh)
        lane_steps = result.lane_steps + scheduler.executor.lane_steps
        return replace(
            result,
            confirmed=confirmed,
            at_score=at_score,
            violations=violations,
            kept=kept,
            lane_steps=lane_steps,
        )
