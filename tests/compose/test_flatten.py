"""Packed: the same updates from one vector for each dtype, or a refusal that says why."""

from typing import ClassVar

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn

EVERY = cases.OPTIMIZERS | cases.STAGES
# One value for all leaves, and other ways to stand around.
AROUND = {
    "partition": optfn.partition({"all": optfn.adam(0.1)}, "all"),
    "masked": optfn.chain(optfn.masked(optfn.trace(0.5), True).named("x"), optfn.sgd(0.1)),
    "freeze": optfn.freeze(optfn.sgd(0.1), False),
    "scale_by_layer_decay": optfn.scale_by_layer_decay(0.5, 2),
    "with_leaf_rates": optfn.with_leaf_rates(optfn.sgd(0.1), 0.5),
    "sam": optfn.sam(optfn.sgd(0.1), optfn.sgd(0.05)),
    "retract": optfn.chain(optfn.scale_by_rms(), optfn.retract_by_learning_rate(0.1)),
    "negate": optfn.chain(optfn.scale_by_rms(), optfn.negate()),
    "sophia": optfn.sophia(
        0.1, update_interval=2, hessian_diagonal_fn=optfn.given_hessian_diagonal()
    ),
}


def inside(tx):
    return [tx, *(part for inner in tx.contents for part in inside(inner))]


def elementwise(tx):
    """As it is declared: of all parts, of which none has a value for each leaf."""
    return all(
        vars(type(part)).get("elementwise", False)
        and all(value is None or value.is_one for _, value in part.fields("per_leaf"))
        for part in inside(tx)
    )


TAKEN = {k: tx for k, tx in EVERY.items() if elementwise(tx)}
TAKEN |= {f"{k} around": tx for k, tx in AROUND.items()}

RNG = np.random.default_rng(0)
SHAPES = {"w": (3, 2), "b": (2,)}  # those of the conformance kit, whose programs they share
PARAMS = {name: jnp.float32(RNG.normal(size=shape)) for name, shape in SHAPES.items()}
GRADS = [
    {name: jnp.float32(RNG.normal(size=shape)) for name, shape in SHAPES.items()} for _ in range(3)
]


def updates_of(tx, params=PARAMS, every=GRADS, **extra_args):
    """The updates after each gradient; params that are not stepped, as stages are none."""
    state, out = tx.init(params), []
    for grads in every:
        updates, state = tx.update(grads, state, params, **extra_args)
        out.append(updates)
    return out


def test_what_is_declared_gets_the_same_updates_bit_for_bit():
    """Op by op, since XLA fuses products and sums of other programs to other roundings."""
    with jax.disable_jit():
        for name, tx in TAKEN.items():
            extra_args = cases.EXTRA_ARGS.get(name, {})
            if "hessian_diag" in tx.declared_extra_args():
                extra_args = {"hessian_diag": GRADS[0]}
            plain, flat = (updates_of(x, **extra_args) for x in (tx, optfn.flatten(tx)))
            jax.tree.map(
                lambda x, y, name=name: np.testing.assert_array_equal(x, y, name), flat, plain
            )


def test_what_is_not_declared_is_refused():
    refused = {name: tx for name, tx in EVERY.items() if name not in TAKEN}
    assert refused.keys() >= {"adam_mini", "clip_by_global_norm", "noisy_sgd", "lbfgs", "lion"}
    for name, tx in refused.items():
        blamed = "|".join(type(part).__name__ for part in inside(tx) if not elementwise(part))
        with pytest.raises(ValueError, match=rf"^flatten\(transform=...\): ({blamed}) ") as error:
            optfn.flatten(tx)
        assert not str(error.value).startswith("flatten(transform=...): chain"), name


def test_no_declaration_is_without_a_test():
    def classes(cls):
        return {cls}.union(*map(classes, cls.__subclasses__()))

    declared = {cls for cls in classes(optfn.Transform) if cls.__module__.startswith("optfn.")}
    declared = {cls for cls in declared if vars(cls).get("elementwise")} - {optfn.Transform}
    assert declared == {type(part) for tx in TAKEN.values() for part in inside(tx)}


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
    plain, flat = run(tx), run(optfn.flatten(tx))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), flat, plain)
    assert jax.tree.map(lambda x: x.dtype, flat) == jax.tree.map(lambda x: x.dtype, plain)


def test_slots_are_a_vector_for_each_dtype_of_the_params():
    slots = optfn.flatten(optfn.adam(0.1)).init(MIXED).slots["flatten"]["scale_by_adam"]
    sizes = {name: (x.shape, x.dtype) for name, x in slots.mu.items()}
    assert sizes == {
        "bfloat16": ((10,), jnp.float32),
        "complex64": ((3,), jnp.complex64),
        "float32": ((2,), jnp.float32),
    }
    assert slots.nu["complex64"].dtype == jnp.float32
    assert optfn.flatten(optfn.sgd(0.1)).init(MIXED).slots == {}


def test_it_is_optax_s_flatten():
    ours = updates_of(optfn.flatten(optfn.adam(0.1)))
    theirs = updates_of(optax.flatten(optax.adam(0.1)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5), ours, theirs)


def test_sharded_params_get_the_same_updates():
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(_AUTO,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.arange(12.0).reshape(4, 3), spec), "b": jnp.ones(2)}
    params["b"] = jax.device_put(params["b"], spec)
    run = jax.jit(lambda tx: updates_of(tx, params, [params] * 2))
    plain, flat = run(optfn.adam(0.1)), run(optfn.flatten(optfn.adam(0.1)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), flat, plain)


_AUTO = jax.sharding.AxisType.Auto


# What passes through.


class damped(optfn.Leafwise):
    """Takes a tree and a number beside the gradient."""

    elementwise = True
    extra_args: ClassVar = {"curvature": "tree", "damping": "scalar"}

    def update_leaf(self, g, slots, param, t, *, curvature, damping):
        return g / (curvature + damping), slots


def test_trees_among_the_extra_arguments_are_flattened_too():
    given = {"curvature": jax.tree.map(jnp.abs, GRADS[1]), "damping": 0.5}
    plain, flat = (updates_of(tx, **given) for tx in (damped(), optfn.flatten(damped())))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), flat, plain)


@pytest.mark.parametrize(
    "tx", [optfn.schedule_free_sgd(0.1), optfn.lookahead(optfn.sgd(0.1), 5, 0.5)], ids=repr
)
def test_averages_and_numbers_are_found_inside(tx):
    params, other = PARAMS, PARAMS
    flat = optfn.flatten(tx)
    state, plain = flat.init(params), tx.init(params)
    for grads in GRADS:
        params, state = optfn.step(flat, params, grads, state)
        other, plain = optfn.step(tx, other, grads, plain)
    found = optfn.evaluation_params(flat, state, params)
    wanted = optfn.evaluation_params(tx, plain, other)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, wanted)
    assert not np.allclose(found["w"], params["w"])
    numbers = optfn.hyperparameters(flat, state)
    assert numbers["learning_rate"] == np.float32(0.1)


def test_a_partition_stands_outside():
    split = {"matrix": optfn.adamw(0.1), "rest": optfn.adam(0.1)}
    flat = {label: optfn.flatten(tx) for label, tx in split.items()}
    plain, flat = (updates_of(optfn.partition(p, cases.by_shape)) for p in (split, flat))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), flat, plain)


# Rules of others.


class by_position(optfn.Leafwise):
    def update_leaf(self, g, slots, param, t):
        return g * jnp.arange(g.shape[0]).reshape(-1, *[1] * (g.ndim - 1)), slots


class by_entry(optfn.Leafwise):
    elementwise = True

    def update_leaf(self, g, slots, param, t):
        return jax.lax.cond(t > 1, jnp.tanh, lambda x: -x, jnp.clip(g, -1, 1)), slots


class by_norm(by_entry):
    def update_leaf(self, g, slots, param, t):
        return g / optfn.global_norm(g), slots


class by_function(optfn.Leafwise):
    elementwise = True
    extra_args: ClassVar = {"look": "function"}

    def update_leaf(self, g, slots, param, t, *, look):
        return g, slots


@pytest.mark.parametrize("rule", [by_position, by_norm])
def test_a_rule_that_does_not_declare_it_is_refused_and_told_how(rule):
    name = rule.__name__
    sentence = (
        rf"flatten\(transform=...\): {name} is not declared to treat every entry by itself \(a "
        rf"rule of your own that does says so by elementwise = True in the class {name}\). Let "
        "it stand"
    )
    with pytest.raises(ValueError, match=sentence):
        optfn.flatten(optfn.chain(rule().named("x"), optfn.sgd(0.1)))


@pytest.mark.parametrize(
    ("tx", "reason"),
    [
        (optfn.chain(by_function()), r"by_function calls a function of the params \(look\)"),
        (
            optfn.sam(optfn.sgd(0.1), optfn.sgd(0.05), opaque_mode=True),
            r"sam calls a function of the params \(grad_fn\)",
        ),
        (optfn.lbfgs(), "scale_by_lbfgs is not declared"),
        (
            optfn.chain(optfn.masked(optfn.trace(0.5), cases.decays), optfn.sgd(0.1)),
            r"masked has a value for each leaf \(mask\)",
        ),
        (optfn.from_optax(optax.adam(0.1)), "from_optax is not declared"),
    ],
    ids=["function", "sam", "lbfgs", "masked", "from_optax"],
)
def test_what_is_to_blame_is_named(tx, reason):
    with pytest.raises(ValueError, match=rf"flatten\(transform=...\): {reason}"):
        optfn.flatten(tx)


def test_a_rule_that_declares_it_is_taken():
    plain, flat = (updates_of(tx) for tx in (by_entry(), optfn.flatten(by_entry())))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), flat, plain)


# Bad input.


def test_bad_input():
    mask = optfn.adamw(0.1, mask={"w": True, "b": False})
    with pytest.raises(ValueError, match=r"add_decayed_weights has a value for each leaf \(mask\)"):
        optfn.flatten(mask)
    assert optfn.flatten(optfn.adamw(0.1, mask=True)).init(PARAMS)
    with pytest.raises(ValueError, match="from_optax is not declared to treat every entry"):
        optfn.flatten(optax.adam(0.1))
    tx = optfn.flatten(optfn.adam(0.1))
    with pytest.raises(ValueError, match="flatten needs the params"):
        tx.update(PARAMS, tx.init(jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)))
    with pytest.raises(TypeError, match="the param at 'n' has dtype int32"):
        tx.init({"n": jnp.arange(2)})
    with pytest.raises(TypeError, match="the gradient at 'w' has dtype int32"):
        tx.update({**PARAMS, "w": jnp.ones((3, 2), jnp.int32)}, tx.init(PARAMS), PARAMS)
