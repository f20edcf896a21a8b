"""`store`: what it keeps, where it lies, and who sees through it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optfn
from optfn import storage
from optfn.storage.formats import Int8
from optfn.storage.selection import slots_in

PARAMS = {"w": jnp.ones((64, 96)), "b": jnp.ones(96), "small": jnp.ones((8, 8))}


def forms(state):
    return jax.tree.map(lambda x: (x.shape, x.dtype.name), state)


def gradients(steps, params=PARAMS):
    keys = jax.random.split(jax.random.key(0), steps)
    return [jax.tree.map(lambda p, k=k: jax.random.normal(k, p.shape), params) for k in keys]


@jax.jit
def train(tx, params, grads, state):
    for g in grads:
        params, state = optfn.step(tx, params, g, state)
    return params, state


def test_large_matrices_are_stored_and_all_else_is_exact():
    slots = optfn.store(optfn.adamw(1e-3), storage.int8()).init(PARAMS).slots["scale_by_adam"]
    assert type(slots.mu["w"]).__name__ == "Int8" and type(slots.nu["w"]).__name__ == "UInt8Roots"
    assert slots.mu["w"].codes.shape == (64, 96) and slots.mu["w"].scales.shape == (64, 2)
    assert slots.mu["b"].dtype == slots.nu["small"].dtype == jnp.float32


def test_leaves_says_which_params():
    def stored(leaves):
        tx = optfn.store(optfn.adam(1e-3), storage.bf16(), leaves)
        mu = tx.init(PARAMS).slots["scale_by_adam"].mu
        return {name for name, x in mu.items() if x.dtype == jnp.bfloat16}

    assert stored(None) == {"w"}
    assert stored(True) == {"w", "b", "small"}
    assert stored(lambda path, leaf: path == "b") == {"b"}
    assert stored({"w": False, "b": True, "small": True}) == {"b", "small"}


def test_a_dict_says_it_by_slot_and_by_kind():
    tx = optfn.store(
        optfn.chain(optfn.trace(0.9), optfn.adam(1e-3)),
        {"trace.trace": storage.fp8(), "signed": storage.bf16(), "nu": storage.factored()},
    )
    slots = tx.init(PARAMS).slots
    assert type(slots["trace"].trace["w"]).__name__ == "E4M3"
    assert slots["scale_by_adam"].mu["w"].dtype == jnp.bfloat16
    assert type(slots["scale_by_adam"].nu["w"]).__name__ == "RankOne"


def test_a_name_that_is_no_slot_is_refused():
    tx = optfn.store(optfn.adam(1e-3), {"mv": storage.bf16(), "signed": storage.bf16()})
    with pytest.raises(ValueError, match=r"'mv' is no slot.*scale_by_adam.mu, scale_by_adam.nu"):
        tx.init(PARAMS)


@pytest.mark.parametrize("codec", [storage.bf16(), storage.int8(), storage.int4()])
def test_it_walks_near_the_optimizer_in_float32(codec):
    tx = optfn.adamw(1e-2)
    stored = optfn.store(tx, codec)
    grads = gradients(20)
    exact, _ = train(tx, PARAMS, grads, tx.init(PARAMS))
    near, _ = train(stored, PARAMS, grads, stored.init(PARAMS))
    error = jnp.sqrt(jnp.mean((near["w"] - exact["w"]) ** 2)) / 1e-2
    assert error < {"bf16": 0.02, "int8": 0.1, "int4": 3.0}[type(codec).__name__]
    np.testing.assert_allclose(near["b"], exact["b"], rtol=1e-6)  # not stored


def test_the_state_is_a_fixed_point_and_names_stay():
    tx = optfn.store(optfn.adam(optfn.schedules.linear(1e-3, 0, 10)), storage.int8())
    state = tx.init(PARAMS)
    _, after = train(tx, PARAMS, gradients(2), state)
    assert forms(after) == forms(state)
    assert optfn.hyperparameters(tx, after)["learning_rate"] == pytest.approx(8e-4)
    again = optfn.reset(tx, after, PARAMS, "scale_by_adam")
    assert not np.asarray(again.slots["scale_by_adam"].mu["w"].codes).any()


def test_jit_and_abstract_init_agree_with_init():
    tx = optfn.store(optfn.soap(1e-3), storage.int8(), leaves=True)
    params = {"layer": {"kernel": jnp.ones((32, 64))}}
    state = tx.init(params)
    for other in (jax.jit(tx.init)(params), jax.eval_shape(tx.init, params)):
        assert forms(other) == forms(state)


def test_bytes_a_param():
    params = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)}

    def bytes_of(tx):
        return optfn.summary(tx, params).bytes_per_param

    assert bytes_of(optfn.store(optfn.adamw(1e-3), storage.int8())) <= 2.13
    assert bytes_of(optfn.store(optfn.adamw(1e-3), storage.int4())) <= 1.07
    assert bytes_of(optfn.store(optfn.muon(1e-3), storage.bf16(), True)) <= 2.01
    # 3 for the 24-bit param, 2 for the gradient.
    assert 2 + 2 + bytes_of(optfn.master(optfn.store(optfn.adamw(1e-3), storage.int8()))) <= 7.2


def test_a_run_goes_on_with_another_storage():
    plain = optfn.adamw(1e-2)
    grads = gradients(4)
    params, state = train(plain, PARAMS, grads, plain.init(PARAMS))
    stored = optfn.store(plain, storage.int8())
    kept = optfn.convert_state(stored, state, params)
    assert forms(kept) == forms(stored.init(params)) and kept.step == 4
    back = optfn.convert_state(plain, kept, params)
    assert forms(back) == forms(state)
    mu = state.slots["scale_by_adam"].mu["w"]
    bound = storage.int8().error_bound(mu)
    assert (abs(back.slots["scale_by_adam"].mu["w"] - mu) <= bound).all()
    with pytest.raises(ValueError, match=r"convert_state\(.*does not fit"):
        optfn.convert_state(optfn.sgd(1e-2, 0.9), state, params)


def test_stochastic_rounding_moves_what_nearest_leaves():
    tx = optfn.chain(optfn.ema(0.999, debias=False), optfn.scale_by_learning_rate(0.0))
    grads = [{"w": jnp.ones((64, 64))}]
    state = {"nearest": [], "stochastic": []}
    for rounding, found in state.items():
        stored = optfn.store(tx, storage.bf16(), rounding=rounding)

        @jax.jit
        def run(state, stored=stored):
            def body(state, _):
                return stored.update(grads[0], state)[1], None

            return jax.lax.scan(body, state, length=2000)[0]

        found.append(run(stored.init(grads[0])).slots["ema"].ema["w"].astype(jnp.float32))
    exact = 1 - 0.999**2000
    assert abs(state["stochastic"][0].mean() - exact) < 0.01
    assert abs(state["nearest"][0].mean() - exact) > 0.1


@pytest.mark.parametrize("explicit", [False, True], ids=["automatic", "explicit"])
def test_codes_and_scales_lie_where_their_param_does(explicit):
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    spec = PartitionSpec("x", "y")
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((64, 256)), NamedSharding(mesh, spec))}
        tx = optfn.store(optfn.adam(1e-3), storage.int8())
        state = tx.init(params)
        step = jax.jit(optfn.step)
        new_params, after = step(tx, params, params, state)
        text = step.lower(tx, params, params, state).compile().as_text()
    for part in jax.tree.leaves((state.slots, after.slots)):
        assert part.sharding.spec == spec, part
    assert new_params["w"].sharding.spec == spec
    assert not any(word in text for word in ("all-gather", "all-to-all", "all-reduce", "permute"))


def test_a_store_in_a_store_keeps_what_it_chose():
    inner = optfn.store(optfn.adam(1e-3), {"nu": storage.bf16()})
    outer = optfn.store(inner, storage.int8())
    state = outer.init(PARAMS)
    slots = state.slots["scale_by_adam"]
    assert type(slots.mu["w"]).__name__ == "Int8" and slots.nu["w"].dtype == jnp.bfloat16
    _, after = train(outer, PARAMS, gradients(2), state)
    assert forms(after) == forms(state)


@pytest.mark.parametrize("name", ["int8", "int4", "fp8", "bfloat16 scales"])
def test_a_slow_average_moves_with_stochastic_rounding(name):
    """Nothing stands still, neither entries nor the largest one of a group, which is its scale."""
    codec = {"bfloat16 scales": storage.int8(scale_dtype="bfloat16")}.get(name)
    codec = codec or getattr(storage, name)()
    moment = jnp.linspace(0.25, 1.0, 256).reshape(2, 128)

    @jax.jit
    def decayed(key):
        def body(stored, key):
            return storage.encode_like(stored, 0.999 * storage.decode(stored), key), None

        keys = jax.random.split(key, 1000)
        return jax.lax.scan(body, codec.encode(moment, "non_negative"), keys)[0]

    left = storage.decode(decayed(jax.random.key(0)))
    share = float(jnp.mean(left) / jnp.mean(moment))
    assert share == pytest.approx(0.999**1000, rel=0.15)


def test_slots_of_optax_stay_as_they_are():
    tx = optfn.store(optfn.chain(optfn.scale_by_adam(), optax.trace(0.9)), storage.int8())
    state = tx.init(PARAMS)
    assert type(state.slots["scale_by_adam"].mu["w"]).__name__ == "Int8"
    stored = optfn.store(optax.adam(1e-3), storage.int8())
    assert forms(stored.init(PARAMS)) == forms(optfn.from_optax(optax.adam(1e-3)).init(PARAMS))


def test_a_dict_fits_params_of_which_nothing_is_stored():
    tx = optfn.store(optfn.adamw(1e-3), {"mu": storage.bf16(), "nu": storage.int8()})
    for params in ({}, {"x": jnp.ones(())}, {"x": None}):
        tx.init(params)


def test_a_slot_is_as_large_as_the_array_it_is_read_as():
    """Not as its codes or sums, so that what was chosen for the array is chosen for them."""
    for codec in (storage.int4(), {"nu": storage.factored()}):
        state = jax.eval_shape(optfn.store(optfn.adam(1e-3), codec).init, PARAMS)
        chosen = [slot.is_chosen for slot in slots_in(state.slots, PARAMS, None)]
        assert chosen == [False, False, True] * 2


def test_a_lane_of_stored_state_is_the_run_alone():
    """As in a sweep; up to entries near half a code, which other programs round otherwise."""
    rates = np.asarray([1e-3, 1e-2], np.float32)
    start, grads = PARAMS["w"], jnp.stack([g["w"] for g in gradients(4)])

    def end(rate):
        tx = optfn.store(optfn.adamw(rate), storage.int8())

        def body(carry, g):
            return optfn.step(tx, carry[0], g, carry[1]), None

        return jax.lax.scan(body, (start, tx.init(start)), grads)[0]

    (lanes, states), (alone, _) = jax.jit(lambda: (jax.vmap(end)(rates), end(rates[1])))()
    assert states.slots["scale_by_adam"].mu.codes.dtype == jnp.int8
    np.testing.assert_allclose(lanes[1], alone, rtol=0, atol=5e-4)
    moved = np.mean(abs(lanes - start[None]), (1, 2))
    np.testing.assert_allclose(moved[1] / moved[0], 10, rtol=0.01)


def test_a_run_of_optax_goes_on_in_eight_bits():
    theirs, tx = optax.adamw(1e-2), optfn.store(optfn.adamw(1e-2), storage.int8())
    params = {"w": PARAMS["w"]}
    state = jax.jit(theirs.update)(gradients(1, params)[0], theirs.init(params), params)[1]
    kept = optfn.from_optax_state(tx, state, params)
    assert forms(kept) == forms(jax.eval_shape(tx.init, params)) and kept.step == 1
    mu, stored = state[0].mu["w"], kept.slots["scale_by_adam"].mu["w"]
    assert (abs(storage.decode(stored) - mu) <= storage.int8().error_bound(mu)).all()


def test_a_curvature_may_be_negative():
    tx = optfn.store(optfn.sophia(1e-2), storage.int8())
    assert type(jax.eval_shape(tx.init, PARAMS).slots["scale_by_sophia"].nu["w"]) is Int8


def test_a_reset_inside_is_in_the_precision_that_is_read(x64):
    params = jax.tree.map(jnp.float64, PARAMS)
    tx = optfn.store(optfn.lookahead(optfn.adam(1e-2), 2, 0.5, reset_state=True), storage.int8())
    state = jax.eval_shape(tx.init, params)
    assert forms(jax.eval_shape(optfn.step, tx, params, params, state)[1]) == forms(state)


def test_what_is_exact_stays_in_its_own_dtype():
    params = jax.tree.map(jnp.bfloat16, PARAMS)
    tx = optfn.store(optfn.compensated(optfn.adam(1e-3)), storage.int8())
    state = jax.jit(tx.init)(params)
    params, after = jax.jit(optfn.step)(tx, params, params, state)
    assert forms(after) == forms(state)
    full = optfn.master_params(tx, after, params)
    np.testing.assert_allclose(full["w"], 1 - 1e-3, rtol=1e-5)
