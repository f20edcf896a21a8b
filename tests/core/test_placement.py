"""Where a new slot lies, given the axes that it shares with its param."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optfn
from optfn.core.placement import place

BOTH = [AxisType.Auto, AxisType.Explicit]

# Of a param (8, 4), split as ("data", "model") over four and two devices.
SLOTS = {
    "its shape": (lambda: jnp.zeros((8, 4)), ("data", "model")),
    "length 1": (lambda: jnp.zeros((1, 4)), (None, "model")),
    "scalar": (lambda: jnp.zeros(()), ()),
    "no axis of it": (lambda: jnp.zeros((8,)), (None,)),
    "rows": (lambda: optfn.Along(jnp.zeros(8), (0,)), ("data",)),
    "columns": (lambda: optfn.Along(jnp.zeros(4), (1,)), ("model",)),
    "history": (lambda: optfn.Along(jnp.zeros((3, 8, 4)), (None, 0, 1)), (None, "data", "model")),
    "factor": (lambda: optfn.Along(jnp.zeros((8, 8)), (0, None)), ("data", None)),
    "an axis twice": (lambda: optfn.Along(jnp.zeros((8, 8)), (0, 0)), ("data", None)),
    "turned": (lambda: optfn.Along(jnp.zeros((4, 8)), (1, 0)), ("model", "data")),
    "pairs of rows": (lambda: optfn.Along(jnp.zeros((4, 4)), (0, 1)), ("data", "model")),
    "groups that a shard would cut": (
        lambda: optfn.Along(jnp.zeros((2, 4)), (0, 1)),
        (None, "model"),
    ),
    "parts of unequal length": (lambda: optfn.Along(jnp.zeros((3, 4)), (0, 1)), (None, "model")),
}


def on_mesh(kind, specs=("data", "model")):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    return jax.device_put(np.ones((8, 4), np.float32), NamedSharding(mesh, P(*specs)))


def assert_lies(x, param, spec):
    wanted = NamedSharding(param.sharding.mesh, P(*spec))
    assert x.sharding.is_equivalent_to(wanted, x.ndim), (x.sharding, wanted)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("name", SLOTS)
def test_eagerly(name, kind):
    make, spec = SLOTS[name]
    param = on_mesh(kind)
    assert_lies(place(make(), param), param, spec)


@pytest.mark.parametrize("kind", BOTH)
def test_under_jit(kind):
    param = on_mesh(kind)
    placed = jax.jit(lambda p: {name: place(make(), p) for name, (make, _) in SLOTS.items()})(param)
    for name, (_, spec) in SLOTS.items():
        if name == "groups that a shard would cut" and kind is AxisType.Auto:
            continue  # with automatic axes a trace does not know the mesh
        assert_lies(placed[name], param, spec)


class rows(optfn.Leafwise):
    """A slot per pair of rows, and one of a shape that no axes explain."""

    Slots = optfn.scale_by_adam.Slots

    def init_leaf(self, param):
        pairs = optfn.Along(jnp.zeros((param.shape[0] // 2, 3)), (0, None))
        return self.Slots(pairs, jnp.zeros(5))

    def update_leaf(self, g, slots, param, t):
        return g, slots


@pytest.mark.parametrize("kind", BOTH)
def test_on_shapes(kind):
    param = on_mesh(kind)
    abstract = jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=param.sharding)
    slots = rows().init({"w": abstract}).slots["rows"]
    assert_lies(slots.mu["w"], param, ("data", None))
    assert_lies(slots.nu["w"], param, ())
    assert slots.mu["w"].shape == (4, 3)


def test_wrong_axes_are_refused():
    with pytest.raises(
        ValueError, match=r"slot of shape \(3,\), an axis of the param of shape \(2,"
    ):
        place(optfn.Along(jnp.zeros(3), (2,)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="for each axis"):
        place(optfn.Along(jnp.zeros(3), ()), jnp.ones((2, 3)))


def test_params_on_two_meshes():
    """Their scalars are on none, and a jitted update runs. (What it returns is on one, by jax.)"""
    auto = (AxisType.Auto, AxisType.Auto)
    line = jax.make_mesh((8,), ("data",), axis_types=auto[:1])
    grid = jax.make_mesh((2, 4), ("x", "y"), axis_types=auto)
    params = {
        "a": jax.device_put(np.ones((8, 4), np.float32), NamedSharding(line, P("data"))),
        "b": jax.device_put(np.ones((4, 8), np.float32), NamedSharding(grid, P("x", "y"))),
    }
    for tx in (optfn.adam(0.1), optfn.skip_nonfinite(optfn.sgd(0.1, 0.9)), optfn.prodigy()):
        state = tx.init(params)
        assert not state.count.committed
        updates, _ = jax.jit(tx.update)(params, state, params)
        assert np.isfinite(updates["b"]).all()


def test_the_params_and_the_state_apart_give_the_same_steps():
    """ZeRO-1 and its reverse, eagerly and under jit, to a rounding of the plain run's."""
    tx = optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adopt(0.1))
    plain = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    expected, after = tx.update(plain, tx.init(plain), plain)
    mesh = on_mesh(AxisType.Explicit).sharding.mesh
    whole, split = NamedSharding(mesh, P(None, None)), NamedSharding(mesh, P("data", "model"))
    for ours, theirs in ((whole, split), (split, whole)):
        params = jax.device_put(plain, ours)
        state = tx.init(jax.device_put(plain, theirs))
        for update in (tx.update, jax.jit(tx.update)):
            updates, new = update(params, state, params)
            assert updates.sharding == ours
            mu = new.slots["scale_by_adopt"].mu
            assert mu.sharding == theirs
            np.testing.assert_allclose(updates, expected, rtol=1e-6)
            np.testing.assert_allclose(mu, after.slots["scale_by_adopt"].mu, rtol=1e-6)


def test_functions_of_the_params_see_them_where_the_caller_put_them():
    mesh = on_mesh(AxisType.Explicit).sharding.mesh
    whole, split = NamedSharding(mesh, P(None, None)), NamedSharding(mesh, P("data", "model"))
    plain = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    seen = []

    def value_fn(p):
        seen.append(jax.typeof(p).sharding.spec)
        return jnp.sum(p**2)

    tx = optfn.lbfgs(memory_size=2)
    params, state = jax.device_put(plain, whole), tx.init(jax.device_put(plain, split))

    @jax.jit
    def update(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        return tx.update(grad, state, params, value=value, grad=grad, value_fn=value_fn)

    updates, _ = update(params, state)
    assert updates.sharding == whole
    assert len(seen) > 1
    assert set(seen) == {P(None, None)}
