import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optfn
from optfn import storage

SHAPE, LEAVES = (64, 128), 6
SIZE = 64 * 128
STORED = {
    "bf16": (optfn.store(optfn.adamw(1e-2), storage.bf16()), 0),
    "mu_dtype": (optfn.adamw(1e-2, mu_dtype=jnp.bfloat16), 0),
    # Moments in float32 of one leaf, and of the next one before the codes of the first are made.
    "int8": (optfn.store(optfn.adamw(1e-2), storage.int8()), 20),
}


def trees():
    draws = np.random.default_rng(0).normal(size=(2, LEAVES, *SHAPE)).astype(np.float32)
    return [{f"w{i}": jnp.asarray(x) for i, x in enumerate(tree)} for tree in draws]


def compiled(tx, params, grads):
    step = jax.jit(partial(optfn.step, tx), donate_argnums=(0, 2))
    return step.lower(params, grads, jax.eval_shape(tx.init, params)).compile()


@pytest.mark.parametrize("tx, per_leaf", STORED.values(), ids=STORED)
def test_a_compiled_step_holds_the_temporaries_of_few_leaves_and_copies_no_slot(
    tx, per_leaf, monkeypatch
):
    params, grads = trees()
    usual = compiled(tx, params, grads)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    ordered = compiled(tx, params, grads)

    held, usually = (x.memory_analysis().temp_size_in_bytes for x in (ordered, usual))
    small = 2 * SIZE  # flags, counts, factors
    assert held <= per_leaf * SIZE + small < usually
    assert not re.search(r"= \w+\[64,128\]\S* copy\(", ordered.as_text())

    one, other = (
        program(*map(fresh, (params, grads)), tx.init(params)) for program in (usual, ordered)
    )
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        # The same operations in other kernels: the last digit of the stored dtype may differ.
        digit = float(jnp.finfo(x.dtype).eps) if jnp.issubdtype(x.dtype, jnp.floating) else 0
        np.testing.assert_allclose(*(np.asarray(z, np.float64) for z in (x, y)), rtol=digit)


def fresh(tree):
    return jax.tree.map(jnp.array, tree)


def test_what_waits_is_unchanged_in_lanes_and_derivatives(monkeypatch):
    params, grads = trees()

    def loss(rate):
        tx = optfn.store(optfn.adamw(rate), storage.bf16())
        new, _ = optfn.step(tx, params, grads, tx.init(params))
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(new))

    rates = jnp.asarray([1e-2, 1e-3])
    usual = jax.jit(jax.vmap(jax.value_and_grad(loss)))(rates)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    ordered = jax.jit(jax.vmap(jax.value_and_grad(loss)))(rates)
    np.testing.assert_allclose(ordered, usual, rtol=1e-5)


def test_leaves_on_explicit_axes_of_one_device_wait_too(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    mesh = jax.make_mesh(
        (1,), ("data",), (jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1]
    )
    rows = jax.sharding.NamedSharding(mesh, jax.P("data", None))
    params, grads = (jax.device_put(tree, rows) for tree in trees())
    tx = STORED["int8"][0]
    with jax.set_mesh(mesh):
        new, _ = jax.jit(partial(optfn.step, tx))(params, grads, tx.init(params))
    assert new["w0"].sharding == params["w0"].sharding


@pytest.mark.parametrize("tx, _", STORED.values(), ids=STORED)
def test_parts_in_shard_map_of_one_device_are_updated(tx, _, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])

    def step(params, grads):
        return optfn.step(tx, params, grads, tx.init(params))[0]

    params, grads = trees()
    rows = jax.P("data")
    new = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(rows, rows), out_specs=rows))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
        new(params, grads),
        jax.jit(step)(params, grads),
    )


@pytest.mark.parametrize("make", [optfn.muon, optfn.soap, optfn.dion])
def test_what_is_costly_is_computed_once(make, monkeypatch):
    params, grads = trees()
    tx = optfn.store(make(1e-2), storage.bf16())
    state = jax.eval_shape(tx.init, params)

    def products():
        return str(jax.make_jaxpr(partial(optfn.step, tx))(params, grads, state)).count(
            "dot_general"
        )

    usual = products()
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert products() == usual > 0
