"""Packed: the same updates from one vector for each dtype, or a refusal that says why."""

from typing import Any, ClassVar

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn.core.dependence import needs_its_arrays

EVERY = cases.OPTIMIZERS | cases.STAGES
REASONS = {name: needs_its_arrays(tx) for name, tx in EVERY.items()}

ABOUT_ARRAYS = {
    *("cautious", "lamb", "lars", "fromage", "novograd", "sm3", "adafactor", "mars", "orthograd"),
    *("layer-wise dog", "adam_mini", "hyperball"),
}
ABOUT_LEAVES = {
    *("adamw", "lion", "adamaxw", "stable_adamw", "partition", "freeze", "masked in a chain"),
}
# Sums over all arrays, which another order rounds otherwise.
ABOUT_THE_TREE = {
    *("dog", "dowg", "prodigy", "dadapt_adamw", "polyak_sgd", "momo", "momo_adam", "mechanize"),
    *("sam", "clip_by_global_norm"),
}
OTHER_NOISE = {"noisy_sgd"}

RNG = np.random.default_rng(0)
SHAPES = {"w": (2, 3), "b": (3,)}
PARAMS = {name: jnp.float32(RNG.normal(size=shape)) for name, shape in SHAPES.items()}
GRADS = [
    {name: jnp.float32(RNG.normal(size=shape)) for name, shape in SHAPES.items()} for _ in range(2)
]


def updates_of(tx, params=PARAMS, every=GRADS, **extra_args):
    """The updates after each gradient; params that are not stepped, as stages are none."""
    state, out = tx.init(params), []
    for grads in every:
        updates, state = tx.update(grads, state, params, **extra_args)
        out.append(updates)
    return out


def test_what_is_refused_and_why():
    def because(reason):
        return {name for name, found in REASONS.items() if found and reason in found}

    assert because("looks at each array as a whole") >= ABOUT_ARRAYS
    assert because("has a value for each leaf") >= ABOUT_LEAVES
    assert because("calls a function of the params") >= {"sophia"}
    assert not any(REASONS[name] for name in ABOUT_THE_TREE | OTHER_NOISE)


def test_the_updates_are_the_same_bit_for_bit():
    """Op by op, since XLA fuses products and sums of other programs to other roundings."""
    with jax.disable_jit():
        for name in [name for name, reason in REASONS.items() if reason is None]:
            extra_args = cases.EXTRA_ARGS.get(name, {})
            plain = updates_of(EVERY[name], **extra_args)
            packed = updates_of(optfn.packed(EVERY[name]), **extra_args)
            rtol = 2e-6 if name in ABOUT_THE_TREE else 0
            if name not in OTHER_NOISE:
                jax.tree.map(
                    lambda x, y, rtol=rtol, name=name: np.testing.assert_allclose(
                        x, y, rtol=rtol, err_msg=name
                    ),
                    packed,
                    plain,
                )


MIXED = {
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "complex": jnp.ones(3, jnp.complex64),
    "none": None,
    "scalar": jnp.ones(()),
    "empty": jnp.zeros((0, 2)),
    "list": [jnp.ones((1, 1)), jnp.ones((2, 2), jnp.bfloat16)],
}


def test_leaves_of_every_kind():
    """Up to a rounding of float32, or of the dtype of the update."""
    grads = jax.tree.map(lambda p: 0.3 * p, MIXED)
    tx = optfn.adam(0.1)
    run = jax.jit(lambda tx: updates_of(tx, MIXED, [grads] * 2))
    plain, packed = run(tx), run(optfn.packed(tx))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), packed, plain)
    assert jax.tree.map(lambda x: x.dtype, packed) == jax.tree.map(lambda x: x.dtype, plain)


def test_slots_are_a_vector_for_each_dtype_of_the_params():
    slots = optfn.packed(optfn.adam(0.1)).init(MIXED).slots["packed"]["scale_by_adam"]
    sizes = {name: (x.shape, x.dtype) for name, x in slots.mu.items()}
    assert sizes == {
        "bfloat16": ((10,), jnp.float32),
        "complex64": ((3,), jnp.complex64),
        "float32": ((2,), jnp.float32),
    }
    assert slots.nu["complex64"].dtype == jnp.float32
    assert optfn.packed(optfn.sgd(0.1)).init(MIXED).slots == {}


def test_it_is_optax_s_flatten():
    ours = updates_of(optfn.packed(optfn.adam(0.1)))
    theirs = updates_of(optax.flatten(optax.adam(0.1)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5), ours, theirs)


def test_sharded_params_get_the_same_updates():
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(_AUTO,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.arange(12.0).reshape(4, 3), spec), "b": jnp.ones(2)}
    params["b"] = jax.device_put(params["b"], spec)
    run = jax.jit(lambda tx: updates_of(tx, params, [params] * 2))
    plain, packed = run(optfn.adam(0.1)), run(optfn.packed(optfn.adam(0.1)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), packed, plain)


_AUTO = jax.sharding.AxisType.Auto


# What passes through.


class damped(optfn.Leafwise):
    """Takes a tree and a number beside the gradient."""

    extra_args: ClassVar = {"curvature": "tree", "damping": "scalar"}

    def update_leaf(self, g, slots, param, t, *, curvature, damping):
        return g / (curvature + damping), slots


def test_trees_among_the_extra_arguments_are_packed_too():
    given = {"curvature": jax.tree.map(jnp.abs, GRADS[1]), "damping": 0.5}
    plain, packed = (updates_of(tx, **given) for tx in (damped(), optfn.packed(damped())))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), packed, plain)


@pytest.mark.parametrize(
    "tx", [optfn.schedule_free_sgd(0.1), optfn.lookahead(optfn.sgd(0.1), 5, 0.5)], ids=repr
)
def test_averages_and_numbers_are_found_inside(tx):
    params, other = PARAMS, PARAMS
    packed = optfn.packed(tx)
    state, plain = packed.init(params), tx.init(params)
    for grads in GRADS:
        params, state = optfn.step(packed, grads, state, params)
        other, plain = optfn.step(tx, grads, plain, other)
    found = optfn.evaluation_params(packed, state, params)
    wanted = optfn.evaluation_params(tx, plain, other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, wanted)
    assert not np.allclose(found["w"], params["w"])
    numbers = optfn.hyperparameters(packed, state)
    assert numbers["learning_rate"] == np.float32(0.1)


def test_a_partition_stands_outside():
    split = {"matrix": optfn.adamw(0.1), "rest": optfn.adam(0.1)}
    packed = {label: optfn.packed(tx) for label, tx in split.items()}
    plain, packed = (updates_of(optfn.partition(p, cases.by_shape)) for p in (split, packed))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), packed, plain)


# Rules of others.


class by_size(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        return g / g.size, slots


class by_rank(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        return (jnp.sign(g) if g.ndim > 1 else g), slots


class by_position(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        return jnp.cumsum(g, axis=0), slots


class by_memory(optfn.Leafwise):
    """A norm that comes with the next gradient."""

    Slots = optax.TraceState

    def init_leaf(self, param):
        return optax.TraceState(jnp.zeros(()))

    def update_leaf(self, g, slots, param, t):
        return g * slots.trace, optax.TraceState(jnp.sum(g))


class by_loop(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        return jax.lax.fori_loop(0, 3, lambda i, x: x / jnp.max(x), g), slots


class by_choice(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        return jax.lax.cond(jnp.max(g) > 1, jnp.sin, jnp.cos, g), slots


class by_entry(optfn.Leafwise):
    """Nothing but the entry, in many words."""

    amount: Any = 0.5

    def update_leaf(self, g, slots, param, t):
        inner = jax.jit(lambda x: jnp.where(x > self.amount, jnp.tanh(x), jax.nn.relu(x)))
        return jax.lax.cond(t > 1, inner, lambda x: -x, jnp.clip(g, -1, 1)), slots


@pytest.mark.parametrize("rule", [by_position, by_memory, by_loop, by_choice])
def test_rules_about_whole_arrays_are_refused(rule):
    with pytest.raises(ValueError, match=f"{rule.__name__} looks at each array as a whole"):
        optfn.packed(rule()).init(PARAMS)


@pytest.mark.parametrize("rule", [by_size, by_rank])
def test_rules_about_shapes_are_refused(rule):
    with pytest.raises(ValueError, match=f"{rule.__name__} looks at the shapes of arrays"):
        optfn.packed(rule()).init(PARAMS)


def test_a_rule_about_entries_is_accepted():
    plain, packed = (updates_of(tx) for tx in (by_entry(), optfn.packed(by_entry())))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), packed, plain)


def test_a_sum_over_the_tree_does_not_hide_one_over_an_array():
    tx = optfn.chain(optfn.clip_by_global_norm(1.0), optfn.scale_by_trust_ratio(), optfn.sgd(0.1))
    assert "scale_by_trust_ratio" in needs_its_arrays(tx)


def test_optax_s_are_looked_at_in_the_same_way():
    assert needs_its_arrays(optfn.from_optax(optax.adam(0.1))) is None
    assert needs_its_arrays(optfn.from_optax(optax.clip_by_global_norm(1.0))) is None
    assert "as a whole" in needs_its_arrays(optfn.from_optax(optax.lamb(0.1)))


# Bad input.


def test_bad_input():
    mask = optfn.adamw(0.1, mask={"w": True, "b": False})
    with pytest.raises(
        ValueError, match=r"packed\(...\) would change the updates: add_decayed_wei"
    ):
        optfn.packed(mask).init(PARAMS)
    assert optfn.packed(optfn.adamw(0.1, mask=True)).init(PARAMS)
    with pytest.raises(TypeError, match=r"packed\(transform=...\) must be an optfn transform"):
        optfn.packed(optax.adam(0.1))
    tx = optfn.packed(optfn.adam(0.1))
    with pytest.raises(ValueError, match="packed needs the params"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(TypeError, match="the param at 'n' has dtype int32"):
        tx.init({"n": jnp.arange(2)})
    with pytest.raises(TypeError, match="the gradient at 'w' has dtype int32"):
        tx.update({**PARAMS, "w": jnp.ones((2, 3), jnp.int32)}, tx.init(PARAMS), PARAMS)
