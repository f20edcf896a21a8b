"""The results of a sweep."""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from optfn.core.text_table import in_columns, number
from optfn.sweep.checkpoint import newest
from optfn.sweep.one_of import OneOf, applying
from optfn.sweep.policies.policy import run_all
from optfn.sweep.recorded import scheduler_of
from optfn.sweep.report import report
from optfn.sweep.scheduler import Scheduler
from optfn.sweep.search import listed
from optfn.sweep.space import Choice, Distribution, Fixed
from optfn.sweep.trials import TrialResult, Trials

AGAIN = "the trial"  # no name of an argument
MOST_IN_LINE = 4  # values of a hyperparameter in a table

# What a trial that is trained again has already.
KNOWN_BEFORE = ("trial", "values", "optimizer", "hyperparameter_history")


@dataclass(frozen=True, repr=False)
class Result(Trials):
    """All trials of a sweep, as arrays `[trials, ...]`.

    Attributes:
        plan: what every run had in common: task, optimizer, space, steps, lanes and seed.
        points: the hyperparameters of each trial.
        scores: float `[trials, seeds]`, the score that counts, by default the last, in the units of
            the task: the worst infinity where a run diverged or its score is not finite, nan where
            it has none yet.
        status: str `[trials]`, how they ended, see `TrialResult`.
        steps: int `[trials]`, the steps taken.
        started_at: int `[trials]`, the sweep's steps before the trial started; -1 if it did not.
        segments: for each trial the segments of the sweep in which it had lanes.
        curves: by name, float `[trials, segments]`, the mean over the seeds at each age; nan after
            the trial's end.
        at_score: by name, float `[trials]`, all scores as means over the seeds, at the moment whose
            score counts: the last of a run, or under `score="best"` its best.
        violations: float `[trials, constraints]`, how far those scores are from keeping each
            constraint, above 0 where it is broken; nan for trials without scores.
        ages: int `[segments]`, the ages of the curves, in steps.
        kept: by the number of a trial, for the best of them, a pair for each run whose score
            counts: its params, and the model's state or None.
        rungs: the ages at which the policy judged.
        copied_from: int `[rounds, trials]`, the source of each population member in each round.
        hyperparameter_history: for each trial, pairs of a step and the point that trained its
            params from that step on. It has several pairs only in a population: a trial
            that copies another takes over its history.
        own_history: the same for the points a member had itself, also those given up for a copy.
        confirmed: float `[trials, fresh seeds]`, the scores of `Confirm`; nan for other trials.
        errors: by the number of a trial that failed, what was raised.
        lane_steps: the steps of all lanes, idle ones included.
        seconds: the duration of the whole sweep.
        mode: how lanes were trained, "vmap", "map" or "loop".
    """

    @classmethod
    def of(cls, scheduler: Scheduler, seconds: float) -> "Result":
        """The records of a scheduler so far."""
        plan, trials = scheduler.plan, scheduler.trials
        count = max((len(trial.curve) for trial in trials), default=0)
        # Of tasks that a function makes, one may record what another does not.
        names = list(dict.fromkeys(name for t in trials for x in t.curve[:1] for name in x))
        blank = dict.fromkeys(names, np.nan)
        constraints = max([len(plan.constraints), *(len(trial.violations) for trial in trials)])
        curves = [trial.curve + [blank] * (count - len(trial.curve)) for trial in trials]
        return cls(
            plan=plan,
            points=[trial.point for trial in trials],
            scores=np.array([trial.scores for trial in trials]),
            status=np.array([trial.status for trial in trials]),
            steps=np.array([trial.steps for trial in trials]),
            started_at=np.array(
                [t.segments[0] * plan.segment if t.segments else -1 for t in trials]
            ),
            segments=[trial.segments for trial in trials],
            curves={
                name: np.array([[x.get(name, np.nan) for x in c] for c in curves]) for name in names
            },
            at_score={
                name: np.array([np.mean(t.moment.get(name, np.nan)) for t in trials])
                for name in names
            },
            violations=np.array(
                [trial.violations or [np.nan] * constraints for trial in trials], float
            ).reshape(len(trials), constraints),
            ages=np.array([plan.age(i + 1) for i in range(count)], int),
            kept={trial.number: trial.models for trial in scheduler.kept},
            rungs=scheduler.scores.ages[:-1],
            copied_from=np.array(scheduler.copied_from, int).reshape(-1, len(trials)),
            hyperparameter_history=[trial.history for trial in trials],
            own_history=[trial.own_history for trial in trials],
            errors={trial.number: trial.error for trial in trials if trial.error},
            lane_steps=scheduler.executor.lane_steps,
            seconds=seconds,
            mode=scheduler.executor.mode,
            confirmed=np.full((len(trials), 0), np.nan),
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Result":
        """The trials of a sweep so far, from its `checkpoint` and without its code.

        Functions and other objects among the values are there as their text, params in dicts, lists
        and tuples. Trials in training have no params. There are no optimizers and nothing trains
        again: `run` with the same `checkpoint` does both. A confirmation is not in it.

        Args:
            folder: the folder of the checkpoints.

        Raises:
            ValueError: there is no whole checkpoint.
        """
        host, arrays = newest(folder)
        return cls.of(scheduler_of(host, arrays), host["recorded"]["seconds"])

    def __repr__(self) -> str:
        best = number(self.top(1)[0].score) if self.can_win.any() else "none"
        return (
            f"Result({len(self)} trials: {self.counts()}; best {self.task.objective} {best}; "
            f"mode {self.mode}; {self.seconds:.1f} s)"
        )

    def best(self) -> TrialResult:
        """The best trial: its hyperparameters, its optimizer, its params and its score.

        Raises:
            ValueError: no trial has a finite score and keeps all constraints.
        """
        if not self.can_win.any():
            scored = int(np.isfinite(self.losses).sum())
            why = (
                f"none of the {scored} trials with a finite score keeps all constraints"
                if scored
                else "no trial has a finite score"
            )
            raise ValueError(
                f"{why}, {self.counts()} of {len(self)}: {_tried(self.points, self.names)} was "
                "tried."
            )
        return self.top(1)[0]

    def refined_space(self, k: int = 8) -> dict[str, Distribution]:
        """The part of the space that holds the k best trials, for another sweep.

            again = sweep.run(task, optfn.adam, result.refined_space(), trials=64, steps=1000)

        Each hyperparameter ranges from the lowest to the highest value of these trials, widened on
        both sides by the mean distance of neighbours, within the space; a choice keeps the options
        that they chose.

        Args:
            k: the number of trials; at least 2.

        Raises:
            ValueError: fewer than two of these trials can win, see `Trials.can_win`.
        """
        best = [member.values for member in self.top(k) if self.can_win[member.trial]]
        if len(best) < 2:
            kept = " that keep all constraints" if self.violations.size else ""
            raise ValueError(
                f"refined_space(k={k}) needs two or more trials with a finite score{kept}, found "
                f"{len(best)}."
            )

        return narrowed(self.plan.space, best)

    def rerun(self, trial: int, *, seeds: Sequence[int] | None = None) -> TrialResult:
        """Trains a trial again, in the same program with the other lanes empty.

        With the same number of devices it gives the same bits, and the params of a trial that were
        not kept. A member of a population is trained by its history, equal up to rounding.

        Args:
            trial: its number.
            seeds: the seeds of its runs; None is the seeds it had.

        Raises:
            IndexError: there is no such trial.
            ValueError: there are no seeds; the trial, of a population, changed the task's own
                hyperparameters on its way.
        """
        first = self.trial(trial)
        seeds = tuple(range(self.scores.shape[1]) if seeds is None else seeds)
        if not seeds:
            raise ValueError("rerun(seeds=...) must have a seed for each run, found none.")
        scheduler = self.train_again([trial], lambda number: seeds)
        for segment in self.segments[trial]:  # so common batches are the same
            scheduler.executor.segments = segment
            scheduler.advance()
        while scheduler.advance():
            pass
        again = Result.of(scheduler, 0.0).trial(0)
        return replace(again, **{name: getattr(first, name) for name in KNOWN_BEFORE})

    def train_again(
        self,
        trials: Sequence[int],
        seeds_of: Callable[[int], tuple[int, ...]],
        catch: tuple[type[Exception], ...] = (),
    ) -> Scheduler:
        """A scheduler that trains some of the trials to the end, in the same program.

        Args:
            trials: their numbers, with repetitions.
            seeds_of: the seeds of each, by its index in `trials`.
            catch: the errors that make one of them failed.
        """
        length = max(len(self.hyperparameter_history[trial]) for trial in trials)
        task_of = {trial: self.plan.training(self.points[trial]) for trial in trials}
        values = {
            name: distribution
            for trial, task in task_of.items()
            for name, distribution in applying(self.plan.space, self.points[trial]).items()
            if name in task.hyperparameters
        }
        plan = replace(
            self.plan,
            make_optimizer=lambda **values: self._optimizer(values[AGAIN], length),
            space={AGAIN: Choice(*range(len(self))), **values},
            make_task=self.plan.make_task and (lambda point: task_of[point[AGAIN]]),
        )
        points = [{AGAIN: trial, **_task_values(self, trial)} for trial in trials]
        return Scheduler(
            plan.for_runs(len(seeds_of(0))),
            session=listed(points),
            policy=run_all(),
            seeds_of=seeds_of,
            mode=self.mode,
            keep_best=len(trials),
            catch=catch,
        )

    def table(self, k: int = 10) -> str:
        """A line for each of the k best trials, the counts of every status, mode and seconds."""
        return _table(self, k)

    def report(
        self,
        path: str | os.PathLike,
        *,
        title: str = "",
        pareto: Mapping[str, str] | None = None,
    ) -> Path:
        """Writes the sweep as one page for the browser, see `sweep.report`.

        Args:
            path: the file; one that is there is replaced once the page is complete.
            title: the page's title; by default "Sweep: " and the score.
            pareto: directions of several scores, whose best trials the page shows.

        Returns:
            The path of the file.
        """
        return report(self, path, title=title, pareto=pareto)

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each trial."""
        import pandas

        return pandas.DataFrame(self.columns())

    def to_csv(self, path: Any) -> None:
        """Writes a row for each trial."""
        columns = self.columns()
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _line(values: Sequence[Any]) -> str:
    """The value of a hyperparameter, or all that a member of a population had."""
    texts = [text for text, _ in groupby(map(number, values))]
    if len(texts) > MOST_IN_LINE:
        texts = [*texts[: MOST_IN_LINE - 1], "…", texts[-1]]
    return " → ".join(texts)


def _table(result: Result, k: int) -> str:
    """The text of `Result.table`."""
    names = result.names
    constraints = {"constraints": result.constraints()} if result.violations.size else {}
    head = ["trial", result.task.objective, *names, "steps", "status", *constraints]
    rows = [
        [
            str(m.trial),
            number(m.score) + ("" if np.isnan(m.spread) else f" ± {number(m.spread)}"),
            *(_line([p[name] for _, p in m.hyperparameter_history if name in p]) for name in names),
            str(m.steps),
            m.status,
            *(column[m.trial] for column in constraints.values()),
        ]
        for m in result.top(k)
    ]
    end = f"{len(result)} trials: {result.counts()}; mode {result.mode}; {result.seconds:.1f} s"
    return "\n".join([in_columns([head, *rows]), end])


def _task_values(result: Result, trial: int) -> dict[str, Any]:
    """The task's hyperparameters, of a trial that had them from first to last."""
    history = result.hyperparameter_history[trial]
    first, *others = [result.plan.task_values(point) for _, point in history]
    if any(other != first for other in others):
        raise ValueError(f"trial {trial} changed the task on its way: it cannot be rerun.")
    return first


def narrowed(
    space: Mapping[str, Distribution], points: Sequence[dict[str, Any]]
) -> dict[str, Distribution]:
    """The part of a space that holds the points, with a margin."""
    return {argument: _narrowed(argument, d, points) for argument, d in space.items()}


def _narrowed(
    name: str, distribution: Distribution, points: Sequence[dict[str, Any]]
) -> Distribution:
    if isinstance(distribution, OneOf):
        options = {}
        for option, (make, space) in distribution.branches.items():
            if chosen := [p for p in points if p[distribution.name] == option]:
                options[option] = make, narrowed(space, chosen)
        return OneOf(distribution.name, options)
    if isinstance(distribution, Fixed):
        return distribution
    values = [point[name] for point in points]
    if isinstance(distribution, Choice):
        chosen = sorted({distribution.index(value) for value in values})
        return Choice(*(distribution.options[i] for i in chosen))
    return distribution.around(values)


def _tried(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    tried = {name: [point[name] for point in points if name in point] for name in names}
    return ", ".join(f"{name} from {_range(values)}" for name, values in tried.items())


def _range(values: list[Any]) -> str:
    try:
        return f"{number(min(values))} to {number(max(values))}"
    except (TypeError, ValueError):  # of other kinds, or arrays
        return ", ".join(sorted({number(value) for value in values}))
