"""Theorems about the algorithms, measured."""

from dataclasses import replace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from algorithms import CASES, RATE, STEPS, problem, run_as_data, run_closed_over
from hypothesis import strategies as st

import optfn
from optfn import schedules
from optfn.optimizers.elementwise.radam import _average_length

everywhere = hypothesis.settings(
    deadline=None, derandomize=True, database=None, max_examples=100, print_blob=False
)

GRADS = np.random.default_rng(1).normal(size=(STEPS, 6))
START = np.zeros(6)


def updates_of(tx, grads=GRADS):
    """The updates of all steps from gradients given beforehand."""
    updates = np.asarray(run_as_data(tx, jnp.zeros_like(grads[0]), grads)[1])
    assert np.isfinite(updates).all()
    return updates


def assert_same_path(one, other, grads=GRADS):
    """In double precision, at a few roundings of each update."""
    np.testing.assert_allclose(updates_of(one, grads), updates_of(other, grads), rtol=1e-12)


# Quadratics, where the paths are known.

CURVATURES = np.array([0.5, 1.0, 3.0, 10.0])


@jax.jit
def descend(tx):
    """The params after each step on sum(CURVATURES * p^2) / 2 from ones, [STEPS + 1, 4]."""

    def step(carry, _):
        params, state = optfn.step(tx, carry[0], CURVATURES * carry[0], carry[1])
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
        optfn.adabelief(RATE, eps=0, eps_root=0),
        optfn.adamax(RATE, eps=0),
        optfn.adan(RATE, eps=0, eps_root=0),
        optfn.laprop(RATE, eps=0),
        optfn.rprop(RATE),
        optfn.sign_sgd(RATE),
        optfn.cocob(eps=1e-30),
    ],
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
    slowest = abs(grads) * RATE / (eps + 2**-9 * abs(grads))
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


@pytest.mark.parametrize("algorithm", ["adamw", "nadamw", "adamaxw", "laprop", "adan", "lion"])
def test_decoupled_decay_multiplies_the_weights(algorithm, x64):
    """Without a gradient the product of 1 - lr_t * weight_decay_t is left of them."""
    params = {"decays": np.array([1.0, -2.0]), "stays": np.array([1.0, -2.0])}
    grads = {k: np.zeros((STEPS, 2)) for k in params}
    rate, decay = schedules.linear(0.1, 0.01, 50), schedules.exponential(0.5, 1, 0.97)
    mask = {"decays": True, "stays": False}
    tx = getattr(optfn, algorithm)(rate, weight_decay=decay, mask=mask)
    path = run_as_data(tx, params, grads)[0]
    t = np.arange(STEPS)
    left = np.cumprod(1 - np.asarray(jax.vmap(rate)(t) * jax.vmap(decay)(t)))[:, None]
    np.testing.assert_allclose(path["decays"], left * params["decays"], rtol=1e-12)
    np.testing.assert_array_equal(path["stays"], np.broadcast_to(params["stays"], (STEPS, 2)))


RATES = schedules.linear(0.1, 0.01, 50)


def decayed_by(per_step):
    """What is left of weights without a gradient."""
    rates = np.asarray(jax.vmap(RATES)(np.arange(STEPS)), float)
    return np.cumprod(1 - per_step(rates))[:, None]


@pytest.mark.parametrize(
    ("stage", "per_step"),
    [
        (optfn.descend_with_corrected_decay, lambda rates: rates**2 / 0.1 * 0.5),
        (optfn.descend_with_independent_decay, lambda rates: rates / 0.1 * 0.5),
    ],
)
def test_decay_follows_the_rate_as_it_is_said_to(stage, per_step, x64):
    params = {"decays": np.array([1.0, -2.0]), "stays": np.array([1.0, -2.0])}
    mask = {"decays": True, "stays": False}
    tx = optfn.chain(optfn.scale_by_adam(), stage(RATES, 0.1, 0.5, mask))
    still = {k: np.zeros((STEPS, 2)) for k in params}
    path = run_as_data(tx, params, still)[0]
    np.testing.assert_allclose(path["decays"], decayed_by(per_step) * params["decays"], rtol=1e-12)
    np.testing.assert_array_equal(path["stays"], np.broadcast_to(params["stays"], (STEPS, 2)))
    without = optfn.chain(optfn.scale_by_adam(), stage(RATES, 0.1))
    assert_same_path(without, optfn.adam(RATES))


def test_corrected_decay_at_the_full_rate_is_adamw(x64):
    ours = optfn.chain(optfn.scale_by_adam(), optfn.descend_with_corrected_decay(RATE, RATE, 0.5))
    path, other = (
        run_as_data(tx, np.ones(6), GRADS)[0] for tx in (ours, optfn.adamw(RATE, weight_decay=0.5))
    )
    np.testing.assert_allclose(path, other, rtol=1e-12)


def test_cautious_decay_never_works_against_the_direction(x64):
    """It is the plain decay where the two agree, and nothing elsewhere."""
    params = np.array([1.0, -1.0, 2.0, -2.0, 0.0, 1.0])
    g = np.array([1.0, 1.0, -1.0, -1.0, 1.0, 0.0])
    tx = optfn.add_cautious_decay(0.1)
    found, _ = tx.update(g, tx.init(params), params)
    np.testing.assert_allclose(found - g, [0.1, 0, 0, -0.2, 0, 0.1], atol=1e-15)
    masked = optfn.add_cautious_decay(0.1, lambda path, leaf: False)
    np.testing.assert_array_equal(masked.update(g, masked.init(params), params)[0], g)


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


# Other members of Adam's family.


def test_adabelief_trusts_a_steady_gradient():
    grads = np.ones((STEPS, 6), np.float32)
    adabelief, adam = (updates_of(tx, grads) for tx in (optfn.adabelief(RATE), optfn.adam(RATE)))
    assert (abs(adabelief[10:]) > 1.5 * abs(adam[10:])).all()


@pytest.mark.parametrize(
    "tx", [optfn.adan(RATE, eps=0, eps_root=0), optfn.adam(RATE, eps=0), optfn.laprop(RATE, eps=0)]
)
def test_a_constant_gradient_is_followed_at_the_rate(tx, x64):
    grads = np.broadcast_to(GRADS[0], GRADS.shape)
    np.testing.assert_allclose(updates_of(tx, grads), -RATE * np.sign(grads), rtol=1e-11)


@pytest.mark.parametrize("library", [optfn, optax])
def test_adan_weighs_the_change_of_the_gradient_by_b2(library, x64):
    """After a zero and g the averages are known; optax has 1 - b2 for one of the two factors b2."""
    b1, b2, b3 = 0.98, 0.92, 0.99
    grads = np.stack([np.zeros(6), GRADS[0]])
    tx = library.adan(1.0, b1, b2, b3, eps=0, eps_root=1e-300)
    update = run_closed_over(tx, np.zeros(6), grads)[1][1]

    def wanted(factor):
        ahead = 1 / (1 + b1) + factor / (1 + b2)
        return -ahead * np.sqrt(1 + b3) / (1 + factor) * np.sign(GRADS[0])

    np.testing.assert_allclose(update, wanted(b2 if library is optfn else 1 - b2), rtol=1e-11)


def test_radam_is_momentum_at_first(x64):
    """Until an average of that many gradients can be trusted: five, with b2 = 0.999."""
    radam = updates_of(optfn.radam(RATE))
    ball = updates_of(optfn.momentum(RATE, bias_correction=True))
    same = np.isclose(radam, ball, rtol=1e-12, atol=0).all(axis=1)
    assert same.tolist() == [True] * 5 + [False] * (STEPS - 5)


@pytest.mark.parametrize("b2", [0.0, 0.5, 0.68, 0.9, 0.99, 0.999, 0.9999])
def test_the_length_of_an_average_is_exact_in_float32(b2):
    """To a few roundings of t. The paper's formula is a difference of numbers near 2 / (1 - b2)."""
    t = np.arange(1, STEPS + 1)
    b2 = np.float32(b2)
    t = np.concatenate([t, [1_000, 100_000, 10_000_000]])
    found = jax.vmap(lambda t: _average_length(b2, t))(t.astype(np.float32))
    wanted = [oracles.average_length(float(b2), int(n)) for n in t]
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7 * STEPS)


def test_yogi_s_second_moment_changes_slowly():
    """After large gradients it falls by (1 - b2) * g^2 a step; Adam's falls by its own share."""
    b2 = 0.9
    grads = np.ones((STEPS, 1), np.float32)
    grads[:10] = 100

    def moments(tx, name):
        def step(state, g):
            state = tx.update(g, state)[1]
            return state, state.slots[name].nu

        return np.asarray(jax.lax.scan(step, tx.init(grads[0]), grads)[1])

    yogi = moments(optfn.scale_by_yogi(b2=b2), "scale_by_yogi")
    assert (abs(np.diff(yogi[10:], axis=0)) <= (1 - b2) * 1.01).all()
    assert (np.diff(moments(optfn.scale_by_adam(b2=b2), "scale_by_adam")[10:20], axis=0) < -1).all()


@pytest.mark.parametrize("size", [1e-1, 1.0, 1e6])
def test_adadelta_s_first_step_is_known(size, x64):
    """sqrt(eps / (1 - rho)), for gradients that are large against eps."""
    first = updates_of(optfn.adadelta(1.0, rho=0.9, eps=1e-12), size * np.ones((STEPS, 6)))[0]
    np.testing.assert_allclose(first, -np.sqrt(1e-12 / 0.1), rtol=1e-9)


def test_laprop_without_momentum_is_adam(x64):
    assert_same_path(optfn.laprop(RATE, b1=0, eps=1e-8), optfn.adam(RATE, b1=0))


@pytest.mark.parametrize(
    "tx", [optfn.sign_sgd(RATE), optfn.signum(RATE), optfn.lion(RATE, weight_decay=0)]
)
def test_steps_of_signs_are_exactly_the_rate(tx):
    assert (abs(updates_of(tx, GRADS.astype(np.float32))) == np.float32(RATE)).all()


@pytest.mark.parametrize("tx", [optfn.scale_by_acprop(), optfn.scale_by_adopt(b1=0.0)])
def test_no_gradient_divides_itself(tx, x64):
    """The update is proportional to the last gradient, which Adam's is not."""
    grads = GRADS[:60].copy()
    last = [updates_of(tx, np.concatenate([grads[:-1], c * grads[-1:]]))[-1] for c in (0.5, 1.0)]
    np.testing.assert_allclose(last[1], 2 * last[0], rtol=1e-12)


def test_ademamix_without_the_slow_average_is_adam(x64):
    assert_same_path(optfn.ademamix(RATE, alpha=0), optfn.adam(RATE))


def test_simplified_ademamix_without_momentum_is_rmsprop(x64):
    rmsprop = optfn.rmsprop(RATE, 0.95, eps_in_sqrt=False, bias_correction=True)
    assert_same_path(optfn.simplified_ademamix(RATE, b1=0), rmsprop)


def test_quasi_hyperbolic_momentum_has_its_special_cases(x64):
    for b1 in (0.5, 0.9):
        assert_same_path(optfn.qhm(RATE, b1, 1), optfn.momentum(RATE, b1))
        nesterov = optfn.sgd(RATE * (1 - b1), b1, nesterov=True)
        assert_same_path(optfn.qhm(RATE, b1, b1), nesterov)
        assert_same_path(optfn.qhadam(RATE, b1, 0.99, 1, 1), optfn.adam(RATE, b1, 0.99))
    np.testing.assert_allclose(updates_of(optfn.qhm(RATE, v1=0)), -RATE * GRADS, rtol=1e-12)


def test_madgrad_without_momentum_is_dual_averaging(x64):
    weights = (RATE + 1e-6) * np.sqrt(np.arange(1, STEPS + 1))[:, None]
    s, v = np.cumsum(weights * GRADS, axis=0), np.cumsum(weights * GRADS**2, axis=0)
    path = run_as_data(optfn.madgrad(RATE, momentum=0), np.ones(6), GRADS)[0]
    np.testing.assert_allclose(path, 1 - s / (np.cbrt(v) + 1e-6), rtol=1e-11)


# Directions held to the gradient.


@pytest.mark.parametrize(
    "tx",
    [optfn.grams(RATE), optfn.cautious(optfn.adam(RATE)), optfn.cautious(optfn.sgd(RATE, 0.9))],
)
def test_grams_and_cautious_never_go_against_the_gradient(tx, x64):
    updates = updates_of(tx)
    assert (updates * GRADS <= 0).all()
    assert (updates_of(optfn.adam(RATE)) * GRADS > 0).any()


def test_a_step_that_is_turned_back_is_a_direction(x64):
    back = optfn.chain(optfn.sgd(1.0), optfn.negate())
    np.testing.assert_array_equal(updates_of(optfn.cautious(back)), GRADS)
    signed = optfn.with_gradient_signs(optfn.cautious(optfn.chain(back, optfn.sgd(1.0))))
    np.testing.assert_array_equal(updates_of(signed), -GRADS)


@pytest.mark.parametrize("tx", [optfn.rprop(RATE), optfn.adafactor(), optfn.adafactor(RATE)])
def test_what_ends_downhill_is_known_to(tx, x64):
    updates = updates_of(optfn.cautious(tx))
    assert (updates * GRADS <= 0).all()
    assert (updates != 0).any()


@pytest.mark.parametrize(
    "tx", [optfn.from_optax(optax.adam(0.1)), optfn.chain(optfn.trace(0.9), optfn.scale(-0.1))]
)
@pytest.mark.parametrize("wrapper", [optfn.cautious, optfn.with_gradient_signs])
def test_a_side_that_cannot_be_known_is_refused(wrapper, tx):
    with pytest.raises(ValueError, match=r"cannot tell whether (from_optax|scale) turns"):
        wrapper(tx)


def test_an_ascending_rate_leaves_the_direction_uphill(x64):
    ascent = optfn.scale_by_learning_rate(RATE, flip_sign=False)
    up = optfn.cautious(optfn.chain(optfn.scale_by_adam(), ascent))
    np.testing.assert_array_equal(updates_of(up), -updates_of(optfn.cautious(optfn.adam(RATE))))


def overflowing_cases():
    first = {case.algorithm: case for case in reversed(CASES)}
    adaptive = [case for case in CASES if case.options.get("adapt_lower_bound")]
    assert {case.algorithm for case in adaptive} == {"momo", "momo_adam"}
    return [*first.values(), *adaptive]


@pytest.mark.parametrize("case", overflowing_cases(), ids=lambda case: case.algorithm)
def test_squares_that_overflow_are_no_nan(case):
    """Of vectors, of a matrix and, if there are such, of a matrix that is factored."""
    shapes = {"a": (2, 3), "b": (4,)}
    if case.algorithm == "adafactor":
        shapes["c"] = (128, 128)
    grads = {k: np.random.default_rng(1).normal(size=(4, *s)) for k, s in shapes.items()}
    for g in grads.values():
        g[1] *= 1e25
    grads = jax.tree.map(np.float32, grads)
    tx = replace(case, options={k: v for k, v in case.options.items() if k != "mask"}).here()
    params = jax.tree.map(lambda g: np.ones_like(g[0]), grads)
    extra_args = {k: x[:4] for k, x in case.extra_args.items() if k == "value"}
    if "hessian_diag" in case.extra_args:
        extra_args["hessian_diag"] = jax.tree.map(np.ones_like, grads)
    params, updates = run_as_data(tx, params, grads, extra_args)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, updates)))


def test_cautious_entries_are_divided_by_their_share(x64):
    """Entries that go against the gradient are zero, the others divided by their share."""
    adam, cautious = updates_of(optfn.adam(RATE)), updates_of(optfn.cautious(optfn.adam(RATE)))
    agree = adam * GRADS < 0
    shares = agree.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(cautious, agree * adam / np.maximum(shares, 1e-3), rtol=1e-12)
    whole = optfn.chain(optfn.cautious(optfn.scale_by_adam()), optfn.scale_by_learning_rate(RATE))
    np.testing.assert_allclose(updates_of(whole), cautious, rtol=1e-12)


# Rates that are found.

D0 = 1e-3


@pytest.mark.parametrize(
    "tx",
    [
        optfn.dog(init_step=("distance", D0), eps=0),
        optfn.dog(init_step=("heuristic", D0), eps=0),
        optfn.dowg(init_estim_sq_dist=D0, eps=0),
        optfn.prodigy(eps=0),
        optfn.dadapt_adamw(eps=0),
    ],
)
def test_the_scale_of_all_gradients_does_not_matter(tx, x64):
    """Of all together: what is found is a distance, and no rate."""
    for factor in (2.0**-40, 2.0**20):
        np.testing.assert_allclose(updates_of(tx, factor * GRADS), updates_of(tx), rtol=1e-11)


@pytest.mark.parametrize("first", [("learning_rate", 0.1), ("distance", 0.1), ("heuristic", 0.1)])
def test_dog_does_not_wait_for_ever_after_a_gradient_of_zero(first, x64):
    """As with a rate that rises from zero; then optax's `learning_rate` has had its only step."""
    grads = np.concatenate([np.zeros((1, 6)), GRADS])
    assert updates_of(optfn.dog(init_step=first), grads)[1:].any()


INFECTED = [optfn.lion(0.1), optfn.signum(0.1), optfn.adopt(0.1), optfn.sophia(0.1)]


@pytest.mark.parametrize("tx", INFECTED, ids=["lion", "signum", "adopt", "sophia"])
def test_an_infinite_gradient_does_not_hide_behind_a_sign_or_a_clip(tx):
    """It would stay in the average, and every later step go one way."""
    grads = np.ones((4, 2), np.float32)
    grads[2, 0] = np.inf
    extra = {"obj_fn": jnp.sum} if tx.declared_extra_args() else {}
    state, params = tx.init(jnp.zeros(2)), jnp.zeros(2)
    for g in grads:
        updates, state = tx.update(g, state, params, **extra)
    assert not np.isfinite(updates[0]) and np.isfinite(updates[1])


def test_the_derivative_of_qhadam_by_v2_is_its_slope(x64):
    """At 1 too, where the square of the gradient itself has no share."""

    def end(v2):
        tx = optfn.qhadam(0.1, b2=0.9, v2=v2)
        return jnp.sum(run_as_data(tx, jnp.zeros(6), GRADS[:4])[0][-1])

    difference = (end(1.0) - end(1 - 1e-6)) / 1e-6
    np.testing.assert_allclose(jax.grad(end)(1.0), difference, rtol=1e-4)


@pytest.mark.parametrize("make", [optfn.dog, optfn.dowg])
def test_distances_scale_with_the_params(make, x64):
    """A first distance that is larger by a factor gives a path that is larger by it."""
    first = {"init_step": ("distance", D0)} if make is optfn.dog else {"init_estim_sq_dist": D0**2}
    wider = (
        {"init_step": ("distance", 8 * D0)}
        if make is optfn.dog
        else {"init_estim_sq_dist": (8 * D0) ** 2}
    )
    small, large = (updates_of(make(eps=0, **options)) for options in (first, wider))
    np.testing.assert_allclose(8 * small, large, rtol=1e-11)


def slopes(center):
    """The gradient of sum(|x - center|), whose size says nothing about the distance."""
    return lambda x: np.sign(x - center) if isinstance(x, np.ndarray) else jnp.sign(x - center)


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_prodigy_never_overestimates_the_distance(size, x64):
    """For a convex loss the estimate is a bound from below; it gets within some share of it."""
    tx, center = optfn.prodigy(), size * np.array([1.0, -1.0, 0.5, 0.2])

    def step(carry, _):
        params, state = carry
        params, state = optfn.step(tx, params, slopes(center)(params), state)
        return (params, state), state.slots["scale_by_prodigy"].distance

    start = jnp.zeros(4)
    found = jax.lax.scan(step, (start, tx.init(start)), length=2000)[1]
    assert (np.diff(found) >= 0).all()
    assert 0.2 * size < found[-1] <= size


def test_layerwise_dog_is_dog_on_every_array(x64):
    params, grads = problem(1e6)
    options = {"reps_rel": 1e-2, "eps": 1e-8}
    layerwise = optfn.chain(optfn.scale_by_distance_over_gradients(**options), optfn.scale(-1.0))
    path = run_as_data(layerwise, params, grads)[0]
    for name, p in params.items():
        alone = run_as_data(optfn.dog(1.0, ("heuristic", 1e-2)), p, grads[name])[0]
        np.testing.assert_allclose(path[name], alone, rtol=1e-11, atol=1e-30)


def test_layerwise_dog_is_optax_s():
    params, grads = (
        {k: np.float32(x) for k, x in tree.items() if k != "complex"} for tree in problem(1e6)
    )
    here, there = (
        run_closed_over(library.scale_by_distance_over_gradients(1e-2), params, grads)[1]
        for library in (optfn, optax)
    )
    for name, wanted in there.items():
        np.testing.assert_allclose(here[name], wanted, rtol=2e-5, atol=1e-30)


def test_cocob_never_bets_more_than_it_has(x64):
    """|p - p_start| <= (L + R) / alpha * |C| / L: while little is won, steps stay small."""
    updates = updates_of(optfn.cocob(alpha=100.0))
    assert abs(np.cumsum(updates, axis=0)[:5]).max() < 0.1


def halvings(tx, start):
    def step(carry, _):
        x, state = carry
        x, state = optfn.step(tx, x, x, state, value=x**2 / 2)
        return (x, state), x

    return jax.lax.scan(step, (start, tx.init(start)), length=20)[1]


@pytest.mark.parametrize("tx", [optfn.polyak_sgd(), optfn.momo(beta=0)])
def test_polyak_s_step_halves_the_distance_on_a_parabola(tx, x64):
    path = halvings(tx, jnp.asarray(3.0))
    np.testing.assert_allclose(path, 3 * 0.5 ** np.arange(1, 21), rtol=1e-12)


def test_polyak_s_step_does_not_stop_short():
    """At gradients of 1e-9 too, which optax 0.2.8 takes for zero."""
    for library, stops in ((optfn, False), (optax, True)):
        tx, x = library.polyak_sgd(), jnp.float32(1e-9)
        updates, _ = tx.update(x, tx.init(x), x, value=x**2 / 2)
        np.testing.assert_allclose(updates, 0 if stops else -5e-10, rtol=1e-6)


def test_momo_adam_without_a_bound_is_adam(x64):
    params, grads = problem(1e3)
    values = {"value": np.ones(STEPS)}
    free = run_as_data(optfn.momo_adam(RATE, lower_bound=-1e30), params, grads, values)[1]
    adam = run_as_data(optfn.adam(RATE), params, grads)[1]
    for name, wanted in adam.items():
        np.testing.assert_allclose(free[name], wanted, rtol=1e-11, atol=1e-30)


@pytest.mark.parametrize("library", [optfn, optax.contrib])
def test_a_first_gradient_of_zero_leaves_the_estimate(library):
    """optax 0.2.8 divides zero by zero, and all is NaN from then on."""
    grads = GRADS.astype(np.float32)
    grads[:3] = 0
    for make in (library.prodigy, library.dadapt_adamw):
        updates = run_closed_over(make(), np.zeros(6, np.float32), grads)[1]
        assert np.isfinite(updates).all() == (library is optfn)


# Averages of the way; more of them in compose/test_averaging.py.


def test_schedule_free_without_a_share_is_polyak_averaging(x64):
    descent = optfn.sgd(RATE)
    tx = optfn.schedule_free_sgd(RATE, b1=0, keep_average=True)
    np.testing.assert_allclose(updates_of(tx), updates_of(descent), rtol=1e-11)
    state, y, path = tx.init(START), START, []
    for g in GRADS[:40]:
        y, state = optfn.step(tx, y, g, state)
        path.append(y)
        average = optfn.evaluation_params(tx, state, y)
        np.testing.assert_allclose(average, np.mean(path, axis=0), rtol=1e-11)


def test_schedule_free_adamw_without_a_share_is_rmsprop(x64):
    rms = optfn.rmsprop(RATE, decay=0.999, eps_in_sqrt=False, bias_correction=True)
    np.testing.assert_allclose(
        updates_of(optfn.schedule_free_adamw(RATE, b1=0, keep_average=True)),
        updates_of(rms),
        rtol=1e-11,
    )


# Games.


def test_optimism_solves_a_bilinear_game():
    """min over x, max over y of x * y, where the rotation drives gradient descent outwards."""

    def distance(tx):
        def step(carry, _):
            (x, y), state = carry
            return optfn.step(tx, (x, y), (y, -x), state), None

        start = jnp.float32(1), jnp.float32(1)
        (x, y), _ = jax.lax.scan(step, (start, tx.init(start)), length=500)[0]
        return float(jnp.hypot(x, y))

    assert distance(optfn.optimistic_gradient_descent(0.3)) < 1e-3
    assert distance(optfn.sgd(0.3)) > 1e3


def test_optimistic_adam_without_correction_is_nadam(x64):
    assert_same_path(optfn.optimistic_adam_v2(RATE, beta=0), optfn.nadam(RATE))


# Layers.


@pytest.mark.parametrize(
    ("tx", "share"),
    [
        (optfn.lamb(0.1), 0.1),
        (optfn.lars(0.1, trust_coefficient=0.5, momentum=0.0), 0.05),
        (optfn.chain(optfn.scale_by_trust_ratio(), optfn.scale_by_learning_rate(0.1)), 0.1),
    ],
)
@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("grad_size", [1e-15, 1.0, 1e15, 1e25])
def test_steps_are_relative_to_the_params(tx, share, size, grad_size):
    """In float32, also where squares overflow or vanish. (Adam's own moments are squares.)"""
    grad_size = 1.0 if "scale_by_adam" in str(tx) else grad_size
    params = {"a": np.float32(size) * GRADS[0].astype(np.float32), "b": np.float32([3.0, 4.0])}
    grads = {"a": GRADS[1].astype(np.float32), "b": np.float32([10.0, 0.0])}
    grads = jax.tree.map(lambda g: np.float32(grad_size) * g, grads)
    updates, _ = tx.update(grads, tx.init(params), params)
    for name, p in params.items():
        step = np.linalg.norm(np.asarray(updates[name], float))
        np.testing.assert_allclose(step, share * np.linalg.norm(p.astype(float)), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_adaptive_clipping_leaves_a_share_of_the_params(size):
    params, grads = (np.float32(size) * x.astype(np.float32) for x in (GRADS[:2], 10 * GRADS[2:4]))
    for g in (grads, -grads):
        tx = optfn.chain(optfn.adaptive_grad_clip(0.1, eps=0), optfn.sgd(1.0))
        updates = np.asarray(tx.update(g, tx.init(params), params)[0], float)
        share = np.linalg.norm(updates, axis=0) / np.linalg.norm(params.astype(float), axis=0)
        np.testing.assert_allclose(share, 0.1, rtol=1e-5)


def test_stable_adamw_takes_adamw_s_steps_or_shorter(x64):
    """AdamW's over the ratio of the gradient to the root of its second moment, where above 1."""
    grads = GRADS.copy()
    grads[30:32] *= 100
    plain = updates_of(optfn.adam(RATE, b2=0.99, eps=1e-6), grads)
    stable = updates_of(optfn.stable_adamw(RATE, weight_decay=0), grads)
    nu = oracles.ema(grads**2, 0.99)
    lag = np.sqrt(np.mean(grads**2 / nu, axis=1, keepdims=True))
    np.testing.assert_allclose(stable, plain / np.maximum(1, lag), rtol=1e-10)
    assert lag[30] > 5
    assert lag[60] < 1


def test_adam_mini_with_blocks_of_one_entry_is_adam(x64):
    single = optfn.adam_mini(RATE, block_axes=lambda path, leaf: tuple(range(leaf.ndim)))
    assert_same_path(single, optfn.adam(RATE))
    matrices = np.random.default_rng(2).normal(size=(STEPS, 3, 4))
    assert_same_path(single, optfn.adam(RATE), matrices)


@pytest.mark.parametrize(
    ("axes", "within"), [(None, (0, 1)), ((0,), (1, 2)), ((0, -1), (1,)), ((), (0, 1, 2))]
)
def test_adam_mini_has_a_second_moment_for_every_block(axes, within, x64):
    """The mean over the axes that do not number blocks; those of outputs by default."""
    grads = np.random.default_rng(2).normal(size=(STEPS, 2, 3, 4))
    block_axes = None if axes is None else lambda path, leaf: axes
    tx = optfn.adam_mini(RATE, block_axes=block_axes)
    square = np.mean(grads**2, axis=tuple(k + 1 for k in within), keepdims=True)
    wanted = -RATE * oracles.ema(grads, 0.9) / (np.sqrt(oracles.ema(square, 0.999)) + 1e-8)
    np.testing.assert_allclose(updates_of(tx, grads), wanted, rtol=1e-11)
    slots = tx.init(grads[0]).slots["scale_by_adam_mini"]
    assert slots.nu.shape == tuple(1 if k in within else n for k, n in enumerate((2, 3, 4)))


@pytest.mark.parametrize("params", [dict, tuple, list])
def test_adam_mini_takes_a_tree_of_axes(params):
    """Each value is a tuple, and no node of the tree."""
    a, b = jnp.ones((2, 3)), jnp.ones((2, 3))
    trees = (a, b), ((0,), ())
    if params is dict:
        trees = [dict(zip("ab", tree, strict=True)) for tree in trees]
    else:
        trees = [params(tree) for tree in trees]
    slots = optfn.adam_mini(RATE, block_axes=trees[1]).init(trees[0]).slots["scale_by_adam_mini"]
    assert [x.shape for x in jax.tree.leaves(slots.nu)] == [(2, 1), (1, 1)]
    slots = optfn.adam_mini(RATE, block_axes=(0,)).init(trees[0]).slots["scale_by_adam_mini"]
    assert [x.shape for x in jax.tree.leaves(slots.nu)] == [(2, 1), (2, 1)]


def test_adam_mini_refuses_axes_that_are_none():
    tx = optfn.adam_mini(RATE, block_axes=lambda path, leaf: (1,))
    with pytest.raises(ValueError, match=r"must be axes of an array of ndim 1, found 1") as error:
        tx.init({"bias": jnp.ones(3)})
    assert "at 'bias'" in str(error.value.__notes__)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_hyperball_moves_on_a_sphere(size):
    """The norm is that of the start, and the way one of an angle of about the rate."""
    params = {"a": np.float32(size) * np.float32(GRADS[0]), "b": np.float32([2.0, 0.0])}
    tx = optfn.chain(optfn.scale_by_adam(), optfn.hyperball(0.01))
    state, start = tx.init(params), params
    for g in np.float32(GRADS[1:30]):
        before = params
        params, state = optfn.step(tx, params, {"a": g, "b": g[:2]}, state)
        for name, p in params.items():
            old, new = (np.asarray(x, float) for x in (before[name], p))
            norm = np.linalg.norm(np.asarray(start[name], float))
            np.testing.assert_allclose(np.linalg.norm(new), norm, rtol=1e-5)
            # Of a direction across the params: the arc is its tangent's.
            assert np.linalg.norm(new - old) <= 0.01 * norm * (1 + 1e-3)
    assert np.linalg.norm(params["a"] - start["a"]) > 0.05 * np.linalg.norm(start["a"])


def test_hyperball_leaves_what_has_no_norm_or_no_direction():
    tx = optfn.hyperball(0.1)
    params = {"zero": jnp.zeros(3), "still": jnp.ones(3)}
    grads = {"zero": jnp.ones(3), "still": jnp.zeros(3)}
    updates, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(lambda u: np.testing.assert_allclose(u, 0, atol=1e-7), updates)


def test_fromage_keeps_the_norm(x64):
    """Where gradients are orthogonal to the params, as those of a normalized layer are."""
    params = jnp.asarray(GRADS[0])
    norm, tx = jnp.linalg.norm(params), optfn.fromage(0.1)
    state = tx.init(params)
    for g in GRADS[1:20]:
        g = g - params * (g @ params) / (params @ params)
        params, state = optfn.step(tx, params, g, state)
        np.testing.assert_allclose(jnp.linalg.norm(params), norm, rtol=1e-12)


def test_novograd_is_momentum_along_a_constant_gradient(x64):
    grads = np.broadcast_to(GRADS[0], GRADS.shape)
    directions = grads / np.linalg.norm(GRADS[0])
    np.testing.assert_allclose(
        updates_of(optfn.novograd(RATE, eps=0), grads),
        updates_of(optfn.sgd(RATE, 0.9), directions),
        rtol=1e-12,
    )


def test_sm3_on_vectors_is_adagrad(x64):
    adagrad = optfn.adagrad(RATE, initial_accumulator_value=0, eps=1e-8)
    assert_same_path(optfn.sm3(RATE, momentum=0), adagrad)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (1, 5)])
def test_sm3_covers_every_axis(shape, x64):
    grads = np.random.default_rng(2).normal(size=(20, *shape))
    found = run_as_data(optfn.sm3(RATE), np.zeros(shape), grads)[0]
    np.testing.assert_allclose(found, oracles.sm3(np.zeros(shape), grads, RATE), rtol=1e-11)


def test_factored_squares_of_rank_one_are_exact(x64):
    rows, cols = np.abs(GRADS[0])[:, None], np.abs(GRADS[1])[None]
    grads = rows * cols * np.sign(np.random.default_rng(3).normal(size=(STEPS, 6, 6)))
    factored = optfn.scale_by_factored_rms(min_dim_size_to_factor=2)
    whole = optfn.scale_by_factored_rms(factored=False)
    assert_same_path(factored, whole, grads)
    np.testing.assert_allclose(updates_of(whole, grads), np.sign(grads), rtol=1e-11)


@pytest.mark.parametrize("shape", [(3, 4), (5, 3)])
def test_adafactor_of_matrices(shape, x64):
    grads = np.random.default_rng(2).normal(size=(20, *shape))
    params = np.random.default_rng(4).normal(size=shape)
    options = {"min_dim_size_to_factor": 2, "momentum": 0.5}
    found = run_as_data(optfn.adafactor(RATE, **options), params, grads)[0]
    wanted = oracles.adafactor(params, grads, RATE, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-11)


def test_factored_shapes_are_optax_s():
    """The two longest axes of any number of them."""
    options = {"min_dim_size_to_factor": 3}
    for shape in ((3, 4), (4, 3), (2, 5, 3), (5, 2, 3), (3, 3, 3), (4, 2), (2, 3, 4, 5)):
        grads = np.random.default_rng(2).normal(size=(10, *shape)).astype(np.float32)
        params = np.ones(shape, np.float32)
        found = run_as_data(optfn.adafactor(RATE, **options), params, grads)[1]
        wanted = run_closed_over(optax.adafactor(RATE, **options), params, grads)[1]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


# Corrections of the gradient.


def test_mars_is_a_share_of_the_change(x64):
    """The authors' form: no gradient before the first, and norms of at most one."""
    gamma, b1 = 0.1, 0.9
    change = np.diff(GRADS, axis=0, prepend=0)
    wanted = GRADS + gamma * b1 / (1 - b1) * change
    wanted /= np.maximum(1, np.linalg.norm(wanted, axis=1, keepdims=True))
    found = updates_of(optfn.correct_by_mars(gamma, b1), GRADS)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_orthogonal_gradients_leave_the_norm_and_keep_theirs(x64):
    params, tx = GRADS[0], optfn.chain(optfn.orthogonalize_to_params(), optfn.scale(1.0))
    for g in (*GRADS[1:10], *(1e-150 * GRADS[1:3]), *(1e150 * GRADS[1:3])):
        u = np.asarray(tx.update(g, tx.init(params), params)[0])
        np.testing.assert_allclose(np.linalg.norm(u), np.linalg.norm(g), rtol=1e-12)
        assert abs(u @ params) < 1e-12 * np.linalg.norm(u) * np.linalg.norm(params)
    for factor in (0, 3, -1e-5):
        along = tx.update(factor * params, tx.init(params), params)[0]
        np.testing.assert_array_equal(along, 0)


# Noise.


def test_noise_has_its_variance():
    """eta / t^gamma, of a sample of 40,000: its standard deviation is 0.7 per cent."""
    eta, gamma, n = 0.04, 0.55, 40_000
    grads = np.full((STEPS, n), 3.0, np.float32)
    noise = updates_of(optfn.add_noise(eta, gamma, seed=1), grads)[[0, 1, 9, 99]] - 3
    wanted = np.sqrt(eta / np.array([1, 2, 10, 100]) ** gamma)
    np.testing.assert_allclose(noise.std(axis=1), wanted, rtol=0.03)
    np.testing.assert_allclose(noise.mean(axis=1) / wanted, 0, atol=0.03)
    correlations = np.corrcoef(noise) - np.eye(4)
    assert abs(correlations).max() < 0.03


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
