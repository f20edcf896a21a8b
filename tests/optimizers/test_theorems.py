"""Theorems about the algorithms, measured."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from algorithms import CASES, RATE, STAGES, STEPS, problem, run_as_data, run_closed_over
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
        optfn.adabelief(RATE, eps=0, eps_root=0),
        optfn.adamax(RATE, eps=0),
        optfn.adan(RATE, eps=0, eps_root=0),
        optfn.laprop(RATE, eps=0),
        optfn.rprop(RATE),
        optfn.sign_sgd(RATE),
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


@pytest.mark.parametrize("algorithm", ["adamw", "nadamw", "adamaxw", "laprop", "adan", "lion"])
def test_decoupled_decay_multiplies_the_weights(algorithm, x64):
    """Without a gradient the product of 1 - lr_t * weight_decay_t is left of them."""
    params = {"decays": np.array([1.0, -2.0]), "stays": np.array([1.0, -2.0])}
    grads = {k: np.zeros((STEPS, 2)) for k in params}
    rate, decay = schedules.linear(0.1, 0.01, 50), schedules.exponential(0.5, 0.97)
    mask = {"decays": True, "stays": False}
    tx = getattr(optfn, algorithm)(rate, weight_decay=decay, mask=mask)
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


@pytest.mark.parametrize("b2", [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999])
def test_the_length_of_an_average_is_exact_in_float32(b2):
    """To a few roundings of t. The paper's formula is a difference of numbers near 2 / (1 - b2)."""
    t = np.arange(1, STEPS + 1)
    b2 = np.float32(b2)
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


@pytest.mark.parametrize("tx", [optfn.yogi(RATE), optfn.qhadam(RATE), optfn.adam(RATE)])
def test_squares_that_overflow_are_no_nan(tx):
    grads = GRADS.astype(np.float32)
    grads[:2] *= 1e25
    assert np.isfinite(updates_of(tx, grads)).all()


def test_cautious_entries_are_divided_by_their_share(x64):
    """Entries that go against the gradient are zero, the others divided by their share."""
    adam, cautious = updates_of(optfn.adam(RATE)), updates_of(optfn.cautious(optfn.adam(RATE)))
    agree = adam * GRADS < 0
    shares = agree.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(cautious, agree * adam / np.maximum(shares, 1e-3), rtol=1e-12)
    whole = optfn.chain(optfn.cautious(optfn.scale_by_adam()), optfn.scale_by_learning_rate(RATE))
    np.testing.assert_allclose(updates_of(whole), cautious, rtol=1e-12)


# Games.


def test_optimism_solves_a_bilinear_game():
    """min over x, max over y of x * y, where the rotation drives gradient descent outwards."""

    def distance(tx):
        def step(carry, _):
            (x, y), state = carry
            return optfn.step(tx, (y, -x), state, (x, y)), None

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
def test_steps_are_relative_to_the_params(tx, share, size):
    """In float32, also where squares overflow or vanish. (Adam's own moments are squares.)"""
    params = {"a": np.float32(size) * GRADS[0].astype(np.float32), "b": np.float32([3.0, 4.0])}
    adam = "scale_by_adam" in str(tx)
    grads = {"a": GRADS[1].astype(np.float32), "b": np.float32([1.0 if adam else size, 0.0])}
    updates, _ = tx.update(grads, tx.init(params), params)
    for name, p in params.items():
        step = np.linalg.norm(np.asarray(updates[name], float))
        np.testing.assert_allclose(step, share * np.linalg.norm(p.astype(float)), rtol=1e-5)


def test_fromage_keeps_the_norm(x64):
    """Where gradients are orthogonal to the params, as those of a normalized layer are."""
    params = jnp.asarray(GRADS[0])
    norm, tx = jnp.linalg.norm(params), optfn.fromage(0.1)
    state = tx.init(params)
    for g in GRADS[1:20]:
        g = g - params * (g @ params) / (params @ params)
        params, state = optfn.step(tx, g, state, params)
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
    if getattr(case, "layerwise", False):
        assert np.isnan(updates.pop("ordinary")[60]).all()
        clean.pop("ordinary")
    for name, wanted in clean.items():
        np.testing.assert_array_equal(np.delete(updates[name], 1, 1), np.delete(wanted, 1, 1))
