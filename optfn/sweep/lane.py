"""A lane: one run, from its first step to its score."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.randomness import is_key
from optfn.core.tree import PyTree
from optfn.sweep.candidate import Candidate
from optfn.sweep.task import Training

SEEDS = "seed", "random_seed"  # how optimizers name them


class Lanes(NamedTuple):
    """The runs; every array has the lanes in front.

    Attributes:
        candidate: the optimizers, and the task's hyperparameters.
        carry: what the training carries from step to step.
        seed: int32 [lanes], the seed of the run; its randomness depends on it and on the sweep's.
        age: int32 [lanes], the steps taken.
        running: bool [lanes], whether there is a run that has not ended.
        diverged: bool [lanes], whether the run ended since it was no longer finite, or beyond the
            largest loss.
    """

    candidate: Candidate
    carry: PyTree
    seed: jax.Array
    age: jax.Array
    running: jax.Array
    diverged: jax.Array


# The metrics of a step, or their sums over several: the number of steps, and scalars by name.
StepMetrics = tuple[jax.Array, dict[str, jax.Array]]


class Shared(NamedTuple):
    """What all lanes read.

    Attributes:
        seed: uint32 scalar, the seed of the sweep.
        data: the task's, a tree of arrays `[examples, ...]`.
        held_out: the task's, a tree of arrays.
        initial_params: the params that every run starts from, if the task has them.
        steps: int32 scalar, the length of a whole run.
        max_loss: scalar; a run with a larger loss has diverged.
    """

    seed: Any
    data: PyTree
    held_out: PyTree
    initial_params: PyTree
    steps: Any
    max_loss: Any


def init_lane(task: Training, candidate: Candidate, seed: jax.Array, shared: Shared) -> Lanes:
    """A lane before its first step."""
    candidate = for_seed(candidate, seed)
    key = jax.random.fold_in(jax.random.key(shared.seed), seed)
    carry = task.begin(candidate.tx, jax.random.fold_in(key, 0), shared.initial_params)
    flags = jnp.ones((), bool), jnp.zeros((), bool)
    return Lanes(candidate, carry, seed, jnp.zeros((), jnp.int32), *flags)


def for_seed(candidate: Candidate, seed: jax.Array) -> Candidate:
    """The candidate whose optimizer draws by the seed of its run."""

    def own(path, x):
        if is_key(x):
            return jnp.vectorize(jax.random.fold_in)(x, seed)
        return x + seed.astype(x.dtype) if getattr(path[-1], "name", "") in SEEDS else x

    return candidate._replace(tx=jax.tree.map_with_path(own, candidate.tx))


def segment(
    lane: Lanes,
    occupied: jax.Array,
    shared: Shared,
    first: jax.Array,
    batches: PyTree,
    *,
    task: Training,
    length: int,
    mode: str,
) -> tuple[Lanes, dict[str, jax.Array]]:
    """A lane `length` steps further, and its scores; by "map" only if it has a run."""
    lane = lane._replace(running=lane.running & occupied)

    def train(lane: Lanes) -> tuple[Lanes, dict[str, jax.Array]]:
        def step(lane, at):
            return step_lane(task, shared, lane, *at)

        lane, metrics = lax.scan(step, lane, (first + jnp.arange(length), batches), length)
        return lane, scores(task, lane, jax.tree.map(lambda x: x.sum(0), metrics), shared)

    if mode == "vmap":
        return train(lane)
    blank = jax.eval_shape(train, lane)[1]
    return lax.cond(
        lane.running,
        train,
        lambda lane: (lane, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), blank)),
        lane,
    )


def step_lane(
    task: Training, shared: Shared, lane: Lanes, at: jax.Array, batch: PyTree
) -> tuple[Lanes, StepMetrics]:
    """A step of a lane that has not ended; the metrics of one that has are 0."""
    root = jax.random.key(shared.seed)
    key = jax.random.fold_in(jax.random.fold_in(root, lane.seed), lane.age + 1)
    batch_key, loss_key = jax.random.split(key)
    if task.stream is None:
        common = jax.random.fold_in(root, at)
        batch = task.draw(common if task.common_batches else batch_key, shared.data)
    carry, metrics = task.advance(lane.candidate.tx, lane.carry, batch, loss_key)
    metrics = jax.tree.map(_wide, metrics)
    healthy = task.is_finite(carry)
    if "loss" in metrics:
        healthy &= jnp.isfinite(metrics["loss"]) & (metrics["loss"] <= shared.max_loss)
    running = lane.running & (lane.age < shared.steps)
    new = lane._replace(carry=carry, age=lane.age + 1)
    lane = select(running & healthy, new, lane)
    broken = running & ~healthy
    lane = lane._replace(running=lane.running & ~broken, diverged=lane.diverged | broken)
    return lane, jax.tree.map(lambda x: jnp.where(running, x, 0), (1, metrics))


def scores(task: Training, lane: Lanes, sums: StepMetrics, shared: Shared) -> dict[str, jax.Array]:
    """The means over the steps of a segment, and what is measured at its end."""
    count, totals = sums
    means = {name: total / jnp.maximum(count, 1) for name, total in totals.items()}
    measured = jax.tree.map(_wide, task.score(lane.candidate.tx, lane.carry, shared.held_out))
    if both := sorted(means.keys() & measured.keys()):
        raise ValueError(
            f"{type(task).__name__}(evaluate=...) must give names that no metric of the training "
            f"has, found {', '.join(both)} in both."
        )
    return means | measured


def _wide(x: Any) -> jax.Array:
    """A scalar whose sum over many steps is one that can be divided by their number."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def select(chosen: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """One tree or the other."""
    return jax.tree.map(lambda n, o: jnp.where(chosen, n, o), new, old)
