"""Whole matrices are spread over the devices of a mesh, and nothing else moves."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optfn
import optfn.testing
from optfn import MatrixAxes

TX = optfn.chain(
    optfn.ema(0.9),
    optfn.newton_schulz(views=MatrixAxes(rows=-1, columns=-2)),
    optfn.scale_by_learning_rate(0.1),
)
PARAMS = {f"layer{i}": jax.random.normal(jax.random.key(i), (8, 16, 32)) for i in range(2)}
ONE, TWO = ((8,), ("x",)), ((4, 2), ("x", "y"))
# The mesh, how both kernels lie, and the collectives: one all-to-all there and one back, for each
# axis that splits matrices.
CASES = {
    "columns": (ONE, P(None, "x", None), 2),
    "rows": (ONE, P(None, None, "x"), 2),
    "both": (TWO, P(None, "x", "y"), 4),
    "one axis over two": (TWO, P(None, None, ("x", "y")), 4),
    "a stack that is split too": (TWO, P("x", None, "y"), 2),
    "the stack alone": (ONE, P("x", None, None), 0),
    "whole": (ONE, P(), 0),
}


def collectives(compiled):
    """The kinds, and the bytes that a device receives."""
    found = optfn.testing.collectives(compiled)
    return [each.kind for each in found], sum(each.bytes for each in found)


@pytest.fixture(scope="module")
def expected():
    updates, _ = jax.jit(TX.update)(PARAMS, TX.init(PARAMS))
    return updates


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("case", CASES)
def test_all_to_all_and_no_more(case, kind, expected):
    (sizes, names), spec, count = CASES[case]
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType[kind],) * len(names))
    tx = TX
    with jax.set_mesh(mesh):
        params = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, spec)), PARAMS)
        if kind == "Auto":
            tx = optfn.on_mesh(TX, NamedSharding(mesh, spec))
        state = jax.jit(tx.init)(params)
        update = jax.jit(tx.update).lower(params, state, params).compile()
        found, size = collectives(update)
        updates, new = update(params, state, params)
    assert found == ["all-to-all"] * count
    # Each device receives its share of both stacks for each collective, and no more.
    assert size == count * sum(p.nbytes for p in PARAMS.values()) // mesh.size
    for name, update in updates.items():
        np.testing.assert_allclose(update, expected[name], atol=1e-6)
        assert update.sharding.is_equivalent_to(params[name].sharding, 3)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.parametrize("number", [1, 3, 8, 11])
def test_single_matrices_are_stacked_and_padded(number):
    mesh = jax.make_mesh((8,), ("x",))
    params = {str(i): jax.random.normal(jax.random.key(i), (16, 32)) for i in range(number)}
    tx = optfn.newton_schulz()
    wanted, _ = jax.jit(tx.update)(params, tx.init(params))
    with jax.set_mesh(mesh):
        lying = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, P("x"))), params)
        state = tx.init(lying)
        compiled = jax.jit(tx.update).lower(lying, state).compile()
        updates, _ = compiled(lying, state)
    assert collectives(compiled)[0] == ["all-to-all"] * 2
    for name, update in updates.items():
        np.testing.assert_allclose(update, wanted[name], atol=1e-6)


class shaken(optfn.Matrixwise):
    """The gradient, and a number drawn for each entry."""

    random = True

    seed: Any = 0

    def update_matrix(self, g, slots, param, t, *, key: Any = None):
        return g + jax.random.uniform(key, g.shape), slots


@pytest.mark.parametrize("block", [None, 3], ids=["whole", "blocks"])
@pytest.mark.parametrize("spec", [P(None, "x"), P("x")], ids=["matrices", "stack"])
def test_random_numbers_are_drawn_where_matrices_are_and_are_the_same(spec, block):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    tx = shaken(views=MatrixAxes(rows=-1, columns=-2, block=block))
    params = {name: jnp.zeros((2, 4, 8)) for name in "ab"}
    wanted, _ = jax.jit(tx.update)(params, tx.init(params))
    assert len({float(u[i, 0, 0]) for u in wanted.values() for i in range(2)}) == 4
    with jax.set_mesh(mesh):
        lying = jax.device_put(params, NamedSharding(mesh, spec))
        state = tx.init(lying)
        compiled = jax.jit(tx.update).lower(lying, state).compile()
        updates, _ = compiled(lying, state)
    if block is None:
        assert collectives(compiled)[0] == ["all-to-all"] * (0 if spec == P("x") else 2)
    for name, update in updates.items():
        np.testing.assert_array_equal(update, wanted[name])


def test_keys_that_a_user_gives_are_spread_with_the_matrices():
    """Of another kind than the default, too."""

    class keyed(shaken):
        random = False
        extra_args: ClassVar = {"key": "key"}

    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    tx, params = keyed(), {name: jnp.zeros((4, 8)) for name in "ab"}
    key = jax.random.key(3, impl="rbg")
    wanted, _ = jax.jit(tx.update)(params, tx.init(params), key=key)
    with jax.set_mesh(mesh):
        lying = jax.device_put(params, NamedSharding(mesh, P("x")))
        updates, _ = jax.jit(tx.update)(lying, tx.init(lying), key=key)
    for name, update in updates.items():
        np.testing.assert_array_equal(update, wanted[name])


def test_on_mesh_wants_one_mesh():
    shardings = {
        name: NamedSharding(jax.make_mesh((n,), ("x",)), P())
        for name, n in zip(PARAMS, (4, 8), strict=True)
    }
    tx = optfn.on_mesh(TX, shardings)
    with pytest.raises(ValueError, match=r"on_mesh\(shardings=\.\.\.\) are on several meshes"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_on_mesh_takes_what_has_no_state():
    mesh = jax.make_mesh((2,), ("x",), (AxisType.Auto,), devices=jax.devices()[:2])
    tx = optfn.on_mesh(optfn.sgd(0.5), NamedSharding(mesh, P("x")))
    g = {"w": jnp.ones(4)}
    updates, _ = jax.jit(tx.update)(g, tx.init(g))
    np.testing.assert_array_equal(updates["w"], -0.5)


def test_nothing_to_do_without_a_trace():
    tx = optfn.on_mesh(TX, NamedSharding(jax.make_mesh((8,), ("x",)), P()))
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    assert jnp.isfinite(updates["layer0"]).all()
