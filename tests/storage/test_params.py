"""Params of 16 bits that lose nothing: kept in full beside them, or rounded stochastically."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from walk import walked

import optfn

KEEPERS = {
    "compensated": optfn.compensated,
    "master 24": optfn.master,
    "master 32": partial(optfn.master, bits=32),
}
BYTES = {"compensated": 2, "master 24": 1, "master 32": 4}
# What is lost of a param at a step, in bfloat16 and float16: see the docstrings.
LOST = {
    "compensated": (2.0**-17, 2.0**-17),
    "master 24": (2.0**-15.8, 2.0**-18.8),
    "master 32": (2.0**-24, 2.0**-24),
}
NARROW = [jnp.bfloat16, jnp.float16]

every_keeper = pytest.mark.parametrize("name", KEEPERS)
every_dtype = pytest.mark.parametrize("dtype", NARROW, ids=["bfloat16", "float16"])


def apart(tx, params, grads, state):
    """A step by `update`, with gradients and so updates in the dtype of the params."""
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    updates, state = tx.update(grads, state, params)
    return optfn.apply_updates(params, updates), state


def test_bfloat16_stands_still_without_and_moves_with():
    """Adam at 1e-3 from 1 towards 0.5, for 500 steps."""

    def run(tx, dtype, **how):
        def body(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda p: p - jnp.asarray(0.5, p.dtype), params)
            return optfn.step(tx, params, grads, state, **how), None

        start = {"w": jnp.ones((4, 64), dtype)}
        end = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=500)[0][0])(start)
        assert end["w"].dtype == dtype
        return np.float32(end["w"])

    tx = optfn.adam(1e-3)
    np.testing.assert_array_equal(run(tx, jnp.bfloat16), 1)
    exact = run(tx, jnp.float32)
    assert exact.max() < 0.7
    for keep in KEEPERS.values():
        np.testing.assert_allclose(run(keep(tx), jnp.bfloat16), exact, rtol=2**-7)
    moved = run(tx, jnp.bfloat16, rounding="stochastic")
    # 500 draws between neighbours 2^-8 apart, or nearer, whose mean is the step.
    assert abs(moved.mean() - exact.mean()) < 5 * 2**-8 * (500 / 4) ** 0.5 / moved.size**0.5
    assert len(np.unique(moved)) > 4
    other = run(tx, jnp.bfloat16, rounding="stochastic", rounding_seed=1)
    assert (moved != other).any()


@every_keeper
@every_dtype
def test_the_full_params_walk_with_float32(name, dtype):
    """Every step loses a known share of a param, so that the loss grows no faster than the steps.

    The gradients do not depend on the params, and neither do Adam's updates.
    """
    tx, steps = optfn.adam(1e-3), 30
    start = {"w": jnp.linspace(-2, 2, 128, dtype=dtype), "scale": jnp.ones(3), "none": None}
    wave = jnp.arange(steps)[:, None]
    grads = {
        "w": jnp.sin(jnp.arange(128.0)[None] + 0.1 * wave),
        "scale": jnp.cos(jnp.arange(3.0)[None] + wave),
        "none": None,
    }
    keeper = KEEPERS[name](tx)
    params, state = walked(keeper, start, grads)
    wide, _ = walked(tx, jax.tree.map(jnp.float32, start), grads)
    full = optfn.master_params(keeper, state, params)
    assert full["w"].dtype == jnp.float32 and full["none"] is None
    lost = LOST[name][NARROW.index(dtype)]
    largest = abs(np.asarray(wide["w"])) + steps * 1e-3
    floor = 2.0**-25 if dtype == jnp.float16 else 0  # half its smallest step
    assert (abs(full["w"] - wide["w"]) <= steps * (lost * largest + floor + 2.0**-24)).all()
    np.testing.assert_allclose(full["scale"], wide["scale"], rtol=1e-6)
    np.testing.assert_array_equal(params["w"], full["w"].astype(dtype))


@every_keeper
def test_update_in_sixteen_bits_lands_where_step_does(name):
    """Where a step does not halve or double the param; beyond it too, if the rest has room."""
    tx = KEEPERS[name](optfn.adam(1e-2))
    start = {"w": jnp.linspace(0.5 if name == "master 24" else -2, 2, 128, dtype=jnp.bfloat16)}
    grads = {"w": jnp.sin(jnp.arange(20.0)[:, None] + jnp.arange(128.0)[None]).astype(jnp.bfloat16)}
    once = walked(tx, start, grads)
    twice = walked(tx, start, grads, step=apart)
    chex.assert_trees_all_equal(once, twice)


@every_keeper
def test_a_step_of_zero_changes_nothing(name):
    tx = KEEPERS[name](optfn.sgd(1e-2))
    start = {"w": jnp.linspace(-2, 2, 1024, dtype=jnp.bfloat16)}
    moved = walked(tx, start, {"w": jnp.sin(jnp.arange(1024.0))[None]})
    still = jax.jit(optfn.step)(tx, moved[0], {"w": jnp.zeros(1024)}, moved[1])
    full, same = (optfn.master_params(tx, state, params) for params, state in (moved, still))
    chex.assert_trees_all_equal(same, full)
    # The first step more than halved the others, which so may not be the nearest.
    large = abs(start["w"]) > 0.1
    np.testing.assert_array_equal(still[0]["w"][large], moved[0]["w"][large])


@every_keeper
def test_params_that_are_not_narrow_are_left_to_the_optimizer(name, x64):
    tx = optfn.partition(
        {"train": KEEPERS[name](optfn.sgd(0.1, 0.9)), "keep": optfn.set_to_zero()},
        optfn.by_path({"count": "keep", "**": "train"}),
    )
    params = {
        "w": jnp.ones(4, jnp.bfloat16),
        "wide": jnp.ones(4, jnp.float32),
        "double": jnp.ones(4, jnp.float64),
        "complex": jnp.ones(4, jnp.complex64),
        "count": jnp.arange(4),
        "none": None,
    }
    grads = jax.tree.map(lambda p: jnp.full_like(p, 1), params)
    new, state = jax.jit(optfn.step)(tx, params, grads, tx.init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
    np.testing.assert_array_equal(new["count"], params["count"])
    rest = jax.tree.leaves(state.slots["partition"]["train"][type(KEEPERS[name](tx)).__name__].rest)
    assert [x.shape for x in rest] == [(4,)]
    plain = optfn.sgd(0.1, 0.9)
    own = {k: params[k] for k in ("wide", "double", "complex")}
    alone, _ = jax.jit(optfn.step)(plain, own, {k: grads[k] for k in own}, plain.init(own))
    chex.assert_trees_all_equal({k: new[k] for k in own}, alone)


@every_keeper
def test_params_that_are_set_from_outside_are_taken_over(name):
    tx = KEEPERS[name](optfn.sgd(1e-3))
    _, state = walked(tx, {"w": jnp.ones(4, jnp.bfloat16)}, {"w": jnp.ones((3, 4))})
    set_to = {"w": jnp.full(4, 3, jnp.bfloat16)}
    full = optfn.master_params(tx, state, set_to)["w"]
    assert (abs(full - 3) < 2**-7).all()
    new, _ = jax.jit(optfn.step)(tx, set_to, {"w": jnp.ones(4)}, state)
    np.testing.assert_allclose(np.float32(new["w"]), 3, rtol=2**-8)


@every_keeper
def test_bytes_of_the_state(name):
    plain, kept = optfn.adam(1e-3), KEEPERS[name](optfn.adam(1e-3))
    params = {"w": jax.ShapeDtypeStruct((64, 32), jnp.bfloat16)}

    def size(tx):
        leaves = jax.tree.leaves(tx.init(params).slots)
        return sum(x.size * x.dtype.itemsize for x in leaves)

    assert size(kept) - size(plain) == BYTES[name] * 64 * 32


WRAPPERS = {
    "accumulate": lambda tx: optfn.accumulate(tx, 2),
    "skip_nonfinite": lambda tx: optfn.skip_nonfinite(tx),
    "partition": lambda tx: optfn.partition(
        {"a": tx, "b": optfn.sgd(0.1)}, optfn.by_path({"w": "a", "b": "b"})
    ),
    "chain": lambda tx: optfn.chain(optfn.clip_by_global_norm(1.0), tx),
}


@every_keeper
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_inside_wrappers(name, wrapper):
    """Where the wrapped optimizer's full params go, the wrapper goes with float32 params."""
    wrap, keep = WRAPPERS[wrapper], KEEPERS[name]
    start = {"w": jnp.linspace(0.5, 2, 16, dtype=jnp.bfloat16), "b": jnp.ones(3)}
    grads = {"w": jnp.sin(jnp.arange(96.0)).reshape(6, 16), "b": jnp.ones((6, 3))}
    if wrapper == "skip_nonfinite":
        grads["w"] = grads["w"].at[2, 3].set(jnp.nan)
    tx = wrap(keep(optfn.adam(1e-3)))
    params, state = walked(tx, start, grads)
    wide, _ = walked(wrap(optfn.adam(1e-3)), jax.tree.map(jnp.float32, start), grads)
    full = optfn.master_params(tx, state, params)
    chex.assert_trees_all_close(full, wide, rtol=6 * LOST[name][0])
    assert (np.float32(params["w"]) != np.float32(start["w"])).any()
    np.testing.assert_array_equal(params["w"], full["w"].astype(jnp.bfloat16))


@every_keeper
def test_an_average_inside_is_of_the_full_params(name):
    tx = KEEPERS[name](optfn.ema_of_params(optfn.adam(1e-3), 0.9))
    start = {"w": jnp.ones(8, jnp.bfloat16)}
    grads = {"w": jnp.ones((9, 8))}
    params, state = walked(tx, start, grads)
    wide_tx = optfn.ema_of_params(optfn.adam(1e-3), 0.9)
    wide, wide_state = walked(wide_tx, jax.tree.map(jnp.float32, start), grads)
    found = optfn.evaluation_params(tx, state, params)
    assert found["w"].dtype == jnp.bfloat16
    expected = optfn.evaluation_params(wide_tx, wide_state, wide)["w"]
    np.testing.assert_array_equal(found["w"], expected.astype(jnp.bfloat16))
    assert (found["w"] != params["w"]).any()


@every_keeper
def test_nothing_may_change_its_updates(name):
    kept = KEEPERS[name](optfn.adam(1e-3))
    with pytest.raises(ValueError, match=f"{type(kept).__name__}.*keeps params"):
        optfn.chain(kept, optfn.scale(0.5))
    with pytest.raises(ValueError, match="needs the params"):
        params = {"w": jnp.ones(2, jnp.bfloat16)}
        kept.update(params, kept.init(params))


@every_keeper
def test_sharded_as_the_params_are(name):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    place = NamedSharding(mesh, P("data"))
    tx = KEEPERS[name](optfn.adam(1e-3))
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((16, 4), jnp.bfloat16), place)}
        state = tx.init(params)
        step = jax.jit(optfn.step, donate_argnums=(1, 3))
        grads = {"w": jax.device_put(jnp.ones((16, 4)), place)}
        compiled = step.lower(tx, params, grads, state).compile()
        text = compiled.as_text()
        assert not any(op in text for op in ("all-gather", "all-reduce", "all-to-all"))
        params, state = step(tx, params, grads, state)
        (rest,) = jax.tree.leaves(state.slots[tx.name].rest)
        assert rest.sharding.is_equivalent_to(place, 2)
        assert params["w"].sharding.is_equivalent_to(place, 2)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn], ids=lambda x: jnp.dtype(x).name
)
def test_stochastic_rounding_of_params_is_right_in_the_mean(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-4, 4, 64), dtype)
    update = np.float32(rng.uniform(-0.1, 0.1, 64))
    n = 4000

    @jax.jit
    def moments(keys):
        add = partial(optfn.apply_updates, x, update, rounding="stochastic")
        new = jax.vmap(lambda key: add(key=key))(keys)
        assert new.dtype == dtype
        new = new.astype(jnp.float32) - (x.astype(jnp.float32) + update)[None]
        return new.mean(0), new.std(0)

    error, deviation = moments(jax.random.split(jax.random.key(0), n))
    rare = 10 * 4 * float(jnp.finfo(dtype).eps) / n  # what a few of the draws add
    assert (abs(error) <= 5 * deviation / n**0.5 + rare).all()
    assert (deviation > 0).mean() > 0.9


def test_stochastic_rounding_leaves_what_needs_none():
    params = {
        "w": jnp.ones(3),
        "exact": jnp.ones(3, jnp.bfloat16),
        "z": jnp.ones(3, jnp.complex64),
        "count": jnp.arange(3),
        "none": None,
    }
    updates = {
        "w": jnp.full(3, 1e-3),
        "exact": jnp.full(3, 2.0**-7, jnp.bfloat16),
        "z": jnp.full(3, 1e-3j, jnp.complex64),
        "count": jnp.arange(3),
        "none": None,
    }
    nearest = optfn.apply_updates(params, updates)
    how = {"rounding": "stochastic", "key": jax.random.key(0)}
    chex.assert_trees_all_equal(optfn.apply_updates(params, updates, **how), nearest)
    bad = {"w": jnp.asarray([jnp.nan, jnp.inf, 3e38], jnp.bfloat16)}
    new = optfn.apply_updates(bad, {"w": jnp.asarray([0.0, 0, 3e38])}, **how)
    np.testing.assert_array_equal(np.float32(new["w"]), [np.nan, np.inf, np.inf])


def test_wrong_arguments_get_a_sentence():
    p = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"rounding=.*'nearest', 'stochastic'.*found 'up'"):
        optfn.apply_updates(p, p, rounding="up")
    with pytest.raises(ValueError, match=r"apply_updates\(key=...\).*needs a random key"):
        optfn.apply_updates(p, p, rounding="stochastic")
    tx = optfn.sgd(0.1)
    with pytest.raises(ValueError, match=r"rounding_seed.*whole number.*found 0\.5"):
        optfn.step(tx, p, p, tx.init(p), rounding="stochastic", rounding_seed=0.5)
    with pytest.raises(ValueError, match=r"bits.*24, 32.*16"):
        optfn.master(tx, bits=16)
    with pytest.raises(TypeError, match=r"master.*must be an optfn transform"):
        optfn.master(optax.identity)
    with pytest.raises(ValueError, match=r"neither a master\(...\) nor a compensated\(...\)"):
        optfn.master_params(tx, tx.init(p), p)
