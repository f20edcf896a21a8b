"""Params on a mesh of eight devices: slots lie where their params lie, the step on all of them."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optfn

LEAVES = {
    "both axes": ((8, 4), P("data", "model")),
    "one axis": ((4,), P("model")),
    "second axis": ((3, 2), P(None, "model")),
    "replicated": ((3,), P()),
    "scalar": ((), P()),
}

OPTIMIZERS = {
    "adamw": optfn.adamw(0.1),
    "amsgrad": optfn.amsgrad(0.1),
    "adagrad": optfn.adagrad(0.1),
    "rmsprop": optfn.rmsprop(0.1, centered=True, momentum=0.9),
    "sgd": optfn.sgd(0.1, momentum=0.9),
    "momentum": optfn.momentum(0.1),
    "lion": optfn.lion(0.1),
    "partition": optfn.chain(
        optfn.clip_by_global_norm(1.0),
        optfn.partition(
            {"matrices": optfn.adamw(0.1), "rest": optfn.sgd(0.1, momentum=0.9, nesterov=True)},
            lambda path, leaf: "matrices" if leaf.ndim > 1 else "rest",
        ),
    ),
}


@pytest.fixture(params=["auto", "explicit", "explicit in a mesh context"])
def mesh(request):
    kind = AxisType.Auto if request.param == "auto" else AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh) if "context" in request.param else nullcontext():
        yield mesh


def host_params():
    rng = np.random.default_rng(0)
    params = {name: np.float32(rng.normal(size=shape)) for name, (shape, _) in LEAVES.items()}
    return params | {"second axis": params["second axis"].astype(jnp.bfloat16), "none": None}


def params_on(mesh):
    def put(path, leaf):
        _, spec = LEAVES[path[0].key]
        # A copy, as a buffer that may still belong to NumPy cannot be donated.
        return jnp.copy(jax.device_put(leaf, NamedSharding(mesh, spec)))

    return jax.tree.map_with_path(put, host_params())


def assert_placed_like(params, state, mesh):
    for path, slot in jax.tree.leaves_with_path(state.slots):
        param = params[path[-1].key]
        assert slot.shape == param.shape
        assert slot.sharding.mesh == mesh, path
        assert slot.sharding.is_equivalent_to(param.sharding, param.ndim), path
    assert state.step.sharding == NamedSharding(mesh, P())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_init(name, mesh):
    params = params_on(mesh)
    assert_placed_like(params, OPTIMIZERS[name].init(params), mesh)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_init_under_jit(name, mesh):
    params = params_on(mesh)
    assert_placed_like(params, jax.jit(OPTIMIZERS[name].init)(params), mesh)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_abstract_init(name, mesh):
    """What a checkpoint is restored by: where each array of the state will lie."""
    params = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params_on(mesh)
    )
    assert_placed_like(params, OPTIMIZERS[name].init(params), mesh)


def test_init_on_one_device_other_than_the_first():
    device = jax.devices()[3]
    state = optfn.adam(0.1).init(jax.device_put({"w": np.ones(3, np.float32)}, device))
    assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(state))


def test_a_donated_step_keeps_every_sharding_and_computes_the_same(mesh):
    tx = OPTIMIZERS["partition"]

    def plain_step(params, state, grads):
        return optfn.step(tx, params, grads, state)

    step, step_on_host = jax.jit(plain_step, donate_argnums=(0, 1)), jax.jit(plain_step)
    grads, host_grads = params_on(mesh), host_params()
    params, expected = params_on(mesh), host_params()
    state, expected_state = tx.init(params), tx.init(expected)
    placement = jax.tree.map(lambda x: x.sharding, (params, state))

    for _ in range(3):
        given = params, state
        params, state = step(params, state, grads)
        expected, expected_state = step_on_host(expected, expected_state, host_grads)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        assert jax.tree.map(lambda x: x.sharding, (params, state)) == placement

    assert step._cache_size() == 1
    jax.tree.map(assert_close, params, expected)


@pytest.mark.parametrize("tx", [optfn.lbfgs(3, linesearch=None), optfn.flatten(optfn.adam(0.1))])
def test_a_vector_of_all_leaves_is_put_together_on_a_mesh(tx, mesh):
    """Where the params keep their places, and the update is the one of a single device."""
    step = jax.jit(lambda params, state: optfn.step(tx, params, params, state))
    params, expected = params_on(mesh), host_params()
    placement = jax.tree.map(lambda x: x.sharding, params)
    state, expected_state = tx.init(params), tx.init(expected)
    for _ in range(2):
        params, state = step(params, state)
        expected, expected_state = step(expected, expected_state)
        assert jax.tree.all(
            jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, placement)
        )
    jax.tree.map(assert_close, params, expected)


def assert_close(x, y):
    """The norm is summed in another order, and bfloat16 may then round to the other neighbour.

    A param near zero is the difference of numbers of size 1, whose rounding stays in it.
    """
    rtol = 1e-6 if x.dtype == jnp.float32 else 2**-7
    atol = np.finfo(np.float32).eps
    np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=rtol, atol=atol)
