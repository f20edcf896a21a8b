"""Trials: a queue, the places where they train, and a policy that ends the poor ones early."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from optfn.core.transform import check_transform_type
from optfn.sweep.candidate import Candidate, Structures
from optfn.sweep.executor import Executor, Measured
from optfn.sweep.forms import neighbours
from optfn.sweep.one_of import OneOf
from optfn.sweep.plan import Plan
from optfn.sweep.policies.policy import Copy, Policy, Scores, Verdict
from optfn.sweep.search import Session, TrialStatus
from optfn.sweep.space import Choice, Distribution
from optfn.sweep.task import Training
from optfn.sweep.trial import Trial

MOST_WAITING = 8  # queued trials per place; those of other structures train later


@dataclass
class Scheduler:
    """A sweep under way.

    A trial takes a place: a lane for each of its seeds. All decisions on the host depend on the
    measurements alone, so several processes make the same ones.

    Attributes:
        plan: what every run has in common.
        session: gives the points.
        policy: ends trials early.
        seeds_of: gives the seeds of a trial by its number, as many for every trial.
        mode: how lanes are trained, see `Executor`.
        keep_best: the number of best trials whose params are kept.
        catch: the errors that make a trial failed.
        trials: all trials, by number.
        queue: the trials that wait for a place: new ones, and paused ones that continue.
        running: the trials in training, by place.
        standing: the trials that wait for a verdict, with the number of their rung.
        kept: the trials whose params are kept, the best first.
        copied_from: for each round of a population, int `[trials]`, the source of each trial.
    """

    plan: Plan
    session: Session
    policy: Policy
    seeds_of: Callable[[int], tuple[int, ...]]
    mode: str
    keep_best: int
    catch: tuple[type[Exception], ...] = ()

    trials: list[Trial] = field(default_factory=list)
    queue: list[Trial] = field(default_factory=list)
    running: dict[int, Trial] = field(default_factory=dict)
    standing: dict[Trial, int] = field(default_factory=dict)
    kept: list[Trial] = field(default_factory=list)
    copied_from: list[np.ndarray] = field(default_factory=list)
    structure: int = -1
    entered: int = -1
    exhausted: bool = False
    first_error: Exception | None = None

    def __post_init__(self) -> None:
        plan, policy = self.plan, self.policy
        self.runs = len(self.seeds_of(0))
        self.judge = policy.start(plan, self.session.trials)
        rungs = tuple(policy.rungs(plan.steps, plan.segment))
        policy.check_rungs(rungs, plan)
        self.scores = Scores.start(rungs, plan.steps, self.session.trials, plan.task.sign)
        self.structures = Structures()
        self._among = getattr(self.session, "among", lambda scores: scores)
        self.executor = Executor(plan, self.runs, self.mode)
        policy.check_trials(self.session.trials, self.executor.places, plan)

    def advance(self) -> bool:
        """Trains a segment and judges; False if no trial is left."""
        if not self._fill():
            if not self.exhausted:  # others train what is left, and may leave it to this worker
                time.sleep(getattr(self.session, "pause", 0.0))
            return not self.exhausted
        self._shrink()
        steps, next_steps = self._steps_needed(), self._steps_needed(ahead=1)
        measured = self.executor.train(self.running.keys(), steps, next_steps)
        self._record(measured)
        self._judge()
        return True

    def paused_bytes(self) -> int:
        """An upper bound on the bytes that paused trials take in the host's memory."""
        rungs = len(self.scores.ages) - 1
        return self.executor.parked_bytes(self.policy.most_paused(rungs, self.session.trials))

    # Trials into places.

    def _fill(self) -> bool:
        """Fills the free places; enters another structure once no trial of this one is left."""
        self._ask()
        while not self.running:
            if not self.queue:
                self._judge()  # trials that others waited for may have failed since
            if not self.queue or self.queue[0].structure == self.structure:
                break
            self._enter_or_fail(self.queue[0])
            self._ask()
        if not self.running and not self.queue:
            if not hasattr(self.session, "gather"):  # else others may have trials that did not fail
                raise_if_all_failed(self)
            return False
        free = [place for place in range(self.executor.places) if place not in self.running]
        fitting = [trial for trial in self.queue if trial.structure == self.structure]
        fitting.sort(key=lambda trial: trial.parked is None)
        entering = dict(zip(free, fitting, strict=False))
        self.queue = [trial for trial in self.queue if trial not in entering.values()]
        self.running |= entering
        new = {place: trial for place, trial in entering.items() if trial.parked is None}
        self.executor.load({place: (t.candidate, t.seeds) for place, t in new.items()})
        for place, trial in entering.items():
            if trial.parked is not None:
                self.executor.resume(place, trial.parked)
                trial.parked, trial.models = None, ()
                self.kept = [other for other in self.kept if other is not trial]
        return True

    def _ask(self) -> None:
        """Asks for trials to fill all places, of this structure, or of any if the search learns."""
        known = self.structure >= 0 and not getattr(self.session, "learns", False)
        while not self.exhausted and len(self.queue) < MOST_WAITING * self.executor.places:
            fitting = [t for t in self.queue if t.structure == self.structure or not known]
            free = self.executor.places - len(self.running) - len(fitting)
            if free <= 0 or not (points := self.session.ask(free)):
                self.exhausted = free > 0 and not getattr(self.session, "waits", False)
                break
            for trial in [self.add(point) for point in points]:
                if trial.status == "failed":
                    self._end_failed(trial)
                else:
                    self.queue.append(trial)

    def add(self, point: dict[str, Any]) -> Trial:
        """Adds the next trial, of this point."""
        number, part = len(self.trials), "task"
        try:
            self.plan.training(point)
            part = "optimizer"
            candidate = self.plan.candidate(point)
            check_transform_type(candidate.made, f"the optimizer of trial {number}")
            candidate = with_shared_functions(candidate, point, self)
            structure = self._structure_of(candidate, point, number)
        except Exception as error:
            self._raise_unless_caught(with_note(error, part, number, point))
            self.trials.append(Trial(number, point, None, -1, self.seeds_of(number)))
            self.trials[-1].fail(error)
            return self.trials[-1]
        if self.policy.needs_all_trials and not number:  # its copies may take any option
            for other in with_other_options(self.plan.space, point):
                self._structure_of(self.plan.candidate(other), other, number)
        self.trials.append(Trial(number, point, candidate, structure, self.seeds_of(number)))
        return self.trials[-1]

    def _structure_of(self, candidate: Candidate, point: Mapping[str, Any], trial: int) -> int:
        """The number of the candidate's structure; a population must have only one."""
        structure = self.structures.number_of(candidate, self.plan.training(point))
        if structure and self.policy.needs_all_trials:
            raise ValueError(
                f"{type(self.policy).__name__} copies the state of one member to another, but the "
                f"optimizer of trial {trial}, or one that its choices lead to, differs in "
                "structure: use compare, or for functions made in it jax.tree_util.Partial."
            )
        return structure

    def _enter_or_fail(self, trial: Trial) -> None:
        """Enters the trial's structure; if that cannot be compiled, its queued trials fail."""
        self.executor.use(self.plan.training(trial.point))  # what its stream raises is no failure
        try:
            self.enter(trial)
        except Exception as error:
            error.add_note(f"in the program that trains trial {trial.number}")
            self._raise_unless_caught(error)
            self.structure = -1
            for other in [t for t in self.queue if t.structure == trial.structure]:
                other.fail(error)
                self.queue.remove(other)
                self._end_failed(other)

    def _end_failed(self, trial: Trial) -> None:
        """Ends a trial that has failed: it has the worst score, so that no other waits for it."""
        self.scores.record(trial.number, 0, math.inf, -1, diverged=True)
        self.session.tell(trial.number, math.inf, "failed")

    def _raise_unless_caught(self, error: Exception) -> None:
        if self.policy.needs_all_trials or not isinstance(error, self.catch):
            raise error  # a population needs all its members
        self.first_error = self.first_error or error

    def enter(self, trial: Trial) -> None:
        """Makes lanes for candidates of the trial's structure."""
        self.executor.enter(trial.candidate, self.plan.training(trial.point))
        self.structure, self.entered = trial.structure, trial.number

    def _shrink(self) -> None:
        """Drops idle lanes when no further trial can take them."""
        if not self.exhausted or self.queue or self.standing or self.policy.needs_all_trials:
            return
        youngest = min(len(trial.curve) for trial in self.running.values())
        if self.executor.shrink(list(self.running), self.plan.segments - youngest):
            self.running = dict(enumerate(self.running.values()))

    def _steps_needed(self, ahead: int = 0) -> int:
        """The most steps that a run takes in this segment, or in the one `ahead` of it."""
        segment, all_asked = self.plan.segment, len(self.trials) == self.session.trials
        if ahead and not (all_asked and not self.queue and not self.standing):
            return segment
        youngest = min(len(trial.curve) for trial in self.running.values()) + ahead
        return min(max(self.plan.steps - youngest * segment, 0), segment)

    # Scores and verdicts.

    def _record(self, measured: Measured) -> None:
        """Records the scores of a segment; trials that have ended leave their places."""
        task, segments = self.plan.task, self.executor.segments
        fail_on_host(self, measured)
        for place, trial in list(self.running.items()):
            check_objective(task, measured.metrics)
            trial.record(self.plan, segments - 1, place, measured)
            report_to(self.session, trial, self.plan)
            if trial in self.standing:
                continue
            arrived = self.plan.age(len(trial.curve))
            if trial.is_stale(self.plan) and not trial.diverged:
                self.scores.finish(trial.number, trial.judged_loss, segments)
                self._end(trial, "ok" if np.isfinite(trial.loss) else "not_finite")
                continue
            rung = self.scores.record(
                trial.number, arrived, trial.judged_loss, segments, diverged=trial.diverged
            )
            if rung is not None:
                self.standing[trial] = rung
            elif trial.diverged:
                self._end(trial, "diverged")
            elif arrived == self.plan.steps:
                self._end(trial, "ok" if np.isfinite(trial.loss) else "not_finite")

    def _judge(self) -> None:
        """Asks the policy about every trial that stands at a rung."""
        population = self.policy.needs_all_trials
        if population and all(trial.diverged for trial in self.running.values()):
            for trial in list(self.running.values()):  # nobody is left to copy from
                self._end(trial, "diverged")
            self.standing.clear()
        if not self.standing or (population and len(self.standing) < len(self.running)):
            return
        judged = dict(self.standing)
        at = [(trial.number, rung) for trial, rung in judged.items()]
        verdicts = self.judge.judge(self._among(self.scores), at)
        self.policy.check_verdicts(verdicts, at, self.plan.searched)
        verdicts = dict(zip(judged, verdicts, strict=True))
        if population:
            self._copy({t: v for t, v in verdicts.items() if isinstance(v, Copy)}, judged)
        places = {trial: place for place, trial in self.running.items()}
        for trial, verdict in verdicts.items():
            ends = verdict is Verdict.STOP or (trial.diverged and not population)
            if ends or verdict is not Verdict.PAUSE:
                del self.standing[trial]
            if ends:
                trial.parked = None
                self._end(trial, trial.status_if_stopped)
            elif verdict is Verdict.PAUSE and trial in places:
                self._keep(places[trial])
                trial.parked = self.executor.park(places[trial])
                del self.running[places[trial]]
            elif verdict is Verdict.CONTINUE and trial not in places:
                self.queue.append(trial)

    def _copy(self, copies: Mapping[Trial, Copy], judged: Mapping[Trial, int]) -> None:
        """Members of a population copy others, all in their state before the round."""
        rung = next(iter(judged.values()))
        source = np.arange(len(self.trials))
        source[[trial.number for trial in copies]] = [copy.source for copy in copies.values()]
        self.copied_from.append(source)
        places = {trial.number: place for place, trial in self.running.items()}
        before = {t.number: (t.point, t.history, t.recent, t.moment) for t in judged}
        for trial, copy in copies.items():
            if copy.source not in places:
                raise ValueError(
                    f"{type(self.policy).__name__} lets trial {trial.number} copy trial "
                    f"{copy.source}, which is not in training."
                )
            point, history, recent, moment = before[copy.source]
            rng = np.random.default_rng([self.plan.seed, rung, trial.number])
            point = copy.perturbed(point, self.plan, rng)
            candidate = self.plan.candidate(point)
            self._structure_of(candidate, point, trial.number)
            trial.go_on_with(point, candidate, history, recent, moment, age=self.scores.ages[rung])
        copied = {places[t.number]: (places[c.source], t.candidate) for t, c in copies.items()}
        self.executor.copy(copied)

    def _end(self, trial: Trial, status: TrialStatus) -> None:
        """Ends a trial: it leaves its place, and the search gets its outcome."""
        trial.status = status
        for place in [place for place, other in self.running.items() if other is trial]:
            self._keep(place)
            del self.running[place]
        self.session.tell(trial.number, *trial.report(self.plan))

    def keep_unfinished(self) -> None:
        """Keeps the params of the trials in training that are among the best so far."""
        for place in self.running:
            self._keep(place)

    def _keep(self, place: int) -> None:
        """Keeps the params of a trial if it is among the best so far, in the order of a result."""
        trial = self.running[place]
        if not np.isfinite(trial.loss):
            return
        ranked = sorted([*self.kept, trial], key=lambda trial: trial.rank)
        self.kept = ranked[: self.keep_best]
        if trial in self.kept:
            trial.models = self.executor.fetch_models(place)
        for other in ranked[self.keep_best :]:
            other.models = ()


def raise_if_all_failed(scheduler: Scheduler) -> None:
    """Raises the first error if no trial has another outcome."""
    if scheduler.first_error and all(trial.status == "failed" for trial in scheduler.trials):
        raise scheduler.first_error


def report_to(session: Any, trial: Trial, plan: Plan) -> None:
    """Tells a session that wants to hear of it how a trial in training stands."""
    if trial.violations and hasattr(session, "constrain"):
        session.constrain(trial.number, trial.violations)
    if hasattr(session, "report"):
        session.report(trial.number, plan.age(len(trial.curve)), trial.loss)


def fail_on_host(scheduler: Scheduler, measured: Measured) -> None:
    """Ends the trials whose evaluation on the host has raised; they leave their places."""
    for place, error in measured.errors.items():
        trial = scheduler.running.pop(place)
        trial.count(scheduler.executor.segments - 1, place, measured)
        note = with_note(error, "host_evaluate", trial.number, trial.point)
        scheduler._raise_unless_caught(note)
        trial.fail(error)
        scheduler._end_failed(trial)


def with_shared_functions(
    candidate: Candidate, point: Mapping[str, Any], scheduler: Scheduler
) -> Candidate:
    """The candidate of a point with functions that others share, see `Forms`.

    A population's keep their own: those of a member are joined, which takes equal functions.
    """
    plan = scheduler.plan
    if scheduler.policy.needs_all_trials:
        return candidate

    def can_train(candidate: Candidate) -> bool:
        return Executor(plan.of(point), scheduler.runs, "vmap").can_train(candidate)

    others = (partial(plan.optimizer, other) for other in neighbours(plan.space, point))
    return plan.forms.shared(candidate, others, can_train)


def check_objective(task: Training, metrics: Collection[str]) -> None:
    """Raises unless the score of the task is one of the metrics."""
    if task.objective not in metrics:
        raise ValueError(
            f"the task's score {task.objective!r} is none of those there are: {', '.join(metrics)}."
        )


def with_note(error: Exception, part: str, trial: int, point: Mapping[str, Any]) -> Exception:
    """The error with the trial in whose part it was raised."""
    values = ", ".join(f"{name}={value!r}" for name, value in point.items())
    error.add_note(f"in the {part} of trial {trial}: {values}")
    return error


def with_other_options(
    space: Mapping[str, Distribution], point: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The points that differ in one choice, which a copy in a population may come to."""
    for name, distribution in space.items():
        if isinstance(distribution, OneOf):
            raise ValueError(
                "a population copies the state of one member to another, which "
                f"{distribution!r} does not allow: sweep over its options one by one, as compare "
                "does."
            )
        for option in distribution.options if isinstance(distribution, Choice) else ():
            yield {**point, name: option}
