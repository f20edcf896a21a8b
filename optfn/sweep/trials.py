"""What came of every trial of a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, get_args

import numpy as np

from optfn.core.text_table import text
from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.sweep.join_optimizers import optimizer_of_history
from optfn.sweep.plan import Plan
from optfn.sweep.search import TrialStatus
from optfn.sweep.task import Model, Training
from optfn.sweep.trial import History

STATUSES = *get_args(TrialStatus), "stopped"


class RunResult(NamedTuple):
    """One run of a trial.

    Attributes:
        score: its score.
        params: the params that have it; None if they were not kept.
        model_state: the state of the model that goes with them; None without one.
    """

    score: float
    params: PyTree
    model_state: PyTree = None


@dataclass(frozen=True)
class TrialResult:
    """One trial: its hyperparameters and its outcome.

    Attributes:
        trial: its number.
        values: the hyperparameters.
        optimizer: the optimizer with these hyperparameters; None if it failed, or was loaded.
        score: the mean over its runs, in the units of the task; inf (or -inf) if a run diverged.
        spread: the standard deviation over its seeds; nan for one seed, or if a run diverged.
        status: "ok", "pruned", "diverged", "not_finite", "stopped", or "failed" where an error was
            raised.
        steps: the steps taken.
        params: the params of the first run that were scored, the average of an optimizer that
            averages; None if they were not kept.
        model_state: the state of the model that goes with them, of a task with `has_state`.
        runs: for each seed whose score counts, its score, and its params and model state or None.
        hyperparameter_history: pairs of a step and the hyperparameters from that step on. There are
            several only under a population policy; `optimizer` then changes from one to the next.
        error: what was raised, if it failed.
        feasible: whether it breaks no constraint.
    """

    trial: int
    values: dict[str, Any]
    optimizer: Transform | None
    score: float
    spread: float
    status: str
    steps: int
    params: PyTree = field(default=None, repr=False)
    model_state: PyTree = field(default=None, repr=False)
    runs: tuple["RunResult", ...] = field(default=(), repr=False)
    hyperparameter_history: Sequence[tuple[int, dict[str, Any]]] = ()
    error: str = ""
    feasible: bool = True


@dataclass(frozen=True)
class Trials:
    """The outcomes of all trials of a sweep; `Result` explains the attributes."""

    plan: Plan = field(repr=False)
    points: Sequence[dict[str, Any]] = field(repr=False)
    scores: np.ndarray = field(repr=False)
    status: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    started_at: np.ndarray = field(repr=False)
    segments: Sequence[list[int]] = field(repr=False)
    curves: dict[str, np.ndarray] = field(repr=False)
    at_score: dict[str, np.ndarray] = field(repr=False)
    violations: np.ndarray = field(repr=False)
    ages: np.ndarray = field(repr=False)
    kept: dict[int, tuple[Model | None, ...]] = field(repr=False)
    rungs: tuple[int, ...] = field(repr=False)
    copied_from: np.ndarray = field(repr=False)
    hyperparameter_history: Sequence[History] = field(repr=False)
    own_history: Sequence[History] = field(repr=False)
    errors: dict[int, str] = field(repr=False)
    lane_steps: int
    seconds: float
    mode: str
    confirmed: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def task(self) -> Training:
        """The task of the sweep."""
        return self.plan.task

    @cached_property
    def losses(self) -> np.ndarray:
        """float `[trials]`, lower is always better; inf where a run has no finite score."""
        return _mean(self.task.sign * self._counting)

    @cached_property
    def _counting(self) -> np.ndarray:
        """The scores that count: those of fresh seeds for confirmed trials."""
        return _counting(self.scores, self.confirmed)

    @property
    def spreads(self) -> np.ndarray:
        """float `[trials]`, the standard deviations over the seeds, see `TrialResult.spread`."""
        return np.array([spread(scores) for scores in self._counting])

    @cached_property
    def feasible(self) -> np.ndarray:
        """bool `[trials]`, whether they break no constraint."""
        return np.all(self.violations <= 0, axis=1)

    @property
    def can_win(self) -> np.ndarray:
        """bool `[trials]`, whether they have a finite score and break no constraint."""
        return np.isfinite(self.losses) & self.feasible

    @property
    def names(self) -> list[str]:
        """The names of all hyperparameters that a trial has."""
        return list(dict.fromkeys(name for point in self.points for name in point))

    def order(self) -> np.ndarray:
        """int `[trials]`, the trials from the best to the worst.

        Confirmed trials come first, then finished ones, then pruned and stopped ones, whose scores
        do not compare with those. Trials that break a constraint come after all of these, and those
        without a finite score last.
        """
        kind = np.where(self.status == "ok", 1, 2)
        kind[~np.isnan(self.confirmed).all(axis=1)] = 0
        losses = self.losses
        kind[~self.feasible] = 3
        kind[np.isinf(losses)] = 4
        return np.lexsort((np.arange(len(self)), losses, kind))

    def trial(self, number: int) -> TrialResult:
        """One trial by its number, from 0."""
        _check_trial(number, len(self))
        scores = self._counting[number]
        scores = scores[~np.isnan(scores)]
        lost = number in self.errors or self.plan.make_optimizer is None
        models = self.kept.get(int(number), (None,) * len(scores))
        runs = tuple(
            RunResult(score, *(model or Model(None)))
            for score, model in zip(scores.tolist(), models, strict=False)
        )
        return TrialResult(
            trial=int(number),
            values=dict(self.points[number]),
            optimizer=None if lost else self._optimizer(number),
            score=float(self.task.sign * self.losses[number]),
            spread=spread(scores),
            status=str(self.status[number]),
            steps=int(self.steps[number]),
            params=runs[0].params if runs else None,
            model_state=runs[0].model_state if runs else None,
            runs=runs,
            hyperparameter_history=self.hyperparameter_history[number],
            error=self.errors.get(int(number), ""),
            feasible=bool(self.feasible[number]),
        )

    def _optimizer(self, trial: int, length: int | None = None) -> Transform:
        """The optimizer that trained the trial; histories of one `length` give one structure."""
        history = self.hyperparameter_history[trial]
        return optimizer_of_history(self.plan.optimizer, history, length)

    def top(self, k: int) -> list[TrialResult]:
        """The k best trials, the best first."""
        return [self.trial(i) for i in self.order()[:k]]

    def counts(self) -> str:
        """The number of trials with each status."""
        counts = {s: int((self.status == s).sum()) for s in STATUSES}
        return ", ".join(f"{n} {s}" for s, n in counts.items() if n)

    def constraints(self) -> list[str]:
        """For each trial whether constraints are "kept" or "broken"; "" before it has scores."""
        known = ~np.isnan(self.violations).any(axis=1)
        return np.where(known, np.where(self.feasible, "kept", "broken"), "").tolist()

    def columns(self) -> dict[str, list[Any]]:
        """The columns of a table with a row for each trial; other scores are those of `at_score`.

        A hyperparameter with the name of another column gets the prefix "optimizer.".
        """
        return _columns(self)


def spread(scores: np.ndarray) -> float:
    """The standard deviation over the runs that have a score; nan for one, or if one is lost."""
    scores = scores[~np.isnan(scores)]
    several = len(scores) > 1 and bool(np.isfinite(scores).all())
    return float(scores.std(ddof=1)) if several else float("nan")


def _columns(trials: Trials) -> dict[str, list[Any]]:
    """The columns of `Trials.columns`."""
    members = [trials.trial(i) for i in range(len(trials))]
    outcomes = {
        trials.task.objective: [m.score for m in members],
        "spread": [m.spread for m in members],
        "steps": [m.steps for m in members],
        "status": [m.status for m in members],
    }
    if trials.violations.shape[1]:
        outcomes["constraints"] = trials.constraints()
    others = [name for name in trials.at_score if name not in outcomes]
    outcomes |= {name: trials.at_score[name].tolist() for name in others}
    numbers = {"trial": [m.trial for m in members]}
    names = {x: f"optimizer.{x}" if x in outcomes | numbers else x for x in trials.names}
    tried = {
        column: [text(v) if callable(v := m.values.get(x)) else v for m in members]
        for x, column in names.items()
    }
    return numbers | tried | outcomes


def _check_trial(number: int, trials: int) -> None:
    if number not in range(trials):
        raise IndexError(
            f"result.trial(number={number!r}): there are {trials} trials, numbered from 0."
        )


def _counting(scores: np.ndarray, confirmed: np.ndarray) -> np.ndarray:
    """The scores `[trials, runs]`, of fresh seeds where a trial was confirmed; nan for the rest."""
    fresh = ~np.isnan(confirmed).all(axis=1)
    counting = np.full((len(scores), max(scores.shape[1], confirmed.shape[1])), np.nan)
    counting[:, : scores.shape[1]] = scores
    counting[fresh] = np.nan
    counting[fresh, : confirmed.shape[1]] = confirmed[fresh]
    return counting


def _mean(scores: np.ndarray) -> np.ndarray:
    """The mean over the runs of each trial, `[trials]`; inf where a run has no finite score."""
    runs = np.sum(~np.isnan(scores), axis=1)
    total = np.where(np.isfinite(scores), scores, 0).sum(axis=1)
    lost = (runs == 0) | np.isinf(scores).any(axis=1)
    return np.where(lost, np.inf, total / np.maximum(runs, 1))
