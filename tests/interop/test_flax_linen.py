"""Flax linen: `TrainState` with the optimizer as its static attribute, and with it as data.

The oracle is the same training with optax's optimizer.
"""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import optfn
from optfn import schedules

RNG = np.random.default_rng(0)
INPUTS, TARGETS = (RNG.normal(size=(8, n)).astype(np.float32) for n in (3, 2))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(jnp.tanh(nn.Dense(4)(x)))


class DataTrainState(TrainState):
    """A train state whose optimizer is part of its tree, like the params."""

    tx: optfn.Transform = flax.struct.field(pytree_node=True)


def create(tx, kind=TrainState, container=dict):
    params = Network().init(jax.random.key(0), INPUTS)["params"]
    return kind.create(apply_fn=Network().apply, params=container(params), tx=tx)


def counted_step():
    """A jitted training step, which donates the state, and its number of traces."""
    traces = []

    def step(state):
        traces.append(None)

        def loss(params):
            return jnp.mean((state.apply_fn({"params": params}, INPUTS) - TARGETS) ** 2)

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    return jax.jit(step, donate_argnums=0), lambda: len(traces)


def train(state, steps=5):
    step, count = counted_step()
    for _ in range(steps):
        state = step(state)
    assert count() == 1
    return state


def assert_same_params(ours, theirs):
    """Within what numbers rounded in another order make of a few steps of 0.02."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), ours.params, theirs.params
    )


def kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


@pytest.mark.parametrize("container", [dict, flax.core.freeze], ids=["dict", "FrozenDict"])
def test_train_state_equals_optax(container):
    ours = optfn.chain(
        optfn.clip_by_global_norm(0.5),
        optfn.adamw(
            schedules.warmup_cosine(0.02, warmup_steps=2, total_steps=6),
            weight_decay=0.1,
            mask=lambda path, leaf: path.endswith("kernel"),
        ),
    )
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.02, warmup_steps=2, decay_steps=6)
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.1, mask=kernels)
    )

    state = train(create(ours, container=container))

    assert_same_params(state, train(create(theirs, container=container)))
    assert state.step == state.opt_state.step == 5


@pytest.mark.parametrize("convert", [lambda tx: tx, optfn.as_arrays], ids=["floats", "arrays"])
def test_the_rate_changes_without_a_retrace_where_the_optimizer_is_data(convert):
    step, count = counted_step()
    state = create(convert(optfn.adam(0.02)), DataTrainState)
    optax_step, optax_count = counted_step()
    optax_state = create(optax.adam(0.02))

    for rate in (0.02, 0.005, 0.01):
        state = step(state.replace(tx=optfn.replace(state.tx, learning_rate=rate)))
        optax_state = optax_step(optax_state.replace(tx=optax.adam(rate)))

    assert_same_params(state, optax_state)
    assert (count(), optax_count()) == (1, 3)
    assert optfn.hyperparameters(state.tx, state.opt_state)["learning_rate"] == np.float32(0.01)
