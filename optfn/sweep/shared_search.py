"""One search shared by workers: processes that take the trials of a study in a common storage."""

import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from optfn.sweep.optuna_library import CONSTRAINTS, optuna_library
from optfn.sweep.optuna_search import _Session as Sampled
from optfn.sweep.optuna_search import check_place, note_constraints, opened, optuna_search
from optfn.sweep.plan import Plan
from optfn.sweep.policies.policy import Policy, Scores
from optfn.sweep.search import Point, Search, Session, TrialStatus, grid, random, sobol
from optfn.sweep.trial import Trial

WORKER = "worker "  # before the name of a worker, in the study's attributes
AGAIN = "again"  # of a trial that is done again: the number of the first
PAUSE = 1.0  # seconds between two looks at what other workers do, at most


@dataclass(frozen=True)
class shared_search:
    """Points of a search that several workers share: one study, and each point is trained once.

        sweep.run(..., trials=64, search=sweep.shared_search("study.journal"))

    Run the same call on as many machines as you like: `trials` is the number of all together. A
    worker takes no more points than it has free lanes, tells the score of each after every segment,
    and at the end waits for the others, so that every worker's result has all trials. Optuna's
    dashboard shows them meanwhile. A worker that gives no sign of life for `heartbeat` seconds is
    dead: its unfinished trials end as failed, and the others train the same points from the start.
    For one process, `optuna_search` and a `checkpoint` are simpler.

    A point depends on its number in the study and the seed. All workers should have the same seed,
    since it also chooses initial params and batches; with others the points are distinct too. The
    trials of other workers have no params here: `result.rerun(i)` makes them. A policy compares
    with the scores of all workers; one that pauses trials, or copies them, cannot.

    The study is the workers' alone: a trial of another program is taken for one of a dead worker.

    Args:
        storage: the path of a journal file on a disk that all share, a URL such as
            "postgresql://...", or an `optuna.storages.BaseStorage`.
        search: `random()`, the default, `sobol()`, `grid()`, or `optuna_search(sampler=...)`, which
            learns from the trials that any worker has finished.
        study_name: the name of the study, created if it does not exist.
        heartbeat: the seconds without a sign of life after which a worker is dead.

    Raises:
        ImportError: Optuna is not installed.
        TypeError: another kind of search or storage.
        ValueError: the search has a study or storage of its own; a heartbeat of 0 or less. Later:
            the study is of another sweep; a policy that workers cannot share.
    """

    storage: Any
    search: Search = field(default_factory=random)
    study_name: str = "sweep"
    heartbeat: float = 60.0
    direction: str | None = field(default=None, init=False)

    def __post_init__(self):
        check_place("shared_search", self.storage, self.study_name)
        if not isinstance(self.search, (random, sobol, grid, optuna_search)):
            raise TypeError(
                "shared_search(search=...) must be random(), sobol(), grid() or "
                f"optuna_search(sampler=...), found {self.search!r:.60}."
            )
        if isinstance(self.search, optuna_search) and (
            self.search.study is not None or self.search.storage is not None
        ):
            raise ValueError(
                "shared_search(search=optuna_search(...)) takes a sampler alone: the study is in "
                "the storage that is shared."
            )
        if not 0 < self.heartbeat < math.inf:
            raise ValueError(
                "shared_search(heartbeat=...) must be a number of seconds above 0, found "
                f"{self.heartbeat!r}."
            )

    def aimed(self, sign: int) -> "shared_search":
        """The search for a task that minimizes its score, with sign 1, or maximizes it, with -1."""
        inner = self.search
        inner = inner.aimed(sign) if isinstance(inner, optuna_search) else inner
        aimed = replace(self, search=inner)
        object.__setattr__(aimed, "direction", "minimize" if sign > 0 else "maximize")
        return aimed

    def start(self, space: Mapping[str, Any], trials: int | None, seed: int) -> Session:
        if jax.process_count() > 1:
            raise ValueError(
                "shared_search(...) is for processes that run apart, but jax.distributed has made "
                f"one sweep of these {jax.process_count()}: leave one of the two out."
            )
        inner = self.search.start(space, trials, seed)
        study = opened(self.storage, self.study_name, self.direction)
        there = study.direction.name.lower()
        if self.direction and there != self.direction:
            raise ValueError(
                f"the study {self.study_name!r} is to {there} its score, but the task is to "
                f"{self.direction} it: give another study_name."
            )
        return SharedSession(inner, space, seed, study, self.heartbeat)


class SharedSession:
    """What a worker knows of a study.

    A slot is a point of the sweep: the n-th trial of the study that is not the repetition of
    another. A trial that a dead worker left is failed without a status of ours; the slot then goes
    to its repetition, the first if several workers have made one.
    """

    learns = True  # so that no worker asks for more than it trains

    def __init__(self, inner: Any, space: Mapping[str, Any], seed: int, study: Any, beat: float):
        self.inner, self.seed, self.study, self.heartbeat = inner, seed, study, beat
        self.trials: int = inner.trials
        self.pause = min(PAUSE, beat / 4)
        self.sampled = isinstance(inner, Sampled)
        self.codec: Any = inner if self.sampled else optuna_search().start(space, 1, 0)
        self.storage = study._storage
        self.sign = -1 if study.direction.name == "MAXIMIZE" else 1
        self.states = optuna_library().trial.TrialState
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.mine: list[int] = []  # the ids of this worker's trials, in the order of asking
        self.seen: dict[int, tuple[Any, float]] = {}
        self.waits = True  # others may leave their trials to this worker
        self._stop = threading.Event()

    def join(self, plan: Plan, policy: Policy, seeds: int) -> None:
        """Joins the workers; raises unless they can share this sweep."""
        paused = policy.most_paused(len(policy.rungs(plan.steps, plan.segment)), self.trials)
        if policy.needs_all_trials or paused:
            why = "copies trials from" if policy.needs_all_trials else "lets trials wait for"
            raise ValueError(
                f"{type(policy).__name__} {why} others in the same process, which the workers of a "
                "shared_search do not have: take asha(first=...) or run_all()."
            )
        found = _settings(plan, seeds)
        there = self.study.user_attrs.get("sweep")
        if there is None:
            self.study.set_user_attr("sweep", found)
        for name, value in found.items():
            if there is not None and there.get(name) != value:
                raise ValueError(
                    f"the study {self.study.study_name!r} is of another sweep: {name} is "
                    f"{there.get(name)!r} there, {value!r} here. Give another study_name."
                )
        self._beat(0)
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def close(self) -> None:
        """Gives no more signs of life."""
        self._stop.set()

    # Signs of life.

    def _beat(self, number: int) -> None:
        self.study.set_user_attr(WORKER + self.worker, number)

    def _keep_beating(self) -> None:
        number = 0
        while not self._stop.wait(self.heartbeat / 4):
            number += 1
            with suppress(Exception):  # a storage that is away comes back, or the worker is dead
                self._beat(number)

    def _bury(self, trials: list) -> bool:
        """Ends the trials that dead workers left; whether there were any.

        A worker is dead if its sign has not changed for `heartbeat` seconds of this clock, so that
        clocks need not agree.
        """
        beats, now, found = self.study.user_attrs, time.monotonic(), False
        for trial in trials:
            if trial.state != self.states.RUNNING or trial._trial_id in self.mine:
                continue
            sign = beats.get(WORKER + str(trial.user_attrs.get("worker")))
            before, since = self.seen.get(trial._trial_id, (None, now))
            if (before, since) == (None, now) or sign != before:
                self.seen[trial._trial_id] = (sign, now)
                since = now
            if now - since > self.heartbeat:
                found = self._set(trial._trial_id, self.states.FAIL) or found
        return found

    # The study.

    def _slots(self) -> list[list]:
        """The trials of each slot, by number."""
        slots: dict[int, list] = {}
        for trial in self.study.get_trials(deepcopy=False):
            slots.setdefault(trial.user_attrs.get(AGAIN, trial.number), []).append(trial)
        return list(slots.values())[: self.trials]

    def _live(self, slot: list) -> Any:
        """The trial that counts, or None."""
        return next((trial for trial in slot if not _lost(trial)), None)

    def _set(self, trial: int, state: Any, values: Sequence[float] | None = None) -> bool:
        """Sets the state of a trial; False if another worker was before."""
        try:
            return self.storage.set_trial_state_values(trial, state=state, values=values)
        except RuntimeError:  # it has ended
            return False

    def ask(self, count: int) -> list[Point]:
        points = []
        while len(points) < count and (taken := self._take()) is not None:
            slot, trial = taken
            self.storage.set_trial_user_attr(trial._trial_id, "worker", self.worker)
            points.append(self._choose(slot, trial))
            self.mine.append(trial._trial_id)
            self._write(trial, points[-1])
        return points

    def _take(self) -> tuple[int, Any] | None:
        """Takes a trial that waits, or adds one; None if there is none now."""
        while True:
            slots = self._slots()
            if self._bury([trial for slot in slots for trial in slot]):
                continue
            for number, slot in enumerate(slots):
                if (live := self._live(slot)) is None:
                    self._add_again(slot[0])
                elif live.state == self.states.WAITING and self._set(
                    live._trial_id, self.states.RUNNING
                ):
                    return number, live
            if any(self._live(slot) is None for slot in slots):
                continue
            if len(slots) >= self.trials:
                self.waits = not all(self._live(slot).state.is_finished() for slot in slots)
                return None
            self.study.enqueue_trial({})

    def _add_again(self, first: Any) -> None:
        """Adds a trial that does again what a dead worker left."""
        whole = _has_its_point(first)
        self.study.add_trial(
            optuna_library().trial.create_trial(
                state=self.states.WAITING,
                params=first.params if whole else {},
                distributions=first.distributions if whole else {},
                system_attrs=first.system_attrs,
                user_attrs={AGAIN: first.number},
            )
        )

    # Points.

    def enqueue(self, points: Sequence[Point]) -> None:
        if self.sampled:
            self.inner.first = list(points)  # each slot takes its own
        else:
            self.inner.enqueue(points)
            self.trials = self.inner.trials

    def _choose(self, slot: int, trial: Any) -> Point:
        """The point of a slot: what the trial has, else what the search has for its number."""
        given = self.codec.params_of_study(trial)
        if self.sampled:
            self.inner.learn(
                trial
                for trial in self.study.get_trials(deepcopy=False)
                if trial.state.is_finished()
                and trial._trial_id not in self.mine
                and not _lost(trial)
            )
            return self.inner.ask_for(slot, given)
        if not given:
            return self.inner.at(slot)
        return self.codec.point_with(given, np.random.default_rng([self.seed, slot, 1]))

    def _write(self, trial: Any, point: Point) -> None:
        params, distributions, values = self.codec.written(point)
        number = trial._trial_id
        self.storage.set_trial_user_attr(number, "values", values)
        self.storage.set_trial_user_attr(number, "keys", list(params))
        for key, distribution in distributions.items():
            inner = distribution.to_internal_repr(params[key])
            self.storage.set_trial_param(number, key, inner, distribution)

    # Outcomes.

    def report(self, index: int, step: int, score: float) -> None:
        """Writes the score of a trial that is in training."""
        if math.isfinite(score):
            with suppress(RuntimeError):  # another worker has taken it over
                self.storage.set_trial_intermediate_value(
                    self.mine[index], step, self.sign * float(score)
                )

    def constrain(self, index: int, violations: Sequence[float]) -> None:
        """Writes how far the scores of a trial in training are from keeping its constraints."""
        if self.sampled:
            self.inner.constrain(index, violations)
        with suppress(RuntimeError):  # another worker has taken it over
            note_constraints(self.study, self.mine[index], violations)

    def tell(
        self,
        index: int,
        score: float,
        status: TrialStatus,
        reports: Sequence[tuple[int, float]] = (),
    ) -> None:
        if status in ("ok", "pruned") and not math.isfinite(score):
            status = "not_finite"
        if self.sampled and index not in self.inner.ended:
            self.inner.tell(index, score, status, reports)
        number, states = self.mine[index], self.states
        with suppress(RuntimeError):
            self.storage.set_trial_user_attr(number, "status", status)
        if status == "ok":
            self._set(number, states.COMPLETE, [self.sign * float(score)])
        else:
            self._set(number, states.FAIL if status == "failed" else states.PRUNED)

    def among(self, scores: Scores) -> Scores:
        """The scores with a row for each trial of the other workers."""
        mine, rows = set(self.mine), []
        for trial in self.study.get_trials(deepcopy=False):
            if trial._trial_id in mine or _lost(trial):
                continue
            found = trial.intermediate_values
            row = [self.sign * found.get(age, np.nan) for age in scores.ages]
            if trial.user_attrs.get("status") in ("diverged", "not_finite") and np.isnan(row).any():
                row[int(np.argmax(np.isnan(row)))] = np.inf
            if any(x > 0 for x in trial.system_attrs.get(CONSTRAINTS, ())):
                row = [x if np.isnan(x) else np.inf for x in row]
            rows.append(row)
        if not rows:
            return scores
        others = np.array(rows)
        segments = np.where(np.isnan(others), -1, 0)
        return scores._replace(
            table=np.concatenate([scores.table, others]),
            segments=np.concatenate([scores.segments, segments]),
        )

    def gather(self, scheduler: Any) -> None:
        """Puts the trials of all workers into a scheduler that is done, numbered by their slots."""
        own = {trial: scheduler.trials[i] for i, trial in enumerate(self.mine)}
        trials = []
        for slot in self._slots():
            live = self._live(slot)
            if live is None or live.state == self.states.WAITING:
                continue
            trial = own.get(live._trial_id) or _from(self, live, scheduler)
            if trial is not None:
                trial.number = len(trials)
                trials.append(trial)
        scheduler.trials = trials
        scheduler.kept = [trial for trial in scheduler.kept if trial in trials]

    def advice(self, at_once: int, prunes: bool) -> str:
        return self.inner.advice(at_once, prunes) if self.sampled else ""

    def state(self) -> dict[str, Any]:
        return {"worker": self.worker, "mine": self.mine}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.worker, self.mine = state["worker"], list(state["mine"])
        for trial in self.study.get_trials(deepcopy=False):
            since = trial.user_attrs.get("worker") == self.worker
            if since and trial.state == self.states.RUNNING and trial._trial_id not in self.mine:
                self._set(trial._trial_id, self.states.FAIL)  # taken after the checkpoint
        if self.sampled:
            self._tell_again()

    def _tell_again(self) -> None:
        """Lets the sampler know what this worker has asked and told before."""
        slot_of = {t._trial_id: i for i, slot in enumerate(self._slots()) for t in slot}
        for index, number in enumerate(self.mine):
            trial = self.storage.get_trial(number)
            self.inner.ask_for(slot_of.get(number, index), self.codec.params_of_study(trial))
            self.inner.constrain(index, trial.system_attrs.get(CONSTRAINTS, ()))
            if status := trial.user_attrs.get("status"):
                told = [(step, self.sign * x) for step, x in trial.intermediate_values.items()]
                score = math.inf if trial.value is None else self.sign * trial.value
                score = told[-1][1] if status == "pruned" and told else score
                self.inner.tell(index, score, status, told)

    def flush(self) -> None:
        pass


def _from(session: SharedSession, there: Any, scheduler: Any) -> Trial | None:
    """Another worker's trial; None before it has its point."""
    given = session.codec.params_of_study(there)
    if not _has_its_point(there):
        return None
    plan, sign = scheduler.plan, scheduler.plan.task.sign
    point = session.codec.point_with(given, np.random.default_rng(0))
    trial = Trial(0, point, None, -1, scheduler.seeds_of(0))
    trial.status = there.user_attrs.get("status", "stopped")
    ages = [plan.age(i + 1) for i in range(plan.segments)]
    found = {age: there.intermediate_values.get(age, np.nan) for age in ages}
    trial.steps = max(there.intermediate_values, default=0)
    trial.curve = [
        {plan.task.objective: sign * session.sign * found[age]}
        for age in ages
        if age <= trial.steps
    ]
    if trial.status in ("diverged", "not_finite") and len(trial.curve) < len(ages):
        trial.curve.append({plan.task.objective: math.nan})
    trial.segments = list(range(len(trial.curve)))  # as if it had begun with the sweep
    if trial.status in ("ok", "pruned", "stopped") and there.intermediate_values:
        last = there.value if trial.status == "ok" else found.get(trial.steps, np.nan)
        trial.loss = session.sign * float(last)
    if trial.status != "stopped" or np.isfinite(trial.loss):
        trial.scores = [sign * trial.loss] + [math.nan] * (scheduler.runs - 1)
    trial.moment = {plan.task.objective: trial.scores[:1]}
    trial.violations = list(there.system_attrs.get(CONSTRAINTS, ()))
    if trial.status == "failed":
        trial.error = f"it failed in worker {there.user_attrs.get('worker')}"
    return trial


def _has_its_point(trial: Any) -> bool:
    """Whether a trial has all its params: its worker may have ended while it wrote them."""
    keys = trial.user_attrs.get("keys")
    return bool(trial.params) if keys is None else trial.params.keys() >= set(keys)


def _lost(trial: Any) -> bool:
    """Whether a trial was left by a dead worker."""
    return trial.state.name == "FAIL" and "status" not in trial.user_attrs


def _settings(plan: Plan, seeds: int) -> dict[str, Any]:
    """What the workers of a sweep must have in common, as JSON."""
    return {
        "steps": plan.steps,
        "segment": plan.segment,
        "seeds": seeds,
        "score": plan.score if isinstance(plan.score, str) else list(plan.score),
        "objective": plan.task.objective,
        "patience": plan.patience,
        "max_loss": str(plan.max_loss),  # it may be infinite, which JSON is not
    }
