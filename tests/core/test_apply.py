"""Adding updates: `apply_updates`, and `step`, which rounds once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn

PARAMS = {"w": jnp.asarray([[1.0, -2.0]]), "b": [jnp.asarray(0.5), None]}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)


def test_apply_updates_adds_leaf_by_leaf():
    new = optfn.apply_updates(PARAMS, GRADS)
    assert jax.tree.structure(new) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, new, optax.apply_updates(PARAMS, GRADS))


@pytest.mark.parametrize("param", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
@pytest.mark.parametrize("update", [jnp.bfloat16, jnp.float32])
def test_apply_updates_keeps_the_dtypes_of_the_params(param, update):
    new = optfn.apply_updates({"w": jnp.ones(2, param)}, {"w": jnp.full(2, 0.25, update)})["w"]
    assert new.dtype == param
    assert not new.weak_type
    np.testing.assert_array_equal(np.asarray(new, np.complex64), 1.25)


def test_apply_updates_adds_before_it_rounds():
    """In bfloat16 the update would be 2^-8, half the spacing above 1, and round to even, to 1."""
    update = jnp.asarray(2.0**-8 + 2.0**-17, jnp.float32)
    assert update.astype(jnp.bfloat16) == 2.0**-8
    new = optfn.apply_updates(jnp.ones((), jnp.bfloat16), update)
    assert new == jnp.bfloat16(1 + 2.0**-7)


def test_integer_params_stay_as_they_are():
    params = {"w": jnp.ones(2), "count": jnp.arange(2)}
    new = optfn.apply_updates(params, {"w": jnp.ones(2), "count": jnp.zeros(2, int)})
    assert new["count"].dtype == params["count"].dtype
    np.testing.assert_array_equal(new["count"], params["count"])


def test_step_is_update_and_apply_updates_in_float32():
    tx = optfn.adamw(0.1, weight_decay=0.1)
    state = tx.init(PARAMS)
    updates, expected_state = tx.update(GRADS, state, PARAMS)
    params, new_state = optfn.step(tx, PARAMS, GRADS, state)
    jax.tree.map(np.testing.assert_array_equal, params, optfn.apply_updates(PARAMS, updates))
    jax.tree.map(np.testing.assert_array_equal, new_state, expected_state)


def test_step_rounds_once_where_update_and_apply_updates_round_twice():
    """From 256 on bfloat16 has a spacing of 2, and at 1 one of 2^-7.

    The update 1.0039 rounds to 1, and then 257, a tie, to the even 256: the step is lost. Rounded
    once, 257.0039 is 258.
    """
    params = {"w": jnp.asarray([256.0], jnp.bfloat16)}
    grads = {"w": jnp.asarray([-1.0], jnp.bfloat16)}
    tx = optfn.sgd(1.0039)
    state = tx.init(params)

    updates, _ = tx.update(grads, state, params)
    assert updates["w"].dtype == jnp.bfloat16
    assert optfn.apply_updates(params, updates)["w"] == 256.0

    new, _ = optfn.step(tx, params, grads, state)
    assert new["w"].dtype == jnp.bfloat16
    assert new["w"] == 258.0


def test_step_takes_gradients_of_any_float_dtype():
    """A float32 gradient of bfloat16 params is not rounded on its way."""
    params = {"w": jnp.asarray([256.0], jnp.bfloat16)}
    grads = {"w": jnp.asarray([-1.0039], jnp.float32)}
    new, _ = optfn.step(optfn.sgd(1.0), params, grads, optfn.sgd(1.0).init(params))
    assert new["w"] == 258.0
    half = {"w": jnp.asarray([0.5], jnp.bfloat16)}
    wide = {"w": jnp.asarray([1.0], jnp.float32)}
    new, _ = optfn.step(optfn.sgd(1.0), wide, half, optfn.sgd(1.0).init(wide))
    assert new["w"].dtype == jnp.float32


def test_the_loop_of_steps_does_not_retrace_and_keeps_the_form_of_the_params():
    tx = optfn.adam(0.1)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    traces = []

    @jax.jit
    def step(tx, params, grads, state):
        traces.append(None)
        return optfn.step(tx, params, grads, state)

    state, start = tx.init(params), jax.eval_shape(lambda: params)
    for rate in (0.1, 0.01, 0.001):
        params, state = step(optfn.replace(tx, learning_rate=rate), params, GRADS, state)
        assert jax.eval_shape(lambda p=params: p) == start
    assert len(traces) == 1
