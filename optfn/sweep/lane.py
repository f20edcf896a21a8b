"""A lane: one run, from its first step to its score."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from optfn.core.randomness import is_key
from optfn.core.tree import PyTree
from optfn.sweep.candidate import Candidate
from optfn.sweep.epochs import rows_of_steps
from optfn.sweep.task import Model, Training, check_new_names

SEEDS = "seed", "random_seed"  # the names of seeds in optimizers
EPOCHS = 2**32 - 1  # folded into the key that shuffles, as no age is
MOST_ROWS = 2**16  # drawn at a time for a lane


class Best(NamedTuple):
    """The best moment of a run so far, among the ends of its segments.

    Attributes:
        loss: float scalar, the score as a loss, where lower is better; inf before the first.
        model: the params that were scored, and the model's state.
    """

    loss: jax.Array
    model: Model


class Lanes(NamedTuple):
    """The runs of all lanes; inside `vmap`, the run of one lane, without the `lanes` axis.

    Attributes:
        candidate: the optimizers and the task's hyperparameters, numbers `[lanes, ...]`.
        carry: pytree `[lanes, ...]`, the training's carry from step to step.
        seed: int32 `[lanes]`, the seed of the run; it draws by this seed and the sweep's.
        age: int32 `[lanes]`, the steps taken.
        running: bool `[lanes]`, whether there is a run that has not ended.
        diverged: bool `[lanes]`, whether the run ended because its params or loss were not finite,
            or its loss was above `max_loss`.
        best: a `Best` of each lane, `[lanes, ...]`, where the task says that it is kept.
    """

    candidate: Candidate
    carry: PyTree
    seed: jax.Array
    age: jax.Array
    running: jax.Array
    diverged: jax.Array
    best: Best | tuple[()] = ()


# The metrics of a step, or their sums over several: the number of steps, and the metrics by name,
# all scalars for one lane.
StepMetrics = tuple[jax.Array, dict[str, jax.Array]]


class Shared(NamedTuple):
    """The arrays that all lanes read, without a `lanes` axis.

    Attributes:
        seed: uint32 scalar, the seed of the sweep.
        data: the task's pytree `[examples, ...]`.
        held_out: the task's pytree, in shapes of its own.
        initial_params: the pytree that every run starts from, as `init` gives it, or None.
        steps: int32 scalar, the steps of a whole run.
        max_loss: float scalar; a run with a larger loss has diverged.
    """

    seed: ArrayLike
    data: PyTree
    held_out: PyTree
    initial_params: PyTree
    steps: ArrayLike
    max_loss: ArrayLike


def init_lane(task: Training, candidate: Candidate, seed: jax.Array, shared: Shared) -> Lanes:
    """One lane before its first step.

    Args:
        task: the training run.
        candidate: numbers `[...]`, of one lane.
        seed: int32 scalar.
        shared: the arrays that all lanes read, see `Shared`.
    """
    candidate = for_seed(candidate, seed)
    key = jax.random.fold_in(jax.random.key(shared.seed), seed)
    carry = task.begin(candidate, jax.random.fold_in(key, 0), shared.initial_params)
    flags = jnp.ones((), bool), jnp.zeros((), bool)
    best = ()
    if task.keeps_best:
        worst = jnp.full((), jnp.inf, jnp.result_type(float))
        best = Best(worst, task.scored_model(candidate.tx, carry))
    return Lanes(candidate, carry, seed, jnp.zeros((), jnp.int32), *flags, best)


def for_seed(candidate: Candidate, seed: jax.Array) -> Candidate:
    """One lane's candidate, its random keys folded with the run's seed, its seeds shifted by it.

    Args:
        candidate: numbers `[...]`, of one lane.
        seed: int32 scalar.
    """

    def own(path, x):
        if is_key(x):
            return jnp.vectorize(jax.random.fold_in)(x, seed)
        return x + seed.astype(x.dtype) if getattr(path[-1], "name", "") in SEEDS else x

    return candidate._replace(made=jax.tree.map_with_path(own, candidate.made))


class Draws(NamedTuple):
    """What the steps of a run draw at random, arrays `[steps, ...]`; of one step, without the axis.

    Attributes:
        batch: the keys for a function that makes batches.
        loss: the keys for the loss.
        rows: int32 `[steps, batch_size]`, the examples of the batches; None where there are none.
    """

    batch: jax.Array
    loss: jax.Array
    rows: jax.Array | None


def segment(
    lane: Lanes,
    shared: Shared,
    first: jax.Array,
    batches: PyTree,
    *,
    task: Training,
    length: int,
    mode: str,
) -> tuple[Lanes, dict[str, jax.Array]]:
    """Trains one lane for `length` steps and scores it; "map" skips a lane without a run.

    Args:
        lane: arrays `[...]`, of one lane.
        shared: the arrays that all lanes read, see `Shared`.
        first: int32 scalar, the sweep's step at the start.
        batches: pytree `[length, ...]`, the batches of a stream; None without one.
        task: the training run.
        length: the number of steps.
        mode: "vmap" or "map".

    Returns:
        The lane, and its metrics: scalars by name.
    """
    parts = _equal_parts(length, MOST_ROWS // (task.batch_size or 1))

    def step(lane, at):
        return step_lane(task, shared, lane, *at)

    def part(lane, at):
        steps, batches = at
        drawn = draws(task, shared, lane, steps)  # all at once, which is faster
        return lax.scan(step, lane, (drawn, batches))

    def train(lane: Lanes) -> tuple[Lanes, dict[str, jax.Array]]:
        steps = first + jnp.arange(length)
        shape = parts, length // parts
        at = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), (steps, batches))
        lane, metrics = lax.scan(part, lane, at, unroll=parts == 1)
        return scored(task, lane, jax.tree.map(lambda x: x.sum((0, 1)), metrics), shared)

    if mode == "vmap":
        return train(lane)
    blank = jax.eval_shape(train, lane)[1]
    return lax.cond(
        lane.running,
        train,
        lambda lane: (lane, jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), blank)),
        lane,
    )


def _equal_parts(length: int, most: int) -> int:
    """The fewest equal parts of a length of which none is longer than `most`, or than 1."""
    return next(n for n in range(1, length + 1) if not length % n and length // n <= max(most, 1))


def step_lane(
    task: Training, shared: Shared, lane: Lanes, drawn: Draws, batch: PyTree = None
) -> tuple[Lanes, StepMetrics]:
    """A step of one lane; a lane that has ended keeps its state, and its metrics are 0.

    Args:
        task: the training run.
        shared: the arrays that all lanes read, see `Shared`.
        lane: arrays `[...]`, of one lane.
        drawn: what the step draws.
        batch: pytree, a batch of the stream; None without one.
    """
    if drawn.rows is not None:
        batch = jax.tree.map(lambda x: x[drawn.rows], shared.data)
    elif batch is None:
        batch = task.whole_batch(drawn.batch, shared.data, lane.candidate.task)
    carry, metrics = task.advance(lane.candidate, lane.carry, batch, drawn.loss)
    metrics = jax.tree.map(_wide, metrics)
    healthy = task.is_finite(carry)
    if "loss" in metrics:
        healthy &= jnp.isfinite(metrics["loss"]) & (metrics["loss"] <= shared.max_loss)
    running = lane.running & (lane.age < shared.steps)
    new, old = (carry, lane.age + 1), (lane.carry, lane.age)
    carry, age = select(running & healthy, new, old)
    broken = running & ~healthy
    running_on, diverged = lane.running & ~broken, lane.diverged | broken
    lane = lane._replace(carry=carry, age=age, running=running_on, diverged=diverged)
    return lane, jax.tree.map(lambda x: jnp.where(running, x, 0), (1, metrics))


def draws(task: Training, shared: Shared, lane: Lanes, steps: jax.Array) -> Draws:
    """What a lane draws in the steps from now on, should it take all of them.

    Args:
        task: the training run.
        shared: the arrays that all lanes read, see `Shared`.
        lane: arrays `[...]`, of one lane.
        steps: int32 `[steps]`, the sweep's.
    """
    root = jax.random.key(shared.seed)
    run = jax.random.fold_in(root, lane.seed)
    ages = lane.age + jnp.arange(len(steps), dtype=lane.age.dtype)
    keys = jax.vmap(lambda age: jax.random.split(jax.random.fold_in(run, age + 1)))(ages)
    batch_keys, loss_keys = keys[:, 0], keys[:, 1]
    if task.common_batches:
        batch_keys = jax.vmap(jax.random.fold_in, (None, 0))(root, steps)
    if task.batch_size is None:
        return Draws(batch_keys, loss_keys, None)
    examples = jnp.shape(jax.tree.leaves(shared.data)[0])[0]
    if not task.has_epochs:
        shape = (task.batch_size,)
        rows = jax.vmap(lambda key: jax.random.randint(key, shape, 0, examples))(batch_keys)
        return Draws(batch_keys, loss_keys, rows)
    key, at = (root, steps) if task.common_batches else (run, ages)
    rows = rows_of_steps(jax.random.fold_in(key, EPOCHS), at, examples, task.batch_size)
    return Draws(batch_keys, loss_keys, rows)


def scored(
    task: Training, lane: Lanes, sums: StepMetrics, shared: Shared
) -> tuple[Lanes, dict[str, jax.Array]]:
    """The lane after a segment, with its best moment so far, and its `scores`."""
    metrics = scores(task, lane, sums, shared)
    if not task.keeps_best or task.objective not in metrics:
        return lane, metrics
    return with_best(task, lane, metrics[task.objective]), metrics


def with_best(task: Training, lane: Lanes, score: jax.Array) -> Lanes:
    """The lane with its best moment so far, given its score now, a float scalar."""
    best: Any = lane.best
    loss = (task.sign * score).astype(best.loss.dtype)
    better = jnp.isfinite(loss) & (loss < best.loss) & ~lane.diverged
    now = Best(loss, task.scored_model(lane.candidate.tx, lane.carry))
    return lane._replace(best=select(better, now, best))


def kept_model(task: Training, lane: Lanes) -> Model:
    """The model that a lane has to show: of its best moment where that is kept, else the last."""
    best: Any = lane.best
    return best.model if task.keeps_best else task.scored_model(lane.candidate.tx, lane.carry)


def scores(task: Training, lane: Lanes, sums: StepMetrics, shared: Shared) -> dict[str, jax.Array]:
    """The mean metrics of a segment, and the results of `evaluate` at its end: scalars by name.

    Args:
        task: the training run.
        lane: arrays `[...]`, of one lane.
        sums: the number of steps, and the sums of their metrics.
        shared: the arrays that all lanes read, see `Shared`.
    """
    count, totals = sums
    means = {name: total / jnp.maximum(count, 1) for name, total in totals.items()}
    measured = jax.tree.map(_wide, task.score(lane.candidate, lane.carry, shared.held_out))
    check_new_names(f"{type(task).__name__}(evaluate=...)", measured, means)
    return means | measured


def _wide(x: ArrayLike) -> jax.Array:
    """The scalar in float32, or float64 if it is, so that its sum has a precise mean."""
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def select(chosen: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` if `chosen`, a bool scalar, is True, else `old`; both pytrees `[...]` of one lane."""
    return jax.tree.map(lambda n, o: jnp.where(chosen, n, o), new, old)
