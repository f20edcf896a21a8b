"""Transforms that run at some steps only."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.stages import halve_until_lower

import optfn
from optfn import schedules

PARAMS = {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)
STEPS = 7


def every_third(step):
    return step % 3 == 1


def small(step, *, value, **others):
    return value < 2


def run(tx, values=None):
    """The updates of each step, stacked, and the last state."""

    def step(state, i):
        own = {} if values is None else {"value": jnp.asarray(values)[i]}
        grads = jax.tree.map(lambda g: g * (1 + i), GRADS)
        updates, state = tx.update(grads, state, PARAMS, **own)
        return state, updates

    state, updates = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(STEPS)))(tx.init(PARAMS))
    return updates, state


@pytest.mark.parametrize("name", ["conditionally_transform", "conditionally_mask"])
def test_updates_are_optax_s(name):
    here = getattr(optfn, name)(optfn.trace(0.9), every_third)
    there = getattr(optax, name)(optax.trace(0.9), every_third)
    (ours, state), (theirs, _) = run(here), run(there)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, theirs)
    assert (int(state.step), int(state.slots[name].step)) == (STEPS, 2)


def test_schedules_inside_count_the_steps_that_ran():
    tx = optfn.conditionally_mask(optfn.sgd(schedules.linear(1.0, 0.0, 10)), every_third)
    updates, state = run(tx)
    for i, rate in ((1, 1.0), (4, 0.9)):
        np.testing.assert_allclose(updates["b"][i], -rate * (1 + i) * GRADS["b"], rtol=1e-6)
    assert not updates["b"][np.asarray([0, 2, 3, 5, 6])].any()
    assert float(optfn.hyperparameters(tx, state)["learning_rate"]) == np.float32(0.8)


def test_a_stage_that_does_not_run_costs_nothing():
    tx = optfn.conditionally_mask(optfn.adam(0.1), every_third)
    program = jax.make_jaxpr(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    made = {
        eqn.primitive.name
        for eqn in program.eqns
        if any(jnp.issubdtype(x.aval.dtype, jnp.floating) for x in eqn.outvars)
    }
    assert made == {"cond"}


@pytest.mark.parametrize("names", [("value",), True])
def test_the_function_gets_extra_arguments(names):
    """Those that are named, or all that the transform declares."""
    values = np.float32([1, 3, 1, 2, 5, 0.5, 1])
    inner = optfn.polyak_sgd(0.1) if names is True else optfn.sgd(0.1)
    here = optfn.conditionally_mask(inner, small, names)
    updates, state = run(here, values)
    np.testing.assert_array_equal(updates["b"].any(-1), values < 2)
    assert int(state.slots["conditionally_mask"].step) == 4


def test_optax_s_way_of_forwarding_them():
    values = np.float32([1, 3, 1, 2, 5, 0.5, 1])
    ours, _ = run(optfn.conditionally_mask(optfn.polyak_sgd(0.1), small, True), values)
    theirs, _ = run(optax.conditionally_mask(optax.polyak_sgd(0.1), small, True), values)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, theirs)


def test_functions_among_the_extra_arguments_pass_through():
    tx = optfn.conditionally_mask(optfn.chain(optfn.sgd(8.0), halve_until_lower()), every_third)

    def value_fn(params):
        return sum(jnp.sum(p**2) for p in jax.tree.leaves(params))

    @jax.jit
    def update(state):
        return tx.update(GRADS, state, PARAMS, value_fn=value_fn)

    updates, state = update(tx.init(PARAMS))
    assert not updates["w"].any()
    updates, state = update(state)
    assert value_fn(optfn.apply_updates(PARAMS, updates)) < value_fn(PARAMS)


def test_integers_inside_may_be_frozen():
    params = {"w": jnp.ones(2), "table": jnp.arange(3)}
    frozen = optfn.freeze(optfn.adam(0.1), {"w": False, "table": True})
    tx = optfn.conditionally_mask(frozen, every_third)
    state = tx.init(params)
    grads = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(params)
    for moves in (False, True):
        after, state = jax.jit(lambda s: optfn.step(tx, params, grads, s))(state)
        np.testing.assert_array_equal(after["table"], params["table"])
        assert (after["w"] != 1).all() == moves


def test_lanes_run_each_at_their_steps():
    tx = optfn.conditionally_mask(optfn.sgd(0.1, 0.9), small, ("value",))
    values = jnp.asarray([1.0, 3.0])
    states = jax.vmap(lambda _: tx.init(PARAMS))(values)
    update = jax.vmap(lambda s, value: tx.update(GRADS, s, PARAMS, value=value))
    updates, states = update(states, values)
    np.testing.assert_array_equal(states.slots["conditionally_mask"].step, [1, 0])
    np.testing.assert_array_equal(updates["b"].any(-1), [True, False])


def large(step, loss, *, least=1.0, **others):
    return loss > least


@pytest.mark.parametrize("name", ["conditionally_transform", "conditionally_mask"])
def test_the_function_gets_the_arguments_that_it_names(name):
    here, there = (
        getattr(library, name)(library.trace(0.9), large, forward_extra_args=True)
        for library in (optfn, optax)
    )
    assert here.declared_extra_args() == {"loss": "scalar"}

    def updates(tx):
        update, state = jax.jit(tx.update), tx.init(PARAMS)
        for loss in (2.0, 0.5, 3.0):
            found, state = update(GRADS, state, PARAMS, loss=loss, whatever=1.0)
            yield found

    for ours, theirs in zip(updates(here), updates(there), strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, theirs)
    with pytest.raises(TypeError, match="misses the extra argument 'loss'"):
        here.update(GRADS, here.init(PARAMS), PARAMS)


def test_an_optimizer_that_hands_on_raw_gradients_is_refused():
    """In optax 0.2.8 they become updates, uphill."""
    there = optax.conditionally_transform(optax.sgd(0.1), every_third)
    updates, _ = there.update(GRADS, there.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["w"], GRADS["w"])
    here = optfn.conditionally_transform(optfn.sgd(0.1), every_third)
    for tx in (here, optfn.chain(optfn.clip(1.0), here)):
        with pytest.raises(ValueError, match=r"raw gradients would become.*conditionally_mask"):
            tx.init(PARAMS)
    clipped = optfn.conditionally_transform(optfn.clip(0.5), every_third)
    updates, _ = run(optfn.chain(clipped, optfn.sgd(1.0)))
    np.testing.assert_allclose(updates["w"][3], -4 * GRADS["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["w"][4], -jnp.clip(5 * GRADS["w"], -0.5, 0.5), rtol=1e-6)


def test_a_stage_inside_need_not_be_an_optimizer():
    """Of a `masked` one the other leaves go on unchanged."""
    part = optfn.masked(optfn.trace(0.9), {"w": True, "b": False})
    tx = optfn.chain(optfn.conditionally_transform(part, every_third), optfn.sgd(1.0))
    updates, _ = run(tx)
    np.testing.assert_allclose(updates["w"][4], -(0.9 * 2 + 5) * GRADS["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"][4], -5 * GRADS["b"], rtol=1e-6)
    optfn.conditionally_transform(part, every_third).init(PARAMS)  # a direction, as a stage alone
    whole = optfn.masked(optfn.sgd(0.1), {"w": True, "b": False})
    with pytest.raises(ValueError, match=r"masked\(...\) alone is no optimizer"):
        optfn.conditionally_transform(whole, every_third).init(PARAMS)


BAD = {
    "no function": (
        lambda: optfn.conditionally_mask(optfn.sgd(0.1), 3),
        TypeError,
        r"conditionally_mask\(should_transform_fn=...\) must be a function of the step, found 3",
    ),
    "a number": (
        lambda: run(optfn.conditionally_mask(optfn.sgd(0.1), lambda step: step % 3)),
        TypeError,
        r"conditionally_mask\(should_transform_fn=...\) must give one bool, found int32\[\]",
    ),
    "many": (
        lambda: run(optfn.conditionally_mask(optfn.sgd(0.1), lambda s: jnp.ones(2, bool))),
        TypeError,
        r"must give one bool, found bool\[2\]",
    ),
    "a name": (
        lambda: optfn.conditionally_mask(optfn.sgd(0.1), small, "value"),
        TypeError,
        r"conditionally_mask\(forward_extra_args=...\) must be a bool or a tuple of names, found '",
    ),
    "an unknown name": (
        lambda: optfn.conditionally_mask(optfn.sgd(0.1), small, ("vaule",)),
        ValueError,
        r"conditionally_mask\(forward_extra_args=...\): the kind of 'vaule' is not known",
    ),
    "a missing argument": (
        lambda: run(optfn.conditionally_mask(optfn.sgd(0.1), small, ("value",))),
        TypeError,
        "misses the extra argument 'value'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, sentence = BAD[name]
    with pytest.raises(error, match=sentence):
        call()
