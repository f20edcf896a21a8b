"""Flax's params with named axes: linen's `nn.Partitioned` and nnx's `out_sharding`."""

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optfn

AUTO = (AxisType.Auto, AxisType.Auto)
REDUCED = {  # whose slots are not of the params' shapes
    "adafactor": optfn.adafactor(0.1, min_dim_size_to_factor=2),
    "adam_mini": optfn.adam_mini(0.1),
    "lbfgs": optfn.lbfgs(memory_size=2, linesearch=None),
    "novograd": optfn.novograd(0.1),
    "sm3": optfn.sm3(0.1),
}
RECIPE = REDUCED | {
    name: cases.OPTIMIZERS[name] for name in ("freeze", "partition", "schedule_free_sgd")
}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = nn.with_partitioning(nn.initializers.ones, ("data", "model"))
        bias = nn.with_partitioning(nn.initializers.ones, ("model",))
        return nn.Dense(4, kernel_init=kernel, bias_init=bias)(x)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=AUTO)


def boxed_params():
    return Layer().init(jax.random.key(0), jnp.ones((1, 8)))["params"]


@pytest.mark.newest
@pytest.mark.parametrize("name", cases.OPTIMIZERS)
def test_every_state_has_a_spec_for_each_of_its_arrays(name, mesh):
    """What `nn.get_partition_spec` says fits the arrays, and one of a param's shape is its own."""
    params = boxed_params()
    state = jax.eval_shape(cases.OPTIMIZERS[name].init, params)
    boxes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    if name == "flatten":  # its vectors have no names
        return
    if name == "store":  # an axis of these short ones is one group, whose scale cannot be split
        return
    for box in boxes:
        for x in jax.tree.leaves(box):
            spec = nn.get_partition_spec(box)
            NamedSharding(mesh, spec).shard_shape(x.shape)
            if x.shape == (8, 4):
                assert spec == P("data", "model")


@pytest.mark.parametrize("name", RECIPE)
def test_the_recipe(name, mesh):
    """Abstract state, specs, a jitted init and a jitted step: the same as on one device."""
    tx = RECIPE[name]
    plain = nn.meta.unbox(boxed_params())
    expected, after = jax.jit(tx.update)(plain, tx.init(plain), plain)

    def init():
        params = boxed_params()
        return params, tx.init(params)

    specs = nn.get_partition_spec(jax.eval_shape(init))
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    params, state = jax.jit(init, out_shardings=places)()
    updates, new = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    for x, y, z in zip(*map(jax.tree.leaves, (new, after, state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5)
        assert x.sharding.is_equivalent_to(z.sharding, x.ndim)


def test_names_of_axes_follow_the_axes():
    params = {"w": nn.Partitioned(jnp.ones((8, 4, 3)), ("data", "model", None))}
    slots = optfn.adafactor(min_dim_size_to_factor=2).init(params).slots["scale_by_factored_rms"]
    assert slots.v_row["w"].names == ("model", None)
    assert slots.v_col["w"].names == ("data", None)
    mu = optfn.sm3(0.1).init(params).slots["scale_by_sm3"].mu["w"]
    assert [box.names for box in mu] == [("data",), ("model",), (None,)]
    nu = optfn.adam_mini(0.1).init(params).slots["scale_by_adam_mini"].nu["w"]
    assert nu.names == (None, None, None)
    memory = optfn.scale_by_lbfgs(2).init(params).slots["scale_by_lbfgs"]
    assert memory.steps["w"].names == (None, "data", "model", None)


class Model(nnx.Module):
    def __init__(self, rngs):
        kernel = nnx.with_partitioning(nnx.initializers.ones_init(), ("data", "model"))
        bias = nnx.with_partitioning(nnx.initializers.zeros_init(), ("model",))
        self.layer = nnx.Linear(8, 4, kernel_init=kernel, bias_init=bias, rngs=rngs)

    def __call__(self, x):
        return self.layer(x)


@pytest.mark.skipif(not hasattr(nnx, "as_pure"), reason="Flax 0.12.0 shards no params by this")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", REDUCED)
def test_nnx_optimizer(name, kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        model = Model(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, REDUCED[name], wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer, grads):
            optimizer.update(model, grads)

        grads = jax.tree.map(lambda p: 0.1 * p, nnx.state(model, nnx.Param))
        before = jax.tree.map(lambda x: x.sharding, nnx.state(optimizer))
        for _ in range(2):
            step(model, optimizer, grads)
    after = jax.tree.map(lambda x: x.sharding, nnx.state(optimizer))
    arrays = jax.tree.leaves(nnx.state(optimizer))
    for x, a, b in zip(arrays, jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert a.is_equivalent_to(b, x.ndim)
    assert model.layer.kernel.get_value().sharding.spec == P("data", "model")
