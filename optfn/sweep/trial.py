"""A trial: a point of the space, and its outcome."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from optfn.sweep.candidate import Candidate
from optfn.sweep.executor import Measured
from optfn.sweep.one_of import applying, point_of
from optfn.sweep.plan import Plan
from optfn.sweep.search import TrialStatus
from optfn.sweep.space import Choice, Distribution, Fixed
from optfn.sweep.task import Model

History = list[tuple[int, dict[str, Any]]]

# The fields of a trial in a checkpoint, beside its point, its curve and its arrays.
PLAIN = (
    *("number", "status", "loss", "diverged", "steps", "segments", "seeds", "scores", "recent"),
    "error",
    "moment",
    "violations",
)


@dataclass(eq=False)
class Trial:
    """A point of the space, and its outcome so far.

    Attributes:
        number: its place in the order of asking.
        point: its hyperparameters.
        candidate: the `Candidate` that its lanes train; None if it could not be made.
        structure: the number of the candidate's structure; lanes hold one structure at a time.
        seeds: a seed for each of its runs.
        status: how it ended; "stopped" until then.
        loss: the mean score, where lower is better; inf where a run has none.
        diverged: whether one of its runs has diverged.
        steps: the steps taken.
        segments: the segments of the sweep in which it had lanes.
        scores: a score for each run, in the units of the task: the worst infinity where a run has
            no finite score, nan before the first.
        recent: the last losses of each run, those whose mean counts, the newest last.
        moment: by name, all scores of each run at the moment whose score counts, the last one but
            for `score="best"`.
        violations: for each constraint how far those scores, as means over the runs, are from
            keeping it; above 0 breaks it.
        curve: the metrics after each of its segments, as means over the runs.
        parked: its lanes, `[runs, ...]` on the host, while it is paused.
        models: the params of each of its runs, with the model's state, if it is among the best.
        history: pairs of a step and the point that trained its params from that step on. There are
            several only in a population, where a copy takes over the history of its source.
        own_history: pairs of a step and the point that this trial had from that step on.
        error: what was raised, if it failed.
    """

    number: int
    point: dict[str, Any]
    candidate: Any
    structure: int
    seeds: tuple[int, ...]
    status: str = "stopped"
    loss: float = math.inf
    diverged: bool = False
    steps: int = 0
    segments: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    recent: list[list[float]] = field(default_factory=list)
    moment: dict[str, list[float]] = field(default_factory=dict)
    violations: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    parked: Any = None
    models: tuple[Model, ...] = ()
    history: History = field(default_factory=list)
    own_history: History = field(default_factory=list)
    error: str = ""

    def __post_init__(self) -> None:
        self.scores = self.scores or [math.nan] * len(self.seeds)
        self.history = self.history or [(0, self.point)]
        self.own_history = self.own_history or [(0, self.point)]

    def record(self, plan: Plan, segment: int, place: int, measured: Measured) -> None:
        """Records the measurements of a segment of the sweep in the trial's place."""
        task = plan.task
        diverged = measured.diverged[place]
        losses = task.sign * measured.metrics[task.objective][place].astype(float)
        losses = self._counting(
            plan, losses, None if measured.best is None else measured.best[place]
        )
        losses = np.where(diverged | ~np.isfinite(losses), np.inf, losses)
        self.count(segment, place, measured)
        self.diverged = bool(diverged.any())
        self.scores = [task.sign * float(x) for x in losses]
        self.loss = float(losses.mean())
        now = {name: np.asarray(x[place]) for name, x in measured.metrics.items()}
        self.curve.append({name: float(x.mean()) for name, x in now.items()})
        self._note_moment(plan, {name: x.astype(float) for name, x in now.items()})
        self.violations = plan.violations({n: float(np.mean(x)) for n, x in self.moment.items()})

    def count(self, segment: int, place: int, measured: Measured) -> None:
        """Counts a segment of the sweep in which the trial had this place."""
        self.segments.append(segment)
        self.steps = int(measured.age[place].max())

    def _counting(self, plan: Plan, last: np.ndarray, best: np.ndarray | None) -> np.ndarray:
        """The losses of the runs that count, see `Plan.score`."""
        if best is not None:
            return best.astype(float)
        if plan.score == "last":
            return last
        self.recent = [*self.recent, last.tolist()][-int(plan.score[1]) :]
        return np.mean(self.recent, axis=0)

    def _note_moment(self, plan: Plan, now: Mapping[str, np.ndarray]) -> None:
        """Takes the scores of now for those runs for which this is the moment that counts."""
        if plan.score == "best" and self.moment:
            both = np.array([scores[plan.task.objective] for scores in (now, self.moment)])
            loss, least = np.where(np.isfinite(both), plan.task.sign * both, np.inf)
            better = loss < least
            now = {name: np.where(better, x, self.moment[name]) for name, x in now.items()}
        self.moment = {name: x.tolist() for name, x in now.items()}

    @property
    def feasible(self) -> bool:
        """Whether it breaks no constraint."""
        return all(x <= 0 for x in self.violations)

    @property
    def rank(self) -> tuple[Any, ...]:
        """What the trials are sorted by, the best first."""
        return not self.feasible, self.status != "ok", self.loss, self.number

    @property
    def judged_loss(self) -> float:
        """The loss by which a policy judges: the worst if it breaks a constraint."""
        return self.loss if self.feasible else math.inf

    def is_stale(self, plan: Plan) -> bool:
        """Whether the mean over its runs has not become better for too long."""
        if plan.patience is None:
            return False
        losses = [plan.task.sign * scores[plan.task.objective] for scores in self.curve]
        losses = np.where(np.isfinite(losses), losses, np.inf)
        return len(losses) - 1 - int(np.argmin(losses)) >= plan.patience

    def fail(self, error: Exception) -> None:
        """Ends the trial without a score."""
        self.status, self.error = "failed", f"{type(error).__name__}: {error}"
        self.loss, self.scores = math.inf, [math.nan] * len(self.seeds)
        self.moment, self.violations = {}, []

    def go_on_with(
        self,
        point: dict[str, Any],
        candidate: Candidate,
        history: History,
        recent: list[list[float]],
        moment: dict[str, list[float]],
        age: int,
    ) -> None:
        """Continues the run of another trial, which had this history, with a new point."""
        self.recent, self.moment = recent, moment
        self.point, self.candidate = point, candidate
        self.history = [*history, (age, point)]
        self.own_history = [*self.own_history, (age, point)]

    @property
    def status_if_stopped(self) -> TrialStatus:
        """The status if the policy stops it now."""
        if np.isfinite(self.loss):
            return "pruned"
        return "diverged" if self.diverged else "not_finite"

    def report(self, plan: Plan) -> tuple[float, TrialStatus, list[tuple[int, float]]]:
        """The outcome for the search: a score where lower is better, the status and the reports.

        A population member that copied is reported up to its first copy, where its point changed.
        """
        sign, objective = plan.task.sign, plan.task.objective
        reports = [(plan.age(i + 1), sign * x[objective]) for i, x in enumerate(self.curve)]
        if len(self.own_history) == 1:
            return self.loss, cast(TrialStatus, self.status), reports
        reports = [(age, score) for age, score in reports if age <= self.own_history[1][0]]
        score = reports[-1][1]
        return score, "pruned" if np.isfinite(score) else "diverged", reports


def encoded(space: Mapping[str, Distribution], point: Mapping[str, Any]) -> dict[str, Any]:
    """The point for JSON: choices by their position, fixed values left out."""
    plain, distributions = {}, applying(space, point)
    for name, value in point.items():
        distribution = distributions[name]
        if isinstance(distribution, Choice):
            plain[name] = distribution.index(value)
        elif not isinstance(distribution, Fixed):
            plain[name] = value
    return plain


def decoded(space: Mapping[str, Distribution], plain: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `encoded`."""

    def value_of(name: str, distribution: Distribution, key: str) -> Any:
        if isinstance(distribution, Fixed):
            return distribution.value
        if isinstance(distribution, Choice):
            return distribution.options[plain[name]]
        return plain[name]

    return point_of(space, value_of)
