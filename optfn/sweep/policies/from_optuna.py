"""Optuna's pruners as policies."""

import dataclasses
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import numpy as np

from optfn.core.data import check_count
from optfn.sweep.optuna_library import optuna_library, quiet_optuna
from optfn.sweep.plan import round_up
from optfn.sweep.policies.policy import (
    Policy,
    Scores,
    Verdict,
    check_run,
    check_standing,
    require_rungs,
)


@dataclasses.dataclass(frozen=True)
class from_optuna(Policy):
    """An Optuna pruner, asked about every trial at its rungs.

    For the rules that optfn lacks: `MedianPruner`, `PercentilePruner`, `PatientPruner`,
    `ThresholdPruner`, `WilcoxonPruner` and your own. The pruner sees a study in memory of the
    task's own scores, which it minimizes or maximizes as the task does. All scores of a segment are
    reported before it is asked about the first trial, in the order of the trials' numbers, with
    training steps as Optuna's steps. A trial that reached its end is complete; one that diverged
    has failed, and the pruner is not asked about it.

    Nothing is written to a storage. After a restart the study is rebuilt from the scores, with the
    same questions, so a pruner must give the same answers each time. It is copied, never changed.

    Args:
        pruner: an `optuna.pruners.BasePruner`. Its thresholds apply to the task's own scores:
            `ThresholdPruner(lower=0.5)` stops a trial whose accuracy is below a half.
        every: steps between two questions, rounded up to whole segments; 1 asks at each segment.

    Raises:
        ImportError: Optuna is not installed.
        TypeError: `pruner` is not a pruner.

    Source: Akiba et al. 2019, "Optuna: A Next-generation Hyperparameter Optimization Framework".
    """

    pruner: Any
    every: int = 1
    _replay: "_Replay" = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_count(self.every, "from_optuna(every=...)")
        optuna = optuna_library("from_optuna(...)")
        if not isinstance(self.pruner, optuna.pruners.BasePruner):
            raise TypeError(
                "from_optuna(pruner=...) must be a pruner such as optuna.pruners.MedianPruner(), "
                f"found {type(self.pruner).__name__}."
            )
        object.__setattr__(self, "_replay", _Replay(self.pruner))

    def rungs(self, steps: int, segment: int) -> tuple[int, ...]:
        check_run(steps, segment)
        every = round_up(self.every, segment)
        return require_rungs(
            range(every, steps, every), steps, segment, f"from_optuna(every={self.every})"
        )

    def judge(self, scores: Scores, standing: Iterable[tuple[int, int]]) -> list[Verdict]:
        standing = check_standing(scores, standing)
        self._replay.follow(scores)
        return [self._replay.verdicts[at] for at in standing]


class _Replay:
    """A study that follows the scores: a cache, rebuilt where the scores are not a continuation."""

    def __init__(self, pruner: Any):
        self.pruner = pruner
        self._begin((), 0, 1)

    def _begin(self, ages: tuple[int, ...], trials: int, sign: int) -> None:
        with quiet_optuna() as optuna:
            storage = optuna.storages.InMemoryStorage()
            self.study = optuna.create_study(
                storage=storage,
                study_name="sweep",
                pruner=deepcopy(self.pruner),
                direction="minimize" if sign > 0 else "maximize",
            )
        number = storage.get_study_id_from_name("sweep")
        self.ids = [storage.create_new_trial(number) for _ in range(trials)]
        self.storage, self.states = storage, optuna.trial.TrialState
        self.ages, self.sign, self.seen, self.verdicts = ages, sign, np.empty((0, 4)), {}

    def follow(self, scores: Scores) -> None:
        """Reports the new scores, segment by segment, and asks about their trials."""
        trials, columns = np.nonzero(scores.segments >= 0)
        segments, values = scores.segments[trials, columns], scores.table[trials, columns]
        events = np.stack([segments, trials, columns, values], axis=1)
        events = events[np.lexsort((columns, trials, segments))]
        known = np.array_equal(events[: len(self.seen)], self.seen)
        frame = scores.ages, len(scores.table), scores.sign
        if not known or frame != (self.ages, len(self.ids), self.sign):
            self._begin(*frame)
        new = events[len(self.seen) :]
        self.seen = events
        for segment in np.unique(new[:, 0]):
            self._segment(new[new[:, 0] == segment, 1:])

    def _segment(self, arrived: np.ndarray) -> None:
        rows = [
            (int(trial), int(column), float(self.sign * score)) for trial, column, score in arrived
        ]
        ended = set()  # one that ends by itself has its score at all later rungs at once
        for trial, column, score in rows:
            number, states = self.ids[trial], self.states
            if trial in ended:
                continue
            self.storage.set_trial_intermediate_value(number, self.ages[column], score)
            if not np.isfinite(score):
                self.storage.set_trial_state_values(number, states.FAIL)
                ended.add(trial)
            elif column == len(self.ages) - 1:
                self.storage.set_trial_state_values(number, states.COMPLETE, [score])
                ended.add(trial)
        for trial, column, score in rows:
            stop, number = not np.isfinite(score), self.ids[trial]
            if trial not in ended:
                stop = self.study.pruner.prune(self.study, self.storage.get_trial(number))
                if stop:
                    self.storage.set_trial_state_values(number, self.states.PRUNED, [score])
            self.verdicts[trial, column] = Verdict.STOP if stop else Verdict.CONTINUE
