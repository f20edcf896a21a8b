"""Wrappers that average the way: what the params are, and what they are evaluated at."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optfn
from optfn import schedules

STEPS = 40
GRADS = np.random.default_rng(0).normal(size=(STEPS, 3))
START = np.array([1.0, -2.0, 0.5])
RATE = 0.1


@jax.jit
def paths(tx, start, grads):
    """The params, the params to evaluate at and the slots after each step."""

    def step(carry, g):
        params, state = optfn.step(tx, carry[0], g, carry[1])
        return (params, state), (params, optfn.evaluation_params(tx, state, params), state.slots)

    return jax.lax.scan(step, (start, tx.init(start)), grads)[1]


def assert_close(a, b):
    """In double precision, at a few roundings for each step."""
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


# What is kept and what is worked out.

WRAPPED = {
    "schedule_free": lambda b, **keep: optfn.schedule_free(optfn.chain(), RATE, b, **keep),
    "primal_averaging": lambda b, **keep: optfn.primal_averaging(optfn.sgd(RATE), 0.9, b, **keep),
    "schedule_free_sgd": lambda b, **keep: optfn.schedule_free_sgd(RATE, b1=b, **keep),
    "schedule_free_adamw": lambda b, **keep: optfn.schedule_free_adamw(RATE, b1=b, **keep),
}
wrapped = pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)


@pytest.mark.parametrize("name", sorted(WRAPPED.keys() - {"primal_averaging"}))
def test_a_share_that_rises_from_zero(name, x64):
    """At the first step the average is where the optimizer is, so that nothing is lost."""
    make, share = WRAPPED[name], schedules.linear(0.0, 0.9, 10)
    kept, not_kept = (paths(make(share, keep_average=k), START, GRADS) for k in (True, False))
    assert_close(kept[0], not_kept[0])
    np.testing.assert_allclose(kept[1][1:], not_kept[1][1:], rtol=1e-9)


@wrapped
def test_one_step_s_derivative_by_the_share(make, x64):
    """With the state held fixed, as in online tuning of hyperparameters."""

    def after(b, keep):
        state, params = states[keep]
        return jnp.sum(optfn.step(make(b, keep_average=keep), params, GRADS[4], state)[0])

    states = {}
    for keep in (True, False):
        tx, params = make(0.8, keep_average=keep), jnp.asarray(START)
        state = tx.init(params)
        for g in GRADS[:4]:
            params, state = optfn.step(tx, params, g, state)
        states[keep] = state, params
    kept, not_kept = (jax.grad(after)(0.8, keep) for keep in (True, False))
    np.testing.assert_allclose(not_kept, kept, rtol=1e-8)
    assert abs(kept) > 1e-3


@wrapped
def test_a_share_of_zero_needs_the_average_kept(make):
    with pytest.raises(ValueError, match=r"\(\w+=\.\.\.\) is 0: the average .* keep_average=True"):
        make(0)
    assert np.isfinite(paths(make(0, keep_average=True), START, GRADS)[1]).all()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optfn.primal_averaging(tx, 0.9, 0.8),
        lambda tx: optfn.ema_nesterov(tx, 0.9, 0.5),
        optfn.mechanize,
    ],
    ids=["primal_averaging", "ema_nesterov", "mechanize"],
)
def test_a_direction_alone_is_refused(wrap):
    with pytest.raises(ValueError, match=r"optimizer=\.\.\.\) must be a whole optimizer"):
        wrap(optfn.scale_by_adam())


def test_a_warm_up_is_of_a_number():
    with pytest.raises(TypeError, match="warmup_steps is for a learning_rate that is a number"):
        optfn.schedule_free_sgd(schedules.constant(0.1), warmup_steps=10)
    with pytest.raises(TypeError, match=r"warmup_steps=\.\.\.\) must be a number"):
        optfn.schedule_free_adamw(0.1, warmup_steps="3")


# Schedule-Free.

RATES = [
    RATE,
    schedules.linear(0.0, RATE, 10),
    schedules.piecewise_constant([RATE, RATE / 10], [10]),
]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("b1", [0.5, 0.9, schedules.linear(0.5, 0.9, 30)])
@pytest.mark.parametrize("keep", [False, True])
def test_schedule_free_averages_with_the_squares_of_the_largest_rates(rate, b1, keep, x64):
    tx = optfn.schedule_free(optfn.chain(), rate, b1, r=1.0, keep_average=keep)
    y, x, slots = paths(tx, START, GRADS)
    t = np.arange(STEPS)
    rates = np.asarray(jax.vmap(rate)(t)) if callable(rate) else rate
    rates = np.broadcast_to(rates, STEPS)
    share = np.asarray(jax.vmap(b1)(t))[:, None] if callable(b1) else b1
    z = START - np.cumsum(rates[:, None] * GRADS, axis=0)
    weights = ((t + 1) * np.maximum.accumulate(rates) ** 2)[:, None]
    weights[0] = max(weights[0], 1e-300)  # a first rate of zero counts for nothing
    average = np.cumsum(weights * z, axis=0) / np.cumsum(weights, axis=0)
    assert_close(slots["schedule_free"].z, z)
    assert_close(x, average)
    assert_close(y, share * average + (1 - share) * z)


def test_a_whole_optimizer_inside_takes_its_own_steps(x64):
    inside = optfn.schedule_free(optfn.rmsprop(RATE), RATE)
    direction = optfn.schedule_free(optfn.scale_by_rms(), RATE)
    np.testing.assert_array_equal(paths(inside, START, GRADS)[0], paths(direction, START, GRADS)[0])


def test_schedule_free_refuses_what_it_cannot_tell_a_direction_from():
    with pytest.raises(ValueError, match="cannot tell whether from_optax applies a learning rate"):
        optfn.schedule_free(optfn.from_optax(optax.sgd(0.1)), RATE)


def test_one_rate_is_changed_by_its_short_name():
    tx = optfn.schedule_free_adamw(RATE)
    assert optfn.hyperparameters(optfn.replace(tx, learning_rate=0.2), tx.init(START))[
        "learning_rate"
    ] == np.float32(0.2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_does_not_add_up_in_the_average(dtype):
    """The average stays within a rounding; optax's, from rounded params, is off by many."""
    start, steps = np.float32([1.0, 1.5]), 2000
    grads = np.random.default_rng(1).normal(size=(steps, 2)).astype(np.float32)
    exact = np.asarray(paths(optfn.schedule_free_sgd(1e-2), start, grads)[1])
    ours = np.asarray(
        paths(optfn.schedule_free_sgd(1e-2), jnp.asarray(start, dtype), grads)[1], float
    )
    tx = optax.contrib.schedule_free_sgd(1e-2)

    def step(carry, g):
        params, state = carry
        updates, state = tx.update(g.astype(dtype), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), optax.contrib.schedule_free_eval_params(state, params)

    low = jnp.asarray(start, dtype)
    theirs = np.asarray(jax.lax.scan(step, (low, tx.init(low)), jnp.asarray(grads))[1], float)
    eps = float(jnp.finfo(dtype).eps)
    assert abs(ours - exact).max() < eps
    assert abs(theirs - exact).max() > 5 * eps


def test_the_first_rate_of_a_schedule_counts():
    """optax 0.2.8 weighs by the rate of the next step."""
    rate = schedules.piecewise_constant([1.0, 0.5], [1])
    for make, counts in ((optfn.schedule_free_sgd, True), (optax.contrib.schedule_free_sgd, False)):
        tx = make(rate)
        start = jnp.zeros(1)
        state = tx.init(start)
        _, state = tx.update(jnp.ones(1), state, start)
        weight = state.slots["schedule_free"].weight if counts else state.weight_sum
        assert float(weight) == (1.0 if counts else 0.25)


# Generalized primal averaging.


@pytest.mark.parametrize("keep", [False, True])
def test_primal_averaging_is_schedule_free_where_it_forgets_as_slowly(keep, x64):
    forgetting = schedules.custom(lambda step: 1 - 1 / (jnp.asarray(step, float) + 1))
    tx = optfn.primal_averaging(optfn.sgd(RATE), forgetting, 0.9, keep_average=keep)
    free = optfn.schedule_free_sgd(RATE)
    for one, other in zip(paths(tx, START, GRADS)[:2], paths(free, START, GRADS)[:2], strict=True):
        assert_close(one, other)


def test_primal_averaging_without_a_share_is_an_average_beside_the_run(x64):
    tx = optfn.primal_averaging(optfn.adam(RATE), 0.9, 0.0, keep_average=True)
    y, x, _ = paths(tx, START, GRADS)
    own = np.asarray(paths(optfn.adam(RATE), START, GRADS)[0])
    assert_close(y, own)
    average, wanted = START, []
    for z in own:
        average = 0.9 * average + 0.1 * z
        wanted.append(average)
    assert_close(x, wanted)


# EMA-Nesterov.


def test_no_look_ahead_is_the_optimizer_itself(x64):
    y, q, _ = paths(optfn.ema_nesterov(optfn.adam(RATE), 0.9, 0.0), START, GRADS)
    own = paths(optfn.adam(RATE), START, GRADS)[0]
    assert_close(y, own)
    assert_close(q, own)


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_every_step_is_taken_from_ahead_along_the_average_way(decay, x64):
    """With decay 0 this is Nesterov's method, with the last step for the way."""
    ahead = schedules.linear(0.2, 0.9, 20)
    y, q, _ = paths(optfn.ema_nesterov(optfn.sgd(RATE), decay, ahead), START, GRADS)
    point, way = START, np.zeros(3)
    here = START
    for t, g in enumerate(GRADS):
        new = here - RATE * g
        way = decay * way + (1 - decay) * (new - point)
        point, here = new, new + float(ahead(t)) * way
        assert_close(q[t], point)
        assert_close(y[t], here)


# Where the averages are looked for.

AVERAGING = {
    "schedule_free": optfn.schedule_free_sgd(RATE),
    "primal_averaging": optfn.primal_averaging(optfn.sgd(RATE), 0.9, 0.8),
    "ema_nesterov": optfn.ema_nesterov(optfn.sgd(RATE), 0.9, 0.8),
}


@pytest.mark.parametrize("name", AVERAGING)
def test_averages_are_found_inside_other_transforms(name):
    tx = AVERAGING[name]
    params = {"a": jnp.asarray(START, jnp.float32), "b": jnp.ones(2)}
    grads = {
        "a": jnp.asarray(GRADS[:, :3], jnp.float32),
        "b": jnp.asarray(GRADS[:, :2], np.float32),
    }
    alone = paths(tx, params, grads)[1]
    assert not np.allclose(alone["a"], paths(tx, params, grads)[0]["a"])

    def only_a(path, leaf):
        return path == "a"

    chained = optfn.chain(optfn.clip(1e6), tx)
    named = optfn.chain(optfn.chain(tx).named("inner"), optfn.scale(1.0))
    split = optfn.partition({"x": tx, "y": optfn.sgd(RATE)}, {"a": "x", "b": "y"})
    frozen = optfn.freeze(tx, {"a": False, "b": True})
    inner = optfn.chain(tx, optfn.scale(1.0))  # of unknown side
    part = optfn.chain(optfn.masked(inner, only_a), optfn.scale_by_learning_rate(-1.0))
    for whole in (chained, named):
        x = paths(whole, params, grads)[1]
        for leaf, wanted in alone.items():
            np.testing.assert_allclose(x[leaf], wanted, atol=1e-6)
    for selective in (split, frozen, part):
        y, x, _ = paths(selective, params, grads)
        np.testing.assert_allclose(x["a"], alone["a"], atol=1e-6)
        np.testing.assert_array_equal(x["b"], y["b"])


def test_others_are_evaluated_at_their_params():
    params = {"a": jnp.ones(2, jnp.bfloat16), "none": None}
    tx = optfn.adam(RATE)
    found = optfn.evaluation_params(tx, tx.init(params), params)
    assert found["a"] is params["a"]
    assert found["none"] is None


def test_averages_have_the_dtypes_of_the_params():
    for tx in AVERAGING.values():
        params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.complex64)}
        found = optfn.evaluation_params(tx, tx.init(params), params)
        assert [x.dtype for x in found.values()] == [x.dtype for x in params.values()]
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_bad_input_of_evaluation_params():
    tx = optfn.schedule_free_sgd(RATE)
    params = jnp.ones(2)
    with pytest.raises(TypeError, match="state must be the State"):
        optfn.evaluation_params(tx, params, tx.init(params))
    with pytest.raises(TypeError, match=r"\(tx=\.\.\.\) must be an optfn transform"):
        optfn.evaluation_params(optax.sgd(0.1), tx.init(params), params)


@pytest.mark.parametrize("tx", [optfn.schedule_free_sgd(), optfn.schedule_free_adamw()])
def test_a_donated_step_copies_no_array(tx):
    params = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
    state = jax.eval_shape(tx.init, params)

    def step(params, grads, state):
        updates, state = tx.update(grads, state, params)
        return optfn.apply_updates(params, updates), state

    text = jax.jit(step, donate_argnums=(0, 2)).lower(params, params, state).compile().as_text()
    assert not [line for line in text.splitlines() if " copy(" in line and "f32[64,64]" in line]
