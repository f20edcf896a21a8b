"""Each lane is the run that optax makes alone, with the same numbers in float32.

Both take the numbers, defaults too, as arguments of a program: of those that it closes over, optax
has `1 - b2` folded in float64, which at 0.999 is 5e-5 away from that of float32.
Rounding grows along a chaotic run, so a second run of optax from params one ulp away tells which
lanes can be compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import sweep

STEPS, WIDTH, LANES = 300, 16, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 8)).astype(np.float32)
Y = np.sin(X @ RNG.normal(size=8)).astype(np.float32)
SPACE = {
    "learning_rate": sweep.LogUniform(1e-4, 1e-1),
    "b1": sweep.OneMinusLogUniform(0.01, 0.5),
}


def init(key):
    hidden, out = jax.random.split(key)
    return {
        "hidden": jax.random.normal(hidden, (8, WIDTH)) / 3,
        "bias": jnp.zeros((1, WIDTH)),
        "out": jax.random.normal(out, (WIDTH,)) / 4,
    }


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["hidden"] + params["bias"]) @ params["out"] - y) ** 2)


TASK = sweep.Task(init, loss, data=(X, Y), batch_size=32, replacement=True)


@jax.jit
def alone(numbers, nudge):
    """A run of optax on the batches of a lane, from params that are `nudge` ulps away."""
    tx = optax.adam(**numbers)
    run = jax.random.fold_in(jax.random.key(0), 0)
    params = jax.tree.map(
        lambda x: jnp.where(nudge, jnp.nextafter(x, jnp.float32(jnp.inf)), x),
        init(jax.random.fold_in(run, 0)),
    )

    def step(carry, age):
        params, state = carry
        key, _ = jax.random.split(jax.random.fold_in(run, age))
        rows = jax.random.randint(key, (32,), 0, len(X))
        grads = jax.grad(loss)(params, (jnp.asarray(X)[rows], jnp.asarray(Y)[rows]))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(1, STEPS + 1))
    return params


def distance(params, expected):
    """Relative, in the Euclidean norm over all params."""
    difference = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), params, expected)
    return float(optax.tree.norm(difference) / optax.tree.norm(expected))


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_each_lane_is_optax_alone(mode):
    result = sweep.run(
        TASK,
        optfn.adam,
        SPACE,
        trials=LANES,
        steps=STEPS,
        segment=STEPS // 3,
        policy=sweep.run_all(),
        mode=mode,
        keep_best=LANES,
    )
    judged = 0
    for member in result.top(LANES):
        numbers = jax.tree.map(jnp.float32, {"b2": 0.999, "eps": 1e-8, **member.values})
        expected = alone(numbers, 0)
        control, found = distance(alone(numbers, 1), expected), distance(member.params, expected)
        if control < 1e-6:
            judged += 1
            assert found < 1e-5, member.values
    assert judged >= LANES // 2
