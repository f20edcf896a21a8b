"""optfn inside optax's wrappers, and optax inside optfn's.

The oracle is optax's own optimizer in the same place. For bfloat16 it is held to optfn's dtype
policy, compute and store in float32, from outside; for float32 that changes nothing.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn

STEPS = 8
RATE = 0.1
SHAPES = {"kernel": (3, 2), "bias": (2,)}


def arrays(seed, *lead, dtype):
    """A tree like the params, with leading axes."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(*lead, *shape)).astype(dtype) for name, shape in SHAPES.items()}


def in_float32(tx):
    """An optax transformation that computes and stores in float32, whatever comes in."""
    tx = optax.with_extra_args_support(tx)

    def wide(tree):
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates, state, params, **extra_args):
        new, state = tx.update(wide(updates), state, wide(params), **extra_args)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), new, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: tx.init(wide(params)), update)


@partial(jax.jit, static_argnums=0)
def run(tx, params, grads, extra_args):
    """The updates of all steps and the last state; the scan holds the state to a fixed point."""

    def step(carry, now):
        params, state = carry
        grads, extra_args = now
        updates, state = tx.update(grads, state, params, **extra_args)
        return (optax.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), (grads, extra_args))
    return updates, state


def assert_same_updates(ours, theirs, dtype):
    """Float32: numbers rounded in another order. Bfloat16: one unit in the last place."""
    bound = {"rtol": 2e-5, "atol": 1e-5 * RATE} if dtype == jnp.float32 else {"rtol": 2**-7}

    def check(x, y):
        assert x.dtype == y.dtype == dtype
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), **bound)

    jax.tree.map(check, ours, theirs)


# optfn inside optax.


class scale_by_value(optfn.Leafwise):
    """Multiplies by the loss: a stage that needs an extra argument."""

    extra_args = {"value": "scalar"}  # noqa: RUF012

    def update_leaf(self, g, slots, param, t, *, value):
        return value * g, slots


def optax_scale_by_value():
    def update(updates, state, params=None, *, value, **unused):
        return jax.tree.map(lambda g: value * g, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


OURS = optfn.adamw(RATE, weight_decay=0.1)
OURS_BY_VALUE = optfn.to_optax(optfn.chain(OURS, scale_by_value()))
THEIRS = optax.adamw(RATE, weight_decay=0.1)
THEIRS_BY_VALUE = optax.chain(THEIRS, optax_scale_by_value())

# Each with the number of updates that it lets through.
WRAPPERS = {
    "chain": (lambda tx: optax.chain(optax.clip(1.0), tx, optax.scale(0.5)), STEPS),
    "partition": (
        lambda tx: optax.partition(
            {"ours": tx, "rest": optax.sgd(RATE)}, {"kernel": "ours", "bias": "rest"}
        ),
        STEPS,
    ),
    "masked": (lambda tx: optax.masked(tx, {"kernel": True, "bias": False}), STEPS),
    "MultiSteps": (lambda tx: optax.MultiSteps(tx, every_k_schedule=3), STEPS // 3),
    "apply_if_finite": (lambda tx: optax.apply_if_finite(tx, max_consecutive_errors=1), STEPS - 1),
    "lookahead": (lambda tx: optax.lookahead(tx, sync_period=3, slow_step_size=0.5), STEPS),
}


def inputs(wrapper, dtype):
    params, grads = arrays(0, dtype=dtype), arrays(1, STEPS, dtype=dtype)
    if wrapper == "lookahead":
        params = optax.LookaheadParams.init_synced(params)
    if wrapper == "apply_if_finite":
        grads["kernel"][3, 0, 0] = np.nan
    return params, grads


def inner_state(state):
    """The one optfn state in the state of an optax wrapper."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optfn.State))
    (found,) = [leaf for leaf in leaves if isinstance(leaf, optfn.State)]
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_inside_an_optax_wrapper_equals_optax(wrapper, dtype):
    wrap, count = WRAPPERS[wrapper]
    params, grads = inputs(wrapper, dtype)

    updates, state = run(wrap(OURS), params, grads, {})
    expected, _ = run(wrap(in_float32(THEIRS)), params, grads, {})

    assert_same_updates(updates, expected, dtype)
    step, slots = inner_state(state)
    assert step == count
    assert all(slot.dtype == jnp.float32 for slot in jax.tree.leaves(slots))


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "lookahead"])
def test_extra_args_pass_through_an_optax_wrapper(wrapper):
    """In bfloat16, where the wrappers' conditionals are strict about dtypes."""
    wrap, _ = WRAPPERS[wrapper]
    params, grads = inputs(wrapper, jnp.bfloat16)
    extra_args = {"value": np.linspace(0.5, 2, STEPS, dtype=np.float32), "unused": np.ones(STEPS)}

    updates, _ = run(wrap(OURS_BY_VALUE), params, grads, extra_args)
    expected, _ = run(wrap(in_float32(THEIRS_BY_VALUE)), params, grads, extra_args)

    assert_same_updates(updates, expected, jnp.bfloat16)


DROPPING = {
    # It hands on no extra argument to any transformation.
    "lookahead": (WRAPPERS["lookahead"][0], OURS_BY_VALUE, {}),
}


@pytest.mark.parametrize("wrapper", DROPPING)
def test_where_optax_drops_an_extra_arg_the_error_names_it(wrapper):
    wrap, tx, extra_args = DROPPING[wrapper]
    with pytest.raises(TypeError, match="misses the extra argument 'value'"):
        run(wrap(tx), *inputs(wrapper, jnp.float32), extra_args)


# optax inside optfn.

STAGES = {
    "adam": optax.adam(RATE),
    "schedule": optax.sgd(optax.linear_schedule(RATE, 0, STEPS), momentum=0.9),
    "MultiSteps": optax.MultiSteps(optax.adam(RATE), 3).gradient_transformation(),
    # Its hyperparameters are part of its state, and in bfloat16 0.999 would become 1.
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(RATE, b2=0.999),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [("adam", jnp.float32)] + [(name, jnp.bfloat16) for name in STAGES]
)
def test_optax_as_a_stage_equals_optax(name, dtype):
    ours = optfn.chain(optfn.clip(1.0), optfn.from_optax(STAGES[name]), optfn.scale(0.5))
    theirs = in_float32(optax.chain(optax.clip(1.0), STAGES[name], optax.scale(0.5)))
    params, grads = arrays(0, dtype=dtype), arrays(1, STEPS, dtype=dtype)

    updates, _ = run(ours, params, grads, {})
    expected, _ = run(theirs, params, grads, {})

    assert_same_updates(updates, expected, dtype)


def test_a_declared_extra_arg_reaches_an_optax_stage():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    ours = optfn.chain(optfn.sgd(RATE), optfn.from_optax(plateau, extra_args=["value"]))
    theirs = optax.chain(optax.sgd(RATE), plateau)
    params, grads = arrays(0, dtype=jnp.float32), arrays(1, STEPS, dtype=jnp.float32)
    extra_args = {"value": np.ones(STEPS, np.float32)}

    updates, _ = run(ours, params, grads, extra_args)
    expected, _ = run(theirs, params, grads, extra_args)

    assert_same_updates(updates, expected, jnp.float32)
    without_plateau = -RATE * grads["bias"]
    assert abs(updates["bias"][-1]).max() < 0.5 * abs(without_plateau[-1]).max()


def test_an_optax_line_search_runs_inside_a_partition():
    """It sees its own leaf only: the gradient with a hole, the loss with the others held still."""
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=20, store_grad=True)
    extra_args = ["value", "grad", "value_fn"]
    ours = optfn.partition(
        {
            "kernel": optfn.chain(optfn.sgd(1.0), optfn.from_optax(search, extra_args)),
            "bias": optfn.sgd(0.0),
        },
        {"kernel": "kernel", "bias": "bias"},
    )
    theirs = optax.chain(optax.sgd(1.0), search)

    def loss(params):
        distance = jnp.square(params["kernel"] - params["bias"][None])
        return jnp.sum(distance * np.float32([[1, 2], [3, 4], [5, 6]]))

    def minimize(tx, params, loss):
        def step(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[1]

    params = arrays(0, dtype=jnp.float32)
    bias = params["bias"]
    values = minimize(ours, params, loss)
    expected = minimize(
        theirs, {"kernel": params["kernel"]}, lambda own: loss(own | {"bias": bias})
    )
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert (np.diff(values) < 0).all()
