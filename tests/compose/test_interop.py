"""The border to optax: what crosses it and what must be declared."""

import enum
import functools

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


@pytest.mark.parametrize("wrap", [lambda tx: tx, optfn.to_optax], ids=["itself", "to_optax"])
def test_extra_args_that_no_stage_declares_are_ignored(wrap):
    tx = wrap(newton())
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
    with pytest.raises(ValueError, match=r"2 stateful stages named 'trace'.*\.named\("):
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


def test_extra_args_are_found_where_its_update_names_them():
    search = optax.scale_by_zoom_linesearch(5)
    assert optfn.from_optax(search).declared_extra_args().keys() == {"value", "grad", "value_fn"}
    assert optfn.from_optax(search, ()).declared_extra_args() == {}


def test_an_extra_arg_with_a_default_is_not_needed():
    def update(updates, state, params=None, *, value=2.0, **extra_args):
        return jax.tree.map(lambda u: value * u, updates), state

    stage = optfn.from_optax(optax.GradientTransformationExtraArgs(lambda params: (), update))
    assert stage.declared_extra_args() == {}
    for given, factor in (({}, 2.0), ({"value": 3.0}, 3.0)):
        updates, _ = stage.update(GRADS, stage.init(PARAMS), PARAMS, **given)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda g, f=factor: f * g, GRADS))


def test_those_that_a_chain_needs_reach_it_and_are_missed_by_name():
    stage = optfn.from_optax(optax.polyak_sgd(1.0))
    stage.update(GRADS, stage.init(PARAMS), PARAMS, value=VALUE, whatever=1)
    with pytest.raises(TypeError, match="value"):
        stage.update(GRADS, stage.init(PARAMS), PARAMS, whatever=1)


# Optax's forms.


def steps_of(tx, params=PARAMS, **extra_args):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(value_fn)(params), state, params, **extra_args)
        return (optax.apply_updates(params, updates), state), updates

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=3)[1])(params)


class Group(enum.Enum):
    SLOW = 1
    FAST = 2


def first_is(value, other):
    return lambda params: {"a": value, "b": other}


MASK = {"a": True, "b": False}
ENDINGS = {
    "in a chain": (
        lambda lib: optfn.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), lib.scale(-0.1)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.1)),
    ),
    "alike and without state": (
        lambda lib: optfn.chain(optax.scale(-0.5), optax.scale(0.1)),
        lambda: optax.scale(-0.05),
    ),
    "in a wrapper": (
        lambda lib: optfn.accumulate(optax.adam(0.1), 2),
        lambda: optax.MultiSteps(optax.adam(0.1), 2),
    ),
    "int labels": (
        lambda lib: optfn.partition({0: optax.adam(0.1), 1: lib.sgd(0.1)}, {"a": 0, "b": 1}),
        lambda: optax.partition({0: optax.adam(0.1), 1: optax.sgd(0.1)}, {"a": 0, "b": 1}),
    ),
    "enum labels from the params": (
        lambda lib: optfn.partition(
            {Group.SLOW: lib.adam(0.1), Group.FAST: lib.sgd(0.1)},
            param_labels=first_is(Group.SLOW, Group.FAST),
        ),
        # In optax's state enums cannot be sorted.
        lambda: optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1)}, first_is("a", "b")),
    ),
    "a mask from the params": (
        lambda lib: optfn.adamw(0.1, weight_decay=0.5, mask=first_is(True, False)),
        lambda: optax.adamw(0.1, weight_decay=0.5, mask=first_is(True, False)),
    ),
    "a mask by tree.map": (
        lambda lib: optfn.adamw(
            0.1, weight_decay=0.5, mask=functools.partial(jax.tree.map, lambda x: x.ndim > 1)
        ),
        lambda: optax.adam(0.1),
    ),
    "inner by name": (
        lambda lib: optfn.chain(optfn.masked(inner=optax.trace(0.9), mask=MASK), lib.sgd(0.1)),
        lambda: optax.chain(optax.masked(inner=optax.trace(0.9), mask=MASK), optax.sgd(0.1)),
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), ENDINGS.values(), ids=ENDINGS)
def test_optaxs_forms_are_taken(ours, theirs):
    # Tolerance: the standard of equality with optax in float32.
    chex.assert_trees_all_close(steps_of(ours(optfn)), steps_of(theirs()), rtol=2e-5, atol=1e-6)


def test_what_optax_gives_without_state_has_no_entry():
    tx = optfn.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale(-0.1))
    assert tx.init(PARAMS).slots.keys() == {"trace"}


def test_optaxs_names_of_accumulations_are_taken():
    def fun(x):
        return jnp.sum(x), x

    kinds = optax.microbatching.AccumulationType
    x = jnp.arange(6.0)
    for mean in (kinds.MEAN, kinds.RUNNING_MEAN):
        total, rows = optfn.microbatch(fun, 0, 2, (mean, kinds.CONCAT))(x)
        assert total == 5.0
        chex.assert_trees_all_equal(rows, x)
    assert optfn.microbatch(fun, 0, 2, (kinds.SUM, kinds.CONCAT))(x)[0] == 15.0


MAPPED = {
    "a tree for a mask": optfn.adamw(0.1, mask=MASK),
    "a tree of labels": optfn.partition({"x": optfn.adam(0.1)}, {"a": "x", "b": "x"}),
    "flatten": optfn.flatten(optfn.adam(0.1)),
}


@pytest.mark.parametrize("tx", MAPPED.values(), ids=MAPPED)
def test_params_are_found_in_the_state_by_optax(tx):
    state = tx.init(PARAMS)
    mapped = optax.tree.map_params(
        tx, lambda x: x + 1, state, transform_non_params=lambda x: x + 10
    )
    assert mapped.step == 10
    expected = jax.tree.map(lambda x: x + 1, state.slots)
    chex.assert_trees_all_equal(mapped.slots, expected)
