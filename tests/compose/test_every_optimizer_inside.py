"""Every optimizer inside of every wrapper that, set so, leaves it as it is."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn.testing.checks import Subject, example_grads, example_params


def always(step, **extra_args):
    return True


WRAPPERS = {
    "accumulate": lambda tx: optfn.accumulate(tx, 1),
    "skip_nonfinite": optfn.skip_nonfinite,
    "skip_spikes": optfn.skip_spikes,
    "loss_scale": lambda tx: optfn.loss_scale(tx, 1.0, growth_factor=1.0),
    "conditionally_mask": lambda tx: optfn.conditionally_mask(
        tx, always, forward_extra_args=tuple(tx.declared_extra_args())
    ),
    "partition": lambda tx: optfn.partition({"all": tx, "none": optfn.sgd(1.0)}, "all"),
    "freeze": lambda tx: optfn.freeze(tx, False),
    "chain": lambda tx: optfn.chain(optfn.clip_by_global_norm(1e30), tx),
    "named chain": lambda tx: optfn.chain(tx).named("inner"),
    "twice": lambda tx: optfn.skip_nonfinite(optfn.accumulate(optfn.freeze(tx, False), 1)),
}


def subject(name, wrap=lambda tx: tx):
    return Subject(wrap(cases.OPTIMIZERS[name]), cases.EXTRA_ARGS.get(name, {}))


@functools.cache
def alone(name):
    """Op by op, so that the cases share what is compiled."""
    params = example_params()
    with jax.disable_jit():
        return subject(name).twice(cases.OPTIMIZERS[name], example_grads(params), params)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_is_inside_is_as_it_is_alone(wrapper):
    """Two updates, bit for bit; what is evaluated at; and the form of the state in bfloat16."""
    params = example_params()
    grads = example_grads(params)
    for name in cases.OPTIMIZERS:
        one = subject(name, WRAPPERS[wrapper])
        with jax.disable_jit():
            updates, state = one.twice(one.tx, grads, params)
            evaluated = optfn.evaluation_params(one.tx, state, params)
            expected, own_state = alone(name)
            wanted = optfn.evaluation_params(cases.OPTIMIZERS[name], own_state, params)
        for found, alike in ((updates, expected), (evaluated, wanted)):
            jax.tree.map(lambda x, y, n=name: np.testing.assert_array_equal(x, y, n), found, alike)
        narrow = example_params(jnp.bfloat16)
        form = jax.eval_shape(one.tx.init, narrow)
        _, after = jax.eval_shape(one.update, narrow, form, narrow)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), form) == jax.tree.map(
            lambda x: (x.shape, x.dtype), after
        ), name
