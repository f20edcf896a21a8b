"""The pair of init and update: what the state holds, what updates are, what stages may ask for."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from core.stages import every_kth, halve_until_lower, newton

import optfn
from optfn import schedules
from optfn.core.moments import Moments

PARAMS = {"layer": {"w": jnp.asarray([[1.0, -2.0], [0.5, 3.0]])}, "b": jnp.asarray([0.25, -1.0])}
GRADS = jax.tree.map(lambda p: 0.5 * p + 0.1, PARAMS)
LAST_STEP = 2**31 - 1


def form(tree):
    """Structure, paths, shapes and dtypes."""
    paths = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: tree))[0]
    return [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype) for path, leaf in paths]


# The layout of the state.


def test_the_slots_are_keyed_by_stage_name():
    state = optfn.scale_by_adam().init(PARAMS)
    assert type(state) is optfn.State
    assert type(state.slots) is dict
    assert list(state.slots) == ["scale_by_adam"]
    slots = state.slots["scale_by_adam"]
    assert type(slots) is Moments
    for tree in slots:
        assert jax.tree.structure(tree) == jax.tree.structure(PARAMS)
    assert slots.mu["layer"]["w"].shape == (2, 2)


SAME_CHECKPOINT = {
    "a single stage": optfn.scale_by_adam(),
    "a chain": optfn.chain(optfn.scale_by_adam()),
    "chains in chains": optfn.chain(optfn.chain(optfn.chain(optfn.scale_by_adam()))),
    "the optimizer": optfn.adam(0.1),
    "a schedule": optfn.adam(schedules.cosine(0.1, 10)),
    "a lambda": optfn.adam(lambda step: 0.1, b1=lambda step: 0.9),
    "decay": optfn.adamw(0.1),
    "masked decay": optfn.adamw(0.1, mask={"layer": True, "b": False}),
    "no decay": optfn.adamw(0.1, weight_decay=0),
    "clips": optfn.chain(
        optfn.clip_by_global_norm(1.0), optfn.clip(0.5), optfn.adamw(0.1), optfn.scale(2.0)
    ),
    "another switch": optfn.adam(0.1, nesterov=True),
    "a name for the chain's stage": optfn.chain(optfn.clip(1.0).named("x"), optfn.adam(0.1)),
    "a stateless mask": optfn.chain(optfn.adam(0.1), optfn.masked(optfn.scale(0.5), True)),
    "a stateless partition": optfn.chain(
        optfn.adam(0.1), optfn.partition({"a": optfn.scale(0.5), "b": optfn.clip(1.0)}, "a")
    ),
}


@pytest.mark.parametrize("name", SAME_CHECKPOINT)
def test_what_has_no_state_leaves_no_trace_in_the_checkpoint(name):
    expected = form(optfn.scale_by_adam().init(PARAMS))
    assert [path for path, _, _ in expected] == [
        ".count",
        ".slots['scale_by_adam'].mu['b']",
        ".slots['scale_by_adam'].mu['layer']['w']",
        ".slots['scale_by_adam'].nu['b']",
        ".slots['scale_by_adam'].nu['layer']['w']",
    ]
    assert form(SAME_CHECKPOINT[name].init(PARAMS)) == expected


WRAPPERS = {
    "a wrapper with an inner state": (every_kth, ".slots['every_kth'].slots"),
    "a partition": (
        lambda tx: optfn.partition({"all": tx}, "all"),
        ".slots['partition']['all']",
    ),
    "a freeze": (lambda tx: optfn.freeze(tx, False), ".slots['freeze']"),
    "a mask": (
        lambda tx: optfn.chain(
            optfn.masked(optfn.chain(tx, optfn.scale(1.0)), True),
            optfn.scale_by_learning_rate(1.0),
        ),
        ".slots['masked']",
    ),
    "a named chain": (lambda tx: optfn.chain(tx).named("x"), ".slots['x']"),
    "all of them": (
        lambda tx: optfn.partition({"all": every_kth(optfn.freeze(tx, False))}, "all"),
        ".slots['partition']['all']['every_kth'].slots['freeze']",
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_inside_every_wrapper_the_slots_are_keyed_by_stage_name_too(name):
    wrap, place = WRAPPERS[name]
    expected = form(wrap(optfn.scale_by_adam()).init(PARAMS))
    slots = [path for path, _, _ in expected if not path.endswith(".count")]
    bare = [path for path, _, _ in form(optfn.scale_by_adam().init(PARAMS).slots)]
    assert slots == [place + path for path in bare]
    for tx in SAME_CHECKPOINT.values():
        assert form(wrap(tx).init(PARAMS)) == expected


def test_a_renamed_stage_has_its_slots_under_the_new_name():
    tx = optfn.chain(optfn.scale_by_adam().named("first"), optfn.trace(0.9).named("second"))
    assert list(tx.init(PARAMS).slots) == ["first", "second"]


def test_a_stateless_optimizer_has_a_step_and_nothing_else():
    state = optfn.sgd(0.1).init(PARAMS)
    assert state.slots == {}
    assert len(jax.tree.leaves(state)) == 1


class Nothing(NamedTuple):
    nothing: None


class remembers_nothing(optfn.Leafwise):
    """Stateful by its type, with slots that have no leaf."""

    Slots = Nothing

    def init_leaf(self, param):
        return Nothing(None)

    def update_leaf(self, g, slots, param, t):
        return g, slots


def test_having_state_is_a_fact_of_the_type_and_not_of_a_leaf_count():
    assert list(remembers_nothing().init(PARAMS).slots) == ["remembers_nothing"]
    assert list(optfn.scale_by_adam().init({}).slots) == ["scale_by_adam"]
    masked = optfn.freeze(optfn.scale_by_adam(), True).init(PARAMS)
    assert list(masked.slots["freeze"]) == ["scale_by_adam"]


# The step.


def test_there_is_one_step_counter_and_it_counts_updates():
    tx = optfn.chain(
        optfn.clip(schedules.constant(1.0)),
        optfn.partition({"a": optfn.adamw(schedules.cosine(0.1, 9)), "b": optfn.sgd(0.1)}, "a"),
        optfn.scale_by_schedule(schedules.linear(1, 0, 9)),
    )
    state = tx.init(PARAMS)
    assert state.step.dtype == jnp.int32 and state.step.shape == () and not state.step.weak_type
    for n in range(3):
        assert state.step == n
        integers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
        assert len(integers) == 1
        _, state = tx.update(GRADS, state, PARAMS)
        assert state.step.dtype == jnp.int32 and not state.step.weak_type


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jitted"])
def test_the_step_stays_at_its_maximum(transform):
    """An overflow to -2**31 would start every schedule again."""
    tx = optfn.chain(optfn.scale_by_adam(), optfn.scale(schedules.linear(2.0, 1.0, 10)))
    update = transform(tx.update)
    state = tx.init(PARAMS)._replace(step=jnp.int32(LAST_STEP - 1))
    for _ in range(3):
        updates, state = update(GRADS, state, PARAMS)
        assert state.step == LAST_STEP
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert optfn.hyperparameters(tx, state)["step_size"] == 1.0


def test_step_zero_is_the_first_update():
    tx = optfn.scale_by_schedule(schedules.piecewise_constant([1.0, 2.0, 3.0], [1, 2]))
    state, seen = tx.init(GRADS), []
    for _ in range(3):
        updates, state = tx.update(GRADS, state)
        seen.append(float(updates["b"][0] / GRADS["b"][0]))
    np.testing.assert_allclose(seen, [1, 2, 3])


def test_a_state_that_came_back_as_numpy_goes_on():
    """As a restored checkpoint may; jax keeps int32 where NumPy would make int64 of it."""
    tx = optfn.adamw(schedules.cosine(0.1, 9))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    expected = tx.update(GRADS, state, PARAMS)
    for again in (jax.device_get(state), jax.device_get(state)._replace(step=1)):
        got = tx.update(GRADS, again, PARAMS)
        assert form(got) == form(expected)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


# The pair.


def test_it_unpacks_as_init_and_update():
    init, update = optfn.adam(0.1)
    state = init(PARAMS)
    updates, state = update(GRADS, state, PARAMS)
    assert state.step == 1
    np.testing.assert_allclose(updates["b"], -0.1 * jnp.sign(GRADS["b"]), rtol=1e-5)


def test_update_keeps_structure_shapes_and_dtypes_of_what_comes_in():
    """Of the gradients, not of the params: it may stand anywhere in an optax chain."""
    grads = {"layer": {"w": GRADS["layer"]["w"].astype(jnp.bfloat16)}, "b": GRADS["b"]}
    for tx in (optfn.adamw(0.1), optfn.chain(optfn.clip_by_global_norm(1.0), optfn.sgd(0.1))):
        updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
        assert form(updates) == form(grads)


# A wrapper that owns an inner state.


def test_schedules_in_a_wrapper_with_a_state_of_its_own_see_the_inner_step():
    rate = schedules.piecewise_constant([1.0, 10.0, 100.0], [1, 2])
    tx = optfn.chain(every_kth(optfn.sgd(rate), k=3), optfn.scale(schedules.linear(1.0, 2.0, 10)))
    state, outer, inner, moved = tx.init(GRADS), [], [], []
    update = jax.jit(tx.update)
    for _ in range(9):
        values = optfn.hyperparameters(tx, state)
        outer.append(float(values["step_size"]))
        inner.append(float(values["every_kth.scale_by_learning_rate.learning_rate"]))
        updates, state = update(GRADS, state)
        moved.append(float(-updates["b"][0] / GRADS["b"][0]))
    np.testing.assert_allclose(outer, 1 + np.arange(9) / 10, rtol=1e-6)
    assert inner == [1.0] * 3 + [10.0] * 3 + [100.0] * 3
    expected = np.zeros(9)
    expected[2::3] = np.asarray([1.0, 10.0, 100.0]) * np.asarray(outer)[2::3]
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
    assert state.step == 9
    assert state.slots["every_kth"].step == 3


def test_slots_that_are_a_state_need_no_word_about_it():
    class quietly(every_kth):
        inner = optfn.Transform.inner

    rate = schedules.linear(10.0, 0.0, 10)
    tx = quietly(optfn.sgd(rate), k=2)
    state = tx.init(GRADS)
    for _ in range(5):
        _, state = tx.update(GRADS, state)
    assert optfn.hyperparameters(tx, state)["learning_rate"] == 8.0


def test_what_a_wrapper_skips_does_not_touch_the_inner_slots():
    tx = every_kth(optfn.adam(0.1), k=2)
    update = jax.jit(tx.update)
    start = tx.init(PARAMS)
    _, after_skip = update(jax.tree.map(lambda g: g + jnp.nan, GRADS), start, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, after_skip.slots, start.slots)
    updates, state = update(GRADS, after_skip, PARAMS)
    expected, _ = optfn.adam(0.1).update(GRADS, optfn.adam(0.1).init(PARAMS), PARAMS)
    # Fused otherwise than op by op: a few roundings apart.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)
    assert state.slots["every_kth"].step == 1


def test_hyperparameters_reads_inner_states_at_any_depth():
    rate = schedules.linear(1.0, 0.0, 10)
    inner = every_kth(optfn.sgd(rate).named("core"), k=2)
    tx = optfn.chain(
        optfn.partition({"x": inner, "y": optfn.sgd(rate)}, {"layer": "x", "b": "y"}).named("p"),
        optfn.scale(1.0),
    )
    state = tx.init(PARAMS)
    for _ in range(5):
        _, state = tx.update(GRADS, state, PARAMS)
    values = optfn.hyperparameters(tx, state)
    np.testing.assert_allclose(values["p.y.scale_by_learning_rate.learning_rate"], 0.5)
    name = "p.x.every_kth.core.scale_by_learning_rate.learning_rate"
    np.testing.assert_allclose(values[name], 0.8)


# Extra arguments.


def test_a_rule_gets_its_leafs_entry_of_a_tree_and_a_scalar_whole():
    curvature = jax.tree.map(lambda p: jnp.square(p) + 1, PARAMS)
    tx = optfn.chain(optfn.clip(10.0), newton(), optfn.scale(-1.0))
    assert tx.declared_extra_args() == {"curvature": "tree", "damping": "scalar"}
    state = tx.init(PARAMS)
    for run in (tx.update, jax.jit(tx.update)):
        updates, _ = run(GRADS, state, PARAMS, curvature=curvature, damping=0.5)
        expected = jax.tree.map(lambda g, c: -g / (c + 0.5), GRADS, curvature)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)


def test_extra_args_reach_a_stage_in_any_wrapper():
    search = halve_until_lower()
    tx = every_kth(optfn.chain(optfn.chain(optfn.sgd(8.0)).named("x"), search), k=1)
    assert tx.declared_extra_args() == {"value_fn": "function"}

    def value_fn(params):
        return sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(params))

    grads = jax.grad(value_fn)(PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=value_fn)
    # The step of -16 p is halved until it gets lower: -2 p only mirrors the params, -p is taken.
    np.testing.assert_allclose(updates["b"], -PARAMS["b"], rtol=1e-6)


def test_a_wrapper_may_hand_on_all_the_extra_args_it_gets():
    """It gets those that it and its inner transforms declare, and not those of its neighbours."""
    tx = optfn.chain(every_kth(newton(), k=1), halve_until_lower())
    curvature = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(
        GRADS,
        tx.init(PARAMS),
        PARAMS,
        curvature=curvature,
        damping=1.0,
        value_fn=lambda params: -jnp.sum(params["b"]),
    )
    assert jax.tree.structure(updates) == jax.tree.structure(GRADS)


def test_extra_args_have_no_effect_on_who_did_not_declare_them():
    tx = optfn.chain(optfn.adam(0.1), newton())
    curvature = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, curvature=curvature, damping=0.0)
    expected, _ = optfn.adam(0.1).update(GRADS, optfn.adam(0.1).init(PARAMS), PARAMS)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)


def test_one_name_with_two_kinds_is_an_error():
    """A partition could not know whether to mask it."""

    class other_newton(newton):
        extra_args: ClassVar = {"curvature": "scalar", "damping": "scalar"}

    with pytest.raises((TypeError, ValueError), match=r"curvature"):
        optfn.chain(newton(), other_newton()).declared_extra_args()


def test_the_optax_protocol_with_extra_args_holds():
    """optax's own wrapper for transformations that may or may not take extra args."""
    tx = optax.with_extra_args_support(optfn.to_optax(newton()))
    curvature = jax.tree.map(jnp.ones_like, PARAMS)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, curvature=curvature, damping=1.0, x=3)
    np.testing.assert_allclose(updates["b"], GRADS["b"] / 2, rtol=1e-6)


# A transform of the whole tree.


class centralize(optfn.Transform):
    """Subtracts the mean over all entries, and remembers it."""

    share: float = 1.0

    def init_slots(self, params):
        return jnp.zeros(())

    def apply(self, updates, slots, ctx):
        leaves = jax.tree.leaves(updates)
        mean = sum(jnp.sum(x) for x in leaves) / sum(x.size for x in leaves)
        return jax.tree.map(lambda x: x - self.share * mean, updates), mean


def test_a_transform_of_the_whole_tree_gets_wide_updates_and_resolved_schedules():
    tx = optfn.chain(centralize(schedules.linear(1.0, 0.0, 2)), optfn.scale(2.0))
    grads = {"a": jnp.asarray([1.0, 2.0], jnp.bfloat16), "b": jnp.asarray(1.25, jnp.bfloat16)}
    state = tx.init(grads)
    assert list(state.slots) == ["centralize"]
    for share in (1.0, 0.5, 0.0):
        updates, state = tx.update(grads, state)
        # 4.25 / 3 is no bfloat16; taken in bfloat16 it would be off by 2^-9.
        np.testing.assert_allclose(state.slots["centralize"], 4.25 / 3, rtol=1e-6)
        assert updates["a"].dtype == jnp.bfloat16
        expected = jnp.bfloat16(2 * (2.0 - share * 4.25 / 3))
        assert updates["a"][1] == expected
