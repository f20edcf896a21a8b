"""`staggered`: every leaf is refreshed in its turn, and what it does otherwise stays."""

from functools import partial
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optfn
from optfn.core.turns import Turn, in_turn, is_due, turns

EVERY = 2
# Each with the slots that a refresh changes.
REFRESHING = {
    "soap": (optfn.scale_by_soap(precondition_frequency=EVERY), "left_basis"),
    "kl_soap": (optfn.scale_by_kl_soap(precondition_frequency=EVERY), "left_basis"),
    "kl_shampoo": (optfn.scale_by_kl_shampoo(precondition_frequency=EVERY), "right_basis"),
    "shampoo": (
        optfn.scale_by_shampoo(precondition_frequency=EVERY, start_preconditioning_step=1),
        "rows_root",
    ),
    "splus": (optfn.scale_by_splus(inverse_every=EVERY), "rows_basis"),
    "kron": (optfn.whiten_by_kron(1 / EVERY), "left"),
    "psgd_pro": (optfn.whiten_by_pro(1 / EVERY), "left"),
    "galore": (optfn.scale_by_galore(1, EVERY, base_optimizer=optfn.ema(0.9)), "basis"),
    "apollo": (optfn.scale_by_apollo(1, EVERY, proj="svd"), "basis"),
}
PARAMS = {"x": jnp.ones((3, 2)), "y": jnp.ones((2, 4)), "z": jnp.ones((3, 2))}
STEPS = 1 + 3 * EVERY


def gradients(params):
    """For each step a tree like the params."""
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    return treedef.unflatten(
        [jnp.asarray(rng.normal(size=(STEPS, *x.shape)), jnp.float32) for x in leaves]
    )


@jax.jit
def run(tx, state, grads):
    """The updates and the states of every step."""

    def step(state, grads):
        updates, state = tx.update(grads, state)
        return state, (updates, state)

    return jax.lax.scan(step, state, grads)[1]


def path(tx, params=PARAMS):
    return run(tx, tx.init(params), gradients(params))


def slots_called(name, state):
    """The trees of slots of this name."""
    found = []

    def look(x):
        if name in getattr(x, "_fields", ()):
            found.append(getattr(x, name))
        for inner in x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else ():
            look(inner)

    look(state.slots)
    return found


@pytest.mark.parametrize("every", [1, 2, 3, 7, 10, 49])
@pytest.mark.parametrize("number", [1, 2, 5, 10, 12, 49])
def test_every_leaf_has_one_turn_in_a_period(number, every):
    with in_turn():
        *own, none = turns([True] * number + [False])
    assert none is None
    wanted = [(i, number) for i in range(number)]
    assert [tuple(map(int, turn or ())) for turn in own] == wanted
    count = jnp.arange(3 * every, dtype=jnp.int32)[None]
    every_turn = Turn(np.arange(number, dtype=np.int32)[:, None], number)
    due = np.asarray(is_due(count, every, every_turn))
    for start in range(2 * every):
        assert (due[:, start : start + every].sum(axis=1) == 1).all()
    assert due.sum(axis=0).max() <= ceil(number / every)
    assert due[0].nonzero()[0][0] == 0


@pytest.mark.parametrize("name", REFRESHING)
def test_after_the_first_step_leaves_are_refreshed_one_after_the_other(name):
    tx, slots = REFRESHING[name]
    _, states = path(optfn.staggered(tx))
    (kept,) = slots_called(slots, states)
    after = {m: np.asarray(kept[m]).reshape(STEPS, -1) for m in PARAMS}
    changed = np.asarray([(x[1:] != x[:-1]).any(axis=1) for x in after.values()])
    counted = name in ("kron", "psgd_pro")  # they wait before the first one, too
    for start in range(counted, len(changed[0]) - EVERY + 1):
        window = changed[:, start : start + EVERY]
        assert (window.sum(axis=1) == 1).all()
        assert window.sum(axis=0).max() <= ceil(len(PARAMS) / EVERY)
    (first,) = slots_called(slots, tx.init(PARAMS))
    given = [(after[m][0] != np.asarray(first[m]).ravel()).any() for m in PARAMS]
    assert all(given) or counted


def test_a_leaf_alone_has_no_turn():
    tx, _ = REFRESHING["kron"]
    alone = {"x": PARAMS["x"]}
    found, wanted = path(optfn.staggered(tx), alone), path(tx, alone)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(x, y)


def test_lanes_take_their_own_turns():
    """With other periods, in one program."""
    params = {name: PARAMS[name] for name in "xz"}
    tx = optfn.staggered(REFRESHING["soap"][0])
    all_of_it = [optfn.replace(tx, precondition_frequency=every) for every in (2.0, 3.0)]
    lanes = optfn.stack(all_of_it)
    found, _ = jax.vmap(path, in_axes=(optfn.in_axes(lanes), None))(lanes, params)
    for i, tx in enumerate(all_of_it):
        wanted, _ = path(tx, params)
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=2e-5), found, wanted
        )


def test_a_run_goes_on_from_its_state():
    tx = optfn.staggered(REFRESHING["soap"][0])
    half = STEPS // 2
    wanted, states = path(tx)
    grads = jax.tree.map(lambda g: g[half:], gradients(PARAMS))
    found, _ = run(tx, jax.tree.map(lambda x: x[half - 1], states), grads)
    for name, x in found.items():
        np.testing.assert_allclose(x, wanted[name][half:], atol=1e-6)


def test_a_stack_takes_the_turn_of_its_leaf():
    tx = optfn.staggered(optfn.scale_by_splus(inverse_every=2, views=optfn.MatrixAxes(-1, -2)))
    singles = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    stacks = {"a": jnp.ones((1, 2, 3)), "b": jnp.ones((1, 3, 2))}
    wanted, _ = path(tx, singles)
    found, _ = path(tx, stacks)
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name][:, 0], x, atol=1e-5)


def test_what_is_between_does_not_matter():
    """As a wrapper that calls `update` itself."""
    tx = optfn.chain(REFRESHING["splus"][0], optfn.scale_by_learning_rate(0.1))
    outside = optfn.staggered(optfn.accumulate(tx, 1))
    inside = optfn.accumulate(optfn.staggered(tx), 1)
    found, wanted = (path(each)[0] for each in (outside, inside))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), found, wanted)


@pytest.mark.parametrize("spec", [P("x"), P(None, "x")])
def test_on_a_mesh(spec):
    """Matrices of several leaves and turns are on one device."""
    views = optfn.MatrixAxes(rows=-1, columns=-2)
    tx = optfn.staggered(optfn.scale_by_soap(precondition_frequency=2, views=views))
    params = {name: jnp.ones((2, 2, 2)) for name in "abc"}
    wanted, _ = path(tx, params)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        lying = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, spec)), params)
        grads = jax.tree.map(
            lambda g: jax.device_put(g, NamedSharding(mesh, P(None, *spec))), gradients(params)
        )
        found, _ = run(tx, tx.init(lying), grads)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), found, wanted)


def test_refuses_what_has_no_refreshes():
    with pytest.raises(ValueError, match=r"staggered\(transform=...\): nothing in .* is refreshed"):
        optfn.staggered(optfn.adam(0.1))
