"""The border to optax: what crosses it and what must be declared."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.stages import newton

import optfn

PARAMS = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([0.5, 3.0])}


def value_fn(params):
    return jnp.sum(jnp.square(params["a"])) + 10 * jnp.sum(jnp.square(params["b"] - params["a"]))


VALUE, GRADS = jax.value_and_grad(value_fn)(PARAMS)


# To optax.


def test_to_optax_is_optaxs_own_type_and_is_closed_over_its_numbers():
    closed = optfn.to_optax(optfn.adam(jnp.asarray(0.1)))
    assert isinstance(closed, optax.GradientTransformationExtraArgs)
    assert not [x for x in jax.tree.leaves(closed) if not callable(x)]
    updates, state = closed.update(GRADS, closed.init(PARAMS), PARAMS)
    tx = optfn.adam(0.1)
    expected, expected_state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-6)


def test_to_optax_passes_on_only_what_is_declared():
    tx = optfn.to_optax(newton())
    curvature = jax.tree.map(jnp.ones_like, PARAMS)
    wanted = {"curvature": curvature, "damping": 1.0}
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, **wanted, value=VALUE, whatever=None)
    np.testing.assert_allclose(updates["a"], GRADS["a"] / 2, rtol=1e-6)
    with pytest.raises(TypeError, match=r"misses the extra argument 'curvature'"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, damping=1.0)


# From optax.


def test_from_optax_has_no_leaves_and_keeps_its_state_under_its_name():
    transformation = optax.adam(0.1)
    stage = optfn.from_optax(transformation)
    assert not jax.tree.leaves(stage)
    assert jax.tree.structure(stage) == jax.tree.structure(optfn.from_optax(transformation))
    state = stage.init(PARAMS)
    assert state.slots.keys() == {"from_optax"}
    chex.assert_trees_all_equal(state.slots["from_optax"], transformation.init(PARAMS))


def test_two_of_them_need_names():
    one, two = optfn.from_optax(optax.trace(0.9)), optfn.from_optax(optax.trace(0.5))
    with pytest.raises(ValueError, match=r"2 stateful stages named 'from_optax'.*\.named\("):
        optfn.chain(one, two)
    tx = optfn.chain(one.named("first"), two.named("second"))
    assert tx.init(PARAMS).slots.keys() == {"first", "second"}


def test_there_and_back_is_the_same_optimizer():
    tx = optfn.adamw(0.1)
    again = optfn.from_optax(optfn.to_optax(tx))
    updates, _ = again.update(GRADS, again.init(PARAMS), PARAMS)
    expected, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_its_state_is_float32_also_for_low_precision_params(dtype):
    params, grads = (jax.tree.map(lambda x: x.astype(dtype), t) for t in (PARAMS, GRADS))
    stage = optfn.from_optax(optax.adam(0.1))
    state = stage.init(params)
    for _ in range(2):
        floats = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
        assert floats == {jnp.dtype(jnp.float32)}
        updates, state = stage.update(grads, state, params)
        assert updates["a"].dtype == dtype


@pytest.mark.parametrize(
    "declared",
    [
        "value",
        ["value"],
        {"value": "scalar"},
        ("value", "grad", "value_fn", "key"),
    ],
    ids=["name", "names", "kinds", "all that optax has"],
)
def test_extra_args_are_declared_by_name_or_with_kinds(declared):
    stage = optfn.from_optax(optax.polyak_sgd(1.0), declared)
    accepted = stage.declared_extra_args()
    assert accepted["value"] == "scalar"
    given = {"value": VALUE, "grad": GRADS, "value_fn": value_fn, "key": jax.random.key(0)}
    given = {name: given[name] for name in accepted}
    updates, _ = stage.update(GRADS, stage.init(PARAMS), PARAMS, **given)
    expected, _ = optax.polyak_sgd(1.0).update(
        GRADS, optax.polyak_sgd(1.0).init(PARAMS), PARAMS, value=VALUE
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_an_extra_argument_of_unknown_kind_needs_one():
    with pytest.raises(ValueError) as error:
        optfn.from_optax(optax.adam(0.1), ["temperature"])
    assert "the kind of 'temperature' is not known" in str(error.value)
    assert "{'temperature': 'scalar'}" in str(error.value)
    with pytest.raises(ValueError, match=r"temperature.*'number'"):
        optfn.from_optax(optax.adam(0.1), {"temperature": "number"})


def test_undeclared_extra_args_do_not_reach_it():
    stage = optfn.from_optax(optax.polyak_sgd(1.0))
    with pytest.raises(TypeError, match=r"got the extra argument 'value', which no stage declares"):
        stage.update(GRADS, stage.init(PARAMS), PARAMS, value=VALUE)
