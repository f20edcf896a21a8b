"""Loss scaling for float16."""

import hypothesis
import jax
import jax.numpy as jnp
import jmp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import optfn

STEPS = 24


@jax.jit
def run(tx, overflows):
    """The scale after each step, and the last state, where some gradients overflow."""
    params = jnp.ones(2)

    def step(state, overflow):
        g = jnp.where(overflow, jnp.asarray([1.0, jnp.inf]), jnp.ones(2))
        updates, state = tx.update(g, state, params)
        return state, (optfn.current_loss_scale(state), updates)

    state, (scales, updates) = jax.lax.scan(step, tx.init(params), overflows)
    return scales, updates, state


def oracle(overflows, scale, growth, backoff, interval, smallest, largest):
    """The scale after each step, by torch's rule with bounds."""
    good, path = 0, []
    for overflow in overflows:
        if overflow:
            good, scale = 0, max(scale * backoff, smallest)
        else:
            good += 1
            if good == interval:
                good, scale = 0, min(scale * growth, largest)
        path.append(scale)
    return path


patterns = st.lists(st.booleans(), min_size=STEPS, max_size=STEPS)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    patterns,
    st.integers(-2, 24),
    st.sampled_from([1.0, 2.0, 4.0]),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(1, 6),
)
def test_the_scale_goes_as_it_should(overflows, exponent, growth, backoff, interval):
    numbers = (2.0**exponent, growth, backoff, float(interval), 0.25, 2.0**24)
    scales, updates, state = run(optfn.loss_scale(optfn.sgd(1.0), *numbers), np.asarray(overflows))
    wanted = oracle(overflows, *numbers)
    np.testing.assert_array_equal(scales, wanted)
    used = np.asarray([2.0**exponent, *wanted[:-1]])
    exact = np.where(overflows, 0, -1 / used)
    np.testing.assert_array_equal(updates, np.stack([exact, exact], 1))
    skips = state.slots["loss_scale"].skips
    assert int(skips.total) == sum(overflows)
    assert int(skips.inner.step) == STEPS - sum(overflows)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(patterns, st.integers(0, 12), st.integers(1, 6))
def test_the_scale_goes_as_that_of_jmp(overflows, exponent, period):
    tx = optfn.loss_scale(
        optfn.sgd(1.0),
        2.0**exponent,
        growth_interval=float(period),
        max_scale=2.0**60,  # jmp has no bound
    )
    scales, _, _ = run(tx, np.asarray(overflows))
    theirs = jmp.DynamicLossScale(jnp.float32(2.0**exponent), period=period)
    path = []
    for overflow in overflows:
        theirs = theirs.adjust(jnp.asarray(not overflow))
        path.append(float(theirs.loss_scale))
    np.testing.assert_array_equal(scales, path)


def test_the_defaults_are_torch_s_with_bounds():
    """Two thousand good steps double the scale, but not above 2^24; one bad one halves it."""
    tx = optfn.loss_scale(optfn.sgd(1.0))
    overflows = np.zeros(20_001, bool)
    overflows[-1] = True
    scales, _, _ = run(tx, overflows)
    np.testing.assert_array_equal(scales[1998:2000], [2.0**15, 2.0**16])
    assert (scales[-2], scales[-1]) == (2.0**24, 2.0**23)
    scales, _, _ = run(tx, np.ones(20, bool))
    assert scales[-1] == 1


def test_a_scale_may_be_static():
    tx = optfn.loss_scale(optfn.sgd(1.0), 1024.0, growth_factor=1, backoff_factor=1)
    scales, _, _ = run(tx, np.arange(4100) % 7 == 3)
    assert (scales == 1024).all()


@pytest.mark.parametrize("exponent", [-3, 0, 10, 24])
def test_powers_of_two_divide_without_rounding(exponent):
    """The optimizer inside takes, bit for bit, the steps it takes with the gradient itself."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    inner = optfn.chain(optfn.clip_by_global_norm(1.0), optfn.adamw(0.1))
    scaled, plain = (optfn.loss_scale(inner, 2.0**e, growth_interval=3.0) for e in (exponent, 0))
    plain = optfn.replace(plain, growth_factor=1.0)
    states, update = [scaled.init(params), plain.init(params)], jax.jit(update_of)
    for _ in range(8):
        g = np.float32(rng.normal(size=(4, 3)))
        both = []
        for i, tx in enumerate((scaled, plain)):
            large = {"w": g * optfn.current_loss_scale(states[i])}
            updates, states[i] = update(tx, large, states[i], params)
            both.append(updates["w"])
        np.testing.assert_array_equal(*both)
    inside = [s.slots["loss_scale"].skips.inner for s in states]
    jax.tree.map(np.testing.assert_array_equal, *inside)
    assert optfn.current_loss_scale(states[0]) != optfn.current_loss_scale(states[1])


def update_of(tx, grads, state, params):
    return tx.update(grads, state, params)


def test_gradients_have_their_size_where_they_are_clipped():
    g = {"w": jnp.asarray([3.0, 4.0])}
    tx = optfn.loss_scale(optfn.chain(optfn.clip_by_global_norm(10.0), optfn.sgd(1.0)), 256.0)
    updates, _ = tx.update({"w": 256 * g["w"]}, tx.init(g))
    np.testing.assert_array_equal(updates["w"], -g["w"])


# What it is for.


def small_gradient(params, scale):
    """The gradient, times `scale`, of a loss whose gradient is 1e-9 for every entry, in float16."""

    def loss(params):
        hidden = params["w"].astype(jnp.float16) * jnp.float16(1e-5)
        return scale * (hidden * jnp.float16(1e-4)).sum().astype(jnp.float32)

    return jax.grad(loss)(params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_gradients_too_small_for_float16_survive(dtype):
    params = {"w": jnp.ones(3, dtype)}
    assert not small_gradient(params, 1.0)["w"].any()
    tx = optfn.loss_scale(optfn.chain(optfn.scale(1e9), optfn.sgd(1.0)))
    state = tx.init(params)
    grads = small_gradient(params, optfn.current_loss_scale(state))
    updates, state = tx.update(grads, state, params)
    assert updates["w"].dtype == dtype
    # Two roundings to float16, of 1e-5 to a denormal with eight bits.
    np.testing.assert_allclose(np.float32(updates["w"]), -1, rtol=2**-8)


def test_a_scale_that_is_too_large_comes_down_to_one_that_fits():
    """Gradients of 3 fit with a scale up to 2^14; 2^24 takes ten steps to get there."""
    params = {"w": jnp.ones(2, jnp.float16)}
    tx = optfn.loss_scale(optfn.sgd(2.0**-4), 2.0**24)

    @jax.jit
    def step(carry, _):
        params, state = carry

        def loss(p):
            return optfn.current_loss_scale(state) * (3 * p["w"]).sum().astype(jnp.float32)

        params, state = optfn.step(tx, params, jax.grad(loss)(params), state)
        return (params, state), optfn.current_loss_scale(state)

    (params, state), scales = jax.lax.scan(step, (params, tx.init(params)), length=12)
    np.testing.assert_array_equal(scales, 2.0 ** np.maximum(23 - np.arange(12), 14))
    np.testing.assert_array_equal(params["w"], 1 - 2 * 3 * 2.0**-4)
    assert int(state.slots["loss_scale"].skips.total) == 10


def test_it_gives_up_where_no_scale_helps():
    _, _, state = run(optfn.loss_scale(optfn.sgd(1.0)), np.ones(30, bool))
    optfn.raise_if_gave_up(state)
    _, _, state = run(optfn.loss_scale(optfn.sgd(1.0)), np.ones(31, bool))
    with pytest.raises(FloatingPointError, match="'slots/loss_scale/skips' it skipped the last 31"):
        optfn.raise_if_gave_up(state)


def test_a_step_that_is_not_finite_for_other_reasons_leaves_the_scale():
    tx = optfn.loss_scale(optfn.chain(optfn.sgd(1.0), optfn.scale(float("inf"))))
    updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    assert not updates.any()
    assert state.slots["loss_scale"].skips.skipped
    assert optfn.current_loss_scale(state) == 2**15


def test_derivatives_do_not_see_overflows_nor_the_scale():
    def last(tx):
        return jnp.sum(run(tx, np.arange(STEPS) % 5 == 2)[1])

    tx = optfn.as_arrays(optfn.loss_scale(optfn.sgd(1.0), 4.0, growth_interval=2.0))
    slopes = jax.jit(jax.grad(last))(tx)
    inner, own = slopes.transform.stages[-1].learning_rate, slopes.rebuilt(transform=None)
    assert float(inner) != 0 and np.isfinite(inner)
    assert not any(jax.tree.leaves(own))


# Reading the scale.


def test_the_scale_is_read_anywhere_in_a_state():
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    scaled = optfn.loss_scale(optfn.adam(0.1), 8.0)
    for tx in (
        scaled,
        optfn.chain(optfn.zero_nans(), scaled),
        optfn.freeze(scaled, {"w": False, "b": True}),
        optax.chain(optax.zero_nans(), scaled),
    ):
        state = tx.init(params)
        assert jax.jit(optfn.current_loss_scale)(state) == 8
    lanes = jax.vmap(lambda scale: optfn.loss_scale(optfn.sgd(0.1), scale).init(params))(
        jnp.asarray([1.0, 2.0])
    )
    np.testing.assert_array_equal(optfn.current_loss_scale(lanes), [1, 2])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_scale_is_wide(dtype, x64):
    state = optfn.loss_scale(optfn.sgd(0.1)).init(jnp.ones(2, dtype))
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    assert optfn.current_loss_scale(state).dtype == wide


def test_bad_input_of_current_loss_scale():
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    with pytest.raises(ValueError, match="must have one loss_scale, found none"):
        optfn.current_loss_scale(optfn.adam(0.1).init(params))
    one = optfn.loss_scale(optfn.sgd(0.1))
    both = optfn.partition({"w": one, "b": one}, {"w": "w", "b": "b"})
    with pytest.raises(ValueError, match=r"found 2: at 'slots/partition/b/loss_scale', at 'slots"):
        optfn.current_loss_scale(both.init(params))
