"""Ways to train many trials, all with the same points, initial params, batches and scores."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import digits
import jax
import numpy as np
import optax
import optuna
from harness import compilations

import optfn
from optfn import sweep
from optfn.core.tree import PyTree
from optfn.sweep.policies.policy import Scores, Verdict


class Study(NamedTuple):
    """A sweep to measure.

    Attributes:
        task: the training task, with the images to train and to evaluate on.
        width: the width of the hidden layer.
        trials: the number of trials.
        steps: the steps of a whole run.
        segment: the steps between two evaluations.
    """

    task: sweep.Task
    width: int
    trials: int
    steps: int
    segment: int

    def images(self) -> digits.Images:
        return self.task.data, self.task.held_out

    def policy(self, prunes: bool) -> sweep.Policy:
        return sweep.asha(first=self.segment) if prunes else sweep.run_all()


class Outcome(NamedTuple):
    """The best test loss of a whole run, and the steps of all lanes, idle ones included."""

    best: float
    steps: int


# A training run by hand, as its author would write it.


class Carry(NamedTuple):
    """The state of a run between two steps."""

    params: PyTree
    state: PyTree
    key: jax.Array
    age: Any


def begin(init: Callable, width: int, seed: Any) -> Carry:
    key = jax.random.fold_in(jax.random.key(seed), 0)
    params = digits.init(width, jax.random.fold_in(key, 0))
    return Carry(params, init(params), key, np.int32(0))


def advance(take_step: Callable, carry: Carry, data: Any, length: int) -> tuple[Carry, jax.Array]:
    """Trains for `length` steps on the batches that a lane draws, and evaluates."""
    train, held_out = data

    def step(carry: Carry, _: None) -> tuple[Carry, None]:
        key, _ = jax.random.split(jax.random.fold_in(carry.key, carry.age + 1))
        grads = jax.grad(digits.loss)(carry.params, digits.batch(key, train))
        params, state = take_step(carry.params, grads, carry.state)
        return Carry(params, state, carry.key, carry.age + 1), None

    carry, _ = jax.lax.scan(step, carry, length=length)
    return carry, digits.evaluate(carry.params, held_out)["test_loss"]


def optax_step(tx: Any, params: PyTree, grads: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


Advance = Callable[[Carry], tuple[Carry, jax.Array]]
Begin = Callable[[digits.Point], tuple[Carry, Advance]]


def fresh_jit(study: Study, seed: int) -> Begin:
    """The numbers of an optax optimizer are closed over, so each point compiles a program."""
    data = jax.device_put(study.images())

    def begin_with(point: digits.Point) -> tuple[Carry, Advance]:
        tx = optax.adam(**point)

        @partial(jax.jit, donate_argnums=0)
        def further(carry: Carry, data: Any) -> tuple[Carry, jax.Array]:
            return advance(partial(optax_step, tx), carry, data, study.segment)

        carry = begin_bare(study.width, seed)
        return carry._replace(state=tx.init(carry.params)), lambda carry: further(carry, data)

    return begin_with


@partial(jax.jit, static_argnums=0)
def begin_bare(width: int, seed: Any) -> Carry:
    return begin(lambda params: (), width, seed)


def argument(study: Study, seed: int) -> Begin:
    """The optfn optimizer is an argument of the program."""
    data = jax.device_put(study.images())

    def begin_with(point: digits.Point) -> tuple[Carry, Advance]:
        tx = optfn.adam(**point)
        carry = begin_argument(tx, study.width, seed)
        return carry, lambda carry: advance_argument(tx, carry, data, study.segment)

    return begin_with


@partial(jax.jit, static_argnums=1)
def begin_argument(tx: Any, width: int, seed: Any) -> Carry:
    return begin(tx.init, width, seed)


@partial(jax.jit, static_argnums=3, donate_argnums=1)
def advance_argument(tx: Any, carry: Carry, data: Any, length: int) -> tuple[Carry, jax.Array]:
    return advance(partial(optfn.step, tx), carry, data, length)


def injected(study: Study, seed: int) -> Begin:
    """optax's inject_hyperparams: the numbers are in the state."""
    data = jax.device_put(study.images())

    def begin_with(point: digits.Point) -> tuple[Carry, Advance]:
        carry = begin_injected(study.width, seed)
        numbers = {name: np.float32(value) for name, value in point.items()}
        state = carry.state._replace(hyperparams=carry.state.hyperparams | numbers)
        return carry._replace(state=state), lambda c: advance_injected(c, data, study.segment)

    return begin_with


INJECTED = optax.inject_hyperparams(optax.adam)(learning_rate=0.1, b1=0.9)


@partial(jax.jit, static_argnums=0)
def begin_injected(width: int, seed: Any) -> Carry:
    return begin(INJECTED.init, width, seed)


@partial(jax.jit, static_argnums=2, donate_argnums=0)
def advance_injected(carry: Carry, data: Any, length: int) -> tuple[Carry, jax.Array]:
    return advance(partial(optax_step, INJECTED), carry, data, length)


# Loops over the trials.

Train = Callable[[Sequence[digits.Point], int], Outcome]


def in_turns(way: Callable[[Study, int], Begin], prunes: bool, study: Study) -> Train:
    """One trial after the other; the policy judges each by those before it."""
    policy = study.policy(prunes)
    rungs = policy.rungs(study.steps, study.segment)

    def train(points: Sequence[digits.Point], seed: int) -> Outcome:
        begin_with, record = way(study, seed), Scores.start(rungs, study.steps, len(points))
        best, steps = math.inf, 0
        for number, point in enumerate(points):
            (carry, further), score = begin_with(point), math.inf
            for age in range(study.segment, study.steps + 1, study.segment):
                carry, score = further(carry)
                score = float(score)
                steps += study.segment
                diverged = not math.isfinite(score)
                rung = record.record(number, age, score, 0, diverged=diverged)
                stands = [] if rung is None else [(number, rung)]
                if diverged or Verdict.STOP in policy.judge(record, stands):
                    break
            else:
                best = min(best, score)
        return Outcome(best, steps)

    return train


def by_optuna(way: Callable[[Study, int], Begin], study: Study) -> Train:
    """Optuna runs the trials one by one, and its own pruner ends some early, at ASHA's rungs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def train(points: Sequence[digits.Point], seed: int) -> Outcome:
        begin_with, steps = way(study, seed), 0
        asked = optuna.create_study(
            sampler=optuna.samplers.RandomSampler(seed),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
        )
        for point in points:
            asked.enqueue_trial(point)

        def objective(trial: optuna.Trial) -> float:
            nonlocal steps
            point = {
                "learning_rate": trial.suggest_float("learning_rate", 1e-6, 10.0, log=True),
                "b1": trial.suggest_float("b1", 0.0, 1.0),
            }
            (carry, further), score = begin_with(point), math.inf
            for rung in range(1, study.steps // study.segment + 1):
                carry, score = further(carry)
                score = float(score)
                steps += study.segment
                trial.report(score, rung)
                if trial.should_prune():
                    raise optuna.TrialPruned
            return score

        asked.optimize(objective, n_trials=len(points))
        return Outcome(asked.best_value, steps)

    return train


def in_lanes(mode: str, prunes: bool, study: Study) -> Train:
    """`sweep.run`, which caches its programs by task."""

    def train(points: Sequence[digits.Point], seed: int) -> Outcome:
        result = sweep.run(
            study.task,
            optfn.adam,
            digits.SPACE,
            trials=len(points),
            steps=study.steps,
            segment=study.segment,
            policy=study.policy(prunes),
            seed=seed,
            mode=mode,
        )
        return Outcome(result.best().score, result.lane_steps)

    return train


class Way(NamedTuple):
    """A way to train all trials.

    Attributes:
        of: makes, for a study, the function that trains trials at points with a seed.
        one_of: one of this many trials is measured, and the seconds are scaled to all.
        again: whether a second call in the same process is faster.
    """

    of: Callable[[Study], Train]
    one_of: int = 1
    again: bool = True


WAYS = {
    "fresh jit": Way(partial(in_turns, fresh_jit, False), 16, False),
    "fresh jit + Optuna": Way(partial(by_optuna, fresh_jit), 16, False),
    "argument": Way(partial(in_turns, argument, False)),
    "argument + ASHA": Way(partial(in_turns, argument, True)),
    "argument + Optuna": Way(partial(by_optuna, argument)),
    "injected": Way(partial(in_turns, injected, False)),
    "injected + ASHA": Way(partial(in_turns, injected, True)),
    "lanes auto": Way(partial(in_lanes, "auto", False)),
    "lanes auto + ASHA": Way(partial(in_lanes, "auto", True)),
    "lanes vmap": Way(partial(in_lanes, "vmap", False)),
    "lanes vmap + ASHA": Way(partial(in_lanes, "vmap", True)),
    "lanes map": Way(partial(in_lanes, "map", False)),
    "lanes map + ASHA": Way(partial(in_lanes, "map", True)),
}


class Cost(NamedTuple):
    """The cost of all trials.

    Attributes:
        seconds: including compilation.
        compilations: the number of compiled programs.
        steps: the steps per trial, those of idle lanes included.
        best: the best test loss.
    """

    seconds: float
    compilations: int
    steps: float
    best: float


def measure(name: str, study: Study) -> list[Cost]:
    """The costs of a way in this process: cold, then warm with another seed."""
    jax.devices()  # the start of the backend is not measured
    way, costs = WAYS[name], []
    train = None
    for seed in (0, 1) if way.again else (0,):
        points = digits.points(study.trials, seed)[: -(-study.trials // way.one_of)]
        compiled, start = compilations(), time.perf_counter()
        train = train or way.of(study)
        best, steps = train(points, seed)
        seconds = (time.perf_counter() - start) * study.trials / len(points)
        costs.append(Cost(seconds, compilations() - compiled, steps / len(points), best))
    return costs


def bests(name: str, study: Study, seeds: Sequence[int]) -> list[float]:
    """The best test loss of a way for each seed, in this process."""
    train = WAYS[name].of(study)
    return [train(digits.points(study.trials, seed), seed).best for seed in seeds]
