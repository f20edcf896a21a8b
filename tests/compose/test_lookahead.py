"""Lookahead: the fast params are the params, the slow ones are evaluated at."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax_faults import wrong_in_optax

import optfn
from optfn import schedules

STEPS = 14
RNG = np.random.default_rng(0)
GRADS = {"w": RNG.normal(size=(STEPS, 2, 3)), "b": RNG.normal(size=(STEPS, 2))}
START = {"w": RNG.normal(size=(2, 3)), "b": RNG.normal(size=2)}


@jax.jit
def paths(tx, start, grads):
    """The params, and the params to evaluate at, after each step."""

    def step(carry, g):
        params, state = optfn.step(tx, carry[0], g, carry[1])
        return (params, state), (params, optfn.evaluation_params(tx, state, params))

    return jax.lax.scan(step, (start, tx.init(start)), grads)[1]


def closed_form(period, size, rate=0.1):
    """Gradient descent ahead of slow params, in two loops as the paper has it."""
    fasts, slows = {}, {}
    for name, start in START.items():
        fast, slow, fasts[name], slows[name] = start, start, [], []
        for t, g in enumerate(GRADS[name], 1):
            fast = fast - rate * g
            if t % period == 0:
                fast = slow = slow + size * (fast - slow)
            fasts[name].append(fast)
            slows[name].append(slow)
    return fasts, slows


def assert_close(a, b, **tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, np.asarray(y), **tolerance), dict(a), dict(b)
    )


@pytest.mark.parametrize(("period", "size"), [(1, 0.3), (5, 0.5), (20, 0.5)])
def test_the_slow_params_follow_every_few_updates(period, size, x64):
    found = paths(optfn.lookahead(optfn.sgd(0.1), period, size), START, GRADS)
    for path, wanted in zip(found, closed_form(period, size), strict=True):
        assert_close(path, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("period", [1, 3])
def test_both_paths_are_optax_s(period, reset):
    start, grads = jax.tree.map(jnp.float32, (START, GRADS))
    ours = paths(optfn.lookahead(optfn.sgd(0.1, 0.9), period, 0.4, reset), start, grads)
    theirs = optax.lookahead(optax.sgd(0.1, 0.9), period, 0.4, reset)

    def step(carry, g):
        updates, state = theirs.update(g, carry[1], carry[0])
        pair = optax.apply_updates(carry[0], updates)
        return (pair, state), pair

    pair = optax.LookaheadParams.init_synced(start)
    path = jax.jit(lambda pair: jax.lax.scan(step, (pair, theirs.init(pair)), grads)[1])(pair)
    assert_close(ours[0], path.fast, atol=2e-6)
    assert_close(ours[1], path.slow, atol=2e-6)


def test_with_a_whole_step_it_is_the_optimizer_itself():
    """Bit for bit, op by op: what is compiled together may be rounded otherwise."""
    plain, ahead = optfn.adam(0.1), optfn.lookahead(optfn.adam(0.1), 2, 1.0)
    params = jax.tree.map(jnp.float32, START)
    states = plain.init(params), ahead.init(params)
    for t in range(3):
        grads = jax.tree.map(lambda g, t=t: jnp.float32(g[t]), GRADS)
        wanted, plain_state = plain.update(grads, states[0], params)
        found, ahead_state = ahead.update(grads, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        states, params = (plain_state, ahead_state), optfn.apply_updates(params, found)


def test_bfloat16_params_start_each_round_at_rounded_slow_ones():
    """The slow params themselves are float32, so that small moves add up in them."""
    start = jnp.ones(4, jnp.bfloat16)
    grads = jnp.full((400, 4), -0.5, jnp.bfloat16)
    # A step of 2^-7 is one unit in the last place of the params; half of it would be lost.
    tx = optfn.lookahead(optfn.sgd(2.0**-6), 1, 0.125)
    slow = np.asarray(paths(tx, start, grads)[1], float)
    assert slow[-1, 0] > 1.3


def test_a_reset_starts_the_moments_the_steps_and_the_schedules_afresh():
    rate = schedules.piecewise_constant([0.1, 0.01], [1])
    tx = optfn.lookahead(optfn.chain(optfn.scale_by_adam(), optfn.sgd(rate)), 2, 0.5, True)
    params = jnp.ones(3)
    state = tx.init(params)
    rates = []
    for _ in range(5):
        rates.append(float(optfn.hyperparameters(tx, state)["learning_rate"]))
        params, state = optfn.step(tx, params, params, state)
        fast = state.slots["lookahead"].fast
        assert int(fast.step) == int(state.step) % 2
        assert bool(fast.slots["scale_by_adam"].mu.any()) == (int(state.step) % 2 == 1)
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.1, 0.01, 0.1], rtol=1e-6)
    assert int(state.step) == 5


def test_a_reset_is_a_selection():
    """optax 0.2.8 multiplies the old state by zero: an overflow in it becomes NaN."""
    params, huge = jnp.ones(2), jnp.full(2, 1e25)
    ours = optfn.lookahead(optfn.adam(0.1), 1, 0.5, reset_state=True)
    updates, state = ours.update(huge, ours.init(params), params)
    updates, state = ours.update(params, state, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, state)))
    theirs = optax.lookahead(optax.adam(0.1), 1, 0.5, reset_state=True)
    pair = optax.LookaheadParams.init_synced(params)
    _, state = theirs.update(huge, theirs.init(pair), pair)
    finite = all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    wrong_in_optax(not finite)


def test_a_reset_takes_the_params_after_the_synchronization():
    """For those that hold where they started, as Prodigy does."""
    tx = optfn.lookahead(optfn.prodigy(estim_lr0=0.1), 1, 0.5, reset_state=True)
    params = jnp.ones(3)
    state = tx.init(params)
    params, state = optfn.step(tx, params, params, state)
    start = state.slots["lookahead"].fast.slots["scale_by_prodigy"].start
    np.testing.assert_allclose(start, params, rtol=1e-6)
    assert not np.allclose(params, 1)


def test_periods_and_sizes_are_swept_together():
    def end(period, size):
        tx = optfn.lookahead(optfn.sgd(0.1), period, size)
        return paths(tx, START, GRADS)[1]

    periods, sizes = jnp.asarray([1.0, 2.0, 5.0]), jnp.asarray([0.2, 0.5, 0.9])
    many = jax.vmap(end)(periods, sizes)
    for i in range(3):
        wanted = closed_form(int(periods[i]), float(sizes[i]))[1]
        assert_close({k: x[i] for k, x in many.items()}, wanted, atol=2e-6)


def test_frozen_integers_pass_through():
    params = {"w": jnp.ones(2), "table": jnp.arange(3)}
    tx = optfn.lookahead(optfn.freeze(optfn.sgd(0.5), {"w": False, "table": True}), 1, 0.5)
    state = tx.init(params)
    grads = {"w": jnp.ones(2), "table": np.zeros(3, jax.dtypes.float0)}
    params, state = optfn.step(tx, params, grads, state)
    found = optfn.evaluation_params(tx, state, params)
    np.testing.assert_array_equal(found["w"], [0.75, 0.75])
    np.testing.assert_array_equal(found["table"], [0, 1, 2])


def test_it_is_found_inside_other_transforms():
    tx = optfn.lookahead(optfn.sgd(0.1), 3, 0.5)
    alone = paths(tx, START, GRADS)[1]
    is_w = {"w": True, "b": False}
    chained = optfn.chain(optfn.clip(1e6), tx)
    assert_close(paths(chained, START, GRADS)[1], alone, atol=1e-6)
    for selective in (
        optfn.partition({"x": tx, "y": optfn.sgd(0.1)}, {"w": "x", "b": "y"}),
        optfn.freeze(tx, {"w": False, "b": True}),
        optfn.chain(optfn.scale_by_learning_rate(-1.0), optfn.masked(tx, is_w)),
    ):
        fast, slow = paths(selective, START, GRADS)
        np.testing.assert_allclose(slow["w"], alone["w"], atol=1e-6)
        np.testing.assert_array_equal(slow["b"], fast["b"])


def test_bad_input():
    with pytest.raises(ValueError, match=r"lookahead\(sync_period=...\) must be at least 1, found"):
        optfn.lookahead(optfn.sgd(0.1), 0, 0.5)
    with pytest.raises(TypeError, match=r"lookahead\(fast_optimizer=...\) must be an optfn transf"):
        optfn.lookahead(optax.sgd, 2, 0.5)
    tx = optfn.lookahead(optfn.sgd(0.1), 2, 0.5)
    with pytest.raises(
        ValueError, match=r"chain\(...\): scale would change the updates of lookahead"
    ):
        optfn.chain(tx, optfn.scale(0.5))
    with pytest.raises(ValueError, match=r"optimizer=...\): the synchronization would"):
        optfn.lookahead(tx, 2, 0.5)
    with pytest.raises(ValueError, match="lookahead needs the params"):
        tx.update(START, tx.init(START))
