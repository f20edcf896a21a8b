"""A lane: one run, from its first step to its score."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optfn.core.transform import Transform
from optfn.core.tree import PyTree
from optfn.sweep.task import Training

SEEDS = "seed", "random_seed"  # how optimizers name them


class Lanes(NamedTuple):
    """The runs; every array has the lanes in front.

    Attributes:
        tx: the optimizers.
        carry: of the training.
        seed: int32, of the run; with that of the sweep, all that its randomness depends on.
        age: int32, the steps taken.
        running: whether there is a run that has not ended.
        diverged: whether it ended as it was no longer finite, or beyond the largest loss.
    """

    tx: Transform
    carry: PyTree
    seed: jax.Array
    age: jax.Array
    running: jax.Array
    diverged: jax.Array


# Of a step or of several: how many, and the scalars that they told.
Told = tuple[jax.Array, dict[str, jax.Array]]


class Shared(NamedTuple):
    """What all lanes read.

    Attributes:
        seed: of the sweep.
        data: of the task.
        held_out: of the task.
        start: the params that every run starts from, if the task has them.
        steps: of a whole run.
        max_loss: above it a run has diverged.
    """

    seed: Any
    data: PyTree
    held_out: PyTree
    start: PyTree
    steps: Any
    max_loss: Any


def begun(task: Training, tx: Transform, seed: jax.Array, shared: Shared) -> Lanes:
    """A lane before its first step."""
    tx, key = of_seed(tx, seed), jax.random.fold_in(jax.random.key(shared.seed), seed)
    carry = task.begin(tx, jax.random.fold_in(key, 0), shared.start)
    flags = jnp.ones((), bool), jnp.zeros((), bool)
    return Lanes(tx, carry, seed, jnp.zeros((), jnp.int32), *flags)


def of_seed(tx: Transform, seed: jax.Array) -> Transform:
    """The optimizer with random keys, or the numbers that seed them, of its own for a run."""

    def own(path, x):
        if is_key(x):
            return jnp.vectorize(jax.random.fold_in)(x, seed)
        return x + seed.astype(x.dtype) if getattr(path[-1], "name", "") in SEEDS else x

    return jax.tree.map_with_path(own, tx)


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
            return stepped(task, shared, lane, *at)

        lane, told = lax.scan(step, lane, (first + jnp.arange(length), batches), length)
        return lane, scores(task, lane, jax.tree.map(lambda x: x.sum(0), told), shared)

    if mode == "vmap":
        return train(lane)
    blank = jax.eval_shape(train, lane)[1]
    return lax.cond(
        lane.running,
        train,
        lambda lane: (lane, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), blank)),
        lane,
    )


def stepped(
    task: Training, shared: Shared, lane: Lanes, at: jax.Array, batch: PyTree
) -> tuple[Lanes, Told]:
    """A step of a lane that has not ended; what it tells is 0 for one that has."""
    root = jax.random.key(shared.seed)
    key = jax.random.fold_in(jax.random.fold_in(root, lane.seed), lane.age + 1)
    batch_key, loss_key = jax.random.split(key)
    if task.stream is None:
        common = jax.random.fold_in(root, at)
        batch = task.draw(common if task.common_batches else batch_key, shared.data)
    carry, told = task.advance(lane.tx, lane.carry, batch, loss_key)
    told = jax.tree.map(_wide, told)
    fit = task.is_fit(carry)
    if "loss" in told:
        fit &= jnp.isfinite(told["loss"]) & (told["loss"] <= shared.max_loss)
    running = lane.running & (lane.age < shared.steps)
    new = lane._replace(carry=carry, age=lane.age + 1)
    lane = select(running & fit, new, lane)
    broken = running & ~fit
    lane = lane._replace(running=lane.running & ~broken, diverged=lane.diverged | broken)
    return lane, jax.tree.map(lambda x: jnp.where(running, x, 0), (1, told))


def scores(task: Training, lane: Lanes, sums: Told, shared: Shared) -> dict[str, jax.Array]:
    """The means over the steps of a segment, and what is measured at its end."""
    count, totals = sums
    means = {name: total / jnp.maximum(count, 1) for name, total in totals.items()}
    measured = jax.tree.map(_wide, task.score(lane.tx, lane.carry, shared.held_out))
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


def is_key(x: Any) -> bool:
    """Whether an array is of typed random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
