"""Haiku: params are dicts of dicts whose keys hold slashes, like `"mlp/~/linear_0"`.

The oracle is the same training with optax's optimizer.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optfn
from optfn import schedules

RNG = np.random.default_rng(0)
INPUTS, TARGETS = (RNG.normal(size=(8, n)).astype(np.float32) for n in (3, 2))

network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2], activation=jnp.tanh)(x)))


def loss(params):
    return jnp.mean((network.apply(params, INPUTS) - TARGETS) ** 2)


def train(tx, steps=5):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params):
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return params

    return run(network.init(jax.random.key(0), INPUTS))


def test_training_equals_optax():
    ours = train(
        optfn.chain(
            optfn.clip_by_global_norm(0.5),
            optfn.partition(
                {
                    "first": optfn.adamw(
                        schedules.linear(0.02, 0.0, 6),
                        weight_decay=0.1,
                        mask=lambda path, leaf: path.endswith("/w"),
                    ),
                    "rest": optfn.sgd(0.02, momentum=0.9, nesterov=True),
                },
                lambda path, leaf: "first" if path.startswith("mlp/~/linear_0/") else "rest",
            ),
        )
    )
    theirs = train(
        optax.chain(
            optax.clip_by_global_norm(0.5),
            optax.partition(
                {
                    "first": optax.adamw(
                        optax.linear_schedule(0.02, 0.0, 6),
                        weight_decay=0.1,
                        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
                    ),
                    "rest": optax.sgd(0.02, momentum=0.9, nesterov=True),
                },
                {"mlp/~/linear_0": "first", "mlp/~/linear_1": "rest"},
            ),
        )
    )
    # What numbers rounded in another order make of a few steps of 0.02.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), ours, theirs)
