"""A regression with three weights, and a lane of it written by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optfn
from optfn import sweep
from optfn.sweep.epochs import rows_of_steps

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(64, 3)))
Y = np.float32(X @ [1.0, -2.0, 0.5] + 0.1 * RNG.normal(size=64))
BATCH = 16


def init(key):
    return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def evaluate(params):
    return {"distance": jnp.sum((params["w"] - jnp.asarray([1.0, -2.0, 0.5])) ** 2)}


SCORED = {"evaluate": evaluate, "minimize": "distance"}
TASK = sweep.Task(init, loss, data=(X, Y), batch_size=BATCH, **SCORED)
# Without a random number: its programs compile in a third of the time.
START = {"w": np.ones(3, np.float32), "b": np.float32(0)}
STILL = sweep.Task(START, loss, data=(X, Y), **SCORED)
EVERY = jax.tree.map(lambda x: np.broadcast_to(x, (20, *x.shape)), (X, Y))  # its batches
RATES = sweep.LogUniform(1e-3, 1e-1)
RATE = {"learning_rate": RATES}


def run(space, task=TASK, optimizer=optfn.adam, **kwargs):
    kwargs = {"steps": 20, "segment": 5, "mode": "vmap", "policy": sweep.run_all()} | kwargs
    return sweep.run(task, optimizer, space, **kwargs)


def key_of(age, seed=0):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed), age)


def drawn(steps, seed=None):
    """The batches of a run with this seed; None is those that all lanes have in common."""
    key = jax.random.key(0) if seed is None else jax.random.fold_in(jax.random.key(0), seed)
    rows = rows_of_steps(jax.random.fold_in(key, 2**32 - 1), steps, len(X), BATCH)
    return jnp.asarray(X)[rows], jnp.asarray(Y)[rows]


@partial(jax.jit, static_argnames=("make", "steps"))
def alone(make, values, steps, seed=0, batches=None, params=None):
    """What a lane does, written as a training loop of one's own, with optax's optimizer."""
    tx = make(**values)
    params = init(key_of(0, seed)) if params is None else params
    if batches is None:
        batches = drawn(jnp.arange(steps), seed)

    def step(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]


def close(params, expected):
    """Twenty steps of rounding in another order, in params of about 1 that may pass near 0."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=5e-6), params, expected
    )


def same(result, other):
    """Two sweeps that agree bit for bit."""
    np.testing.assert_array_equal(result.scores, other.scores)
    np.testing.assert_array_equal(result.status, other.status)
    np.testing.assert_array_equal(result.steps, other.steps)
    for name, curve in result.curves.items():
        np.testing.assert_array_equal(curve, other.curves[name])
    assert result.kept.keys() == other.kept.keys()
    jax.tree.map(np.testing.assert_array_equal, result.kept, other.kept)
