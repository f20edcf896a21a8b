"""Routing: `partition`, `masked` and `freeze`."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from core.stages import every_kth, halve_until_lower, newton

import optfn
from optfn import schedules

PARAMS = {
    "layer": {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.asarray([0.25, -1.0])},
    "head": [jnp.asarray([2.0, 0.1]), None],
}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)
LABELS = {"layer": "x", "head": ["y", None]}
FAST, SLOW = optfn.adam(schedules.linear(0.1, 0.0, 9)), optfn.sgd(0.01, 0.9)


def run(tx, params=PARAMS, grads=GRADS, **extra_args):
    state = tx.init(params)
    update = jax.jit(lambda *args: tx.update(*args, **extra_args))
    for _ in range(3):
        updates, state = update(grads, state, params)
    return updates, state


def layer_only(tree):
    return {"layer": tree["layer"]}


def head_only(tree):
    return {"head": tree["head"]}


# Partitions.


def test_one_array_of_another_group_is_not_missing_params():
    params = jnp.asarray([1.0, -2.0])
    groups = {"x": optfn.monitor(optfn.adamw(0.1)), "y": optfn.adamw(0.1)}
    updates, _ = run(optfn.partition(groups, "y"), params, params)
    expected, _ = run(groups["y"], params, params)
    np.testing.assert_array_equal(updates, expected)


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        {"layer": {"w": "x", "b": "x"}, "head": "y"},
        lambda path, leaf: "x" if path.startswith("layer/") else "y",
    ],
    ids=["prefix", "another prefix", "function"],
)
def test_each_group_is_optimized_as_if_it_were_alone(labels):
    updates, state = run(optfn.partition({"x": FAST, "y": SLOW}, labels))
    layer, layer_state = run(FAST, layer_only(PARAMS), layer_only(GRADS))
    head, head_state = run(SLOW, head_only(PARAMS), head_only(GRADS))
    chex.assert_trees_all_close(updates, layer | head, rtol=1e-6)

    slots = state.slots["partition"]
    assert slots.keys() == {"x", "y"}
    mu = slots["x"]["scale_by_adam"].mu
    chex.assert_trees_all_close(layer_only(mu), layer_state.slots["scale_by_adam"].mu, rtol=1e-6)
    chex.assert_trees_all_close(
        head_only(slots["y"]["trace"].trace), head_state.slots["trace"].trace, rtol=1e-6
    )
    assert state.step == 3


def test_a_group_holds_no_state_for_the_leaves_of_others():
    tx = optfn.partition({"x": FAST, "y": SLOW}, LABELS)
    slots = jax.eval_shape(tx.init, PARAMS).slots["partition"]
    mu = slots["x"]["scale_by_adam"].mu
    assert mu["head"] == [None, None]
    assert mu["layer"]["w"].shape == (2, 2)
    # Two moments of two leaves, one trace of one.
    assert len(jax.tree.leaves(slots)) == 2 * 2 + 1


def test_one_label_for_all_and_labels_that_no_leaf_has():
    unused = optfn.partition({"x": FAST, "y": SLOW, "z": optfn.sgd(0.1)}, "x")
    updates, state = run(unused)
    expected, _ = run(FAST)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    assert state.slots["partition"].keys() == {"x", "y"}
    assert not jax.tree.leaves(state.slots["partition"]["y"])


def test_a_group_sees_its_own_leaves_alone():
    """A global norm is that of the group."""
    clip = optfn.clip_by_global_norm(1.0)
    updates, _ = run(optfn.partition({"x": clip, "y": optfn.scale(1.0)}, LABELS), grads=PARAMS)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(PARAMS["layer"])))
    np.testing.assert_allclose(updates["layer"]["b"], PARAMS["layer"]["b"] / norm, rtol=1e-6)
    np.testing.assert_array_equal(updates["head"][0], PARAMS["head"][0])


def test_a_function_sees_the_params_and_not_the_wide_gradients():
    seen = set()

    def label(path, leaf):
        seen.add(leaf.dtype.name)
        return "x"

    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    run(optfn.partition({"x": optfn.sgd(0.1)}, label), params=params)
    assert seen == {"bfloat16"}


def test_partitions_nest():
    inner = optfn.partition({"w": optfn.sgd(2.0), "b": FAST}, lambda path, leaf: path[-1])
    labels = {"layer": "inner", "head": "outer"}
    updates, state = run(optfn.partition({"inner": inner, "outer": optfn.sgd(3.0)}, labels))
    np.testing.assert_allclose(updates["layer"]["w"], -2 * GRADS["layer"]["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["head"][0], -3 * GRADS["head"][0], rtol=1e-6)
    alone, _ = run(FAST, {"b": PARAMS["layer"]["b"]}, {"b": GRADS["layer"]["b"]})
    np.testing.assert_allclose(updates["layer"]["b"], alone["b"], rtol=1e-6)
    assert state.slots["partition"]["inner"]["partition"].keys() == {"b"}


def test_a_partition_in_a_chain_works_on_the_updates_before_it():
    tx = optfn.chain(optfn.scale(2.0), optfn.partition({"x": FAST, "y": SLOW}, LABELS))
    updates, _ = run(tx, grads=jax.tree.map(lambda g: g / 2, GRADS))
    chex.assert_trees_all_close(
        updates, run(optfn.partition({"x": FAST, "y": SLOW}, LABELS))[0], rtol=1e-6
    )


def test_the_numbers_of_a_group_change_without_a_retrace():
    traces = []

    @jax.jit
    def update(tx, state):
        traces.append(None)
        return tx.update(GRADS, state, PARAMS)[0]

    tx = optfn.partition({"x": optfn.sgd(1.0), "y": optfn.sgd(1.0)}, LABELS)
    state = tx.init(PARAMS)
    for rate in (1.0, 2.0):
        tx = optfn.replace(tx, **{"x.scale_by_learning_rate.learning_rate": rate})
        updates = update(tx, state)
        np.testing.assert_allclose(updates["layer"]["b"], -rate * GRADS["layer"]["b"], rtol=1e-6)
        np.testing.assert_allclose(updates["head"][0], -GRADS["head"][0], rtol=1e-6)
    assert len(traces) == 1


# Extra arguments.


def test_a_tree_is_masked_for_the_group_that_declares_it():
    curvature = jax.tree.map(lambda p: jnp.square(p) + 1, PARAMS)
    tx = optfn.partition({"x": newton(), "y": optfn.sgd(1.0)}, LABELS)
    assert tx.declared_extra_args() == {"curvature": "tree", "damping": "scalar"}
    updates, _ = run(tx, curvature=curvature, damping=0.5)
    expected = jax.tree.map(lambda g, c: g / (c + 0.5), GRADS["layer"], curvature["layer"])
    chex.assert_trees_all_close(updates["layer"], expected, rtol=1e-6)
    np.testing.assert_allclose(updates["head"][0], -GRADS["head"][0], rtol=1e-6)


def value_fn(params):
    """All leaves matter: 'head' sets how far 'layer' is from its minimum."""
    return (
        jnp.sum(jnp.square(params["layer"]["w"] - params["head"][0][0]))
        + jnp.sum(jnp.square(params["layer"]["b"]))
        + jnp.sum(jnp.square(params["head"][0]))
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optfn.partition({"x": tx, "y": optfn.sgd(0.1)}, LABELS),
        lambda tx: optfn.freeze(tx, {"layer": False, "head": True}),
        lambda tx: optfn.partition({"x": optfn.freeze(tx, False), "y": optfn.sgd(0.1)}, LABELS),
    ],
    ids=["partition", "freeze", "nested"],
)
def test_a_function_of_the_params_is_called_with_the_groups_leaves_in_their_places(wrap):
    grads = jax.grad(value_fn)(PARAMS)
    updates, _ = run(
        wrap(optfn.chain(optfn.sgd(2.0), halve_until_lower())), grads=grads, value_fn=value_fn
    )

    def lower(rate):
        moved = jax.tree.map(lambda p, g: p - rate * g, PARAMS["layer"], grads["layer"])
        return value_fn(PARAMS | {"layer": moved}) < value_fn(PARAMS)

    rate = next(rate for rate in (2.0, 1.0, 0.5, 0.25, 0.125) if lower(rate))
    assert rate == 0.5
    expected = jax.tree.map(lambda g: -rate * g, grads["layer"])
    chex.assert_trees_all_close(updates["layer"], expected, rtol=1e-6)


# Freezing.


def test_freeze_gives_zeros_and_keeps_no_state_for_what_is_frozen():
    tx = optfn.freeze(optfn.adamw(0.1), {"layer": {"w": True, "b": False}, "head": True})
    updates, state = run(tx)
    assert not updates["layer"]["w"].any()
    assert not updates["head"][0].any()
    b = {"b": PARAMS["layer"]["b"]}, {"b": GRADS["layer"]["b"]}
    np.testing.assert_allclose(updates["layer"]["b"], run(optfn.adamw(0.1), *b)[0]["b"], rtol=1e-6)
    assert len(jax.tree.leaves(state.slots)) == 2


def test_frozen_leaves_do_not_move_even_if_their_gradient_is_not_finite():
    grads = GRADS | {"head": [jnp.asarray([jnp.nan, jnp.inf]), None]}
    updates, _ = run(optfn.freeze(optfn.sgd(0.1), {"layer": False, "head": True}), grads=grads)
    assert not updates["head"][0].any()


MIXED = {"w": jnp.asarray([1.0, 2.0]), "count": jnp.arange(2), "flag": jnp.asarray([True, False])}


def is_no_float(path, leaf):
    return not jnp.issubdtype(leaf.dtype, jnp.inexact)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_frozen_leaves_may_be_integers_and_bools(transform):
    grads = {"w": jnp.ones(2), "count": jnp.zeros(2, int), "flag": jnp.zeros(2, bool)}
    tx = optfn.freeze(optfn.adam(0.1), is_no_float)
    state = transform(tx.init)(MIXED)
    params, state = transform(partial(optfn.step, tx))(MIXED, grads, state)
    np.testing.assert_allclose(params["w"], [0.9, 1.9], rtol=1e-6)
    for name in ("count", "flag"):
        np.testing.assert_array_equal(params[name], MIXED[name])
        assert params[name].dtype == MIXED[name].dtype


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_frozen_integers_may_have_the_gradients_that_jax_gives_them(transform):
    """`jax.grad(allow_int=True)` gives the dtype float0, with which nothing can be computed."""
    tx = optfn.freeze(optfn.adam(0.1), is_no_float)

    def step(params, state):
        grads = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(params)
        return optfn.step(tx, params, grads, state)

    params, _ = transform(step)(MIXED, tx.init(MIXED))
    np.testing.assert_allclose(params["w"], [0.9, 1.9], rtol=1e-6)
    np.testing.assert_array_equal(params["count"], MIXED["count"])


# Masks.


@pytest.mark.parametrize(
    "mask",
    [
        {"layer": {"w": True, "b": False}, "head": False},
        {"layer": {"w": np.bool_(True), "b": jnp.asarray(False)}, "head": [False, None]},
        lambda path, leaf: path == "layer/w",
        lambda path, leaf: np.ndim(leaf) > 1,
    ],
    ids=["prefix", "array scalars", "by path", "by leaf"],
)
def test_masked_hands_the_others_on_unchanged(mask):
    tx = optfn.chain(optfn.masked(optfn.trace(0.5), mask), optfn.scale(-1.0))
    updates, state = run(tx)
    np.testing.assert_allclose(updates["layer"]["w"], -1.75 * GRADS["layer"]["w"], rtol=1e-6)
    np.testing.assert_array_equal(updates["layer"]["b"], -GRADS["layer"]["b"])
    np.testing.assert_array_equal(updates["head"][0], -GRADS["head"][0])
    assert len(jax.tree.leaves(state.slots)) == 1


MASKED = optfn.masked(optfn.adam(0.1), {"layer": True, "head": False})


@pytest.mark.parametrize(
    "tx",
    [
        MASKED,
        optfn.chain(MASKED),
        optfn.chain(MASKED, MASKED.named("second")),
        optfn.chain(MASKED).named("x"),
        optfn.chain(optfn.clip(1.0), MASKED),
        optfn.chain(MASKED, optfn.scale(1.0)),
        every_kth(MASKED),
        optfn.masked(MASKED, True),
        optfn.freeze(MASKED, False),
        optfn.partition({"x": MASKED, "y": SLOW}, "x"),
        optfn.partition({"x": optfn.freeze(MASKED, False), "y": SLOW}, "x"),
    ],
    ids=[
        "alone",
        "chain",
        "two",
        "named",
        "after a clip",
        "before a scale",
        "custom wrapper",
        "masked",
        "freeze",
        "partition",
        "nested",
    ],
)
def test_masked_as_an_optimizer_would_climb_and_is_refused(tx):
    """Raw gradients would be added to the params of the unselected leaves."""
    with pytest.raises(ValueError, match=r"masked\(...\) alone is no optimizer.*freeze"):
        tx.init(PARAMS)


def test_masked_is_refused_at_the_update_too():
    """A state may come from elsewhere."""
    state = optfn.adam(0.1).init(PARAMS)
    with pytest.raises(ValueError, match=r"masked\(...\) alone is no optimizer"):
        MASKED.update(GRADS, state, PARAMS)
    with pytest.raises(ValueError, match=r"masked\(...\) alone is no optimizer"):
        optfn.step(MASKED, PARAMS, GRADS, state)


def test_masked_is_fine_beside_other_stages_and_in_their_groups():
    stage = optfn.masked(optfn.trace(0.5), {"layer": True, "head": False})
    for tx in (
        optfn.chain(stage, optfn.sgd(0.1)),
        optfn.chain(optfn.sgd(0.1), stage),
        optfn.chain(stage, optfn.scale(-0.1)),
        optfn.chain(optfn.partition({"x": stage}, "x"), optfn.sgd(0.1)),
        optfn.partition({"x": optfn.chain(stage, optfn.sgd(0.1))}, "x"),
        optfn.freeze(optfn.chain(stage, optfn.sgd(0.1)), False),
    ):
        updates, _ = run(tx)
        np.testing.assert_allclose(updates["head"][0], -0.1 * GRADS["head"][0], rtol=1e-6)
