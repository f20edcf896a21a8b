"""Every optimizer, stage and wrapper under jax's strict settings."""

import cases
import jax
import jax.numpy as jnp
import pytest

import optfn

EVERY = cases.OPTIMIZERS | cases.STAGES
EXTRA_ARGS = cases.EXTRA_ARGS | {"sophia": {"obj_fn": cases.bowl}}  # whose sum is in float32
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2, jnp.bfloat16)}
GRADS = jax.tree.map(lambda p: p / 8, PARAMS)


@pytest.mark.parametrize("name", EVERY)
def test_strict_promotion_of_dtypes(name):
    """jax then refuses operations on arrays of different dtypes, real times complex too."""
    tx, extra_args = EVERY[name], EXTRA_ARGS.get(name, {})

    def run(grads, params):
        given = extra_args(grads, params) if callable(extra_args) else extra_args
        with jax.numpy_dtype_promotion("strict"):
            state = tx.init(params)
            for _ in range(2):
                updates, state = tx.update(grads, state, params, **given)
                params = optfn.apply_updates(params, updates)
            params, state = optfn.step(tx, params, grads, state, **given)
            optfn.evaluation_params(tx, state, params)
            optfn.metrics(tx, state)
            optfn.hyperparameters(tx, state)
        return params, state

    jax.eval_shape(run, GRADS, PARAMS)


@jax.jit
def takes(leaves):
    """One program for all optimizers of as many numbers."""


@pytest.mark.parametrize("name", EVERY)
def test_as_arrays_leaves_nothing_to_transfer(name):
    leaves = jax.tree.leaves(optfn.as_arrays(EVERY[name]))
    with jax.transfer_guard("disallow"):
        takes(leaves)


def test_a_step_of_an_optimizer_of_arrays_transfers_nothing():
    tx, params = optfn.as_arrays(EVERY["adamw"]), {"w": jnp.ones((3, 2))}
    state, grads = tx.init(params), {"w": jnp.ones((3, 2))}
    step = jax.jit(optfn.step)
    with jax.transfer_guard("disallow"):
        step(tx, params, grads, state)
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            step(EVERY["adamw"], params, grads, state)
