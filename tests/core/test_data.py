"""Optimizers and schedules as data: fields, leaves, identity, copies and the repr as a recipe."""

import copy
import dataclasses
import functools
import pickle
from typing import Any, NamedTuple

import cases
import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import schedules

PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}

SCHEDULES = {
    "one line": schedules.linear(1.0, 0.5, 10),
    "static": schedules.wsd(1, 2, 3, 8, tail="sqrt"),
    "nested": schedules.per_epoch(
        schedules.join([schedules.constant(1), schedules.cosine(1, 10)], [5]), 7, first_epoch=1
    ),
    "numbers": schedules.piecewise_constant([1, 0.5, 0.25], [3, 6]),
    "arrays": schedules.piecewise_linear(jnp.asarray([1.0, 0.1, 0.0]), np.asarray([3, 6])),
}


# Numbers are leaves.


@pytest.mark.parametrize(
    "value", [2, 2.0, np.int64(2), np.float32(2), np.float16(2)], ids=lambda v: type(v).__name__
)
def test_scalars_become_python_floats(value):
    """Counts too: an int leaf would break `jax.grad`."""
    (leaf,) = jax.tree.leaves(optfn.scale(value))
    assert type(leaf) is float
    assert leaf == 2.0
    (leaf, *_) = jax.tree.leaves(schedules.piecewise_constant([value, 1], [10]))
    assert type(leaf) is float


def test_counts_are_floats_that_can_be_differentiated():
    schedule = schedules.cosine(1.0, total_steps=100)
    assert [type(leaf) for leaf in jax.tree.leaves(schedule)] == [float] * 4
    by_steps = jax.grad(lambda s: s(50))(schedule).total_steps
    # d/dT of (1 + cos(pi t / T)) / 2 at t = T / 2.
    np.testing.assert_allclose(by_steps, np.pi / 2 * 50 / 100**2, rtol=1e-5)


@pytest.mark.parametrize(
    "array",
    [jnp.asarray(0.5), jnp.float16(0.5), jnp.arange(3), np.asarray(0.5), np.ones(3, np.float32)],
    ids=["weak", "float16", "int", "numpy", "numpy batch"],
)
def test_arrays_stay_as_they_are(array):
    assert optfn.scale(array).step_size is array


def test_tracers_stay_as_they_are():
    assert jax.jit(lambda rate: optfn.scale(rate).step_size + 1)(0.5) == 1.5


# Callables.


def halve(step):
    return 0.5**step


@pytest.mark.parametrize(
    ("function", "at_two"),
    [
        (halve, 0.25),
        (lambda step: step * 3.0, 6.0),
        (functools.partial(jnp.power, 3.0), 9.0),
        (optax.linear_schedule(1.0, 0.0, 4), 0.5),
        (optax.warmup_cosine_decay_schedule(0.0, 1.0, 4, 8), 0.5),
    ],
    ids=["function", "lambda", "partial", "optax linear", "optax warmup"],
)
def test_a_callable_becomes_a_schedule(function, at_two):
    tx = optfn.scale(function)
    assert isinstance(tx.step_size, optfn.Schedule)
    np.testing.assert_allclose(tx.step_size(2), at_two, rtol=1e-6)
    state = tx.init(PARAMS)._replace(step=jnp.int32(2))
    np.testing.assert_allclose(tx.update(PARAMS, state)[0]["b"], at_two, rtol=1e-6)
    assert not jax.tree.leaves(tx)


def test_a_function_keeps_the_treedef_and_a_fresh_closure_is_a_new_one():
    first, again = optfn.scale(halve), optfn.scale(halve)
    assert jax.tree.structure(first) == jax.tree.structure(again)
    closures = [optfn.scale(lambda step, k=k: k * step) for k in (1, 2)]
    assert len({jax.tree.structure(tx) for tx in closures}) == 2


class Slope(eqx.Module):
    slope: jax.Array

    def __call__(self, step):
        return self.slope * step


@pytest.mark.parametrize(
    "make",
    [Slope, lambda slope: jax.tree_util.Partial(jnp.multiply, slope)],
    ids=["Equinox module", "Partial"],
)
def test_the_arrays_of_a_callable_pytree_are_leaves(make):
    tx = optfn.scale(make(jnp.asarray(3.0)))
    assert jax.tree.leaves(tx) == [3.0]
    steeper = jax.tree.map(lambda x: 2 * x, tx)
    assert steeper.step_size(2) == 12.0
    values = optfn.hyperparameters(tx, tx.init(PARAMS)._replace(step=jnp.int32(2)))
    assert values["step_size"] == 6.0


def test_an_optfn_schedule_is_kept():
    schedule = schedules.linear(1.0, 0.0, 4)
    assert optfn.scale(schedule).step_size is schedule


# Static and per-leaf fields.


def test_switches_are_part_of_the_treedef_and_numbers_are_not():
    plain, other = optfn.adam(0.1), optfn.adam(0.2, b1=0.5)
    assert jax.tree.structure(plain) == jax.tree.structure(other)
    assert jax.tree.structure(plain) != jax.tree.structure(optfn.adam(0.1, nesterov=True))
    assert optfn.adam(0.1, nesterov=np.bool_(True)).stages[0].nesterov is True


def test_state_structure_depends_on_no_number():
    """Neither on its being zero nor on its being a schedule or an array."""
    structures = {
        jax.tree.structure(optfn.adamw(rate, weight_decay=decay, b1=b1).init(PARAMS))
        for rate, decay, b1 in [
            (0.1, 0.1, 0.9),
            (0.0, 0, 0.0),
            (schedules.constant(0.1), halve, jnp.asarray(0.9)),
        ]
    }
    assert len(structures) == 1


def is_kernel(path, leaf):
    return path == "w"


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ({"w": True, "b": False}, {"b": False, "w": True}, True),
        ({"w": True, "b": False}, {"w": np.bool_(True), "b": jnp.asarray(False)}, True),
        ({"w": True, "b": False}, {"w": True, "b": True}, False),
        ([True, False], (True, False), False),
        (is_kernel, is_kernel, True),
        (is_kernel, lambda path, leaf: path == "w", False),
        (None, True, False),
    ],
    ids=["order", "scalars", "value", "container", "function", "lambda", "None"],
)
def test_per_leaf_values_compare_by_content(one, two, same):
    one, two = (jax.tree.structure(optfn.add_decayed_weights(0.1, mask)) for mask in (one, two))
    assert (one == two) is same
    if same:
        assert hash(one) == hash(two)


def test_changing_the_users_mask_afterwards_changes_nothing():
    mask = {"w": True, "b": [False]}
    tx = optfn.add_decayed_weights(0.1, mask)
    before = jax.tree.structure(tx)
    mask["b"].append(True)
    mask["w"] = False
    assert (
        jax.tree.structure(tx)
        == before
        == jax.tree.structure(optfn.add_decayed_weights(0.1, {"w": True, "b": [False]}))
    )


class Layer(eqx.Module):
    """A network that can be called, as Equinox's are."""

    kernel: Any
    bias: Any

    def __call__(self, *args):
        raise AssertionError("a module of labels was called")


class CallableTuple(NamedTuple):
    kernel: Any
    bias: Any

    def __call__(self, *args):
        raise AssertionError("a tuple of labels was called")


@pytest.mark.parametrize("kind", [Layer, CallableTuple])
def test_a_callable_module_of_values_is_a_tree_and_no_function(kind):
    params = kind(jnp.ones((2, 2)), jnp.ones(2))
    zeros = jax.tree.map(jnp.zeros_like, params)

    def update(tx):
        return tx.update(zeros, tx.init(params), params)[0]

    decayed = update(optfn.add_decayed_weights(0.1, mask=kind(True, False)))
    assert decayed.kernel[0, 0] == np.float32(0.1)
    assert not decayed.bias.any()

    transforms = {"fast": optfn.add_decayed_weights(2.0), "slow": optfn.add_decayed_weights(1.0)}
    routed = update(optfn.partition(transforms, kind("fast", "slow")))
    assert routed.kernel[0, 0] == 2.0
    assert routed.bias[0] == 1.0

    frozen = update(optfn.freeze(optfn.add_decayed_weights(1.0), kind(True, False)))
    assert not frozen.kernel.any()
    assert frozen.bias[0] == 1.0


# Identity.


def test_equality_and_hash_are_by_identity():
    one, two = optfn.adam(0.1), optfn.adam(0.1)
    assert one == one and one != two
    assert len({one, two, one}) == 2
    assert schedules.constant(1.0) != schedules.constant(1.0)


def test_an_optimizer_is_a_static_argument_or_an_argument_with_leaves():
    one, two = optfn.sgd(0.1), optfn.sgd(0.2)
    traces = []

    def update(tx, grads, state):
        traces.append(tx)
        return tx.update(grads, state)[0]["b"][0]

    static = jax.jit(update, static_argnums=0)
    results = [float(static(tx, PARAMS, tx.init(PARAMS))) for tx in (one, two, one)]
    np.testing.assert_allclose(results, [-0.1, -0.2, -0.1])
    assert traces == [one, two]

    traces.clear()
    as_data = jax.jit(update)
    results = [float(as_data(tx, PARAMS, tx.init(PARAMS))) for tx in (one, two, one)]
    np.testing.assert_allclose(results, [-0.1, -0.2, -0.1])
    assert len(traces) == 1


def test_an_optimizer_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        optfn.scale(1.0).step_size = 2.0


# Unflattening does not validate.


EVERYTHING = cases.OPTIMIZERS | cases.STAGES | SCHEDULES


@pytest.mark.parametrize("name", EVERYTHING)
def test_leaves_may_become_anything(name):
    tree = EVERYTHING[name]
    leaves, treedef = jax.tree.flatten(tree)
    marker = object()
    strings = jax.tree.map(str, tree)
    assert type(strings) is type(tree)
    assert jax.tree.leaves(strings) == [str(leaf) for leaf in leaves]
    assert jax.tree.leaves(jax.tree.map(lambda _: marker, tree)) == [marker] * len(leaves)
    assert jax.tree.leaves(jax.tree.map(lambda _: None, tree)) == []
    assert treedef == jax.tree.structure(jax.tree.map(lambda _: np.nan, tree))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    assert len(set(paths)) == len(leaves)


# Copies.


@pytest.mark.parametrize(
    "tx",
    [
        optfn.adam(jnp.asarray([0.1, 0.2], jnp.float32)),
        optfn.chain(optfn.clip(1.0), optfn.chain(optfn.trace(0.9)).named("inner")).named("outer"),
        optfn.adamw(0.1, mask=CallableTuple(True, False)),
        optfn.partition({"a": optfn.sgd(0.1), "b": optfn.adam(halve)}, {"w": "a", "b": "b"}),
        schedules.join([schedules.constant(1.0), halve], [3]),
    ],
    ids=["array", "named", "mask", "partition", "schedule"],
)
@pytest.mark.parametrize(
    "duplicate",
    [lambda tx: pickle.loads(pickle.dumps(tx)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)
def test_copies_have_the_same_treedef_and_leaves(tx, duplicate):
    again = duplicate(tx)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    chex.assert_trees_all_equal(again, tx, strict=True)


# The repr is the recipe.


NAMESPACE = (
    vars(optfn)
    | {"jnp": jnp, "np": np, "decays": cases.decays, "halve": halve}
    | {
        function.__name__: function
        for function in (
            cases.not_the_scale,
            cases.leaf_rate,
            cases.by_shape,
            cases.is_bias,
            cases.not_every_third,
            cases.layers_above,
        )
    }
)


RECIPES = EVERYTHING | {
    "named": optfn.scale_by_adam().named("first"),
    "named chains": optfn.chain(
        optfn.chain(optfn.scale_by_adam(), optfn.chain(optfn.trace(0.9)).named("c")).named("b"),
        optfn.clip(0.1).named("d"),
    ).named("a"),
    "empty chain": optfn.chain(),
    "keyword only": optfn.scale_by_learning_rate(0.1, flip_sign=False),
    "labels with dots": optfn.partition({"a.b": optfn.sgd(0.1), "c/d": optfn.adam(0.1)}, "c/d"),
    "nested masks": optfn.masked(optfn.adam(0.1), {"a": [True, (False,)], "b": None}),
    "partitions in partitions": optfn.partition(
        {"x": optfn.freeze(optfn.sgd(0.1), {"w": True}).named("y"), "z": optfn.lion(0.1)},
        {"a": "x", "b": ["z", "x"]},
    ),
    "infinities": optfn.chain(optfn.clip(float("inf")), optfn.scale(-float("inf"))),
    "small and large": optfn.adam(5e-324, eps=1.7976931348623157e308, b1=-0.0, b2=1 / 3),
    "array": optfn.adam(jnp.float32(1 / 3)),
    "weak array": optfn.adam(jnp.asarray(1 / 3)),
    "int array": optfn.adam(jnp.arange(3)),
    "NumPy array": optfn.adam(np.asarray(1 / 3)),
    "matrix": optfn.adam(np.asarray([[1 / 3, 2], [3, 4e-30]], np.float32)),
    "bfloat16": optfn.adam(jnp.asarray([1 / 3, 0.1], jnp.bfloat16)),
    "float16": optfn.adam(jnp.asarray(0.1, jnp.float16)),
    "infinite array": optfn.adam(jnp.asarray([jnp.inf, -jnp.inf, 1e-30, jnp.nan])),
    "empty array": optfn.adam(jnp.zeros(0)),
    "a function by name": optfn.sgd(halve, momentum=schedules.constant(0.9)),
    "stacked": optfn.stack([optfn.adam(0.1 * k, b1=1 - 0.1**k) for k in range(64)]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_evaluating_the_repr_builds_an_equal_one(name):
    tx = RECIPES[name]
    again = eval(repr(tx), NAMESPACE)
    assert type(again) is type(tx)
    assert jax.tree.structure(again) == jax.tree.structure(tx)
    assert list(map(form, jax.tree.leaves(again))) == list(map(form, jax.tree.leaves(tx)))
    chex.assert_trees_all_equal(again, tx)
    assert repr(again) == repr(tx)


def form(leaf):
    weak = getattr(leaf, "weak_type", None)
    return type(leaf), getattr(leaf, "dtype", None), np.shape(leaf), weak, np.signbit(leaf).tolist()


def test_the_repr_of_a_traced_optimizer_says_so():
    shown = []
    jax.jit(lambda tx: shown.append(repr(tx)))(optfn.sgd(0.1))
    assert "learning_rate=<traced float32[]>" in shown[0]


# Subclassing.


class damped(optfn.Leafwise):
    """A rule as a stranger writes it."""

    strength: float
    floor: float = 0.5
    twice: bool = optfn.static(default=False, kw_only=True)
    weight: Any = optfn.per_leaf(default=None, kw_only=True)

    def update_leaf(self, g, slots, param, t):
        weight = 1 if self.weight is None else self.weight
        return weight * g / (self.floor + self.strength * (2 if self.twice else 1)), slots


class damped_more(damped):
    extra: float = 1.0

    def update_leaf(self, g, slots, param, t):
        g, slots = super().update_leaf(g, slots, param, t)
        return g / self.extra, slots


def test_a_subclass_is_a_dataclass_and_a_pytree_by_its_fields_alone():
    tx = damped_more(1, extra=2, twice=True, weight={"w": 3.0, "b": 4.0})
    assert jax.tree.leaves(tx) == [1.0, 0.5, 2.0]
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_allclose(updates["w"], 3 / 2.5 / 2, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], 4 / 2.5 / 2, rtol=1e-6)
    again = eval(repr(tx), {"damped_more": damped_more})
    assert jax.tree.structure(again) == jax.tree.structure(tx)
