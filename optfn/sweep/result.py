"""What a sweep found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.sweep.in_turn import of_line
from optfn.sweep.lines import in_columns, number
from optfn.sweep.policies.policy import run_all
from optfn.sweep.scheduler import Scheduler
from optfn.sweep.search import listed
from optfn.sweep.space import Choice, Distribution, Fixed
from optfn.sweep.task import Training

STATUSES = ("ok", "pruned", "diverged", "not_finite", "stopped")


@dataclass(frozen=True)
class Member:
    """One trial: what was tried, and what became of it.

    Attributes:
        trial: its number.
        values: the hyperparameters.
        optimizer: with them.
        score: the mean over its seeds, in the units of the task; inf (or -inf) if one diverged.
        spread: the standard deviation over its seeds; nan for one, or where one diverged.
        status: "ok", "pruned", "diverged", "not_finite" or "stopped".
        steps: taken.
        params: of the first seed, for those that were kept; else None. Those that were scored: of
            an optimizer that averages, the average.
        line: pairs of a step and the hyperparameters from there on; more than one only under `pbt`,
            where `optimizer` goes from one to the next.
    """

    trial: int
    values: dict[str, Any]
    optimizer: Transform
    score: float
    spread: float
    status: str
    steps: int
    params: PyTree = None
    line: Sequence[tuple[int, dict[str, Any]]] = ()


@dataclass(frozen=True)
class Result:
    """All trials of a sweep, as arrays with the trials in front.

    Attributes:
        task: what was trained.
        make: the function that gives the optimizer of a point.
        points: the hyperparameters of each trial.
        scores: [trials, seeds], the last score, in the units of the task: the worst
            infinity where a run diverged or its score is not finite, nan where it has none yet.
        status: [trials], of `STATUSES`.
        steps: [trials], the steps taken.
        start: [trials], the steps of the sweep before the trial began; -1 if it did not.
        trained: of each trial, the segments of the sweep in which it had lanes.
        curves: by name [trials, segments], the mean over the seeds at each age; nan after the end.
        ages: [segments], the ages of the curves.
        kept: the params of the best trials, by their number.
        sources: [rounds, trials], whom each member copied in the rounds of `pbt`.
        lines: of each trial pairs of a step and the point from there on; one, but under `pbt`.
        confirmed: [trials, fresh seeds], the scores of `Confirm`; nan for those it did not train.
        past: as `lines`, but a member's own points, also those it gave up to copy another.
        lane_steps: how many steps all lanes made, idle ones included.
        seconds: of the whole sweep.
        mode: how lanes were run, "vmap", "map" or "loop".
    """

    task: Training
    make: Callable[..., Transform] = field(repr=False)
    points: Sequence[dict[str, Any]] = field(repr=False)
    scores: np.ndarray = field(repr=False)
    status: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    start: np.ndarray = field(repr=False)
    trained: Sequence[list[int]] = field(repr=False)
    curves: dict[str, np.ndarray] = field(repr=False)
    ages: np.ndarray = field(repr=False)
    kept: dict[int, PyTree] = field(repr=False)
    sources: np.ndarray = field(repr=False)
    lines: Sequence[list[tuple[int, dict[str, Any]]]] = field(repr=False)
    past: Sequence[list[tuple[int, dict[str, Any]]]] = field(repr=False)
    lane_steps: int
    seconds: float
    mode: str
    again: partial[Scheduler] = field(repr=False)
    confirmed: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, scheduler: Scheduler, seconds: float, again: partial[Scheduler]) -> "Result":
        """What a scheduler has recorded so far."""
        trials = scheduler.trials
        count = max((len(trial.curve) for trial in trials), default=0)
        names = next((list(trial.curve[0]) for trial in trials if trial.curve), [])
        blank = dict.fromkeys(names, np.nan)
        curves = [trial.curve + [blank] * (count - len(trial.curve)) for trial in trials]
        ages = np.arange(1, count + 1) * scheduler.segment
        return cls(
            task=scheduler.task,
            make=scheduler.make,
            points=[trial.point for trial in trials],
            scores=np.array([trial.scores for trial in trials]),
            status=np.array([trial.status for trial in trials]),
            steps=np.array([trial.steps for trial in trials]),
            start=np.array([t.trained[0] * scheduler.segment if t.trained else -1 for t in trials]),
            trained=[trial.trained for trial in trials],
            curves={name: np.array([[x[name] for x in c] for c in curves]) for name in names},
            ages=np.minimum(ages, scheduler.steps),
            kept={trial.number: trial.params for trial in scheduler.kept},
            sources=np.array(scheduler.sources, int).reshape(-1, len(trials)),
            lines=[trial.line for trial in trials],
            past=[trial.past for trial in trials],
            lane_steps=scheduler.lane_steps,
            seconds=seconds,
            mode=scheduler.mode,
            again=again,
            confirmed=np.full((len(trials), 0), np.nan),
        )

    def __len__(self) -> int:
        return len(self.points)

    @property
    def losses(self) -> np.ndarray:
        """[trials], lower is better whatever the direction; inf where a run has no finite score."""
        return _mean(self.task.sign * self._counting)

    @property
    def _counting(self) -> np.ndarray:
        """The scores that count: of fresh seeds, where there are."""
        fresh = ~np.isnan(self.confirmed).all(axis=1)
        scores = np.full((len(self), max(self.scores.shape[1], self.confirmed.shape[1])), np.nan)
        scores[:, : self.scores.shape[1]] = self.scores
        scores[fresh] = np.nan
        scores[fresh, : self.confirmed.shape[1]] = self.confirmed[fresh]
        return scores

    def order(self) -> np.ndarray:
        """The trials from the best to the worst: confirmed ones, then those that came to the end.

        A trial that was pruned or stopped has no score to compare with theirs.
        """
        kind = np.where(self.status == "ok", 1, 2)
        kind[~np.isnan(self.confirmed).all(axis=1)] = 0
        losses = self.losses
        kind[np.isinf(losses)] = 3
        return np.lexsort((np.arange(len(self)), losses, kind))

    def member(self, trial: int) -> Member:
        """One trial by its number."""
        scores = self._counting[trial]
        scores = scores[~np.isnan(scores)]
        several = len(scores) > 1 and bool(np.isfinite(scores).all())
        return Member(
            trial=int(trial),
            values=dict(self.points[trial]),
            optimizer=of_line(self.make, self.lines[trial]),
            score=float(self.task.sign * self.losses[trial]),
            spread=float(scores.std(ddof=1)) if several else float("nan"),
            status=str(self.status[trial]),
            steps=int(self.steps[trial]),
            params=self.kept.get(int(trial)),
            line=self.lines[trial],
        )

    def top(self, k: int) -> list[Member]:
        """The k best, the best first."""
        return [self.member(i) for i in self.order()[:k]]

    def best(self) -> Member:
        """The best trial: its hyperparameters, its optimizer, its params and its score.

        Raises:
            ValueError: no trial has a finite score.
        """
        first = self.top(1)[0]
        if not np.isfinite(first.score):
            tried = {name: [p[name] for p in self.points] for name in self.points[0]}
            ranges = ", ".join(f"{name} from {_range(values)}" for name, values in tried.items())
            raise ValueError(
                f"no trial has a finite score, {self._ends()} of {len(self)}: {ranges} was tried."
            )
        return first

    def refined_space(self, k: int = 8) -> dict[str, Distribution]:
        """The part of the space in which the k best lie: where another sweep is to look.

            again = sweep.run(task, optfn.adam, result.refined_space(), trials=64, steps=1000)

        Of each hyperparameter, from the lowest to the highest of theirs and a mean distance between
        neighbours further on both sides, as far as the space goes; of a choice, what they chose.

        Args:
            k: of how many; at least 2.

        Raises:
            ValueError: fewer than two of them have a finite score.
        """
        best = [member.values for member in self.top(k) if np.isfinite(member.score)]
        if len(best) < 2:
            raise ValueError(
                f"refined_space(k={k}) needs two or more trials with a finite score, found "
                f"{len(best)}."
            )

        def narrowed(distribution: Distribution, values: list) -> Distribution:
            if isinstance(distribution, Fixed):
                return distribution
            if isinstance(distribution, Choice):
                chosen = sorted({distribution.index(value) for value in values})
                return Choice(*(distribution.options[i] for i in chosen))
            places = [distribution.unit(value) for value in values]
            low, high = min(places), max(places)
            margin = (high - low) / (len(places) - 1)
            return distribution.between(max(low - margin, 0.0), min(high + margin, 1.0))

        space = self.again.keywords["space"]
        return {name: narrowed(d, [values[name] for values in best]) for name, d in space.items()}

    def rerun(self, trial: int, *, seeds: Sequence[int] | None = None) -> Member:
        """Trains a trial once more, in the same program with the other lanes empty.

        With the same number of devices it gives the same bits, and the params of a trial that was
        not kept. A member of `pbt` is trained by its line, within rounding.

        Args:
            trial: its number.
            seeds: of its runs; None is those it had.

        Raises:
            ValueError: there are no seeds.
        """
        seeds = tuple(range(self.scores.shape[1]) if seeds is None else seeds)
        if not seeds:
            raise ValueError("rerun(seeds=...) must have a seed for each run, found none.")
        scheduler = self.train_again([trial], lambda number: seeds)
        for segment in self.trained[trial]:  # so that common batches are those it had
            scheduler.segments = segment
            scheduler.advance()
        while scheduler.advance():
            pass
        again, first = Result.of(scheduler, 0.0, self.again).member(0), self.member(trial)
        own = {name: getattr(first, name) for name in ("trial", "values", "optimizer", "line")}
        return replace(again, **own)

    def train_again(
        self, trials: Sequence[int], seeds_of: Callable[[int], tuple[int, ...]]
    ) -> Scheduler:
        """What trains some of the trials to their ends, in the same program.

        Args:
            trials: their numbers, also several times the same.
            seeds_of: the seeds of each, by its place among them.
        """
        length = max(len(self.lines[trial]) for trial in trials)
        settings, width = self.again.keywords, len(seeds_of(0))
        multiple = math.lcm(width, 1 if settings["mesh"] is None else settings["mesh"].size)
        return self.again(
            session=listed([{"trial": trial} for trial in trials]),
            make=lambda trial: of_line(self.make, self.lines[trial], length),
            policy=run_all(),
            seeds_of=seeds_of,
            mode=self.mode,
            lanes=-(-settings["lanes"] // multiple) * multiple,
            keep=1,
        )

    def table(self, k: int = 10) -> str:
        """The k best in lines, with how many trials ended in which way."""
        names = list(self.points[0])
        head = ["trial", self.task.objective, *names, "steps", "status"]
        rows = [
            [
                str(m.trial),
                number(m.score) + ("" if np.isnan(m.spread) else f" ± {number(m.spread)}"),
                *(number(m.values[name]) for name in names),
                str(m.steps),
                m.status,
            ]
            for m in self.top(k)
        ]
        end = f"{len(self)} trials: {self._ends()}; {self.seconds:.1f} s"
        return "\n".join([in_columns([head, *rows]), end])

    def _ends(self) -> str:
        """How many trials ended in which way."""
        counts = {s: int((self.status == s).sum()) for s in STATUSES}
        return ", ".join(f"{n} {s}" for s, n in counts.items() if n)

    def columns(self) -> dict[str, list]:
        """A row for each trial, by column.

        A hyperparameter with the name of another column gets "optimizer." in front of its own.
        """
        members = [self.member(i) for i in range(len(self))]
        told = {
            self.task.objective: [m.score for m in members],
            "spread": [m.spread for m in members],
            "steps": [m.steps for m in members],
            "status": [m.status for m in members],
        }
        numbers = {"trial": [m.trial for m in members]}
        names = {x: f"optimizer.{x}" if x in told | numbers else x for x in self.points[0]}
        tried = {column: [m.values[x] for m in members] for x, column in names.items()}
        return numbers | tried | told

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a row for each trial."""
        import pandas

        return pandas.DataFrame(self.columns())

    def to_csv(self, path: Any) -> None:
        """Writes a row for each trial."""
        import csv

        columns = self.columns()
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))


def _mean(scores: np.ndarray) -> np.ndarray:
    """Over the runs of each trial; inf where one has no finite score."""
    runs = np.sum(~np.isnan(scores), axis=1)
    total = np.where(np.isfinite(scores), scores, 0).sum(axis=1)
    lost = (runs == 0) | np.isinf(scores).any(axis=1)
    return np.where(lost, np.inf, total / np.maximum(runs, 1))


def _range(values: list) -> str:
    try:
        return f"{number(min(values))} to {number(max(values))}"
    except TypeError:
        return ", ".join(sorted(map(str, set(values))))
