"""Theorems about the algorithms, measured."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithms import CASES, RATE, STAGES, STEPS, problem, run_as_data
from hypothesis import strategies as st

import optfn
from optfn import schedules

everywhere = hypothesis.settings(
    deadline=None, derandomize=True, database=None, max_examples=100, print_blob=False
)

GRADS = np.random.default_rng(1).normal(size=(STEPS, 6))
START = np.zeros(6)


def updates_of(tx, grads=GRADS):
    """The updates of all steps from gradients given beforehand."""
    return np.asarray(run_as_data(tx, jnp.zeros_like(grads[0]), grads)[1])


def assert_same_path(one, other, grads=GRADS):
    """In double precision, at a few roundings of each update."""
    np.testing.assert_allclose(updates_of(one, grads), updates_of(other, grads), rtol=1e-12)


# Quadratics, where the paths are known.

CURVATURES = np.array([0.5, 1.0, 3.0, 10.0])


@jax.jit
def descend(tx):
    """The params after each step on sum(CURVATURES * p^2) / 2 from ones, [STEPS + 1, 4]."""

    def step(carry, _):
        params, state = optfn.step(tx, CURVATURES * carry[0], carry[1], carry[0])
        return (params, state), params

    start = jnp.ones_like(CURVATURES)
    path = jax.lax.scan(step, (start, tx.init(start)), length=STEPS)[1]
    return jnp.concatenate([start[None], path])


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.2, 0.25])
def test_gradient_descent_is_a_geometric_series(rate, x64):
    """It converges for rates below two over the largest curvature, and only for these."""
    path = descend(optfn.sgd(rate))
    factors = 1 - rate * CURVATURES
    np.testing.assert_allclose(path, factors ** np.arange(STEPS + 1)[:, None], rtol=1e-11)
    assert (abs(path[-1]) < 1).all() == (rate < 2 / CURVATURES.max())


def test_heavy_ball_is_polyak_s_recurrence(x64):
    """p'' = p' - lr * grad(p') + b * (p' - p)."""
    rate, b = 0.1, 0.8
    p = np.asarray(descend(optfn.sgd(rate, momentum=b)))
    wanted = p[1:-1] - rate * CURVATURES * p[1:-1] + b * (p[1:-1] - p[:-2])
    np.testing.assert_allclose(p[2:], wanted, rtol=1e-12, atol=1e-15)


def test_nesterov_looks_ahead(x64):
    """y' = p - lr * grad(p), p' = y' + b * (y' - y)."""
    rate, b = 0.1, 0.8
    p = np.asarray(descend(optfn.sgd(rate, momentum=b, nesterov=True)))
    y = np.concatenate([p[:1], p[:-1] - rate * CURVATURES * p[:-1]])
    np.testing.assert_allclose(p[1:], y[1:] + b * np.diff(y, axis=0), rtol=1e-12, atol=1e-15)


# Averages and sums.


@pytest.mark.parametrize("b1", [0.0, 0.5, 0.9, 0.99])
def test_momentum_is_heavy_ball_at_a_smaller_rate(b1, x64):
    average, ball = optfn.momentum(RATE, b1), optfn.sgd(RATE * (1 - b1), momentum=b1)
    np.testing.assert_allclose(updates_of(average), updates_of(ball), rtol=1e-12, atol=1e-18)


def test_corrected_momentum_moves_at_the_rate_from_the_first_step(x64):
    grads = np.ones((STEPS, 6))
    updates = updates_of(optfn.momentum(RATE, bias_correction=True), grads)
    np.testing.assert_allclose(updates, -RATE * grads, rtol=1e-12)


@everywhere
@hypothesis.given(decay=st.floats(0, 0.9999), value=st.floats(1e-10, 1e10))
def test_averages_of_a_constant_are_known(decay, value):
    with jax.enable_x64(True):
        grads = np.full((STEPS, 1), value)
        weight = 1 - decay ** np.arange(1.0, STEPS + 1)[:, None]
        # 1 - decay^t is rounded by 2^-53 / (1 - decay) of itself.
        close = {"rtol": 1e-11, "atol": 0}
        for tx, wanted in (
            (optfn.ema(decay), grads),
            (optfn.ema(decay, debias=False), weight * grads),
            (optfn.trace(decay), weight / (1 - decay) * grads),
        ):
            np.testing.assert_allclose(updates_of(tx, grads), wanted, **close)


# Normalized directions.


@pytest.mark.parametrize(
    "tx",
    [
        optfn.adam(RATE, eps=0),
        optfn.adam(RATE, eps=0, nesterov=True),
        optfn.amsgrad(RATE, eps=0),
        optfn.rmsprop(RATE, eps=0),
        optfn.rmsprop(RATE, eps=0, eps_in_sqrt=False, centered=True),
        optfn.adagrad(RATE, initial_accumulator_value=0, eps=0),
        optfn.lion(RATE, weight_decay=0),
    ],
    ids=["adam", "nadam", "amsgrad", "rmsprop", "rmsprop centered", "adagrad", "lion"],
)
@pytest.mark.parametrize("factor", [2.0**-40, 2.0**20])
def test_the_scale_of_the_gradient_does_not_matter(tx, factor):
    """Entry by entry, and to the bit in float32: a power of two as a factor rounds nothing."""
    grads = GRADS.astype(np.float32)
    factors = np.float32([1, factor, 1, factor, factor, 1])
    np.testing.assert_array_equal(updates_of(tx, factors * grads), updates_of(tx, grads))


def test_adam_starts_at_the_rate(x64):
    np.testing.assert_allclose(
        updates_of(optfn.adam(RATE, eps=0))[0], -RATE * np.sign(GRADS[0]), rtol=1e-12
    )


def test_adam_s_steps_have_a_largest_size(x64):
    """By the inequality of Cauchy and Schwarz, with equality where g_i = (b2 / b1)^i."""
    b1, b2 = 0.9, 0.999
    t = np.arange(1.0, STEPS + 1)[:, None]
    largest = (1 - b1) / (1 - b1**t) * np.sqrt((1 - b2**t) / (1 - b2))
    largest = RATE * largest * np.sqrt(np.cumsum((b1**2 / b2) ** (t - 1), axis=0))

    spikes = GRADS * 10.0 ** np.random.default_rng(2).uniform(-5, 5, size=GRADS.shape)
    adam = optfn.adam(RATE, b1, b2, eps=0)
    for grads in (GRADS, spikes):
        assert (abs(updates_of(adam, grads)) <= largest * (1 + 1e-12)).all()
    np.testing.assert_allclose(updates_of(adam, (b2 / b1) ** t), -largest, rtol=1e-11)


def test_rmsprop_with_correction_is_adam_without_momentum(x64):
    rmsprop = optfn.rmsprop(RATE, 0.95, eps_in_sqrt=False, bias_correction=True)
    assert_same_path(rmsprop, optfn.adam(RATE, b1=0, b2=0.95))


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_a_variance_below_zero_is_none(eps_in_sqrt):
    """In float32 rounding makes that of a constant gradient negative; optax has NaN there."""
    grads = np.broadcast_to(GRADS[0].astype(np.float32), GRADS.shape)
    rmsprop = optfn.rmsprop(
        RATE, eps=1e-3, centered=True, eps_in_sqrt=eps_in_sqrt, bias_correction=True
    )
    eps = 1e-3**0.5 if eps_in_sqrt else 1e-3
    # What is left of the variance is a few roundings of the square.
    slowest = abs(grads) * RATE / (eps + 2**-10 * abs(grads))
    sizes = abs(updates_of(rmsprop, grads))
    assert (slowest <= sizes).all()
    assert (sizes <= abs(grads) * RATE / eps * (1 + 1e-6)).all()


def test_nadam_without_momentum_is_adam(x64):
    assert_same_path(optfn.adam(RATE, b1=0, nesterov=True), optfn.adam(RATE, b1=0))


def test_adagrad_s_rates_fall_as_one_over_the_root_of_time(x64):
    grads = np.sign(GRADS[:1]) * np.ones((STEPS, 1))
    adagrad = optfn.adagrad(RATE, initial_accumulator_value=0, eps=0)
    assert_same_path(adagrad, optfn.sgd(schedules.inverse_sqrt(RATE)), grads)


# AMSGrad.


def test_amsgrad_s_second_moment_never_shrinks():
    tx = optfn.amsgrad(RATE)

    @jax.jit
    def largest_moments(grads):
        def step(state, g):
            state = tx.update(g, state)[1]
            return state, state.slots["scale_by_amsgrad"].nu_max

        return jax.lax.scan(step, tx.init(grads[0]), grads)[1]

    assert (np.diff(largest_moments(GRADS.astype(np.float32)), axis=0) >= 0).all()


def test_amsgrad_s_rates_never_grow(x64):
    """That is what its proof needs and what Adam does not give."""
    grads = GRADS / np.arange(1, STEPS + 1)[:, None]

    def rises(tx):
        rates = abs(updates_of(tx, grads) / grads)
        return np.diff(rates, axis=0) > 1e-12 * rates[1:]

    assert not rises(optfn.scale_by_amsgrad(b1=0.0, b2=0.9)).any()
    assert rises(optfn.scale_by_adam(b1=0.0, b2=0.9)).any()


def test_amsgrad_is_adam_while_gradients_grow(x64):
    grads = np.arange(1.0, STEPS + 1)[:, None] * GRADS[:1]
    assert_same_path(optfn.amsgrad(RATE), optfn.adam(RATE), grads)


# AdamW.


def test_adamw_without_decay_is_adam(x64):
    assert_same_path(optfn.adamw(RATE, weight_decay=0), optfn.adam(RATE))


def test_decoupled_decay_multiplies_the_weights(x64):
    """Without a gradient the product of 1 - lr_t * weight_decay_t is left of them."""
    params = {"decays": np.array([1.0, -2.0]), "stays": np.array([1.0, -2.0])}
    grads = {k: np.zeros((STEPS, 2)) for k in params}
    rate, decay = schedules.linear(0.1, 0.01, 50), schedules.exponential(0.5, 0.97)
    tx = optfn.adamw(rate, weight_decay=decay, mask={"decays": True, "stays": False})
    path = run_as_data(tx, params, grads)[0]
    t = np.arange(STEPS)
    left = np.cumprod(1 - np.asarray(jax.vmap(rate)(t) * jax.vmap(decay)(t)))[:, None]
    np.testing.assert_allclose(path["decays"], left * params["decays"], rtol=1e-12)
    np.testing.assert_array_equal(path["stays"], np.broadcast_to(params["stays"], (STEPS, 2)))


# Lion.


def test_lion_s_steps_are_exactly_the_rate():
    updates = updates_of(optfn.lion(RATE, weight_decay=0), GRADS.astype(np.float32))
    assert (abs(updates) == np.float32(RATE)).all()
    assert len(set(updates[:, 0].tolist())) == 2


def test_lion_stands_still_where_no_gradient_ever_came():
    assert (updates_of(optfn.lion(RATE), np.zeros((STEPS, 6), np.float32)) == 0).all()


def test_lion_without_momentum_is_sign_descent(x64):
    np.testing.assert_array_equal(
        updates_of(optfn.lion(RATE, b1=0, weight_decay=0)), -RATE * np.sign(GRADS)
    )


# Clipping.

update_once = jax.jit(lambda tx, g: tx.update(g, tx.init(g))[0])


@everywhere
@hypothesis.given(
    entries=st.lists(st.floats(-1, 1, width=32), min_size=5, max_size=5),
    exponent=st.floats(-25, 25),
    limit=st.one_of(st.just(0.0), st.floats(-25, 25).map(lambda x: 10.0**x)),
)
@hypothesis.example(entries=[0.0] * 5, exponent=0.0, limit=0.0)
@hypothesis.example(entries=[0.0] * 5, exponent=0.0, limit=1.0)
@hypothesis.example(entries=[3.0, 4.0, 0.0, 0.0, 0.0], exponent=25.0, limit=1.0)
@hypothesis.example(entries=[3.0, 4.0, 0.0, 0.0, 0.0], exponent=-25.0, limit=1e-26)
def test_clipped_norms_are_the_smaller_of_norm_and_limit(entries, exponent, limit):
    """In float32, whose squares of 1e25 are infinite and whose squares of 1e-25 are zero."""
    flat = np.float32(entries) * np.float32(10.0**exponent)
    flat[abs(flat) < 1e-30] = 0  # nothing denormal, also after clipping
    norm = np.linalg.norm(flat.astype(float))
    hypothesis.assume(limit == 0 or limit / max(norm, 1e-30) > 1e-5)

    clipped = update_once(optfn.clip_by_global_norm(limit), {"a": flat[:2], "b": flat[2:]})
    found = np.concatenate([clipped["a"], clipped["b"]]).astype(float)

    np.testing.assert_allclose(np.linalg.norm(found), min(norm, limit), rtol=1e-6)
    if norm < limit * (1 - 1e-6):
        np.testing.assert_array_equal(found, flat)
    np.testing.assert_allclose(found, flat * min(1, limit / norm if norm else 1), rtol=1e-6)


def test_clipping_once_is_enough():
    grads = GRADS[0].astype(np.float32)
    for tx in (optfn.clip(0.3), optfn.clip_by_global_norm(0.3)):
        once = update_once(tx, grads)
        np.testing.assert_allclose(update_once(tx, once), once, rtol=2**-22)
        assert abs(once).max() <= 0.3 * (1 + 2**-23)


# Numbers that are none.


@pytest.mark.parametrize("case", [*CASES, *STAGES], ids=repr)
def test_a_gradient_that_is_no_number_is_seen(case):
    """NaN comes out where it went in, at once, and nowhere else."""
    params, grads = jax.tree.map(
        lambda x: x.astype(np.complex64 if np.iscomplexobj(x) else np.float32), problem(1e6)
    )
    _, clean = run_as_data(case.here(), params, grads)
    grads["ordinary"][60, 1] = np.nan
    path, updates = run_as_data(case.here(), params, grads)
    if repr(case).startswith("clip_by_global_norm"):
        assert all(np.isnan(u[60]).all() for u in updates.values())
        return
    assert np.isnan(updates["ordinary"][60, 1])
    assert np.isnan(path["ordinary"][60:, 1]).all()
    for name, wanted in clean.items():
        np.testing.assert_array_equal(np.delete(updates[name], 1, 1), np.delete(wanted, 1, 1))
